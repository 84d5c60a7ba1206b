-- What becomes of old records: which go and why, moving the start of the log, dropping whole segments.

-- Takes no lock beyond ACCESS SHARE; reads the catalog and the tip of each partition, in one snapshot; writes
-- nothing; returns what each partition of the topic has in each live segment, and why it is to go (null: it
-- stays): 'log start' (it lies below it already), 'retention.ms' or 'retention.bytes'. writing: the partition
-- would append to it. Only whole parts below the high watermark go, oldest first, as in
-- Kafka, and no younger than one that stays.
create or replace function retention_parts(topic_id int4)
returns table ("partition" int4, segment int4, first_offset int8, last_offset int8, records int8, bytes int8,
               max_timestamp int8, writing boolean, reason text)
language plpgsql stable security definer set search_path from current as $$
#variable_conflict use_column
declare
    id constant int4 := topic_id;
    configs constant jsonb := (select effective_configs(t.configs) from topic t where t.topic_id = id);
    -- A mirror's records go when they go in the log that it mirrors.
    deletes constant boolean := 'delete' = any (string_to_array(configs ->> 'cleanup.policy', ','))
        and not exists (select from mirrored_topic m where m.topic_id = id and m.state = 'mirror');
    -- Null: no limit.
    oldest constant numeric := case when deletes and (configs ->> 'retention.ms')::int8 >= 0
        then clock_ms() - (configs ->> 'retention.ms')::numeric end;
    -- Null: all of it may be read.
    bound constant pg_snapshot := safe_limit();
    most constant int8 := case when deletes and (configs ->> 'retention.bytes')::int8 >= 0
        then (configs ->> 'retention.bytes')::int8 end;
begin
    return query
        with p as materialized (
            select p.partition, p.log_start, p.local_start,
                   case when bound is not null then readable_to(id, p.partition) end as high_watermark
            from topic_partition p where p.topic_id = id),
        parts as (
            -- What is in files only; below, what is in this database.
            select p.partition, null::int4 as segment, f.first_offset, f.last_offset, f.records, f.log_bytes as bytes,
                   coalesce(f.max_timestamp, 0) as max_timestamp, false as writing
            from p cross join lateral remote_files(id, p.partition, p.log_start) f
            union all
            select z.partition, z.segment, z.first_offset, z.last_offset,
                   coalesce(z.records, z.last_offset - z.first_offset + 1) as records, z.bytes,
                   z.max_timestamp, false as writing
            from sealed_segment z
            join topic_segment s on s.topic_id = z.topic_id and s.segment = z.segment and s.live
            join p on p.partition = z.partition
            where z.topic_id = id and (z.last_offset >= p.local_start or p.local_start <= p.log_start)
            union all
            select e.partition, e.segment, e.segment_start, e.end_offset - 1, e.end_offset - e.segment_start,
                   e.bytes, e.max_timestamp, true
            from (select array_agg(id) as ids, array_agg(p.partition) as partitions from p) a,
                 lateral partition_tips(a.ids, a.partitions) e
            where e.bytes is not null),
        weighed as (
            select q.*, q.last_offset < p.log_start as gone, q.max_timestamp < oldest as expired,
                   coalesce(sum(q.bytes) over (partition by q.partition order by q.last_offset
                                               rows between 1 following and unbounded following), 0) >= most
                       as surplus,
                   coalesce(q.last_offset < p.high_watermark, true) as safe
            from parts q join p on p.partition = q.partition),
        judged as (
            select w.*, bool_and(coalesce(w.gone or w.safe and (w.expired or w.surplus), false))
                            over (partition by w.partition order by w.last_offset) as goes
            from weighed w)
        select j.partition, j.segment, j.first_offset, j.last_offset, j.records, j.bytes::int8,
               j.max_timestamp, j.writing,
               case when not j.goes then null when j.gone then 'log start' when j.expired then 'retention.ms'
                    else 'retention.bytes' end
        from judged j order by j.partition, j.last_offset;
