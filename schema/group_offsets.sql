-- Committed offsets. A commit by a member locks its claims, so a claim changes hands before it or after it,
-- never beside it.

-- Takes no lock, reads the ends of the partitions, writes nothing, returns nothing. LS001: no such partition,
-- LS006: an offset beyond the end, LS012: arrays that do not fit each other, a partition twice, a negative
-- offset; LS026: metadata over 4096 bytes.
create or replace function check_commit(topic_ids int4[], partitions int4[], offsets int8[],
    metadata text[]) returns void
language plpgsql stable set search_path from current as $$
declare
    wrong record;
begin
    if cardinality(topic_ids) is distinct from cardinality(partitions) or cardinality(topic_ids) is distinct
        from cardinality(offsets)
        or cardinality(metadata) <> cardinality(topic_ids)
        or exists (select from unnest(topic_ids, partitions) w (topic_id, partition)
            group by w.topic_id, w.partition having count(*) > 1) then
        perform raise_error('LS012', 'a commit names every partition once, with one offset each', null, null);
    end if;
    select w.ordinal into wrong from unnest(metadata) with ordinality w (metadata, ordinal)
        where octet_length(w.metadata) > 4096 limit 1;
    if found then
        perform raise_error('LS026', 'the metadata of a committed offset has at most 4096 bytes',
            jsonb_build_object('limit', 4096, 'size', octet_length(metadata[wrong.ordinal])), null);
    end if;
    select t.name as topic, w.partition, w.committed, h.end_offset into wrong
    from unnest(topic_ids, partitions, offsets) with ordinality w (topic_id, partition, committed, idx)
    -- What has been read may lie above the high watermark for a moment, after the leader was started anew.
    left join partition_tips(topic_ids, partitions) h on h.idx = w.idx and h.log_start is not null
    left join topic t on t.topic_id = w.topic_id
    where h.end_offset is null or w.committed is null or w.committed not between 0 and h.end_offset
    order by w.idx limit 1;
    if not found then
        return;
    elsif wrong.end_offset is null then
        perform raise_error('LS001', format('topic %s has no partition %s',
            coalesce(to_json(wrong.topic)::text, 'that is deleted'), coalesce(wrong.partition::text, 'null')),
            jsonb_build_object('topic', wrong.topic, 'partition', wrong.partition), null);
    else
        perform raise_error('LS006',
            format('offset %s cannot be committed: partition %s of topic %s ends at %s',
                coalesce(wrong.committed::text, 'null'), wrong.partition, wrong.topic, wrong.end_offset),
            jsonb_build_object('topic', wrong.topic, 'partition', wrong.partition, 'offset', wrong.committed,
                'high_watermark', wrong.end_offset),
            'Commit the offset of the next record to be read.');
    end if;
end
$$;

-- Takes the row locks of the offsets, ascending, and writes them. Returns nothing.
create or replace function store_offsets(
    "group" int4, topic_ids int4[], partitions int4[], offsets int8[], leader_epochs int4[], metadata text[],
        claim_epochs int8[]
) returns void
language sql volatile set search_path from current
begin atomic
    insert into group_offset as o (group_id, topic_id, partition, committed_offset, leader_epoch, claim_epoch,
        metadata, committed_at)
    select store_offsets."group", w.topic_id, w.partition, w.committed, w.leader_epoch, w.claim_epoch,
        coalesce(w.metadata, ''), clock_timestamp()
    from unnest(store_offsets.topic_ids, store_offsets.partitions, store_offsets.offsets,
        store_offsets.leader_epochs, store_offsets.metadata, store_offsets.claim_epochs)
        w (topic_id, partition, committed, leader_epoch, metadata, claim_epoch)
    order by w.topic_id, w.partition
    on conflict (group_id, topic_id, partition) do update
        set committed_offset = excluded.committed_offset, leader_epoch = excluded.leader_epoch,
            claim_epoch = excluded.claim_epoch,
            metadata = excluded.metadata, committed_at = excluded.committed_at;
end;

-- Commits offsets (of the next records to be read): all or none.
-- By a member: locks its claims FOR KEY SHARE, ascending, to the end of the transaction; each has to be owned
-- under the epoch given. Without a member: for a group that nobody has joined (it is made if need be), locks
-- the group's row FOR SHARE. leader_epochs and metadata may be null. Returns nothing. LS022: not a member any
-- more, not the owner, a stale epoch, or (without a member) a group with members; details say which. LS021,
-- LS001, LS006, LS012, LS026.
create or replace function commit_offsets(
    "group" text, member text, instance text, topic_ids int4[], partitions int4[], claim_epochs int8[],
        offsets int8[], leader_epochs int4[], metadata text[]
) returns void
language plpgsql volatile security definer set search_path from current as $$
declare
    id int4;
    me int8;
    wrong record;
