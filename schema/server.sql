-- What depends on the server: its build, its release, its replicas, its advisory locks.

-- Takes no lock, reads the list of compression methods, writes nothing, returns whether the server was built
-- with lz4.
create or replace function lz4_available() returns boolean
language sql stable set search_path from current
begin atomic
    select 'lz4' = any (enumvals) from pg_catalog.pg_settings where name = 'default_toast_compression';
end;

-- Takes no lock, reads the state of replication, writes nothing, returns how many servers are in sync: this one
-- and the synchronous standbys that stream now. The owner of the log needs pg_read_all_stats to see them; unseen
-- ones do not count.
create or replace function insync_replicas() returns int4
language sql volatile security definer set search_path from current
begin atomic
    select 1 + case when pg_catalog.current_setting('synchronous_standby_names') = '' then 0
                    else (select count(*)::int4 from pg_catalog.pg_stat_get_wal_senders()
                          where state = 'streaming' and sync_state in ('sync', 'quorum')) end;
end;

-- Takes no lock, reads the state of replication, writes nothing, returns how many servers have a record when a
-- synchronous commit returns: this one and those of the synchronous standbys that the commit waits for, which of
-- ANY 1 (a, b) is one.
create or replace function acknowledging_replicas() returns int4
language plpgsql volatile security definer set search_path from current as $$
declare
    names constant text := current_setting('synchronous_standby_names');
begin
    if names = '' then
        return 1;
    end if;
    -- pg_stat_replication would take four times as long, of an append.
    return (select 1 + least(count(*),
                coalesce(substring(names from '^\s*(?:[a-zA-Z]+\s+)?(\d+)\s*\(')::int8, 1))
            from pg_stat_get_wal_senders() w
            where w.state = 'streaming' and w.sync_state in ('sync', 'quorum'));
end
$$;

-- Takes no lock, reads the server's clock, writes nothing, returns what time it is for the log, in ms since the
-- epoch. Everything that goes by the time asks here (so that a test can let years pass); to be inlined.
create or replace function clock_ms() returns int8
language sql volatile
return floor(extract(epoch from pg_catalog.clock_timestamp()) * 1000)::int8;

-- Takes no lock, reads the server's clock, writes nothing, returns the same as clock_ms(), for comparison with
-- columns; to be inlined.
create or replace function log_time() returns timestamptz
language sql volatile
return to_timestamp(clock_ms()::float8 / 1000);

-- Takes no lock, reads and writes nothing, returns the first key of this log's advisory locks for one purpose
-- (two logs may share a database); the second key is a topic id.
create or replace function lock_class(purpose text) returns int4
language sql stable
return pg_catalog.hashtext('logstore ' || purpose || ' ' || pg_catalog.current_schema());

-- Takes no lock, reads and writes nothing, returns zlib's CRC-32 of key, which decides the partition of a
-- keyed record in every client. PostgreSQL has it built in from 18 on; before that it is worked out here,
-- half a byte at a time.
do $install$
begin
    if current_setting('server_version_num')::int4 >= 180000 then
        create or replace function key_crc32(key bytea) returns int8
        language sql immutable strict parallel safe set search_path from current
        return pg_catalog.crc32(key);
    else
        create or replace function key_crc32(key bytea) returns int8
        language plpgsql immutable strict parallel safe set search_path from current as $$
        declare
            crc int8 := x'ffffffff'::int8;
            -- The remainder of each half byte: 0x00000000, 0x1db71064, 0x3b6e20c8, ...
            remainders constant int8[] := array[
                0, 498536548, 997073096, 651767980, 1994146192, 1802195444, 1303535960, 1342533948,
                3988292384, 4027552580, 3604390888, 3412177804,
                2607071920, 2262029012, 2685067896, 3183342108];
            octet int8;
        begin
            for i in 0 .. octet_length(key) - 1 loop
                octet := get_byte(key, i);
                crc := remainders[1 + ((crc # octet) & 15)] # (crc >> 4);
                crc := remainders[1 + ((crc # (octet >> 4)) & 15)] # (crc >> 4);
            end loop;
            return crc # x'ffffffff'::int8;
        end
        $$;
    end if;
end
$install$;
