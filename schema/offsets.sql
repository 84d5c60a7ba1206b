-- Which offset is it? Look-ups by time, and the start of the log.

-- Takes no lock beyond ACCESS SHARE; reads about log2(records) batches of one partition of one segment, from
-- the index; writes nothing; returns the last offset of the first batch up to and with which the largest time
-- stamp is "timestamp" or more: no earlier batch of the segment has such a record. Null: nor has any later
-- one.
create or replace function time_position(
    topic_id int4, segment int4, "partition" int4, "timestamp" int8) returns int8
language plpgsql stable strict set search_path from current as $$
declare
    found_at int8;
begin
    execute format($search$
        with recursive search (low, high, found_at) as (
            (select 0::int8, b.last_offset, null::int8
             from %1$I b where b.partition = $1 order by b.last_offset desc limit 1)
            union all
            select case when m.late then s.low else m.last_offset + 1 end,
                   case when m.late then (s.low + s.high) / 2 - 1 else s.high end,
                   case when m.late then m.last_offset else s.found_at end
            from search s
            cross join lateral (
                select b.last_offset, b.segment_max_timestamp >= $2 as late from %1$I b
                where b.partition = $1 and b.last_offset >= (s.low + s.high) / 2
                order by b.last_offset limit 1) m
            where s.low <= s.high)
        select min(found_at) from search $search$, 'b_' || topic_id || '_' || segment)
    into found_at using "partition", "timestamp";
    return found_at;
end
$$;

-- Takes no lock beyond ACCESS SHARE; reads the catalog, searches the segments that may have it, from the log
-- start on, for batches that end before an offset; writes nothing; returns the first record with this time stamp or a
-- later one: all null if there is none.
create or replace function offset_for_time(
    p topic_partition, "timestamp" int8, before int8,
    out "offset" int8, out found_timestamp int8, out leader_epoch int4)
language plpgsql stable set search_path from current as $$
declare
    candidate int4;
begin
    for candidate in
        select u.segment
        from (select s.segment, s.last_offset from sealed_segment s
              where s.topic_id = p.topic_id and s.partition = p.partition and s.last_offset >= p.log_start
                and s.first_offset < before and s.max_timestamp >= "timestamp"
              union all select p.segment, 9223372036854775807) u
        order by u.last_offset
    loop
        execute format($record$
            select b.base_offset + coalesce(b.offset_deltas[r.ordinal], r.ordinal - 1), r.at, b.leader_epoch
            from %I b
            cross join lateral (
                select u.ordinal, u.at
                from (select i as ordinal, b.max_timestamp as at
                      from generate_series(1, b.record_count) i where b.timestamps is null
                      union all select i, t from unnest(b.timestamps) with ordinality w (t, i)) u
                where u.at >= $2 and b.base_offset + coalesce(b.offset_deltas[u.ordinal], u.ordinal - 1) >= $4
                order by u.ordinal limit 1) r
            where b.partition = $1 and b.last_offset >= $3 and b.last_offset < $5 and b.max_timestamp >= $2
            order by b.last_offset limit 1 $record$, 'b_' || p.topic_id || '_' || candidate)
        into "offset", found_timestamp, leader_epoch
        using p.partition, "timestamp",
              greatest(time_position(p.topic_id, candidate, p.partition, "timestamp"), p.log_start),
              p.log_start, before;
        exit when "offset" is not null;
    end loop;
end
$$;

-- Takes no lock, reads the catalog, writes nothing, returns the segment in which the partition keeps offset
-- (or the next one that it has).
create or replace function segment_of(p topic_partition, "offset" int8) returns int4
language plpgsql stable set search_path from current as $$
begin
    if "offset" >= p.segment_start then
        return p.segment;
    end if;
    return coalesce((select s.segment from sealed_segment s
                     where s.topic_id = p.topic_id and s.partition = p.partition and s.last_offset >= "offset"
                     order by s.last_offset limit 1), p.segment);
end
$$;

-- Takes no lock beyond ACCESS SHARE; reads the catalog, the last batch that ends before an offset, and the batches from
-- the log start on only of the segment that the log start lies in; writes nothing; returns the largest time stamp of the
-- partition's records in batches up to that one, null if there are none.
create or replace function largest_timestamp(p topic_partition, before int8) returns int8
language plpgsql stable set search_path from current as $$
declare
    largest int8;
    begun int4 := segment_of(p, p.log_start);
    last_one int4 := segment_of(p, before - 1);
    in_begun int8;
    in_last int8;
