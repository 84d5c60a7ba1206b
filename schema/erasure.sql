-- The right to erasure: all records of a key that are in the log at one time are taken out of it, wherever they
-- are. Asking for it is one row; leaves that have the key are written anew in the background.

-- Takes no lock, reads the rows of erasure, writes nothing, returns what is still to be erased from a topic:
-- records of partition p with this key below ends[p + 1].
create or replace function pending_erasures(topic_id int4)
returns table (erasure_id int8, key bytea, ends int8[])
language sql stable security definer set search_path from current
begin atomic
    select e.erasure_id, e.key, e.ends from erasure e
    where e.topic_id = pending_erasures.topic_id and e.removed_at is null
    order by e.erasure_id;
end;

-- Waits for the topic's guard and row; reads the ends of its partitions, writes a row of erasure, and makes the
-- topic go on to its next segment, so that what is to be erased lies in closed ones as soon as all partitions have
-- followed; returns the erasure's id. Records that are appended after this stay. LS001, LS052: no key.
create or replace function erase_key(topic text, key bytea) returns int8
language plpgsql volatile security definer set search_path from current as $$
declare
    t topic;
    id int8;
begin
    if key is null then
        perform raise_error('LS052', 'records without a key cannot be erased by their key', null, null);
    end if;
    t := guarded_topic(topic);
    perform set_config('synchronous_commit', 'on', true);
    insert into erasure (topic_id, topic, key, key_sha256, ends, requested_at)
    select t.topic_id, t.name, erase_key.key, sha256(erase_key.key), array_agg(e.end_offset order by e.partition),
           to_timestamp(clock_ms() / 1000.0)
    from partition_tips(array_fill(t.topic_id, array[t.partitions]),
                        array(select generate_series(0, t.partitions - 1))) e
    returning erasure_id into id;
    perform roll_segment(t.topic_id, t.active_segment);
    return id;
end
$$;

-- erase_key() of a text, in UTF-8.
create or replace function erase_key(topic text, key text) returns int8
language sql volatile security definer set search_path from current
return erase_key(topic, convert_to(key, 'UTF8'));

-- What has been erased, or is to be. Who asks sees no keys, only their SHA-256.
create or replace view erasures as
select e.erasure_id, e.topic, encode(e.key_sha256, 'hex') as key_sha256, e.requested_by, e.requested_at, e.records,
       e.removed_at, e.finished_at,
       case when e.finished_at is not null then 'finished' when e.removed_at is not null then 'removed'
            else 'pending' end as state
from erasure e;

-- Takes no lock, reads the rows of erasure, writes nothing, returns the topics in which something is still to be
-- erased, or to be dropped, those that have waited longest first.
create or replace function topics_to_erase() returns table (topic_id int4, topic text)
language sql stable security definer set search_path from current
begin atomic
    select t.topic_id, t.name from topic t
    join (select e.topic_id, min(e.erasure_id) as first from erasure e
          where e.finished_at is null group by e.topic_id) e on e.topic_id = t.topic_id
    order by e.first;
end;

-- Takes no lock beyond ACCESS SHARE; reads the keys of one leaf, once, however many are to be erased, and stops at the
-- first match; writes nothing; returns whether it has a record that is still to be erased.
create or replace function holds_erased(topic_id int4, segment int4) returns boolean
language plpgsql stable security definer set search_path from current
set jit = off set enable_seqscan = off set enable_bitmapscan = off set enable_mergejoin = off set enable_nestloop = off
as $$
declare
    leaf constant text := format('b_%s_%s', topic_id, segment);
    holds boolean;
begin
    if to_regclass(leaf) is null then
        return false;
    end if;
    execute format($holds$
        select exists (
            select from (select b.partition, b.base_offset, unnest(b.keys) as key, unnest(b.offset_deltas) as delta,
                                generate_series(0, b.record_count - 1) as n from %I b where b.keys is not null) u
            join pending_erasures($1) e on e.key = u.key
            where u.base_offset + coalesce(u.delta, u.n) < e.ends[u.partition + 1])
        $holds$, leaf) into holds using topic_id;
    return holds;
