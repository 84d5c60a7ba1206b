-- Mirrors: topics that are copied from another log, offset for offset. Here is the side that is copied to. How far a
-- mirror has come is nowhere written down: it is where its partitions end.

-- Takes no lock, reads why the topic is read-only, writes nothing, never returns: raises LS060.
create or replace function refuse_writer(topic_id int4) returns void
language plpgsql stable set search_path from current as $$
declare
    m record;
begin
    select t.name, x.state, x.peer_address into m
    from topic t left join mirrored_topic x on x.topic_id = t.topic_id
    where t.topic_id = refuse_writer.topic_id;
    perform raise_error('LS060',
        format('topic %s is read-only: %s', m.name, case m.state
            when 'mirror' then format('it mirrors the one of %s', m.peer_address)
            else format('its mirror, %s, has taken its place', m.peer_address) end),
        jsonb_build_object('topic', m.name, 'topic_id', topic_id, 'state', m.state, 'peer', m.peer_address),
        case m.state when 'mirror' then 'Write to the log that it mirrors; logstore mirror promote ends that.'
                     else 'Write to the log that has taken its place.' end);
end
$$;

-- Takes no lock, reads and writes nothing, never returns: raises LS061.
create or replace function refuse_mirror(topic text, reason text, message text, hint text) returns void
language plpgsql immutable set search_path from current as $$
begin
    perform raise_error('LS061', format('topic %s cannot be mirrored: %s', topic, message),
        jsonb_build_object('topic', topic, 'reason', reason), hint);
end
$$;

-- Waits for the topic's guard and row; reads the catalog; makes the topic, read-only, if there is none with that
-- name, or makes one with no record ever the mirror, or one that was fenced for this peer; adds partitions, sets
-- the configs that differ (those that this server does not know, or cannot apply, are left as they are); writes
-- whose mirror it is; returns the topic's id and the configs that were left. peer: log_identity() of the log it is
-- copied from. LS061: it has records of its own, has another peer, has been promoted, or the peer's topic is
-- another than the one that was copied so far. LS003, LS005.
create or replace function begin_mirror(
    name text, peer text, peer_topic_id int4, peer_address text, partitions int4, configs jsonb,
    out topic_id int4, out configs_left text[])
language plpgsql volatile security definer set search_path from current as $$
#variable_conflict use_column
declare
    t topic;
    m mirrored_topic;
    config text;
    value text;
