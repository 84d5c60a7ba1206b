-- Capturing the changes of a table: triggers that produce a record for each, in the transaction that makes
-- it.

-- Takes no lock, reads and writes nothing, returns the part of row that columns name.
create or replace function columns_of("row" jsonb, columns text[]) returns jsonb
language sql immutable set search_path from current
return (select jsonb_object_agg(c, "row" -> c) from unnest(columns) c);

-- Reads and writes as produce() does for the change of one row, returns null. Its arguments are the topic,
-- the table's name and the key's columns. The key is {"column": value, ...}, of the row as it was for a
-- delete; the value {"op": "insert" | "update" | "delete" | "truncate", "table": ..., "before": row or null,
-- "after": row or null}. An update that changes the key is a delete under the old key and an insert under the
-- new one.
create or replace function capture_row() returns trigger
language plpgsql volatile security definer set search_path from current as $$
declare
    topic constant text := tg_argv[0];
    change jsonb := jsonb_build_object(
        'op', lower(tg_op), 'table', tg_argv[1], 'before', null, 'after', null);
    columns constant text[] := tg_argv[2];
    old_key jsonb;
    new_key jsonb;
begin
    if tg_op in ('UPDATE', 'DELETE') then
        change := change || jsonb_build_object('before', to_jsonb(old));
        old_key := columns_of(change -> 'before', columns);
    end if;
    if tg_op in ('INSERT', 'UPDATE') then
        change := change || jsonb_build_object('after', to_jsonb(new));
        new_key := columns_of(change -> 'after', columns);
    end if;
    if tg_op = 'UPDATE' and old_key is distinct from new_key then
        perform produce(topic, old_key::text,
            change || jsonb_build_object('op', 'delete', 'after', null));
        change := change || jsonb_build_object('op', 'insert', 'before', null);
    end if;
    perform produce(topic, coalesce(new_key, old_key)::text, change);
    return null;
end
$$;

-- Locks table in SHARE ROW EXCLUSIVE mode until the end of the transaction, as CREATE TRIGGER does; reads the
-- catalog; makes triggers by which every change of the table, from the next statement on, produces a record
-- to topic in the transaction that makes it; returns nothing. Done again with other arguments, it changes
-- them. key_columns: the primary key by default, none for '{}'. operations: of insert, update, delete and
-- truncate; the first three by default. With the rights of its caller, who has to be allowed to make triggers
-- on the table. LS001, LS036: no such columns, no such operation, or nothing to take for a key.
create or replace function capture(
    "table" regclass, topic text, key_columns text[] default null, operations text[] default null)
returns void
language plpgsql volatile set search_path from current as $$
declare
    id constant int4 := (select m.topic_id from metadata(array[capture.topic]) m);
    wanted constant text[] := coalesce(operations, array['insert', 'update', 'delete']);
    of_rows constant text := (select string_agg(o, ' or ') from unnest(wanted) o where o <> 'truncate');
    columns text[] := key_columns;
    missing text[];
    -- A name has 63 bytes, and what would be cut off is what tells the topics.
    log constant text := case when octet_length(current_schema()) <= 40 then current_schema()
                              else md5(current_schema()) end;
    row_trigger constant text := log || '_capture_' || id;
    truncate_trigger constant text := log || '_truncate_' || id;
    gone text;
begin
    if id is null then
        perform raise_error('LS001', format('there is no topic %s', shown(topic)),
            jsonb_build_object('topic', topic), null);
    end if;
    if cardinality(wanted) = 0 or array_position(wanted, null) is not null
       or not wanted <@ array['insert', 'update', 'delete', 'truncate'] then
        perform raise_error('LS036', format('%s are no operations to capture', wanted),
            jsonb_build_object('operations', wanted), 'There are insert, update, delete and truncate.');
    end if;
    if columns is null then
        columns := (select array_agg(a.attname order by k.i)
                    from pg_catalog.pg_index i
                    cross join lateral unnest(i.indkey) with ordinality k (attnum, i)
                    join pg_catalog.pg_attribute a on a.attrelid = i.indrelid and a.attnum = k.attnum
                    where i.indrelid = "table" and i.indisprimary);
        if columns is null then
            perform raise_error('LS036', format('table %s has no primary key', "table"),
                jsonb_build_object('table', "table"::text),
                'Name the columns of the key, or give none: key_columns => ''{}''.');
        end if;
    end if;
    missing := array(select c from unnest(columns) c
                     where not exists (select from pg_catalog.pg_attribute a
                                       where a.attrelid = "table" and a.attname = c and a.attnum > 0
                                         and not a.attisdropped));
    if missing <> '{}' then
        perform raise_error('LS036', format('table %s has no columns %s', "table", missing),
            jsonb_build_object('table', "table"::text, 'columns', missing), null);
    end if;
    for gone in
        select t.tgname from pg_catalog.pg_trigger t
        where t.tgrelid = "table" and (t.tgname = row_trigger and of_rows is null
                                       or t.tgname = truncate_trigger and 'truncate' <> all (wanted))
    loop
        execute format('drop trigger %I on %s', gone, "table");
    end loop;
    if of_rows is not null then
        execute format('create or replace trigger %I after %s on %s
                        for each row execute function capture_row(%L, %L, %L)',
                       row_trigger, of_rows, "table", topic, "table", columns);
    end if;
    if 'truncate' = any (wanted) then
        execute format('create or replace trigger %I after truncate on %s
                        for each statement execute function capture_row(%L, %L, %L)',
                       truncate_trigger, "table", topic, "table", columns);
    end if;
end
$$;

-- Locks table in ACCESS EXCLUSIVE mode until the end of the transaction; reads the catalog; drops the
-- triggers that capture() has made, for topic or (null) for all topics of this log; returns how many. What
-- has been produced stays. For the owner of the table.
create or replace function uncapture("table" regclass, topic text default null) returns int4
language plpgsql volatile set search_path from current as $$
declare
    dropped int4 := 0;
    name text;
begin
    for name in
        select t.tgname from pg_catalog.pg_trigger t
        where t.tgrelid = "table" and not t.tgisinternal
          and t.tgfoid = 'capture_row()'::regprocedure
          -- The arguments are strings that end with a zero byte; the topic is the first.
          and (uncapture.topic is null
               or convert_from(substr(t.tgargs, 1, position('\x00'::bytea in t.tgargs) - 1), 'UTF8')
                  = uncapture.topic)
    loop
        execute format('drop trigger %I on %s', name, "table");
        dropped := dropped + 1;
    end loop;
    return dropped;
end
$$;

-- What is captured: a row for each trigger.
create or replace view captures as
select t.tgrelid::regclass as "table",
       convert_from(substr(t.tgargs, 1, position('\x00'::bytea in t.tgargs) - 1), 'UTF8') as topic,
       array_remove(array[
           case when t.tgtype & 4 <> 0 then 'insert' end, case when t.tgtype & 16 <> 0 then 'update' end,
           case when t.tgtype & 8 <> 0 then 'delete' end,
           case when t.tgtype & 32 <> 0 then 'truncate' end], null) as operations,
       t.tgenabled <> 'D' as enabled
from pg_catalog.pg_trigger t
where t.tgfoid = 'capture_row()'::regprocedure and not t.tgisinternal;
