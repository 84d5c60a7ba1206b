-- Assignors: who should have which partition. Pure: everything comes in as arrays, so that they can be tested
-- without a group.
--   members                              member numbers, ascending, which is the order of joining
--   subscribers, subscribed              parallel: member subscribes to topic
--   topics, partition_counts             parallel: the topics that anybody subscribes to
--   held_topics, held_partitions, held_by  parallel: who has what now; may name what is gone

-- Takes no lock, reads and writes nothing, returns one row a partition. Every topic is spread over its own
-- subscribers in consecutive runs, by the order of joining, so equal partitions of topics with the same
-- subscribers and partition counts land on one member.
create or replace function assign_range(subscribers int8[], subscribed int4[], topics int4[],
    partition_counts int4[])
returns table (topic_id int4, "partition" int4, member_no int8)
language sql immutable set search_path from current
begin atomic
    with subscriber as (
        select s.topic_id, s.member_no, row_number() over w - 1 as rank,
            count(*) over (partition by s.topic_id) as members
        from unnest(assign_range.subscribed, assign_range.subscribers) s (topic_id, member_no)
        window w as (partition by s.topic_id order by s.member_no)
    ), sized as (
        select t.topic_id, t.partitions, s.member_no, s.rank, t.partitions / s.members as run,
            t.partitions % s.members as longer
        from unnest(assign_range.topics, assign_range.partition_counts) t (topic_id, partitions)
            join subscriber s on s.topic_id = t.topic_id
    )
    select s.topic_id, p::int4, s.member_no
    from sized s, generate_series(s.rank * s.run + least(s.rank, s.longer),
        (s.rank + 1) * s.run + least(s.rank + 1, s.longer) - 1) p;
end;

-- Takes no lock, reads and writes nothing, returns one row a partition; for members that all subscribe to the
-- same topics. Loads differ by one at most, and no assignment with that property moves fewer partitions: the
-- members with the most get the larger shares, and everybody keeps what fits.
create or replace function assign_evenly(
    members int8[], topics int4[], partition_counts int4[], held_topics int4[], held_partitions int4[],
        held_by int8[]
) returns table (topic_id int4, "partition" int4, member_no int8)
language sql immutable set search_path from current
begin atomic
    with member as (
        select m.member_no from unnest(assign_evenly.members) m (member_no)
    ), held as (
        select h.topic_id, h.partition, h.member_no
        from unnest(assign_evenly.held_topics, assign_evenly.held_partitions, assign_evenly.held_by)
            h (topic_id, partition, member_no)
        join unnest(assign_evenly.topics, assign_evenly.partition_counts) t (topic_id, partitions)
            on t.topic_id = h.topic_id and h.partition < t.partitions
        join member m on m.member_no = h.member_no
    ), loaded as (
        select m.member_no, count(h.topic_id) as load from member m
            left join held h on h.member_no = m.member_no group by m.member_no
    ), total as (
        select (select coalesce(sum(n), 0)::int8 from unnest(assign_evenly.partition_counts) n) as partitions,
               (select count(*) from member) as members
    ), share as (
        select l.member_no, l.load,
               t.partitions / t.members + (l.rank <= t.partitions % t.members)::int4 as size
        from (select l.*, row_number() over (order by l.load desc, l.member_no) as rank from loaded l) l,
             total t
    ), kept as (
        select k.topic_id, k.partition, k.member_no
        from (select h.*, row_number() over (partition by h.member_no
                                             order by h.partition, h.topic_id) as rank from held h) k
        join share s on s.member_no = k.member_no
        where k.rank <= s.size
    ), free as (
        select t.topic_id, p.partition, row_number() over (order by t.topic_id, p.partition) as rank
        from unnest(assign_evenly.topics, assign_evenly.partition_counts) t (topic_id, partitions),
            generate_series(0, t.partitions - 1) p (partition)
        where not exists (select from kept k where k.topic_id = t.topic_id and k.partition = p.partition)
    ), room as (
        select s.member_no, row_number() over (order by place, s.member_no) as rank
            from share s, generate_series(s.load + 1, s.size) place
    )
    select k.topic_id, k.partition, k.member_no from kept k
    union all
    select f.topic_id, f.partition, r.member_no from free f join room r on r.rank = f.rank;
end;

-- Takes no lock, reads and writes nothing, returns one row a partition that somebody subscribes to; for any
-- subscriptions. Everybody keeps what it has, what is free goes to the least loaded subscriber (topics with
-- the fewest subscribers first), then single partitions move from a more loaded to a less loaded subscriber
-- as long as that makes their loads more equal.
create or replace function assign_greedily(
    members int8[], subscribers int8[], subscribed int4[], topics int4[], partition_counts int4[],
        held_topics int4[], held_partitions int4[], held_by int8[]
) returns table (topic_id int4, "partition" int4, member_no int8)
language plpgsql immutable set search_path from current as $$
declare
    many constant int4 := cardinality(members);
    topic_ids int4[];
    parts int4[];        -- partition numbers, topic after topic
    firsts int4[];       -- for each topic, where its partitions begin in parts
    holders int4[];      -- for each of parts, the ordinal of its member; 0: free
    eligible boolean[];  -- (topic ordinal - 1) * many + member ordinal: subscribes
    having_of int4[];    -- the same: how many of the topic's partitions it has
    load int4[] := array_fill(0, array[many]);
    moved boolean := true;
    fullest int4;
    emptiest int4;
    at int4;
