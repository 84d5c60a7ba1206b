-- Quotas: how many bytes a second of records an entity may produce and fetch.
--
-- An entity has one bucket for each kind of quota, however many connections it has. A bucket is an
-- unlogged sequence whose value says until when its rate is used up, in ns since the epoch. A sequence is
-- changed in place and outside of transactions: it leaves no dead row behind, it is not written to the
-- write-ahead log, and nobody holds it until a commit. Its name is made of the quota, so a quota that is
-- changed begins anew.

-- Takes no lock, reads a sequence, writes nothing, returns whether a quota has ever been set; to be
-- inlined.
create or replace function quotas_on() returns boolean
language sql stable
return pg_catalog.pg_sequence_last_value('quota_switch'::regclass) is not null;

-- Takes no lock, reads the roles, writes nothing, returns whether this session is one of the worker's: it
-- says so by its application_name, and may lift quotas anyway. For functions that run with the owner's
-- rights.
create or replace function is_job() returns boolean
language sql stable set search_path from current
return pg_catalog.current_setting('application_name') ~ '^logstore [a-z ]+$'
    and pg_catalog.pg_has_role(session_user, current_user, 'member');

-- Takes no lock, reads and writes nothing, returns the name of a bucket; to be inlined.
create or replace function quota_bucket(kind text, role text, client_id text, rate int8) returns text
language sql immutable
return 'quota_' || pg_catalog.left(
    pg_catalog.md5(pg_catalog.jsonb_build_array(kind, role, client_id, rate)::text), 24);

-- Takes no lock; reads the quotas; writes nothing; returns the most specific one of a kind ('produce' or
-- 'fetch') that applies to this session, by its role and its application_name, and the name of its
-- bucket; no row: none does. role and client_id are those that share the bucket, '' if it is shared by
-- all of them. To be inlined.
create or replace function quota_of(kind text)
returns table (role text, client_id text, rate int8, bucket text)
language sql stable
begin atomic
    select u.role, u.client_id, u.rate, quota_bucket(kind, u.role, u.client_id, u.rate)
    from (select case q.role when '' then '' else s.role end as role,
                 case q.client_id when '' then '' else s.client_id end as client_id,
                 case kind when 'produce' then q.producer_byte_rate
                           when 'fetch' then q.consumer_byte_rate end as rate,
                 e.place
          from (select session_user::text as role,
                       pg_catalog.current_setting('application_name') as client_id) s
          cross join lateral (values
              (1, s.role, s.client_id), (2, s.role, '<default>'), (3, s.role, ''),
              (4, '<default>', s.client_id), (5, '<default>', '<default>'), (6, '<default>', ''),
              (7, '', s.client_id), (8, '', '<default>')) e (place, role, client_id)
          join quota q on q.role = e.role and q.client_id = e.client_id) u
    where u.rate is not null
    order by u.place
    limit 1;
end;

-- Takes no lock, reads and writes nothing, returns until when (ns since the epoch) a rate is used up,
-- that was so until used_until (null: never used), when bytes more are used at now_ms. What an entity
-- leaves unused for a second it may use later, but no more than that. An hour is the longest; a time
-- beyond it was written by a clock that has been put back since, and does not count.
create or replace function quota_used_until(used_until int8, now_ms int8, bytes int8, rate int8)
returns int8
language sql immutable
return least(
    greatest(case when used_until <= now_ms * 1000000 + 3600000000000 then used_until end,
             (now_ms - 1000) * 1000000)
        + least(ceil(greatest(bytes, 0) * 1e9::float8 / rate), 3601e9)::int8,
    now_ms * 1000000 + 3600000000000);

-- Takes no lock, reads and writes nothing, returns how many ms there are from now_ms until used_until,
-- rounded up; 0 when it is over, and when the clock has been put back since it was written.
create or replace function throttle_ms(used_until int8, now_ms int8) returns int4
language sql immutable
return case when used_until > now_ms * 1000000 and used_until <= now_ms * 1000000 + 3600000000000
            then ceil((used_until - now_ms * 1000000) / 1e6::float8)::int4 else 0 end;

