-- Acquiring records. Locks, and the order in which they are taken: rows of share_flight and share_delay only as far as nobody else has them (SKIP LOCKED, never
-- a wait); share_partition rows the same way, except that an acquirer that has locked nothing at all may wait for one; then partitions of the dead-letter topic, by
-- append(), in ascending order. append() takes none of the first three, so nobody can wait in a circle.

-- Takes the keys of new partitions for a moment; reads the catalog, writes a row and a window for each partition that is new to the group, returns whether there
-- were any. A partition of a topic that the group has consumed already begins at its start; else share.auto.offset.reset decides.
create or replace function share_begin(g share_group, topic_ids int4[]) returns boolean
language plpgsql volatile set search_path from current as $$
declare
    fresh record;
    known int4[];
    log_start int8;
    end_offset int8;
    first_wanted int8;
begin
    if not exists (select from topic_partition p where p.topic_id = any (topic_ids)
                   and not exists (select from share_partition s where s.group_id = g.group_id and s.topic_id = p.topic_id and s.partition = p.partition)) then
        return false;
    end if;
    known := array(select distinct s.topic_id from share_partition s where s.group_id = g.group_id);
    for fresh in
        select p.topic_id, p.partition from topic_partition p where p.topic_id = any (topic_ids)
        and not exists (select from share_partition s where s.group_id = g.group_id and s.topic_id = p.topic_id and s.partition = p.partition)
        order by p.topic_id, p.partition
    loop
        insert into share_partition (group_id, topic_id, partition) values (g.group_id, fresh.topic_id, fresh.partition) on conflict do nothing;
        continue when not found;
        select h.log_start, h.high_watermark into log_start, end_offset
        from high_watermarks(array[fresh.topic_id], array[fresh.partition]) h;
        first_wanted := case
            when fresh.topic_id = any (known) or g.auto_offset_reset = 'earliest' then log_start
            when g.auto_offset_reset = 'latest' then end_offset
            else (select coalesce(o."offset", end_offset)
                  from list_offsets(array[fresh.topic_id], array[fresh.partition],
                                    array[greatest(0, floor(extract(epoch from clock_timestamp() - substr(g.auto_offset_reset, 13)::interval) * 1000))::int8]) o)
        end;
        insert into share_window (group_id, topic_id, partition, end_offset, start_offset)
        values (g.group_id, fresh.topic_id, fresh.partition, coalesce(first_wanted, 0), coalesce(first_wanted, 0));
    end loop;
    return true;
end
$$;

-- Takes no lock, reads the window of a partition, writes nothing, returns it: its live version is the last one in the index.
create or replace function share_window_of(group_id int4, topic_id int4, "partition" int4) returns share_window
language sql stable set search_path from current
begin atomic
    select w from share_window w
    where w.group_id = share_window_of.group_id and w.topic_id = share_window_of.topic_id and w.partition = share_window_of.partition
    order by w.end_offset desc limit 1;
end;

-- Locks, without waiting, ranges of a partition that are available or whose lock has run out; reads them in order and gives them to member until there are budget
-- records; returns these (spent false), and the ranges that have been delivered too often (spent true), whose rows it deletes. Ranges below the log's start are
-- deleted. In a group that keeps the order of keys only the first live record of each key is considered.
create or replace function share_take(g share_group, topic_id int4, "partition" int4, member text, at timestamptz, log_start int8, budget int4)
returns table (first_offset int8, last_offset int8, delivery_count int4, spent boolean, expired boolean)
language plpgsql volatile set search_path from current as $$
#variable_conflict use_column
declare
    ready refcursor;
    one share_flight;
    firsts int8[] := '{}';
    lasts int8[] := '{}';
    gone int8[] := '{}';
    cut int8;
