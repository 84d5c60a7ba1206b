-- Reading a part of the log with SQL.

-- Takes no lock, reads and writes nothing, returns at in milliseconds since the epoch, rounded up: a time
-- stamp is at or after the one exactly if it is at or after the other.
create or replace function milliseconds(at timestamptz) returns int8
language sql immutable strict set search_path from current
return case when isfinite(at) then ceil(extract(epoch from at) * 1000)::int8
            when at > '2000-01-01' then 9223372036854775807 else -9223372036854775807 end;

-- Takes no lock, reads the topic's partitions, writes nothing, returns their log starts: partition p's is
-- element p + 1. LS001.
create or replace function log_starts(topic text) returns int8[]
language sql stable security definer set search_path from current
return (select array_agg(p.log_start order by p.partition)
        from topic_partition p where p.topic_id = topic_id_of(log_starts.topic));

-- Takes no lock, reads the catalog, writes nothing, returns nothing: raises a NOTICE if records of the range are
-- in files only, where SQL does not see them.
create or replace function say_what_is_remote(
    topic text, "partition" int4, from_offset int8, to_offset int8, after int8, before int8) returns void
language plpgsql stable set search_path from current as $$
begin
    if exists (select from remote_files(topic_id_of(topic), "partition", from_offset) f
               where f.first_offset < to_offset and (after is null or f.max_timestamp >= after)
                 and (before is null or f.min_timestamp < before)) then
        raise notice 'records from offset % to before % of partition % of topic % are in files, not read here',
            from_offset, to_offset, "partition", shown(topic)
            using hint = 'Consumers read both, and so does read() of the Python package. See the view remote_segments.';
    end if;
end
$$;

-- Takes no lock beyond ACCESS SHARE; reads the catalog and, partition after partition, from the index the
-- batches that may have records of the range; stops as soon as they have max_records for certain; writes
-- nothing; returns them in order, their arrays untouched. A NOTICE says what is in files only. Bounds are half
-- open, null is no bound. If there are quotas, takes that bucket's lock for a moment and charges
-- it. LS001, LS059 the quota has been used up for long.
create or replace function read_batches(
    topic text, "partition" int4, from_offset int8, to_offset int8,
    from_time timestamptz, to_time timestamptz, max_records int8) returns setof batches
language plpgsql stable security definer set search_path from current
-- The server may know nothing of a new leaf; its index is the way whatever it believes.
set enable_seqscan = off set enable_bitmapscan = off as $$
declare
    id constant int4 := topic_id_of(topic);
    after constant int8 := milliseconds(from_time);
    before constant int8 := milliseconds(to_time);
    wanted int8 := max_records;
    part record;
    leaf record;
    batch batches;
    start_offset int8;
    stop_offset int8;
    bound constant pg_snapshot := safe_limit();
    metered constant boolean := quotas_on();
    sent int8 := 0;
begin
    if metered then
        perform quota_state('fetch', true);
    end if;
    if "partition" is not null then
        perform no_partition(id, "partition")
        where not exists (select from topic_partition p
                          where p.topic_id = id and p.partition = read_batches.partition);
    end if;
    for part in
        select t.*, readable_end(bound, t.topic_id, t.partition, t.log_start, t.end_offset, t.bytes, t.xact)
                        as high_watermark
        from (select array_agg(p.topic_id) as topics, array_agg(p.partition) as partitions
              from topic_partition p
              where p.topic_id = id
                and (read_batches.partition is null or p.partition = read_batches.partition)) a
        cross join lateral partition_tips(a.topics, a.partitions) t
        order by t.partition
    loop
        if part.log_start < part.local_start then
            perform say_what_is_remote(topic, part.partition, greatest(part.log_start, from_offset),
                least(part.local_start, to_offset), after, before);
        end if;
        for leaf in
            select u.*
            from (select s.segment, s.first_offset, s.last_offset, s.min_timestamp, s.max_timestamp,
                         s.disorder
                  from sealed_segment s where s.topic_id = id and s.partition = part.partition
                  union all
                  select part.segment, part.segment_start, part.end_offset - 1, part.min_timestamp,
                         part.max_timestamp, part.disorder) u
            where u.first_offset <= u.last_offset and u.last_offset >= greatest(part.local_start, from_offset)
              and u.first_offset < least(to_offset, part.high_watermark)
              and (after is null or u.max_timestamp >= after) and (before is null or u.min_timestamp < before)
            order by u.last_offset
        loop
            start_offset := greatest(
                part.local_start, from_offset, time_position(id, leaf.segment, part.partition, after));
            -- No record lies further than disorder behind the running maximum, so from there on all are too
            -- late.
            stop_offset := time_position(id, leaf.segment, part.partition, before + leaf.disorder);
            for batch in execute format($batches$
                select b.* from %1$I b
                where b.partition = $1 and b.last_offset >= $2 and b.last_offset < $3
                  and b.last_offset < $5
                  and b.last_offset <= coalesce(
                      (select l.last_offset from %1$I l where l.partition = $1 and l.last_offset >= $4
                       order by l.last_offset limit 1), $3)
                order by b.last_offset $batches$, 'b_' || id || '_' || leaf.segment)
                using part.partition, start_offset, coalesce(stop_offset, 9223372036854775807),
                      coalesce(to_offset, 9223372036854775807) - 1, part.high_watermark
            loop
                continue when batch.max_timestamp < after;
                exit when wanted <= 0;
                return next batch;
                sent := sent + batch.size_bytes;
                if batch.base_offset >= start_offset and (to_offset is null or batch.last_offset < to_offset)
                   and (after is null or batch.segment_max_timestamp - leaf.disorder >= after)
                   and (before is null or batch.max_timestamp < before) then
                    wanted := wanted - batch.record_count;
                end if;
            end loop;
            exit when wanted <= 0;
        end loop;
        exit when wanted <= 0;
    end loop;
    if metered and sent > 0 then
        perform charge_quota('fetch', sent, false);
    end if;
