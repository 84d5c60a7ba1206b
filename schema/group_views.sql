-- What there is of groups, for people and programs.

-- Takes no lock, reads a group's members and claims, writes nothing, returns Kafka's word for what it is
-- doing.
create or replace function group_state(g log_group) returns text
language sql stable set search_path from current
begin atomic
    select case
        when not exists (select from group_member m where m.group_id = g.group_id) then 'Empty'
        when g.kind = 'share' then 'Stable'
        when g.group_epoch > g.assigned_epoch then 'Assigning'
        when exists (select from group_claim c where c.group_id = g.group_id and c.owner is distinct
            from c.target) then 'Reconciling'
        else 'Stable' end;
end;

-- Takes no lock beyond ACCESS SHARE; reads the batch that holds each wanted offset, one statement a leaf;
-- writes nothing; returns for the i-th wanted offset the time stamp (ms) of the first record at or after it.
-- No row: there is no such record.
create or replace function timestamps_at(topic_ids int4[], partitions int4[], offsets int8[])
returns table (idx int4, "timestamp" int8)
language plpgsql stable security definer set search_path from current as $$
#variable_conflict use_column
declare
    statement text;
begin
    select string_agg(format($leaf$
        select w.idx, coalesce(b.timestamps[coalesce((select d.place
            from unnest(b.offset_deltas) with ordinality d (delta, place)
                                                      where b.base_offset + d.delta >= w.at
                                                          order by d.place limit 1), greatest(w.at -
                                                          b.base_offset, 0) + 1)], b.max_timestamp)
        from unnest(%L::int4[], %L::int4[], %L::int8[]) as w (idx, partition, at)
        cross join lateral (select b.base_offset, b.max_timestamp, b.timestamps, b.offset_deltas
                            from %I b where b.partition = w.partition and b.last_offset >= w.at
                                order by b.last_offset limit 1) b $leaf$,
        l.idxs, l.partitions, l.ats, l.leaf), ' union all ')
    into statement
    from (select 'b_' || p.topic_id || '_' || s.segment as leaf, array_agg(w.idx::int4) as idxs,
        array_agg(p.partition) as partitions, array_agg(greatest(w.at, p.log_start)) as ats
          from unnest(topic_ids, partitions, offsets) with ordinality as w (topic_id, partition, at, idx)
          join topic_partition p on p.topic_id = w.topic_id and p.partition = w.partition
          cross join lateral (select coalesce((select s.segment from sealed_segment s
                                               where s.topic_id = p.topic_id and s.partition = p.partition
                                                   and s.last_offset >= greatest(w.at, p.log_start)
                                               order by s.last_offset limit 1), p.segment) as segment) s
          group by p.topic_id, s.segment) l
    where to_regclass(quote_ident(l.leaf)) is not null;
    if statement is not null then
        return query execute statement;
    end if;
end
$$;

-- Takes no lock beyond ACCESS SHARE; reads claims, offsets, the ends of the partitions and, where something
-- is left to read, one batch; writes nothing; returns how far behind a group (null: each) is, partition by
-- partition.
create or replace function lag_of(only_group text default null)
returns table ("group" text, topic text, "partition" int4, committed_offset int8, log_start int8,
    end_offset int8, lag int8, seconds_behind float8,
               committed_at timestamptz, metadata text, member_id text, instance_id text, client_id text,
                   claim_epoch int8, leader_epoch int4, topic_id int4)
language plpgsql stable security definer set search_path from current as $$
#variable_conflict use_column
declare
    ids int4[];
    numbers int4[];
    committed int8[];
    group_ids int4[];
