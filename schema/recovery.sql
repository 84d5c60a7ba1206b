-- After a restore. What came after the moment that was restored has happened all the same: others have seen it,
-- and numbers that were handed out then are handed out once more.

-- Takes the drain's lock, ACCESS EXCLUSIVE locks on the staging tables, the row locks of all partitions, ascending,
-- and of all transactional ids, to the end of the transaction; gives what is staged and not drained a new number; takes
-- numbers of another cluster, from which a dump came, off the batches; writes to each partition that is no mirror's
-- (those have the epochs of the other log) a leader epoch that nobody can have seen, and to each transactional id a
-- producer id that nobody has; returns how many of each. Its commit waits for no follower, since there may be none yet.
-- Needs a transaction in which nothing has been written. LS013: the server is a follower.
create or replace function recovered(out partitions int4, out producers int4)
language plpgsql volatile security definer set search_path from current as $$
declare
    mark drained;
begin
    if pg_is_in_recovery() then
        perform raise_error('LS013', 'the server is a follower: its leader is what was restored', null, null);
    end if;
    perform set_config('synchronous_commit', 'local', true);
    perform pg_advisory_xact_lock(lock_class('drain'), 0);
    select d.* into mark from drained d order by d.id desc limit 1;
    mark.base := coalesce(mark.base, '3:3:');
    mark.reached := coalesce(mark.reached, 0);
    perform renumber_staged(mark);
    update batches b set xact = null where b.xact >= pg_snapshot_xmax(pg_current_snapshot())::text::int8;
    perform from topic_partition p order by p.topic_id, p.partition for no key update;
    -- Further than the log that is lost can have come by restarts, each of which is one epoch, and elsewhere
    -- than another restore of the same backup.
    update topic_partition p set leader_epoch = p.leader_epoch + 256 + floor(random() * 256)::int4
    where not exists (select from mirrored_topic m where m.topic_id = p.topic_id and m.state = 'mirror');
    get diagnostics partitions = row_count;
    update producer p set producer_id = new_producer_id(), producer_epoch = 0;
    get diagnostics producers = row_count;
end
$$;
