-- Producers: which batch of an idempotent producer comes next, and who holds a transactional id.
--
-- A producer numbers the records that it sends to a partition: sequences begin at 0 in each epoch, and again
-- after 2147483647. The log remembers the last five batches of each producer in each partition: in the
-- partition's segment they are rows like all others, found by the index <leaf>_producer; what the partition
-- left behind in earlier segments is in producer_state.

-- Takes no lock, reads and writes nothing, returns an id for a producer: 63 random bits, so that ids need no
-- table, no flush and nobody who hands them out, and are different on every node.
create or replace function new_producer_id() returns int8
language sql volatile set search_path from current
begin atomic
    select ('x' || left(u.hex, 12) || right(u.hex, 4))::bit(64)::int8 & 9223372036854775807
    from (select translate(gen_random_uuid()::text, '-', '') as hex) u;
end;

-- Takes the row lock of the transactional id, waiting for a transaction of its holder that is committing;
-- writes the row: the holder before is fenced from the commit on. Returns {producer id, producer epoch}.
-- Without a transactional id it reads and writes nothing and returns a new producer id with epoch 0. LS012.
create or replace function init_producer(transactional_id text, timeout_ms int4, client_id text default null)
returns int8[]
language plpgsql volatile security definer set search_path from current as $$
#variable_conflict use_column
declare
    held int8[];
begin
    if init_producer.transactional_id is null then
        return array[new_producer_id(), 0];
    end if;
    if octet_length(init_producer.transactional_id) not between 1 and 1024 then
        perform raise_error('LS012', format('a transactional id has 1 to 1024 bytes, not %s',
            octet_length(init_producer.transactional_id)), null, null);
    end if;
    if (init_producer.timeout_ms between 1 and 900000) is not true then
        perform raise_error('LS012', format('the time-out of transactions is 1 to 900000 ms, not %s',
            coalesce(init_producer.timeout_ms::text, 'null')), null, null);
    end if;
    -- A fence that a crash could take away would not be one.
    perform set_config('synchronous_commit', 'on', true);
    -- Epochs are used up: a new id begins again, and nobody has the old one.
    insert into producer as p (transactional_id, producer_id, producer_epoch, timeout_ms, client_id, used_at)
    values (init_producer.transactional_id, new_producer_id(), 0, init_producer.timeout_ms,
            init_producer.client_id, log_time())
    on conflict (transactional_id) do update set
        producer_id = case when p.producer_epoch < 32767 then p.producer_id else excluded.producer_id end,
        producer_epoch = case when p.producer_epoch < 32767 then p.producer_epoch + 1 else 0 end,
        timeout_ms = excluded.timeout_ms, client_id = excluded.client_id, updated_at = clock_timestamp(),
        used_at = excluded.used_at
    returning array[p.producer_id, p.producer_epoch] into held;
    return held;
end
$$;

-- Locks the row of the transactional id FOR SHARE to the end of the transaction, so that no other holder
-- comes before its commit; reads it, writes and returns nothing. LS014: there is a newer holder, LS017:
-- nobody has ever held it (or it has expired).
create or replace function check_producer(transactional_id text, producer_id int8, producer_epoch int2)
returns void
language plpgsql volatile security definer set search_path from current as $$
#variable_conflict use_column
declare
    holder producer;
begin
    select p.* into holder from producer p where p.transactional_id = check_producer.transactional_id
    for share;
    if not found then
        perform raise_error('LS017',
            format('there is no producer with the transactional id %s',
                shown(check_producer.transactional_id)),
            jsonb_build_object('transactional_id', check_producer.transactional_id), null);
    end if;
    if (holder.producer_id = check_producer.producer_id
        and holder.producer_epoch = check_producer.producer_epoch) is not true then
        perform raise_error('LS014',
            format('another producer holds the transactional id %s now', shown(holder.transactional_id)),
            jsonb_build_object(
                'transactional_id', holder.transactional_id, 'producer_id', check_producer.producer_id,
                'producer_epoch', check_producer.producer_epoch, 'current_epoch', holder.producer_epoch),
            null);
    end if;
end
$$;

-- Needs the partition's row lock; reads the last five batches of the producer, writes nothing, returns null
-- when the batch is its next one (a producer that is not known may begin with any sequence) and {base offset,
-- append time} when the batch is in the log already. LS014: the producer has a newer epoch, LS015: sequences
-- are missing before this one, LS016: it is in the log, but nobody remembers where.
create or replace function repeated_batch(
    topic_id int4, "partition" int4, segment int4,
    producer_id int8, producer_epoch int2, base_sequence int4, record_count int4) returns int8[]