begin
    if member is null then
        loop
            id := ensure_group(commit_offsets."group", 'consumer');
            perform expire_members(id);
            perform from log_group g where g.group_id = id for share;
            exit when found;
        end loop;
        if exists (select from group_member m where m.group_id = id) then
            perform raise_error('LS022', format('group %s has members: only they may commit',
                to_json(commit_offsets."group")),
                jsonb_build_object('group', commit_offsets."group", 'reason', 'group_has_members'),
                    'Use another group for partitions that are assigned by hand.');
        end if;
        claim_epochs := null;
    else
        select g.group_id, m.member_no into id, me
        from log_group g join group_member m on m.group_id = g.group_id
        where g.name = commit_offsets."group" and m.member_id = member;
        if not found then
            if exists (select from log_group g join group_member m on m.group_id = g.group_id
                where g.name = commit_offsets."group" and m.instance_id = instance) then
                perform raise_error('LS021', format('another member has taken the instance id %s',
                    to_json(instance)),
                    jsonb_build_object('group', commit_offsets."group", 'member_id', member, 'instance_id',
                        instance), 'Give every member of a group its own group_instance_id.');
            end if;
            perform raise_error('LS022', format('%s is not a member of group %s (any more)',
                to_json(left(member, 255)), to_json(left(commit_offsets."group", 255))),
                jsonb_build_object('group', commit_offsets."group", 'member_id', member, 'reason',
                    'unknown_member'), null);
        end if;
        perform from unnest(topic_ids, partitions) w (topic_id, partition)
        join group_claim c on c.group_id = id and c.topic_id = w.topic_id and c.partition = w.partition
        order by c.topic_id, c.partition for key share of c;
        select w.topic_id, w.partition, w.claim_epoch, c.claim_epoch as current_epoch, c.owner into wrong
        from unnest(topic_ids, partitions, claim_epochs) w (topic_id, partition, claim_epoch)
        left join group_claim c on c.group_id = id and c.topic_id = w.topic_id and c.partition = w.partition
        where c.owner is distinct from me or c.claim_epoch is distinct from w.claim_epoch
        order by w.topic_id, w.partition limit 1;
        if found then
            perform raise_error('LS022',
                format('partition %s of topic %s is not this member''s (any more)', wrong.partition,
                    coalesce((select t.name from topic t where t.topic_id = wrong.topic_id),
                    wrong.topic_id::text)),
                jsonb_build_object('group', commit_offsets."group", 'member_id', member, 'topic',
                    (select t.name from topic t where t.topic_id = wrong.topic_id), 'partition',
                    wrong.partition,
                    'reason', case when wrong.owner is distinct
                        from me then 'not_owner' else 'stale_epoch' end, 'claim_epoch', wrong.claim_epoch,
                        'current_epoch', wrong.current_epoch), null);
        end if;
    end if;
    perform check_commit(topic_ids, partitions, offsets, metadata);
    perform store_offsets(id, topic_ids, partitions, offsets, leader_epochs, metadata, claim_epochs);
end
$$;

-- Takes no lock, reads offsets, writes nothing, returns those of the wanted partitions (of all, when
-- topic_ids is null) that have one. A group that does not exist has none.
create or replace function committed_offsets("group" text, topic_ids int4[] default null,
    partitions int4[] default null)
returns table (topic text, topic_id int4, "partition" int4, committed_offset int8, leader_epoch int4,
    metadata text, committed_at int8)
language plpgsql stable security definer set search_path from current as $$
#variable_conflict use_column
begin
    if committed_offsets.topic_ids is null then
        return query select t.name, o.topic_id, o.partition, o.committed_offset, o.leader_epoch, o.metadata,
            (extract(epoch from o.committed_at) * 1000)::int8
            from log_group g join group_offset o on o.group_id = g.group_id
                join topic t on t.topic_id = o.topic_id
            where g.name = committed_offsets."group" order by t.name, o.partition;
    else
        return query select t.name, o.topic_id, o.partition, o.committed_offset, o.leader_epoch, o.metadata,
            (extract(epoch from o.committed_at) * 1000)::int8
            from unnest(committed_offsets.topic_ids, committed_offsets.partitions) w (topic_id, partition)
            join log_group g on g.name = committed_offsets."group"
            join group_offset o on o.group_id = g.group_id and o.topic_id = w.topic_id
                and o.partition = w.partition
            join topic t on t.topic_id = o.topic_id
            order by t.name, o.partition;
    end if;
end
$$;

-- Takes the group's row lock, removes members whose lease has run out, returns the group's id. LS023: it has
-- members, LS024: there is no such group.
create or replace function idle_group("group" text, kind text default null) returns int4
language plpgsql volatile set search_path from current as $$
declare
    id int4 := (group_of(idle_group."group", idle_group.kind)).group_id;
    members int4;
