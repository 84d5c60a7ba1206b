-- The catalog as SQL sees it.

-- Of a compacted topic, records is what is left; of what the log start cuts in two, a part in proportion.
-- Records below local_start are in files only (see remote_segments); bytes are what PostgreSQL has.
create or replace view partitions as
select t.name as topic, w.partition, w.log_start, h.high_watermark,
       w.end_offset as log_end_offset,
       w.end_offset - w.log_start - coalesce(s.gone, 0)::int8 as records,
       coalesce(w.bytes, 0) + coalesce(s.bytes, 0) as bytes, w.segment, w.leader_epoch,
       to_timestamp(greatest(w.max_timestamp, s.max_timestamp, r.max_timestamp)::float8 / 1000)
           as max_timestamp,
       w.local_start, coalesce(r.bytes, 0)::int8 as remote_bytes
from topic t
cross join (select safe_limit() as bound offset 0) b
cross join lateral partition_tips(
    array_fill(t.topic_id, array[t.partitions]), array(select generate_series(0, t.partitions - 1))) w
cross join lateral readable_end(b.bound, w.topic_id, w.partition, w.log_start, w.end_offset, w.bytes, w.xact)
    h (high_watermark)
left join lateral (
    select sum(s.bytes)::int8 as bytes, max(s.max_timestamp) filter (where s.max_timestamp > 0) as max_timestamp,
           sum(floor((s.last_offset - s.first_offset + 1 - s.records)::numeric
                     * (s.last_offset - greatest(s.first_offset, w.log_start) + 1)
                     / (s.last_offset - s.first_offset + 1))) as gone
    from sealed_segment s
    where s.topic_id = w.topic_id and s.partition = w.partition and s.last_offset >= w.local_start) s on true
left join lateral (
    select sum(f.bytes) as bytes, max(f.max_timestamp) as max_timestamp
    from remote_files(w.topic_id, w.partition, w.log_start) f where w.log_start < w.local_start) r on true;

create or replace view segments as
select t.name as topic, u.segment, u.partition, u.first_offset, u.last_offset,
       u.records, u.bytes,
       case when u.records > 0 then to_timestamp(u.min_timestamp::float8 / 1000) end as min_timestamp,
       case when u.records > 0 then to_timestamp(u.max_timestamp::float8 / 1000) end as max_timestamp,
       u.sealed, g.created_at, 'b_' || t.topic_id || '_' || u.segment as leaf
from topic t
cross join lateral (
    select s.segment, s.partition, s.first_offset, s.last_offset, s.bytes, s.min_timestamp, s.max_timestamp,
           true as sealed, coalesce(s.records, s.last_offset - s.first_offset + 1) as records
    from sealed_segment s where s.topic_id = t.topic_id
    union all
    select w.segment, w.partition, w.segment_start, w.end_offset - 1, coalesce(w.bytes, 0), w.min_timestamp,
           w.max_timestamp, false, w.end_offset - w.segment_start
    from partition_tips(
        array_fill(t.topic_id, array[t.partitions]), array(select generate_series(0, t.partitions - 1))) w) u
join topic_segment g on g.topic_id = t.topic_id and g.segment = u.segment;

create or replace view topics as
select t.name as topic, t.topic_id, t.partitions, p.records, p.bytes,
       (select count(*) from topic_segment s where s.topic_id = t.topic_id and s.live) as segments,
       p.max_timestamp, t.created_at, t.configs
from topic t
cross join lateral (
    select sum(p.records)::int8 as records, sum(p.bytes)::int8 as bytes, max(p.max_timestamp) as max_timestamp
    from partitions p where p.topic = t.name) p;
