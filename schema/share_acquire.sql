-- Acquiring records. Locks, and the order in which they are taken: rows of share_flight and share_delay only
-- as far as nobody else has them (SKIP LOCKED, never a wait); share_partition rows the same way, except that
-- an acquirer that has locked nothing at all may wait for one; then partitions of the dead-letter topic, by
-- append(), in ascending order. append() takes none of the first three, so nobody can wait in a circle.

-- Locks, without waiting, ranges of a partition that are available or whose lock has run out; reads them in
-- order and gives them to member until there are budget records; returns these (spent false), and the ranges
-- that have been delivered too often (spent true), whose rows it deletes. Ranges below the log's start are
-- deleted. In a group that keeps the order of keys only the first live record of each key is considered.
create or replace function share_take(g share_group, topic_id int4, "partition" int4, member text,
    at timestamptz, log_start int8, budget int4)
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
    loop
        -- One statement, so one snapshot: where the window begins, what is in it, what is delayed. Whoever
        -- moves a record between these does it in one commit.
        if coalesce(g.key_ordered, false) then
            open ready for
                with live as materialized (
                    select f.first_offset, f.key_hash from share_flight f
                    where (f.group_id, f.topic_id, f.partition) = (g.group_id, share_take.topic_id,
                        share_take.partition)
                    and f.first_offset >= (share_window_of(g.group_id, share_take.topic_id,
                        share_take.partition)).start_offset),
                heads as materialized (select l.key_hash, min(l.first_offset) as first_offset from live l
                    where l.key_hash is not null group by l.key_hash)
                select f.* from share_flight f
                where (f.group_id, f.topic_id, f.partition) = (g.group_id, share_take.topic_id,
                    share_take.partition)
                and f.first_offset >= (select min(l.first_offset) from live l)
                and (f.member is null or f.due_at <= share_take.at)
                and (f.key_hash is null or f.first_offset in (select h.first_offset from heads h))
                and not exists (select from share_delay d where (d.group_id, d.topic_id,
                    d.partition) = (g.group_id, share_take.topic_id, share_take.partition)
                                and d.key_hash = f.key_hash and d.first_offset < f.first_offset)
                order by f.first_offset for update of f skip locked;
        else
            open ready for
                select f.* from share_flight f
                where (f.group_id, f.topic_id, f.partition) = (g.group_id, share_take.topic_id,
                    share_take.partition)
                and f.first_offset >= (share_window_of(g.group_id, share_take.topic_id,
                    share_take.partition)).start_offset
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
                where (f.group_id, f.topic_id, f.partition) = (g.group_id, share_take.topic_id,
                    share_take.partition) and f.first_offset = one.first_offset;
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
            where (f.group_id, f.topic_id, f.partition) = (g.group_id, share_take.topic_id,
                share_take.partition) and f.first_offset = any (gone);
        end if;
        if cut is not null then
            insert into share_flight (group_id, topic_id, partition, first_offset, last_offset, due_at,
                key_hash, delivery_count, member)
            select f.group_id, f.topic_id, f.partition, lasts[cardinality(lasts)] + 1, cut, f.due_at,
                f.key_hash, f.delivery_count, null
            from share_flight f
            where (f.group_id, f.topic_id, f.partition) = (g.group_id, share_take.topic_id,
                share_take.partition) and f.first_offset = firsts[cardinality(firsts)];
        end if;
        if firsts <> '{}' then
            update share_flight f
            set member = share_take.member, delivery_count = f.delivery_count + 1,
                last_offset = t.last_offset,
                due_at = share_take.at + g.record_lock_ms * interval '1 millisecond'
            from unnest(firsts, lasts) t (first_offset, last_offset)
            where (f.group_id, f.topic_id, f.partition) = (g.group_id, share_take.topic_id,
                share_take.partition) and f.first_offset = t.first_offset;
        end if;
        -- Behind a record that is gone another one of its key may be ready.
        exit when budget <= 0 or gone = '{}' or not coalesce(g.key_ordered, false);
        firsts := '{}';
        lasts := '{}';
        gone := '{}';
        cut := null;
    end loop;
end
$$;

-- Under the group's advisory lock, shared; reads the catalog and the group, makes the group, and its state
-- of these topics' partitions, where they are new; returns the topics' ids in the order of topics.
-- key_ordered: what members want share.key.ordered to be; null: as it is. The first to say so decides.
-- LS001 no such topic, LS012 arguments, LS023 records are in flight without the order of keys, LS028
-- another kind of group, or key_ordered does not fit.
create or replace function open_share_group("group" text, topics text[],
    key_ordered boolean default null) returns int4[]
