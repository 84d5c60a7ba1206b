-- Records as rows: what SQL sees of the log.

-- Takes no lock, reads and writes nothing, returns value as text: null if it is not valid UTF-8 or has a zero
-- byte.
create or replace function checked_text(value bytea) returns text
language plpgsql immutable strict as $$
begin
    return pg_catalog.convert_from(value, 'UTF8');
exception when others then
    return null;
end
$$;

-- Takes no lock, reads and writes nothing, returns value as JSON: null if it is not (or is nested too deeply
-- for the server's stack).
create or replace function checked_json(value text) returns jsonb
language plpgsql immutable strict as $$
begin
    return value::pg_catalog.jsonb;
exception when others then
    return null;
end
$$;

-- As checked_text, but ASCII, which is most of what there is, comes cheap: escaping leaves it as it is. To be
-- inlined, so neither strict nor with settings.
create or replace function text_of(value bytea) returns text
language sql immutable
return case when octet_length(encode(value, 'escape')) = octet_length(value) then encode(value, 'escape')
            else checked_text(value) end;

-- As checked_json, of bytes; to be inlined. PostgreSQL 16 and newer can ask first, which costs a twentieth of
-- catching an error; long texts might nest too deeply to ask.
do $install$
begin
    if current_setting('server_version_num')::int4 >= 160000 then
        create or replace function json_of(value bytea) returns jsonb
        language sql stable
        return case when octet_length(value) > 2000 then checked_json(text_of(value))
                    when pg_input_is_valid(text_of(value), 'jsonb') then text_of(value)::jsonb end;
    else
        create or replace function json_of(value bytea) returns jsonb
        language sql stable
        return checked_json(text_of(value));
    end if;
end
$install$;

-- Takes no lock, reads and writes nothing, returns the headers of each record of a batch: in order, {"key",
-- "value"}, or {"key", "base64"} where the value is not text. Null if no record has any.
create or replace function batch_headers(
    record_count int4, header_records int4[], header_keys text[], header_values bytea[]) returns jsonb[]
language plpgsql immutable set search_path from current as $$
begin
    if header_records is null then
        return null;
    end if;
    return (
        select array_agg(coalesce(h.headers, '[]') order by n)
        from generate_series(1, record_count) n
        left join (
            select u.r, jsonb_agg(jsonb_build_object('key', u.k) || case
                when u.v is null or text_of(u.v) is not null then jsonb_build_object('value', text_of(u.v))
                else jsonb_build_object('base64', translate(encode(u.v, 'base64'), E'\n', '')) end
                order by u.i) as headers
            from unnest(header_records, header_keys, header_values) with ordinality u (r, k, v, i)
            group by u.r) h on h.r = n);
end
$$;

-- A log that was made before it had its last argument would have two of it.
drop function if exists records_query(text, text, text);

-- Takes no lock, reads and writes nothing, returns a query that makes records of batches. source: a FROM list
-- with the batches as b; topic and start: expressions for the topic's name and the log start; outer_source:
-- what source may refer to. Arrays are unnested side by side in a target list, which is the fast way; text
-- and JSON are made outside, where somebody wants them.
create or replace function records_query(topic text, start text, source text, outer_source text default '')
returns text
language sql immutable set search_path from current
return format($query$
    select r.topic, r.partition, r.base_offset + coalesce(r.delta, r.n) as "offset",
           to_timestamp(coalesce(r.at, r.max_timestamp)::float8 / 1000) as "timestamp",
           r.key, r.value, coalesce(r.headers, '[]') as headers,
           text_of(r.key) as key_text, text_of(r.value) as value_text, json_of(r.value) as value_json
    from %4$s (
        select %1$s as topic, b.partition, b.base_offset, b.max_timestamp, %2$s as log_start,
               generate_series(0, b.record_count - 1) as n, unnest(b.offset_deltas) as delta,
               unnest(b.timestamps) as at, unnest(b.keys) as key, unnest(b."values") as value,
               unnest(batch_headers(b.record_count, b.header_records, b.header_keys, b.header_values))
                   as headers
        from %3$s) r
    where r.base_offset + coalesce(r.delta, r.n) >= r.log_start $query$,
    topic, start, source, outer_source);

do $install$
begin
    -- The batches are looked for topic by topic, so that naming one leaves the other topics' leaves alone.
    -- Leaves that are being written anew, or have been, are there but not live. All are up to last_segment: said
    -- because PostgreSQL, when it chooses leaves as it runs, by a condition on topic_id alone, forgets the last one
    -- of a topic of which another one is being detached.
    execute 'create or replace view records as ' || records_query('t.name', 'p.log_start',
        'batches b join topic_partition p on p.topic_id = b.topic_id and p.partition = b.partition
         join topic_segment g on g.topic_id = b.topic_id and g.segment = b.segment and g.live
         where b.topic_id = t.topic_id and b.segment <= t.last_segment and b.last_offset >= p.log_start',
        'topic t cross join lateral');
end
$install$;

-- Takes no lock, reads the topic's row, writes nothing, returns the query of the view of its records.
create or replace function topic_view_query(topic_id int4) returns text
language sql stable set search_path from current
return (select records_query(format('%L::text', t.name), 'p.log_start', format(
            '%1$I b join topic_partition p on p.topic_id = %2$s and p.partition = b.partition
             join topic_segment g on g.topic_id = %2$s and g.segment = b.segment and g.live
             where b.last_offset >= p.log_start', 'b_' || t.topic_id, t.topic_id))
        from topic t where t.topic_id = topic_view_query.topic_id);

-- Takes no lock that others notice; reads the topic's name, writes the topic's row, makes the view of its
-- records in the schema of topic views, returns nothing. The view has the topic's name; a name longer than 63
-- bytes, or taken by a deleted topic's view that is still there, ends in ~ and the topic's id.
create or replace function create_topic_view(topic_id int4) returns void
language plpgsql volatile set search_path from current as $$
declare
    id constant int4 := topic_id;
    suffix constant text := '~' || id;
    views constant text := current_schema() || '_topics';
    name constant text := (select t.name from topic t where t.topic_id = id);
    free_name constant text := case
        when octet_length(name) > 63 or to_regclass(format('%I.%I', views, name)) is not null
        then left(name, 63 - length(suffix)) || suffix else name end;
begin
    execute format('create view %I.%I as ', views, free_name) || topic_view_query(id);
    update topic t set view_name = free_name where t.topic_id = id;
end
$$;

-- Waits at most a moment for those who read the view, drops it, returns whether it is gone: it stays if
-- somebody has used it in a transaction that is still open. It shows nothing any more in any case, since its
-- topic's catalog rows are gone.
create or replace function drop_topic_view(view_name name) returns boolean
language plpgsql volatile set search_path from current set lock_timeout = '50ms' as $$
begin
    execute format('drop view if exists %I.%I', current_schema() || '_topics', view_name);
    return true;
exception when lock_not_available then
    return false;
end
$$;

do $install$
declare
    view record;
begin
    -- The views of topics that an earlier release has made.
    for view in select t.topic_id, t.view_name from topic t
                where to_regclass(format('%I.%I', current_schema() || '_topics', t.view_name)) is not null loop
        execute format('create or replace view %I.%I as ', current_schema() || '_topics', view.view_name)
            || topic_view_query(view.topic_id);
    end loop;
end
$install$;
