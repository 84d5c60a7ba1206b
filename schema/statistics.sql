-- What the worker keeps an eye on: how much is in each topic, and leaves that need the server's care.

-- Takes the row locks of the rows that it writes; reads the sizes of up to at_most topics whose ids come after
-- a given one, writes them to topic_statistics, and forgets there topics that were deleted. Returns how many
-- topics, records and bytes that were, and the last id (null: there is no topic after it).
create or replace function measure_topics(after_topic int4, at_most int4 default 50)
returns table (last_topic int4, topics int4, records int8, bytes int8)
language plpgsql volatile security definer set search_path from current as $$
#variable_conflict use_column
begin
    perform set_config('synchronous_commit', 'off', true);
    delete from topic_statistics s where not exists (select from topic t where t.topic_id = s.topic_id);
    with measured as (
        insert into topic_statistics as s (topic_id, partitions, segments, records, bytes, measured_at)
        select t.topic_id, t.partitions, t.segments, coalesce(t.records, 0), coalesce(t.bytes, 0), log_time()
        from (select u.topic_id from topic u where u.topic_id > measure_topics.after_topic
              order by u.topic_id limit measure_topics.at_most) w
        join topics t on t.topic_id = w.topic_id
        order by t.topic_id
        on conflict (topic_id) do update
            set partitions = excluded.partitions, segments = excluded.segments, records = excluded.records,
                bytes = excluded.bytes, measured_at = excluded.measured_at
        returning s.topic_id, s.records, s.bytes)
    select max(m.topic_id), count(*)::int4, coalesce(sum(m.records), 0)::int8, coalesce(sum(m.bytes), 0)::int8
    into last_topic, topics, records, bytes from measured m;
    return next;
end
$$;

-- Takes no lock, reads the catalog, writes nothing, returns up to at_most leaves that nobody writes to any more
-- and that need care, those with the oldest rows first. to_freeze: rows in it are older than freeze_age
-- transactions, so it is to be vacuumed once, before the server does it for all leaves at a time of its own
-- choosing; a leaf that is dropped sooner than that costs nothing. to_analyze: the server knows nothing of it.
create or replace function leaves_to_tend(freeze_age int4 default 50000000, at_most int4 default 20)
returns table (leaf text, to_freeze boolean, to_analyze boolean)
language sql stable security definer set search_path from current
begin atomic
    select format('%I.%I', current_schema(), u.relname), u.age >= leaves_to_tend.freeze_age, u.reltuples < 0
    from (select c.relname, c.reltuples,
                 greatest(age(c.relfrozenxid),
                          case when toast.relfrozenxid <> '0'::xid then age(toast.relfrozenxid) end) as age
          from topic_segment s
          join pg_catalog.pg_class c on c.relname = 'b_' || s.topic_id || '_' || s.segment
              and c.relnamespace = quote_ident(current_schema())::regnamespace
          left join pg_catalog.pg_class toast on toast.oid = c.reltoastrelid
          where s.live and not exists (select from topic_partition p
                                       where p.topic_id = s.topic_id and p.segment = s.segment)) u
    where u.age >= leaves_to_tend.freeze_age or u.reltuples < 0
    order by u.age desc limit leaves_to_tend.at_most;
end;
