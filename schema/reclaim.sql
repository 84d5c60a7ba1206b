-- Dropping the tables of deleted topics and of dropped segments, without being in anybody's way.

-- Takes no lock, reads the catalog, writes nothing, returns the next statement to run, by itself and outside
-- of a transaction, to free the space of a deleted topic that is not in skip; no row: nothing is left to do.
-- Whatever was interrupted, the answer follows from what is there. A topic's table is detached concurrently,
-- which appends and reads do not notice, and dropped when it belongs to nobody any more (DROP alone would block
-- every append), its segments first, some at a time, so that no statement needs more locks than there are.
create or replace function next_reclaim(skip int4[] default '{}')
returns table (topic_id int4, statement text)
language plpgsql stable security definer set search_path from current as $$
#variable_conflict use_column
declare
    log constant text := quote_ident(current_schema());
    views constant text := quote_ident(current_schema() || '_topics');
begin
    -- So it is nearly always; what follows takes PostgreSQL some 5 ms to plan.
    if not exists (select from deleted_topic) then
        return;
    end if;
    return query
        select u.topic_id, case
            when u.view_name is not null then format('drop view %s.%I', views, u.view_name)
            when u.inhdetachpending then
                format('alter table %1$s.batches detach partition %1$s.%2$I finalize', log, u.relname)
            when u.inhrelid is not null then
                format('alter table %1$s.batches detach partition %1$s.%2$I concurrently', log, u.relname)
            when u.leaves is not null then format('drop table %s', u.leaves)
            when u.relname is not null then format('drop table %s.%I', log, u.relname)
            else format('delete from %s.deleted_topic where topic_id = %s', log, u.topic_id) end
        from (select d.topic_id, v.relname as view_name, c.relname, i.inhrelid, i.inhdetachpending,
                     (select string_agg(format('%s.%I', log, l.relname), ', ')
                      from (select l.relname from pg_catalog.pg_inherits h
                            join pg_catalog.pg_class l on l.oid = h.inhrelid
                            where h.inhparent = c.oid order by l.oid limit 64) l) as leaves
              from deleted_topic d
              left join pg_catalog.pg_class v
                  on v.relname = d.view_name and v.relnamespace = to_regnamespace(views)
                  and not exists (select from topic t where t.view_name = d.view_name)
              left join pg_catalog.pg_class c
                  on c.relname = 'b_' || d.topic_id and c.relnamespace = to_regnamespace(log)
              left join pg_catalog.pg_inherits i on i.inhrelid = c.oid
              where d.topic_id <> all (skip)
                -- Only one detach can be pending at a time: that one comes first, the others have to wait for it.
                and (i.inhrelid is null or i.inhdetachpending
                     or not exists (select from pg_catalog.pg_inherits w
                                    where w.inhparent = i.inhparent and w.inhdetachpending))) u
        order by u.inhdetachpending desc nulls last, u.topic_id
        limit 1;
end
$$;

-- Takes no lock, reads the catalog, writes nothing, returns the next statement to run, by itself and outside of a
-- transaction, to free the space of a dropped segment of a topic that is not in skip, and what it does: finalize,
-- detach or drop; no row: nothing is to be done now. Whatever was interrupted, the answer follows from what is
-- there. A leaf is detached at once, for those who read all of the topic, and dropped when those who have found
-- it by its name have had file.delete.delay.ms to read it. A detach that has to wait for longer than lock_timeout
-- is finalized, which waits for less: for those who read the leaf, and for snapshots of before the detach. All are
-- detached before one is dropped: what readers and appends could notice is over before the disk is busy with files.
create or replace function next_drop(skip int4[] default '{}')
returns table (topic_id int4, segment int4, bytes int8, action text, statement text)
language plpgsql stable security definer set search_path from current as $$
#variable_conflict use_column
declare
    log constant text := quote_ident(current_schema());
begin
    return query
        select u.topic_id, u.segment, u.bytes, case
            when u.inhdetachpending then 'finalize' when u.inhrelid is not null then 'detach' else 'drop' end,
            case when u.inhdetachpending
                then format('alter table %1$s.%2$I detach partition %1$s.%3$I finalize', log, u.parent, u.leaf)
            when u.inhrelid is not null
                then format('alter table %1$s.%2$I detach partition %1$s.%3$I concurrently', log, u.parent,
                            u.leaf)
            else format('select %s.drop_leaf(%s, %s)', log, u.topic_id, u.segment) end
        from (select d.topic_id, d.segment, d.bytes, d.free_at, 'b_' || d.topic_id as parent, c.relname as leaf,
                     i.inhrelid, i.inhdetachpending
              from dropped_segment d
              left join pg_catalog.pg_class c
                  on c.relname = 'b_' || d.topic_id || '_' || d.segment
                     and c.relnamespace = to_regnamespace(log)
              left join pg_catalog.pg_inherits i on i.inhrelid = c.oid
              where d.topic_id <> all (skip)
                -- What is left of a deleted topic goes with it.
                and (i.inhrelid is null
                     or not exists (select from deleted_topic g where g.topic_id = d.topic_id))) u
        where u.inhrelid is not null or u.free_at <= clock_ms()
        -- Only one detach of a topic can be pending at a time, so that one comes first; what is detached comes last.
        order by u.inhdetachpending desc nulls last, u.topic_id, u.segment
        limit 1;
end
$$;

-- Locks the table of a dropped segment in ACCESS EXCLUSIVE mode (nobody looks for it any more), drops it and
-- forgets the segment, returns nothing.
create or replace function drop_leaf(topic_id int4, segment int4) returns void
language plpgsql volatile security definer set search_path from current as $$
begin
    delete from dropped_segment d where d.topic_id = drop_leaf.topic_id and d.segment = drop_leaf.segment;
    if found then
        execute format('drop table if exists %I', 'b_' || drop_leaf.topic_id || '_' || drop_leaf.segment);
    end if;
end
$$;
