-- Membership: join, heartbeat, release, leave. Every change of a group's members or targets holds the group's
-- row lock; claims change hands under their own row locks. Lock order: group, members, claims in ascending
-- order of (topic_id, partition), offsets in the same order.
--
-- A partition has one owner, in one row. It changes hands in two ways only: the owner gives it up
-- (release_claims, leave_group), or the owner's lease has run out and its member row is deleted. Either way
-- the claim is free first, and whoever takes it raises its epoch, which every commit of the former owner
-- fails on.

-- Takes no lock, reads the groups, writes nothing, returns the group's row. LS024: there is no such group (of
-- this kind, if one is given).
create or replace function group_of("group" text, kind text default null) returns log_group
language plpgsql stable set search_path from current as $$
declare
    found_group log_group;
begin
    select g.* into found_group from log_group g
        where g.name = group_of."group" and (group_of.kind is null or g.kind = group_of.kind);
    if not found then
        perform raise_error('LS024', format('there is no group %s',
            coalesce(to_json(left(group_of."group", 255))::text, 'null')),
            jsonb_build_object('group', group_of."group"), null);
    end if;
    return found_group;
end
$$;

-- Takes no lock, reads the groups, writes nothing, returns the id of the group with this name; null: none.
create or replace function group_id_of("group" text) returns int4
language sql stable security definer set search_path from current
begin atomic
    select g.group_id from log_group g where g.name = group_id_of."group";
end;

-- Takes no lock, reads the groups, writes a group's row where there is none, returns its id. LS028: not a
-- legal name, or the name of a group of the other kind.
create or replace function ensure_group("group" text, kind text) returns int4
language plpgsql volatile set search_path from current as $$
declare
    found_group record;
begin
    if ("group" ~ '\A[^[:cntrl:]]{1,255}\Z') is not true then
        perform raise_error('LS028', format('%s is not a legal group name',
            coalesce(to_json(left("group", 260))::text, 'null')),
            jsonb_build_object('group', "group"),
                'A group name has 1 to 255 characters, none of them a control character.');
    end if;
    select g.group_id, g.kind into found_group from log_group g where g.name = ensure_group."group";
    if not found then
        insert into log_group (name, kind) values ("group", ensure_group.kind) on conflict (name) do nothing;
        select g.group_id, g.kind into strict found_group from log_group g
            where g.name = ensure_group."group";
    end if;
    if found_group.kind <> ensure_group.kind then
        perform raise_error('LS028', format('group %s is a %s group, not a %s group', to_json("group"),
            found_group.kind, ensure_group.kind),
            jsonb_build_object('group', "group", 'kind', found_group.kind), 'Use another group name.');
    end if;
    return found_group.group_id;
end
$$;

-- Takes no lock, reads and writes nothing, returns a subscription's regular expression so that it has to
-- match a whole topic name. LS025: it is none. Options at the very beginning, as in (?i)orders.*, stay there.
create or replace function anchored_pattern(pattern text) returns text
language plpgsql immutable set search_path from current as $$
declare
    options constant text := coalesce(substring(pattern from '^\(\?[a-z]+\)'), '');
    anchored constant text := options || '^(?:' || substr(pattern, length(options) + 1) || ')$';
begin
    if length(pattern) not between 1 and 1000 then
        perform raise_error('LS025', 'a pattern has 1 to 1000 characters',
            jsonb_build_object('length', length(pattern)), null);
    end if;
    perform '' ~ anchored;
    return anchored;
exception when invalid_regular_expression then
    perform raise_error('LS025', format('%s is not a regular expression: %s', to_json(pattern), sqlerrm),
        jsonb_build_object('pattern', pattern),
        'Patterns are PostgreSQL''s advanced regular expressions and have to match the whole topic name.');
end
$$;

-- Takes no lock, reads the catalog, writes nothing, returns a number that differs when there are other topics
-- or partitions.
create or replace function catalog_mark() returns int8
language sql stable set search_path from current
begin atomic
    select coalesce(bit_xor(hashint8extended(t.topic_id::int8 * 65536 + t.partitions, 0)), 0) from topic t;
end;

-- Locks the group's row (the group is made if it is not there) and the claims that change hands; reads and
-- writes members; returns what a member needs to go on. Joining again with the same member_id changes the
-- subscription. A static member (instance_id) takes the place and the partitions of whoever held that
-- instance_id: every claim gets a new epoch, which fences the former holder, and nothing is rebalanced.
-- Exactly one of topics and pattern, for a share group topics. LS012, LS025 the pattern, LS028 the name or
-- kind.
create or replace function join_group(
    "group" text, member text, instance text, client text, topics text[], pattern text, assignor text,
    session_timeout_ms int4, max_poll_interval_ms int4, kind text default 'consumer'
) returns table (group_id int4, member_no int8, group_epoch int8)
language plpgsql volatile security definer set search_path from current as $$
#variable_conflict use_column
declare
    id int4;
    former group_member;
    regex text;
    wanted text[];
    changed boolean;
