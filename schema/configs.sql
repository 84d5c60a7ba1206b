-- Topic configs: one table of names, defaults, ranges and meanings, from which everything else is worked out.

-- Kafka's names and defaults. type: long, int, double, string (one of "values"), list (some of "values",
-- comma separated) or text (anything).
create or replace view topic_config as
select d.name::text, d.type::text, d."default"::text, d.minimum::numeric, d.maximum::numeric,
       d."values"::text[], d.doc::text
from (values
    ('cleanup.policy', 'list', 'delete', null, null, '{delete,compact}',
     'What becomes of old records: delete drops whole segments past retention, compact keeps the last '
     'record of each key. Empty: kept for ever.'),
    ('compression.type', 'string', 'producer', null, null, '{producer,uncompressed,lz4}',
     'lz4 lets the server compress batches of more than 2 kB. producer is the same as uncompressed: clients '
     'send plain records. Takes effect with the next segment.'),
    ('delete.retention.ms', 'long', '86400000', 0, 9223372036854775807, null,
     'How long a compacted topic keeps tombstones, in ms.'),
    ('local.retention.bytes', 'long', '-2', -2, 9223372036854775807, null,
     'With remote.storage.enable: the size of a partition''s part in PostgreSQL above which its oldest '
     'segments stay in files only; -1: no limit, -2: as retention.bytes.'),
    ('local.retention.ms', 'long', '-2', -2, 9223372036854775807, null,
     'With remote.storage.enable: the age at which segments stay in files only, in ms; -1: never, -2: as '
     'retention.ms.'),
    ('file.delete.delay.ms', 'long', '60000', 0, 9223372036854775807, null,
     'How long the space of a dropped segment is kept, in ms, for those who are reading it.'),
    ('max.compaction.lag.ms', 'long', '9223372036854775807', 1, 9223372036854775807, null,
     'The longest that a record may stay uncompacted, in ms.'),
    ('max.message.bytes', 'int', '1048588', 0, 268435456, null,
     'The largest batch that is accepted, in bytes; a record by itself is a batch.'),
    ('message.timestamp.after.max.ms', 'long', '3600000', 0, 9223372036854775807, null,
     'How far a record''s time stamp may lie ahead of the server''s clock, in ms. Not used with '
     'LogAppendTime.'),
    ('message.timestamp.before.max.ms', 'long', '9223372036854775807', 0, 9223372036854775807, null,
     'How far a record''s time stamp may lie behind the server''s clock, in ms. Not used with '
     'LogAppendTime.'),
    ('message.timestamp.type', 'string', 'CreateTime', null, null, '{CreateTime,LogAppendTime}',
     'Whose clock stamps the records: the producer''s, or the server''s when it appends them.'),
    ('min.cleanable.dirty.ratio', 'double', '0.5', 0, 1, null,
     'The part of the log that has to be uncompacted before compaction is worth while.'),
    ('min.compaction.lag.ms', 'long', '0', 0, 9223372036854775807, null,
     'How long a record stays uncompacted at least, in ms.'),
    ('min.insync.replicas', 'int', '1', 1, 32767, null,
     'How many servers, the leader included, have to have a record before acks=all is answered.'),
    ('remote.log.copy.disable', 'string', 'false', null, null, '{false,true}',
     'With remote.storage.enable: copy no more segments; what is in files stays readable.'),
    ('remote.log.delete.on.disable', 'string', 'false', null, null, '{false,true}',
     'Lets remote.storage.enable be set back to false although records are in files only: they are deleted.'),
    ('remote.storage.enable', 'string', 'false', null, null, '{false,true}',
     'Copy sealed segments to Parquet files, and keep them there when local.retention.ms or '
     'local.retention.bytes has taken them out of PostgreSQL. Not for compacted topics.'),
    ('remote.storage.url', 'text', '', null, null, null,
     'Where the files of this topic go: any URL that fsspec knows, such as s3://bucket/log. Empty: where '
     '`logstore tier location` says, else a directory of the machine that the worker runs on.'),
    ('retention.bytes', 'long', '-1', -1, 9223372036854775807, null,
     'The size of a partition above which its oldest segments are dropped; -1: no limit.'),
    ('retention.ms', 'long', '604800000', -1, 9223372036854775807, null,
     'The age at which segments are dropped, in ms; -1: never.'),
    ('segment.bytes', 'int', '1073741824', 14, 2147483647, null,
     'The size at which a partition makes its topic go on to the next segment, in bytes; the batch that '
     'reaches it is the last.'),
    ('segment.jitter.ms', 'long', '0', 0, 9223372036854775807, null,
     'At most this much is subtracted at random from segment.ms, so that topics do not change segments all '
     'at once.'),
    ('segment.ms', 'long', '604800000', 1, 9223372036854775807, null,
     'The age at which a segment with records is closed, in ms, even if it is small.')
) as d (name, type, "default", minimum, maximum, "values", doc);

