-- Changing share groups from outside. All of this holds the group's advisory lock exclusively: it waits
-- for the acquirers and acknowledgers at work, and they for it.

-- Takes the group's advisory lock to the end of the transaction; reads what is in flight, writes nothing,
-- returns the group. LS023: a member has records with a lock that has not run out, LS024: there is no such
-- share group.
create or replace function idle_share_group("group" text) returns share_group
language plpgsql volatile set search_path from current as $$
declare
    g share_group := existing_share_group("group");
    holders text[];
begin
    perform pg_advisory_xact_lock(lock_class('share'), g.group_id);
    g := existing_share_group("group");
    holders := array(select distinct f.member from share_flight f where f.group_id = g.group_id
        and f.member is not null and f.due_at > clock_timestamp() order by 1);
    if holders <> '{}' then
        perform raise_error('LS023', format('members of group %s have records in flight', to_json("group")),
            jsonb_build_object('group', "group", 'members', to_jsonb(holders)),
                'Stop them and wait until their locks have run out.');
    end if;
    return g;
end
$$;

-- Takes the group's advisory lock; reads the partitions' ends, moves the windows of these partitions to
-- these offsets, or to the nearest ones there are, and forgets what was delayed or to be delivered again.
-- Returns the offsets as they are now. LS001: no such partition, LS012, LS023, LS024.
create or replace function reset_share_offsets("group" text, topic_ids int4[], partitions int4[],
    offsets int8[]) returns int8[]
language plpgsql volatile security definer set search_path from current as $$
declare
    g share_group;
    moved int8[];
    missing record;
begin
    perform share_group_of("group");
    g := idle_share_group("group");
    if not (cardinality(topic_ids) = cardinality(partitions) and cardinality(topic_ids) = cardinality(offsets)
        and array_position(offsets, null) is null) then
        perform raise_error('LS012', 'reset_share_offsets needs parallel arrays without nulls', null, null);
    end if;
    select w.topic_id, w.partition into missing from unnest(topic_ids, partitions) w (topic_id, partition)
    where not exists (select from topic_partition p where p.topic_id = w.topic_id
        and p.partition = w.partition) limit 1;
    if found then
        perform no_partition(missing.topic_id, missing.partition);
    end if;
    select array_agg(least(greatest(w.wanted, h.local_start), h.end_offset, readable_to(h.topic_id, h.partition)) order by w.idx) into moved
    from unnest(topic_ids, partitions, offsets) with ordinality w (topic_id, partition, wanted, idx)
    join partition_tips(topic_ids, partitions) h on h.idx = w.idx;
    perform share_forget(g.group_id, topic_ids, partitions);
    insert into share_partition (group_id, topic_id, partition)
    select g.group_id, w.topic_id, w.partition from unnest(topic_ids, partitions) w (topic_id, partition);
    insert into share_window (group_id, topic_id, partition, end_offset, start_offset)
    select g.group_id, w.topic_id, w.partition, w.at, w.at from unnest(topic_ids, partitions,
        moved) w (topic_id, partition, at);
    return moved;
end
$$;

-- Takes the group's advisory lock; deletes what the group knows of these partitions: it begins there again
-- as if they were new. Returns how many it knew. LS023, LS024.
create or replace function delete_share_offsets("group" text, topic_ids int4[],
    partitions int4[]) returns int4
language plpgsql volatile security definer set search_path from current as $$
declare
    g constant share_group := idle_share_group("group");
begin
    return share_forget(g.group_id, topic_ids, partitions);
end
$$;

-- Takes the group's advisory lock; deletes all there is of the group, returns nothing. LS023, LS024.
create or replace function delete_share_group("group" text) returns void
language plpgsql volatile security definer set search_path from current as $$
declare
    g constant share_group := idle_share_group("group");
begin
    perform forget_group(g.group_id);
end
$$;

-- Needs the group's advisory lock; deletes the state of these partitions, returns how many had any.
create or replace function share_forget(group_id int4, topic_ids int4[], partitions int4[]) returns int4
language plpgsql volatile set search_path from current as $$
declare
    known int4;
begin
    delete from share_partition s using unnest(topic_ids, partitions) p (topic_id, partition)
    where (s.group_id, s.topic_id, s.partition) = (share_forget.group_id, p.topic_id, p.partition);
    get diagnostics known = row_count;
    delete from share_window w using unnest(topic_ids, partitions) p (topic_id, partition)
    where (w.group_id, w.topic_id, w.partition) = (share_forget.group_id, p.topic_id, p.partition);
    delete from share_flight f using unnest(topic_ids, partitions) p (topic_id, partition)
    where (f.group_id, f.topic_id, f.partition) = (share_forget.group_id, p.topic_id, p.partition);
    delete from share_delay d using unnest(topic_ids, partitions) p (topic_id, partition)
    where (d.group_id, d.topic_id, d.partition) = (share_forget.group_id, p.topic_id, p.partition);
    return known;
end
$$;
