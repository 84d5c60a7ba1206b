-- The window of a share group in a partition: what lies below it is finished, what lies above its end has not
-- been looked at, and the records in it are available, acquired or finished. Here it is made and moved.

-- Takes the keys of new partitions for a moment; reads the catalog, writes a row and a window for each
-- partition that is new to the group, returns whether there were any. A partition of a topic that the group
-- has consumed already begins at its start; else share.auto.offset.reset decides. Share groups read in PostgreSQL
-- only. LS006: they would have to begin with records that are in files only, and nobody has said that they may not.
create or replace function share_begin(g share_group, topic_ids int4[]) returns boolean
language plpgsql volatile set search_path from current as $$
declare
    fresh record;
    known int4[];
    log_start int8;
    local_start int8;
    end_offset int8;
    first_wanted int8;
begin
    if not exists (select from topic_partition p where p.topic_id = any (topic_ids)
                   and not exists (select from share_partition s
                       where (s.group_id, s.topic_id, s.partition) = (g.group_id, p.topic_id, p.partition)))
                       then
        return false;
    end if;
    -- What is left of topics that have been deleted since.
    delete from share_partition s where s.group_id = g.group_id
        and not exists (select from topic t where t.topic_id = s.topic_id);
    delete from share_window w where w.group_id = g.group_id
        and not exists (select from topic t where t.topic_id = w.topic_id);
    delete from share_flight f where f.group_id = g.group_id
        and not exists (select from topic t where t.topic_id = f.topic_id);
    delete from share_delay d where d.group_id = g.group_id and not exists (select from topic t
        where t.topic_id = d.topic_id);
    known := array(select distinct s.topic_id from share_partition s where s.group_id = g.group_id);
    for fresh in
        select p.topic_id, p.partition from topic_partition p where p.topic_id = any (topic_ids)
        and not exists (select from share_partition s where (s.group_id, s.topic_id,
            s.partition) = (g.group_id, p.topic_id, p.partition))
        order by p.topic_id, p.partition
    loop
        insert into share_partition (group_id, topic_id, partition)
            values (g.group_id, fresh.topic_id, fresh.partition) on conflict do nothing;
        continue when not found;
        select h.log_start, greatest(h.log_start, h.local_start),
               least(h.end_offset, readable_to(h.topic_id, h.partition))
        into log_start, local_start, end_offset
        from partition_tips(array[fresh.topic_id], array[fresh.partition]) h;
        first_wanted := case
            when g.auto_offset_reset = 'earliest_local' then local_start
            when fresh.topic_id = any (known) or g.auto_offset_reset = 'earliest' then log_start
            when g.auto_offset_reset = 'latest' then end_offset
            else (select coalesce(o."offset", end_offset)
                  from list_offsets(array[fresh.topic_id], array[fresh.partition],
                                    array[greatest(0, floor(extract(epoch
                                        from clock_timestamp() - substr(g.auto_offset_reset,
                                        13)::interval) * 1000))::int8]) o)
        end;
        if first_wanted < local_start then
            perform raise_error('LS006',
                format('the records of partition %s of topic %s from offset %s to before %s are in files only, '
                       'where share groups do not read', fresh.partition,
                       (select to_json(t.name) from topic t where t.topic_id = fresh.topic_id), first_wanted,
                       local_start),
                jsonb_build_object('topic', (select t.name from topic t where t.topic_id = fresh.topic_id),
                    'partition', fresh.partition, 'offset', first_wanted, 'local_start', local_start),
                'Bring them back with `logstore tier restore`, or leave them out: set the group''s '
                'share.auto.offset.reset to earliest_local or latest.');
        end if;
        insert into share_window (group_id, topic_id, partition, end_offset, start_offset)
        values (g.group_id, fresh.topic_id, fresh.partition, coalesce(first_wanted, 0), coalesce(first_wanted, 0));
    end loop;
    return true;
end
$$;

-- Takes no lock, reads the window of a partition, writes nothing, returns it: its live version is the last
-- one in the index, so there has to be no other plan than reading the index backwards.
create or replace function share_window_of(group_id int4, topic_id int4,
    "partition" int4) returns share_window
language sql stable set search_path from current
set enable_seqscan = off set enable_bitmapscan = off set enable_sort = off
begin atomic
    select w from share_window w
    where (w.group_id, w.topic_id, w.partition) = (share_window_of.group_id, share_window_of.topic_id,
        share_window_of.partition)
    order by w.end_offset desc limit 1;
end;

-- Takes the partition's share lock: waits for it or not, as asked; reads and writes nothing else, returns
-- whether it has it. It keeps the window still.
create or replace function share_lock(g share_group, topic_id int4, "partition" int4,
    wait boolean) returns boolean
language plpgsql volatile set search_path from current as $$
begin
    if wait then
        perform from share_partition s
        where (s.group_id, s.topic_id, s.partition) = (g.group_id, share_lock.topic_id, share_lock.partition)
            for no key update;
    else
        perform from share_partition s
        where (s.group_id, s.topic_id, s.partition) = (g.group_id, share_lock.topic_id, share_lock.partition)
            for no key update skip locked;
    end if;
    return found;
