-- Compaction: of each key in a partition the last record stays, as Kafka does it. Three passes over some leaves:
-- the keys are gathered, chunk by chunk of the log, into slices by their hash; of each slice it is found out where
-- each key was last; each chunk is written anew with these records only. Neither memory nor the length of a step
-- depends on how many keys or records there are.

-- Needs what rewrite_step() has locked; takes ACCESS SHARE locks; reads the keys of the next chunk of batches and
-- writes, slice by slice, where in the chunk each was last, and how far it has come; returns how many records it
-- read.
create or replace function gather_keys(r rewrite, max_records int4) returns int8
language plpgsql volatile set search_path from current
set work_mem = '48MB' set jit = off set enable_seqscan = off set enable_bitmapscan = off set enable_sort = off
as $$
declare
    id constant int4 := r.topic_id;
    segment constant int4 := r.sources[r.gathered + 1];
    stretch record;
begin
    if r.chunks = 0 and r.gathered = 0 and r.partition = -1 then
        perform make_scratch(id);
    end if;
    select n.* into stretch from next_stretch(id, segment, r.partition, r.last_offset, max_records) n;
    if stretch.partition is not null then
        execute format('insert into %I values ($1, $2, $3, $4, $5, $6)', scratch(id, 'chunk'))
        using r.chunks, segment, r.partition, r.last_offset, stretch.partition, stretch.last_offset;
        execute format($gather$
            insert into %1$I (slice, chunk, partitions, keys, offsets)
            select g.slice, $1, array_agg(g.partition), array_agg(g.key), array_agg(g."offset")
            from (select u.partition, u.key, max(u."offset") as "offset",
                         (pg_catalog.hash_array(array[u.key]) & 2147483647) %% $2 as slice
                  from (select v.partition, v.base_offset + coalesce(v.delta, v.n) as "offset", v.log_start,
                               -- Instead of a long key something of 65 bytes that no other key has.
                               case when octet_length(v.key) <= 64 then v.key
                                    else sha512(v.key) || '\x00'::bytea end as key
                  from (select b.partition, b.base_offset, p.log_start, generate_series(0, b.record_count - 1) as n,
                               unnest(b.offset_deltas) as delta, unnest(b.keys) as key
                        from %2$I b join topic_partition p on p.topic_id = $3 and p.partition = b.partition
                        where (b.partition, b.last_offset) > ($4, $5) and (b.partition, b.last_offset) <= ($6, $7)
                          and b.last_offset >= p.log_start and b.keys is not null) v) u
                  where u.key is not null and u."offset" >= u.log_start
                  group by u.partition, u.key) g
            group by g.slice $gather$, scratch(id, 'key'), format('b_%s_%s', id, segment))
        using r.chunks, r.slices, id, r.partition, r.last_offset, stretch.partition, stretch.last_offset;
    end if;
    update rewrite w set
        chunks = w.chunks + (stretch.partition is not null)::int4,
        gathered = w.gathered + stretch.at_end::int4,
        partition = case when stretch.at_end then -1 else stretch.partition end,
        last_offset = case when stretch.at_end then -1 else stretch.last_offset end,
        phase = case when stretch.at_end and w.gathered + 1 = cardinality(w.sources) then 'settle' else w.phase end
    where w.topic_id = id;
    return coalesce(stretch.records, 0);
end
$$;

-- Needs what rewrite_step() has locked; reads one slice of the keys, writes for each chunk which of its records
-- are the last ones of their key, and how far it has come; returns nothing.
create or replace function settle_keys(r rewrite) returns void
language plpgsql volatile set search_path from current
set work_mem = '48MB' set jit = off set enable_seqscan = off set enable_bitmapscan = off set enable_sort = off
as $$
begin
    execute format($settle$
        insert into %I (chunk, partitions, offsets)
        select g.chunk, array_agg(g.partition), array_agg(g."offset")
        from (select u.partition, max(u.chunk) as chunk, max(u."offset") as "offset"
              from (select k.chunk, unnest(k.partitions) as partition, unnest(k.keys) as key,
                           unnest(k.offsets) as "offset"
                    from %I k where k.slice = $1) u
              group by u.partition, u.key) g
        group by g.chunk $settle$, scratch(r.topic_id, 'winner'), scratch(r.topic_id, 'key'))
    using r.slice;
    if r.slice + 1 = r.slices then
        execute format('truncate %I', scratch(r.topic_id, 'key'));
    end if;
    update rewrite w set slice = w.slice + 1, phase = case when w.slice + 1 = w.slices then 'write' else w.phase end
    where w.topic_id = r.topic_id;