-- Takes the bucket's advisory lock, and releases it before it returns; reads the quotas and the bucket;
-- changes the bucket (at first use: makes it, unless another transaction is about to) and returns for how
-- many ms the session's entity then has used up its quota of a kind: it is to send nothing until then; 0
-- if it has no quota or keeps it. The change stays if the transaction is rolled back. LS059, with
-- refusing: it was used up for more than ten seconds before, so whoever asks has not kept to it. Where
-- nothing can be written, on a follower and in a read-only transaction, it returns how long these bytes
-- alone take.
create or replace function charge_quota(kind text, bytes int8, refusing boolean) returns int4
language plpgsql volatile security definer set search_path from current as $$
declare
    quota record;
    now_ms int8;
    used_until int8;
    over_ms int4;
begin
    select q.* into quota from quota_of(kind) q;
    if not found or bytes is null or is_job() then
        return 0;
    end if;
    if pg_is_in_recovery() or current_setting('transaction_read_only') = 'on' then
        return least(ceil(greatest(bytes, 0) * 1000::float8 / quota.rate), 3600000);
    end if;
    if to_regclass(quota.bucket) is null
       and not add_quota_bucket(kind, quota.role, quota.client_id, quota.rate, quota.bucket) then
        return 0;
    end if;
    -- Rolled back, the block gives the lock back, and does so whatever happens in it; the sequence stays
    -- changed.
    begin
        perform pg_advisory_xact_lock(lock_class('quota'), hashtext(quota.bucket));
        now_ms := clock_ms();
        used_until := pg_sequence_last_value(to_regclass(quota.bucket));
        over_ms := throttle_ms(used_until, now_ms);
        if over_ms <= 10000 or not refusing then
            over_ms := throttle_ms(
                setval(to_regclass(quota.bucket), quota_used_until(used_until, now_ms, bytes, quota.rate)),
                now_ms);
            refusing := false;
        end if;
        raise sqlstate 'LS000';
    exception
        when sqlstate 'LS000' then
            null;
        when undefined_table or internal_error then
            -- It had been idle for an hour, and was dropped a moment ago.
            if to_regclass(quota.bucket) is not null then
                raise;
            end if;
            return 0;
    end;
    if refusing then
        perform over_quota(kind, quota.role, quota.client_id, quota.rate, over_ms);
    end if;
    return over_ms;
end
$$;

-- Takes no lock, reads and writes nothing, returns never: raises LS059.
create or replace function over_quota(kind text, role text, client_id text, rate int8, over_ms int4)
returns void
language plpgsql immutable set search_path from current as $$
begin
    perform raise_error('LS059',
        format('the %s quota of %s, %s bytes a second, is used up for another %s ms',
            case kind when 'produce' then 'producer' else 'consumer' end,
            concat_ws(' and ', 'role ' || nullif(role, ''), 'client id ' || shown(nullif(client_id, ''))),
            rate, over_ms),
        jsonb_build_object(
            'throttle_time_ms', over_ms,
            'quota', case kind when 'produce' then 'producer_byte_rate' else 'consumer_byte_rate' end,
            'rate', rate, 'role', nullif(role, ''), 'client_id', nullif(client_id, '')),
        'Wait for throttle_time_ms, then try again.');
end
$$;

-- Takes no lock, reads the quotas and the bucket, writes nothing, returns for how many ms the session's
-- entity has used up its quota of a kind; rate is the quota, null if it has none. LS059, with refusing:
-- for more than ten seconds.
create or replace function quota_state(
    kind text, refusing boolean default false, out rate int8, out throttle_time_ms int4)
language plpgsql stable security definer set search_path from current as $$
declare
    quota record;
begin
    throttle_time_ms := 0;
    select q.* into quota from quota_of(kind) q;
    if found and not is_job() then
        rate := quota.rate;
        if not pg_is_in_recovery() and to_regclass(quota.bucket) is not null then
            throttle_time_ms :=
                throttle_ms(pg_sequence_last_value(to_regclass(quota.bucket)), clock_ms());
        end if;
        if refusing and throttle_time_ms > 10000 then
            perform over_quota(kind, quota.role, quota.client_id, rate, throttle_time_ms);
        end if;
    end if;