language plpgsql volatile security definer set search_path from current as $$
declare
    g share_group;
    ids int4[] := '{}';
    name text;
begin
    if current_setting('transaction_isolation') <> 'read committed' then
        perform raise_error('LS012', 'a share group needs the isolation level READ COMMITTED', null,
            'Use a transaction of its own.');
    end if;
    if (cardinality(topics) >= 1) is not true then
        perform raise_error('LS012', 'at least one topic is needed', null, null);
    end if;
    foreach name in array topics loop
        ids := ids || topic_id_of(name);
    end loop;
    g := share_group_of("group");
    if open_share_group.key_ordered and g.key_ordered is null then
        perform alter_share_group("group", '{"share.key.ordered": "true"}');
    else
        perform pg_advisory_xact_lock_shared(lock_class('share'), g.group_id);
    end if;
    g := share_group_of("group");
    if open_share_group.key_ordered <> coalesce(g.key_ordered, false) then
        perform raise_error('LS028', format('share.key.ordered of group %s is %s', to_json("group"),
            coalesce(g.key_ordered, false)),
            jsonb_build_object('group', "group", 'share.key.ordered', coalesce(g.key_ordered, false)),
                'All members of a group have to want the same.');
    end if;
    if g.dead_letter_topic = any (topics) then
        perform raise_error('LS012', format('group %s cannot consume %s, its dead-letter topic',
            to_json("group"), g.dead_letter_topic),
            jsonb_build_object('group', "group", 'topic', g.dead_letter_topic),
                'Consume it with another group.');
    end if;
    perform share_begin(g, ids);
    return ids;
end
$$;

-- As open_share_group, then locks as the head of this file says; reads the group's state and the log;
-- gives member up to max_records records of these topics, those that were delivered before first, and
-- writes their state; returns them as ranges, idx being the topic's position in topics. lock_ms is how
-- long they are member's. With nothing to give: one row without offsets, whose wait_ms says when something
-- will be due (null: not known). Records that were delivered too often go to the dead-letter topic in the
-- same transaction. Raises as open_share_group.
create or replace function acquire("group" text, member text, topics text[], max_records int4 default 500,
    key_ordered boolean default null)
returns table (idx int4, topic_id int4, "partition" int4, first_offset int8, last_offset int8,
    delivery_count int4, lock_ms int4, wait_ms int8)
language plpgsql volatile security definer set search_path from current
set enable_seqscan = off set enable_bitmapscan = off as $$
#variable_conflict use_column
declare
    moment timestamptz := clock_timestamp();
    g share_group;
    ids int4[];
    candidate record;
    one record;
    budget int4 := max_records;
    locked boolean;
    holding boolean := false;
    busy record;
    dead share_flight[] := '{}';
    reasons text[] := '{}';
