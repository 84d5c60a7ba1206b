-- Configs of share groups: one table of names, defaults, ranges and meanings, and the share groups
-- themselves.

-- Kafka's names and defaults, and the names that are ours: share.retry.backoff.* and share.key.ordered. One
-- default differs from Kafka's: errors.deadletterqueue.copy.record.enable is on. type: int, boolean, reset
-- (as auto.offset.reset) or topic.
create or replace view share_config as
select d.name::text, d.type::text, d."default"::text, d.minimum::int4, d.maximum::int4, d.doc::text
from (values
    ('errors.deadletterqueue.copy.record.enable', 'boolean', 'true', null, null,
     'Whether a dead letter carries the record''s key, value and headers; without, only headers that say '
     'which record it was, and why.'),
    ('errors.deadletterqueue.topic.name', 'topic', '', null, null,
     'The topic that rejected records, and records delivered too often, are written to. Empty: they are '
     'dropped.'),
    ('share.auto.offset.reset', 'reset', 'latest', null, null,
     'Where the group begins in a topic that is new to it: earliest, latest or by_duration: and an ISO '
     '8601 duration; earliest_local: with the first record that is not in files only, where share groups do '
     'not read (the others raise OffsetOutOfRangeError if they would have to). It takes partitions that are '
     'added to a topic later from their start.'),
    ('share.delivery.count.limit', 'int', '5', 1, 32767,
     'How often a record is delivered before it is given up.'),
    ('share.key.ordered', 'boolean', 'false', null, null,
     'Whether at most one record of a key is in flight, so that keys keep their order whatever happens. '
     'Changed only while nothing is in flight.'),
    ('share.partition.max.record.locks', 'int', '2000', 1, 100000,
     'How many records of a partition are in flight at most: acquired, given back without a delay, or '
     'behind another one of their key.'),
    ('share.record.lock.duration.ms', 'int', '30000', 10, 3600000,
     'How long a member has an acquired record for itself, in ms.'),
    ('share.renew.acknowledge.enable', 'boolean', 'true', null, null,
     'Whether members may renew the lock of a record.'),
    ('share.retry.backoff.max.ms', 'int', '60000', 0, 2147483647,
     'The longest delay before a released record is delivered again, in ms.'),
    ('share.retry.backoff.ms', 'int', '0', 0, 2147483647,
     'The delay before a record that was released is delivered for the second time, in ms; it doubles with '
     'every delivery. 0: none.')
) as d (name, type, "default", minimum, maximum, doc);

-- Takes no lock, reads the definitions, writes nothing, returns value in its normal form. LS004: unknown name
-- or value out of range.
create or replace function checked_share_config(name text, value text) returns text
language plpgsql stable set search_path from current as $$
#variable_conflict use_column
declare
    definition record;
    shown constant text := coalesce(to_json(left(checked_share_config.value, 100))::text, 'null');
begin
    select * into definition from share_config c where c.name = checked_share_config.name;
    if not found then
        perform raise_error('LS004', format('unknown share group config %s',
            to_json(checked_share_config.name)),
            jsonb_build_object('config', checked_share_config.name, 'known',
                (select jsonb_agg(c.name order by c.name) from share_config c)),
            'The configs there are: ' || (select string_agg(c.name, ', ' order by c.name)
                from share_config c) || '.');
    end if;
    case definition.type
        when 'int' then
            if checked_share_config.value ~ '\A\s*\d{1,10}\s*\Z'
                and checked_share_config.value::int8 between definition.minimum and definition.maximum then
                return checked_share_config.value::int8::text;
            end if;
            perform raise_error('LS004', format('%s has to be a whole number from %s to %s, not %s',
                definition.name, definition.minimum, definition.maximum, shown),
                jsonb_build_object('config', definition.name, 'value', checked_share_config.value, 'minimum',
                    definition.minimum, 'maximum', definition.maximum), null);
        when 'boolean' then
            if lower(btrim(checked_share_config.value)) in ('true', 'false') then
                return lower(btrim(checked_share_config.value));
            end if;
            perform raise_error('LS004', format('%s has to be true or false, not %s', definition.name, shown),
                jsonb_build_object('config', definition.name, 'value', checked_share_config.value), null);
        when 'reset' then
            if lower(btrim(checked_share_config.value)) in ('earliest', 'earliest_local', 'latest') then
                return lower(btrim(checked_share_config.value));
            elsif checked_share_config.value ~*
                  '\A\s*by_duration:P(?=\d|T\d)(\d{1,6}W)?(\d{1,6}D)?'
                  '(T(?=\d)(\d{1,6}H)?(\d{1,9}M)?(\d{1,9}([.,]\d{1,9})?S)?)?\s*\Z' then
                return 'by_duration:' || upper(substr(btrim(checked_share_config.value), 13));
            end if;
            perform raise_error('LS004',
                format('%s has to be earliest, earliest_local, latest or by_duration: and an ISO 8601 duration, not %s',
                    definition.name, shown),
                jsonb_build_object('config', definition.name, 'value', checked_share_config.value),
                    'For example by_duration:PT1H.');
        when 'topic' then
            if checked_share_config.value = '' then
                return '';
            end if;
            perform check_topic_name(checked_share_config.value);
            perform topic_id_of(checked_share_config.value);
            return checked_share_config.value;
    end case;
end
$$;

