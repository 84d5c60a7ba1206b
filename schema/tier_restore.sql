-- Bringing segments back from files.

-- Takes the topic's guard; makes a leaf that nobody reads yet, which comes before those there are, and writes
-- down that it is being filled; returns its number. LS001.
create or replace function begin_restore(topic_id int4) returns int4
language plpgsql volatile security definer set search_path from current as $$
#variable_conflict use_column
declare
    number int4;
begin
    perform pg_advisory_xact_lock(lock_class('guard'), begin_restore.topic_id);
    perform from topic t where t.topic_id = begin_restore.topic_id;
    if not found then
        perform no_partition(begin_restore.topic_id, null);
    end if;
    number := add_segment(begin_restore.topic_id, false, (
        select min(s.place) - 1 from topic_segment s where s.topic_id = begin_restore.topic_id));
    insert into tier_restore (topic_id, segment) values (begin_restore.topic_id, number);
    return number;
end
$$;

-- Reads the last batch of the leaf, writes one more, returns nothing: records as they were read from a file, in
-- order. The leaf is one that begin_restore() has made. LS057: it is not.
create or replace function restore_batch(
    topic_id int4, segment int4, "partition" int4, base_offset int8, last_offset int8, record_count int4,
    leader_epoch int4, timestamp_type int2, min_timestamp int8, max_timestamp int8, timestamps int8[],
    keys bytea[], "values" bytea[], header_records int4[], header_keys text[], header_values bytea[],
    offset_deltas int4[]) returns void
language plpgsql volatile security definer set search_path from current as $$
#variable_conflict use_column
declare
    leaf constant text := 'b_' || topic_id || '_' || segment;
    size constant int8 := coalesce(pg_column_size(timestamps), 0)
        + coalesce(pg_column_size(keys), 0) + coalesce(pg_column_size("values"), 0)
        + coalesce(pg_column_size(header_records), 0) + coalesce(pg_column_size(header_keys), 0)
        + coalesce(pg_column_size(header_values), 0);
    tip record;
    newest int8;