-- Takes no lock, reads the definitions, writes nothing, returns the definition of one config. LS004: there is
-- none.
create or replace function config_definition(name text) returns topic_config
language plpgsql stable set search_path from current as $$
declare
    definition topic_config;
    known text[];
begin
    select c.* into definition from topic_config c where c.name = config_definition.name;
    if not found then
        known := array(select c.name from topic_config c order by c.name);
        perform raise_error('LS004', format('unknown topic config %s', shown(name)),
            jsonb_build_object('config', name, 'known', to_jsonb(known)),
            format('The configs are: %s.', array_to_string(known, ', ')));
    end if;
    return definition;
end
$$;

-- Takes no lock, reads the definitions, writes nothing, returns value in its normal form. LS004: unknown name
-- or value out of range, LS011: a codec that this server cannot apply.
create or replace function checked_config(name text, value text) returns text
language plpgsql stable set search_path from current as $$
declare
    definition constant topic_config := config_definition(name);
    given constant jsonb := jsonb_build_object('config', name, 'value', value);
    number numeric;
    items text[];
begin
    if name = 'compression.type' and value in ('gzip', 'snappy', 'zstd') then
        perform raise_error('LS011',
            format('compression.type=%s is not available: the server compresses, without that codec', value),
            given, 'Use lz4 or uncompressed.');
    end if;

    if definition.type = 'text' and value is not null then
        return btrim(value);
    elsif definition.type in ('int', 'long', 'double') then
        if value ~ '^\s*[-+]?[0-9]{1,30}(\.[0-9]{1,30})?\s*$' then
            number := value;
        end if;
        if (number between definition.minimum and definition.maximum) is not true
           or (definition.type <> 'double' and number <> trunc(number)) then
            perform raise_error('LS004',
                format('%s has to be a %snumber from %s to %s, not %s', name,
                    case when definition.type <> 'double' then 'whole ' end,
                    definition.minimum, definition.maximum, shown(value)),
                given || jsonb_build_object('minimum', definition.minimum, 'maximum', definition.maximum),
                null);
        end if;
        return case definition.type when 'double' then trim_scale(number) else trunc(number) end::text;
    end if;

    items := case definition.type when 'list' then regexp_split_to_array(nullif(btrim(value), ''), '\s*,\s*')
                                  else array[value] end;
    if value is null or not coalesce(items <@ definition."values", true) then
        perform raise_error('LS004',
            format('%s has to be %s of %s, not %s', name,
                case definition.type when 'list' then 'empty or some' else 'one' end,
                array_to_string(definition."values", ', '), shown(value)),
            given || jsonb_build_object('values', to_jsonb(definition."values")), null);
    end if;
    if name = 'compression.type' and value = 'lz4' and not lz4_available() then
        perform raise_error('LS011', 'compression.type=lz4 is not available: the server was built without it',
            given, 'Use a PostgreSQL built --with-lz4, or compression.type=uncompressed.');
    end if;
    return array_to_string(array(
        select u.v from unnest(definition."values") with ordinality as u (v, n)
        where u.v = any (items) order by u.n), ',');
end
$$;

-- Takes no lock, reads the definitions, writes nothing, returns the overrides "old" changed by the object
-- set_configs (name to value, null to unset) and without the names in unset. LS004: not an object of plain
-- values, an unknown name, a value out of range.
create or replace function changed_configs(old jsonb, set_configs jsonb, unset text[]) returns jsonb
language plpgsql stable set search_path from current as $$
declare
    changed jsonb := old;
    config text;
    value jsonb;
