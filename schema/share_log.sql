-- How share groups read the log: single records out of batches.

-- Takes no lock beyond ACCESS SHARE; reads the catalog and the leaves that hold the offsets, writes nothing,
-- returns the batches of a partition with records from from_offset up to, not including, to_offset, in order;
-- if there is none, the first batch after them, if any.
create or replace function share_batches(topic_id int4, "partition" int4, from_offset int8,
    to_offset int8) returns setof batches
language plpgsql stable set search_path from current as $$
#variable_conflict use_column
declare
    leaf record;
    found_any boolean := false;
begin
    for leaf in
        select s.segment, s.first_offset, s.last_offset from sealed_segment s
        where s.topic_id = share_batches.topic_id and s.partition = share_batches.partition
            and s.last_offset >= share_batches.from_offset
        union all
        select p.segment, p.segment_start, 9223372036854775807 from topic_partition p
        where p.topic_id = share_batches.topic_id and p.partition = share_batches.partition
        order by last_offset
    loop
        exit when found_any and leaf.first_offset >= share_batches.to_offset;
        return query execute format('select b.* from %I b
            where b.partition = $1 and b.last_offset >= $2 and b.last_offset < $3 order by b.last_offset',
            'b_' || share_batches.topic_id || '_' || leaf.segment) using share_batches.partition,
                share_batches.from_offset, share_batches.to_offset;
        found_any := found_any or found;
        -- The one that reaches to_offset, or the first one after it.
        return query execute format('select l.* from (select b.* from %I b
                where b.partition = $1 and b.last_offset >= $2 order by b.last_offset limit 1) l
            where $4 or l.base_offset < $3', 'b_' || share_batches.topic_id || '_' || leaf.segment)
            using share_batches.partition, greatest(share_batches.from_offset, share_batches.to_offset),
                share_batches.to_offset, not found_any;
        found_any := found_any or found;
    end loop;
end
$$;

-- Takes no lock, reads and writes nothing, returns which elements of an array of n belong to the offsets in
-- wanted: their positions, counted from 1, ascending.
create or replace function share_positions(base_offset int8, record_count int4, offset_deltas int4[],
    wanted int8multirange) returns int4[]
language plpgsql immutable set search_path from current as $$
declare
    one int8range;
begin
    if offset_deltas is null then
        one := range_merge(wanted * int8multirange(int8range(base_offset, base_offset + record_count)));
        if wanted @> one then
            return array(select generate_series(lower(one) - base_offset + 1, upper(one) - base_offset));
        end if;
        return array(select (o - base_offset + 1)::int4
            from unnest(wanted * int8multirange(int8range(base_offset, base_offset + record_count))) r,
                            generate_series(lower(r), upper(r) - 1) o);
    end if;
    return array(select d.n::int4 from unnest(offset_deltas) with ordinality d (delta, n)
        where wanted @> base_offset + d.delta order by d.n);
end
$$;

-- Takes no lock beyond ACCESS SHARE; reads the batches that hold the wanted records, each once; writes
-- nothing; returns these records and no others, as parts of batches, in the form of fetch(): idx is the
-- position of the first wanted range that the part belongs to. The ranges, both ends included, have to be
-- in ascending order of topic, partition and offset. Records that have left the log are left out. It
-- stops in front of the batch that goes beyond max_bytes, unless it is the first; then the last row has
-- no record, and the offset to go on from as its base_offset. If there are quotas, and unless it is not
-- metered, it takes that bucket's lock for a moment and charges it, brings no more than one second's
-- worth, and if the quota is used up then, a row after the last one has 0 as its idx and as its
-- record_count for how many ms nothing more is to be fetched. LS059: the quota has been used up for long.
create or replace function fetch_records(topic_ids int4[], partitions int4[], first_offsets int8[],
    last_offsets int8[], max_bytes int4 default 2147483647, metered boolean default true)
returns table (idx int4, base_offset int8, last_offset int8, record_count int4, leader_epoch int4,
    timestamp_type int2, max_timestamp int8, timestamps int8[],
               keys bytea[], "values" bytea[], header_records int4[], header_keys text[],
                   header_values bytea[], offset_deltas int4[])
language plpgsql stable security definer set search_path from current as $$
#variable_conflict use_column
declare
    spot record;
    batch batches;
    chosen int4[];
    whole boolean;
    bytes int8 := 0;
    sent int8 := 0;
