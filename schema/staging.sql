-- Records on their way from somebody's transaction to the log. They are staged by the transaction, in tables
-- to which one only adds, and drained, that is appended to the log, when it has committed. Nothing here
-- updates or deletes a row: three tables take turns by the clock, and one that has been drained is truncated.

-- All that is staged, drained or not, and how far draining has come: the newest row counts.
create or replace view staged as
select * from staged_0 union all select * from staged_1 union all select * from staged_2;

create or replace view drained as
select * from drained_0 union all select * from drained_1 union all select * from drained_2;

-- Takes no lock, reads the clock, writes nothing, returns the number of the tables whose turn it is. A
-- transaction that uses older ones does no harm: draining reads all three.
create or replace function staging_turn() returns int4
language sql volatile
return (floor(extract(epoch from pg_catalog.clock_timestamp()) / 32)::int8 % 3)::int4;

-- Takes no lock, asks for the size of files, writes nothing, returns how many bytes a pair of staging tables
-- takes, indexes aside.
create or replace function staging_bytes(number int4) returns int8
language sql volatile set search_path from current
begin atomic
    select sum(pg_relation_size(c.oid))::int8
    from pg_catalog.pg_class c,
         (select oid, reltoastrelid from pg_catalog.pg_class
          where oid = ('staged_' || number)::regclass) s
    where c.oid in (s.oid, s.reltoastrelid, ('drained_' || number)::regclass);
end;

-- Takes no lock; reads the topic's row; writes one row to a staging table; returns the partition:
-- "partition", else the one that key belongs to, else one at random. The record gets into the log when the
-- transaction has committed. "timestamp" is in ms, null: now. If there are quotas, takes that bucket's lock for a
-- moment and charges it. LS001, LS007 too large, LS008 a time stamp out of range, LS010 headers that do not
-- fit each other, LS050 no key though the topic is compacted, LS059 the quota has been used up for long, LS060
-- the topic is a mirror, or fenced.
create or replace function stage(
    topic text, "partition" int4, key bytea, value bytea,
    header_keys text[], header_values bytea[], "timestamp" int8) returns int4
language plpgsql volatile security definer set search_path from current as $$
declare
    now_ms constant int8 := clock_ms();
    -- Of this transaction and this log: set once it has staged something.
    flag constant text := 'staging.log_' || (lock_class('staged') & 2147483647);
    turn constant int4 := staging_turn();
    id int4;
    chosen int4;
    size int8;
    rings boolean;
    t record;
begin
    select u.topic_id, u.partitions, u.max_message_bytes, u.timestamp_type,
           u.timestamp_before_max as before_max, u.timestamp_after_max as after_max, u.compacted, u.read_only
    into t from topic u where u.name = stage.topic;
    if not found then
        perform topic_id_of(topic);
    end if;
    id := t.topic_id;
    if t.read_only then
        perform refuse_writer(id);
    end if;
    chosen := coalesce("partition", partition_for(key, t.partitions), floor(random() * t.partitions)::int4);
    if chosen not between 0 and t.partitions - 1 then
        perform no_partition(id, chosen);
    end if;
    if t.compacted and key is null then
        perform refuse_batch('LS050', 'a record without a key cannot be appended to a compacted topic',
            id, chosen, '{}', 'Compaction keeps the last record of each key: give each record one.');
    end if;
    if header_keys is not null or header_values is not null then
        if headers_fit(1, array_fill(1, array[coalesce(cardinality(header_keys), 0)]), header_keys,
                       header_values) is not true then
            perform refuse_batch('LS010', 'the header arrays do not fit each other', id, chosen, '{}', null);
        end if;
        size := 4 * cardinality(header_keys) + 24 + pg_column_size(header_keys)
            + pg_column_size(header_values);
    end if;
    size := coalesce(size, 0) + coalesce(pg_column_size(array[key]) * (key is not null)::int4, 0)
        + coalesce(pg_column_size(array[value]) * (value is not null)::int4, 0);
    if size > t.max_message_bytes then
        perform refuse_batch('LS007',
            format('a batch of %s bytes is larger than max.message.bytes, %s', size, t.max_message_bytes),
            id, chosen, jsonb_build_object('size', size, 'max.message.bytes', t.max_message_bytes), null);
    end if;
    if "timestamp" is null then
        "timestamp" := now_ms;
    elsif t.timestamp_type = 0 and ("timestamp" between 0 and 253402300799999
        and now_ms - "timestamp" <= t.before_max and "timestamp" - now_ms <= t.after_max) is not true then
        perform refuse_batch('LS008',
            format('the time stamp %s is too far from the server''s clock, %s', "timestamp", now_ms),
            id, chosen,
            jsonb_build_object(
                'min_timestamp', "timestamp", 'max_timestamp', "timestamp", 'now', now_ms,
                'message.timestamp.before.max.ms', t.before_max,
                'message.timestamp.after.max.ms', t.after_max), null);
    end if;

    if quotas_on() then
        perform charge_quota('produce', size, true);
    end if;
    rings := coalesce(current_setting(flag, true), '') = '';
    if turn = 0 then
        insert into staged_0
            ("timestamp", topic_id, partition, rings, key, value, header_keys, header_values)
        values ("timestamp", id, chosen, rings, key, value, header_keys, header_values);
    elsif turn = 1 then
        insert into staged_1
            ("timestamp", topic_id, partition, rings, key, value, header_keys, header_values)
        values ("timestamp", id, chosen, rings, key, value, header_keys, header_values);
    else
        insert into staged_2
            ("timestamp", topic_id, partition, rings, key, value, header_keys, header_values)
        values ("timestamp", id, chosen, rings, key, value, header_keys, header_values);
    end if;
    if rings then
        perform set_config(flag, 'on', true);
    end if;
    return chosen;
