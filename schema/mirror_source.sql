-- Mirrors: the side that is copied from. Nothing here writes, but the fence.

-- The shape of what mirror_read() returns: a view, so that it can be replaced.
create or replace view mirrored_batch as
select b.base_offset, b.last_offset, b.record_count, b.leader_epoch, b.timestamp_type, b.append_time,
       b.max_timestamp, b.timestamps, b.keys, b."values", b.header_records, b.header_keys, b.header_values,
       b.offset_deltas, b.size_bytes
from batches b where false;

-- Takes no lock beyond ACCESS SHARE; reads the partition's row and batches from the one that holds offset on, below
-- the high watermark, over the ends of segments, in one snapshot; writes nothing; returns whole batches in order: at
-- least one, and as many as fit max_bytes. None: there is none, or offset lies outside of what PostgreSQL has of
-- the partition. It counts against no quota.
create or replace function mirror_read(topic_id int4, "partition" int4, "offset" int8, max_bytes int4)
returns setof mirrored_batch
language plpgsql stable security definer set search_path from current
-- The server may know nothing of a new leaf; its index is the way whatever it believes.
set enable_seqscan = off set enable_bitmapscan = off as $$
declare
    tip record;
    leaf text;
    batch mirrored_batch;
    remaining int8 := max_bytes;
    begun boolean := false;
begin
    select t.segment, t.segment_start, t.local_start, h.high_watermark into tip
    from partition_tips(array[mirror_read.topic_id], array[mirror_read.partition]) t,
         high_watermarks(array[mirror_read.topic_id], array[mirror_read.partition]) h;
    if ("offset" >= tip.local_start and "offset" < tip.high_watermark) is not true then
        return;
    end if;
    for leaf in
        select 'b_' || mirror_read.topic_id || '_' || u.segment
        from (select s.segment, s.last_offset from sealed_segment s
              join topic_segment g on g.topic_id = s.topic_id and g.segment = s.segment and g.live
              where s.topic_id = mirror_read.topic_id and s.partition = mirror_read.partition
                and s.last_offset >= mirror_read."offset"
              union all select tip.segment, 9223372036854775807) u
        order by u.last_offset
    loop
        -- It has been dropped since: the caller asks again.
        exit when to_regclass(leaf) is null;
        -- Rows come as the loop goes on, so leaving it leaves the others unread.
        for batch in execute format($batches$
            select b.base_offset, b.last_offset, b.record_count, b.leader_epoch, b.timestamp_type, b.append_time,
                   b.max_timestamp, b.timestamps, b.keys, b."values", b.header_records, b.header_keys,
                   b.header_values, b.offset_deltas, b.size_bytes
            from %I b where b.partition = $1 and b.last_offset >= $2 and b.last_offset < $3
            order by b.last_offset $batches$, leaf)
            using "partition", "offset", tip.high_watermark
        loop
            if begun and batch.size_bytes > remaining then
                return;
            end if;
            return next batch;
            begun := true;
            remaining := remaining - batch.size_bytes;
        end loop;
    end loop;
end
$$;

-- Takes no lock beyond ACCESS SHARE; reads the partitions' rows, the last batch of each and the one that holds the
-- offset (of the next record that a mirror lacks); writes nothing; returns for the i-th partition where it can be
-- read (null: there is no such partition), its leader epoch, from where on its records are in PostgreSQL and, if
-- the mirror lacks any, when the first of them was appended, in ms (null: it is in a file).
create or replace function mirror_lag(topic_ids int4[], partitions int4[], offsets int8[])
returns table (idx int4, log_start int8, high_watermark int8, leader_epoch int4, local_start int8, waiting_since int8)
language plpgsql stable security definer set search_path from current
set enable_seqscan = off set enable_bitmapscan = off as $$
#variable_conflict use_column
declare
    part record;
    wanted int8;
    leaf text;