end
$$;

-- Tries the topic's guard, and the row locks of partitions that have something to go, skipping those that
-- somebody else has (or, for one partition alone, waits for 50 ms, and raises 55P03 then); reads what
-- retention_parts() says, under the guard; where what a partition writes to has to go as well makes it go on to
-- the next segment (in an earlier call than the rest, if that has to be made first); writes the new log starts,
-- some partitions at a time: after about budget_ms, so that no append waits for long, the rest is for the next
-- call. Returns how many partitions, records and bytes went, which partitions were locked, and whether it is
-- worth while to call again at once.
create or replace function apply_retention(
    topic_id int4, budget_ms int4 default 20, only_partition int4 default null,
    out partitions int4, out records int8, out bytes int8, out locked int4[], out more boolean)
language plpgsql volatile security definer set search_path from current as $$
#variable_conflict use_column
declare
    id constant int4 := topic_id;
    begun timestamptz;
    active int4;
    doomed record;
    p topic_partition;
begin
    partitions := 0;
    records := 0;
    bytes := 0;
    locked := '{}';
    more := false;
    if not pg_try_advisory_xact_lock(lock_class('guard'), id) then
        return;
    end if;
    -- Appends do not wait for the disk because of it: what a crash takes away is done again.
    perform set_config('synchronous_commit', 'off', true);
    if only_partition is not null then
        perform set_config('lock_timeout', '50ms', true);
        perform from topic_partition q where q.topic_id = id and q.partition = only_partition
        for no key update;
    end if;
    select t.active_segment into active from topic t where t.topic_id = id;
    for doomed in
        select r.partition, max(r.last_offset) + 1 as log_start,
               max(r.last_offset) filter (where not r.writing) + 1 as sealed_start,
               sum(r.records) filter (where r.reason <> 'log start') as records,
               sum(r.bytes) filter (where r.reason <> 'log start') as bytes,
               sum(r.records) filter (where r.writing) as writing_records,
               sum(r.bytes) filter (where r.writing) as writing_bytes,
               coalesce(bool_or(r.writing), false) as everything,
               coalesce(bool_or(r.writing and r.segment = active), false) as needs_roll
        from retention_parts(id) r
        where r.reason is not null and (only_partition is null or r.partition = only_partition)
        group by r.partition
        having coalesce(bool_or(r.writing or r.reason <> 'log start'), false)
        order by bool_or(r.writing and r.segment = active) desc, r.partition
    loop
        if doomed.needs_roll then
            -- A transaction of its own: the others wait for nobody who makes tables.
            if roll_segment(id, active) <> active then
                more := true;
                return;
            end if;
            -- Not now: what is sealed may go all the same.
        end if;
        -- From the first lock on.
        if begun is null then
            begun := clock_timestamp();
        elsif clock_timestamp() > begun + budget_ms * interval '1 ms' then
            more := true;
            return;
        end if;
        select q.* into p from topic_partition q
        where q.topic_id = id and q.partition = doomed.partition for no key update skip locked;
        if not found then
            locked := locked || doomed.partition;
            continue;
        end if;
        if doomed.everything and not doomed.needs_roll
           and (select e.end_offset from partition_tips(array[id], array[doomed.partition]) e)
               = doomed.log_start then
            perform enter_segment(id, p.partition, p.segment, p.segment_start, active);
        else
            -- Somebody has appended since.
            doomed.log_start := doomed.sealed_start;
            doomed.records := doomed.records - coalesce(doomed.writing_records, 0);
            doomed.bytes := doomed.bytes - coalesce(doomed.writing_bytes, 0);
        end if;
        continue when (doomed.log_start > p.log_start) is not true;
        update topic_partition q set log_start = doomed.log_start
        where q.topic_id = id and q.partition = p.partition;
        partitions := partitions + 1;
        records := records + coalesce(doomed.records, 0);
        bytes := bytes + coalesce(doomed.bytes, 0);
    end loop;
