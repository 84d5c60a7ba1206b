-- Acknowledging records.

-- Reads and writes the row of share_flight that begins before the offset and reaches over it, if there is
-- one, which the caller has locked: it becomes two. Returns nothing.
create or replace function share_split(group_id int4, topic_id int4, "partition" int4,
    "offset" int8) returns void
language sql volatile set search_path from current
begin atomic
    with whole as (
        select f.* from share_flight f
        where (f.group_id, f.topic_id, f.partition) = (share_split.group_id, share_split.topic_id,
            share_split.partition)
        and f.first_offset < share_split."offset" order by f.first_offset desc limit 1
    ), rest as (
        insert into share_flight (group_id, topic_id, partition, first_offset, last_offset, due_at, key_hash,
            delivery_count, member)
        select w.group_id, w.topic_id, w.partition, share_split."offset", w.last_offset, w.due_at, w.key_hash,
            w.delivery_count, w.member
        from whole w where w.last_offset >= share_split."offset"
    )
    update share_flight f set last_offset = share_split."offset" - 1
    from whole w
    where (f.group_id, f.topic_id, f.partition) = (w.group_id, w.topic_id, w.partition)
        and f.first_offset = w.first_offset
    and w.last_offset >= share_split."offset";
end;

-- Locks the rows that hold the records, as long as they are member's: only another acknowledgement by the
-- same member can be in the way, and is waited for. For dead letters it then takes partitions of the
-- dead-letter topic in ascending order. Works under the group's advisory lock, shared. Reads and writes
-- the records' state. Each range of offsets, both ends included, is to be member's, with locks that have
-- not run out. types: 1 accept, 2 release, 3 reject, 4 renew (the lock lasts from now on), 5 return:
-- release as if it had never been delivered. delays_ms: for release, overrides share.retry.backoff.ms.
-- reasons: for dead letters. A release at the delivery limit is a dead letter. With strict, all or
-- nothing: LS027 names the first record that is not member's. Else what can be done is done, and what was
-- refused is returned: idx is the position of the range. LS004: renewing is switched off, LS012:
-- arguments, LS024: no such share group.
create or replace function acknowledge("group" text, member text, topic_ids int4[], partitions int4[],
    first_offsets int8[], last_offsets int8[], types int2[],
                                       delays_ms int8[] default null, reasons text[] default null,
                                           strict boolean default true)
returns table (idx int4, first_offset int8, last_offset int8)
language plpgsql volatile security definer set search_path from current
set enable_seqscan = off set enable_bitmapscan = off as $$
#variable_conflict use_column
declare
    g share_group := existing_share_group("group");
    moment constant timestamptz := clock_timestamp();
    ack record;
    held int8multirange;
    refused int8multirange;
    part int8range;
    one record;
    settled int8[];
    dead share_flight[] := '{}';
    why text[] := '{}';
