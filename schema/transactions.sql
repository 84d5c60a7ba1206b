-- Transactions: records of several partitions, committed offsets and the rows of a program, in one commit.
--
-- Locks are taken in one order everywhere: the program's own, the producer's row, the partitions ascending by
-- (topic_id, partition), the group's claims, its offsets. So no two transactions wait for each other.

-- Takes the row lock of the transactional id, FOR SHARE, to the end of the transaction, and a shared advisory
-- lock that shows who is at it; reads the row, writes once an hour that the id is in use, returns nothing. The
-- session may idle no longer in this transaction than transactions of this producer may last, and its commit
-- waits for followers. LS014: there is a newer holder, LS017: nobody has ever held it, or not for long.
create or replace function enter_transaction(transactional_id text, producer_id int8, producer_epoch int2)
returns void
language plpgsql volatile security definer set search_path from current as $$
#variable_conflict use_column
declare
    timeout_ms int4;
    used_at timestamptz;
begin
    perform check_producer(enter_transaction.transactional_id, enter_transaction.producer_id,
        enter_transaction.producer_epoch);
    perform pg_advisory_xact_lock_shared(lock_class('transaction'),
        transaction_key(enter_transaction.producer_id));
    select p.timeout_ms, p.used_at into timeout_ms, used_at from producer p
        where p.transactional_id = enter_transaction.transactional_id;
    -- So that it does not expire. Seldom: this is a new version of the row.
    if used_at < log_time() - interval '1 hour' then
        update producer p set used_at = log_time()
        where p.transactional_id = enter_transaction.transactional_id;
    end if;
    perform set_config('idle_in_transaction_session_timeout', timeout_ms::text, true);
    perform set_config('synchronous_commit', 'on', true);
end
$$;

-- Takes no lock, reads and writes nothing, returns the second key of the advisory lock of a producer's
-- transactions; to be inlined.
create or replace function transaction_key(producer_id int8) returns int4
language sql immutable as $$
    select (producer_id & 2147483647)::int4
$$;

-- Takes the row lock of the transactional id, FOR NO KEY UPDATE, so waits until a transaction that has
-- entered is over, however it ends; reads the row, writes and returns nothing. Its commit is a barrier: when
-- it returns, followers have whatever that transaction committed. LS014, LS017.
create or replace function await_transaction(transactional_id text, producer_id int8, producer_epoch int2)
returns void
language plpgsql volatile security definer set search_path from current as $$
#variable_conflict use_column
begin
    perform set_config('synchronous_commit', 'on', true);
    perform from producer p where p.transactional_id = await_transaction.transactional_id for no key update;
    perform check_producer(await_transaction.transactional_id, await_transaction.producer_id,
        await_transaction.producer_epoch);
end
$$;

-- Takes no lock beyond ACCESS SHARE, reads one batch, writes nothing, returns whether the batch that ends at that
-- offset is the one that this producer numbered so.
create or replace function holds_batch(topic_id int4, "partition" int4, last_offset int8, producer_id int8,
    producer_epoch int2, base_sequence int4) returns boolean
language plpgsql stable security definer set search_path from current as $$
declare
    held boolean := false;
    leaf constant text := (
        select 'b_' || p.topic_id || '_' || segment_of(p, holds_batch.last_offset) from topic_partition p
        where p.topic_id = holds_batch.topic_id and p.partition = holds_batch."partition");
begin
    if to_regclass(leaf) is not null then
        execute format('select exists (select from %I b
                        where b.partition = $1 and b.last_offset = $2 and b.producer_id = $3
                          and b.producer_epoch = $4 and b.base_sequence = $5)', leaf)
        into held using "partition", last_offset, producer_id, producer_epoch, base_sequence;
    end if;
    -- Compaction may have come in between; what a producer has left behind in closed segments is remembered.
    return held or exists (
        select from producer_state s, unnest(s.base_sequences, s.last_sequences, s.base_offsets) u (begins, ends, base)
        where s.topic_id = holds_batch.topic_id and s.partition = holds_batch."partition"
          and s.producer_id = holds_batch.producer_id and s.producer_epoch = holds_batch.producer_epoch
          and u.begins = base_sequence
          and u.base + ((u.ends::int8 - u.begins) & 2147483647) = holds_batch.last_offset);
end
$$;

-- As commit_offsets(), and returns when each of the offsets was committed before, then when it is now, both
-- in microseconds, 0: never. By these await_offsets() tells whether the transaction was committed.
create or replace function send_offsets(
    "group" text, member text, instance text, topic_ids int4[], partitions int4[], claim_epochs int8[],
    offsets int8[], leader_epochs int4[], metadata text[]
) returns int8[]
language plpgsql volatile security definer set search_path from current as $$
declare
    before constant int8[] := offset_stamps("group", topic_ids, partitions);
begin
    perform commit_offsets("group", member, instance, topic_ids, partitions, claim_epochs, offsets,
        leader_epochs, metadata);
    return before || offset_stamps("group", topic_ids, partitions);
end
$$;

-- Takes no lock, reads offsets, writes nothing, returns for each partition when its offset was committed, in
-- microseconds since the epoch; 0: never. (Volatile: it has to see what its caller has just written.)
create or replace function offset_stamps("group" text, topic_ids int4[], partitions int4[]) returns int8[]
language plpgsql volatile set search_path from current as $$
begin
    return (
        select array_agg(coalesce((extract(epoch from o.committed_at) * 1000000)::int8, 0) order by w.idx)
        from unnest(topic_ids, partitions) with ordinality w (topic_id, partition, idx)
        left join log_group g on g.name = offset_stamps."group"
        left join group_offset o on o.group_id = g.group_id and o.topic_id = w.topic_id
            and o.partition = w.partition);
