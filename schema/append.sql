-- The write path.

-- Takes the partition's row lock, FOR NO KEY UPDATE, to the end of the transaction (and, once a segment, the
-- topic's guard and row, without waiting for either); reads the partition's and the topic's row and the last
-- batch; writes one batch; returns {base offset, append time in ms or -1 with CreateTime, log start}. acks: 0
-- synchronous_commit=off, 1 local, -1 on, null: as the session has it, 2: the same, and limits are not looked
-- at again (the records were checked when they were staged), 3: like -1, for what the log writes by itself.
-- With 2 and 3 it counts against no quota; otherwise it takes that bucket's lock for a moment, charges it
-- and, if the quota is used up then, adds to the answer for how many ms nothing more is to be sent. Several
-- in one statement have to be in ascending order of (topic_id, partition). With a producer id, a batch that
-- is in the log already is not written again: its first answer is repeated, and since the lock is in the
-- write-ahead log, the commit waits for what acks says as if it had written. LS001 no such partition, LS007 too large, LS008 a time stamp out
-- of range, LS009 too few replicas, LS010 arrays that do not fit each other, LS012 acks or isolation level,
-- LS013 another leader epoch, LS014 an old epoch of the producer, LS015 sequences are missing, LS016 a
-- sequence from long ago, LS059 the quota has been used up for long, LS060 the topic is a mirror, or fenced.
create or replace function append(
    topic_id int4, "partition" int4, record_count int4, max_timestamp int8,
    timestamps int8[], keys bytea[], "values" bytea[],
    header_records int4[], header_keys text[], header_values bytea[],
    acks int2, producer_id int8 default null, producer_epoch int2 default null,
    base_sequence int4 default null, leader_epoch int4 default null
) returns int8[]
language plpgsql volatile security definer set search_path from current as $$
declare
    size constant int8 := coalesce(pg_column_size(timestamps), 0)
        + coalesce(pg_column_size(keys), 0) + coalesce(pg_column_size("values"), 0)
        + coalesce(pg_column_size(header_records), 0) + coalesce(pg_column_size(header_keys), 0)
        + coalesce(pg_column_size(header_values), 0);
    segment int4;
    segment_start int8;
    log_start int8;
    epoch int4;
    active int4;
    roll_at int8;
    max_segment_bytes int8;
    max_message_bytes int4;
    timestamp_type int2;
    before_max int8;
    after_max int8;
    min_insync int2;
    compacted boolean;
    read_only boolean;
    now_ms int8;
    min_timestamp int8;
    base int8;
    newest int8;
    oldest int8;
    disorder int8;
    segment_bytes int8;
    tip_producer int8;
    tip_epoch int2;
    tip_sequence int8;
    first_answer int8[];
    boot timestamptz;
    xact int8;
    over_ms int8;