end
$$;

-- Takes no lock beyond ACCESS SHARE; reads, in one snapshot, what partition_tips() and read_batches() say of one
-- partition; writes nothing; returns one row with its log_start, high_watermark, local_start and log_end and base_offset
-- null, then, unless from_offset lies below local_start, the batches that may have records of the range, times
-- being in ms. LS001.
create or replace function read_chunk(
    topic text, "partition" int4, from_offset int8, to_offset int8, from_time int8, to_time int8,
    max_records int8) returns setof fetched
language plpgsql stable security definer set search_path from current as $$
#variable_conflict use_column
declare
    lead fetched;
begin
    select t.log_start, t.local_start, t.end_offset,
           readable_end(safe_limit(), t.topic_id, t.partition, t.log_start, t.end_offset, t.bytes, t.xact)
    into lead.log_start, lead.local_start, lead.log_end, lead.high_watermark
    from partition_tips(array[topic_id_of(read_chunk.topic)], array[read_chunk.partition]) t;
    lead.idx := 1;
    return next lead;
    if lead.log_start is null then
        perform no_partition(topic_id_of(read_chunk.topic), read_chunk.partition);
    elsif from_offset < lead.local_start then
        return;
    end if;
    return query
        select 1, null::int8, null::int8, b.base_offset, b.last_offset, b.record_count, b.leader_epoch,
               b.timestamp_type, b.max_timestamp, b.timestamps, b.keys, b."values", b.header_records,
               b.header_keys, b.header_values, b.offset_deltas, b.size_bytes, null::int8, null::int8
        from read_batches(read_chunk.topic, read_chunk.partition, from_offset, to_offset,
                          to_timestamp(from_time::float8 / 1000), to_timestamp(to_time::float8 / 1000),
                          max_records) b;
end
$$;

-- Takes no lock beyond ACCESS SHARE; reads what read_batches() finds; writes nothing; returns the records of
-- the topic (or of one partition) from from_offset to before to_offset, with a time stamp from from_time to
-- before to_time, in order of partition and offset, at most max_records; columns as in the view records. To
-- be inlined: what is not asked for is not made.
do $install$
begin
    execute format($read$
        create or replace function read(
            topic text, "partition" int4 default null,
            from_offset int8 default null, to_offset int8 default null,
            from_time timestamptz default null, to_time timestamptz default null,
            max_records int8 default null) returns setof records
        language sql stable
        begin atomic
            select q.* from (%s) q
            where (read.to_offset is null or q."offset" < read.to_offset)
              and (read.from_time is null or q."timestamp" >= read.from_time)
              and (read.to_time is null or q."timestamp" < read.to_time)
            limit read.max_records;
        end $read$,
        records_query(
            'read.topic',
            'greatest((select log_starts(read.topic))[b.partition + 1], read.from_offset)',
            'read_batches(read.topic, read.partition, read.from_offset, read.to_offset, read.from_time,
                          read.to_time, read.max_records) b'));
end
$install$;