end
$$;

-- Tries an advisory lock, to the end of the transaction, and if another transaction has it, does nothing
-- and returns false: nobody waits for whoever is first. Else makes a bucket, with a comment that says
-- whose it is.
create or replace function add_quota_bucket(kind text, role text, client_id text, rate int8, bucket text)
returns boolean
language plpgsql volatile set search_path from current as $$
begin
    if not pg_try_advisory_xact_lock(lock_class('quota bucket'), hashtext(bucket)) then
        return false;
    end if;
    if to_regclass(bucket) is null then
        execute format('create unlogged sequence %I', bucket);
        perform setval(bucket::regclass, quota_used_until(null, clock_ms(), 0, rate));
        execute format('comment on sequence %I is %L', bucket,
            jsonb_build_object('kind', kind, 'role', role, 'client_id', client_id, 'rate', rate));
    end if;
    return true;
end
$$;

-- Takes the row lock of the entity's quotas; writes that row; makes the buckets that it needs for sure;
-- returns nothing. role and client_id: whom it is for; null or '': any; '<default>': every one that has
-- none of its own. rates: {"producer_byte_rate": bytes a second or null, ...}; null takes one away, one
-- that is not named stays. It counts from the commit on. LS012: no such entity is possible; LS004: no
-- such quota is; 42501: the caller may not act as the owner of the log.
create or replace function alter_client_quota(role text, client_id text, rates jsonb) returns void
language plpgsql volatile security definer set search_path from current as $$
#variable_conflict use_column
declare
    entity_role constant text := coalesce(alter_client_quota.role, '');
    entity_client constant text := coalesce(alter_client_quota.client_id, '');
    rate record;
    kept quota;