begin
    if jsonb_typeof(coalesce(set_configs, '{}')) <> 'object' then
        perform raise_error('LS004', 'configs have to be a JSON object of names and values', null, null);
    end if;
    foreach config in array coalesce(unset, '{}') loop
        perform config_definition(config);
        changed := changed - config;
    end loop;
    for config, value in select * from jsonb_each(coalesce(set_configs, '{}')) loop
        if jsonb_typeof(value) in ('object', 'array') then
            perform raise_error('LS004',
                format('the value of %s has to be a string or a number', shown(config)),
                jsonb_build_object('config', config), null);
        elsif jsonb_typeof(value) = 'null' then
            perform config_definition(config);
            changed := changed - config;
        else
            changed := changed || jsonb_build_object(config, checked_config(config, value #>> '{}'));
        end if;
    end loop;
    perform check_configs(changed);
    return changed;
end
$$;

-- Takes no lock, reads the definitions, writes nothing, returns every config's value: the override, else the
-- default.
create or replace function effective_configs(overrides jsonb) returns jsonb
language sql stable set search_path from current
begin atomic
    select jsonb_object_agg(c.name, coalesce(overrides ->> c.name, c."default")) from topic_config c;
end;

-- Takes no lock, reads the definitions, writes nothing, returns nothing. LS004: two of the configs contradict each
-- other.
create or replace function check_configs(overrides jsonb) returns void
language plpgsql stable set search_path from current as $$
declare
    configs constant jsonb := effective_configs(overrides);
    smaller text;
    larger text;
begin
    for smaller, larger in values ('segment.jitter.ms', 'segment.ms'),
                                  ('min.compaction.lag.ms', 'max.compaction.lag.ms') loop
        if (configs ->> smaller)::numeric > (configs ->> larger)::numeric then
            perform raise_error('LS004',
                format('%s, %s, is more than %s, %s', smaller, configs ->> smaller, larger, configs ->> larger),
                jsonb_build_object('config', smaller, 'value', configs ->> smaller, larger, configs ->> larger),
                format('Lower %s or raise %s, both at once if need be.', smaller, larger));
        end if;
    end loop;
end
$$;

-- Takes no lock, reads the definitions, writes nothing, returns what may not be what was meant: configs that do
-- nothing beside the others, or that do later than they seem to.
create or replace function config_warnings(overrides jsonb) returns table (config text, warning text)
language sql stable set search_path from current
begin atomic
    with c as (
        select e.configs, string_to_array(e.configs ->> 'cleanup.policy', ',') as policy,
               (e.configs ->> 'retention.ms')::numeric as retention_ms,
               (e.configs ->> 'retention.bytes')::numeric as retention_bytes,
               (e.configs ->> 'segment.ms')::numeric as segment_ms,
               (e.configs ->> 'segment.bytes')::numeric as segment_bytes,
               coalesce(nullif(e.configs ->> 'cleanup.policy', ''), 'empty') as policy_name
        from (select effective_configs(overrides) as configs) e)
    select w.config, w.warning
    from c cross join lateral (
        select n.name, format('has no effect while cleanup.policy is %s', c.policy_name)
        from unnest(array['retention.ms', 'retention.bytes']) n (name)
        where overrides ? n.name and not 'delete' = any (c.policy)
        union all
        select n.name, format('has no effect while cleanup.policy is %s', c.policy_name)
        from unnest(array['delete.retention.ms', 'max.compaction.lag.ms', 'min.cleanable.dirty.ratio',
                          'min.compaction.lag.ms']) n (name)
        where overrides ? n.name and not 'compact' = any (c.policy)
        union all
        select 'retention.bytes', format(
            'is less than segment.bytes, %s: nothing goes before a segment is that large, or segment.ms old',
            c.segment_bytes)
        where 'delete' = any (c.policy) and c.retention_bytes between 0 and c.segment_bytes - 1
        union all
        select 'retention.ms', format(
            'is less than segment.ms, %s: a record that younger ones follow stays until its segment is closed '
            'and all of it has expired', c.segment_ms)
        where 'delete' = any (c.policy) and c.retention_ms between 0 and c.segment_ms - 1
        union all
        select 'segment.bytes', format(
            'is less than max.message.bytes, %s: a batch may be a segment by itself',
            c.configs ->> 'max.message.bytes')
        where c.segment_bytes < (c.configs ->> 'max.message.bytes')::numeric
        union all
        select 'file.delete.delay.ms', 'is more than retention.ms: most of the space is taken by dropped segments'
        where 'delete' = any (c.policy) and c.retention_ms >= 0
          and (c.configs ->> 'file.delete.delay.ms')::numeric > greatest(c.retention_ms, 60000)
    ) w (config, warning)
    order by w.config;
end;

-- Takes no lock, reads the topic's row, writes nothing, returns every config with its value and definition.
-- LS001: no such topic.
create or replace function describe_configs(topic text)
returns table (name text, value text, "default" text, is_default boolean, type text, "values" text[],
               minimum text, maximum text, doc text)
language plpgsql stable security definer set search_path from current as $$
#variable_conflict use_column
declare
    overrides constant jsonb := (
        select t.configs from topic t where t.topic_id = topic_id_of(describe_configs.topic));
begin
    return query
        select c.name, coalesce(overrides ->> c.name, c."default"), c."default", not overrides ? c.name,
               c.type, c."values", c.minimum::text, c.maximum::text, c.doc
        from topic_config c order by c.name;
end
$$;