end
$$;

-- Takes the row lock of one of the claims FOR UPDATE (without a member: the group's row), so waits until a
-- transaction that sent offsets is over, which held all of them; reads offsets, writes nothing. stamps: what
-- send_offsets() returned in it. Returns true: it was committed, false: it was not, and never will be, null:
-- offsets that somebody else has committed, or deleted, since have covered the traces.
create or replace function await_offsets("group" text, member text, topic_ids int4[], partitions int4[],
    stamps int8[]) returns boolean
language plpgsql volatile security definer set search_path from current as $$
declare
    count constant int4 := cardinality(topic_ids);
    now_there int8[];
begin
    perform set_config('synchronous_commit', 'on', true);
    if member is null then
        perform from log_group g where g.name = await_offsets."group" for update;
    else
        perform from unnest(topic_ids, partitions) w (topic_id, partition)
        join log_group g on g.name = await_offsets."group"
        join group_claim c on c.group_id = g.group_id and c.topic_id = w.topic_id
            and c.partition = w.partition
        order by c.topic_id, c.partition limit 1 for update of c;
    end if;
    now_there := offset_stamps("group", topic_ids, partitions);
    for i in 1 .. count loop
        if now_there[i] = stamps[count + i] then
            return true;
        end if;
    end loop;
    for i in 1 .. count loop
        -- What is not there may have been deleted with its topic or its group.
        if now_there[i] = stamps[i] and (now_there[i] > 0
            or exists (select from topic t where t.topic_id = topic_ids[i])
            and exists (select from log_group g where g.name = await_offsets."group")) then
            return false;
        end if;
    end loop;
    return null;
end
$$;

-- Takes no lock, reads and writes nothing, returns nothing: marks the transaction that the session is in, for
-- check_mark() to recognise; the session may idle in it for idle_timeout_ms.
create or replace function mark_transaction(mark text, idle_timeout_ms int4) returns void
language plpgsql volatile set search_path from current as $$
begin
    perform set_config('logstore.transaction', mark, true);
    perform set_config('idle_in_transaction_session_timeout', idle_timeout_ms::text, true);
    perform set_config('synchronous_commit', 'on', true);
end
$$;

-- Takes no lock, reads and writes nothing, returns nothing. LS040: the session is not in the transaction
-- that was marked so: the program has ended it.
create or replace function check_mark(mark text) returns void
language plpgsql stable set search_path from current as $$
begin
    if current_setting('logstore.transaction', true) is distinct from mark then
        perform raise_error('LS040', 'the program has ended the transaction by itself', null,
            'Leave COMMIT and ROLLBACK to the with block; use savepoints inside it.');
    end if;
end
$$;

-- Takes the row lock of the transactional id, so waits for a transaction of its holder that is committing;
-- writes the row: its holder is fenced from the commit on. Returns the new epoch. LS017: there is no such id.
create or replace function fence_producer(transactional_id text) returns int2
language plpgsql volatile security definer set search_path from current as $$
#variable_conflict use_column
declare
    held producer;
begin
    select p.* into held from producer p where p.transactional_id = fence_producer.transactional_id
        for no key update;
    if not found then
        perform raise_error('LS017',
            format('there is no producer with the transactional id %s',
                shown(fence_producer.transactional_id)),
            jsonb_build_object('transactional_id', fence_producer.transactional_id), null);
    end if;
    return (init_producer(held.transactional_id, held.timeout_ms, held.client_id))[2];
end
$$;

-- Takes no lock, reads the holders of transactional ids and who is at a transaction now, writes nothing;
-- returns one row a transactional id (of all, when none is given). state: Ongoing while a transaction is
-- being written, else Empty. Who may not see other roles' sessions sees no address and no times.
create or replace function list_transactions(transactional_ids text[] default null)
returns table (transactional_id text, producer_id int8, producer_epoch int2, state text, timeout_ms int4,
    client_id text, created_at int8, updated_at int8, pid int4, host text, since int8, waits_for text)
language sql stable security definer set search_path from current
begin atomic
    select p.transactional_id, p.producer_id, p.producer_epoch,
           case when l.pid is null then 'Empty' else 'Ongoing' end, p.timeout_ms, p.client_id,
           (extract(epoch from p.created_at) * 1000)::int8, (extract(epoch from p.updated_at) * 1000)::int8,
           l.pid, coalesce(host(a.client_addr), case when l.pid is not null then 'local' end),
           (extract(epoch from a.xact_start) * 1000)::int8, a.wait_event_type || ': ' || a.wait_event
    from producer p
    left join lateral (
        select l.pid from pg_catalog.pg_locks l
        where l.locktype = 'advisory' and l.objsubid = 2 and l.granted
          and l.database = (select d.oid from pg_catalog.pg_database d
                            where d.datname = pg_catalog.current_database())
          and l.classid::int8 = lock_class('transaction')::int8 & 4294967295
          and l.objid::int8 = transaction_key(p.producer_id)
        order by l.pid limit 1) l on true
    left join pg_catalog.pg_stat_activity a on a.pid = l.pid
    where list_transactions.transactional_ids is null
       or p.transactional_id = any (list_transactions.transactional_ids)
    order by p.transactional_id;
end;
