-- What a reader may see: only what a failover cannot take away. Each batch names the transaction that appended it, and
-- a snapshot says which transactions the synchronous standbys have: on the leader it is measured, on followers it is
-- the newest that the leader has left in the table seal. Commits of one partition come in the order of its offsets,
-- so what is safe is a prefix of it: the high watermark is where that ends.

-- Takes no lock, reads the state of replication, writes nothing, returns up to where as many standbys as
-- synchronous_standby_names asks for have flushed the write-ahead log; null: there are fewer, or the owner of the log
-- may not see them, which takes pg_read_all_stats.
create or replace function acked_lsn() returns pg_lsn
language plpgsql volatile security definer set search_path from current as $$
declare
    -- ANY k (...), FIRST k (...), k (...); a plain list asks for one.
    wanted constant int4 := coalesce(substring(current_setting('synchronous_standby_names')
        from '^\s*(?:[A-Za-z]+\s+)?(\d+)\s*\(')::int4, 1);
begin
    return (select w.flush_lsn from pg_catalog.pg_stat_get_wal_senders() w
            where w.sync_state in ('sync', 'quorum') and w.flush_lsn is not null
            order by w.flush_lsn desc offset wanted - 1 limit 1);
end
$$;

-- Takes no lock, reads the newest seals, writes nothing, returns the newest one that was made in this cluster: the
-- table may have come with a dump, and transactions and places in the write-ahead log mean nothing elsewhere.
create or replace function newest_seal() returns seal
language plpgsql stable set search_path from current as $$
declare
    newest seal;
begin
    select s.* into newest from seal s
    where s.xmin::text::int8 = s.xact & 4294967295
    order by s.seal_id desc limit 1;
    return newest;
end
$$;

-- Takes no lock; reads, in this order, the caller's snapshot, the end of the write-ahead log, what standbys have of it
-- and the newest seal; writes nothing; returns which transactions no failover takes away.
create or replace function replicated_snapshot() returns pg_snapshot
language plpgsql stable security definer set search_path from current as $$
declare
    written pg_lsn;
    acked pg_lsn;
    newest seal;
begin
    if not pg_is_in_recovery() then
        written := pg_current_wal_insert_lsn();
        acked := acked_lsn();
        if acked >= written then
            return pg_current_snapshot();
        end if;
    end if;
    newest := newest_seal();
    if acked >= newest.lsn then
        return newest.snapshot;
    end if;
    return coalesce(newest.confirmed, '1:1:');
end
$$;

-- Takes no lock, reads the settings and what replicated_snapshot() reads, writes nothing, returns which transactions no
-- failover takes away, for is_safe(). Null: all; nobody asks for standbys here. To be inlined.
create or replace function safe_limit() returns pg_snapshot
language sql stable
return case when current_setting('synchronous_standby_names') <> '' or current_setting('in_hot_standby') = 'on'
            then replicated_snapshot() end;

-- Takes no lock, reads and writes nothing, returns whether what xact appended may be read, given safe_limit(). A number
-- that this cluster has not come to yet is another cluster's, from which it came with a dump. To be inlined.
create or replace function is_safe(xact int8, bound pg_snapshot) returns boolean
language sql stable
return bound is null or xact is null or pg_visible_in_snapshot(xact::text::xid8, bound)
    or (xact >= pg_snapshot_xmax(pg_current_snapshot())::text::int8
        and xact is distinct from pg_current_xact_id_if_assigned()::text::int8);

-- Takes no lock, reads the settings, writes nothing, returns what a batch that is appended now says of its transaction:
-- null if nobody asks for standbys, and so everybody may read it at once. To be inlined.
create or replace function appending_xact() returns int8
language sql volatile
return case when current_setting('synchronous_standby_names') <> '' then pg_current_xact_id()::text::int8 end;

-- Takes no lock beyond ACCESS SHARE; reads about log2(records) batches of one partition of one segment, from the
-- index; writes nothing; returns the last offset and the leader epoch of the last batch for which condition holds, of
-- those from low to high; null: for none. condition: over the batch b, $4 (bound) and $5 (epoch); true up to some
-- offset and false from there on.
create or replace function last_such_batch(
    topic_id int4, segment int4, "partition" int4, low int8, high int8, condition text, bound pg_snapshot, epoch int4,
    out last_offset int8, out leader_epoch int4)