language plpgsql volatile set search_path from current
set enable_sort = off set enable_incremental_sort = off as $$
declare
    known record;
    newest_epoch int2;
    expected int8;
    -- The batches that hold the first and the last record of this one.
    first_offset int8;
    first_time int8;
    last_offset int8;
    count constant int8 := record_count;
    last_sequence constant int8 := (base_sequence::int8 + record_count - 1) & 2147483647;
begin
    -- Usually it is the next one, and only other producers have appended since.
    execute format(
        'select b.producer_epoch, b.last_sequence from %I b
         where (b.partition, b.producer_id) >= ($1, $2) and (b.partition, b.producer_id) <= ($1, $2)
           and b.producer_id is not null
         order by b.partition desc, b.producer_id desc, b.last_offset desc limit 1',
        'b_' || topic_id || '_' || segment)
    into newest_epoch, expected using "partition", producer_id;
    if newest_epoch = producer_epoch and ((expected + 1) & 2147483647) = base_sequence then
        return null;
    end if;
    newest_epoch := null;

    for known in select * from producer_batches(topic_id, "partition", segment, producer_id) loop
        if newest_epoch is null then
            newest_epoch := known.producer_epoch;
            exit when producer_epoch <> newest_epoch;
            expected := (known.last_sequence::int8 + 1) & 2147483647;
            if base_sequence = expected then
                return null;
            end if;
        end if;
        exit when known.producer_epoch <> newest_epoch;
        if first_offset is null and in_sequence(base_sequence, known.base_sequence, known.last_sequence) then
            first_offset := known.base_offset + ((base_sequence::int8 - known.base_sequence) & 2147483647);
            first_time := known.append_time;
        end if;
        if last_offset is null and in_sequence(last_sequence, known.base_sequence, known.last_sequence) then
            last_offset := known.base_offset + ((last_sequence - known.base_sequence) & 2147483647);
        end if;
    end loop;

    if newest_epoch is null then
        return null;
    end if;
    if producer_epoch < newest_epoch then
        perform refuse_batch('LS014',
            format('producer %s has the epoch %s, and this batch %s', producer_id, newest_epoch,
                producer_epoch),
            topic_id, "partition",
            jsonb_build_object('producer_id', producer_id, 'producer_epoch', producer_epoch,
                'current_epoch', newest_epoch), null);
    elsif producer_epoch > newest_epoch then
        if base_sequence = 0 then
            return null;
        end if;
        expected := 0;
    -- A batch may come in other pieces than the first time.
    elsif last_offset - first_offset = count - 1 then
        return array[first_offset, first_time];
    elsif first_offset is null and ((expected - base_sequence) & 2147483647) < 1073741824 then
        perform refuse_batch('LS016',
            format('producer %s has appended sequence %s long ago: the next is %s', producer_id,
                base_sequence, expected),
            topic_id, "partition",
            jsonb_build_object('producer_id', producer_id, 'producer_epoch', producer_epoch,
                'base_sequence', base_sequence, 'expected_sequence', expected), null);
    end if;
    perform refuse_batch('LS015',
        format('sequence %s of producer %s in epoch %s came where %s is the next', base_sequence,
            producer_id, producer_epoch, expected),
        topic_id, "partition",
        jsonb_build_object('producer_id', producer_id, 'producer_epoch', producer_epoch,
            'base_sequence', base_sequence, 'expected_sequence', expected), null);
end
$$;

-- Takes no lock, reads and writes nothing, returns whether sequence is one of those from first to last, which
-- may begin again at 0 in between; to be inlined.
create or replace function in_sequence(sequence int8, first int8, last int8) returns boolean
language sql immutable as $$
    select ((sequence - first) & 2147483647) <= ((last - first) & 2147483647)
$$;

-- Needs the partition's row lock to be of use; reads the last five batches of the producer in the segment and
-- what is known of earlier ones, writes nothing, returns them, newest first. (By the index, whatever the
-- planner thinks of a leaf that nobody has analysed: only the order of all its columns forces it.)
create or replace function producer_batches(topic_id int4, "partition" int4, segment int4, producer_id int8)
returns table (producer_epoch int2, base_sequence int4, last_sequence int4, base_offset int8,
               append_time int8, appended_at timestamptz)
language plpgsql stable rows 5 set search_path from current
set enable_sort = off set enable_incremental_sort = off as $$
#variable_conflict use_column
declare
    found_rows int8;
