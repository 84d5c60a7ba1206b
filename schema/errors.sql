-- Every error of the log is raised here: an SQLSTATE of class LS, a JSON object in DETAIL, advice in HINT.

-- Takes no lock, reads and writes nothing, returns never: raises SQLSTATE code with message, detail and hint.
create or replace function raise_error(code text, message text, detail jsonb, hint text) returns void
language plpgsql immutable set search_path from current as $$
begin
    if hint is null then
        raise exception using errcode = code, message = message, detail = coalesce(detail, '{}')::text;
    end if;
    raise exception using
        errcode = code, message = message, detail = coalesce(detail, '{}')::text, hint = hint;
end
$$;

-- Takes no lock, reads and writes nothing, returns value as a message shows it: quoted, and not too long.
create or replace function shown(value text) returns text
language sql immutable set search_path from current
return coalesce(to_json(left(value, 260))::text, 'null');