language plpgsql stable set search_path from current as $$
begin
    execute format($search$
        with recursive search (low, high, last_offset, leader_epoch) as (
            select $2, $3, null::int8, null::int4
            union all
            select case when m.holds then m.last_offset + 1 else s.low end,
                   case when m.holds then s.high else (s.low + s.high) / 2 - 1 end,
                   case when m.holds then m.last_offset else s.last_offset end,
                   case when m.holds then m.leader_epoch else s.leader_epoch end
            from search s
            left join lateral (
                select b.last_offset, b.leader_epoch, %2$s as holds from %1$I b
                where b.partition = $1 and b.last_offset >= (s.low + s.high) / 2
                order by b.last_offset limit 1) m on true
            where s.low <= s.high)
        select s.last_offset, s.leader_epoch from search s where s.last_offset is not null
        order by s.last_offset desc limit 1 $search$,
        'b_' || topic_id || '_' || segment, condition)
    into last_offset, leader_epoch using "partition", low, high, bound, epoch;
end
$$;

-- Takes no lock beyond ACCESS SHARE; reads the catalog and searches the partition's segments, from the last one on;
-- writes nothing; returns the end of the last batch for which condition holds, and its leader epoch. Without any, but
-- with batches: where what PostgreSQL has of the partition begins; without batches: its end.
create or replace function last_such_end(
    topic_id int4, "partition" int4, condition text, bound pg_snapshot, epoch int4,
    out end_offset int8, out leader_epoch int4)
language plpgsql stable set search_path from current
set enable_seqscan = off set enable_bitmapscan = off as $$
#variable_conflict use_column
declare
    p topic_partition;
    leaf record;
    tip record;
    found_one boolean := false;
begin
    select q.* into p from topic_partition q
    where q.topic_id = last_such_end.topic_id and q.partition = last_such_end.partition;
    for leaf in
        select u.* from (
            select p.segment, p.segment_start as first_offset, 9223372036854775807 as last_offset
            union all
            select s.segment, s.first_offset, s.last_offset from sealed_segment s
            where s.topic_id = p.topic_id and s.partition = p.partition) u
        order by u.last_offset desc
    loop
        continue when to_regclass('b_' || p.topic_id || '_' || leaf.segment) is null;
        execute format('select b.last_offset, b.leader_epoch, %2$s as holds from %1$I b
                        where b.partition = $1 order by b.last_offset desc limit 1',
                       'b_' || p.topic_id || '_' || leaf.segment, condition)
        into tip using p.partition, null, null, bound, epoch;
        continue when tip.last_offset is null;
        found_one := true;
        if tip.holds then
            end_offset := tip.last_offset + 1;
            leader_epoch := tip.leader_epoch;
            return;
        end if;
        select f.last_offset + 1, f.leader_epoch into end_offset, leader_epoch
        from last_such_batch(p.topic_id, leaf.segment, p.partition, leaf.first_offset, tip.last_offset, condition,
                             bound, epoch) f;
        if end_offset is not null then
            return;
        end if;
    end loop;
    end_offset := case when found_one then greatest(p.log_start, p.local_start) else p.segment_start end;
end
$$;

-- Takes no lock beyond ACCESS SHARE; reads the partition's tip, and searches its batches only if that is not safe;
-- writes nothing; returns the high watermark: up to where the partition may be read, given safe_limit() and what
-- partition_tips() says of it. To be inlined.
create or replace function readable_end(
    bound pg_snapshot, topic_id int4, "partition" int4, log_start int8, end_offset int8, bytes int8, xact int8)
returns int8
language sql stable
return case
    when bound is null or end_offset = log_start or (bytes is not null and is_safe(xact, bound)) then end_offset
    else greatest(log_start, (last_such_end(topic_id, "partition", 'is_safe(b.xact, $4)', bound, null)).end_offset) end;

-- Takes no lock, reads the seals between two snapshots, writes nothing, returns whether later has, as committed,
-- transactions that earlier has not, other than those of seals.
create or replace function has_more(later pg_snapshot, earlier pg_snapshot) returns boolean
language plpgsql stable set search_path from current as $$
declare
    low constant int8 := pg_snapshot_xmax(earlier)::text::int8;
    high constant int8 := pg_snapshot_xmax(later)::text::int8;
begin
    return earlier is null
        or exists (select from pg_snapshot_xip(earlier) x where pg_visible_in_snapshot(x, later))
        -- A seal confirms the one before it, so there are only a few between the two.
        or high - low > (select count(*) from pg_snapshot_xip(later) x where x::text::int8 >= low)
                        + (select count(*) from (select s.xact from seal s where s.xmin::text::int8 = s.xact & 4294967295
                                                 order by s.seal_id desc limit 8) s
                           where s.xact >= low and s.xact < high);
end
$$;