begin
    return query execute format(
        'select b.producer_epoch, b.base_sequence, b.last_sequence, b.base_offset,
                case b.timestamp_type when 1 then b.append_time else -1 end,
                to_timestamp(b.append_time / 1000.0)
         from %I b
         where (b.partition, b.producer_id) >= ($1, $2) and (b.partition, b.producer_id) <= ($1, $2)
           and b.producer_id is not null
         order by b.partition desc, b.producer_id desc, b.last_offset desc limit 5',
        'b_' || producer_batches.topic_id || '_' || producer_batches.segment)
    using producer_batches.partition, producer_batches.producer_id;
    get diagnostics found_rows = row_count;
    if found_rows < 5 then
        return query
            select s.producer_epoch, s.base_sequences[i], s.last_sequences[i], s.base_offsets[i],
                   s.append_times[i], s.updated_at
            from producer_state s,
                 lateral generate_series(cardinality(s.base_sequences),
                                         greatest(1, cardinality(s.base_sequences) - 4 + found_rows), -1) i
            where s.topic_id = producer_batches.topic_id and s.partition = producer_batches.partition
              and s.producer_id = producer_batches.producer_id;
    end if;
end
$$;

-- Needs the partition's row lock, which append() holds; reads the last batches of each producer in a segment
-- that the partition leaves, writes them to producer_state, forgets there who has appended nothing to the
-- partition for a day, returns nothing. It visits five batches a producer, however many there are.
create or replace function keep_producers(topic_id int4, "partition" int4, segment int4) returns void
language plpgsql volatile set search_path from current
set enable_seqscan = off set enable_bitmapscan = off
set enable_sort = off set enable_incremental_sort = off as $$
#variable_conflict use_column
begin
    execute format($query$
        with recursive producers (producer_id) as (
            (select b.producer_id from %1$I b where b.partition = $2 and b.producer_id is not null
             order by b.producer_id limit 1)
            union all
            select (select b.producer_id from %1$I b
                    where b.partition = $2 and b.producer_id > p.producer_id
                    order by b.producer_id limit 1)
            from producers p where p.producer_id is not null
        )
        insert into producer_state as s (topic_id, partition, producer_id, producer_epoch, base_sequences,
                                         last_sequences, base_offsets, append_times, updated_at)
        select $1, $2, k.producer_id, k.producer_epoch,
               array_agg(k.base_sequence order by k.base_offset),
               array_agg(k.last_sequence order by k.base_offset),
               array_agg(k.base_offset order by k.base_offset),
               array_agg(k.append_time order by k.base_offset),
               max(k.appended_at)
        from (select p.producer_id, b.*,
                     first_value(b.producer_epoch)
                         over (partition by p.producer_id order by b.base_offset desc) as newest_epoch
              from producers p, lateral producer_batches($1, $2, $3, p.producer_id) b) k
        where k.producer_epoch = k.newest_epoch
        group by k.producer_id, k.producer_epoch
        on conflict (topic_id, partition, producer_id) do update set
            producer_epoch = excluded.producer_epoch, base_sequences = excluded.base_sequences,
            last_sequences = excluded.last_sequences, base_offsets = excluded.base_offsets,
            append_times = excluded.append_times, updated_at = excluded.updated_at
        $query$,
        'b_' || keep_producers.topic_id || '_' || keep_producers.segment)
    using keep_producers.topic_id, keep_producers.partition, keep_producers.segment;
    -- Of this partition only: nobody else writes these rows, so nobody waits in a circle.
    delete from producer_state s
    where s.topic_id = keep_producers.topic_id and s.partition = keep_producers.partition
      and s.updated_at < log_time() - interval '1 day';
end
$$;

-- Takes the locks of the rows that it deletes, skipping those that somebody else has; forgets what producers
-- left in earlier segments that have appended nothing since for older_than_ms (Kafka's
-- producer.id.expiration.ms, a day), max_rows at a time. Returns how many; ask again while that is max_rows.
-- For partitions that nobody writes to any more: the others forget by themselves.
create or replace function expire_producers(older_than_ms int8 default 86400000, max_rows int4 default 10000)
returns int4
language plpgsql volatile security definer set search_path from current as $$
declare
    forgotten int4;
begin
    delete from producer_state s
    using (select e.topic_id, e.partition, e.producer_id from producer_state e
           where e.updated_at < log_time() - older_than_ms * interval '1 ms'
           order by e.updated_at limit max_rows for update skip locked) e
    where (s.topic_id, s.partition, s.producer_id) = (e.topic_id, e.partition, e.producer_id);
    get diagnostics forgotten = row_count;
    return forgotten;
end
$$;