begin
    metered := metered and quotas_on();
    if metered then
        max_bytes := least(max_bytes, (quota_state('fetch', true)).rate);
    end if;
    <<spots>>
    for spot in
        select min(w.n)::int4 as idx, w.topic_id, w.partition,
            range_agg(int8range(w.first_offset, w.last_offset, '[]')) as wanted, p.log_start
        from (select u.*, sum(u.far) over (order by u.n) as cluster
              from (select n, topic_id, partition, first_offset, last_offset,
                           -- Records far apart are looked for one by one, those close together by walking
                           -- from batch to batch.
                           case when lag(last_offset) over (partition by topic_id, partition
                               order by n) >= first_offset - 1000 then 0 else 1 end as far
                    from unnest(fetch_records.topic_ids, fetch_records.partitions,
                        fetch_records.first_offsets, fetch_records.last_offsets)
                         with ordinality as v (topic_id, partition, first_offset, last_offset, n)) u) w
        join topic_partition p on p.topic_id = w.topic_id and p.partition = w.partition
        group by w.cluster, w.topic_id, w.partition, p.log_start
        order by 1
    loop
        spot.wanted := spot.wanted * int8multirange(int8range(spot.log_start, null));
        continue when isempty(spot.wanted);
        for batch in select * from share_batches(spot.topic_id, spot.partition, lower(spot.wanted),
            upper(spot.wanted)) loop
            chosen := share_positions(batch.base_offset, batch.record_count, batch.offset_deltas,
                spot.wanted);
            continue when cardinality(chosen) = 0;
            idx := spot.idx;
            record_count := cardinality(chosen);
            bytes := bytes + batch.size_bytes::int8 * record_count / batch.record_count;
            if bytes > max_bytes and last_offset is not null then
                base_offset := batch.base_offset + coalesce(batch.offset_deltas[chosen[1]], chosen[1] - 1);
                record_count := 0;
                timestamps := null;
                keys := null;
                "values" := null;
                header_records := null;
                header_keys := null;
                header_values := null;
                offset_deltas := null;
                return next;
                exit spots;
            end if;
            sent := bytes;
            leader_epoch := batch.leader_epoch;
            timestamp_type := batch.timestamp_type;
            max_timestamp := batch.max_timestamp;
            whole := record_count = batch.record_count;
            if whole then
                base_offset := batch.base_offset;
                last_offset := batch.last_offset;
                timestamps := batch.timestamps;
                keys := batch.keys;
                "values" := batch."values";
                header_records := batch.header_records;
                header_keys := batch.header_keys;
                header_values := batch.header_values;
                offset_deltas := batch.offset_deltas;
            else
                base_offset := batch.base_offset + coalesce(batch.offset_deltas[chosen[1]], chosen[1] - 1);
                last_offset := batch.base_offset + coalesce(batch.offset_deltas[chosen[record_count]],
                    chosen[record_count] - 1);
                if chosen[record_count] - chosen[1] + 1 = record_count then
                    timestamps := batch.timestamps[chosen[1] : chosen[record_count]];
                    keys := batch.keys[chosen[1] : chosen[record_count]];
                    "values" := batch."values"[chosen[1] : chosen[record_count]];
                else
                    timestamps := case when batch.timestamps is not null then
                        array(select u.v from unnest(batch.timestamps) with ordinality u (v, n)
                            where u.n = any (chosen) order by u.n) end;
                    keys := case when batch.keys is not null then
                        array(select u.v from unnest(batch.keys) with ordinality u (v, n)
                            where u.n = any (chosen) order by u.n) end;
                    "values" := case when batch."values" is not null then
                        array(select u.v from unnest(batch."values") with ordinality u (v, n)
                            where u.n = any (chosen) order by u.n) end;
                end if;
                header_records := null;
                header_keys := null;
                header_values := null;
                if batch.header_records && chosen then
                    select array_agg(c.n::int4 order by h.n), array_agg(h.k order by h.n),
                        array_agg(h.v order by h.n)
                    into header_records, header_keys, header_values
                    from unnest(batch.header_records, batch.header_keys,
                        batch.header_values) with ordinality h (r, k, v, n)
                    join unnest(chosen) with ordinality c (r, n) on c.r = h.r;
                end if;
                offset_deltas := case when last_offset - base_offset + 1 <> record_count then
                    array(select (batch.base_offset - base_offset + coalesce(batch.offset_deltas[c],
                        c - 1))::int4 from unnest(chosen) c) end;
            end if;
            return next;
        end loop;
    end loop;
    if metered and sent > 0 then
        record_count := charge_quota('fetch', sent, false);
        if record_count > 0 then
            idx := 0;
            base_offset := null;
            timestamps := null;
            keys := null;
            "values" := null;
            header_records := null;
            header_keys := null;
            header_values := null;
            offset_deltas := null;
            return next;
        end if;
    end if;
end
$$;
