-- Writing segments anew: some of a topic's leaves are read, what is to stay is written to a new one that nobody
-- reads yet, and one small transaction puts it in their place. Offsets stay what they are: batches of a leaf that
-- was written anew cover the same offsets as before, without a gap, with fewer records in them (offset_deltas);
-- where a whole stretch is gone, a batch without records covers it.

-- Takes no lock, reads and writes nothing, returns for each key a number from 0 to 65535. The index <leaf>_key of
-- compacted topics is on these: few entries, so an append costs little, and few batches share one by chance.
create or replace function key_buckets(keys bytea[]) returns int4[]
language sql immutable parallel safe
return array(select pg_catalog.hash_array(array[k]) & 65535 from unnest(keys) k);

-- Tries the topic's guard; reads the catalog; writes down that these leaves are to be written anew, for
-- rewrite_step() to do it, kind being compact, erase (of all keys that are to be erased now) or evacuate (leave
-- out what lies below the log start); returns whether they are: not if the topic is gone, or has something under
-- way already. LS051: they are not neighbours, not live, or somebody still writes to one.
create or replace function start_rewrite(topic_id int4, kind text, sources int4[]) returns boolean
language plpgsql volatile security definer set search_path from current as $$
declare
    id constant int4 := topic_id;
    ordered int4[];
    fault text;
begin
    if (kind in ('compact', 'erase', 'evacuate') and cardinality(sources) > 0) is not true then
        perform raise_error('LS012', 'what is to be written anew, and why, has to be said', null, null);
    end if;
    if not pg_try_advisory_xact_lock(lock_class('guard'), id)
       or not exists (select from topic t where t.topic_id = id)
       or exists (select from rewrite r where r.topic_id = id) then
        return false;
    end if;
    ordered := array(select s.segment from topic_segment s
                     where s.topic_id = id and s.live and s.segment = any (sources) order by s.place);
    fault := case
        when cardinality(ordered) <> (select count(distinct u) from unnest(sources) u)
            then 'there are no such segments'
        when exists (select from topic_partition p where p.topic_id = id and p.segment = any (ordered))
            or exists (select from topic t where t.topic_id = id and t.active_segment = any (ordered))
            then 'a partition still writes to one of the segments'
        when exists (
            select from topic_segment s
            join (select min(o.place) as first, max(o.place) as last from topic_segment o
                  where o.topic_id = id and o.segment = any (ordered)) e on s.place between e.first and e.last
            where s.topic_id = id and s.live and s.segment <> all (ordered)
              and (exists (select from sealed_segment z where z.topic_id = id and z.segment = s.segment)
                   or exists (select from topic_partition p where p.topic_id = id and p.segment = s.segment)))
            then 'another segment lies between them' end;
    if fault is not null then
        perform raise_error('LS051', format('segments %s cannot be written anew: %s', sources::text, fault),
            jsonb_build_object('topic_id', id, 'segments', to_jsonb(sources)), null);
    end if;
    insert into rewrite (topic_id, kind, phase, sources, slices, delete_horizon, erasures)
    select id, start_rewrite.kind, case start_rewrite.kind when 'compact' then 'gather' else 'write' end, ordered,
           -- So that the keys of a slice fit into memory.
           (select 1 + coalesce(sum(coalesce(z.records, z.last_offset - z.first_offset + 1)), 0) / 400000
            from sealed_segment z where z.topic_id = id and z.segment = any (ordered)),
           clock_ms() + least((effective_configs(t.configs) ->> 'delete.retention.ms')::int8, 4611686018427387903),
           case start_rewrite.kind when 'erase'
               then array(select e.erasure_id from pending_erasures(id) e) else '{}' end
    from topic t where t.topic_id = id;
    return true;
end
$$;

