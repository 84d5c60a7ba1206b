-- The catalog of topics: make them, change them, take them away, ask for them.

-- Takes no lock, reads the topic's row, writes nothing, returns the id of the topic with this name. LS001:
-- there is none.
create or replace function topic_id_of(topic text) returns int4
language plpgsql stable set search_path from current as $$
#variable_conflict use_column
declare
    id int4;
begin
    select t.topic_id into id from topic t where t.name = topic_id_of.topic;
    if not found then
        perform raise_error('LS001', format('there is no topic %s', shown(topic_id_of.topic)),
            jsonb_build_object('topic', topic_id_of.topic), null);
    end if;
    return id;
end
$$;

-- Takes no lock, reads and writes nothing, returns nothing. LS003: name is not legal by Kafka's rules. Kafka
-- also refuses names that differ only in . and _, for the sake of its metrics; nothing here confuses them.
create or replace function check_topic_name(name text) returns void
language plpgsql immutable set search_path from current as $$
begin
    if (name ~ '\A[a-zA-Z0-9._-]{1,249}\Z') is not true or name in ('.', '..') then
        perform raise_error('LS003', format('%s is not a legal topic name', shown(name)),
            jsonb_build_object('topic', name),
            'A name has 1 to 249 of the characters a-z A-Z 0-9 . _ - and is neither ''.'' nor ''..''.');
    end if;
end
$$;

-- Waits for the topic's guard and row lock and holds both to the end of the transaction; reads the topic's
-- row, writes nothing, returns the row. The guard is an advisory lock that keeps changes of one topic's
-- structure apart; append() only ever tries it, so whoever holds it is in no append's way. LS001.
create or replace function guarded_topic(name text) returns topic
language plpgsql volatile set search_path from current as $$
declare
    guarded topic;
begin
    perform pg_advisory_xact_lock(lock_class('guard'), topic_id_of(name));
    select t.* into guarded from topic t where t.name = guarded_topic.name for no key update;
    if not found then
        perform topic_id_of(name);
    end if;
    return guarded;
end
$$;

-- Takes the row lock of the topic, reads its configs, writes the columns that append() needs, returns
-- nothing.
create or replace function compile_configs(topic_id int4) returns void
language sql volatile set search_path from current
begin atomic
    update topic t set
        segment_bytes = (c.configs ->> 'segment.bytes')::int8,
        max_message_bytes = (c.configs ->> 'max.message.bytes')::int4,
        timestamp_type = (c.configs ->> 'message.timestamp.type' = 'LogAppendTime')::int4::int2,
        timestamp_before_max = (c.configs ->> 'message.timestamp.before.max.ms')::int8,
        timestamp_after_max = (c.configs ->> 'message.timestamp.after.max.ms')::int8,
        min_insync_replicas = (c.configs ->> 'min.insync.replicas')::int2,
        compacted = 'compact' = any (string_to_array(c.configs ->> 'cleanup.policy', ',')),
        tiered = c.configs ->> 'remote.storage.enable' = 'true',
        -- As if the configs had been so when the segment was made.
        roll_at = least(roll_time(c.configs)::numeric + floor(extract(epoch from s.created_at) * 1000)
                            - clock_ms(), 9223372036854775807)
    from topic_segment s,
         lateral (select effective_configs(u.configs) as configs from topic u
                  where u.topic_id = compile_configs.topic_id) c
    where t.topic_id = compile_configs.topic_id and s.topic_id = t.topic_id and s.segment = t.active_segment;
end;

-- Locks the parent of all batches in SHARE UPDATE EXCLUSIVE mode (which appends and reads do not notice),
-- reads the definitions, writes the catalog, makes the topic's tables and view, returns the topic's id.
-- LS002: the name is taken (with if_not_exists its id is returned), LS003, LS004, LS005, LS011, LS018: fewer
-- servers than replication_factor would have its records.
create or replace function create_topic(
    name text, partitions int4, configs jsonb default null, if_not_exists boolean default false,
    replication_factor int4 default null) returns int4
language plpgsql volatile security definer set search_path from current as $$
#variable_conflict use_column
declare
    id int4;
    overrides jsonb;