begin
    select max(s.max_timestamp) into largest from sealed_segment s
    where s.topic_id = p.topic_id and s.partition = p.partition and s.last_offset >= p.log_start
      and s.last_offset < before and s.segment not in (begun, last_one);
    if last_one <> begun then
        execute format('select b.segment_max_timestamp from %I b where b.partition = $1 and b.last_offset < $2
                        order by b.last_offset desc limit 1', 'b_' || p.topic_id || '_' || last_one)
        into in_last using p.partition, before;
    end if;
    execute format($begun$
        select max(case when b.base_offset >= $2 or b.timestamps is null then b.max_timestamp
                        else (select max(t) from unnest(b.timestamps) with ordinality w (t, i)
                              where b.base_offset + coalesce(b.offset_deltas[i], i - 1) >= $2) end)
        -- Of a batch that was written anew, what is left may all lie below the log start.
        from %I b where b.partition = $1 and b.last_offset >= $2 and b.last_offset < $3
            and b.base_offset + coalesce(b.offset_deltas[b.record_count], b.record_count - 1) >= $2 $begun$,
        'b_' || p.topic_id || '_' || begun)
    into in_begun using p.partition, p.log_start, before;
    return greatest(largest, in_begun, in_last);
end
$$;

-- Takes no lock beyond ACCESS SHARE; reads the partitions' rows and tips, and searches the log for time
-- stamps; writes nothing; returns the i-th partition's offset for its spec: -1 the high watermark, -2 the log start, -3
-- the record with the largest time stamp (the first such), -4 the start of what is in PostgreSQL, -5 the end of
-- what is in files, from 0 on the first record with that time stamp (ms) or a later one; offset and timestamp
-- are null where there is no such record. remote: the record, if it has any such, is in the file that begins
-- with this offset, where find_time() goes on with this time stamp. LS001: no such partition, LS012: no such
-- spec.
create or replace function list_offsets(topic_ids int4[], partitions int4[], specs int8[])
returns table (idx int4, "offset" int8, "timestamp" int8, leader_epoch int4, remote boolean)
language plpgsql stable security definer set search_path from current as $$
#variable_conflict use_column
declare
    wanted record;
    p topic_partition;
    file remote_file;
    largest int8;
    bound constant pg_snapshot := safe_limit();
begin
    for wanted in
        select t.*, specs[t.idx] as spec,
               readable_end(bound, t.topic_id, t.partition, t.log_start, t.end_offset, t.bytes, t.xact)
                   as high_watermark
        from partition_tips(topic_ids, partitions) t order by t.idx
    loop
        if wanted.log_start is null then
            perform no_partition(wanted.topic_id, wanted.partition);
        elsif (wanted.spec >= -5) is not true then
            perform raise_error('LS012', format('there is no offset spec %s', wanted.spec),
                jsonb_build_object('spec', wanted.spec),
                'Use -1 (latest), -2 (earliest), -3 (max timestamp), -4 (earliest local), -5 (latest tiered) '
                'or milliseconds since the epoch.');
        elsif wanted.spec in (-1, -2, -4, -5) then
            return query select wanted.idx, case wanted.spec
                when -1 then wanted.high_watermark when -2 then wanted.log_start when -4 then wanted.local_start
                else (select max(f.last_offset) + 1 from remote_segment f
                      where f.topic_id = wanted.topic_id and f.partition = wanted.partition
                        and f.state = 'copied') end,
                null::int8, wanted.leader_epoch, false;
        else
            select q.* into p from topic_partition q
            where q.topic_id = wanted.topic_id and q.partition = wanted.partition;
            largest := wanted.spec;
            file := null;
            if p.log_start < p.local_start then
                if wanted.spec = -3 then
                    select max(f.max_timestamp) into largest from remote_files(p.topic_id, p.partition, p.log_start) f;
                end if;
                select f.* into file from remote_files(p.topic_id, p.partition, p.log_start) f
                where f.max_timestamp >= largest order by f.last_offset limit 1;
                p.log_start := p.local_start;
            end if;
            if wanted.spec = -3 and coalesce(largest_timestamp(p, wanted.high_watermark), -1) > coalesce(file.max_timestamp, -1) then
                file := null;
                largest := largest_timestamp(p, wanted.high_watermark);
            end if;
            return query
                select wanted.idx, file.first_offset, largest, wanted.leader_epoch, true
                where file.file_id is not null
                union all
                select wanted.idx, o."offset", o.found_timestamp, o.leader_epoch, false
                from offset_for_time(p, largest, wanted.high_watermark) o where file.file_id is null;
        end if;
    end loop;
end
$$;

-- Takes the partition's row lock, so it waits for an append that is under way; reads the partition's high watermark,
-- writes its row, returns the new log start: before_offset (-1: the high watermark), or the old one if that is larger.
-- Space is freed when whole segments lie below. LS001, LS006: before_offset is beyond it.
create or replace function delete_records(topic text, "partition" int4, before_offset int8) returns int8
language plpgsql volatile security definer set search_path from current as $$
declare
    id int4 := topic_id_of(topic);
    start_offset int8;
    end_offset int8;
begin
    select p.log_start into start_offset
    from topic_partition p where p.topic_id = id and p.partition = delete_records.partition for no key update;
    if not found then
        perform no_partition(id, "partition");
    end if;
    select h.high_watermark into end_offset from high_watermarks(array[id], array["partition"]) h;
    if (before_offset between -1 and end_offset) is not true then
        perform raise_error('LS006',
            format('partition %s of topic %s ends at offset %s, so %s cannot be its start', "partition",
                topic, end_offset, coalesce(before_offset::text, 'null')),
            jsonb_build_object('topic', topic, 'partition', "partition", 'offset', before_offset,
                'log_start', start_offset, 'high_watermark', end_offset), null);
    end if;
    before_offset := case before_offset when -1 then end_offset else before_offset end;
    if before_offset > start_offset then
        update topic_partition p set log_start = before_offset
        where p.topic_id = id and p.partition = delete_records.partition;
        return before_offset;
    end if;
    return start_offset;
end
$$;