-- Takes no lock, reads the definitions, writes nothing, returns the row of a share group with these
-- overrides.
create or replace function compiled_share_group(group_id int4, configs jsonb) returns share_group
language sql stable set search_path from current
begin atomic
    select row(compiled_share_group.group_id, compiled_share_group.configs,
               e.effective ->> 'share.auto.offset.reset',
               (e.effective ->> 'share.record.lock.duration.ms')::int4,
               (e.effective ->> 'share.delivery.count.limit')::int4,
               (e.effective ->> 'share.partition.max.record.locks')::int4,
               (e.effective ->> 'share.retry.backoff.ms')::int4,
               (e.effective ->> 'share.retry.backoff.max.ms')::int4,
               (e.effective ->> 'share.renew.acknowledge.enable')::boolean,
               (compiled_share_group.configs ->> 'share.key.ordered')::boolean,
               e.effective ->> 'errors.deadletterqueue.topic.name',
               (e.effective ->> 'errors.deadletterqueue.copy.record.enable')::boolean)::share_group
    from (select jsonb_object_agg(c.name, coalesce(compiled_share_group.configs ->> c.name,
        c."default")) as effective from share_config c) e;
end;

-- Takes the key of the group's name for a moment when the group is new; reads and, then, writes the
-- group's rows, returns the share group with this name. LS028: not a legal name, or a group of another
-- kind has it.
create or replace function share_group_of("group" text) returns share_group
language plpgsql volatile set search_path from current as $$
declare
    id int4;
    found_group share_group;
begin
    select s.* into found_group from log_group l join share_group s on s.group_id = l.group_id
        where l.name = share_group_of."group";
    if not found then
        id := ensure_group("group", 'share');
        insert into share_group select c.* from compiled_share_group(id, '{}') c on conflict do nothing;
        select s.* into strict found_group from share_group s where s.group_id = id;
    end if;
    return found_group;
end
$$;

-- Takes no lock, reads the group's rows, writes nothing, returns the share group with this name. LS024: there
-- is none.
create or replace function existing_share_group("group" text) returns share_group
language plpgsql stable set search_path from current as $$
declare
    found_group share_group;
begin
    select s.* into found_group from log_group g join share_group s on s.group_id = g.group_id
        where g.name = "group";
    if not found then
        perform raise_error('LS024', format('there is no share group %s',
            coalesce(to_json(left("group", 260))::text, 'null')),
            jsonb_build_object('group', "group"), null);
    end if;
    return found_group;
end
$$;

-- Takes the group's advisory lock, so waits for acquirers and acknowledgers at work; reads the definitions
-- and what is in flight, writes the group's row, returns nothing. A group that does not exist is made.
-- LS001: the dead-letter topic does not exist, LS004: unknown config or value out of range, LS023:
-- share.key.ordered while records are in flight.
create or replace function alter_share_group("group" text, set_configs jsonb,
    unset text[] default null) returns void
language plpgsql volatile security definer set search_path from current as $$
declare
    old share_group := share_group_of("group");
    changed jsonb;
    entry record;
    unset_name text;
begin
    if jsonb_typeof(coalesce(set_configs, '{}')) <> 'object' then
        perform raise_error('LS004', 'configs have to be a JSON object of names and values', null, null);
    end if;
    perform pg_advisory_xact_lock(lock_class('share'), old.group_id);
    select s.* into strict old from share_group s where s.group_id = old.group_id for no key update;
    changed := old.configs;
    foreach unset_name in array coalesce(unset, '{}') loop
        if not exists (select from share_config c where c.name = unset_name) then
            perform checked_share_config(unset_name, null);   -- raises: there is no such config
        end if;
        changed := changed - unset_name;
    end loop;
    for entry in select e.key, e.value from jsonb_each_text(coalesce(set_configs, '{}')) e order by e.key loop
        changed := changed || jsonb_build_object(entry.key, checked_share_config(entry.key, entry.value));
    end loop;
    if changed ->> 'share.key.ordered' is distinct from old.configs ->> 'share.key.ordered'
        and coalesce(old.key_ordered, false) <>
           coalesce((changed ->> 'share.key.ordered')::boolean, false)
       and (exists (select from share_flight f where f.group_id = old.group_id)
           or exists (select from share_delay d where d.group_id = old.group_id)) then
        perform raise_error('LS023',
            format('share.key.ordered cannot change while group %s has records in flight', to_json("group")),
            jsonb_build_object('group', "group"), 'Wait until they are finished, or use another group.');
    end if;
    update share_group s
    set (configs, auto_offset_reset, record_lock_ms, delivery_limit, max_record_locks, retry_backoff_ms,
        retry_backoff_max_ms, renew_enabled,
         key_ordered, dead_letter_topic, copy_record)
        = (select c.configs, c.auto_offset_reset, c.record_lock_ms, c.delivery_limit, c.max_record_locks,
            c.retry_backoff_ms, c.retry_backoff_max_ms,
                  c.renew_enabled, c.key_ordered, c.dead_letter_topic, c.copy_record
           from compiled_share_group(old.group_id, changed) c)
    where s.group_id = old.group_id;
end
$$;

-- Takes no lock, reads the group's row, writes nothing, returns every config with its value and definition.
-- LS024: no such share group.
create or replace function describe_share_configs("group" text)
returns table (name text, value text, "default" text, is_default boolean, type text, minimum text,
    maximum text, doc text)
language plpgsql stable security definer set search_path from current as $$
#variable_conflict use_column
declare
    overrides constant jsonb := (existing_share_group(describe_share_configs."group")).configs;
begin
    return query
        select c.name, coalesce(overrides ->> c.name, c."default"), c."default", not overrides ? c.name,
            c.type, c.minimum::text, c.maximum::text, c.doc
        from share_config c order by c.name;
end
$$;