begin
    -- Whoever may call every function may not change its own quota with it.
    if not pg_has_role(session_user, current_user, 'member') then
        raise insufficient_privilege using message = 'only the owner of the log may change quotas',
            hint = format('Connect as a member of %s.', quote_ident(current_user));
    end if;
    if entity_role = '' and entity_client = '' then
        perform raise_error('LS012', 'a quota is for a role, for a client id or for both', null, null);
    end if;
    if octet_length(entity_role) > 63 or octet_length(entity_client) > 63
       or entity_client !~ '^[ -~]*$' then
        perform raise_error('LS012',
            format('there can be no role %s with the client id %s', shown(entity_role), shown(entity_client)),
            jsonb_build_object('role', entity_role, 'client_id', entity_client),
            'Both have at most 63 bytes, and PostgreSQL keeps a client id in ASCII.');
    end if;
    if jsonb_typeof(rates) is distinct from 'object' then
        perform raise_error('LS004', 'quotas have to be a JSON object', null,
            'For example {"producer_byte_rate": 1000000}.');
    end if;
    for rate in select r.key as name, r.value from jsonb_each(rates) r loop
        if rate.name not in ('producer_byte_rate', 'consumer_byte_rate') then
            perform raise_error('LS004', format('there is no quota %s', shown(rate.name)),
                jsonb_build_object('name', rate.name),
                'There are producer_byte_rate and consumer_byte_rate.');
        elsif rate.value <> 'null' and (jsonb_typeof(rate.value) <> 'number'
              or (rate.value #>> '{}')::numeric not between 1 and 1000000000000
              or (rate.value #>> '{}')::numeric % 1 <> 0) then
            perform raise_error('LS004',
                format('%s is a whole number of bytes a second from 1 to 1000000000000, not %s', rate.name,
                    left(rate.value::text, 100)),
                jsonb_build_object('name', rate.name, 'value', rate.value), 'null takes it away.');
        end if;
    end loop;

    perform setval('quota_switch', 1);
    insert into quota as q (role, client_id, producer_byte_rate, consumer_byte_rate)
    values (entity_role, entity_client, (rates ->> 'producer_byte_rate')::numeric::int8,
            (rates ->> 'consumer_byte_rate')::numeric::int8)
    on conflict (role, client_id) do update
    set producer_byte_rate = case when rates ? 'producer_byte_rate' then excluded.producer_byte_rate
                                  else q.producer_byte_rate end,
        consumer_byte_rate = case when rates ? 'consumer_byte_rate' then excluded.consumer_byte_rate
                                  else q.consumer_byte_rate end
    returning q.* into kept;
    if kept.producer_byte_rate is null and kept.consumer_byte_rate is null then
        delete from quota q where q.role = entity_role and q.client_id = entity_client;
    elsif '<default>' not in (entity_role, entity_client) then
        perform add_quota_bucket(k.kind, entity_role, entity_client, k.rate,
            quota_bucket(k.kind, entity_role, entity_client, k.rate))
        from (values ('produce', kept.producer_byte_rate), ('fetch', kept.consumer_byte_rate)) k (kind, rate)
        where k.rate is not null;
    end if;
    perform expire_quota_buckets();
end
$$;

-- For each of at most max_count buckets that nobody has charged for an hour, tries its advisory lock and
-- takes its table lock, ACCESS EXCLUSIVE, waiting a moment at most, both to the end of the transaction;
-- reads the sequences, drops these, returns how many. With a default quota every client id has a bucket.
create or replace function expire_quota_buckets(max_count int4 default 100) returns int4
language plpgsql volatile security definer set search_path from current as $$
declare
    bucket record;
    dropped int4 := 0;
begin
    perform set_config('lock_timeout', '200ms', true);
    for bucket in
        select c.oid, c.relname as name from pg_catalog.pg_class c
        where c.relnamespace = (select q.relnamespace from pg_catalog.pg_class q
                                where q.oid = 'quota'::regclass)
          and c.relkind = 'S' and c.relname ~ '^quota_[0-9a-f]{24}$'
    loop
        exit when dropped >= max_count;
        -- One without a value has lost it in a crash of the server.
        continue when pg_sequence_last_value(bucket.oid) / 1000000 > clock_ms() - 3600000;
        continue when not pg_try_advisory_xact_lock(lock_class('quota'), hashtext(bucket.name));
        continue when pg_sequence_last_value(bucket.oid) / 1000000 > clock_ms() - 3600000;
        begin
            execute format('drop sequence if exists %I', bucket.name);
            dropped := dropped + 1;
        exception when lock_not_available then
            null;
        end;
    end loop;
    return dropped;
end
$$;

-- What has been set. role and client_id: null is any, <default> is every one that has none of its own.
create or replace view quotas as
select nullif(q.role, '') as role, nullif(q.client_id, '') as client_id, q.producer_byte_rate,
       q.consumer_byte_rate
from quota q;

-- Who has used a quota lately, and for how long it is used up. The bucket of one that was changed does
-- not count.
create or replace view quota_usage as
select nullif(d.entity ->> 'role', '') as role, nullif(d.entity ->> 'client_id', '') as client_id,
       case d.entity ->> 'kind' when 'produce' then 'producer_byte_rate'
                                else 'consumer_byte_rate' end as quota,
       (d.entity ->> 'rate')::int8 as rate,
       throttle_ms(case when not pg_catalog.pg_is_in_recovery()
                        then pg_catalog.pg_sequence_last_value(d.bucket) end, clock_ms()) as throttle_time_ms
from (select c.oid as bucket, pg_catalog.obj_description(c.oid, 'pg_class')::jsonb as entity
      from pg_catalog.pg_class c
      where c.relnamespace = (select q.relnamespace from pg_catalog.pg_class q
                              where q.oid = 'quota'::regclass)
        and c.relkind = 'S' and c.relname ~ '^quota_[0-9a-f]{24}$') d
where exists (
    select from quota q
    where q.role in (d.entity ->> 'role', '<default>')
      and q.client_id in (d.entity ->> 'client_id', '<default>')
      and case d.entity ->> 'kind' when 'produce' then q.producer_byte_rate else q.consumer_byte_rate end
          = (d.entity ->> 'rate')::int8);
