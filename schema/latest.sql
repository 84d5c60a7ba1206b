-- The last record of a key, found by an index on the keys that the leaves of compacted topics have.

-- Locks the leaf in SHARE mode (nobody writes to it, or nobody knows of it yet), reads its keys, makes the index
-- of them that latest() uses if there is none, returns whether it made it. An append adds one entry for each of its
-- keys to a list, which becomes part of the index a thousand kilobytes at a time.
create or replace function add_key_index(topic_id int4, segment int4) returns boolean
language plpgsql volatile set search_path from current set maintenance_work_mem = '64MB' as $$
declare
    leaf constant text := format('b_%s_%s', topic_id, segment);
begin
    if to_regclass(leaf || '_key') is not null then
        return false;
    end if;
    execute format('create index %I on %I using gin (key_buckets(keys))
                    with (fastupdate = on, gin_pending_list_limit = 1024)', leaf || '_key', leaf);
    return true;
end
$$;

-- Takes no lock, reads the catalog, writes nothing, returns the live leaves of compacted topics that have no index
-- of their keys: their topics were not compacted when they were made. active: somebody may still write to it.
create or replace function missing_key_indexes() returns table (topic_id int4, segment int4, active boolean)
language sql stable security definer set search_path from current
begin atomic
    select s.topic_id, s.segment,
           s.segment = t.active_segment
           or exists (select from topic_partition p where p.topic_id = s.topic_id and p.segment = s.segment)
    from topic_segment s join topic t on t.topic_id = s.topic_id
    where t.compacted and s.live
      and to_regclass(format('b_%s_%s_key', s.topic_id, s.segment)) is null
    order by s.topic_id, s.place;
end;

-- Tries the lock under which a topic's leaves are written anew, or its guard; makes the index of the keys of a
-- closed leaf, if that takes seconds (a larger one gets it when it is compacted), or makes the topic go on to a leaf
-- that has one; returns whether it did either.
create or replace function mend_key_index(topic_id int4, segment int4) returns boolean
language plpgsql volatile security definer set search_path from current as $$
declare
    closed boolean;
    active int4;
    bytes int8;
begin
    if not pg_try_advisory_xact_lock(lock_class('rewrite'), topic_id) then
        return false;
    end if;
    select not m.active into closed from missing_key_indexes() m
    where m.topic_id = mend_key_index.topic_id and m.segment = mend_key_index.segment;
    if closed then
        select sum(z.bytes) into bytes from sealed_segment z
        where z.topic_id = mend_key_index.topic_id and z.segment = mend_key_index.segment;
        return coalesce(bytes, 0) <= 268435456 and add_key_index(topic_id, segment);
    end if;
    select t.active_segment into active from topic t where t.topic_id = mend_key_index.topic_id;
    return closed is not null and active = segment and roll_segment(topic_id, segment) <> segment;
end
$$;

-- Takes no lock, reads and writes nothing, returns the query that finds the batches of a leaf that may have a key,
-- the last ones first: of one partition the last few, which have the keys that are in almost every batch, and then
-- those that the index of keys names (and no other index: the condition on the partition is put so that none fits).
-- Its parameters: the key's bucket as an array, the partition (null: any), how many.
create or replace function latest_query(leaf text) returns text
language sql immutable set search_path from current
return format('(select b.partition, b.base_offset, b.append_time, b.keys, b.offset_deltas, b.record_count as looked_at
                from %1$I b
                where b.partition = $2 order by b.last_offset desc limit $3)
               union all
               (select b.partition, b.base_offset, b.append_time, b.keys, b.offset_deltas, null from %1$I b
                where key_buckets(b.keys) @> $1 and coalesce(b.partition = $2, true)
                order by b.append_time desc, b.last_offset desc)', leaf);

-- Takes no lock, reads and writes nothing, returns where the key is the last time in the array, null: nowhere.
create or replace function last_place(keys bytea[], key bytea) returns int4
language sql immutable set search_path from current
return (select u.places[cardinality(u.places)] from (select array_positions(keys, key) as places) u);

-- Takes no lock beyond ACCESS SHARE; reads the catalog, the last batches and then, leaf by leaf, newest first,
-- the batches that the index of keys names; writes nothing; returns where the last record of the key is: no row if
-- the log has none. Without partition it is the one that was appended last, of all partitions. LS001, LS053: the
-- topic is not compacted, so there is no such index.
create or replace function latest_offset(topic text, key bytea, "partition" int4 default null,
    out found_partition int4, out found_offset int8)
returns setof record
language plpgsql stable security definer set search_path from current
-- The last batches come from the index in their order; only what the index of keys finds is sorted.
set enable_seqscan = off set enable_sort = off set jit = off as $$
declare
    t topic;
    bucket constant int4[] := key_buckets(array[key]);
    leaf text;
    part int4;
    batch record;
    place int4;
    spot int8;
    newest int8;
    looked_at int8;
    log_starts int8[];
    -- Null: all may be read.
    ends int8[];
begin
    select u.* into t from topic u where u.topic_id = topic_id_of(topic);
    if not t.compacted then
        perform raise_error('LS053',
            format('topic %s is not compacted, so there is no index of its keys', t.name),
            jsonb_build_object('topic', t.name),
            'Set cleanup.policy to compact, or search it with read().');
    end if;
    if "partition" not between 0 and t.partitions - 1 then
        perform no_partition(t.topic_id, "partition");
    end if;
    log_starts := array(select p.log_start from topic_partition p
                        where p.topic_id = t.topic_id order by p.partition);
    if safe_limit() is not null then
        ends := array(select readable_to(p.topic_id, p.partition) from topic_partition p
                      where p.topic_id = t.topic_id order by p.partition);
    end if;
    for leaf in
        select format('b_%s_%s', s.topic_id, s.segment) from topic_segment s
        where s.topic_id = t.topic_id and s.live order by s.place desc
    loop
        continue when to_regclass(leaf) is null;
        newest := null;
        foreach part in array case when "partition" is null and t.partitions <= 16
                                   then array(select generate_series(0, t.partitions - 1))
                                   else array["partition"] end loop
            looked_at := 0;
            for batch in execute latest_query(leaf) using bucket, part, 100 loop
                -- Of the last batches as many as have about 2,000 records, so that this costs no more than a look-up.
                continue when batch.looked_at is not null and looked_at >= 2000;
                looked_at := looked_at + coalesce(batch.looked_at, 0);
                place := last_place(batch.keys, key);
                continue when place is null or batch.append_time < newest;
                spot := batch.base_offset + coalesce(batch.offset_deltas[place], place - 1);
                continue when spot < log_starts[batch.partition + 1] or spot >= ends[batch.partition + 1];
                newest := batch.append_time;
                found_partition := batch.partition;
                found_offset := spot;
                exit;
            end loop;
        end loop;
        if newest is not null then
            return next;
            return;
        end if;
    end loop;
end
$$;

-- Takes no lock beyond ACCESS SHARE; reads what latest_offset() reads, and one batch; writes nothing; returns the
-- last record of the key, as the view records has it (a value that is null is a tombstone): no row if the log has
-- none. LS001, LS053.
create or replace function latest(topic text, key bytea, "partition" int4 default null) returns setof records
language sql stable
begin atomic
    select r.* from latest_offset(latest.topic, latest.key, latest.partition) l
    cross join lateral read(latest.topic, l.found_partition, l.found_offset, l.found_offset + 1) r;
end;

-- latest() of a text, in UTF-8.
create or replace function latest(topic text, key text, "partition" int4 default null) returns setof records
language sql stable
begin atomic
    select l.* from latest(latest.topic, convert_to(latest.key, 'UTF8'), latest.partition) l;
end;

-- For clients: as latest(), with the record as a batch, in the form of fetch_records().
create or replace function latest_batch(topic text, key bytea, "partition" int4 default null)
returns table (found_partition int4, base_offset int8, last_offset int8, record_count int4, leader_epoch int4,
               timestamp_type int2, max_timestamp int8, timestamps int8[], keys bytea[], "values" bytea[],
               header_records int4[], header_keys text[], header_values bytea[], offset_deltas int4[])
language plpgsql stable security definer set search_path from current as $$
#variable_conflict use_column
declare
    id constant int4 := topic_id_of(topic);
begin
    return query
        select l.found_partition, f.base_offset, f.last_offset, f.record_count, f.leader_epoch, f.timestamp_type,
               f.max_timestamp, f.timestamps, f.keys, f."values", f.header_records, f.header_keys,
               f.header_values, f.offset_deltas
        from latest_offset(latest_batch.topic, latest_batch.key, latest_batch.partition) l
        cross join lateral fetch_records(array[id], array[l.found_partition], array[l.found_offset],
                                         array[l.found_offset]) f;
end
$$;