-- Tries the lock under which one session writes a topic's leaves anew, and takes the row that start_rewrite() has
-- written (for which it waits only while somebody deletes the topic), both to the end of the transaction; does the
-- next step of what that says: reads at most max_records (more, if one batch has more), and makes, fills or swaps
-- tables; returns which step it was ('busy': somebody else is at it, or has the topic's guard), how many records it
-- read, and whether nothing is left to do. Appends are never in its way, nor is it in theirs. To be called in a
-- transaction of its own.
create or replace function rewrite_step(
    topic_id int4, max_records int4 default 250000,
    out phase text, out records int8, out finished boolean)
language plpgsql volatile security definer set search_path from current as $$
#variable_conflict use_column
declare
    id constant int4 := topic_id;
    r rewrite;
begin
    records := 0;
    finished := false;
    if not pg_try_advisory_xact_lock(lock_class('rewrite'), id) then
        phase := 'busy';
        return;
    end if;
    -- First of all rows, as delete_topic() does: neither has one that the other one wants.
    select w.* into r from rewrite w where w.topic_id = id for update;
    if not found then
        phase := 'none';
        finished := true;
        perform drop_scratch(id);
        return;
    end if;
    phase := r.phase;
    -- What a crash takes away is done again.
    perform set_config('synchronous_commit', 'off', true);
    if r.kind = 'compact' and not scratch_is_whole(r) then
        phase := case when restart_rewrite(r) then 'restart' else 'busy' end;
    elsif r.phase = 'gather' then
        records := gather_keys(r, rewrite_step.max_records);
    elsif r.phase = 'settle' then
        perform settle_keys(r);
    elsif r.phase = 'write' and r.target is null then
        phase := case when make_target(r) then 'target' else 'busy' end;
    elsif r.phase = 'write' and r.kind = 'compact' then
        records := write_compacted(r);
    elsif r.phase = 'write' then
        records := write_copied(r, rewrite_step.max_records);
    else
        finished := swap_segments(r);
        phase := case when finished is null then 'busy' else phase end;
        finished := coalesce(finished, false);
    end if;
end
$$;

-- Takes no lock, reads and writes nothing, returns the name of one of the tables that a topic's compaction works
-- with: what = key, winner or chunk.
create or replace function scratch(topic_id int4, what text) returns text
language sql immutable set search_path from current
return format('r_%s_%s', topic_id, what);

-- Takes no lock that others wait for; drops the tables that a topic's compaction has worked with; returns nothing.
create or replace function drop_scratch(topic_id int4) returns void
language plpgsql volatile set search_path from current set client_min_messages = warning as $$
begin
    execute format('drop table if exists %I, %I, %I', scratch(topic_id, 'key'), scratch(topic_id, 'winner'),
                   scratch(topic_id, 'chunk'));
end
$$;

-- Takes no lock that others wait for; makes the tables that a topic's compaction works with, empty but for a mark;
-- returns nothing. They are unlogged: whatever empties them takes the mark as well.
create or replace function make_scratch(topic_id int4) returns void
language plpgsql volatile set search_path from current as $$
begin
    perform drop_scratch(topic_id);
    -- The keys of one slice in one chunk, and where each was last.
    execute format('create unlogged table %I (slice int4, chunk int4, partitions int4[], keys bytea[],
                                              offsets int8[]) with (autovacuum_enabled = off)',
                   scratch(topic_id, 'key'));
    execute format('alter table %I alter partitions set storage external, alter keys set storage external,
                                   alter offsets set storage external', scratch(topic_id, 'key'));
    execute format('create index on %I (slice)', scratch(topic_id, 'key'));
    -- The records of a chunk that stay.
    execute format('create unlogged table %I (chunk int4, partitions int4[], offsets int8[])
                    with (autovacuum_enabled = off)', scratch(topic_id, 'winner'));
    execute format('alter table %I alter partitions set storage external, alter offsets set storage external',
                   scratch(topic_id, 'winner'));
    execute format('create index on %I (chunk)', scratch(topic_id, 'winner'));
    -- The batches of a chunk: those after one, up to and with another one. Chunks of a partition ascend.
    execute format('create unlogged table %I (chunk int4 primary key, segment int4, after_partition int4,
                    after_offset int8, to_partition int4, to_offset int8) with (autovacuum_enabled = off)',
                   scratch(topic_id, 'chunk'));
    execute format('insert into %I (chunk) values (-1)', scratch(topic_id, 'chunk'));
end
$$;

-- Takes no lock beyond ACCESS SHARE, reads the mark in the compaction's tables, writes nothing, returns whether
-- all is there that earlier steps have put there.
create or replace function scratch_is_whole(r rewrite) returns boolean
language plpgsql volatile set search_path from current as $$
declare
    whole boolean;
begin
    if to_regclass(scratch(r.topic_id, 'chunk')) is null then
        return r.phase = 'gather' and r.chunks = 0 and r.gathered = 0;
    end if;
    execute format('select exists (select from %I where chunk = -1)', scratch(r.topic_id, 'chunk')) into whole;
    return whole;
end
$$;

-- Tries the topic's guard; gives the leaf up that is being filled and begins again with what is left to do;
-- returns whether it could.
create or replace function restart_rewrite(r rewrite) returns boolean
language plpgsql volatile set search_path from current as $$
begin
    if not pg_try_advisory_xact_lock(lock_class('guard'), r.topic_id) then
        return false;
    end if;
    if r.target is not null then
        perform retire_segments(r.topic_id, array[r.target]);
    end if;
    perform drop_scratch(r.topic_id);
    delete from rewrite_tally w where w.topic_id = r.topic_id;
    update rewrite w set
        phase = case w.kind when 'compact' then 'gather' else 'write' end,
        sources = w.merged || w.sources, merged = '{}', target = null, slice = 0, chunks = 0, chunk = 0,
        gathered = 0, partition = -1, last_offset = -1
    where w.topic_id = r.topic_id;
    return true;
end
$$;

-- Tries the topic's guard; stops what is under way in a topic and gives the leaf up that is being filled; returns
-- whether it could. Nothing is lost: what was not swapped yet is as it was.
create or replace function cancel_rewrite(topic_id int4) returns boolean
language plpgsql volatile security definer set search_path from current as $$
declare
    r rewrite;
begin
    if not pg_try_advisory_xact_lock(lock_class('rewrite'), topic_id) then
        return false;
    end if;
    select w.* into r from rewrite w where w.topic_id = cancel_rewrite.topic_id;
    if found then
        if not restart_rewrite(r) then
            return false;
        end if;
        delete from rewrite w where w.topic_id = cancel_rewrite.topic_id;
    end if;
    return true;
end
$$;

-- Tries the topic's guard; makes the leaf that the next sources are merged into, in the place of the last of them
-- all, and attaches it without showing it; returns whether it could. A step of its own, because attaching locks
-- the topic's table to the end of the transaction, and a leaf that is to be made for appends would wait.
create or replace function make_target(r rewrite) returns boolean
language plpgsql volatile set search_path from current as $$
declare
    number int4;
begin
    if not pg_try_advisory_xact_lock(lock_class('guard'), r.topic_id) then
        return false;
    end if;
    -- The place is what it is merged from has, once it is known.
    number := add_segment(r.topic_id, false, (select s.place from topic_segment s
                                              where s.topic_id = r.topic_id and s.segment = r.sources[1]));
    update topic_segment s set rewritten = true where s.topic_id = r.topic_id and s.segment = number;
    update rewrite w set target = number where w.topic_id = r.topic_id;
    return true;
end
$$;

-- Takes no lock beyond ACCESS SHARE; reads batches of a leaf behind one of them, without their arrays; writes
-- nothing; returns the last one of the next stretch that has at most max_records and 16 MB (but one batch at
-- least), its records, and whether it is the last of the leaf. Null: there is none (or no such leaf).
create or replace function next_stretch(
    topic_id int4, segment int4, after_partition int4, after_offset int8, max_records int4,
    out "partition" int4, out last_offset int8, out records int8, out at_end boolean)
language plpgsql stable set search_path from current
set enable_seqscan = off set enable_bitmapscan = off set enable_sort = off as $$
declare
    leaf constant text := format('b_%s_%s', topic_id, segment);
begin
    at_end := true;
    if to_regclass(leaf) is null then
        return;
    end if;
    execute format($stretch$
        select u.partition, u.last_offset, u.upto
        from (select b.partition, b.last_offset, b.record_count, b.size_bytes, row_number() over w as n,
                     sum(b.record_count) over w as upto, sum(b.size_bytes) over w as bytes
              from %I b where (b.partition, b.last_offset) > ($1, $2)
              window w as (order by b.partition, b.last_offset rows unbounded preceding)
              order by b.partition, b.last_offset limit $3) u
        where u.n = 1 or u.upto <= $3 and u.bytes <= 16777216
        order by u.n desc limit 1 $stretch$, leaf)
    into "partition", last_offset, records using after_partition, after_offset, max_records;
    execute format('select not exists (select from %I b where (b.partition, b.last_offset) > ($1, $2))', leaf)
    into at_end using coalesce("partition", after_partition), coalesce(last_offset, after_offset);
end
$$;

-- Takes no lock, reads and writes nothing, returns a statement that writes batches to the leaf that is being
-- filled, with the columns that follow from the batches before them in it, and tells rewrite_tally; it returns how
-- many records and bytes these are. Its parameters are those of the query; $1 is the topic, $9 the leaf's number.
create or replace function fill_target(target text, query text) returns text
language sql immutable set search_path from current
return format($fill$
    with fresh as materialized (%2$s),
    tip as (
        select p.partition, b.segment_bytes, b.segment_max_timestamp, b.segment_min_timestamp, b.segment_disorder
        from (select distinct f.partition from fresh f) p
        cross join lateral (select b.* from %1$I b where b.partition = p.partition
                            order by b.last_offset desc limit 1) b),
    sized as (
        select f.*, coalesce(f.size_bytes, coalesce(pg_column_size(f.timestamps), 0)
                   + coalesce(pg_column_size(f.keys), 0) + coalesce(pg_column_size(f."values"), 0)
                   + coalesce(pg_column_size(f.header_records), 0) + coalesce(pg_column_size(f.header_keys), 0)
                   + coalesce(pg_column_size(f.header_values), 0)) as size
        from fresh f),
    run as (
        select s.*, t.segment_disorder as tip_disorder,
               coalesce(t.segment_bytes, 0) + sum(s.size) over w as segment_bytes,
               greatest(t.segment_max_timestamp, max(s.max_timestamp) over w) as segment_max_timestamp,
               least(t.segment_min_timestamp, min(s.min_timestamp) over w) as segment_min_timestamp
        from sized s left join tip t on t.partition = s.partition
        window w as (partition by s.partition order by s.last_offset rows unbounded preceding)),
    written as (
        insert into %1$I (
            topic_id, segment, partition, base_offset, last_offset, leader_epoch, timestamp_type, append_time,
            xact, producer_id, producer_epoch, base_sequence, last_sequence, record_count, size_bytes,
            max_timestamp, segment_bytes, segment_max_timestamp, segment_min_timestamp, segment_disorder,
            offset_deltas, timestamps, keys, "values", header_records, header_keys, header_values, delete_horizon)
        select $1, $9, r.partition, r.base_offset, r.last_offset, r.leader_epoch, r.timestamp_type, r.append_time,
               r.xact, r.producer_id, r.producer_epoch, r.base_sequence, r.last_sequence, r.record_count,
               r.size, r.max_timestamp, r.segment_bytes, r.segment_max_timestamp, r.segment_min_timestamp,
               greatest(r.tip_disorder, 0, max(r.segment_max_timestamp - r.min_timestamp) over (
                   partition by r.partition order by r.last_offset rows unbounded preceding)),
               r.offset_deltas, r.timestamps, r.keys, r."values", r.header_records, r.header_keys, r.header_values,
               r.delete_horizon
        from run r
        returning partition, base_offset, record_count, size_bytes, delete_horizon),
    tallied as (
        insert into rewrite_tally as y (topic_id, partition, first_offset, records, tombstones_until)
        select $1, w.partition, min(w.base_offset), sum(w.record_count), max(w.delete_horizon)
        from written w group by w.partition
        on conflict (topic_id, partition) do update set
            records = y.records + excluded.records,
            tombstones_until = greatest(y.tombstones_until, excluded.tombstones_until))
    select coalesce(sum(w.record_count), 0), coalesce(sum(w.size_bytes), 0) from written w $fill$, target, query);

-- Goes on from one source to the next once all of it is in target: takes ACCESS SHARE locks, reads the catalog and
-- the tips of target, writes the state, returns nothing. The next source is merged into the same leaf if it cannot
-- become larger than segment.bytes by that, and the topic has no files, each of which is as long as what a segment
-- had of a partition, and leaves PostgreSQL as one.
create or replace function source_is_done(r rewrite) returns void
language plpgsql volatile set search_path from current
set enable_seqscan = off set enable_bitmapscan = off as $$
declare
    full_now boolean := cardinality(r.sources) = 1 or in_files(r.topic_id);
begin
    if not full_now then
        execute format($full$
            select exists (
                select from sealed_segment z join topic t on t.topic_id = z.topic_id
                cross join lateral (select b.segment_bytes from %I b where b.partition = z.partition
                                    order by b.last_offset desc limit 1) l
                where z.topic_id = $1 and z.segment = $2 and l.segment_bytes + z.bytes > t.segment_bytes)
            $full$, format('b_%s_%s', r.topic_id, r.target))
        into full_now using r.topic_id, r.sources[2];
    end if;
    update rewrite w set
        merged = w.merged || w.sources[1], sources = w.sources[2:], partition = -1, last_offset = -1,
        phase = case when full_now then 'swap' else w.phase end
    where w.topic_id = r.topic_id;
end
$$;

-- Tries the topic's guard; puts target in the place of what was merged into it, in the catalog, so that every
-- snapshot sees either; leaves the old leaves to next_drop(). Begins again if something was left out that has been
-- taken back from files meanwhile. Returns whether that was all (then it drops the tables it worked with), null: it
-- could not have the guard.
create or replace function swap_segments(r rewrite) returns boolean
language plpgsql volatile set search_path from current
set enable_seqscan = off set enable_bitmapscan = off as $$
declare
    sealed sealed_segment[];
begin
    if not pg_try_advisory_xact_lock(lock_class('guard'), r.topic_id) then
        return null;
    end if;
    if r.kind = 'evacuate' and in_files(r.topic_id) and exists (
        select from sealed_segment z
        join topic_partition p on p.topic_id = z.topic_id and p.partition = z.partition
        left join rewrite_tally y on y.topic_id = z.topic_id and y.partition = z.partition
        where z.topic_id = r.topic_id and z.segment = any (r.merged) and z.last_offset >= kept_from(p)
          and (y.first_offset <= greatest(kept_from(p), z.first_offset)) is not true) then
        perform restart_rewrite(r);
        return false;
    end if;
    perform set_config('synchronous_commit', 'on', true);
    execute format($sealed$
        select array_agg((y.topic_id, y.partition, $2, y.first_offset, l.last_offset, l.segment_bytes,
                          l.segment_min_timestamp, l.segment_max_timestamp, l.segment_disorder, y.records,
                          case when $3 then clock_ms() else c.cleaned_at end,
                          y.tombstones_until)::sealed_segment)
        from rewrite_tally y
        cross join lateral (select b.* from %I b where b.partition = y.partition
                            order by b.last_offset desc limit 1) l
        cross join lateral (select case when count(*) = count(z.cleaned_at) then min(z.cleaned_at) end as cleaned_at
                            from sealed_segment z
                            where z.topic_id = y.topic_id and z.partition = y.partition
                              and z.segment = any ($4)) c
        where y.topic_id = $1 $sealed$, format('b_%s_%s', r.topic_id, r.target))
    into sealed using r.topic_id, r.target, r.kind = 'compact', r.merged;
    update topic_segment s set live = true, place = m.place
    from (select max(o.place) as place from topic_segment o
          where o.topic_id = r.topic_id and o.segment = any (r.merged)) m
    where s.topic_id = r.topic_id and s.segment = r.target and m.place is not null;
    perform retire_segments(r.topic_id, r.merged);
    insert into sealed_segment select z.* from unnest(sealed) z;
    delete from rewrite_tally y where y.topic_id = r.topic_id;
    -- Nothing is left of them: no leaf is needed.
    if not exists (select from sealed_segment z where z.topic_id = r.topic_id and z.segment = r.target) then
        perform retire_segments(r.topic_id, array[r.target]);
    end if;
    if cardinality(r.sources) > 0 then
        update rewrite w set phase = 'write', target = null, merged = '{}' where w.topic_id = r.topic_id;
        return false;
    end if;
    delete from rewrite w where w.topic_id = r.topic_id;
    perform drop_scratch(r.topic_id);
    return true;
end
$$;

-- What is being written anew, and how far it has come.
create or replace view rewrites as
select t.topic_id, t.name as topic, r.kind, r.phase, cardinality(r.merged || r.sources) as segments_left,
       r.records_read, r.records_kept, r.bytes_read, r.bytes_kept, r.started_at
from rewrite r join topic t on t.topic_id = r.topic_id;