end
$$;

-- Takes no lock; reads the catalog; writes nothing; returns the closed live leaves of a topic that may have
-- something to be erased, oldest first, and with closed = false those that somebody still writes to.
create or replace function leaves_to_search(topic_id int4) returns table (segment int4, closed boolean)
language sql stable security definer set search_path from current
begin atomic
    select s.segment, not exists (select from topic_partition p
                                  where p.topic_id = s.topic_id and p.segment = s.segment)
                      and s.segment <> t.active_segment
    from topic_segment s join topic t on t.topic_id = s.topic_id
    where s.topic_id = leaves_to_search.topic_id and s.live
      and exists (
          select from pending_erasures(leaves_to_search.topic_id) e
          where exists (select from sealed_segment z
                        where z.topic_id = s.topic_id and z.segment = s.segment
                          and z.first_offset < e.ends[z.partition + 1])
             or exists (select from topic_partition p
                        where p.topic_id = s.topic_id and p.segment = s.segment
                          and p.segment_start < e.ends[p.partition + 1]))
    order by s.place;
end;

-- Tries the topic's guard; makes the topic go on to its next segment, if what is to be erased is in the one that it
-- writes to, or takes partitions along that have stayed behind; returns whether it is worth while to call again at
-- once.
create or replace function roll_for_erasure(topic_id int4, out more boolean)
language plpgsql volatile security definer set search_path from current as $$
declare
    active constant int4 := (select t.active_segment from topic t where t.topic_id = roll_for_erasure.topic_id);
begin
    more := false;
    if not exists (select from leaves_to_search(topic_id) l where not l.closed) then
        return;
    end if;
    if exists (select from leaves_to_search(topic_id) l where l.segment = active) then
        more := roll_segment(topic_id, active) <> active;
    else
        more := (select r.more from roll_topic(topic_id) r);
    end if;
end
$$;

-- Tries the topic's guard, and, once nothing is under way in the topic and searched has every leaf that may have
-- had the keys (and its files, if there are any), writes that nobody can read them any more, and forgets the keys;
-- once the old leaves are dropped, that they are gone. newest: the newest erasure that was there when the
-- search began. Returns how many erasures are finished by this.
create or replace function finish_erasures(topic_id int4, searched int4[], newest int8) returns int4
language plpgsql volatile security definer set search_path from current as $$
declare
    id constant int4 := topic_id;
    finished int4;
begin
    if not pg_try_advisory_xact_lock(lock_class('guard'), id)
       or exists (select from rewrite r where r.topic_id = id)
       or exists (select from leaves_to_search(id) l where l.segment <> all (searched) or not l.closed) then
        return 0;
    end if;
    perform set_config('synchronous_commit', 'on', true);
    update erasure e set removed_at = to_timestamp(clock_ms() / 1000.0), key = null
    where e.topic_id = id and e.removed_at is null and e.erasure_id <= newest
      and (e.files_searched_at is not null or not has_files(id, e.ends));
    update erasure e set finished_at = to_timestamp(clock_ms() / 1000.0)
    where e.topic_id = id and e.removed_at is not null and e.finished_at is null
      and not exists (select from dropped_segment d where d.topic_id = id and d.dropped_at <= e.removed_at);
    get diagnostics finished = row_count;
    return finished;
end
$$;

-- Takes no lock, reads the catalog of files, writes nothing, returns whether some of the topic's records below
-- ends are in files.
create or replace function has_files(topic_id int4, ends int8[]) returns boolean
language sql stable set search_path from current
begin atomic
    select exists (select from remote_segment f
                   where f.topic_id = has_files.topic_id and f.first_offset < ends[f.partition + 1]);
end;

