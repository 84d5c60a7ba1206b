-- Leader epochs: which history a record belongs to. A server's start and its timeline make a new one, so an offset that
-- was lost and is given once more has another epoch the second time.

-- Takes no lock, reads the end of the write-ahead log and the control file, writes nothing, returns the timeline: the
-- one that is written, on a follower the one that is replayed. (The checkpoint's is the old one for a while.)
create or replace function timeline() returns int4
language plpgsql volatile security definer set search_path from current as $$
begin
    if not pg_is_in_recovery() then
        return ('x' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8))::bit(32)::int4;
    end if;
    return greatest((select c.timeline_id from pg_control_checkpoint() c),
                    (select r.min_recovery_end_timeline from pg_control_recovery() r),
                    (select w.received_tli from pg_stat_get_wal_receiver() w));
end
$$;

-- Needs the partition's row lock; reads when the server was started; writes the partition's row, and makes the
-- commit flush it: batches that a later start of this server appends, or another server's that was promoted, have
-- another leader epoch than this one's, even where some that were here are gone. Returns the leader epoch.
create or replace function raise_epoch(topic_id int4, "partition" int4) returns int4
language plpgsql volatile set search_path from current as $$
#variable_conflict use_column
declare
    raised int4;
begin
    if current_setting('synchronous_commit') = 'off' then
        perform set_config('synchronous_commit', 'local', true);
    end if;
    update topic_partition p set
        leader_epoch = greatest(p.leader_epoch + 1, least(timeline() - 1, 32767) << 16),
        boot = pg_postmaster_start_time()
    where p.topic_id = raise_epoch.topic_id and p.partition = raise_epoch.partition
    returning p.leader_epoch into raised;
    return raised;
end
$$;

-- Takes no lock beyond ACCESS SHARE; reads the partitions' tips and, of each, the batch that holds the offset before
-- offsets[i], whose leader epoch was epochs[i] for whoever has read it; writes nothing; returns a row where the log
-- does not go on from there: the largest leader epoch that is not above it, and where that ends here (both null: there
-- is none). Nothing is said of partitions that are gone, of what is in files only, and by a follower of what it does
-- not have yet.
create or replace function epoch_ends(topic_ids int4[], partitions int4[], epochs int4[], offsets int8[])
returns table (idx int4, leader_epoch int4, end_offset int8)
language plpgsql stable security definer set search_path from current
set enable_seqscan = off set enable_bitmapscan = off as $$
#variable_conflict use_column
declare
    part record;
    p topic_partition;
    found_epoch int4;
begin
    for part in
        select t.*, epochs[t.idx] as epoch, offsets[t.idx] as "offset"
        from partition_tips(topic_ids, partitions) t
        where t.log_start is not null and epochs[t.idx] is not null and offsets[t.idx] > 0
          and (t.local_start < offsets[t.idx] or t.end_offset < offsets[t.idx])
        order by t.idx
    loop
        if part.end_offset < part."offset" then
            continue when pg_is_in_recovery();
        else
            select q.* into p from topic_partition q
            where q.topic_id = part.topic_id and q.partition = part.partition;
            execute format('select b.leader_epoch from %I b where b.partition = $1 and b.last_offset >= $2
                            order by b.last_offset limit 1',
                           'b_' || part.topic_id || '_' || segment_of(p, part."offset" - 1))
            into found_epoch using part.partition, part."offset" - 1;
            continue when found_epoch = part.epoch or found_epoch is null;
        end if;
        idx := part.idx;
        select e.leader_epoch, e.end_offset into leader_epoch, end_offset
        from last_such_end(part.topic_id, part.partition, 'b.leader_epoch <= $5', null, part.epoch) e;
        return next;
    end loop;
end
$$;
