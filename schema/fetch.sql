-- The read path of the clients. Statements are made for the leaves that are needed, and only for those, so
-- that a read opens and locks nothing else, however many topics there are.

-- Takes no lock beyond ACCESS SHARE; reads the partitions' rows and the last batch of each, in one snapshot;
-- writes nothing; returns for each wanted partition, in no order, its row, its end and the running values of
-- its last batch (null: none in the active segment), xact being the one that appended it. log_start is null: no such
-- partition. Records below local_start are in files only.
create or replace function partition_tips(topic_ids int4[], partitions int4[])
returns table (idx int4, topic_id int4, "partition" int4, segment int4, segment_start int8, log_start int8,
               end_offset int8, leader_epoch int4, bytes int8, min_timestamp int8, max_timestamp int8,
               disorder int8, local_start int8, xact int8)
language plpgsql stable security definer set search_path from current as $$
#variable_conflict use_column
declare
    crowded int4[] := '{}';
    leaf record;
begin
    -- Planning takes most of the time: a statement for one partition of a leaf is planned in a quarter of the
    -- time of one for any number of them.
    if cardinality(topic_ids) > 12 then
        crowded := array(select t from unnest(topic_ids) t group by t having count(*) > 12);
    end if;
    for i in 1 .. coalesce(cardinality(topic_ids), 0) loop
        idx := i;
        topic_id := topic_ids[i];
        "partition" := partitions[i];
        select p.segment, p.segment_start, p.log_start, p.leader_epoch, null, null, null, null, null,
               greatest(p.log_start, p.local_start), null
        into segment, segment_start, log_start, leader_epoch,
             end_offset, bytes, min_timestamp, max_timestamp, disorder, local_start, xact
        from topic_partition p where p.topic_id = topic_ids[i] and p.partition = partitions[i];
        if to_regclass('b_' || topic_ids[i] || '_' || segment) is null then
            log_start := null;
        elsif topic_ids[i] = any (crowded) then
            continue;
        else
            execute format('select b.last_offset + 1, b.segment_bytes, b.segment_min_timestamp,
                                   b.segment_max_timestamp, b.segment_disorder, b.xact
                            from %I b where b.partition = $1 order by b.last_offset desc limit 1',
                           'b_' || topic_ids[i] || '_' || segment)
            into end_offset, bytes, min_timestamp, max_timestamp, disorder, xact using partitions[i];
            end_offset := coalesce(end_offset, segment_start);
        end if;
        return next;
    end loop;

    if crowded <> '{}' then
        for leaf in
            select p.topic_id, 'b_' || p.topic_id || '_' || p.segment as name,
                   array_agg(w.idx::int4) as idxs, array_agg(p.partition) as partitions
            from unnest(topic_ids, partitions) with ordinality as w (topic_id, partition, idx)
            join topic_partition p on p.topic_id = w.topic_id and p.partition = w.partition
            where p.topic_id = any (crowded)
            group by p.topic_id, p.segment
        loop
            return query execute format($leaf$
                select w.idx, p.topic_id, p.partition, p.segment, p.segment_start, p.log_start,
                       coalesce(t.last_offset + 1, p.segment_start), p.leader_epoch, t.segment_bytes,
                       t.segment_min_timestamp, t.segment_max_timestamp, t.segment_disorder,
                       greatest(p.log_start, p.local_start), t.xact
                from unnest($1, $2) as w (idx, partition)
                join topic_partition p on p.topic_id = $3 and p.partition = w.partition
                left join lateral (
                    select b.last_offset, b.segment_bytes, b.segment_min_timestamp, b.segment_max_timestamp,
                           b.segment_disorder, b.xact
                    from %I b where b.partition = w.partition order by b.last_offset desc limit 1) t on true
                $leaf$, leaf.name)
                using leaf.idxs, leaf.partitions, leaf.topic_id;
        end loop;
    end if;
end
$$;

-- Takes no lock beyond ACCESS SHARE; reads the partitions' rows, the last batch of each and what is safe of them, in
-- one snapshot; writes nothing; returns for the i-th wanted partition the offsets between which it can be read (null:
-- no such partition).
create or replace function high_watermarks(topic_ids int4[], partitions int4[])
returns table (idx int4, log_start int8, high_watermark int8)
language plpgsql stable security definer set search_path from current as $$
#variable_conflict use_column
declare
    bound constant pg_snapshot := safe_limit();
begin
    if bound is null then
        return query
            select t.idx, t.log_start, t.end_offset from partition_tips(topic_ids, partitions) t order by t.idx;
        return;
    end if;
    return query
        select t.idx, t.log_start,
               readable_end(bound, t.topic_id, t.partition, t.log_start, t.end_offset, t.bytes, t.xact)
        from partition_tips(topic_ids, partitions) t order by t.idx;
end
$$;