-- Takes the row lock of the erasure; writes that the topic's files have been searched and how many records were
-- erased from them; returns nothing.
create or replace function erasure_files_searched(erasure_id int8, records int8) returns void
language sql volatile security definer set search_path from current
begin atomic
    update erasure e set files_searched_at = to_timestamp(clock_ms() / 1000.0),
                         records = e.records + erasure_files_searched.records
    where e.erasure_id = erasure_files_searched.erasure_id;
end;

-- Takes no lock, reads and writes nothing, returns the smallest time stamp of a batch's records; of a batch
-- without records one that is later than all.
create or replace function smallest_timestamp(b batches) returns int8
language sql stable
return case when b.record_count = 0 then 253402300799999
            else coalesce((select min(u) from unnest(b.timestamps) u), b.max_timestamp) end;

-- Takes no lock, reads and writes nothing, returns a query for the batches of a stretch as they are, without those
-- that are not wanted here any more; with erase, without those below the log start (what is in files only may be
-- taken back from here) and without the records that are to be erased. Its parameters: topic id, the two
-- ends of the stretch (partition and offset each), the erasures' ids; the others are for fill_target().
create or replace function copied_batches(leaf text, erase boolean) returns text
language sql immutable set search_path from current
return format($copy$
    select b.partition, b.base_offset, b.last_offset, b.leader_epoch, b.timestamp_type, b.append_time,
           b.xact, %2$s
    from %1$I b join topic_partition p on p.topic_id = $1 and p.partition = b.partition
    %3$s
    where (b.partition, b.last_offset) > ($2, $3) and (b.partition, b.last_offset) <= ($4, $5)
      and b.last_offset >= %4$s and $7::int8 is not null and $8::int8 is not null
      and $6::int8[] is not null $copy$,
    leaf,
    case when erase then $erase$
           case when e.cut then null else b.producer_id end as producer_id,
           case when e.cut then null else b.producer_epoch end as producer_epoch,
           case when e.cut then null else b.base_sequence end as base_sequence,
           case when e.cut then null else b.last_sequence end as last_sequence,
           case when not e.cut then b.size_bytes end as size_bytes,
           case when e.cut then coalesce(k.record_count, 0) else b.record_count end as record_count,
           case when e.cut then coalesce(k.min_timestamp, 253402300799999)
                else smallest_timestamp(b) end as min_timestamp,
           case when e.cut then coalesce(k.max_timestamp, 0) else b.max_timestamp end as max_timestamp,
           case when e.cut then k.offset_deltas else b.offset_deltas end as offset_deltas,
           case when not e.cut then b.timestamps when k.min_timestamp < k.max_timestamp then k.timestamps end
               as timestamps,
           case when e.cut then k.keys else b.keys end as keys,
           case when e.cut then k."values" else b."values" end as "values",
           case when e.cut then h.header_records else b.header_records end as header_records,
           case when e.cut then h.header_keys else b.header_keys end as header_keys,
           case when e.cut then h.header_values else b.header_values end as header_values,
           case when not e.cut or k."values" is null or array_position(k."values", null) is not null
                then b.delete_horizon end as delete_horizon $erase$
    else $whole$ b.producer_id, b.producer_epoch, b.base_sequence, b.last_sequence, b.size_bytes, b.record_count,
           smallest_timestamp(b) as min_timestamp,
           b.max_timestamp, b.offset_deltas, b.timestamps, b.keys, b."values", b.header_records, b.header_keys,
           b.header_values, b.delete_horizon $whole$ end,
    case when erase then $cut$
    cross join lateral (
        select exists (select from erasure e
                       where e.erasure_id = any ($6) and b.base_offset < e.ends[b.partition + 1]
                         and e.key = any (b.keys)) as cut) e
    left join lateral (
        select count(*)::int4 as record_count, min(u.at) as min_timestamp, max(u.at) as max_timestamp,
               array_agg((u."offset" - b.base_offset)::int4 order by u.n) as offset_deltas,
               array_agg(u.at order by u.n) as timestamps,
               case when count(u.key) > 0 then array_agg(u.key order by u.n) end as keys,
               case when count(u.value) > 0 then array_agg(u.value order by u.n) end as "values",
               array_agg(u.n + 1 order by u.n) as places
        from (select v.n, v.key, v.value, b.base_offset + coalesce(v.delta, v.n) as "offset",
                     coalesce(v.stamp, b.max_timestamp) as at
              from (select generate_series(0, b.record_count - 1) as n, unnest(b.offset_deltas) as delta,
                           unnest(b.timestamps) as stamp, unnest(b.keys) as key, unnest(b."values") as value) v) u
        where not exists (select from erasure e
                          where e.erasure_id = any ($6) and e.key = u.key
                            and u."offset" < e.ends[b.partition + 1])) k on e.cut
    left join lateral (
        select array_agg(array_position(k.places, u.record) order by u.n) as header_records,
               array_agg(u.name order by u.n) as header_keys, array_agg(u.value order by u.n) as header_values
        from unnest(b.header_records, b.header_keys, b.header_values) with ordinality u (record, name, value, n)
        where array_position(k.places, u.record) is not null) h on e.cut and b.header_records is not null $cut$
    else '' end,
    case when erase then 'p.log_start' else 'kept_from(p)' end);