begin
    for part in
        select t.*, h.high_watermark as hw
        from partition_tips(topic_ids, partitions) t
        join high_watermarks(topic_ids, partitions) h on h.idx = t.idx
        order by t.idx
    loop
        idx := part.idx;
        log_start := part.log_start;
        high_watermark := part.hw;
        leader_epoch := part.leader_epoch;
        local_start := part.local_start;
        waiting_since := null;
        wanted := greatest(offsets[part.idx], part.log_start);
        if wanted >= part.local_start and wanted < part.hw then
            leaf := 'b_' || part.topic_id || '_' || coalesce(
                (select s.segment from sealed_segment s
                 join topic_segment g on g.topic_id = s.topic_id and g.segment = s.segment and g.live
                 where s.topic_id = part.topic_id and s.partition = part.partition and s.last_offset >= wanted
                 order by s.last_offset limit 1), part.segment);
            if to_regclass(leaf) is not null then
                execute format('select b.append_time from %I b where b.partition = $1 and b.last_offset >= $2
                                order by b.last_offset limit 1', leaf)
                into waiting_since using part.partition, wanted;
            end if;
        end if;
        return next;
    end loop;
end
$$;

-- Takes no lock beyond ACCESS SHARE; reads the batch that holds offset; writes nothing; returns its leader epoch,
-- null: there is no such batch in PostgreSQL. A mirror that ends behind it asks: another epoch than its own last
-- batch's means that the two logs have parted.
create or replace function epoch_of(topic_id int4, "partition" int4, "offset" int8) returns int4
language sql stable security definer set search_path from current
return (select b.leader_epoch
        from mirror_read(epoch_of.topic_id, epoch_of.partition, epoch_of."offset", 1) b
        where b.base_offset <= epoch_of."offset" limit 1);

-- Waits for the topic's guard and for the appends that are under way in it; makes it read-only, under a newer leader
-- epoch: from the commit on nobody appends to it, but draining what has been staged before. peer: log_identity()
-- of the log that has the mirror. Once it is fenced for that peer, it only answers. Returns the leader epochs, of
-- partition p at p + 1. LS001, LS061: it is a mirror itself, or fenced for another log.
create or replace function fence_topic(name text, peer text, peer_topic_id int4, peer_address text) returns int4[]
language plpgsql volatile security definer set search_path from current as $$
#variable_conflict use_column
declare
    t constant topic := guarded_topic(fence_topic.name);
    m mirrored_topic;
begin
    perform set_config('synchronous_commit', 'on', true);
    select x.* into m from mirrored_topic x where x.topic_id = t.topic_id for update;
    if m.state = 'mirror' then
        perform refuse_mirror(t.name, 'mirror', 'it is a mirror itself', 'Promote that one first.');
    elsif m.state = 'fenced' and m.peer <> fence_topic.peer then
        perform refuse_mirror(t.name, 'other_peer', format('%s has taken its place already', m.peer_address), null);
    elsif m.state is distinct from 'fenced' then
        perform from topic_partition p where p.topic_id = t.topic_id order by p.partition for update;
        update topic_partition p set read_only = true, leader_epoch = p.leader_epoch + 1
        where p.topic_id = t.topic_id;
        update topic u set read_only = true where u.topic_id = t.topic_id;
        insert into mirrored_topic as x (topic_id, state, peer, peer_topic_id, peer_address)
        values (t.topic_id, 'fenced', fence_topic.peer, fence_topic.peer_topic_id, fence_topic.peer_address)
        on conflict on constraint mirrored_topic_pkey do update set
            state = 'fenced', peer = excluded.peer, peer_topic_id = excluded.peer_topic_id,
            peer_address = excluded.peer_address, changed_at = clock_timestamp(),
            peer_starts = null, peer_ends = null, seen_at = null;
    end if;
    return array(select p.leader_epoch from topic_partition p where p.topic_id = t.topic_id order by p.partition);
end
$$;

-- Waits, for as long as lock_timeout says, for the transactions that are open and have staged records, and keeps
-- others from staging meanwhile: locks the staging tables in SHARE mode to the end of the transaction. Reads and
-- writes nothing, returns nothing. Whatever was staged before a topic was fenced is committed, or gone, then.
create or replace function settle_staged() returns void
language plpgsql volatile security definer set search_path from current as $$
begin
    lock table staged_0, staged_1, staged_2 in share mode;
end
$$;

-- What is mirrored here, what has been promoted, and what is fenced.
create or replace view mirrors as
select t.name as topic, t.topic_id, m.state, m.peer_address, m.peer, m.peer_topic_id, m.changed_at, p.partition,
       e.log_start, e.end_offset, e.leader_epoch, m.peer_starts[p.partition + 1] as peer_start,
       m.peer_ends[p.partition + 1] as peer_end, m.seen_at
from mirrored_topic m
join topic t on t.topic_id = m.topic_id
join topic_partition p on p.topic_id = t.topic_id
cross join lateral partition_tips(array[t.topic_id], array[p.partition]) e;

-- Takes no lock, reads the table of mirrors, writes nothing, returns whether there are any to be copied to.
create or replace function mirror_wanted() returns boolean
language sql stable security definer set search_path from current
return exists (select from mirrored_topic m where m.state = 'mirror');