begin
    if (max_records between 1 and 100000 and octet_length(member) between 1 and 255) is not true then
        perform raise_error('LS012', 'acquire needs a member and 1 to 100000 records',
            jsonb_build_object('member', left(member, 260), 'max_records', max_records), null);
    end if;
    ids := open_share_group("group", topics, acquire.key_ordered);
    g := share_group_of("group");
    -- In a transaction of its own that has made nothing new, durability would be waste: records that were
    -- acquired are available again after a crash.
    if transaction_timestamp() = statement_timestamp() and pg_current_xact_id_if_assigned() is null then
        perform set_config('synchronous_commit', 'off', true);
    end if;

    for candidate in
        with parts as (
            select i.n::int4 as idx, p.topic_id, p.partition, row_number() over () as place
            from unnest(ids) with ordinality i (topic_id, n)
                join topic_partition p on p.topic_id = i.topic_id)
        select p.idx, p.topic_id, p.partition, h.log_start, h.high_watermark,
            w.end_offset < h.high_watermark as is_behind,
               exists (select from share_delay d where (d.group_id, d.topic_id, d.partition) = (g.group_id,
                   p.topic_id, p.partition)
                       and d.due_at <= moment) as is_due,
               exists (select from share_flight f where (f.group_id, f.topic_id, f.partition) = (g.group_id,
                   p.topic_id, p.partition)
                       and f.first_offset >= w.start_offset and (f.member is null
                           or f.due_at <= moment)) as is_ready
        from high_watermarks(array(select p.topic_id from parts p order by p.place),
            array(select p.partition from parts p order by p.place)) h
        join parts p on p.place = h.idx
        cross join lateral share_window_of(g.group_id, p.topic_id, p.partition) w
        order by random()
    loop
        exit when budget <= 0;
        continue when not (candidate.is_behind or candidate.is_due or candidate.is_ready);
        locked := false;
        if candidate.is_due then
            locked := share_lock(g, candidate.topic_id, candidate.partition, false);
            if locked then
                perform share_resume(g, candidate.topic_id, candidate.partition, moment, candidate.log_start);
            end if;
        end if;
        if locked or candidate.is_ready then
            for one in select * from share_take(g, candidate.topic_id, candidate.partition, member, moment,
                candidate.log_start, budget) loop
                holding := true;
                if one.spent then
                    dead := dead || row(g.group_id, candidate.topic_id, candidate.partition, one.first_offset,
                        one.last_offset, moment, null, one.delivery_count, null)::share_flight;
                    reasons := reasons || format(case when one.expired
                        then 'The lock ran out at delivery %s of %s.'
                        else 'Released at delivery %s of %s.' end,
                                                 one.delivery_count, g.delivery_limit);
                    continue;
                end if;
                budget := budget - (one.last_offset - one.first_offset + 1);
                return query values (candidate.idx, candidate.topic_id, candidate.partition, one.first_offset,
                    one.last_offset, one.delivery_count,
                                     g.record_lock_ms, null::int8);
            end loop;
        end if;
        if candidate.is_behind and budget > 0 then
            locked := locked or share_lock(g, candidate.topic_id, candidate.partition, false);
            if locked then
                for one in select * from share_extend(g, candidate.topic_id, candidate.partition, member,
                    moment, candidate.log_start, candidate.high_watermark, budget) loop
                    budget := budget - (one.last_offset - one.first_offset + 1);
                    return query values (candidate.idx, candidate.topic_id, candidate.partition,
                        one.first_offset, one.last_offset, 1, g.record_lock_ms, null::int8);
                end loop;
            else
                busy := candidate;
            end if;
        end if;
        holding := holding or locked;
    end loop;

    if not holding and busy is not null then
        -- Others were moving every window that could be moved: queue up for one of them, while nobody can
        -- be waiting for us.
        if share_lock(g, busy.topic_id, busy.partition, true) then
            moment := clock_timestamp();
            for one in
                select e.* from high_watermarks(array[busy.topic_id], array[busy.partition]) h,
                    share_extend(g, busy.topic_id, busy.partition, member, moment, h.log_start,
                        h.high_watermark, budget) e
                where h.log_start is not null
            loop
                budget := budget - (one.last_offset - one.first_offset + 1);
                return query values (busy.idx, busy.topic_id, busy.partition, one.first_offset,
                    one.last_offset, 1, g.record_lock_ms, null::int8);
            end loop;
        end if;
    end if;
    if dead <> '{}' then
        perform dead_letter(g, dead, reasons);
    end if;
    if budget = max_records then
        return query
            select null::int4, null::int4, null::int4, null::int8, null::int8, null::int4, g.record_lock_ms,
                   case when dead <> '{}' or busy is not null then 0
                       else ceil(extract(epoch from share_next_due(g.group_id,
                       ids) - clock_timestamp()) * 1000)::int8 end;
    end if;
end
$$;

-- Takes no lock, reads what is in flight and delayed in these topics, writes nothing, returns when the
-- first of it will be due; null: nothing is.
create or replace function share_next_due(group_id int4, topic_ids int4[]) returns timestamptz
language sql stable set search_path from current
begin atomic
    select min(n.due_at) from share_partition s
    cross join lateral (select w.start_offset from share_window_of(s.group_id, s.topic_id, s.partition) w) w
    cross join lateral (
        select min(f.due_at) as due_at from share_flight f
        where (f.group_id, f.topic_id, f.partition) = (s.group_id, s.topic_id, s.partition)
            and f.first_offset >= w.start_offset and f.member is not null
        union all
        (select d.due_at from share_delay d
         where (d.group_id, d.topic_id, d.partition) = (s.group_id, s.topic_id, s.partition) order by d.due_at
             limit 1)) n
    where s.group_id = share_next_due.group_id and s.topic_id = any (share_next_due.topic_ids);
end;
