-- Heartbeats and leases. A lease runs on the server's clock, from the member's newest heartbeat. Heartbeats
-- are inserts into a ring of three unlogged tables of which the oldest is truncated: no dead tuples, no
-- write-ahead log, no flush.

-- Takes no lock, reads the ring's row, writes it where there is none (fresh, or emptied by a crash or a
-- promotion: then every lease starts again), returns which table takes the heartbeats.
create or replace function heartbeat_slot() returns int2
language plpgsql volatile set search_path from current as $$
declare
    current_slot int2;
begin
    select r.slot into current_slot from heartbeat_ring r;
    if not found then
        insert into heartbeat_ring (slot, born_at, rotated_at) values (0, clock_timestamp(),
            clock_timestamp())
        on conflict do nothing;
        select r.slot into strict current_slot from heartbeat_ring r;
    end if;
    return current_slot;
end
$$;

-- Takes no lock, writes one heartbeat, returns nothing. member_no 0 is the group's own mark: "swept".
create or replace function record_heartbeat(slot int2, "group" int4, member_no int8) returns void
language plpgsql volatile set search_path from current as $$
begin
    case slot
        when 0 then insert into group_heartbeat_0 values ("group", member_no, clock_timestamp());
        when 1 then insert into group_heartbeat_1 values ("group", member_no, clock_timestamp());
        else insert into group_heartbeat_2 values ("group", member_no, clock_timestamp());
    end case;
end
$$;

-- Takes no lock, reads one table of the ring, writes nothing, returns whether a member (0: the group's mark)
-- has beaten since a time.
create or replace function beaten_since(slot int2, "group" int4, member_no int8,
    since timestamptz) returns boolean
language plpgsql stable set search_path from current as $$
begin
    case slot
        when 0 then return exists (select from group_heartbeat_0 h
            where h.group_id = "group" and h.member_no = beaten_since.member_no and h.at > since);
        when 1 then return exists (select from group_heartbeat_1 h
            where h.group_id = "group" and h.member_no = beaten_since.member_no and h.at > since);
        else return exists (select from group_heartbeat_2 h
            where h.group_id = "group" and h.member_no = beaten_since.member_no and h.at > since);
    end case;
end
$$;

-- Takes no lock, reads the members and the ring, writes nothing, returns when each member's lease runs out;
-- nothing on a follower, where there is no ring.
create or replace function leases_of("group" int4) returns table (member_no int8, lease_until timestamptz)
language plpgsql stable set search_path from current as $$
#variable_conflict use_column
declare
    -- Without a row the ring has just been emptied: nobody has had a chance to beat.
    earliest timestamptz;
begin
    if pg_is_in_recovery() then
        return;
    end if;
    earliest := greatest(pg_postmaster_start_time(),
        coalesce((select r.born_at from heartbeat_ring r), clock_timestamp()));
    return query
        select m.member_no,
               greatest(m.lease_floor, earliest,
                        (select max(h.at) from group_heartbeat_0 h
                            where h.group_id = m.group_id and h.member_no = m.member_no),
                        (select max(h.at) from group_heartbeat_1 h
                            where h.group_id = m.group_id and h.member_no = m.member_no),
                        (select max(h.at) from group_heartbeat_2 h
                            where h.group_id = m.group_id and h.member_no = m.member_no))
               + m.session_timeout_ms * interval '1 millisecond'
        from group_member m where m.group_id = leases_of."group";
end
$$;

-- Takes the ring's row lock (skips when somebody has it) and, briefly, the oldest table exclusively; reads
-- the members, truncates that table and makes it the current one; returns whether it did. Does nothing unless
-- the current table has grown and every heartbeat in the oldest is older than any lease.
create or replace function rotate_heartbeats(full_bytes int8 default 4194304) returns boolean
language plpgsql volatile set search_path from current as $$
declare
    ring heartbeat_ring;
    next_slot int2;
    patience constant text := current_setting('lock_timeout');
begin
    select r.* into ring from heartbeat_ring r;
    if not found or pg_relation_size('group_heartbeat_' || ring.slot) < full_bytes
        or ring.rotated_at > clock_timestamp()
           - coalesce((select max(m.session_timeout_ms) from group_member m),
               0) * interval '1 millisecond' then
        return false;
    end if;
    perform from heartbeat_ring r where r.slot = ring.slot for update skip locked;
    if not found then
        return false;
    end if;
    next_slot := (ring.slot + 1) % 3;
    begin
        -- Whoever reads the table may hold this up, and would hold up everybody behind it: try for a moment,
        -- else at the next sweep.
        perform set_config('lock_timeout', '20ms', true);
        execute format('truncate group_heartbeat_%s', next_slot);
    exception when lock_not_available then
        return false;
    end;
    perform set_config('lock_timeout', patience, true);
    update heartbeat_ring r set slot = next_slot, rotated_at = clock_timestamp();
    return true;
end
$$;
