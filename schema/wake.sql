-- Waking those who wait for records. Waiters hold a shared advisory lock on their listening session; a
-- producer that has committed looks whether there is one.

-- Tries the topics' waiting locks exclusively for an instant and blocks nobody; reads and writes nothing,
-- notifies channel <schema>_wake with the ids of the topics somebody waits for, returns nothing. For after
-- the commit, in a statement of its own: NOTIFY makes commits queue up.
create or replace function wake(topic_ids int4[]) returns void
language plpgsql volatile security definer set search_path from current as $$
declare
    class constant int4 := lock_class('wake');
    id int4;
begin
    perform set_config('synchronous_commit', 'off', true);
    foreach id in array topic_ids loop
        -- In one expression, in the middle of which nobody is cancelled: the session would keep the lock, and whoever
        -- wants to wait for the topic would wait for that.
        if not (case when pg_try_advisory_lock(class, id) then pg_advisory_unlock(class, id) else false end) then
            perform pg_notify(current_schema() || '_wake', id::text);
        end if;
    end loop;
end
$$;

-- Takes the topics' waiting locks, shared, on the session; reads and writes nothing, returns nothing. For a
-- session that has said LISTEN; look at the log again after this and before sleeping.
create or replace function waiting(topic_ids int4[]) returns void
language sql volatile security definer set search_path from current
begin atomic
    select pg_catalog.pg_advisory_lock_shared(lock_class('wake'), id) from unnest(waiting.topic_ids) id;
end;

-- Gives back what waiting() took, reads and writes nothing, returns nothing.
create or replace function not_waiting(topic_ids int4[]) returns void
language sql volatile security definer set search_path from current
begin atomic
    select pg_catalog.pg_advisory_unlock_shared(lock_class('wake'), id) from unnest(not_waiting.topic_ids) id;
end;