begin
    -- A snapshot that is older than the lock would not show the last batch.
    if current_setting('transaction_isolation') <> 'read committed' then
        perform raise_error('LS012', 'append needs the isolation level READ COMMITTED', null,
            'Append in a transaction of its own.');
    end if;
    if acks = 3 then
        acks := -1;
    elsif acks is distinct from 2 and quotas_on() then
        over_ms := nullif(charge_quota('produce', size, true), 0);
    end if;
    if acks between -1 and 1 then
        perform set_config('synchronous_commit', (array['on', 'off', 'local'])[acks + 2], true);
    elsif acks <> 2 then
        perform raise_error('LS012', format('acks has to be 0, 1 or -1 (all), not %s', acks), null, null);
    end if;

    select p.segment, p.segment_start, p.log_start, p.leader_epoch, t.active_segment, t.roll_at,
           t.segment_bytes, t.max_message_bytes, t.timestamp_type, t.timestamp_before_max,
           t.timestamp_after_max, t.min_insync_replicas, t.compacted, p.read_only, p.boot
    into segment, segment_start, log_start, epoch, active, roll_at,
         max_segment_bytes, max_message_bytes, timestamp_type, before_max, after_max, min_insync,
         compacted, read_only, boot
    from topic_partition p join topic t on t.topic_id = p.topic_id
    where p.topic_id = append.topic_id and p.partition = append.partition
    for no key update of p;
    if not found then
        perform no_partition(topic_id, "partition");
    end if;
    if leader_epoch <> epoch then
        perform refuse_batch('LS013', format('the leader epoch is %s, not %s', epoch, leader_epoch),
            topic_id, "partition", jsonb_build_object('leader_epoch', epoch), 'Refresh the metadata.');
    end if;
    if min_insync > 1 and acks = -1 and acknowledging_replicas() < min_insync then
        perform refuse_batch('LS009',
            format('min.insync.replicas is %s, but %s servers would have it', min_insync,
                   acknowledging_replicas()),
            topic_id, "partition", jsonb_build_object('min.insync.replicas', min_insync), null);
    end if;

    -- A second statement, so a snapshot taken after the lock was granted: it shows every batch before this
    -- one.
    execute format('select b.last_offset + 1, b.segment_max_timestamp, b.segment_min_timestamp,
                           b.segment_disorder, b.segment_bytes,
                           b.producer_id, b.producer_epoch, b.last_sequence
                    from %I b where b.partition = $1 order by b.last_offset desc limit 1',
                   'b_' || topic_id || '_' || segment)
    into base, newest, oldest, disorder, segment_bytes, tip_producer, tip_epoch, tip_sequence
    using "partition";

    -- Before anything else may be wrong with the batch: what is in the log is in the log.
    if num_nulls(producer_id, producer_epoch, base_sequence) <> 3 then
        if (producer_id >= 0 and producer_epoch >= 0 and base_sequence >= 0 and record_count >= 1) is not true
        then
            perform refuse_batch('LS010',
                'producer id, producer epoch and base sequence go together, none of them negative',
                topic_id, "partition", jsonb_build_object('record_count', record_count), null);
        end if;
        -- Usually the last batch is the producer's own, and this one comes next.
        if (tip_producer = producer_id and tip_epoch = producer_epoch
            and ((tip_sequence + 1) & 2147483647) = base_sequence) is not true then
            first_answer := repeated_batch(topic_id, "partition", segment, producer_id, producer_epoch,
                base_sequence, record_count);
            if first_answer is not null then
                first_answer := first_answer || log_start;
                return case when over_ms is null then first_answer else first_answer || over_ms end;
            end if;
        end if;
    end if;

    -- What was staged before it was fenced is committed already, so it goes in.
    if read_only and acks is distinct from 2 then
        perform refuse_writer(topic_id);
    end if;
    if size > max_message_bytes and acks is distinct from 2 then
        perform refuse_batch('LS007',
            format('a batch of %s bytes is larger than max.message.bytes, %s', size, max_message_bytes),
            topic_id, "partition",
            jsonb_build_object('size', size, 'max.message.bytes', max_message_bytes), null);
    end if;
    if (record_count >= 1 and array_fits(timestamps, record_count) and array_fits(keys, record_count)
        and array_fits("values", record_count)
        and (header_records is null and header_keys is null and header_values is null
             or headers_fit(record_count, header_records, header_keys, header_values))) is not true then
        perform refuse_batch('LS010', 'the arrays of the batch do not fit each other',
            topic_id, "partition", jsonb_build_object('record_count', record_count), null);
    end if;

    -- What was staged before the topic was compacted goes in; compaction leaves it out.
    if compacted and (keys is null or array_position(keys, null) is not null) and acks is distinct from 2 then
        perform refuse_batch('LS050', 'a record without a key cannot be appended to a compacted topic',
            topic_id, "partition", jsonb_build_object('record_count', record_count),
            'Compaction keeps the last record of each key: give each record one.');
    end if;

    now_ms := clock_ms();
    if timestamp_type = 1 then
        max_timestamp := now_ms;
        min_timestamp := now_ms;
        timestamps := null;
    else
        min_timestamp := max_timestamp;
        if timestamps is not null then
            if (max_timestamp >= all (timestamps) and max_timestamp = any (timestamps)) is not true then
                perform refuse_batch('LS010', 'max_timestamp is not the largest of the time stamps',
                    topic_id, "partition", jsonb_build_object('max_timestamp', max_timestamp), null);
            end if;
            -- Usually the first is the smallest, and ALL is ten times as fast as an aggregate.
            min_timestamp := timestamps[1];
            if not min_timestamp <= all (timestamps) then
                min_timestamp := (select min(u) from unnest(timestamps) u);
            end if;
        end if;
        -- 253402300799999 is the end of the year 9999.
        if (min_timestamp >= 0 and max_timestamp <= 253402300799999
            and now_ms - min_timestamp <= before_max and max_timestamp - now_ms <= after_max) is not true
           and acks is distinct from 2 then
            perform refuse_batch('LS008',
                format('time stamps from %s to %s are too far from the server''s clock, %s',
                    min_timestamp, max_timestamp, now_ms),
                topic_id, "partition",
                jsonb_build_object(
                    'min_timestamp', min_timestamp, 'max_timestamp', max_timestamp, 'now', now_ms,
                    'message.timestamp.before.max.ms', before_max,
                    'message.timestamp.after.max.ms', after_max),
                'Time stamps are milliseconds since the epoch; message.timestamp.before.max.ms and '
                'message.timestamp.after.max.ms set how far they may be off.');
        end if;
    end if;

    if now_ms >= roll_at and segment = active and base is not null then
        active := roll_segment(topic_id, segment);
    end if;
    if segment < active then
        base := enter_segment(topic_id, "partition", segment, segment_start, active);
        segment := active;
        newest := null;
        oldest := null;
        disorder := null;
        segment_bytes := null;
    end if;
    if boot is distinct from pg_postmaster_start_time() then
        epoch := raise_epoch(topic_id, "partition");
    end if;
    xact := appending_xact();
    base := coalesce(base, segment_start);
    newest := greatest(newest, max_timestamp);
    oldest := least(oldest, min_timestamp);
    disorder := greatest(disorder, newest - min_timestamp);
    segment_bytes := coalesce(segment_bytes, 0) + size;

    -- Through the parent: an insert opens and locks only the leaf it goes to, and its plan is kept.
    insert into batches (
        base_offset, last_offset, xact, producer_id, append_time, max_timestamp,
        segment_max_timestamp, segment_min_timestamp, segment_disorder, segment_bytes,
        topic_id, segment, partition, record_count, leader_epoch, base_sequence, last_sequence,
        size_bytes, producer_epoch, timestamp_type,
        timestamps, keys, "values", header_records, header_keys, header_values)
    values (
        base, base + record_count - 1, xact, producer_id, now_ms, max_timestamp,
        newest, oldest, disorder, segment_bytes,
        topic_id, segment, "partition", record_count, epoch, base_sequence,
        ((base_sequence::int8 + record_count - 1) & 2147483647)::int4,
        size, producer_epoch, timestamp_type,
        timestamps, keys, "values", header_records, header_keys, header_values);

    if segment_bytes >= max_segment_bytes and segment = active then
        perform roll_segment(topic_id, segment);
    end if;
    if over_ms is null then
        return array[base, case timestamp_type when 1 then now_ms else -1 end, log_start];
    end if;
    return array[base, case timestamp_type when 1 then now_ms else -1 end, log_start, over_ms];