end
$$;

-- Takes no lock, reads and writes nothing, returns the offset below which the partition's records are no longer
-- wanted in this database.
create or replace function kept_from(p topic_partition) returns int8
language sql immutable
return greatest(p.log_start, p.local_start);

-- Needs the topic's guard; takes ACCESS SHARE locks on the tables and reads their sizes; takes segments out of
-- the catalog, so that nobody finds them any more, and leaves their tables to next_drop(), from
-- file.delete.delay.ms on (somebody may be reading them); returns how many bytes they have on disk.
create or replace function retire_segments(topic_id int4, segments int4[]) returns int8
language plpgsql volatile set search_path from current as $$
#variable_conflict use_column
declare
    id constant int4 := topic_id;
    freed int8;
begin
    delete from sealed_segment z where z.topic_id = id and z.segment = any (segments);
    with gone as (
        delete from topic_segment s where s.topic_id = id and s.segment = any (segments)
        returning s.segment),
    dropped as (
        insert into dropped_segment (topic_id, segment, bytes, dropped_at, free_at)
        select id, g.segment,
               coalesce(pg_catalog.pg_total_relation_size(to_regclass('b_' || id || '_' || g.segment)), 0),
               to_timestamp(clock_ms() / 1000.0),
               clock_ms() + least((effective_configs(t.configs) ->> 'file.delete.delay.ms')::int8,
                                  4611686018427387903)
        from gone g join topic t on t.topic_id = id
        returning bytes)
    select coalesce(sum(d.bytes), 0) into freed from dropped d;
    return freed;
end
$$;

-- Takes no lock, reads the catalog, writes nothing, returns the live segments of the topic that nobody writes
-- to and that have no record at or above the start of its partition. What is being written anew goes when that is
-- done.
create or replace function expired_segments(topic_id int4) returns setof int4
language sql stable security definer set search_path from current
begin atomic
    select s.segment from topic_segment s join topic t on t.topic_id = s.topic_id
    where s.topic_id = expired_segments.topic_id and s.live and s.segment <> t.active_segment
      and not exists (select from topic_partition p
                      where p.topic_id = s.topic_id and p.segment = s.segment)
      and not exists (select from sealed_segment z
                      join topic_partition p on p.topic_id = z.topic_id and p.partition = z.partition
                      where z.topic_id = s.topic_id and z.segment = s.segment
                        and z.last_offset >= kept_from(p))
      and not exists (select from rewrite r
                      where r.topic_id = s.topic_id and s.segment = any (r.sources || r.merged))
    order by s.place;
end;

-- Tries the topic's guard; takes its expired segments out of the catalog, at most at_most of them, oldest first;
-- returns how many, and how many bytes they have on disk.
create or replace function drop_expired(
    topic_id int4, at_most int4 default 100, out segments int4, out bytes int8)
language plpgsql volatile security definer set search_path from current as $$
declare
    expired int4[];
begin
    segments := 0;
    bytes := 0;
    perform set_config('synchronous_commit', 'off', true);
    if pg_try_advisory_xact_lock(lock_class('guard'), topic_id) then
        expired := array(select e from expired_segments(topic_id) e limit at_most);
        if expired <> '{}' then
            segments := cardinality(expired);
            bytes := retire_segments(topic_id, expired);
        end if;
    end if;
end
$$;

-- Takes no lock, reads the catalog, writes nothing, returns whether the topic has files, or is to have some.
create or replace function in_files(topic_id int4) returns boolean
language sql stable set search_path from current
return exists (select from topic t where t.topic_id = in_files.topic_id and t.tiered)
    or exists (select from remote_segment f where f.topic_id = in_files.topic_id);