begin
    perform from tier_restore r
    where r.topic_id = restore_batch.topic_id and r.segment = restore_batch.segment;
    if not found then
        perform raise_error('LS057', 'nobody restores this segment any more',
            jsonb_build_object('topic_id', topic_id, 'segment', segment), null);
    end if;
    execute format('select b.segment_max_timestamp as newest, b.segment_min_timestamp as oldest,
                           b.segment_disorder as disorder, b.segment_bytes as bytes
                    from %I b where b.partition = $1 order by b.last_offset desc limit 1', leaf)
    into tip using restore_batch."partition";
    newest := greatest(tip.newest, restore_batch.max_timestamp);
    insert into batches (
        base_offset, last_offset, append_time, max_timestamp, segment_max_timestamp, segment_min_timestamp,
        segment_disorder, segment_bytes, topic_id, segment, partition, record_count, leader_epoch, size_bytes,
        timestamp_type, offset_deltas, timestamps, keys, "values", header_records, header_keys, header_values)
    values (
        restore_batch.base_offset, restore_batch.last_offset, restore_batch.max_timestamp,
        restore_batch.max_timestamp, newest, least(tip.oldest, restore_batch.min_timestamp),
        greatest(tip.disorder, newest - restore_batch.min_timestamp), coalesce(tip.bytes, 0) + size,
        restore_batch.topic_id, restore_batch.segment, restore_batch."partition", restore_batch.record_count,
        restore_batch.leader_epoch, size, restore_batch.timestamp_type, restore_batch.offset_deltas,
        restore_batch.timestamps, restore_batch.keys, restore_batch."values", restore_batch.header_records,
        restore_batch.header_keys, restore_batch.header_values);
end
$$;

-- Takes no lock, reads the catalog, writes nothing, returns the files whose records, from from_offset on, are in
-- PostgreSQL no more, in the order in which they can be brought back; partition null: of all.
create or replace function files_to_restore(
    topic_id int4, "partition" int4, from_offset int8) returns setof remote_file
language sql stable security definer set search_path from current
begin atomic
    select f.* from remote_file f
    join topic_partition p on p.topic_id = f.topic_id and p.partition = f.partition
    where f.topic_id = files_to_restore.topic_id and f.first_offset < p.local_start
      and f.partition = coalesce(files_to_restore.partition, f.partition)
      and f.last_offset >= greatest(files_to_restore.from_offset, p.log_start)
    order by f.partition, f.last_offset desc;
end;

-- Takes the topic's guard and the partition's row; reads the catalog; makes the records of a file readable in
-- PostgreSQL again, for keep_ms at least: those that segment was filled with (null: its table is not
-- dropped yet); returns the new start of what is in PostgreSQL. LS057: there is a gap between the file and that,
-- or nothing to take.
create or replace function finish_restore(file_id int8, segment int4, keep_ms int8) returns int8
language plpgsql volatile security definer set search_path from current as $$
#variable_conflict use_column
declare
    file remote_file;
    p topic_partition;
    complete boolean;
begin
    perform pg_advisory_xact_lock(lock_class('guard'), f.topic_id)
    from remote_segment f where f.file_id = finish_restore.file_id;
    select f.* into file from remote_file f where f.file_id = finish_restore.file_id;
    select q.* into p from topic_partition q
    where q.topic_id = file.topic_id and q.partition = file.partition for no key update;
    if segment is null then
        complete := still_local(finish_restore.file_id);
    else
        delete from tier_restore r where r.topic_id = p.topic_id and r.segment = finish_restore.segment;
        complete := found;
    end if;
    if (complete and file.first_offset < p.local_start and file.last_offset + 1 >= p.local_start) is not true then
        perform raise_error('LS057', 'what was restored does not fit any more',
            jsonb_build_object('file_id', finish_restore.file_id, 'local_start', p.local_start), null);
    end if;
    if segment is not null then
        execute format(
            'insert into sealed_segment (topic_id, partition, segment, first_offset, last_offset, records, bytes,
                                         min_timestamp, max_timestamp, disorder)
             select topic_id, partition, segment, $2, $3, $4, segment_bytes, segment_min_timestamp,
                    segment_max_timestamp, segment_disorder
             from %I where partition = $1 order by last_offset desc limit 1',
            'b_' || p.topic_id || '_' || segment)
        using p.partition, file.first_offset, file.last_offset,
              nullif(file.records, file.last_offset - file.first_offset + 1);
        update topic_segment s set live = true
        where s.topic_id = p.topic_id and s.segment = finish_restore.segment;
    end if;
    update remote_segment f set keep_until = clock_ms() + keep_ms where f.file_id = file.file_id;
    update topic_partition q set local_start = file.first_offset
    where q.topic_id = p.topic_id and q.partition = p.partition;
    return file.first_offset;
end
$$;

-- Takes no lock, reads the catalog, writes nothing, returns whether PostgreSQL still has all records of a file that
-- are in the log.
create or replace function still_local(file_id int8) returns boolean
language sql stable security definer set search_path from current
begin atomic
    select coalesce((
        select min(s.first_offset) <= min(greatest(f.first_offset, p.log_start))
               and max(s.last_offset) >= max(f.last_offset)
        from remote_file f
        join topic_partition p on p.topic_id = f.topic_id and p.partition = f.partition
        join sealed_segment s on s.topic_id = f.topic_id and s.partition = f.partition
            and s.last_offset >= f.first_offset and s.first_offset <= f.last_offset
        join topic_segment g on g.topic_id = s.topic_id and g.segment = s.segment and g.live
        where f.file_id = still_local.file_id), false);
end;

-- Takes the topic's guard, and needs the claim to its files; takes leaves that were being filled by somebody who
-- is gone out of the catalog, to be dropped; returns how many.
create or replace function abandon_restores(topic_id int4) returns int4
language plpgsql volatile security definer set search_path from current as $$
declare
    left_over int4[];
begin
    if not exists (select from tier_restore r where r.topic_id = abandon_restores.topic_id) then
        return 0;
    end if;
    perform pg_advisory_xact_lock(lock_class('guard'), abandon_restores.topic_id);
    with gone as (
        delete from tier_restore r where r.topic_id = abandon_restores.topic_id returning r.segment)
    select array_agg(g.segment) into left_over from gone g;
    perform retire_segments(abandon_restores.topic_id, left_over);
    return cardinality(left_over);
end
$$;