end
$$;

-- Takes no lock, reads and writes nothing, never returns: raises an error about one batch.
create or replace function refuse_batch(
    code text, message text, topic_id int4, "partition" int4, detail jsonb, hint text) returns void
language plpgsql immutable set search_path from current as $$
begin
    perform raise_error(code, message,
        jsonb_build_object('topic_id', topic_id, 'partition', "partition") || detail, hint);
end
$$;

-- Takes no lock, reads the catalog, writes nothing, never returns: raises LS001 with whatever of the two is
-- missing.
create or replace function no_partition(topic_id int4, "partition" int4) returns void
language plpgsql stable set search_path from current as $$
declare
    found_topic topic;
begin
    select t.* into found_topic from topic t where t.topic_id = no_partition.topic_id;
    if found then
        perform raise_error('LS001',
            format('topic %s has partitions 0 to %s, and no partition %s', found_topic.name,
                found_topic.partitions - 1, coalesce("partition"::text, 'null')),
            jsonb_build_object('topic', found_topic.name, 'topic_id', topic_id, 'partition', "partition"),
            null);
    end if;
    perform raise_error('LS001',
        format('there is no topic with id %s; it may have been deleted', coalesce(topic_id::text, 'null')),
        jsonb_build_object('topic_id', topic_id, 'partition', "partition"), null);
end
$$;

-- Takes no lock, reads and writes nothing, returns whether elements is null or a plain list of count
-- elements; to be inlined.
create or replace function array_fits(elements anyarray, count int4) returns boolean
language sql immutable as $$
    select elements is null
        or (pg_catalog.array_ndims(elements) = 1 and pg_catalog.array_lower(elements, 1) = 1
            and pg_catalog.cardinality(elements) = count)
$$;

-- Takes no lock, reads and writes nothing, returns whether the header arrays are parallel, name records of
-- the batch in ascending order and have no null for a key.
create or replace function headers_fit(
    record_count int4, header_records int4[], header_keys text[], header_values bytea[]) returns boolean
language sql immutable set search_path from current
return array_ndims(header_records) = 1 and array_lower(header_records, 1) = 1
    and header_keys is not null and array_fits(header_keys, cardinality(header_records))
    and header_values is not null and array_fits(header_values, cardinality(header_records))
    and array_position(header_keys, null) is null
    and header_records[1] >= 1 and header_records[cardinality(header_records)] <= record_count
    and header_records = array(select u from unnest(header_records) u order by u);