end
$$;

-- Takes no lock, reads and writes nothing, returns a query that makes batches of the records of a chunk that stay:
-- neighbouring batches with few of them become one. Its parameters: topic id, the two ends of the chunk (partition
-- and offset each), its number, now and the horizon of new tombstones in ms.
create or replace function compacted_batches(leaf text, winner text, headers boolean) returns text
language sql immutable set search_path from current
return format($query$
    with win as materialized (
        select unnest(w.partitions) as partition, unnest(w.offsets) as "offset" from %2$I w where w.chunk = $6),
    source as materialized (
        select row_number() over (order by b.partition, b.last_offset) as n, b.partition, b.base_offset,
               b.last_offset, b.record_count, b.size_bytes, b.leader_epoch, b.timestamp_type,
               b.append_time, b.xact, b.delete_horizon
        from %1$I b join topic_partition p on p.topic_id = $1 and p.partition = b.partition
        where (b.partition, b.last_offset) > ($2, $3) and (b.partition, b.last_offset) <= ($4, $5)
          and b.last_offset >= p.log_start),
    edge as materialized (
        select s.partition, min(s.n) as first, array_agg(s.base_offset order by s.n) as bases
        from source s group by s.partition),
    -- Below the log start there are winners without a batch.
    hit as (
        select e.first + width_bucket(w."offset", e.bases) - 1 as n, count(*) as records
        from win w join edge e on e.partition = w.partition
        where w."offset" >= e.bases[1] group by 1),
    summed as (
        select s.*, coalesce(h.records, 0) as records,
               coalesce(sum(h.records) over before, 0) / 1000 as thousands,
               coalesce(sum(s.size_bytes::int8 * h.records / s.record_count) over before, 0) / 131072 as blocks,
               s.base_offset / 1000000000 as far
        from source s left join hit h on h.n = s.n
        window before as (order by s.n rows between unbounded preceding and 1 preceding)),
    marked as (
        select s.*, (s.partition, s.leader_epoch, s.timestamp_type, s.delete_horizon, s.thousands::int8,
                     s.blocks::int8, s.far) is distinct from
               lag((s.partition, s.leader_epoch, s.timestamp_type, s.delete_horizon, s.thousands::int8,
                    s.blocks::int8, s.far)) over (order by s.n) as begins
        from summed s),
    numbered as materialized (
        select m.*, sum(m.begins::int4) over (order by m.n)::int4 as made from marked m),
    cover as (
        select c.made, c.partition, min(c.base_offset) as base_offset, max(c.last_offset) as last_offset,
               min(c.leader_epoch) as leader_epoch, min(c.timestamp_type) as timestamp_type,
               max(c.append_time) as append_time,
               -- Where that may be read, so may those before it.
               (array_agg(c.xact order by c.n desc))[1] as xact
        from numbered c group by c.made, c.partition),
    kept as %3$s (
        select u.made, u.first_offset, u."offset", u.at, u.key, u.value, u.horizon, u.source, u.n + 1 as place
        from (select v.*, v.base_offset + coalesce(v.delta, v.n) as "offset", coalesce(v.stamp, v.max_timestamp) as at
              from (select m.made, c.base_offset as first_offset, m.n as source, b.partition, b.base_offset,
                           b.max_timestamp, b.delete_horizon as horizon,
                           generate_series(0, b.record_count - 1) as n, unnest(b.offset_deltas) as delta,
                           unnest(b.timestamps) as stamp, unnest(b.keys) as key, unnest(b."values") as value
                    from numbered m join cover c on c.made = m.made
                    join %1$I b on b.partition = m.partition and b.last_offset = m.last_offset
                    where m.records > 0 and (b.partition, b.last_offset) > ($2, $3)
                      and (b.partition, b.last_offset) <= ($4, $5)) v) u
        join win w on w.partition = u.partition and w."offset" = u."offset"
        where u.value is not null or coalesce(u.horizon > $7, true)
        order by u.made, u."offset"),
    made as (
        select k.made, count(*)::int4 as record_count, min(k.at) as min_timestamp, max(k.at) as max_timestamp,
               array_agg((k."offset" - k.first_offset)::int4) as offset_deltas, array_agg(k.at) as timestamps,
               array_agg(k.key) as keys,
               case when count(k.value) > 0 then array_agg(k.value) end as "values",
               max(coalesce(k.horizon, $8)) filter (where k.value is null) as delete_horizon
        from kept k group by k.made),
    headed as (%4$s)
    select c.partition, c.base_offset, c.last_offset, c.leader_epoch, c.timestamp_type, c.append_time,
           c.xact, null::int8 as producer_id, null::int2 as producer_epoch, null::int4 as base_sequence,
           null::int4 as last_sequence, null::int4 as size_bytes, coalesce(m.record_count, 0) as record_count,
           coalesce(m.min_timestamp, 253402300799999) as min_timestamp, coalesce(m.max_timestamp, 0) as max_timestamp,
           case when m.record_count < c.last_offset - c.base_offset + 1 then m.offset_deltas end as offset_deltas,
           case when m.min_timestamp < m.max_timestamp then m.timestamps end as timestamps,
           m.keys, m."values", h.header_records, h.header_keys, h.header_values, m.delete_horizon
    from cover c left join made m on m.made = c.made left join headed h on h.made = c.made $query$,
    leaf, winner, case when headers then 'materialized' else '' end,
    case when headers then format($headed$
        select k.made, array_agg(k.i order by k.i, h.n) as header_records, array_agg(h.name order by k.i, h.n) as header_keys,
               array_agg(h.value order by k.i, h.n) as header_values
        from (select k.made, k.source, k.place,
                     (row_number() over (partition by k.made order by k."offset"))::int4 as i from kept k) k
        join (select m.n as source, u.record, u.name, u.value, u.n
              from numbered m
              join %I b on b.partition = m.partition and b.last_offset = m.last_offset
              cross join lateral unnest(b.header_records, b.header_keys, b.header_values)
                  with ordinality u (record, name, value, n)
              where b.header_records is not null) h on h.source = k.source and h.record = k.place
        group by k.made $headed$, leaf)
    else 'select null::int4 as made, null::int4[] as header_records, null::text[] as header_keys,
                 null::bytea[] as header_values where false' end);

-- Needs what rewrite_step() has locked; takes ACCESS SHARE locks; reads the batches of the next chunk, writes those
-- of its records that stay to the leaf that is being filled, and how far it has come; returns how many records it
-- read.
create or replace function write_compacted(r rewrite) returns int8
language plpgsql volatile set search_path from current
set work_mem = '48MB' set jit = off set enable_seqscan = off set enable_bitmapscan = off set enable_mergejoin = off
set enable_nestloop = off as $$
declare
    id constant int4 := r.topic_id;
    segment constant int4 := r.sources[1];
    leaf constant text := format('b_%s_%s', id, segment);
    chunk record;
    headers boolean;
    untouched boolean;
    read_records int8 := 0;
    read_bytes int8 := 0;
    kept_records int8 := 0;
    kept_bytes int8 := 0;
    last_chunk boolean;
begin
    execute format('select c.* from %I c where c.chunk = $1 and c.segment = $2', scratch(id, 'chunk'))
    into chunk using r.chunk, segment;
    if chunk.chunk is not null and to_regclass(leaf) is not null then
        execute format('select coalesce(bool_or(b.header_records is not null), false), sum(b.record_count),
                               sum(b.size_bytes), sum(b.size_bytes) > 32768 * count(*)
                                   and bool_and(b."values" is not null and array_position(b."values", null) is null)
                                   and sum(b.record_count) = (select sum(cardinality(w.offsets)) from %I w
                                                              where w.chunk = $5)
                        from %I b
                        where (b.partition, b.last_offset) > ($1, $2) and (b.partition, b.last_offset) <= ($3, $4)',
                       scratch(id, 'winner'), leaf)
        into headers, read_records, read_bytes, untouched
        using chunk.after_partition, chunk.after_offset, chunk.to_partition, chunk.to_offset, r.chunk;
        -- All stay, none is a tombstone, and the batches are large enough.
        if untouched then
            execute fill_target(format('b_%s_%s', id, r.target), copied_batches(leaf, false))
            into kept_records, kept_bytes
            using id, chunk.after_partition, chunk.after_offset, chunk.to_partition, chunk.to_offset, r.erasures,
                  0::int8, 0::int8, r.target;
        else
            execute fill_target(format('b_%s_%s', id, r.target),
                                compacted_batches(leaf, scratch(id, 'winner'), headers))
            into kept_records, kept_bytes
            using id, chunk.after_partition, chunk.after_offset, chunk.to_partition, chunk.to_offset, r.chunk,
                  clock_ms(), r.delete_horizon, r.target;
        end if;
    end if;
    execute format('select not exists (select from %I c where c.chunk = $1 and c.segment = $2)', scratch(id, 'chunk'))
    into last_chunk using r.chunk + 1, segment;
    update rewrite w set
        chunk = w.chunk + (chunk.chunk is not null)::int4, records_read = w.records_read + coalesce(read_records, 0),
        bytes_read = w.bytes_read + coalesce(read_bytes, 0),
        records_kept = w.records_kept + coalesce(kept_records, 0), bytes_kept = w.bytes_kept + coalesce(kept_bytes, 0)
    where w.topic_id = id;
    if last_chunk then
        perform source_is_done(r);
    end if;
    return coalesce(read_records, 0);
end
$$;

-- Takes no lock, reads the catalog, writes nothing, returns the offset below which the partition's records have
-- been compacted.
create or replace function compacted_to(p topic_partition) returns int8
language sql stable security definer set search_path from current
begin atomic
    select coalesce((select min(z.first_offset) from sealed_segment z
                     where z.topic_id = p.topic_id and z.partition = p.partition and z.cleaned_at is null
                       and z.last_offset >= p.log_start),
                    p.segment_start);
end;

-- Takes no lock, reads the catalog, writes nothing, returns for each compacted topic that has nothing under way the
-- closed leaves that are old enough, and may be read to their ends, from the oldest on, and why it is worth while to compact them: 'dirty' (in a
-- partition more than min.cleanable.dirty.ratio of them has not been compacted), 'lag' (some of that is older than
-- max.compaction.lag.ms) or 'tombstones' (some have been there for delete.retention.ms). Topics for which it is
-- not have no row. dirty, clean: bytes.
create or replace function topics_to_compact()
returns table (topic_id int4, topic text, sources int4[], reason text, dirty int8, clean int8)
language sql stable security definer set search_path from current
begin atomic
    with t as (
        select t.topic_id, t.name, t.active_segment, effective_configs(t.configs) as configs
        from topic t
        where t.compacted and not exists (select from rewrite r where r.topic_id = t.topic_id)),
    leaf as (
        select t.topic_id, s.segment, s.place,
               bool_or(s.segment = t.active_segment
                       or exists (select from topic_partition p
                                  where p.topic_id = t.topic_id and p.segment = s.segment)
                       or exists (select from sealed_segment z
                                  where z.topic_id = t.topic_id and z.segment = s.segment and z.cleaned_at is null
                                    and (z.max_timestamp
                                         > clock_ms() - (t.configs ->> 'min.compaction.lag.ms')::numeric
                                         or z.last_offset >= readable_to(z.topic_id, z.partition))))
                   over (partition by t.topic_id order by s.place) as beyond
        from t join topic_segment s on s.topic_id = t.topic_id and s.live),
    part as (
        select z.topic_id, z.partition,
               coalesce(sum(z.bytes) filter (where z.cleaned_at is null), 0)::int8 as dirty,
               coalesce(sum(z.bytes) filter (where z.cleaned_at is not null), 0)::int8 as clean,
               min(z.min_timestamp) filter (where z.cleaned_at is null) as oldest,
               min(z.tombstones_until) as tombstones_until
        from leaf l join sealed_segment z on z.topic_id = l.topic_id and z.segment = l.segment
        join topic_partition p on p.topic_id = z.topic_id and p.partition = z.partition
        where not l.beyond and z.last_offset >= p.log_start
        group by z.topic_id, z.partition),
    worth as (
        select t.topic_id, t.name, sum(p.dirty)::int8 as dirty, sum(p.clean)::int8 as clean,
               bool_or(p.dirty > (t.configs ->> 'min.cleanable.dirty.ratio')::numeric * (p.dirty + p.clean)) as ratio,
               bool_or(p.oldest < clock_ms() - (t.configs ->> 'max.compaction.lag.ms')::numeric) as lag,
               bool_or(p.tombstones_until <= clock_ms()) as tombstones
        from t join part p on p.topic_id = t.topic_id group by t.topic_id, t.name)
    select w.topic_id, w.name,
           (select array_agg(l.segment order by l.place) from leaf l where l.topic_id = w.topic_id and not l.beyond),
           case when w.ratio then 'dirty' when w.lag then 'lag' else 'tombstones' end, w.dirty, w.clean
    from worth w where w.ratio or w.lag or w.tombstones
    order by w.topic_id;
end;