begin
    -- One statement, so one snapshot: where the window begins, what is in it, what is delayed. Whoever moves a record between these does it in one commit.
    if coalesce(g.key_ordered, false) then
        open ready for
            with live as materialized (
                select f.first_offset, f.key_hash from share_flight f
                where f.group_id = g.group_id and f.topic_id = share_take.topic_id and f.partition = share_take.partition
                and f.first_offset >= (share_window_of(g.group_id, share_take.topic_id, share_take.partition)).start_offset),
            heads as materialized (select l.key_hash, min(l.first_offset) as first_offset from live l where l.key_hash is not null group by l.key_hash)
            select f.* from share_flight f
            where f.group_id = g.group_id and f.topic_id = share_take.topic_id and f.partition = share_take.partition
            and f.first_offset >= (select min(l.first_offset) from live l)
            and (f.member is null or f.due_at <= share_take.at)
            and (f.key_hash is null or f.first_offset in (select h.first_offset from heads h))
            and not exists (select from share_delay d where d.group_id = g.group_id and d.topic_id = share_take.topic_id and d.partition = share_take.partition
                            and d.key_hash = f.key_hash and d.first_offset < f.first_offset)
            order by f.first_offset for update of f skip locked;
    else
        open ready for
            select f.* from share_flight f
            where f.group_id = g.group_id and f.topic_id = share_take.topic_id and f.partition = share_take.partition
            and f.first_offset >= (share_window_of(g.group_id, share_take.topic_id, share_take.partition)).start_offset
            and (f.member is null or f.due_at <= share_take.at)
            order by f.first_offset for update skip locked;
    end if;
    while budget > 0 loop
        fetch ready into one;
        exit when not found;
        if one.last_offset < log_start then
            gone := gone || one.first_offset;
            continue;
        elsif one.first_offset < log_start then
            update share_flight f set first_offset = share_take.log_start
            where f.group_id = g.group_id and f.topic_id = share_take.topic_id and f.partition = share_take.partition and f.first_offset = one.first_offset;
            one.first_offset := log_start;
        end if;
        first_offset := one.first_offset;
        delivery_count := one.delivery_count;
        expired := one.member is not null;
        spent := one.delivery_count >= g.delivery_limit;
        if spent then
            gone := gone || one.first_offset;
            last_offset := one.last_offset;
        else
            last_offset := least(one.last_offset, one.first_offset + budget - 1);
            budget := budget - (last_offset - first_offset + 1);
            delivery_count := delivery_count + 1;
            firsts := firsts || first_offset;
            lasts := lasts || last_offset;
            cut := case when last_offset < one.last_offset then one.last_offset end;
        end if;
        return next;
    end loop;
    close ready;
    if gone <> '{}' then
        delete from share_flight f
        where f.group_id = g.group_id and f.topic_id = share_take.topic_id and f.partition = share_take.partition and f.first_offset = any (gone);
    end if;
    if cut is not null then
        insert into share_flight (group_id, topic_id, partition, first_offset, last_offset, due_at, key_hash, delivery_count, member)
        select f.group_id, f.topic_id, f.partition, lasts[cardinality(lasts)] + 1, cut, f.due_at, f.key_hash, f.delivery_count, null
        from share_flight f
        where f.group_id = g.group_id and f.topic_id = share_take.topic_id and f.partition = share_take.partition and f.first_offset = firsts[cardinality(firsts)];
    end if;
    if firsts <> '{}' then
        update share_flight f
        set member = share_take.member, delivery_count = f.delivery_count + 1, last_offset = t.last_offset,
            due_at = share_take.at + g.record_lock_ms * interval '1 millisecond'
        from unnest(firsts, lasts) t (first_offset, last_offset)
        where f.group_id = g.group_id and f.topic_id = share_take.topic_id and f.partition = share_take.partition and f.first_offset = t.first_offset;
    end if;
end
$$;

-- Takes the partition's share lock: waits for it or not, as asked; reads and writes nothing else, returns whether it has it. It keeps the window still.
create or replace function share_lock(g share_group, topic_id int4, "partition" int4, wait boolean) returns boolean
language plpgsql volatile set search_path from current as $$
begin
    if wait then
        perform from share_partition s
        where s.group_id = g.group_id and s.topic_id = share_lock.topic_id and s.partition = share_lock.partition for no key update;
    else
        perform from share_partition s
        where s.group_id = g.group_id and s.topic_id = share_lock.topic_id and s.partition = share_lock.partition for no key update skip locked;
    end if;
    return found;
end
$$;

-- Needs the partition's share lock; reads the delayed ranges that are due at that time, moves them to share_flight as available and the window's start_offset
-- below them, returns nothing. As many as there is room for.
create or replace function share_resume(g share_group, topic_id int4, "partition" int4, at timestamptz, log_start int8) returns void
language plpgsql volatile set search_path from current as $$
#variable_conflict use_column
declare
    tip constant share_window := share_window_of(g.group_id, topic_id, "partition");
    room constant int8 := g.max_record_locks - (select coalesce(sum(f.last_offset - f.first_offset + 1), 0) from share_flight f
        where f.group_id = g.group_id and f.topic_id = share_resume.topic_id and f.partition = share_resume.partition and f.first_offset >= tip.start_offset);
    lowest int8;
begin
    with due as (
        select d.first_offset from share_delay d
        where d.group_id = g.group_id and d.topic_id = share_resume.topic_id and d.partition = share_resume.partition and d.due_at <= share_resume.at
        order by d.due_at, d.first_offset limit greatest(room, 0)
    ), taken as (
        delete from share_delay d using due
        where d.group_id = g.group_id and d.topic_id = share_resume.topic_id and d.partition = share_resume.partition and d.first_offset = due.first_offset
        returning d.*
    ), put as (
        insert into share_flight (group_id, topic_id, partition, first_offset, last_offset, due_at, key_hash, delivery_count, member)
        select t.group_id, t.topic_id, t.partition, t.first_offset, t.last_offset, t.due_at, t.key_hash, t.delivery_count, null
        from taken t where t.last_offset >= share_resume.log_start
        returning first_offset
    )
    select min(p.first_offset) into lowest from put p;
    if lowest < tip.start_offset then
        update share_window w set start_offset = lowest
        where w.group_id = g.group_id and w.topic_id = share_resume.topic_id and w.partition = share_resume.partition and w.end_offset = tip.end_offset;
    end if;
end
$$;

-- Takes no lock, reads and writes nothing, returns when a record may be delivered first: its header logstore.deliver-after holds milliseconds since the epoch or,
-- with a plus sign, after the record's own time stamp. Null: no such header, or not a number.
create or replace function deliver_after(header bytea, "timestamp" int8) returns timestamptz
language sql immutable set search_path from current
return case when encode(header, 'escape') ~ '\A\+?\d{1,15}\Z'
            then to_timestamp((substr(encode(header, 'escape'), case get_byte(header, 0) when 43 then 2 else 1 end)::int8
                               + case get_byte(header, 0) when 43 then "timestamp" else 0 end) / 1000.0) end;
