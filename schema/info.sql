-- What a client asks once, when it connects.

-- Takes no lock, reads the version table, writes nothing, returns the revision of the log's tables.
create or replace function schema_version() returns text
language sql stable security definer set search_path from current
begin atomic
    select version_num::text from alembic_version;
end;

-- Takes no lock, reads the version table and the server's state, writes nothing, returns one row. fingerprint
-- tells which functions are installed; a client behind a pooler sees a backend_pid that is not its
-- connection's. boot, in microseconds since the epoch, and timeline: another pair is another leader, or its next life.
-- replicated: what may be read ends at what standbys have.
create or replace function info()
returns table (revision text, fingerprint text, server_version_num int4, is_in_recovery boolean,
               backend_pid int4, lz4 boolean, boot int8, timeline int4, replicated boolean)
language sql stable security definer set search_path from current
begin atomic
    select schema_version(), schema_fingerprint(), pg_catalog.current_setting('server_version_num')::int4,
           pg_catalog.pg_is_in_recovery(), pg_catalog.pg_backend_pid(), lz4_available(),
           (extract(epoch from pg_catalog.pg_postmaster_start_time()) * 1000000)::int8, timeline(),
           case when pg_catalog.pg_is_in_recovery() then (newest_seal()).seal_id is not null
                else pg_catalog.current_setting('synchronous_standby_names') <> '' end;
end;