begin
    if ("member" ~ '\A[^[:cntrl:]]{1,255}\Z') is not true
        or ("instance" ~ '\A[^[:cntrl:]]{1,255}\Z') is false then
        perform raise_error('LS012', 'a member id, and an instance id, has 1 to 255 characters', null,
            'None of them may be a control character.');
    end if;
    if (topics is null) = (pattern is null) or cardinality(topics) > 10000
        or array_position(topics, null) is not null then
        perform raise_error('LS012', 'a subscription is either up to 10000 topic names or a pattern', null,
            null);
    end if;
    if (join_group.session_timeout_ms between 100 and 1800000) is not true then
        perform raise_error('LS012', format('session_timeout_ms is 100 to 1800000, not %s',
            join_group.session_timeout_ms), null, null);
    end if;
    if join_group.assignor not in ('uniform', 'range') then
        perform raise_error('LS012', format('there is no assignor %s',
            to_json(left(join_group.assignor, 100))), null, 'It is uniform or range.');
    end if;
    if pattern is not null then
        regex := anchored_pattern(pattern);
    end if;
    wanted := (select coalesce(array_agg(distinct t order by t), '{}') from unnest(topics) t
        where topics is not null);

    loop
        id := ensure_group(join_group."group", join_group.kind);
        perform from log_group g where g.group_id = id for no key update;
        exit when found;  -- else it was deleted meanwhile
    end loop;

    select m.* into former from group_member m where m.group_id = id and m.member_id = join_group.member;
    if not found and instance is not null then
        select m.* into former from group_member m where m.group_id = id and m.instance_id = instance;
        if found then
            update group_claim c set claim_epoch = c.claim_epoch + 1
            from (select l.topic_id, l.partition from group_claim l
                where l.group_id = id and l.owner = former.member_no
                  order by l.topic_id, l.partition for update) l
            where c.group_id = id and c.topic_id = l.topic_id and c.partition = l.partition;
        end if;
    end if;
    changed := former.member_no is null or former.pattern is distinct
        from join_group.pattern or former.assignor is distinct from join_group.assignor
        or (pattern is null and former.topics is distinct from wanted);

    if former.member_no is null then
        insert into group_member (group_id, member_id, instance_id, client_id, host, topics, pattern,
            assignor, session_timeout_ms, max_poll_interval_ms, joined_at, lease_floor)
        values (id, join_group.member, instance, coalesce(client, ''),
            coalesce(host(inet_client_addr()), 'local'), case when pattern is null then wanted end, pattern,
                join_group.assignor, join_group.session_timeout_ms,
                    coalesce(join_group.max_poll_interval_ms, 0), clock_timestamp(), clock_timestamp())
        returning member_no into former.member_no;
    else
        update group_member m set member_id = join_group.member, instance_id = instance,
            client_id = coalesce(client, ''),
            host = coalesce(host(inet_client_addr()), 'local'), topics = case
                when join_group.pattern is null then wanted end, pattern = join_group.pattern,
            assignor = join_group.assignor, session_timeout_ms = join_group.session_timeout_ms,
                max_poll_interval_ms = coalesce(join_group.max_poll_interval_ms, 0),
            lease_floor = clock_timestamp()
        where m.group_id = id and m.member_no = former.member_no;
    end if;
    if changed then
        update log_group g set group_epoch = g.group_epoch + 1, emptied_at = null where g.group_id = id;
    end if;
    return query select id, former.member_no, g.group_epoch from log_group g where g.group_id = id;
end
$$;

-- Under the group's row lock, which the caller holds: frees the claims whose owners are gone. A claim that is
-- locked, by a commit that its former owner began while it was a member, is left for the next time: whoever
-- waits for it asks again.
create or replace function free_orphans("group" int4) returns void
language plpgsql volatile set search_path from current as $$
begin
    update group_claim c set owner = null
    from (select l.topic_id, l.partition from group_claim l
          where l.group_id = free_orphans."group" and l.owner is not null
            and not exists (select from group_member m
                where m.group_id = l.group_id and m.member_no = l.owner)
          order by l.topic_id, l.partition for update skip locked) l
    where c.group_id = free_orphans."group" and c.topic_id = l.topic_id and c.partition = l.partition;
end
$$;

