-- Heartbeats and leases. A lease runs on the server's clock, from the member's newest heartbeat. Heartbeats
-- are inserts into a ring of three unlogged tables of which the oldest is truncated: no dead tuples, no
-- write-ahead log, no flush.

-- Takes no lock, reads the ring, writes a heartbeat (and, after a crash, the ring's row), returns nothing.
create or replace function record_heartbeat("group" int4, member_no int8) returns void
language plpgsql volatile set search_path from current as $$
declare
    current_slot int2;
begin
    select r.slot into current_slot from heartbeat_ring r;
    if not found then
        -- Fresh, or emptied by a crash or a promotion: every lease starts again.
        insert into heartbeat_ring (slot, born_at, rotated_at) values (0, clock_timestamp(), clock_timestamp()) on conflict do nothing;
        select r.slot into strict current_slot from heartbeat_ring r;
    end if;
    insert into group_heartbeat (slot, group_id, member_no, at)
    values (current_slot, record_heartbeat."group", record_heartbeat.member_no, clock_timestamp());
end
$$;

-- Takes no lock, reads the ring, writes nothing, returns the time of a member's newest heartbeat; null on a
-- follower, where there is no ring.
create or replace function last_heartbeat("group" int4, member_no int8) returns timestamptz
language plpgsql stable set search_path from current as $$
begin
    if pg_is_in_recovery() then
        return null;
    end if;
    return (select max(h.at) from group_heartbeat h
            where h.group_id = last_heartbeat."group" and h.member_no = last_heartbeat.member_no);
end
$$;

-- Takes no lock, reads the members and the ring, writes nothing, returns when a member's lease runs out; null
-- on a follower.
create or replace function lease_until(member group_member) returns timestamptz
language plpgsql stable set search_path from current as $$
begin
    if pg_is_in_recovery() then
        return null;
    end if;
    -- Without a row the ring has just been emptied: nobody has had a chance to beat.
    return greatest(member.lease_floor, last_heartbeat(member.group_id, member.member_no), pg_postmaster_start_time(),
                    coalesce((select r.born_at from heartbeat_ring r), clock_timestamp()))
           + member.session_timeout_ms * interval '1 millisecond';
end
$$;

-- Takes the ring's row lock (skips when somebody has it) and, briefly, the oldest table exclusively; reads
-- the members, truncates that table and makes it the current one. Does nothing unless the current table has
-- grown and every heartbeat in the oldest is older than any lease.
create or replace function rotate_heartbeats(full_bytes int8 default 4194304) returns boolean
language plpgsql volatile set search_path from current as $$
declare
    ring record;
    next_slot int2;
    patience constant text := current_setting('lock_timeout');
begin
    select r.slot, r.rotated_at into ring from heartbeat_ring r;
    if not found or pg_relation_size('group_heartbeat_' || ring.slot) < full_bytes
        or ring.rotated_at > clock_timestamp() - coalesce((select max(m.session_timeout_ms) from group_member m), 0) * interval '1 millisecond' then
        return false;
    end if;
    select r.slot into ring from heartbeat_ring r where r.slot = ring.slot for update skip locked;
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