begin
    perform check_topic_name(create_topic.name);
    if (create_topic.partitions between 1 and 10000) is not true then
        perform raise_error('LS005',
            format('a topic has 1 to 10000 partitions, not %s',
                coalesce(create_topic.partitions::text, 'null')),
            jsonb_build_object('topic', create_topic.name, 'partitions', create_topic.partitions), null);
    end if;
    overrides := changed_configs('{}', create_topic.configs, null);
    perform check_tiering(overrides);

    -- compile_configs fills in the rest.
    insert into topic (name, partitions, configs, roll_at, segment_bytes, max_message_bytes, timestamp_type,
                       timestamp_before_max, timestamp_after_max, min_insync_replicas, last_segment,
                       replication_factor)
    values (create_topic.name, create_topic.partitions, overrides, 0, 0, 0, 0, 0, 0, 0, -1,
            case when create_topic.replication_factor between 1 and 32767
                 then create_topic.replication_factor end)
    on conflict do nothing returning topic_id into id;
    if id is null then
        select t.topic_id into id from topic t where t.name = create_topic.name;
        if create_topic.if_not_exists and id is not null then
            return id;
        end if;
        perform raise_error('LS002', format('topic %s exists already', create_topic.name),
            jsonb_build_object('topic', create_topic.name), null);
    end if;
    perform check_replication_factor(create_topic.name, create_topic.replication_factor);

    execute format('create table %I (like batches including all) partition by list (segment)', 'b_' || id);
    execute format('alter table batches attach partition %I for values in (%s)', 'b_' || id, id);
    perform add_segment(id);
    perform compile_configs(id);
    insert into topic_partition (topic_id, partition, segment, boot)
    select id, p, 0, pg_postmaster_start_time() from generate_series(0, create_topic.partitions - 1) p;
    perform create_topic_view(id);
    return id;
end
$$;

-- Waits for the topic's guard and row, reads the definitions, writes the topic's row (and makes the next
-- segment, if that is where the change takes effect), returns nothing. LS001, LS004, LS011.
create or replace function alter_topic(name text, set_configs jsonb, unset text[] default null) returns void
language plpgsql volatile security definer set search_path from current as $$
declare
    before topic := guarded_topic(name);
    after jsonb := changed_configs(before.configs, set_configs, unset);
begin
    perform check_tiering(after);
    perform settle_tiering(before.topic_id, before.tiered, after);
    update topic t set configs = after where t.topic_id = before.topic_id;
    -- The leaves of compacted topics have an index of their keys.
    if after ->> 'compression.type' is distinct from before.configs ->> 'compression.type'
       or coalesce(after ->> 'cleanup.policy' ~ 'compact', false) and not before.compacted then
        perform roll_segment(before.topic_id, before.active_segment);
    end if;
    perform compile_configs(before.topic_id);
end
$$;

-- Waits for the topic's guard and row, reads and writes the catalog, returns nothing. LS001: no such topic,
-- LS005: total is not more than there are.
create or replace function add_partitions(name text, total int4) returns void
language plpgsql volatile security definer set search_path from current as $$
declare
    before topic := guarded_topic(name);
begin
    if (total > before.partitions and total <= 10000) is not true then
        perform raise_error('LS005',
            format('topic %s has %s partitions; it can get more, up to 10000, but not %s', name,
                before.partitions, coalesce(total::text, 'null')),
            jsonb_build_object('topic', name, 'partitions', before.partitions, 'total', total), null);
    end if;
    update topic t set partitions = total where t.topic_id = before.topic_id;
    insert into topic_partition (topic_id, partition, segment, read_only, boot)
    select before.topic_id, p, before.active_segment, before.read_only, pg_postmaster_start_time()
    from generate_series(before.partitions, total - 1) p;
end
$$;

-- Waits for the topic's guard and row and for the appends that are under way in it, reads and writes the
-- catalog, returns nothing. When this commits the topic is gone and its writers are fenced; its tables are
-- dropped afterwards, by the statements of next_reclaim(). LS001.
create or replace function delete_topic(name text) returns void
language plpgsql volatile security definer set search_path from current as $$
declare
    gone topic := guarded_topic(name);
begin
    -- In the order of everybody who locks several of them.
    perform from topic_partition p where p.topic_id = gone.topic_id order by p.partition for update;
    delete from topic_partition p where p.topic_id = gone.topic_id;
    delete from producer_state s where s.topic_id = gone.topic_id;
    delete from sealed_segment s where s.topic_id = gone.topic_id;
    delete from topic_segment s where s.topic_id = gone.topic_id;
    delete from rewrite r where r.topic_id = gone.topic_id;
    delete from rewrite_tally r where r.topic_id = gone.topic_id;
    update erasure e set key = null, removed_at = coalesce(e.removed_at, clock_timestamp()),
                         finished_at = clock_timestamp()
    where e.topic_id = gone.topic_id and e.finished_at is null;
    update remote_segment f set state = 'deleting' where f.topic_id = gone.topic_id;
    delete from tier_restore r where r.topic_id = gone.topic_id;
    delete from mirrored_topic m where m.topic_id = gone.topic_id;
    delete from topic t where t.topic_id = gone.topic_id;
    insert into deleted_topic (topic_id, name, view_name)
    values (gone.topic_id, gone.name, case when not drop_topic_view(gone.view_name) then gone.view_name end);
end
$$;

-- Takes no lock, reads the catalog, writes nothing, returns the topics that exist among topics (null: all
-- there are), with their effective configs.
create or replace function metadata(topics text[])
returns table (topic text, topic_id int4, partitions int4, timestamp_type int2, max_message_bytes int4,
               configs jsonb)
language sql stable security definer set search_path from current
begin atomic
    select t.name, t.topic_id, t.partitions, t.timestamp_type, t.max_message_bytes,
           effective_configs(t.configs)
    from topic t where metadata.topics is null or t.name = any (metadata.topics)
    order by t.name;
end;
