-- The read path of the clients.

-- Takes no lock beyond ACCESS SHARE; reads the partitions' rows and the last batch of each, one statement a
-- leaf, all in one snapshot; writes nothing; returns for the i-th wanted partition its log start, its end and
-- the running values of its last batch (null: none in the active segment). No row: no such partition.
create or replace function partition_tips(topic_ids int4[], partitions int4[])
returns table (idx int4, topic_id int4, "partition" int4, segment int4, segment_start int8, log_start int8, end_offset int8, leader_epoch int4,
               bytes int8, min_timestamp int8, max_timestamp int8, disorder int8)
language plpgsql stable security definer set search_path from current as $$
#variable_conflict use_column
declare
    statement text;
begin
    select string_agg(format($leaf$
        select w.idx, %s, w.partition, %s, w.segment_start, w.log_start, coalesce(t.last_offset + 1, w.segment_start), w.leader_epoch,
               t.segment_bytes, t.segment_min_timestamp, t.segment_max_timestamp, t.segment_disorder
        from unnest(%L::int4[], %L::int4[], %L::int8[], %L::int8[], %L::int4[]) as w (idx, partition, segment_start, log_start, leader_epoch)
        left join lateral (select b.last_offset, b.segment_bytes, b.segment_min_timestamp, b.segment_max_timestamp, b.segment_disorder
                           from %I b where b.partition = w.partition order by b.last_offset desc limit 1) t on true $leaf$,
        l.topic_id, l.segment, l.idxs, l.partitions, l.segment_starts, l.log_starts, l.leader_epochs, l.leaf), ' union all ')
    into statement
    from (select p.topic_id, p.segment, 'b_' || p.topic_id || '_' || p.segment as leaf, array_agg(w.idx) as idxs, array_agg(p.partition) as partitions,
                 array_agg(p.segment_start) as segment_starts, array_agg(p.log_start) as log_starts, array_agg(p.leader_epoch) as leader_epochs
          from unnest(topic_ids, partitions) with ordinality as w (topic_id, partition, idx)
          join topic_partition p on p.topic_id = w.topic_id and p.partition = w.partition
          group by p.topic_id, p.segment) l
    where to_regclass(l.leaf) is not null;
    if statement is not null then
        return query execute statement;
    end if;
end
$$;

-- Takes no lock beyond ACCESS SHARE; reads as partition_tips does, writes nothing, returns for the i-th
-- wanted partition the offsets between which it can be read (null where there is no such partition).
create or replace function high_watermarks(topic_ids int4[], partitions int4[])
returns table (idx int4, log_start int8, high_watermark int8)
language sql stable security definer set search_path from current
begin atomic
    select w.idx::int4, t.log_start, t.end_offset
    from unnest(high_watermarks.topic_ids, high_watermarks.partitions) with ordinality as w (topic_id, partition, idx)
    left join partition_tips(high_watermarks.topic_ids, high_watermarks.partitions) t on t.idx = w.idx
    order by w.idx;
end;

-- Takes no lock, reads the catalog, writes nothing, returns the segment in which the partition keeps offset
-- (or the next one that it has).
create or replace function segment_of(p topic_partition, "offset" int8) returns int4
language sql stable set search_path from current
begin atomic
    select case when "offset" >= (p).segment_start then (p).segment
                else (select s.segment from sealed_segment s where s.topic_id = (p).topic_id and s.partition = (p).partition and s.last_offset >= "offset"
                      order by s.last_offset limit 1) end;
end;

-- Takes no lock beyond ACCESS SHARE; reads the tips of the wanted partitions and, from each one's offset on,
-- batches of the segment that holds that offset: whole ones, in order, at most 1,000 of a partition, as many
-- as fit max_partition_bytes (but at least one) and, in the order of the arrays, max_bytes (but at least
-- one). One snapshot, one statement. Writes nothing; returns first one row a wanted partition, with
-- log_start, high_watermark and base_offset null (log_start null: no such partition), then the batches. An
-- offset out of range brings no batch.
create or replace function "fetch"(topic_ids int4[], partitions int4[], offsets int8[], max_bytes int4, max_partition_bytes int4)
returns table (idx int4, log_start int8, high_watermark int8, base_offset int8, last_offset int8, record_count int4, leader_epoch int4,
               timestamp_type int2, max_timestamp int8, timestamps int8[], keys bytea[], "values" bytea[],
               header_records int4[], header_keys text[], header_values bytea[], offset_deltas int4[])
language plpgsql stable security definer set search_path from current as $$
#variable_conflict use_column
declare
    leaves text;
begin
    return query
        select h.idx, h.log_start, h.high_watermark, null::int8, null::int8, null::int4, null::int4, null::int2, null::int8, null::int8[], null::bytea[],
               null::bytea[], null::int4[], null::text[], null::bytea[], null::int4[]
        from high_watermarks(topic_ids, partitions) h;

    select string_agg(format($leaf$
        select w.idx, b.* from unnest(%L::int4[], %L::int4[], %L::int8[]) as w (idx, partition, "offset")
        cross join lateral (select f.size_bytes, f.segment_bytes - f.size_bytes as position from %4$I f
                            where f.partition = w.partition and f.last_offset >= w."offset" order by f.last_offset limit 1) first
        cross join lateral (select * from %4$I b where b.partition = w.partition and b.last_offset >= w."offset" order by b.last_offset
                            limit least(1000, 2 + $2 / greatest(first.size_bytes, 1))) b
        where b.segment_bytes - first.position <= $2 or b.segment_bytes - b.size_bytes = first.position $leaf$,
        l.idxs, l.partitions, l.offsets, l.leaf), ' union all ')
    into leaves
    from (select 'b_' || p.topic_id || '_' || s.segment as leaf, array_agg(w.idx) as idxs, array_agg(p.partition) as partitions, array_agg(w."offset") as offsets
          from unnest(topic_ids, partitions, offsets) with ordinality as w (topic_id, partition, "offset", idx)
          join topic_partition p on p.topic_id = w.topic_id and p.partition = w.partition and w."offset" >= p.log_start
          cross join lateral segment_of(p, w."offset") as s (segment)
          group by p.topic_id, s.segment) l
    where to_regclass(l.leaf) is not null;
    if leaves is not null then
        return query execute format($fetch$
            select u.idx, null::int8, null::int8, u.base_offset, u.last_offset, u.record_count, u.leader_epoch, u.timestamp_type, u.max_timestamp,
                   u.timestamps, u.keys, u."values", u.header_records, u.header_keys, u.header_values, u.offset_deltas
            from (select b.*, sum(b.size_bytes) over (order by b.idx, b.last_offset rows unbounded preceding) as total from (%s) b) u
            where u.total <= $1 or u.total = u.size_bytes
            order by u.idx, u.last_offset $fetch$, leaves)
            using max_bytes, max_partition_bytes;
    end if;
end
$$;