begin
    perform from log_group g where g.group_id = id for no key update;
    if not found then
        perform group_of(idle_group."group", idle_group.kind);
    end if;
    perform expire_members(id);
    select count(*) into members from group_member m where m.group_id = id;
    if members > 0 then
        perform raise_error('LS023', format('group %s has %s %s', to_json(idle_group."group"), members, case
            when members = 1 then 'member' else 'members' end),
            jsonb_build_object('group', idle_group."group", 'members', members),
                'Stop its members first; one that was killed is gone when its session timeout has passed.');
    end if;
    return id;
end
$$;

-- Takes the group's row lock (the group is made if need be), reads the partitions' ends, writes offsets: what
-- is out of range is moved to the nearest offset there is. Returns the offsets as they are now. LS001, LS012,
-- LS023: the group has members.
create or replace function reset_offsets("group" text, topic_ids int4[], partitions int4[],
    offsets int8[]) returns int8[]
language plpgsql volatile security definer set search_path from current as $$
declare
    id int4;
    inside int8[];
begin
    perform ensure_group(reset_offsets."group", 'consumer');
    id := idle_group(reset_offsets."group", 'consumer');
    select array_agg(least(greatest(w.wanted, h.log_start), h.high_watermark) order by w.idx) into inside
    from unnest(topic_ids, partitions, offsets) with ordinality w (topic_id, partition, wanted, idx)
    left join high_watermarks(topic_ids, partitions) h on h.idx = w.idx;
    perform check_commit(topic_ids, partitions, inside, null);
    perform store_offsets(id, topic_ids, partitions, inside, null, null, null);
    return inside;
end
$$;

-- Takes the group's row lock, deletes all there is of it. Returns nothing. LS023: it has members, LS024.
create or replace function delete_group("group" text) returns void
language plpgsql volatile security definer set search_path from current as $$
declare
    id constant int4 := idle_group(delete_group."group");
begin
    perform forget_group(id);
end
$$;

-- Under the group's row lock, which the caller holds: deletes all there is of a group without members.
create or replace function forget_group("group" int4) returns void
language sql volatile set search_path from current
begin atomic
    delete from group_offset o where o.group_id = forget_group."group";
    delete from group_claim c where c.group_id = forget_group."group";
    -- First: it waits for those who acquire.
    delete from share_partition s where s.group_id = forget_group."group";
    delete from share_window w where w.group_id = forget_group."group";
    delete from share_flight f where f.group_id = forget_group."group";
    delete from share_delay d where d.group_id = forget_group."group";
    delete from share_group s where s.group_id = forget_group."group";
    delete from log_group g where g.group_id = forget_group."group";
end;

-- Takes the group's row lock, deletes committed offsets. Returns how many there were. LS023: members of the
-- group subscribe to one of the topics, LS024.
create or replace function delete_group_offsets("group" text, topic_ids int4[],
    partitions int4[]) returns int4
language plpgsql volatile security definer set search_path from current as $$
declare
    id constant int4 := (group_of(delete_group_offsets."group")).group_id;
    deleted int4;
begin
    perform from log_group g where g.group_id = id for no key update;
    perform expire_members(id);
    if exists (select from group_member m
        join topic t on t.name = any (m.topics) or t.name ~ anchored_pattern(m.pattern)
               where m.group_id = id and t.topic_id = any (delete_group_offsets.topic_ids)) then
        perform raise_error('LS023', format('members of group %s subscribe to one of the topics',
            to_json(delete_group_offsets."group")),
            jsonb_build_object('group', delete_group_offsets."group"), null);
    end if;
    delete from group_offset o using unnest(topic_ids, partitions) w (topic_id, partition)
    where o.group_id = id and o.topic_id = w.topic_id and o.partition = w.partition;
    get diagnostics deleted = row_count;
    return deleted;
end
$$;

-- Takes the group's row lock, deletes the member with this member_id or instance_id and frees what it owns.
-- Returns nothing. LS020: there is none, LS024.
create or replace function remove_member("group" text, member text) returns void
language plpgsql volatile security definer set search_path from current as $$
declare
    id constant int4 := (group_of(remove_member."group")).group_id;
begin
    perform from log_group g where g.group_id = id for no key update;
    if remove_members(id, (select array_agg(m.member_no) from group_member m
                           where m.group_id = id and (m.member_id = remove_member.member
                               or m.instance_id = remove_member.member))) = 0 then
        perform raise_error('LS020', format('group %s has no member %s', to_json(remove_member."group"),
            to_json(left(remove_member.member, 255))),
            jsonb_build_object('group', remove_member."group", 'member_id', remove_member.member), null);
    end if;
end
$$;
