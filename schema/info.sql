-- What a client asks once, when it connects.

-- Takes no lock, reads the version table, writes nothing, returns the revision of the log's tables.
create or replace function schema_version() returns text
language sql stable security definer set search_path from current
begin atomic
    select version_num::text from alembic_version;
end;

-- Takes no lock, reads the version table and the server's state, writes nothing, returns one row. fingerprint
-- tells which functions are installed; a client behind a pooler sees a backend_pid that is not its
-- connection's.
create or replace function info()
returns table (revision text, fingerprint text, server_version_num int4, is_in_recovery boolean,
               backend_pid int4, lz4 boolean)
language sql stable security definer set search_path from current
begin atomic
    select schema_version(), schema_fingerprint(), pg_catalog.current_setting('server_version_num')::int4,
           pg_catalog.pg_is_in_recovery(), pg_catalog.pg_backend_pid(), lz4_available();
end;