-- Under the group's row lock, which the caller holds: deletes those members, frees what they own, counts a
-- change. Returns how many there were.
create or replace function remove_members("group" int4, members int8[]) returns int4
language plpgsql volatile set search_path from current as $$
declare
    removed int4;
begin
    delete from group_member m where m.group_id = remove_members."group" and m.member_no = any (members);
    get diagnostics removed = row_count;
    if removed > 0 then
        update log_group g set group_epoch = g.group_epoch + 1,
            emptied_at = case when not exists (select from group_member m
                where m.group_id = g.group_id) then clock_timestamp() end
        where g.group_id = remove_members."group";
        perform free_orphans(remove_members."group");
    end if;
    return removed;
end
$$;

-- Takes the group's row lock if anybody has to go; reads the members and their leases; removes the members
-- whose lease has run out. Returns how many.
create or replace function expire_members("group" int4) returns int4
language plpgsql volatile set search_path from current as $$
begin
    if not exists (select from leases_of(expire_members."group") l
        where l.lease_until < clock_timestamp()) then
        return 0;
    end if;
    perform from log_group g where g.group_id = expire_members."group" for no key update;
    return remove_members(expire_members."group", (
        select array_agg(l.member_no) from leases_of(expire_members."group") l
            where l.lease_until < clock_timestamp()));
end
$$;

-- Takes no lock of its own. Once a second a group (or ten times a session timeout, where that is more often):
-- removes expired members, notices new topics and partitions, rotates the heartbeats. Returns nothing.
create or replace function sweep_group(slot int2, "group" int4, session_timeout_ms int4) returns void
language plpgsql volatile set search_path from current as $$
begin
    if beaten_since(slot, sweep_group."group", 0,
                    clock_timestamp() - least(1000, session_timeout_ms / 10) * interval '1 millisecond') then
        return;
    end if;
    perform record_heartbeat(slot, sweep_group."group", 0);
    perform expire_members(sweep_group."group");
    update log_group g set group_epoch = g.group_epoch + 1
    where g.group_id = sweep_group."group" and g.catalog <> catalog_mark()
        and g.group_epoch = g.assigned_epoch;
    perform rotate_heartbeats();
end
$$;

-- Tries the group's row lock and does nothing when somebody has it; reads members, subscriptions and topics,
-- writes the targets of claims (and makes the claims of new partitions, and deletes those of deleted topics).
-- Sticks to the targets there are, then to the owners. Locks claims FOR NO KEY UPDATE, so it passes by
-- commits under way, which hold them FOR KEY SHARE; whoever takes or gives up a claim locks it FOR UPDATE.
create or replace function assign_group("group" int4) returns boolean
language plpgsql volatile set search_path from current as $$
declare
    head log_group;
    mark int8;
    members int8[];
    subscribers int8[];
    subscribed int4[];
    topics int4[];
    counts int4[];
    held_topics int4[];
    held_partitions int4[];
    held_by int8[];
    assignor text;
