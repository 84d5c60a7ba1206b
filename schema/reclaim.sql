-- Dropping the tables of deleted topics, without being in anybody's way.

-- Takes no lock, reads the catalog, writes nothing, returns the next statement to run, by itself and outside
-- of a transaction, to free the space of a deleted topic that is not in skip; no row: nothing is left to do.
-- Whatever was interrupted, the answer follows from what is there. A topic's table is detached concurrently,
-- which appends and reads do not notice, and dropped when it belongs to nobody any more; DROP alone would
-- block every append.
create or replace function next_reclaim(skip int4[] default '{}')
returns table (topic_id int4, statement text)
language plpgsql stable security definer set search_path from current as $$
#variable_conflict use_column
declare
    log constant text := quote_ident(current_schema());
    views constant text := quote_ident(current_schema() || '_topics');
begin
    return query
        select u.topic_id, case
            when u.view_name is not null then format('drop view %s.%I', views, u.view_name)
            when u.inhdetachpending then
                format('alter table %1$s.batches detach partition %1$s.%2$I finalize', log, u.relname)
            when u.inhrelid is not null then
                format('alter table %1$s.batches detach partition %1$s.%2$I concurrently', log, u.relname)
            when u.relname is not null then format('drop table %s.%I', log, u.relname)
            else format('delete from %s.deleted_topic where topic_id = %s', log, u.topic_id) end
        from (select d.topic_id, v.relname as view_name, c.relname, i.inhrelid, i.inhdetachpending
              from deleted_topic d
              left join pg_catalog.pg_class v
                  on v.relname = d.view_name and v.relnamespace = to_regnamespace(views)
                  and not exists (select from topic t where t.view_name = d.view_name)
              left join pg_catalog.pg_class c
                  on c.relname = 'b_' || d.topic_id and c.relnamespace = to_regnamespace(log)
              left join pg_catalog.pg_inherits i on i.inhrelid = c.oid
              where d.topic_id <> all (skip)) u
        -- Only one detach can be pending at a time, so that one comes first.
        order by u.inhdetachpending desc nulls last, u.topic_id
        limit 1;
end
$$;
