-- What the worker takes away when nobody has used it for long: a bounded number of rows a call, passing over
-- rows that somebody has locked. (Of idempotent producers: expire_producers().)

-- Takes the row locks of up to at_most groups whose ids come after a given one, passing over those that
-- somebody has; removes members whose lease has run out, committed offsets that are older than Kafka's
-- offsets.retention.minutes (the group's own, or retention_minutes) in groups without members for that long
-- and of topics that nobody in the group subscribes to, and consumer groups of which nothing is left. Returns
-- how many of each, and the last id (null: there is no group after it).
create or replace function expire_groups(
    after_group int4, at_most int4 default 100, retention_minutes int8 default 10080)
returns table (last_group int4, groups int4, members int4, offsets int4)
language plpgsql volatile security definer set search_path from current as $$
#variable_conflict use_column
declare
    ids constant int4[] := array(
        select g.group_id from log_group g where g.group_id > expire_groups.after_group
        order by g.group_id limit expire_groups.at_most);
    candidate record;
    horizon timestamptz;
    gone int4;
begin
    last_group := ids[cardinality(ids)];
    groups := 0;
    members := 0;
    offsets := 0;
    for candidate in
        select g.group_id, g.kind, least(coalesce((g.configs ->> 'offsets.retention.minutes')::int8,
                                                  expire_groups.retention_minutes), 1000000000) as minutes
        from log_group g where g.group_id = any (ids) order by g.group_id for no key update skip locked
    loop
        members := members + expire_members(candidate.group_id);
        continue when candidate.kind <> 'consumer';
        horizon := log_time() - candidate.minutes * interval '1 minute';
        delete from group_offset o
        where o.group_id = candidate.group_id and o.committed_at < horizon
          and coalesce((select g.emptied_at from log_group g where g.group_id = o.group_id),
                       '-infinity') < horizon
          and not exists (select from group_claim c
                          where c.group_id = o.group_id and c.topic_id = o.topic_id and c.target is not null);
        get diagnostics gone = row_count;
        offsets := offsets + gone;
        delete from group_claim c
        where c.group_id = candidate.group_id
          and exists (select from log_group g where g.group_id = c.group_id and g.emptied_at < horizon)
          and not exists (select from group_offset o where o.group_id = c.group_id);
        delete from log_group g
        where g.group_id = candidate.group_id and g.emptied_at < horizon
          and not exists (select from group_offset o where o.group_id = g.group_id);
        get diagnostics gone = row_count;
        groups := groups + gone;
    end loop;
    return next;
end
$$;

-- Takes the locks of the rows that it deletes, passing over those that somebody has: up to max_rows committed
-- offsets of topics that were deleted. Returns how many.
create or replace function expire_orphaned_offsets(max_rows int4 default 10000) returns int4
language plpgsql volatile security definer set search_path from current as $$
declare
    gone int4;
begin
    delete from group_offset o
    using (select e.group_id, e.topic_id, e.partition from group_offset e
           where not exists (select from topic t where t.topic_id = e.topic_id)
           limit max_rows for update skip locked) e
    where (o.group_id, o.topic_id, o.partition) = (e.group_id, e.topic_id, e.partition);
    get diagnostics gone = row_count;
    return gone;
end
$$;

-- As expire_groups() and expire_orphaned_offsets(), for all groups in one transaction; returns how many offsets
-- are gone.
create or replace function expire_offsets(retention_minutes int8 default 10080,
    at_most int4 default 100) returns int8
language plpgsql volatile security definer set search_path from current as $$
declare
    part record;
    reached int4 := -1;
    gone int8 := expire_orphaned_offsets(2147483647);
begin
    loop
        select e.* into part from expire_groups(reached, at_most, retention_minutes) e;
        exit when part.last_group is null;
        reached := part.last_group;
        gone := gone + part.offsets;
    end loop;
    return gone;
end
$$;

-- Takes the row locks of up to max_rows transactional ids, passing over those that somebody has: nobody's
-- transaction is under way. Deletes those that nobody has used for older_than_ms (Kafka's
-- transactional.id.expiration.ms, seven days). Whoever held one is fenced all the same: its next step raises
-- LS017, and LS014 when there is a new holder, whose producer id is a new one. Returns how many. LS012: less
-- than two hours; the log notices once an hour that an id is in use.
create or replace function expire_transactional_ids(
    older_than_ms int8 default 604800000, max_rows int4 default 1000) returns int4
language plpgsql volatile security definer set search_path from current as $$
declare
    gone int4;
begin
    if (older_than_ms >= 7200000) is not true then
        perform raise_error('LS012', format('transactional ids are kept for at least 7200000 ms, not %s',
            coalesce(older_than_ms::text, 'null')), jsonb_build_object('older_than_ms', older_than_ms), null);
    end if;
    delete from producer p
    using (select e.transactional_id from producer e
           where e.used_at < log_time() - least(older_than_ms, 100000000000000) * interval '1 ms'
           order by e.used_at limit max_rows for update skip locked) e
    where p.transactional_id = e.transactional_id;
    get diagnostics gone = row_count;
    return gone;
end
$$;

-- Takes a share group's advisory lock in shared mode, as acquire() does, and the locks of rows of up to
-- max_rows ranges, passing over those that somebody has: records whose lock ran out at their last delivery,
-- which nobody has asked for since. They go to the dead-letter topic, if there is one. Returns how many ranges.
create or replace function expire_share_locks(group_id int4, max_rows int4 default 1000) returns int4
language plpgsql volatile security definer set search_path from current as $$
#variable_conflict use_column
declare
    g share_group;
    dead share_flight[];
    reasons text[];
begin
    perform pg_advisory_xact_lock_shared(lock_class('share'), expire_share_locks.group_id);
    select s.* into g from share_group s where s.group_id = expire_share_locks.group_id;
    if not found then
        return 0;
    end if;
    with spent as (
        select f.topic_id, f.partition, f.first_offset from share_flight f
        join topic_partition p on p.topic_id = f.topic_id and p.partition = f.partition
        where f.group_id = g.group_id and f.member is not null and f.due_at < clock_timestamp()
          and f.delivery_count >= g.delivery_limit and f.first_offset >= p.log_start
        order by f.topic_id, f.partition, f.first_offset limit expire_share_locks.max_rows
        for update of f skip locked),
    gone as (
        delete from share_flight f using spent s
        where f.group_id = g.group_id
          and (f.topic_id, f.partition, f.first_offset) = (s.topic_id, s.partition, s.first_offset)
        returning f.*)
    select array_agg(row(n.group_id, n.topic_id, n.partition, n.first_offset, n.last_offset, n.due_at, null,
                         n.delivery_count, null)::share_flight
                     order by n.topic_id, n.partition, n.first_offset),
           array_agg(format('The lock ran out at delivery %s of %s.', n.delivery_count, g.delivery_limit)
                     order by n.topic_id, n.partition, n.first_offset)
    into dead, reasons from gone n;
    if dead is null then
        return 0;
    end if;
    perform dead_letter(g, dead, reasons);
    return cardinality(dead);
end
$$;

-- Takes no lock, reads what is in flight, writes nothing, returns the share groups for which
-- expire_share_locks() would find something.
create or replace function share_groups_with_spent_locks() returns setof int4
language sql volatile security definer set search_path from current
begin atomic
    select g.group_id from share_group g
    where exists (select from share_flight f
                  where f.group_id = g.group_id and f.member is not null and f.due_at < clock_timestamp()
                    and f.delivery_count >= g.delivery_limit)
    order by g.group_id;
end;