begin
    select g.* into head from log_group g
        where g.group_id = assign_group."group"
        and g.group_epoch > g.assigned_epoch for no key update skip locked;
    if not found then
        return false;
    end if;
    mark := catalog_mark();
    perform free_orphans(head.group_id);

    select coalesce(array_agg(m.member_no order by m.member_no), '{}') into members from group_member m
        where m.group_id = head.group_id;
    select m.assignor into assignor from group_member m
        where m.group_id = head.group_id and m.assignor is not null
    group by m.assignor order by count(*) desc, m.assignor desc limit 1;
    select coalesce(array_agg(s.member_no), '{}'), coalesce(array_agg(s.topic_id), '{}')
        into subscribers, subscribed
    from (select m.member_no, t.topic_id from group_member m join topic t on t.name = any (m.topics)
        where m.group_id = head.group_id and m.topics is not null
          union all
          select m.member_no, t.topic_id from group_member m
              join topic t on t.name ~ anchored_pattern(m.pattern)
              where m.group_id = head.group_id and m.pattern is not null) s;
    select coalesce(array_agg(t.topic_id), '{}'), coalesce(array_agg(t.partitions), '{}') into topics, counts
        from topic t where t.topic_id = any (subscribed);

    -- A partition that was added to a topic the group reads already begins at its start, whatever the
    -- members' auto.offset.reset says: nothing in it is older than the group.
    with fresh as (
        insert into group_claim (group_id, topic_id, partition)
        select head.group_id, t.topic_id, p
        from unnest(topics, counts) t (topic_id, partitions), generate_series(0, t.partitions - 1) p
        where (select count(*) from group_claim c
            where c.group_id = head.group_id and c.topic_id = t.topic_id)
              < t.partitions
        on conflict do nothing
        returning topic_id, partition
    )
    insert into group_offset (group_id, topic_id, partition, committed_offset, metadata, committed_at)
    select head.group_id, f.topic_id, f.partition, 0, '', clock_timestamp()
    from fresh f
    where exists (select from group_claim c
                  where c.group_id = head.group_id and c.topic_id = f.topic_id and c.claim_epoch > 0)
    on conflict do nothing;
    delete from group_claim c where c.group_id = head.group_id
        and not exists (select from topic t where t.topic_id = c.topic_id);

    select coalesce(array_agg(h.topic_id), '{}'), coalesce(array_agg(h.partition), '{}'),
        coalesce(array_agg(h.holder), '{}') into held_topics, held_partitions, held_by
    from (select c.topic_id, c.partition, case when c.target = any (members) then c.target
        else c.owner end as holder from group_claim c where c.group_id = head.group_id) h
    join unnest(subscribed, subscribers) s (topic_id, member_no) on s.topic_id = h.topic_id
        and s.member_no = h.holder;

    update group_claim c set target = a.member_no
    from (select l.topic_id, l.partition, p.member_no
          from group_claim l
          left join assign_partitions(coalesce(assignor, 'uniform'), members, subscribers, subscribed, topics,
              counts, held_topics, held_partitions, held_by) p
            on p.topic_id = l.topic_id and p.partition = l.partition
          where l.group_id = head.group_id and l.target is distinct from p.member_no
          order by l.topic_id, l.partition for no key update of l) a
    where c.group_id = head.group_id and c.topic_id = a.topic_id and c.partition = a.partition;

    update log_group g set assigned_epoch = g.group_epoch, catalog = mark where g.group_id = head.group_id;
    return true;
end
$$;

-- Takes no lock, reads the members, writes nothing, returns the member's row. LS020: it is no member (any
-- more), LS021: another member has its instance_id.
create or replace function member_of("group" int4, member text, instance text) returns group_member
language plpgsql stable set search_path from current as $$
declare
    found_member group_member;
begin
    select m.* into found_member from group_member m
        where m.group_id = member_of."group" and m.member_id = member_of.member;
    if not found then
        if exists (select from group_member m
            where m.group_id = member_of."group" and m.instance_id = instance) then
            perform raise_error('LS021', format('another member has taken the instance id %s',
                to_json(instance)),
                jsonb_build_object('member_id', member, 'instance_id', instance),
                    'Give every member of a group its own group_instance_id.');
        end if;
        perform raise_error('LS020', format('%s is not a member of the group (any more)',
            to_json(left(member, 255))), jsonb_build_object('member_id', member), null);
    end if;
    return found_member;
end
$$;

-- Takes the row locks of the free claims that should be this member's, skipping locked ones (and tries the
-- group's row lock to free the claims of members that are gone); gives them to the member under new epochs.
-- Returns nothing.
create or replace function claim_partitions("group" int4, member_no int8) returns void
language plpgsql volatile set search_path from current as $$
declare
    orphaned boolean;
begin
    for attempt in 1 .. 2 loop
        update group_claim c set owner = claim_partitions.member_no, claim_epoch = c.claim_epoch + 1
        from (select l.topic_id, l.partition from group_claim l
              where l.group_id = claim_partitions."group" and l.target = claim_partitions.member_no
                  and l.owner is null
              order by l.topic_id, l.partition for update skip locked) l
        where c.group_id = claim_partitions."group" and c.topic_id = l.topic_id and c.partition = l.partition;

        orphaned := exists (select from group_claim l
            where l.group_id = claim_partitions."group" and l.target = claim_partitions.member_no
                            and l.owner <> claim_partitions.member_no
                            and not exists (select from group_member m
                                where m.group_id = l.group_id and m.member_no = l.owner));
        exit when not orphaned;
        perform from log_group g where g.group_id = claim_partitions."group" for no key update skip locked;
        exit when not found;
        perform free_orphans(claim_partitions."group");
    end loop;
end
$$;