end
$$;

-- Takes no lock, reads the control file, writes nothing, returns what tells this log from every other one:
-- its cluster (a follower has the leader's), database and schema.
create or replace function log_identity() returns text
language sql stable security definer set search_path from current
begin atomic
    select system_identifier || '/' || (select oid from pg_catalog.pg_database
                                        where datname = pg_catalog.current_database())
           || '/' || pg_catalog.current_schema()
    from pg_catalog.pg_control_system();
end;

-- For clients on a connection that is not theirs. Reads and writes as stage() does if log_identity() is
-- identity, returns the partition; headers are as in produce(). LS034: this is another log.
create or replace function stage_here(
    identity text, topic text, "partition" int4, key bytea, value bytea, headers jsonb, "timestamp" int8)
returns int4
language plpgsql volatile security definer set search_path from current as $$
declare
    h record;
begin
    if identity is distinct from log_identity() then
        perform raise_error('LS034', 'the connection leads to another log than the producer',
            jsonb_build_object('database', current_database(), 'schema', current_schema(),
                'identity', log_identity(), 'expected', identity),
            'Give send() a connection to the database that the producer is connected to.');
    end if;
    if headers is null then
        return stage(topic, "partition", key, value, null, null, "timestamp");
    end if;
    h := header_arrays(headers);
    return stage(topic, "partition", key, value, h.header_keys, h.header_values, "timestamp");
end
$$;

-- Takes no lock; reads the staging tables by their indexes, in the snapshot of the statement that calls it;
-- writes nothing. Returns what base does not show and target (null: this snapshot) does, from after reached
-- on: all of it, in no order, if that is less than max_records and target is null, else the first max_records
-- in the order of seq. pg_current_snapshot() lists each open transaction by the id that the rows carry, so a
-- row is shown by exactly one of two snapshots that follow each other.
create or replace function staged_between(
    base pg_snapshot, target pg_snapshot, reached int8, max_records int8) returns setof staged
language plpgsql stable set search_path from current
-- The server knows nothing of tables that are truncated; their indexes are the way whatever it believes.
set enable_seqscan = off set enable_bitmapscan = off as $$
declare
    later constant xid8 := pg_snapshot_xmax(base);
    open constant xid8[] := array(select pg_snapshot_xip(base));
begin
    if target is null and (
        select count(*) < max_records
        from (select from staged s where s.xid >= later
              union all select from staged s where s.xid = any (open) limit max_records) u)
    then
        return query
            select * from staged s where s.xid >= later
            union all select * from staged s where s.xid = any (open);
    else
        return query
            select s.* from staged s
            where s.seq > reached and not pg_visible_in_snapshot(s.xid, base)
              and pg_visible_in_snapshot(s.xid, coalesce(target, pg_current_snapshot()))
            order by s.seq limit max_records;
    end if;
end
$$;

-- What is waiting to be drained: committed, and not in the log yet.
create or replace view outbox as
select t.name as topic, s.partition, to_timestamp(s."timestamp"::float8 / 1000) as "timestamp",
       s.key, s.value, s.xid
from (select coalesce(max(d.id), 0) as id from drained d) newest
left join drained m on m.id = newest.id
cross join lateral staged_between(coalesce(m.base, '3:3:'), null, 0, 9223372036854775807) s
left join topic t on t.topic_id = s.topic_id
where m.target is null or s.seq > m.reached or not pg_visible_in_snapshot(s.xid, m.target);

-- For a log that came out of a dump, whose transactions are numbered as they were in the cluster that was
-- dumped: later ones have lower numbers here. Needs the drain's lock; takes ACCESS EXCLUSIVE locks on all
-- staging tables to the end of the transaction, which waits for every transaction that has staged something;
-- reads mark; gives what has not been drained this transaction's number, deletes everything else and writes a
-- mark that shows none of it; returns nothing. What was staged after mark has a higher seq than its id.
create or replace function renumber_staged(mark drained) returns void
language plpgsql volatile set search_path from current as $$
declare
    -- Before this transaction has a number, so that it does not show it.
    base constant pg_snapshot := pg_current_snapshot();
begin
    lock table staged_0, staged_1, staged_2, drained_0, drained_1, drained_2 in access exclusive mode;
    for number in 0 .. 2 loop
        execute format('delete from %I s
                        where s.seq < $1.id and (pg_visible_in_snapshot(s.xid, $1.base)
                              or s.seq <= $1.reached and pg_visible_in_snapshot(s.xid, $1.target))',
                       'staged_' || number) using mark;
        execute format('update %I set xid = pg_current_xact_id()', 'staged_' || number);
    end loop;
    truncate drained_0, drained_1, drained_2;
    insert into drained_0 (base) values (base);
end
$$;

-- Tries the drain's lock and, if somebody else drains, does nothing: topic_ids is null. Else takes the row
-- locks of partitions in ascending order, as append() does; reads what has been staged by transactions that
-- have committed since it was last done, at most max_records or about 16 MB; appends that to the log and
-- writes how far it has come; returns the topics that got records, how many in all, whether more is waiting,
-- and whether sweep_staged() would find something to do. Records of a topic that was deleted are dropped.
-- Order: that of the commits, among calls; that of staging, within one. Needs a transaction in which nothing
-- has been written. LS035: it is not in one.
create or replace function drain(
    max_records int4 default 10000,
    out records int4, out topic_ids int4[], out more boolean, out sweep boolean)
language plpgsql volatile security definer set search_path from current
-- Planning would take longer than everything else; and the server knows nothing of tables that are truncated.
set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_bitmapscan = off as $$
declare
    mark drained;
    turn constant int4 := staging_turn();
    later xid8;
    open xid8[];
    batch record;
    topic_id int4;
    "partition" int4;
    known boolean;
    part boolean := false;
    shown pg_snapshot;
    reached int8;
begin
    records := 0;
    topic_ids := '{}';
    more := false;
    sweep := false;
    -- What this transaction has staged would be drained now, and once more when it has committed.
    if current_setting('transaction_isolation') <> 'read committed'
       or pg_current_xact_id_if_assigned() is not null then
        perform raise_error('LS035', 'drain() needs a transaction of its own', null,
            'Call it after the commit, outside of a transaction, at the isolation level READ COMMITTED.');
    end if;
    if not pg_try_advisory_xact_lock(lock_class('drain'), 0) then
        topic_ids := null;
        return;
    end if;
    select d.* into mark from drained d order by d.id desc limit 1;
    mark.base := coalesce(mark.base, '3:3:');
    mark.reached := coalesce(mark.reached, 0);
    if pg_snapshot_xmax(mark.base) > pg_snapshot_xmax(pg_current_snapshot()) then
        perform renumber_staged(mark);
        more := true;
        return;
    end if;
    -- Usually there is nothing, and this is all.
    later := pg_snapshot_xmax(mark.base);
    open := array(select pg_snapshot_xip(mark.base));
    if mark.target is null and not exists (
        select from staged s where s.xid >= later union all select from staged s where s.xid = any (open))
    then
        return;
    end if;
    -- Not by what this statement shows itself, so it came with a dump.
    if exists (select from staged s where s.xid >= pg_snapshot_xmax(pg_current_snapshot())) then
        perform renumber_staged(mark);
        more := true;
        return;
    end if;
    -- Whoever drains may have something else to do: somebody's lock on a partition is not waited for.
    perform set_config('lock_timeout', '200ms', true);
    -- A record that somebody has read must not be lost, whatever the session risks.
    if current_setting('synchronous_commit') in ('off', 'local', 'remote_write') then
        perform set_config('synchronous_commit', 'on', true);
    end if;

    for batch in
        with found as materialized (
            select s.*, row_number() over w as place, sum(s.size) over w as upto
            from (select u.*, 24 + coalesce(octet_length(u.key), 0) + coalesce(octet_length(u.value), 0)
                         + case when u.header_keys is null then 0
                                else 20 * cardinality(u.header_keys) + pg_column_size(u.header_keys)
                                     + pg_column_size(u.header_values) end as size
                  from staged_between(mark.base, mark.target, mark.reached, max_records + 1::int8) u) s
            window w as (order by s.seq)),
        taken as materialized (
            select f.*, greatest((coalesce(t.max_message_bytes, 0) - 192) / 2, 1) as half
            from found f left join topic t on t.topic_id = f.topic_id
            where f.place = 1 or f.place <= max_records and f.upto <= 16777216),
        -- Two halves of max.message.bytes make a batch that does not exceed it; a record of more than half is
        -- alone in its batch.
        summed as (
            select t.*, sum(t.size) over p - t.size as before, lag(t.size) over p as last_size
            from taken t window p as (partition by t.topic_id, t.partition order by t.seq)),
        cut as (
            select s.*,
                   sum(coalesce((s.size > s.half or s.last_size > s.half
                                 or div(s.before, s.half) <> div(s.before - s.last_size, s.half))::int4, 0))
                   over (partition by s.topic_id, s.partition order by s.seq) as batch_no
            from summed s),
        numbered as materialized (
            select c.*,
                   row_number() over (partition by c.topic_id, c.partition, c.batch_no order by c.seq) as i
            from cut c),
        headers as (
            select n.topic_id, n.partition, n.batch_no,
                   array_agg(n.i::int4 order by n.seq, h.o) as header_records,
                   array_agg(h.k order by n.seq, h.o) as header_keys,
                   array_agg(h.v order by n.seq, h.o) as header_values
            from numbered n
            cross join lateral unnest(n.header_keys, n.header_values) with ordinality h (k, v, o)
            where n.header_keys is not null
            group by n.topic_id, n.partition, n.batch_no),
        batches as (
            select n.topic_id, n.partition, n.batch_no, count(*)::int4 as record_count,
                   max(n."timestamp") as max_timestamp,
                   case when min(n."timestamp") < max(n."timestamp")
                        then array_agg(n."timestamp" order by n.i) end as timestamps,
                   case when bool_or(n.key is not null) then array_agg(n.key order by n.i) end as keys,
                   case when bool_or(n.value is not null) then array_agg(n.value order by n.i) end as "values"
            from numbered n group by n.topic_id, n.partition, n.batch_no)
        select b.*, h.header_records, h.header_keys, h.header_values,
               coalesce(mark.target, pg_current_snapshot()) as shown,
               (select max(t.seq) from taken t) as reached,
               (select count(*) from found) > (select count(*) from taken) as more
        from batches b
        left join headers h using (topic_id, partition, batch_no)
        order by b.topic_id, b.partition, b.batch_no
    loop
        if shown is null then
            shown := batch.shown;
            reached := batch.reached;
            -- After the last part of a window there may be later records.
            more := batch.more or mark.target is not null;
            part := batch.more;
        end if;
        if batch.topic_id is distinct from topic_id or batch.partition is distinct from "partition" then
            topic_id := batch.topic_id;
            "partition" := batch.partition;
            perform from topic_partition p where p.topic_id = batch.topic_id and p.partition = batch.partition
            for no key update;
            known := found;
        end if;
        continue when not known;
        perform append(topic_id, "partition", batch.record_count, batch.max_timestamp, batch.timestamps,
            batch.keys, batch."values", batch.header_records, batch.header_keys, batch.header_values,
            2::int2);
        records := records + batch.record_count;
        if topic_id <> all (topic_ids) then
            topic_ids := topic_ids || topic_id;
        end if;
    end loop;

    if shown is null then
        more := true;
        shown := mark.target;
    end if;
    execute format('insert into %I (base, target, reached) values ($1, $2, $3)', 'drained_' || turn)
    using case when part then mark.base else shown end, case when part then shown end,
          case when part then reached end;
    sweep := exists (select from generate_series(0, 2) n
                     where n <> turn and staging_bytes(n) > 8388608);
end
$$;

-- Tries the drain's lock and, if somebody else drains, does nothing. Else empties, of the two pairs of tables
-- whose turn it is not, those that are larger than min_bytes, if all in them has been drained and nobody has
-- them locked (as every open transaction has that has staged something there): truncates them under an ACCESS
-- EXCLUSIVE lock for which it does not wait. Returns how many pairs. For a transaction of its own.
create or replace function sweep_staged(min_bytes int8 default 8388608) returns int4
language plpgsql volatile security definer set search_path from current
set enable_seqscan = off set enable_bitmapscan = off as $$
declare
    turn constant int4 := staging_turn();
    emptied int4 := 0;
    left_over boolean;
    mark drained;
begin
    if not pg_try_advisory_xact_lock(lock_class('drain'), 0) then
        return 0;
    end if;
    select d.* into mark from drained d order by d.id desc limit 1;
    for number in 0 .. 2 loop
        continue when number = turn or mark.id is null or mark.target is not null;
        continue when staging_bytes(number) <= min_bytes;
        begin
            execute format('lock table %I, %I in access exclusive mode nowait',
                           'staged_' || number, 'drained_' || number);
            -- A snapshot after the lock was granted shows what all who had the table have committed.
            execute format('select exists (select from %1$I where xid >= $1)
                                or exists (select from %1$I where xid = any ($2))', 'staged_' || number)
            into left_over using pg_snapshot_xmax(mark.base), array(select pg_snapshot_xip(mark.base));
            if not left_over then
                -- What counts has to survive, wherever it is.
                execute format('insert into %I (base) values ($1)', 'drained_' || turn) using mark.base;
                execute format('truncate %I, %I', 'staged_' || number, 'drained_' || number);
                emptied := emptied + 1;
            end if;
        exception when lock_not_available then
            null;
        end;
    end loop;
    return emptied;
end
$$;

-- Being woken by a commit. One waiting session has the seat: it drains. When it has had nothing to do for a
-- while it arms the doorbell, drains once more and sleeps; whoever commits staged records then rings.

-- Tries the seat for this session, waits for nobody, reads and writes nothing; returns whether it has it now.
-- The session keeps it until it says leave_staging() or ends.
create or replace function attend_staging() returns boolean
language sql volatile security definer set search_path from current
return pg_try_advisory_lock(lock_class('seat'), 0);

-- Gives the seat back, and the doorbell; reads and writes nothing; tells those who wait for records that the
-- seat is free; returns nothing. In a statement of its own: NOTIFY makes commits queue up.
create or replace function leave_staging() returns void
language plpgsql volatile security definer set search_path from current as $$
begin
    perform set_config('synchronous_commit', 'off', true);
    perform pg_advisory_unlock(lock_class('seat'), 0);
    perform pg_notify(current_schema() || '_wake', 'seat');
end
$$;

-- Tries the doorbell's lock exclusively for this session, waits for nobody, reads and writes nothing, returns
-- whether it has it now. Not while a transaction that did not ring is committing: then try again. Whatever is
-- not visible after this will ring.
create or replace function arm_doorbell() returns boolean
language sql volatile security definer set search_path from current
return pg_try_advisory_lock(lock_class('doorbell'), 0);

-- Gives the doorbell's lock back, reads and writes nothing, returns whether this session had it.
create or replace function disarm_doorbell() returns boolean
language sql volatile security definer set search_path from current
return pg_advisory_unlock(lock_class('doorbell'), 0);

-- Tries the doorbell's lock, shared, to the end of the transaction; if somebody has armed it, notifies
-- channel <schema>_staged. Reads and writes nothing, returns nothing. Called as the transaction commits, for
-- the first record that it has staged. PREPARE TRANSACTION does not allow notifications: such a transaction
-- does not ring, nor does it keep the doorbell from being armed while it is prepared.
create or replace function ring_doorbell() returns trigger
language plpgsql volatile security definer set search_path from current as $$
begin
    if current_setting('max_prepared_transactions')::int4 > 0
       and current_query() ~* '\mprepare\s+transaction\M' then
        return null;
    end if;
    if not pg_try_advisory_xact_lock_shared(lock_class('doorbell'), 0) then
        perform pg_notify(current_schema() || '_staged', 'staged');
    end if;
    return null;
end
$$;

do $install$
begin
    for number in 0 .. 2 loop
        if not exists (select from pg_catalog.pg_trigger t
                       where t.tgrelid = ('staged_' || number)::regclass and t.tgname = 'ring') then
            execute format('create constraint trigger ring after insert on %I deferrable initially deferred
                            for each row when (new.rings) execute function ring_doorbell()',
                           'staged_' || number);
        end if;
    end loop;
end
$install$;