begin
    if not (cardinality(topic_ids) = cardinality(partitions)
        and cardinality(topic_ids) = cardinality(first_offsets)
            and cardinality(topic_ids) = cardinality(last_offsets)
                and cardinality(topic_ids) = cardinality(types)
            and cardinality(topic_ids) = coalesce(cardinality(delays_ms), cardinality(topic_ids))
            and cardinality(topic_ids) = coalesce(cardinality(reasons), cardinality(topic_ids))
            and 1 <= all (types) and 5 >= all (types)) then
        perform raise_error('LS012', 'acknowledge needs parallel arrays, and types from 1 to 5', null, null);
    end if;
    perform pg_advisory_xact_lock_shared(lock_class('share'), g.group_id);
    g := existing_share_group("group");
    if 4 = any (types) and not g.renew_enabled then
        perform raise_error('LS004', format('share.renew.acknowledge.enable is false in group %s',
            to_json("group")), jsonb_build_object('group', "group"), null);
    end if;

    -- Nearly all acknowledgements accept just what was acquired: one statement for all of these.
    with held as materialized (
        select u.n, u.lo, u.hi, f.id, f.first_offset, f.last_offset
        from unnest(topic_ids, partitions, first_offsets, last_offsets, types) with ordinality u (topic_id,
            partition, lo, hi, type, n)
        cross join lateral (
            select f.ctid as id, f.first_offset, f.last_offset from share_flight f
            where (f.group_id, f.topic_id, f.partition) = (g.group_id, u.topic_id, u.partition)
                and f.first_offset >= u.lo and f.first_offset <= u.hi
            and f.last_offset <= u.hi and f.member = acknowledge.member and f.due_at > moment
            order by f.first_offset for update skip locked) f
        where u.type = 1
    ), whole as (
        select h.n, array_agg(h.id) as ids from held h group by h.n, h.lo,
            h.hi having sum(h.last_offset - h.first_offset + 1) = h.hi - h.lo + 1
    ), gone as (
        delete from share_flight f where f.ctid = any (array(select unnest(w.ids) from whole w))
    )
    select array_agg(w.n) into settled from whole w;

    for ack in
        select u.n::int4 as idx, u.topic_id, u.partition, u.lo, u.hi, u.type, case when u.delay_ms is not null
            then greatest(u.delay_ms, 0) end as delay_ms, u.reason
        from unnest(topic_ids, partitions, first_offsets, last_offsets, types, delays_ms, reasons)
             with ordinality u (topic_id, partition, lo, hi, type, delay_ms, reason, n)
        where settled is null or u.n <> all (settled)
        order by u.topic_id, u.partition, u.lo, u.n
    loop
        -- Again if need be: an acknowledgement that we had to wait for may have split the row that we saw.
        for attempt in 1 .. 2 loop
            select range_agg(int8range(h.first_offset, h.last_offset,
                '[]')) * int8multirange(int8range(ack.lo, ack.hi, '[]')) into held
            from (select f.first_offset, f.last_offset from share_flight f
                  where (f.group_id, f.topic_id, f.partition) = (g.group_id, ack.topic_id, ack.partition)
                  and f.first_offset <= ack.hi
                  and f.first_offset >= coalesce((select b.first_offset from share_flight b
                      where (b.group_id, b.topic_id, b.partition) = (g.group_id, ack.topic_id, ack.partition)
                          and b.first_offset <= ack.lo
                      order by b.first_offset desc limit 1), ack.lo)
                  and f.member = acknowledge.member and f.due_at > moment
                  order by f.first_offset for update) h
            where h.last_offset >= ack.lo;
            held := coalesce(held, '{}');
            exit when held @> int8range(ack.lo, ack.hi, '[]');
        end loop;
        refused := int8multirange(int8range(ack.lo, ack.hi, '[]')) - held;
        if not isempty(refused) then
            if strict then
                perform share_refuse(g, "group", member, ack.topic_id, ack.partition, lower(refused));
            end if;
            for part in select unnest(refused) loop
                return query values (ack.idx, lower(part), upper(part) - 1);
            end loop;
        end if;
        for part in select unnest(held) loop
            perform share_split(g.group_id, ack.topic_id, ack.partition, lower(part));
            perform share_split(g.group_id, ack.topic_id, ack.partition, upper(part));
            if ack.type in (2, 3) then
                -- At its last delivery a record is not released but given up.
                for one in
                    delete from share_flight f
                    where (f.group_id, f.topic_id, f.partition) = (g.group_id, ack.topic_id, ack.partition)
                    and f.first_offset >= lower(part) and f.first_offset < upper(part)
                    and (ack.type = 3 or f.delivery_count >= g.delivery_limit)
                    returning f.*
                loop
                    dead := dead || row(one.group_id, one.topic_id, one.partition, one.first_offset,
                        one.last_offset, moment, one.key_hash, one.delivery_count, null)::share_flight;
                    why := why || coalesce(ack.reason, case ack.type when 3 then 'Rejected.'
                                                       else format('Released at delivery %s of %s.',
                                                           one.delivery_count, g.delivery_limit) end);
                end loop;
            end if;
            case ack.type
                when 1 then
                    delete from share_flight f
                    where (f.group_id, f.topic_id, f.partition) = (g.group_id, ack.topic_id, ack.partition)
                    and f.first_offset >= lower(part) and f.first_offset < upper(part);
                when 2 then
                    if coalesce(ack.delay_ms, g.retry_backoff_ms) = 0 then
                        update share_flight f set member = null, due_at = moment
                        where (f.group_id, f.topic_id, f.partition) = (g.group_id, ack.topic_id,
                            ack.partition)
                        and f.first_offset >= lower(part) and f.first_offset < upper(part);
                    else
                        with released as (
                            delete from share_flight f
                            where (f.group_id, f.topic_id, f.partition) = (g.group_id, ack.topic_id,
                                ack.partition)
                            and f.first_offset >= lower(part) and f.first_offset < upper(part)
                            returning f.*)
                        insert into share_delay (group_id, topic_id, partition, first_offset, last_offset,
                            due_at, key_hash, delivery_count)
                        select r.group_id, r.topic_id, r.partition, r.first_offset, r.last_offset,
                               moment + interval '1 millisecond' * coalesce(ack.delay_ms,
                                   least(g.retry_backoff_ms::float8 * 2 ^ least(r.delivery_count - 1, 60),
                                       greatest(g.retry_backoff_ms, g.retry_backoff_max_ms))),
                               r.key_hash, r.delivery_count
                        from released r;
                    end if;
                when 3 then
                    null;
                when 4 then
                    update share_flight f set due_at = moment + g.record_lock_ms * interval '1 millisecond'
                    where (f.group_id, f.topic_id, f.partition) = (g.group_id, ack.topic_id, ack.partition)
                    and f.first_offset >= lower(part) and f.first_offset < upper(part);
                when 5 then
                    update share_flight f set member = null, due_at = moment,
                        delivery_count = f.delivery_count - 1
                    where (f.group_id, f.topic_id, f.partition) = (g.group_id, ack.topic_id, ack.partition)
                    and f.first_offset >= lower(part) and f.first_offset < upper(part);
            end case;
        end loop;
    end loop;
    if dead <> '{}' then
        perform dead_letter(g, dead, why);
    end if;