-- Takes no lock beyond ACCESS SHARE; reads what high_watermarks() reads, if anybody asks for standbys; writes nothing;
-- returns the partition's high watermark, or the largest number if everything may be read. To be inlined.
create or replace function readable_to(topic_id int4, "partition" int4) returns int8
language sql stable
return case when safe_limit() is null then 9223372036854775807
            else (select h.high_watermark from high_watermarks(array[topic_id], array["partition"]) h) end;

-- The shape of what fetch() returns: a view, so that it can be replaced.
create or replace view fetched as
select null::int4 as idx, null::int8 as log_start, null::int8 as high_watermark, b.base_offset, b.last_offset,
       b.record_count, b.leader_epoch, b.timestamp_type, b.max_timestamp, b.timestamps, b.keys, b."values",
       b.header_records, b.header_keys, b.header_values, b.offset_deltas, b.size_bytes,
       null::int8 as local_start, null::int8 as log_end
from batches b where false;

-- Takes no lock beyond ACCESS SHARE; reads the partitions' rows, the last batch of each and, from each one's
-- offset on, batches of the segment that holds that offset, in one snapshot; writes nothing. Returns for each
-- wanted partition, in order, one row with its log_start, high_watermark and log_end and base_offset null (log_start
-- null: no such partition; log_end is above the high watermark: more is there that may not be read yet), then its
-- batches below that: whole ones, in order, as many as fit max_partition_bytes (but at least one) and what is left of
-- max_bytes (but at least one of all). An offset out of range brings no
-- batch, and neither does one below the first row's local_start: from there to local_start remote_files() says
-- where the records are.
-- If there are quotas, it takes that bucket's lock for a moment and charges it; one fetch brings no more
-- than one second's worth, and if the quota is used up then, a last row has 0 as its idx and as its
-- record_count for how many ms nothing more is to be fetched. LS059: the quota has been used up for long.
create or replace function "fetch"(
    topic_ids int4[], partitions int4[], offsets int8[], max_bytes int4, max_partition_bytes int4)
returns setof fetched
language plpgsql stable security definer set search_path from current
-- The server may know nothing of a new leaf; its index is the way whatever it believes.
set enable_seqscan = off set enable_bitmapscan = off as $$
declare
    part record;
    leaf text;
    batch fetched;
    remaining int8 := max_bytes;
    begun boolean := false;
    got int8;
    bound constant pg_snapshot := safe_limit();
    unread constant text := case when bound is null then '' else 'and b.last_offset < $4' end;
    high_watermark int8;
    metered constant boolean := quotas_on();
    sent int8 := 0;
begin
    if metered then
        remaining := least(remaining, (quota_state('fetch', true)).rate);
    end if;
    for part in
        select t.*, offsets[t.idx] as "offset" from partition_tips(topic_ids, partitions) t order by t.idx
    loop
        high_watermark := part.end_offset;
        -- Planning what is seldom needed would cost more than anything else here.
        if bound is not null then
            high_watermark := readable_end(bound, part.topic_id, part.partition, part.log_start, part.end_offset,
                                           part.bytes, part.xact);
        end if;
        batch := null;
        batch.idx := part.idx;
        batch.log_start := part.log_start;
        batch.high_watermark := high_watermark;
        batch.local_start := part.local_start;
        batch.log_end := part.end_offset;
        return next batch;
        continue when (part."offset" >= part.local_start and part."offset" < high_watermark
                       and (remaining > 0 or not begun)) is not true;
        leaf := 'b_' || part.topic_id || '_' || case
            when part."offset" >= part.segment_start then part.segment
            else coalesce((select s.segment from sealed_segment s
                           where s.topic_id = part.topic_id and s.partition = part.partition
                             and s.last_offset >= part."offset"
                           order by s.last_offset limit 1), part.segment) end;
        continue when to_regclass(leaf) is null;
        got := 0;
        -- Rows come as the loop goes on, so leaving it leaves the others unread; their arrays stay where they
        -- are until the rows are sent.
        for batch in execute format($batches$
            select $3, null::int8, null::int8, b.base_offset, b.last_offset, b.record_count, b.leader_epoch,
                   b.timestamp_type, b.max_timestamp, b.timestamps, b.keys, b."values", b.header_records,
                   b.header_keys, b.header_values, b.offset_deltas, b.size_bytes, null::int8, null::int8
            from %I b where b.partition = $1 and b.last_offset >= $2 %s order by b.last_offset $batches$,
            leaf, unread)
            using part.partition, part."offset", part.idx, high_watermark
        loop
            exit when got > 0 and got + batch.size_bytes > max_partition_bytes;
            exit when begun and batch.size_bytes > remaining;
            return next batch;
            begun := true;
            got := got + batch.size_bytes;
            remaining := remaining - batch.size_bytes;
        end loop;
        sent := sent + got;
    end loop;
    if metered and sent > 0 then
        batch := null;
        batch.idx := 0;
        batch.record_count := charge_quota('fetch', sent, false);
        if batch.record_count > 0 then
            return next batch;
        end if;
    end if;
end
$$;
