-- Producing from SQL.

-- Takes no lock, reads and writes nothing, returns the header arrays of one record. headers: {"key": "value",
-- ...}, or to repeat keys or carry bytes [{"key": "k", "value": "text or null"}, {"key": "k", "base64":
-- "..."}]. LS010: anything else.
create or replace function header_arrays(headers jsonb, out header_keys text[], out header_values bytea[])
language plpgsql immutable set search_path from current as $$
begin
    if jsonb_typeof(headers) = 'object' then
        headers := (select jsonb_agg(jsonb_build_object('key', h.key, 'value', h.value))
                    from jsonb_each(headers) h);
    end if;
    if headers is null or headers in ('[]', 'null') then
        return;
    end if;
    if jsonb_typeof(headers) = 'array' and not exists (
        select from jsonb_array_elements(headers) h
        where jsonb_typeof(h) is distinct from 'object' or jsonb_typeof(h -> 'key') is distinct from 'string'
           or coalesce(jsonb_typeof(h -> 'value'), 'null') not in ('string', 'null')
           or coalesce(jsonb_typeof(h -> 'base64'), 'string') <> 'string'
           or h ->> 'base64' !~ '^([A-Za-z0-9+/]{4})*([A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?$')
    then
        select array_agg(h ->> 'key' order by i),
               array_agg(case when h ? 'base64' then decode(h ->> 'base64', 'base64')
                              else convert_to(h ->> 'value', 'UTF8') end order by i)
        into header_keys, header_values
        from jsonb_array_elements(headers) with ordinality u (h, i);
    else
        perform raise_error('LS010',
            'headers have to be a JSON object of strings or an array of objects with key and value or base64',
            jsonb_build_object('headers', headers),
            'For example {"trace": "4711"} or [{"key": "raw", "base64": "/wA="}].');
    end if;
end
$$;

-- Takes no lock, reads and writes nothing, returns the partition of a key: its CRC-32 modulo their number, as
-- in every client.
create or replace function partition_for(key bytea, partitions int4) returns int4
language sql immutable strict set search_path from current
return (key_crc32(key) % partitions)::int4;

-- Reads and writes as stage() does, returns the partition: "partition", else the one that key belongs to,
-- else one at random. Takes no lock that anybody waits for. The record gets into the log when the transaction
-- has committed, by whoever calls drain(). Errors are stage()'s, and LS010: headers of another shape.
create or replace function produce(
    topic text, key bytea, value bytea,
    headers jsonb default null, "partition" int4 default null) returns int4
language plpgsql volatile security definer set search_path from current as $$
declare
    h record;
begin
    if headers is null then
        return stage(topic, "partition", key, value, null, null, null);
    end if;
    h := header_arrays(headers);
    return stage(topic, "partition", key, value, h.header_keys, h.header_values, null);
end
$$;

-- produce() with text or JSON for key and value, in UTF-8: as produce() above.
create or replace function produce(
    topic text, key text, value text,
    headers jsonb default null, "partition" int4 default null) returns int4
language sql volatile security definer set search_path from current
return produce(topic, convert_to(key, 'UTF8'), convert_to(value, 'UTF8'), headers, "partition");

create or replace function produce(
    topic text, key text, value jsonb,
    headers jsonb default null, "partition" int4 default null) returns int4
language sql volatile security definer set search_path from current
return produce(topic, convert_to(key, 'UTF8'), convert_to(value::text, 'UTF8'), headers, "partition");

create or replace function produce(
    topic text, key text, value bytea,
    headers jsonb default null, "partition" int4 default null) returns int4
language sql volatile security definer set search_path from current
return produce(topic, convert_to(key, 'UTF8'), value, headers, "partition");

create or replace function produce(
    topic text, key bytea, value text,
    headers jsonb default null, "partition" int4 default null) returns int4
language sql volatile security definer set search_path from current
return produce(topic, key, convert_to(value, 'UTF8'), headers, "partition");

create or replace function produce(
    topic text, key bytea, value jsonb,
    headers jsonb default null, "partition" int4 default null) returns int4
language sql volatile security definer set search_path from current
return produce(topic, key, convert_to(value::text, 'UTF8'), headers, "partition");