begin
    configs_left := '{}';
    if not exists (select from topic u where u.name = begin_mirror.name) then
        perform create_topic(begin_mirror.name, begin_mirror.partitions, null, true);
    end if;
    t := guarded_topic(begin_mirror.name);
    topic_id := t.topic_id;
    select x.* into m from mirrored_topic x where x.topic_id = t.topic_id for update;
    if m.topic_id is null then
        if exists (select from partitions p where p.topic = t.name and p.high_watermark > 0)
           or exists (select from outbox o where o.topic = t.name) then
            perform refuse_mirror(t.name, 'not_a_mirror', 'there is a topic with this name, and it has records',
                'Delete that topic, or mirror to a log without it.');
        end if;
    elsif m.state = 'promoted' then
        perform refuse_mirror(t.name, 'promoted', format('it was one of %s, and has been promoted', m.peer_address),
            'It leads now: mirror the other way round, or delete the one of the two that is not wanted.');
    elsif m.peer <> begin_mirror.peer then
        perform refuse_mirror(t.name, 'other_peer', format('it belongs with the one of %s', m.peer_address),
            'Use the log that it has been copied from.');
    elsif m.peer_topic_id <> begin_mirror.peer_topic_id then
        perform refuse_mirror(t.name, 'recreated',
            'the topic that was copied so far has been deleted, and made anew with the same name',
            'Delete the mirror''s topic to copy the new one.');
    end if;
    if m.state = 'fenced' and exists (select from outbox o where o.topic = t.name) then
        perform refuse_mirror(t.name, 'staged', 'transactions have staged records for it that are not drained',
            'They came with the fence: look at them in the view outbox.');
    end if;
    if t.partitions > begin_mirror.partitions then
        perform refuse_mirror(t.name, 'partitions', format('it has %s partitions, and %s where it is copied from',
            t.partitions, begin_mirror.partitions), null);
    end if;
    if m.state is distinct from 'mirror' then
        perform from topic_partition p where p.topic_id = t.topic_id order by p.partition for update;
        update topic_partition p set read_only = true where p.topic_id = t.topic_id and not p.read_only;
        update topic u set read_only = true where u.topic_id = t.topic_id and not u.read_only;
        insert into mirrored_topic as x (topic_id, state, peer, peer_topic_id, peer_address)
        values (t.topic_id, 'mirror', begin_mirror.peer, begin_mirror.peer_topic_id, begin_mirror.peer_address)
        on conflict on constraint mirrored_topic_pkey do update set
            state = 'mirror', peer_address = excluded.peer_address, changed_at = clock_timestamp(),
            peer_starts = null, peer_ends = null, seen_at = null;
    elsif m.peer_address <> begin_mirror.peer_address then
        update mirrored_topic x set peer_address = begin_mirror.peer_address where x.topic_id = t.topic_id;
    end if;
    if t.partitions < begin_mirror.partitions then
        perform add_partitions(t.name, begin_mirror.partitions);
    end if;
    for config, value in
        select coalesce(a.key, b.key), a.value
        from jsonb_each_text(begin_mirror.configs) a full join jsonb_each_text(t.configs) b on b.key = a.key
        where a.value is distinct from b.value and (a.key is not null or is_mirrored_config(b.key))
        order by 1
    loop
        begin
            perform alter_topic(t.name, jsonb_build_object(config, value), null);
        exception when sqlstate 'LS004' or sqlstate 'LS011' then
            configs_left := configs_left || config;
        end;
    end loop;
    -- Two that contradict each other unless both are set: in the other order.
    if configs_left <> '{}' then
        begin
            perform alter_topic(t.name, (select jsonb_object_agg(c, begin_mirror.configs ->> c)
                                         from unnest(configs_left) c), null);
            configs_left := '{}';
        exception when sqlstate 'LS004' or sqlstate 'LS011' then
            null;
        end;
    end if;
end
$$;

-- Takes no lock, reads and writes nothing, returns whether a mirror has this config as the topic that it mirrors:
-- files belong to one log, and how many followers there are is a matter of the place.
create or replace function is_mirrored_config(name text) returns boolean
language sql immutable
return name !~ '^(remote\.|local\.retention\.)' and name <> 'min.insync.replicas';

-- Waits for the topic's guard and the partition's row; reads the tip; makes the start of the log and the leader
-- epoch no less than given; where the mirror ends before that start goes on from there (in the next segment, if
-- the one it is in has batches). Returns where the partition ends then. LS001, LS061: it is no mirror (any more).
-- 55P03: the next segment cannot be made just now.
create or replace function follow_mirror(topic_id int4, "partition" int4, log_start int8, leader_epoch int4)
returns int8
language plpgsql volatile security definer set search_path from current as $$
#variable_conflict use_column
declare
    id constant int4 := follow_mirror.topic_id;
    number constant int4 := follow_mirror.partition;
    p topic_partition;
    tip record;
    active int4;
begin
    perform pg_advisory_xact_lock(lock_class('guard'), id);
    select q.* into p from topic_partition q where q.topic_id = id and q.partition = number for no key update;
    if not found then
        perform no_partition(id, number);
    end if;
    perform check_mirror(id, p.read_only);
    select e.* into tip from partition_tips(array[id], array[number]) e;
    if tip.end_offset < follow_mirror.log_start then
        if tip.bytes is not null then
            select t.active_segment into active from topic t where t.topic_id = id;
            if p.segment = active then
                active := roll_segment(id, active);
            end if;
            if p.segment = active then
                raise lock_not_available using message = 'the next segment cannot be made just now';
            end if;
            perform enter_segment(id, number, p.segment, p.segment_start, active);
        end if;
        update topic_partition q set segment_start = follow_mirror.log_start
        where q.topic_id = id and q.partition = number;
        tip.end_offset := follow_mirror.log_start;
    end if;
    if follow_mirror.log_start > p.log_start or follow_mirror.leader_epoch > p.leader_epoch then
        update topic_partition q set log_start = greatest(q.log_start, follow_mirror.log_start),
                                     leader_epoch = greatest(q.leader_epoch, follow_mirror.leader_epoch)
        where q.topic_id = id and q.partition = number;
    end if;
    return tip.end_offset;
