-- What share groups look like from outside.

-- One row a partition of a share group. start_offset: everything below it is finished; end_offset: nothing
-- from it on has been taken up yet. in_flight: acquired, with a lock that has not run out; available: to
-- be delivered again; delayed: not before next_due_at. lag: records that are not finished, as far as there
-- are no holes in the log.
create or replace view share_groups as
select l.name as "group", t.name as topic, t.topic_id, s.partition,
    least(f.first_offset, d.first_offset, w.end_offset) as start_offset, w.end_offset,
       f.in_flight, f.available, d.delayed,
           f.in_flight + f.available + d.delayed + greatest(h.high_watermark - w.end_offset, 0) as lag,
       f.members, d.next_due_at
from log_group l
join share_partition s on s.group_id = l.group_id
join topic t on t.topic_id = s.topic_id
cross join lateral share_window_of(s.group_id, s.topic_id, s.partition) w
cross join lateral (
    select min(f.first_offset) as first_offset,
           coalesce(sum(f.last_offset - f.first_offset + 1) filter (where f.member is not null
               and f.due_at > clock_timestamp()), 0)::int8 as in_flight,
           coalesce(sum(f.last_offset - f.first_offset + 1) filter (where f.member is null
               or f.due_at <= clock_timestamp()), 0)::int8 as available,
           array(select distinct m.member from share_flight m
                 where (m.group_id, m.topic_id, m.partition) = (s.group_id, s.topic_id, s.partition)
                     and m.first_offset >= w.start_offset
                 and m.member is not null and m.due_at > clock_timestamp() order by m.member) as members
    from share_flight f
    where (f.group_id, f.topic_id, f.partition) = (s.group_id, s.topic_id, s.partition)
        and f.first_offset >= w.start_offset) f
cross join lateral (
    select min(d.first_offset) as first_offset, coalesce(sum(d.last_offset - d.first_offset + 1),
        0)::int8 as delayed, min(d.due_at) as next_due_at
    from share_delay d where (d.group_id, d.topic_id, d.partition) = (s.group_id, s.topic_id, s.partition)) d
cross join lateral high_watermarks(array[s.topic_id], array[s.partition]) h
where l.kind = 'share';