end
$$;

-- Needs the partition's share lock; reads the delayed ranges that are due at that time, moves them to
-- share_flight as available and the window's start_offset below them, returns nothing. As many as there is
-- room for.
create or replace function share_resume(g share_group, topic_id int4, "partition" int4, at timestamptz,
    log_start int8) returns void
language plpgsql volatile set search_path from current as $$
#variable_conflict use_column
declare
    tip constant share_window := share_window_of(g.group_id, topic_id, "partition");
    room constant int8 := g.max_record_locks - (select coalesce(sum(f.last_offset - f.first_offset + 1), 0)
        from share_flight f
        where (f.group_id, f.topic_id, f.partition) = (g.group_id, share_resume.topic_id,
            share_resume.partition) and f.first_offset >= tip.start_offset);
    lowest int8;
begin
    with due as (
        select d.first_offset, d.last_offset,
               room - sum(d.last_offset - d.first_offset + 1) over (order by d.due_at,
                   d.first_offset) + d.last_offset - d.first_offset + 1 as fit
        from (select * from share_delay d
              where (d.group_id, d.topic_id, d.partition) = (g.group_id, share_resume.topic_id,
                  share_resume.partition) and d.due_at <= share_resume.at
              order by d.due_at, d.first_offset limit greatest(room, 0)) d
    ), taken as (
        delete from share_delay d using due
        where (d.group_id, d.topic_id, d.partition) = (g.group_id, share_resume.topic_id,
            share_resume.partition) and d.first_offset = due.first_offset
        and due.fit > 0
        returning d.*, least(d.last_offset, d.first_offset + due.fit - 1) as upto
    ), put_back as (
        insert into share_delay (group_id, topic_id, partition, first_offset, last_offset, due_at, key_hash,
            delivery_count)
        select t.group_id, t.topic_id, t.partition, t.upto + 1, t.last_offset, t.due_at, t.key_hash,
            t.delivery_count from taken t where t.upto < t.last_offset
    ), put as (
        insert into share_flight (group_id, topic_id, partition, first_offset, last_offset, due_at, key_hash,
            delivery_count, member)
        select t.group_id, t.topic_id, t.partition, t.first_offset, t.upto, t.due_at, t.key_hash,
            t.delivery_count, null
        from taken t where t.upto >= share_resume.log_start
        returning first_offset
    )
    select min(p.first_offset) into lowest from put p;
    if lowest < tip.start_offset then
        update share_window w set start_offset = lowest
        where (w.group_id, w.topic_id, w.partition) = (g.group_id, share_resume.topic_id,
            share_resume.partition) and w.end_offset = tip.end_offset;
    end if;
end
$$;

-- Takes no lock, reads and writes nothing, returns when a record may be delivered first: its header
-- logstore.deliver-after holds milliseconds since the epoch or, with a plus sign, after the record's own time
-- stamp. Null: no such header, or not a number.
create or replace function deliver_after(header bytea, "timestamp" int8) returns timestamptz
language sql immutable set search_path from current
return case when encode(header, 'escape') ~ '\A\+?\d{1,15}\Z'
            then to_timestamp((substr(encode(header, 'escape'), case get_byte(header, 0) when 43 then 2
                else 1 end)::int8
                               + case get_byte(header, 0) when 43 then "timestamp" else 0 end) / 1000.0) end;

-- Needs the partition's share lock; reads the batches behind the window's end and moves the end over them:
-- up to budget records to member, and as many as that takes; never above the high watermark, never more in
-- flight than max_record_locks. Records with a delay go to share_delay. In a group that keeps the order of
-- keys each record has a row of its own, and those behind another one of their key become available, not
-- acquired. Returns what member has got.
create or replace function share_extend(g share_group, topic_id int4, "partition" int4, member text,
    at timestamptz, log_start int8, high_watermark int8, budget int4)
returns table (first_offset int8, last_offset int8)
language plpgsql volatile set search_path from current as $$
#variable_conflict use_column
declare
    tip constant share_window := share_window_of(g.group_id, topic_id, "partition");
    lock_until constant timestamptz := at + g.record_lock_ms * interval '1 millisecond';
    keyed constant boolean := coalesce(g.key_ordered, false);
    room int8 := g.max_record_locks - (select coalesce(sum(f.last_offset - f.first_offset + 1), 0)
        from share_flight f
        where (f.group_id, f.topic_id, f.partition) = (g.group_id, share_extend.topic_id,
            share_extend.partition) and f.first_offset >= tip.start_offset);
    lo int8 := greatest(tip.end_offset, log_start);
    hi int8;
    jump int8;
    batch batches;
    available int8multirange;
    delayed int8multirange;
    positions int4[];
    offsets int8[];
    hashes int8[];
    got int8;