-- Takes no lock, reads the catalog, writes nothing, returns the neighbouring segments of the topic that should be
-- written anew (null: none) without what is not wanted here any more: those that are dropped never, or late, because
-- of the few records that a slower partition has in them. Each is expired for the most part, and together that
-- is a twentieth of the topic, and a segment or 1 MB; or they are many and small. What stays of them makes no more
-- than a segment, with records no further apart than segment.ms, so that nothing expires later than it may. Where a
-- partition's start is only late, because somebody has it locked, its segments are not written anew for that.
create or replace function segments_to_evacuate(topic_id int4) returns int4[]
language plpgsql stable security definer set search_path from current as $$
#variable_conflict use_column
declare
    id constant int4 := topic_id;
    t constant topic := (select u from topic u where u.topic_id = id);
    most_apart constant numeric := effective_configs(t.configs) ->> 'segment.ms';
    worth int8 := least(1048576, t.segment_bytes);
    leaf record;
    neighbours int4[];
    fits boolean;
    late int4[];
    dead int8 := 0;
    live int8 := 0;
    oldest int8;
    newest int8;
begin
    if exists (select from rewrite r where r.topic_id = id) then
        return null;
    end if;
    worth := greatest(worth, (select sum(z.bytes) / 20 from sealed_segment z where z.topic_id = id));
    -- Those of a topic with files stay apart: see source_is_done().
    for merging in 0 .. case when in_files(id) then 0 else 1 end loop
        neighbours := '{}';
        for leaf in
            select s.segment, s.place, coalesce(sum(z.bytes) filter (where z.last_offset < kept_from(p)), 0) as dead,
                   coalesce(sum(z.bytes) filter (where z.last_offset >= kept_from(p)), 0) as live,
                   min(z.min_timestamp) filter (where z.last_offset >= kept_from(p)) as oldest,
                   max(z.max_timestamp) filter (where z.last_offset >= kept_from(p)) as newest,
                   s.segment = t.active_segment
                   or exists (select from topic_partition q where q.topic_id = id and q.segment = s.segment)
                       as written
            from topic_segment s
            left join (sealed_segment z join topic_partition p
                       on p.topic_id = z.topic_id and p.partition = z.partition)
                on z.topic_id = s.topic_id and z.segment = s.segment
            where s.topic_id = id and s.live
            group by s.segment, s.place
            union all
            select null, 2147483647, 0, 0, null, null, true
            order by place
        loop
            continue when leaf.dead + leaf.live = 0 and not leaf.written;
            fits := not leaf.written and leaf.live > 0
                and case merging when 0 then leaf.dead >= leaf.live
                                 else leaf.dead + leaf.live < t.segment_bytes / 8 end;
            if fits then
                late := coalesce(late, array(select r.segment from retention_parts(id) r
                                             where r.reason <> 'log start' and r.segment is not null));
                fits := leaf.segment <> all (late);
            end if;
            if not fits or greatest(newest, leaf.newest) - least(oldest, leaf.oldest) > most_apart
               or live + leaf.live > t.segment_bytes then
                if cardinality(neighbours) >= 8 or merging = 0 and neighbours <> '{}' and dead >= worth then
                    return neighbours;
                end if;
                neighbours := '{}';
            end if;
            if neighbours = '{}' then
                dead := 0;
                live := 0;
                oldest := null;
                newest := null;
            end if;
            if fits then
                neighbours := neighbours || leaf.segment;
                dead := dead + leaf.dead;
                live := live + leaf.live;
                oldest := least(oldest, leaf.oldest);
                newest := greatest(newest, leaf.newest);
            end if;
        end loop;
    end loop;
    return null;
end
$$;

-- Tries the topic's guard; writes down that the segments_to_evacuate() are to be written anew, for rewrite_step()
-- to do it; returns whether there are any.
create or replace function start_evacuation(topic_id int4) returns boolean
language plpgsql volatile security definer set search_path from current as $$
declare
    sources int4[];
