-- Segments: the leaf tables b_<topic_id>_<segment> that hold the batches.

-- Takes no lock, reads the clock, writes nothing, returns when a segment made now is old enough to be closed, in
-- ms since the epoch.
create or replace function roll_time(configs jsonb) returns int8
language sql volatile set search_path from current
return (
    -- What max.compaction.lag.ms says has to be closed by then to be compacted.
    select least(clock_ms() + u.age - floor(random()::numeric * least((configs ->> 'segment.jitter.ms')::numeric, u.age)),
                 9223372036854775807)::int8
    from (select case when configs ->> 'cleanup.policy' ~ 'compact'
                      then least((configs ->> 'segment.ms')::numeric, (configs ->> 'max.compaction.lag.ms')::numeric)
                      else (configs ->> 'segment.ms')::numeric end as age) u);

-- Needs the topic's guard; takes the topic's row lock and locks its table in SHARE UPDATE EXCLUSIVE mode, which
-- appends and reads do not notice; makes and attaches the leaf for one more segment, writes its catalog row,
-- returns its number. place: after which of the segments it comes (null: after them all); active: appends go
-- there from now on. (CREATE TABLE ...
-- PARTITION OF would wait for everybody and block every append.)
create or replace function add_segment(
    topic_id int4, live boolean default true, place int4 default null, active boolean default false)
returns int4
language plpgsql volatile set search_path from current as $$
#variable_conflict use_column
declare
    parent text := 'b_' || add_segment.topic_id;
    leaf text;
    number int4;
    compressed boolean;
    compacted boolean;
    arrays text;
begin
    update topic t set
        last_segment = t.last_segment + 1,
        active_segment = case when add_segment.active then t.last_segment + 1 else t.active_segment end,
        roll_at = case when add_segment.active then roll_time(effective_configs(t.configs)) else t.roll_at end
    where t.topic_id = add_segment.topic_id
    returning t.last_segment, coalesce(t.configs ->> 'compression.type' = 'lz4', false),
              coalesce('compact' = any (string_to_array(t.configs ->> 'cleanup.policy', ',')), false)
    into number, compressed, compacted;
    leaf := parent || '_' || number;
    -- Batches of up to 8 kB stay in the row; the TOAST table is for the large ones.
    execute format('create table %I (like batches including all)
                    with (%s vacuum_truncate = off, toast.vacuum_truncate = off)', leaf,
                   case when compressed then '' else 'toast_tuple_target = 8160,' end);
    -- Of an array the planner could learn nothing, but autovacuum would write up to 100 kB of statistics a leaf.
    select string_agg(format(case when compressed
        then 'alter %1$I set statistics 0, alter %1$I set storage extended, alter %1$I set compression lz4'
        else 'alter %1$I set statistics 0' end, a.attname), ', ')
    into arrays
    from pg_catalog.pg_attribute a
    where a.attrelid = leaf::regclass and a.attnum > 0 and a.attstorage = 'e';
    execute format('alter table %I %s', leaf, arrays);
    execute format('create unique index %I on %I (partition, last_offset)', leaf || '_offset', leaf);
    -- What a producer has appended. An append only ever adds to it.
    execute format('create index %I on %I (partition, producer_id, last_offset) where producer_id is not null',
                   leaf || '_producer', leaf);
    if compacted then
        perform add_key_index(add_segment.topic_id, number);
    end if;
    execute format('alter table %I attach partition %I for values in (%s)', parent, leaf, number);
    insert into topic_segment (topic_id, segment, live, place, created_at)
    values (add_segment.topic_id, number, add_segment.live, coalesce(add_segment.place, number),
            to_timestamp(clock_ms() / 1000.0));
    return number;
end
$$;

-- Never waits: tries the topic's guard and the lock that a new leaf needs and, if somebody else has one of them
-- or the topic has gone on from segment already, does nothing; else makes the next segment and makes it the
-- active one. Returns the active segment as it then is. Partitions follow by themselves at their next append,
-- or roll_idle() takes them along.
create or replace function roll_segment(topic_id int4, segment int4) returns int4
language plpgsql volatile set search_path from current as $$
#variable_conflict use_column
declare
    active int4;
begin
    if not pg_try_advisory_xact_lock(lock_class('guard'), roll_segment.topic_id) then
        return roll_segment.segment;
    end if;
    select t.active_segment into active from topic t where t.topic_id = roll_segment.topic_id;
    if active <> roll_segment.segment then
        return active;
    end if;
    -- Somebody analyses the topic's table, say, or detaches another leaf by hand.
    begin
        execute format('lock table only %I in share update exclusive mode nowait',
                       'b_' || roll_segment.topic_id);
    exception when lock_not_available then
        return roll_segment.segment;
    end;
    return add_segment(roll_segment.topic_id, active => true);
end
$$;

-- Needs the partition's row lock, which append() holds; takes the next leaf's ACCESS SHARE lock; reads the last
-- batches of the segment that the partition leaves, and what the catalog says of the next leaf; writes the left
-- segment's catalog row, what its producers have appended and the partition's row; returns the offset at which the
-- partition enters the next segment.
create or replace function enter_segment(
    topic_id int4, "partition" int4, segment int4, segment_start int8, next_segment int4) returns int8
language plpgsql volatile set search_path from current as $$
#variable_conflict use_column
declare
    end_offset int8;
begin
    -- A commit is visible a moment before the other sessions are told of the tables that it made: an insert
    -- through the parent would find no leaf. Whoever made the leaf has it locked until after that.
    execute format('lock table only %I in access share mode',
                   'b_' || enter_segment.topic_id || '_' || enter_segment.next_segment);
    execute format('insert into sealed_segment (topic_id, partition, segment, first_offset, last_offset,
                                                bytes, min_timestamp, max_timestamp, disorder)
                    select topic_id, partition, segment, $2, last_offset, segment_bytes,
                           segment_min_timestamp, segment_max_timestamp, segment_disorder
                    from %I where partition = $1 order by last_offset desc limit 1
                    returning last_offset + 1',
                   'b_' || enter_segment.topic_id || '_' || enter_segment.segment)
    into end_offset using enter_segment.partition, enter_segment.segment_start;
    perform keep_producers(enter_segment.topic_id, enter_segment.partition, enter_segment.segment);
    end_offset := coalesce(end_offset, enter_segment.segment_start);
    update topic_partition set segment = next_segment, segment_start = end_offset
    where topic_id = enter_segment.topic_id and partition = enter_segment.partition;
    -- Has PostgreSQL read the new leaf's row of pg_class. Whoever reads it while it makes its list of the topic's leaves
    -- hears of further leaves in the middle of that, and keeps a list without them (ADR 10).
    perform has_table_privilege('b_' || enter_segment.topic_id || '_' || enter_segment.next_segment, 'insert');
    return end_offset;
end
$$;