begin
    while budget > 0 and room > 0 and lo < high_watermark loop
        hi := least(high_watermark, lo + least(room, case when keyed then greatest(budget, 100)
            else budget end));
        jump := high_watermark;
        available := '{}';
        offsets := '{}';
        hashes := '{}';
        for batch in select * from share_batches(topic_id, "partition", lo, hi) loop
            if batch.base_offset >= hi then
                jump := batch.base_offset;   -- compaction has left a hole here
                exit;
            end if;
            jump := hi;
            available := available + case when batch.offset_deltas is null
                then int8multirange(int8range(greatest(batch.base_offset, lo),
                    least(batch.last_offset + 1, hi)))
                else coalesce((select range_agg(int8range(batch.base_offset + d, batch.base_offset + d + 1))
                    from unnest(batch.offset_deltas) d
                               where batch.base_offset + d >= lo and batch.base_offset + d < hi), '{}') end;
            if keyed then
                positions := share_positions(batch.base_offset, batch.record_count, batch.offset_deltas,
                    int8multirange(int8range(lo, hi)));
                offsets := offsets || array(select batch.base_offset + coalesce(batch.offset_deltas[n], n - 1)
                    from unnest(positions) n);
                hashes := hashes || case when batch.keys is null
                    then array_fill(null::int8, array[cardinality(positions)])
                    else array(select case when k.key is not null
                        then hash_array_extended(array[k.key], 0) end
                               from unnest(batch.keys) with ordinality k (key, n) where k.n = any (positions)
                                   order by k.n) end;
            end if;
            if batch.header_records is not null and 'logstore.deliver-after' = any (batch.header_keys) then
                with asked as (
                    select distinct on (h.r) batch.base_offset + coalesce(batch.offset_deltas[h.r],
                        h.r - 1) as "offset",
                           deliver_after(h.v, coalesce(batch.timestamps[h.r], batch.max_timestamp)) as due_at
                    from unnest(batch.header_records, batch.header_keys,
                        batch.header_values) with ordinality h (r, k, v, n)
                    where h.k = 'logstore.deliver-after' order by h.r, h.n desc
                ), put as (
                    insert into share_delay (group_id, topic_id, partition, first_offset, last_offset, due_at,
                        key_hash, delivery_count)
                    select g.group_id, share_extend.topic_id, share_extend.partition, a."offset", a."offset",
                        a.due_at,
                           hashes[array_position(offsets, a."offset")], 0
                    from asked a where a."offset" >= lo and a."offset" < hi and a.due_at > share_extend.at
                    returning first_offset
                )
                select range_agg(int8range(p.first_offset, p.first_offset + 1)) into delayed from put p;
                available := available - coalesce(delayed, '{}');
            end if;
        end loop;
        if jump <> hi then
            lo := least(jump, high_watermark);
            continue;
        end if;

        got := 0;
        for first_offset, last_offset in
            with fresh as (
                select lower(r) as first_offset, upper(r) - 1 as last_offset, null::int8 as key_hash,
                    true as is_head
                from unnest(available) r where not keyed
                union all
                select o.first_offset, o.first_offset, o.key_hash,
                    o.key_hash is null
                    or (row_number() over (partition by o.key_hash order by o.first_offset) = 1
                        and o.key_hash not in (
                            select f.key_hash from share_flight f
                            where (f.group_id, f.topic_id, f.partition)
                                = (g.group_id, share_extend.topic_id, share_extend.partition)
                            and f.first_offset >= tip.start_offset and f.key_hash is not null)
                        and not exists (
                            select from share_delay d
                            where (d.group_id, d.topic_id, d.partition)
                                = (g.group_id, share_extend.topic_id, share_extend.partition)
                            and d.key_hash = o.key_hash and d.first_offset < o.first_offset))
                from unnest(offsets, hashes) o (first_offset, key_hash)
                where keyed and available @> o.first_offset
            ), ranked as (
                select n.*,
                    n.is_head
                    and sum(case when n.is_head then n.last_offset - n.first_offset + 1 end)
                        over (order by n.first_offset) <= budget as mine
                from fresh n
            ), put as (
                insert into share_flight (group_id, topic_id, partition, first_offset, last_offset, due_at,
                    key_hash, delivery_count, member)
                select g.group_id, share_extend.topic_id, share_extend.partition, n.first_offset,
                    n.last_offset,
                       case when n.mine then lock_until else share_extend.at end, n.key_hash, n.mine::int4,
                           case when n.mine then share_extend.member end
                from ranked n
                returning first_offset, last_offset, member
            )
            select p.first_offset, p.last_offset from put p where p.member is not null order by p.first_offset
        loop
            got := got + last_offset - first_offset + 1;
            return next;
        end loop;
        budget := budget - got;
        room := room - (select coalesce(sum(upper(r) - lower(r)), 0) from unnest(available) r);
        lo := hi;
    end loop;

    if lo > tip.end_offset then
        update share_window w
        set end_offset = lo,
            start_offset = least(lo, (select min(f.first_offset) from share_flight f
                where (f.group_id, f.topic_id, f.partition) = (g.group_id, share_extend.topic_id,
                    share_extend.partition) and f.first_offset >= tip.start_offset))
        where (w.group_id, w.topic_id, w.partition) = (g.group_id, share_extend.topic_id,
            share_extend.partition) and w.end_offset = tip.end_offset;
    end if;
end
$$;