begin
    with t as (
        select u.topic_id, u.partitions,
            row_number() over (order by count(s.member_no), u.topic_id)::int4 as ordinal
        from unnest(topics, partition_counts) u (topic_id, partitions)
        join unnest(subscribed, subscribers) s (topic_id, member_no) on s.topic_id = u.topic_id
        group by u.topic_id, u.partitions
    ), m as (
        select u.member_no, row_number() over (order by u.member_no)::int4 as ordinal
            from unnest(members) u (member_no)
    ), grid as (
        select t.ordinal as t, m.ordinal as m, s.member_no is not null as subscribes
        from t cross join m left join unnest(subscribed, subscribers) s (topic_id, member_no)
            on s.topic_id = t.topic_id and s.member_no = m.member_no
    ), held as (
        select g.t, h.partition, g.m
        from unnest(held_topics, held_partitions, held_by) h (topic_id, partition, member_no)
        join t on t.topic_id = h.topic_id join m on m.member_no = h.member_no
            join grid g on g.t = t.ordinal and g.m = m.ordinal and g.subscribes
    ), p as (
        select t.ordinal as t, n.partition, coalesce(h.m, 0) as holder
        from t cross join generate_series(0, t.partitions - 1) n (partition)
            left join held h on h.t = t.ordinal and h.partition = n.partition
    )
    select (select array_agg(t.topic_id order by t.ordinal) from t),
           (select array_agg(p.partition order by p.t, p.partition) from p),
           (select array_agg(p.holder order by p.t, p.partition) from p),
           (select array_agg(f.first order by f.t)
               from (select p.t, min(p.rank)::int4 as first
               from (select p.t, row_number() over (order by p.t, p.partition) as rank from p) p
               group by p.t) f),
           (select array_agg(g.subscribes order by g.t, g.m) from grid g)
    into topic_ids, parts, holders, firsts, eligible;
    if topic_ids is null or parts is null then
        return;
    end if;
    having_of := array_fill(0, array[cardinality(topic_ids) * many]);
    firsts := firsts || cardinality(parts) + 1;

    for t in 1 .. cardinality(topic_ids) loop
        at := (t - 1) * many;
        for p in firsts[t] .. firsts[t + 1] - 1 loop
            if holders[p] > 0 then
                load[holders[p]] := load[holders[p]] + 1;
                having_of[at + holders[p]] := having_of[at + holders[p]] + 1;
            end if;
        end loop;
    end loop;

    for t in 1 .. cardinality(topic_ids) loop
        at := (t - 1) * many;
        for p in firsts[t] .. firsts[t + 1] - 1 loop
            if holders[p] = 0 then
                emptiest := 0;
                for m in 1 .. many loop
                    if eligible[at + m] and (emptiest = 0 or load[m] < load[emptiest]) then
                        emptiest := m;
                    end if;
                end loop;
                holders[p] := emptiest;
                load[emptiest] := load[emptiest] + 1;
                having_of[at + emptiest] := having_of[at + emptiest] + 1;
            end if;
        end loop;
    end loop;

    while moved loop
        moved := false;
        for t in 1 .. cardinality(topic_ids) loop
            at := (t - 1) * many;
            loop
                fullest := 0;
                emptiest := 0;
                for m in 1 .. many loop
                    if eligible[at + m] and (emptiest = 0 or load[m] < load[emptiest]) then
                        emptiest := m;
                    end if;
                    if having_of[at + m] > 0 and (fullest = 0 or load[m] > load[fullest]) then
                        fullest := m;
                    end if;
                end loop;
                exit when fullest = 0 or load[fullest] - load[emptiest] < 2;
                for p in reverse firsts[t + 1] - 1 .. firsts[t] loop
                    if holders[p] = fullest then
                        holders[p] := emptiest;
                        exit;
                    end if;
                end loop;
                load[fullest] := load[fullest] - 1;
                having_of[at + fullest] := having_of[at + fullest] - 1;
                load[emptiest] := load[emptiest] + 1;
                having_of[at + emptiest] := having_of[at + emptiest] + 1;
                moved := true;
            end loop;
        end loop;
    end loop;

    for t in 1 .. cardinality(topic_ids) loop
        for p in firsts[t] .. firsts[t + 1] - 1 loop
            topic_id := topic_ids[t];
            "partition" := parts[p];
            member_no := members[holders[p]];
            return next;
        end loop;
    end loop;
end
$$;

-- Takes no lock, reads and writes nothing, returns one row a partition that somebody subscribes to: who
-- should have it. assignor is uniform or range.
create or replace function assign_partitions(
    assignor text, members int8[], subscribers int8[], subscribed int4[], topics int4[],
        partition_counts int4[],
    held_topics int4[], held_partitions int4[], held_by int8[]
) returns table (topic_id int4, "partition" int4, member_no int8)
language plpgsql immutable set search_path from current as $$
begin
    if assignor = 'range' then
        return query select r.* from assign_range(subscribers, subscribed, topics, partition_counts) r;
    elsif cardinality(subscribed) = cardinality(members) * cardinality(topics) then
        -- Everybody subscribes to everything.
        return query select e.* from assign_evenly(members, topics, partition_counts, held_topics,
            held_partitions, held_by) e;
    else
        return query select g.* from assign_greedily(members, subscribers, subscribed, topics,
            partition_counts, held_topics, held_partitions, held_by) g;
    end if;
end
$$;