begin
    if pg_try_advisory_xact_lock(lock_class('guard'), topic_id) then
        sources := segments_to_evacuate(topic_id);
    end if;
    return sources is not null and start_rewrite(topic_id, 'evacuate', sources);
end
$$;

-- Takes no lock beyond ACCESS SHARE; reads the catalog; writes nothing; returns the topics that roll_topic() has
-- something to do in: their active segment is old, or a partition is still in an earlier one.
create or replace function topics_to_roll() returns table (topic_id int4, topic text)
language sql stable security definer set search_path from current
begin atomic
    select t.topic_id, t.name from topic t
    where t.roll_at <= clock_ms()
       or exists (select from topic_partition p
                  where p.topic_id = t.topic_id and p.segment < t.active_segment)
    order by t.topic_id;
end;

-- Tries the topic's guard; if the active segment is old and has records makes the next one (if it has none, it
-- is as old as if it were made now), else takes the partitions that are still in an earlier segment along,
-- those that nobody has locked, for about budget_ms: their appends wait for that. Returns whether it made a
-- segment, how many partitions it moved, and whether it is worth while to call again at once.
create or replace function roll_topic(
    topic_id int4, budget_ms int4 default 20,
    out rolled boolean, out moved int4, out more boolean)
language plpgsql volatile security definer set search_path from current as $$
#variable_conflict use_column
declare
    id constant int4 := topic_id;
    begun constant timestamptz := clock_timestamp();
    t topic;
    p topic_partition;
begin
    rolled := false;
    moved := 0;
    more := false;
    if not pg_try_advisory_xact_lock(lock_class('guard'), id) then
        return;
    end if;
    perform set_config('synchronous_commit', 'off', true);
    select u.* into t from topic u where u.topic_id = id;
    if t.roll_at <= clock_ms() then
        if exists (select from (select array_agg(id) as ids, array_agg(q.partition) as partitions
                                from topic_partition q
                                where q.topic_id = id and q.segment = t.active_segment) a,
                        lateral partition_tips(a.ids, a.partitions) e where e.bytes is not null) then
            rolled := roll_segment(id, t.active_segment) <> t.active_segment;
            more := rolled;
            return;
        end if;
        update topic u set roll_at = roll_time(effective_configs(u.configs)) where u.topic_id = id;
    end if;
    for p in
        select q.* from topic_partition q where q.topic_id = id and q.segment < t.active_segment
        order by q.partition for no key update skip locked
    loop
        perform enter_segment(id, p.partition, p.segment, p.segment_start, t.active_segment);
        moved := moved + 1;
        more := clock_timestamp() > begun + budget_ms * interval '1 ms';
        exit when more;
    end loop;
end
$$;

-- Takes no lock, reads the catalog, writes nothing, returns the topics in which retention may have something to
-- do: all those with a limit, with records that were deleted or are in files only, or with something under way.
create or replace function topics_to_expire() returns table (topic_id int4, topic text)
language sql stable security definer set search_path from current
begin atomic
    select t.topic_id, t.name
    from topic t, lateral (select effective_configs(t.configs) as configs) c
    where ('delete' = any (string_to_array(c.configs ->> 'cleanup.policy', ','))
           and (c.configs ->> 'retention.ms' <> '-1' or c.configs ->> 'retention.bytes' <> '-1'))
       or exists (select from topic_partition p where p.topic_id = t.topic_id and kept_from(p) > 0)
       or exists (select from rewrite r where r.topic_id = t.topic_id and r.kind = 'evacuate')
       -- Erasure closes segments, also such as have no record.
       or exists (select from topic_segment s
                  where s.topic_id = t.topic_id and s.live and s.segment <> t.active_segment
                    and not exists (select from topic_partition p
                                    where p.topic_id = t.topic_id and p.segment = s.segment)
                    and not exists (select from sealed_segment z
                                    where z.topic_id = t.topic_id and z.segment = s.segment))
    order by t.topic_id;
end;