end
$$;

-- Takes no lock, reads the topic's row, writes and returns nothing. LS061: the topic is no mirror (any more).
create or replace function check_mirror(topic_id int4, read_only boolean) returns void
language plpgsql stable set search_path from current as $$
begin
    if not read_only or not exists (select from mirrored_topic m
                                    where m.topic_id = check_mirror.topic_id and m.state = 'mirror') then
        perform refuse_mirror((select t.name from topic t where t.topic_id = check_mirror.topic_id), 'no_mirror',
            'it is no mirror, or not any more', null);
    end if;
end
$$;

-- Takes the partition's row lock, as append() does, and once a segment the topic's guard and row, without waiting
-- for either; reads the partition's and the topic's row and the last batch; writes one batch at base_offset, if
-- the partition ends there: else nothing, as somebody else has copied it. Returns where the partition ends then.
-- The batch may be sparse; offset_deltas are relative to base_offset. No limit of the topic's is looked at, and it
-- counts against no quota. LS001, LS010 arrays that do not fit each other, LS012 isolation level, LS061: the topic
-- is no mirror (any more).
create or replace function mirror_append(
    topic_id int4, "partition" int4, base_offset int8, last_offset int8, record_count int4, leader_epoch int4,
    timestamp_type int2, append_time int8, max_timestamp int8,
    timestamps int8[], keys bytea[], "values" bytea[],
    header_records int4[], header_keys text[], header_values bytea[], offset_deltas int4[]) returns int8
language plpgsql volatile security definer set search_path from current as $$
declare
    size constant int8 := coalesce(pg_column_size(timestamps), 0)
        + coalesce(pg_column_size(keys), 0) + coalesce(pg_column_size("values"), 0)
        + coalesce(pg_column_size(header_records), 0) + coalesce(pg_column_size(header_keys), 0)
        + coalesce(pg_column_size(header_values), 0);
    segment int4;
    segment_start int8;
    epoch int4;
    active int4;
    roll_at int8;
    max_segment_bytes int8;
    read_only boolean;
    end_offset int8;
    newest int8;
    oldest int8;
    disorder int8;
    segment_bytes int8;
    tip_time int8;
    min_timestamp int8;
    xact constant int8 := appending_xact();