end
$$;

-- Takes no lock, reads what there is to know about a record that is not member's, writes nothing, never
-- returns: raises LS027.
create or replace function share_refuse(g share_group, "group" text, member text, topic_id int4,
    "partition" int4, "offset" int8) returns void
language plpgsql volatile set search_path from current as $$
declare
    held share_flight;
    topic constant text := (select t.name from topic t where t.topic_id = share_refuse.topic_id);
    reason text;
begin
    select f.* into held from share_flight f
    where (f.group_id, f.topic_id, f.partition) = (g.group_id, share_refuse.topic_id, share_refuse.partition)
    and f.first_offset <= share_refuse."offset" and f.last_offset >= share_refuse."offset";
    reason := case
        when topic is null then 'the topic does not exist any more'
        when not found then 'it is finished, or was never acquired'
        when held.member = share_refuse.member and held.due_at <= clock_timestamp() then 'its lock ran out'
        when held.member = share_refuse.member then 'it was acknowledged at the same time'
        when held.member is null then 'it is available again'
        else 'another member has it' end;
    perform raise_error('LS027',
        format('record %s of partition %s of topic %s is not acquired by this member: %s',
            "offset", "partition", to_json(topic), reason),
        jsonb_build_object('group', "group", 'member', member, 'topic', topic, 'partition', "partition",
            'offset', "offset", 'reason', reason),
        'Acknowledge a record once, before its lock runs out; renew the lock, or raise '
        'share.record.lock.duration.ms, if that takes long.');
end
$$;

-- Takes no lock, reads what member has acquired, writes nothing, returns it: for a client that does not
-- know whether its acquire() was carried out.
create or replace function acquired("group" text, member text)
returns table (topic_id int4, "partition" int4, first_offset int8, last_offset int8, delivery_count int4,
    lock_ms int4)
language plpgsql stable security definer set search_path from current as $$
#variable_conflict use_column
declare
    g constant share_group := existing_share_group("group");
begin
    return query
        select f.topic_id, f.partition, f.first_offset, f.last_offset, f.delivery_count,
               ceil(extract(epoch from f.due_at - clock_timestamp()) * 1000)::int4
        from share_flight f
        where f.group_id = g.group_id and f.member = acquired.member and f.due_at > clock_timestamp()
        order by f.topic_id, f.partition, f.first_offset;
end
$$;