begin
    select array_agg(p.group_id), array_agg(p.topic_id), array_agg(p.partition),
        array_agg(coalesce(o.committed_offset, -1))
    into group_ids, ids, numbers, committed
    from (select c.group_id, c.topic_id, c.partition from group_claim c
        where c.owner is not null or c.target is not null
          union
          select o.group_id, o.topic_id, o.partition from group_offset o) p
    join log_group g on g.group_id = p.group_id and (only_group is null or g.name = only_group)
    join topic t on t.topic_id = p.topic_id
    left join group_offset o on o.group_id = p.group_id and o.topic_id = p.topic_id
        and o.partition = p.partition;
    return query
        select g.name, t.name, w.partition, o.committed_offset, h.log_start, h.high_watermark,
               -- After a failover the high watermark may be behind what was committed, for a moment.
               case when o.committed_offset is not null then greatest(0, h.high_watermark
                   - greatest(o.committed_offset, h.log_start)) end,
               case when o.committed_offset >= h.high_watermark then 0
                    when s.timestamp is not null then greatest(0,
                        extract(epoch from clock_timestamp()) - s.timestamp / 1000.0) end::float8,
               o.committed_at, o.metadata, m.member_id, m.instance_id, m.client_id, c.claim_epoch,
                   o.leader_epoch, w.topic_id
        from unnest(group_ids, ids, numbers) with ordinality w (group_id, topic_id, partition, idx)
        join log_group g on g.group_id = w.group_id
        join topic t on t.topic_id = w.topic_id
        left join group_offset o on o.group_id = w.group_id and o.topic_id = w.topic_id
            and o.partition = w.partition
        left join group_claim c on c.group_id = w.group_id and c.topic_id = w.topic_id
            and c.partition = w.partition
        left join group_member m on m.group_id = w.group_id and m.member_no = c.owner
        left join high_watermarks(ids, numbers) h on h.idx = w.idx
        left join timestamps_at(ids, numbers, committed) s on s.idx = w.idx and o.committed_offset is not null
        order by g.name, t.name, w.partition;
end
$$;

create or replace view groups as
select g.name as "group", g.kind, group_state(g) as state,
       coalesce((select m.assignor from group_member m
           where m.group_id = g.group_id and m.assignor is not null
                 group by m.assignor order by count(*) desc, m.assignor desc limit 1), 'uniform') as assignor,
       (select count(*) from group_member m where m.group_id = g.group_id) as members,
       (select count(*) from group_claim c
           where c.group_id = g.group_id and c.target is not null) as partitions,
       g.group_epoch, g.assigned_epoch, g.created_at, g.emptied_at, g.configs
from log_group g;

create or replace view group_members as
select g.name as "group", g.kind, m.member_id, m.instance_id, m.client_id, m.host,
    coalesce(m.topics::text, m.pattern) as subscription, m.pattern is not null as by_pattern,
       owned.partitions, owned.assignment, owned.to_come, owned.to_go, m.session_timeout_ms,
           m.max_poll_interval_ms, m.joined_at,
       (select l.lease_until from leases_of(m.group_id) l where l.member_no = m.member_no) as lease_until,
           m.member_no
from log_group g
join group_member m on m.group_id = g.group_id
cross join lateral (
    select count(*) filter (where c.owner = m.member_no) as partitions,
           coalesce(jsonb_agg(jsonb_build_object('topic', t.name, 'partition', c.partition, 'claim_epoch',
               c.claim_epoch) order by t.name, c.partition)
                    filter (where c.owner = m.member_no), '[]') as assignment,
           count(*) filter (where c.target = m.member_no and c.owner is distinct from m.member_no) as to_come,
           count(*) filter (where c.owner = m.member_no and c.target is distinct from m.member_no) as to_go
    from group_claim c join topic t on t.topic_id = c.topic_id
    where c.group_id = m.group_id and (c.owner = m.member_no or c.target = m.member_no)
) owned;

create or replace view group_lag as
select l."group", l.topic, l.partition, l.committed_offset, l.log_start, l.end_offset, l.lag,
    l.seconds_behind, l.committed_at, l.metadata,
       l.member_id, l.instance_id, l.client_id, l.claim_epoch
from lag_of() l;