-- The one call that keeps a member going. Renews its lease (one insert into an unlogged table; nothing else
-- while nothing changes), sweeps the group now and then, computes the targets when the group has changed and
-- nobody else is at it, takes what is free and should be this member's.
-- known_epoch: the assigned epoch that the member is settled at; -1: tell me everything.
-- Returns a first row without a topic: the assigned epoch; unchanged: there is nothing else to be said;
-- waiting: partitions that should be this member's still belong to somebody else, or new targets are being
-- computed; assigned: this call computed them, so wake the others. Unless unchanged, then one row for each
-- partition that the member owns, revoke where it has to give it up, with the offset to begin at. A partition
-- that the member had and that is not in the answer is lost. LS020, LS021.
create or replace function heartbeat_group("group" int4, member text, instance text, known_epoch int8)
returns table (
    group_epoch int8, unchanged boolean, waiting boolean, assigned boolean, topic text, topic_id int4,
    "partition" int4, claim_epoch int8, revoke boolean, committed_offset int8, leader_epoch int4
)
language plpgsql volatile security definer set search_path from current as $$
#variable_conflict use_column
declare
    me constant group_member := member_of(heartbeat_group."group", member, instance);
    slot constant int2 := heartbeat_slot();
    head record;
begin
    perform record_heartbeat(slot, me.group_id, me.member_no);
    perform sweep_group(slot, me.group_id, me.session_timeout_ms);
    select g.group_epoch, g.assigned_epoch, g.kind into head from log_group g where g.group_id = me.group_id;
    assigned := false;
    if head.kind = 'consumer' and head.group_epoch > head.assigned_epoch then
        assigned := assign_group(me.group_id);
        select g.group_epoch, g.assigned_epoch, g.kind into head from log_group g
            where g.group_id = me.group_id;
    end if;
    group_epoch := head.assigned_epoch;
    waiting := head.kind = 'consumer' and head.group_epoch > head.assigned_epoch;
    unchanged := head.kind = 'share' or head.assigned_epoch = known_epoch;
    if not unchanged then
        perform claim_partitions(me.group_id, me.member_no);
        waiting := waiting or exists (
            select from group_claim c
            where c.group_id = me.group_id and c.target = me.member_no and c.owner is distinct
                from me.member_no);
    end if;
    return next;
    if unchanged then
        return;
    end if;
    return query
        select head.assigned_epoch, false, false, false, t.name, c.topic_id, c.partition, c.claim_epoch,
               c.target is distinct from c.owner, o.committed_offset, o.leader_epoch
        from group_claim c
        join topic t on t.topic_id = c.topic_id
        left join group_offset o on o.group_id = c.group_id and o.topic_id = c.topic_id
            and o.partition = c.partition
        where c.group_id = me.group_id and c.owner = me.member_no
        order by t.name, c.partition;
end
$$;

-- Takes the row locks of those claims, ascending; frees the ones that the member owns under those epochs and
-- passes over the others. Returns how many it freed.
create or replace function release_claims("group" int4, member text, topic_ids int4[], partitions int4[],
    claim_epochs int8[]) returns int4
language plpgsql volatile security definer set search_path from current as $$
declare
    released int4;
begin
    update group_claim c set owner = null
    from (select l.topic_id, l.partition
          from unnest(topic_ids, partitions, claim_epochs) w (topic_id, partition, claim_epoch)
          join group_member m on m.group_id = release_claims."group" and m.member_id = release_claims.member
          join group_claim l on l.group_id = m.group_id and l.topic_id = w.topic_id
              and l.partition = w.partition and l.claim_epoch = w.claim_epoch and l.owner = m.member_no
          order by l.topic_id, l.partition for update of l) l
    where c.group_id = release_claims."group" and c.topic_id = l.topic_id and c.partition = l.partition;
    get diagnostics released = row_count;
    return released;
end
$$;

-- Takes the group's row lock, deletes the member and frees what it owns. Returns whether it was a member.
create or replace function leave_group("group" int4, member text) returns boolean
language plpgsql volatile security definer set search_path from current as $$
begin
    perform from log_group g where g.group_id = leave_group."group" for no key update;
    return remove_members(leave_group."group", (select array_agg(m.member_no) from group_member m
                                                where m.group_id = leave_group."group"
                                                    and m.member_id = leave_group.member)) > 0;
end
$$;

-- Takes the group's row lock, counts a change, so that the targets are computed again: enforce_rebalance.
-- Returns nothing.
create or replace function rebalance_group("group" int4) returns void
language sql volatile security definer set search_path from current
begin atomic
    update log_group g set group_epoch = g.group_epoch + 1 where g.group_id = rebalance_group."group";
end;

-- Takes no lock beyond NOTIFY's own, reads and writes nothing: tells the members of a group what has happened
-- ("targets": ask for yours; "freed": so should whoever waits). For after the commit of whatever changed the
-- group, never inside it; a notification that is lost costs a heartbeat interval.
create or replace function wake_group("group" int4, what text) returns void
language plpgsql volatile security definer set search_path from current as $$
begin
    perform set_config('synchronous_commit', 'off', true);
    perform pg_notify(current_schema() || '_groups', wake_group."group" || ' ' || what);
end
$$;