begin
    if current_setting('transaction_isolation') <> 'read committed' then
        perform raise_error('LS012', 'append needs the isolation level READ COMMITTED', null,
            'Append in a transaction of its own.');
    end if;
    select p.segment, p.segment_start, p.leader_epoch, t.active_segment, t.roll_at, t.segment_bytes, p.read_only
    into segment, segment_start, epoch, active, roll_at, max_segment_bytes, read_only
    from topic_partition p join topic t on t.topic_id = p.topic_id
    where p.topic_id = mirror_append.topic_id and p.partition = mirror_append.partition
    for no key update of p;
    if not found then
        perform no_partition(topic_id, "partition");
    end if;
    perform check_mirror(topic_id, read_only);

    -- A second statement, as in append().
    execute format('select b.last_offset + 1, b.segment_max_timestamp, b.segment_min_timestamp,
                           b.segment_disorder, b.segment_bytes, b.append_time
                    from %I b where b.partition = $1 order by b.last_offset desc limit 1',
                   'b_' || topic_id || '_' || segment)
    into end_offset, newest, oldest, disorder, segment_bytes, tip_time using "partition";
    if coalesce(end_offset, segment_start) <> base_offset then
        return coalesce(end_offset, segment_start);
    end if;

    if (record_count >= 1 and last_offset >= base_offset + record_count - 1
        and array_fits(timestamps, record_count) and array_fits(keys, record_count)
        and array_fits("values", record_count) and array_fits(offset_deltas, record_count)
        and (offset_deltas is not null or last_offset = base_offset + record_count - 1)
        and (header_records is null and header_keys is null and header_values is null
             or headers_fit(record_count, header_records, header_keys, header_values))) is not true then
        perform refuse_batch('LS010', 'the arrays of the batch do not fit each other',
            topic_id, "partition", jsonb_build_object('record_count', record_count), null);
    end if;
    min_timestamp := max_timestamp;
    if timestamps is not null then
        min_timestamp := timestamps[1];
        if not min_timestamp <= all (timestamps) then
            min_timestamp := (select min(u) from unnest(timestamps) u);
        end if;
    end if;

    if clock_ms() >= roll_at and segment = active and end_offset is not null then
        active := roll_segment(topic_id, segment);
    end if;
    if segment < active then
        perform enter_segment(topic_id, "partition", segment, segment_start, active);
        segment := active;
        newest := null;
        oldest := null;
        disorder := null;
        segment_bytes := null;
    end if;
    if leader_epoch > epoch then
        update topic_partition p set leader_epoch = mirror_append.leader_epoch
        where p.topic_id = mirror_append.topic_id and p.partition = mirror_append.partition;
    end if;
    if timestamp_type = 0 then
        append_time := greatest(append_time, tip_time);
    elsif timestamps is not null then
        -- The other log has rewritten it: batches of several moments have become one.
        update topic_segment s set rewritten = true
        where s.topic_id = mirror_append.topic_id and s.segment = active and not s.rewritten;
    end if;
    newest := greatest(newest, max_timestamp);
    oldest := least(oldest, min_timestamp);
    disorder := greatest(disorder, newest - min_timestamp);
    segment_bytes := coalesce(segment_bytes, 0) + size;
    insert into batches (
        base_offset, last_offset, xact, append_time, max_timestamp,
        segment_max_timestamp, segment_min_timestamp, segment_disorder, segment_bytes,
        topic_id, segment, partition, record_count, leader_epoch, size_bytes, timestamp_type, offset_deltas,
        timestamps, keys, "values", header_records, header_keys, header_values)
    values (
        base_offset, last_offset, xact, append_time, max_timestamp,
        newest, oldest, disorder, segment_bytes,
        topic_id, segment, "partition", record_count, leader_epoch, size, timestamp_type, offset_deltas,
        timestamps, keys, "values", header_records, header_keys, header_values);
    if segment_bytes >= max_segment_bytes and segment = active then
        perform roll_segment(topic_id, segment);
    end if;
    return last_offset + 1;
end
$$;

-- Takes the row locks of consumer groups, FOR SHARE, in the order of their names (they are made if need be), and of
-- their offsets; reads the ends of the partitions; writes committed offsets as another log has them, but none
-- beyond the end of the mirror's partition; returns how many changed, and the groups that were left alone:
-- they have members here, or are share groups. Only mirrors' offsets are written. All arrays are parallel.
create or replace function mirror_offsets(
    groups text[], topic_ids int4[], partitions int4[], offsets int8[], leader_epochs int4[], metadata text[],
    out written int4, out groups_left text[])
language plpgsql volatile security definer set search_path from current as $$
#variable_conflict use_column
declare
    group_name text;
    id int4;
    changed int4;
