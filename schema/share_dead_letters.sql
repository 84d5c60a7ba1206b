-- Dead letters: what becomes of records that are given up.

-- Takes the row locks of partitions of the dead-letter topic, in ascending order, by append(); reads the
-- records of the ranges in dead from the log; appends one record for each, returns nothing. It keeps key,
-- value and headers (errors.deadletterqueue.copy.record.enable; left out when the copy would be larger
-- than the dead-letter topic allows) and says in headers __dlq.errors.* where it came from and why. Its
-- partition is the original's, modulo their number. Without a dead-letter topic it does nothing; of a
-- record that has left the log nothing is written. LS001: the dead-letter topic is gone.
create or replace function dead_letter(g share_group, dead share_flight[], reasons text[]) returns void
language plpgsql volatile set search_path from current as $$
declare
    target topic;
    group_name constant text := (select l.name from log_group l where l.group_id = g.group_id);
    letter record;
    now_ms int8;
    into_partition int4;
    keys bytea[] := '{}';
    bodies bytea[] := '{}';
    header_records int4[] := '{}';
    header_keys text[] := '{}';
    header_values bytea[] := '{}';
    context_keys constant text[] := array['__dlq.errors.topic', '__dlq.errors.partition',
        '__dlq.errors.offset', '__dlq.errors.group', '__dlq.errors.delivery.count', '__dlq.errors.message'];
    context_values bytea[];
    size int8;
    batch_size int8 := 0;
begin
    if g.dead_letter_topic = '' then
        return;
    end if;
    select t.* into target from topic t where t.name = g.dead_letter_topic;
    if not found then
        perform raise_error('LS001', format('the dead-letter topic %s of group %s does not exist',
            to_json(g.dead_letter_topic), to_json(group_name)),
            jsonb_build_object('topic', g.dead_letter_topic, 'group', group_name, 'config',
                'errors.deadletterqueue.topic.name'),
            'Create it, or set errors.deadletterqueue.topic.name to another topic, or to nothing.');
    end if;
    for letter in
        select d.topic_id, t.name as topic, d.partition, d.partition % target.partitions as into_partition,
            r.n as position, r.base_offset, d.delivery_count, d.reason,
               r."offset", r.key, r.body, r.header_keys, r.header_values
        from unnest(dead) with ordinality d0 (group_id, topic_id, partition, first_offset, last_offset,
            due_at, key_hash, delivery_count, member, n)
        cross join lateral (select d0.topic_id, d0.partition, d0.first_offset, d0.last_offset,
            d0.delivery_count, reasons[d0.n] as reason) d
        join topic t on t.topic_id = d.topic_id
        cross join lateral (
            select p.n, f.base_offset, f.base_offset + coalesce(f.offset_deltas[p.n], p.n - 1) as "offset",
                f.keys[p.n] as key, f."values"[p.n] as body,
                   array(select f.header_keys[h.n] from unnest(f.header_records) with ordinality h (r, n)
                       where h.r = p.n order by h.n) as header_keys,
                   array(select f.header_values[h.n] from unnest(f.header_records) with ordinality h (r, n)
                       where h.r = p.n order by h.n) as header_values
            from fetch_records(array[d.topic_id], array[d.partition], array[d.first_offset],
                array[d.last_offset], metered => false) f,
                 generate_series(1, f.record_count) p (n)) r
        order by into_partition, d.topic_id, d.partition, r."offset"
    loop
        context_values := array[convert_to(letter.topic, 'UTF8'), convert_to(letter.partition::text, 'UTF8'),
            convert_to(letter."offset"::text, 'UTF8'),
            convert_to(group_name, 'UTF8'), convert_to(letter.delivery_count::text, 'UTF8'),
                convert_to(left(letter.reason, 4000), 'UTF8')];
        if not g.copy_record then
            letter.key := null;
            letter.body := null;
            letter.header_keys := '{}';
            letter.header_values := '{}';
        end if;
        size := record_bytes(letter.key, letter.body, letter.header_keys || context_keys,
            letter.header_values || context_values);
        if size + 128 > target.max_message_bytes then
            letter.key := null;
            letter.body := null;
            letter.header_keys := '{}';
            letter.header_values := '{}';
            context_values[6] := context_values[6] || convert_to(' (The record is too large to be copied.)',
                'UTF8');
            size := record_bytes(null, null, context_keys, context_values);
        end if;
        if keys <> '{}' and (into_partition <> letter.into_partition
            or batch_size + size > least(target.max_message_bytes, 1048576) or cardinality(keys) >= 1000) then
            perform append(target.topic_id, into_partition, cardinality(keys), now_ms, null, keys, bodies,
                header_records, header_keys, header_values, 3::int2);
            keys := '{}';
        end if;
        if keys = '{}' then
            into_partition := letter.into_partition;
            batch_size := 128;
            bodies := '{}';
            header_records := '{}';
            header_keys := '{}';
            header_values := '{}';
            now_ms := clock_ms();
        end if;
        keys := keys || letter.key;
        bodies := bodies || letter.body;
        header_keys := header_keys || letter.header_keys || context_keys;
        header_values := header_values || letter.header_values || context_values;
        header_records := header_records || array_fill(cardinality(keys),
            array[cardinality(letter.header_keys) + cardinality(context_keys)]);
        batch_size := batch_size + size;
    end loop;
    if keys <> '{}' then
        perform append(target.topic_id, into_partition, cardinality(keys), now_ms, null, keys, bodies,
            header_records, header_keys, header_values, 3::int2);
    end if;
end
$$;

-- Takes no lock, reads and writes nothing, returns what a record counts against the size limit of a batch,
-- in bytes.
create or replace function record_bytes(key bytea, body bytea, header_keys text[],
    header_values bytea[]) returns int8
language sql immutable set search_path from current
return 24 + coalesce(octet_length(key), 0) + coalesce(octet_length(body), 0)
    + (select coalesce(sum(16 + octet_length(h.k) + coalesce(octet_length(h.v), 0)), 0)
        from unnest(header_keys, header_values) h (k, v));