-- Never waits: tries the lock of those who seal and, if somebody else has it, only looks. Reads the newest seal and the
-- state of replication; writes one row, if there is something that followers may see by now, or nothing is under way
-- to that and something was committed since, and none was written 20 ms ago; the commit waits for no standby. Returns
-- the newest seal, and whether something is committed here that followers may not see yet: call it again then. 25006: this is
-- a follower, LS012: isolation level, 42501: the owner of the log may not see standbys.
create or replace function seal(out sealed_to int8, out pending boolean)
language plpgsql volatile security definer set search_path from current as $$
declare
    newest seal;
    mine int8;
    lsn pg_lsn;
    now_here pg_snapshot;
    replicated pg_snapshot;
    arrived boolean;
    news boolean;
begin
    if pg_is_in_recovery() then
        raise read_only_sql_transaction using message = 'only the leader can seal';
    elsif current_setting('transaction_isolation') <> 'read committed' then
        perform raise_error('LS012', 'seal needs the isolation level READ COMMITTED', null,
            'Seal in a transaction of its own.');
    elsif current_setting('synchronous_standby_names') <> ''
          and not pg_has_role(current_user, 'pg_read_all_stats', 'usage') then
        raise insufficient_privilege using
            message = format('role %I, which owns the log, may not see how far standbys have come', current_user),
            hint = format('GRANT pg_read_all_stats TO %I; until then nothing that is appended can be read.', current_user);
    end if;
    if not pg_try_advisory_xact_lock(lock_class('seal'), 0) then
        newest := newest_seal();
        sealed_to := newest.seal_id;
        pending := has_more(pg_current_snapshot(), newest.confirmed);
        return;
    end if;
    newest := newest_seal();
    sealed_to := newest.seal_id;
    now_here := pg_current_snapshot();
    arrived := newest.lsn is not null
        and (current_setting('synchronous_standby_names') = '' or coalesce(acked_lsn() >= newest.lsn, false));
    replicated := case when arrived then newest.snapshot else newest.confirmed end;
    news := newest.seal_id is null or has_more(now_here, newest.snapshot);
    pending := has_more(now_here, replicated);
    if not (news and (arrived or newest.seal_id is null)
            or arrived and has_more(newest.snapshot, newest.confirmed))
       or news and clock_timestamp() < newest.sealed_at + interval '20 ms'
               and clock_timestamp() >= newest.sealed_at then
        return;
    end if;
    perform set_config('synchronous_commit', 'local', true);
    -- Its own number first, then who is under way. Numbers beyond it are left out: they may leave nothing in the
    -- write-ahead log, and be given once more by a server that takes over; those before it never are, since this row
    -- is in the log.
    mine := pg_current_xact_id()::text::int8;
    now_here := pg_current_snapshot();
    now_here := format('%s:%s:%s', least(pg_snapshot_xmin(now_here)::text::int8, mine),
                       least(pg_snapshot_xmax(now_here)::text::int8, mine),
                       (select string_agg(x::text, ',' order by x) from pg_snapshot_xip(now_here) x
                        where x::text::int8 < mine))::pg_snapshot;
    -- After the snapshot, and with the number in it.
    lsn := pg_logical_emit_message(true, 'logstore', '');
    insert into seal as s (xact, snapshot, lsn, confirmed)
    values (mine, now_here, lsn, replicated) returning s.seal_id into sealed_to;
end
$$;

-- Takes the locks of the rows that it deletes; deletes all seals but the newest hundred, returns how many: nobody looks at older ones.
create or replace function delete_old_seals() returns int8
language plpgsql volatile security definer set search_path from current as $$
declare
    deleted int8;
begin
    perform set_config('synchronous_commit', 'off', true);
    delete from seal s where s.seal_id < (select max(m.seal_id) - 100 from seal m);
    get diagnostics deleted = row_count;
    return deleted;
end
$$;

-- Takes no lock, reads the newest seal and the state of recovery, writes nothing, returns one row: the newest seal that
-- this server has, when the leader made it (ms since the epoch, the leader's clock), and how long ago, in ms, the
-- newest transaction that was replayed here had been committed; 0 if all that has arrived is replayed, null on a leader.
create or replace function replica_state(out seal_id int8, out sealed_at int8, out replay_lag_ms int8)
language plpgsql volatile security definer set search_path from current as $$
declare
    newest constant seal := newest_seal();
begin
    seal_id := newest.seal_id;
    sealed_at := floor(extract(epoch from newest.sealed_at) * 1000);
    if pg_is_in_recovery() then
        replay_lag_ms := case when pg_last_wal_receive_lsn() = pg_last_wal_replay_lsn() then 0
            else floor(extract(epoch from clock_timestamp() - pg_last_xact_replay_timestamp()) * 1000) end;
    end if;
end
$$;