begin
    written := 0;
    groups_left := '{}';
    for group_name in select distinct g from unnest(groups) g order by g loop
        if exists (select from log_group g where g.name = group_name and g.kind <> 'consumer') then
            groups_left := groups_left || group_name;
            continue;
        end if;
        id := ensure_group(group_name, 'consumer');
        perform expire_members(id);
        perform from log_group g where g.group_id = id for share;
        continue when not found;
        if exists (select from group_member m where m.group_id = id) then
            groups_left := groups_left || group_name;
            continue;
        end if;
        with given as (
            select w.topic_id, w.partition, w.committed, w.leader_epoch, w.metadata
            from unnest(groups, topic_ids, partitions, offsets, leader_epochs, metadata)
                w (name, topic_id, partition, committed, leader_epoch, metadata)
            join mirrored_topic m on m.topic_id = w.topic_id and m.state = 'mirror'
            where w.name = group_name)
        insert into group_offset as o (group_id, topic_id, partition, committed_offset, leader_epoch, metadata,
                                       committed_at)
        select id, g.topic_id, g.partition, least(g.committed, e.end_offset),
               case when g.committed <= e.end_offset and g.leader_epoch <= e.leader_epoch then g.leader_epoch end,
               g.metadata, clock_timestamp()
        from given g
        join (select array_agg(w.topic_id) as topic_ids, array_agg(w.partition) as partitions from given w) a
            on true
        join lateral partition_tips(a.topic_ids, a.partitions) e
            on e.topic_id = g.topic_id and e.partition = g.partition
        where e.log_start is not null
        order by g.topic_id, g.partition
        on conflict on constraint group_offset_pkey do update set
            committed_offset = excluded.committed_offset, leader_epoch = excluded.leader_epoch,
            claim_epoch = null, metadata = excluded.metadata, committed_at = excluded.committed_at
        -- Now and then in any case, or they would expire.
        where (o.committed_offset, o.leader_epoch, o.metadata)
              is distinct from (excluded.committed_offset, excluded.leader_epoch, excluded.metadata)
           or o.committed_at < clock_timestamp() - interval '1 day';
        get diagnostics changed = row_count;
        written := written + changed;
    end loop;
end
$$;

-- Writes the mirror's row, without making the commit wait for the disk: between which offsets the other log can be
-- read now. Returns nothing.
create or replace function mirror_seen(topic_id int4, starts int8[], ends int8[]) returns void
language plpgsql volatile security definer set search_path from current as $$
begin
    perform set_config('synchronous_commit', 'off', true);
    update mirrored_topic m set peer_starts = starts, peer_ends = ends, seen_at = clock_timestamp()
    where m.topic_id = mirror_seen.topic_id and m.state = 'mirror';
end
$$;

-- Waits for the topic's guard and the partitions' rows; makes a mirror, or a topic that was fenced for one, an
-- ordinary topic again, under a leader epoch newer than its own and than peer_epochs (of partition p at p + 1; null:
-- not known). Returns where each partition ends. Once it is promoted, it only answers that. LS001, LS061: it is no
-- mirror and never was.
create or replace function promote_mirror(name text, peer_epochs int4[] default null)
returns table ("partition" int4, end_offset int8, leader_epoch int4)
language plpgsql volatile security definer set search_path from current as $$
#variable_conflict use_column
declare
    t constant topic := guarded_topic(promote_mirror.name);
    m mirrored_topic;
begin
    perform set_config('synchronous_commit', 'on', true);
    select x.* into m from mirrored_topic x where x.topic_id = t.topic_id for update;
    if not found then
        perform raise_error('LS061', format('topic %s is no mirror', t.name),
            jsonb_build_object('topic', t.name, 'reason', 'no_mirror'), null);
    end if;
    if m.state <> 'promoted' then
        perform from topic_partition p where p.topic_id = t.topic_id order by p.partition for update;
        update topic_partition p set
            read_only = false,
            leader_epoch = greatest(p.leader_epoch, promote_mirror.peer_epochs[p.partition + 1]) + 1
        where p.topic_id = t.topic_id;
        update topic u set read_only = false where u.topic_id = t.topic_id;
        update mirrored_topic x set state = 'promoted', changed_at = clock_timestamp()
        where x.topic_id = t.topic_id;
    end if;
    return query
        select e.partition, e.end_offset, e.leader_epoch
        from partition_tips(array_fill(t.topic_id, array[t.partitions]),
                            array(select generate_series(0, t.partitions - 1))) e
        order by e.partition;
end
$$;