-- Needs what rewrite_step() has locked; takes ACCESS SHARE locks; reads the next stretch of a leaf, writes what is
-- to stay of it to the leaf that is being filled, how many records were erased, and how far it has come; returns
-- how many records it read.
create or replace function write_copied(r rewrite, max_records int4) returns int8
language plpgsql volatile set search_path from current
set work_mem = '48MB' set jit = off set enable_seqscan = off set enable_bitmapscan = off as $$
declare
    id constant int4 := r.topic_id;
    leaf constant text := format('b_%s_%s', id, r.sources[1]);
    stretch record;
    kept_records int8 := 0;
    kept_bytes int8 := 0;
begin
    select n.* into stretch from next_stretch(id, r.sources[1], r.partition, r.last_offset, max_records) n;
    if stretch.partition is not null then
        if r.kind = 'erase' then
            execute format($count$
                update erasure e set records = e.records + c.records
                from (select e.erasure_id, count(*) as records
                      from erasure e
                      join %I b on b.base_offset < e.ends[b.partition + 1] and e.key = any (b.keys)
                      join topic_partition p on p.topic_id = $1 and p.partition = b.partition
                      cross join lateral (
                          select b.base_offset + coalesce(v.delta, v.n) as "offset", v.key
                          from (select generate_series(0, b.record_count - 1) as n,
                                       unnest(b.offset_deltas) as delta, unnest(b.keys) as key) v) u
                      where e.erasure_id = any ($6) and u.key = e.key and u."offset" < e.ends[b.partition + 1]
                        and u."offset" >= p.log_start and b.last_offset >= p.log_start
                        and (b.partition, b.last_offset) > ($2, $3) and (b.partition, b.last_offset) <= ($4, $5)
                      group by e.erasure_id) c
                where c.erasure_id = e.erasure_id $count$, leaf)
            using id, r.partition, r.last_offset, stretch.partition, stretch.last_offset, r.erasures;
        end if;
        execute fill_target(format('b_%s_%s', id, r.target), copied_batches(leaf, r.kind = 'erase'))
        into kept_records, kept_bytes
        using id, r.partition, r.last_offset, stretch.partition, stretch.last_offset, r.erasures, 0::int8, 0::int8,
              r.target;
    end if;
    update rewrite w set
        partition = coalesce(stretch.partition, w.partition),
        last_offset = coalesce(stretch.last_offset, w.last_offset),
        records_read = w.records_read + coalesce(stretch.records, 0),
        records_kept = w.records_kept + kept_records, bytes_kept = w.bytes_kept + kept_bytes
    where w.topic_id = id;
    if stretch.at_end then
        perform source_is_done(r);
    end if;
    return coalesce(stretch.records, 0);
end
$$;
