-- The workers: which jobs there are, when each is due, who runs it. The server's clock decides, not that of the
-- log (clock_ms()): a lease is about processes. Commits here do not wait for the disk: what a crash takes away
-- is that a job was run, and running it once more does no harm.

-- Takes no lock beyond those of the rows that it writes: the worker's own (if about is given), and those of
-- jobs that it runs, whose leases it renews. Reads the jobs; returns one row for each of jobs: when it is due
-- (in ms, at most a day; never before another one's lease has run out), whether this worker runs it now, and, if
-- it is due, whether there is anything for it to do. LS013: the server is a follower.
create or replace function worker_beat(
    worker_id text, jobs text[], running text[], lease_ms int4, about jsonb default null)
returns table (name text, cron text, every_ms int8, paused boolean, due_in_ms int8, mine boolean, revision text,
    wanted boolean)
language plpgsql volatile security definer set search_path from current as $$
#variable_conflict use_column
declare
    moment constant timestamptz := clock_timestamp();
begin
    if pg_is_in_recovery() then
        perform raise_error('LS013', 'the server is a follower: jobs run on the leader', null, null);
    end if;
    perform set_config('synchronous_commit', 'off', true);
    if about is not null then
        delete from worker w where w.seen_at < moment - interval '1 hour';
        insert into worker as w (worker_id, host, pid, version, jobs)
        values (worker_beat.worker_id, about ->> 'host', (about ->> 'pid')::int4, about ->> 'version',
                worker_beat.jobs)
        on conflict (worker_id) do update set seen_at = moment, jobs = excluded.jobs;
    end if;
    if cardinality(running) > 0 then
        update worker_job j set lease_until = moment + worker_beat.lease_ms * interval '1 ms'
        where j.name = any (worker_beat.running) and j.holder = worker_beat.worker_id
          and j.lease_until is not null;
    end if;
    if exists (select from unnest(worker_beat.jobs) n where n not in (select j.name from worker_job j)) then
        insert into worker_job (name) select n from unnest(worker_beat.jobs) n on conflict do nothing;
    end if;
    return query
        select j.name, j.cron, j.every_ms, j.paused, u.due_in_ms,
               coalesce(j.holder = worker_beat.worker_id and j.lease_until is not null, false),
               schema_version(), case when u.due_in_ms = 0 and not j.paused then job_wanted(j.name) end
        from worker_job j,
             lateral (select greatest(0, ceil(extract(epoch from least(moment + interval '1 day', case
                          when j.lease_until is not null then j.lease_until
                          else coalesce(j.next_run, moment) end) - moment) * 1000))::int8 as due_in_ms) u
        where j.name = any (worker_beat.jobs) order by j.name;
end
$$;

-- Takes the job's row lock and writes the row if nobody runs the job, and it is due (or the one who ran it has
-- lost it, or at_once is true): then it is this worker's for lease_ms. Returns how often in a row it has failed;
-- null: it is not this worker's to run. A job that is paused runs only at_once.
create or replace function claim_job(worker_id text, name text, lease_ms int4, at_once boolean default false)
returns int4
language plpgsql volatile security definer set search_path from current as $$
#variable_conflict use_column
declare
    moment constant timestamptz := clock_timestamp();
    failures int4;
begin
    perform set_config('synchronous_commit', 'off', true);
    if claim_job.at_once then
        insert into worker_job (name) values (claim_job.name) on conflict do nothing;
    end if;
    update worker_job j
    set holder = claim_job.worker_id, lease_until = moment + claim_job.lease_ms * interval '1 ms',
        started_at = moment, runs = j.runs + 1,
        failures = j.failures + (j.lease_until is not null)::int4
    where j.name = claim_job.name and (not j.paused or claim_job.at_once)
      and case when j.lease_until is not null then j.lease_until < moment
               else claim_job.at_once or j.next_run is null or j.next_run <= moment end
    returning j.failures into failures;
    return failures;
end
$$;

-- Takes the job's row lock; writes what a run came to and when the next one is due, if the job is still this
-- worker's. result null: it failed, which counts, or, without a summary, was broken off. Returns the number
-- of failures in a row; null: it was not this worker's any more.
create or replace function finish_job(worker_id text, name text, summary text, result jsonb, next_in_ms int8)
returns int4
language plpgsql volatile security definer set search_path from current as $$
#variable_conflict use_column
declare
    moment constant timestamptz := clock_timestamp();
    failures int4;
begin
    perform set_config('synchronous_commit', 'off', true);
    update worker_job j
    set lease_until = null, finished_at = moment, result = finish_job.result,
        summary = coalesce(finish_job.summary, 'broken off'),
        failures = case when finish_job.result is not null then 0
                        when finish_job.summary is null then j.failures else j.failures + 1 end,
        next_run = moment + finish_job.next_in_ms * interval '1 ms'
    where j.name = finish_job.name and j.holder = finish_job.worker_id and j.lease_until is not null
    returning j.failures into failures;
    return failures;
end
$$;

-- Takes the job's row lock; writes when the job is due: by cron, every so many ms, or (both null) as it is by
-- itself; next_in_ms: for the first time after that. Returns nothing. LS054: neither a schedule nor none.
create or replace function schedule_job(name text, cron text, every_ms int8, next_in_ms int8 default null)
returns void
language plpgsql volatile security definer set search_path from current as $$
#variable_conflict use_column
begin
    if schedule_job.cron is not null and schedule_job.every_ms is not null or schedule_job.every_ms < 100
        or octet_length(schedule_job.cron) > 1000 or octet_length(schedule_job.name) not between 1 and 100 then
        perform raise_error('LS054', 'a job has one schedule: a cron expression, or an interval of 100 ms or more',
            jsonb_build_object('job', schedule_job.name, 'cron', schedule_job.cron, 'every_ms',
                schedule_job.every_ms), null);
    end if;
    insert into worker_job as j (name, cron, every_ms, next_run)
    values (schedule_job.name, schedule_job.cron, schedule_job.every_ms,
            clock_timestamp() + schedule_job.next_in_ms * interval '1 ms')
    on conflict (name) do update
        set cron = excluded.cron, every_ms = excluded.every_ms, next_run = excluded.next_run;
end
$$;

-- Takes the job's row lock; writes whether the job is left alone. A run under way is finished. Returns nothing.
create or replace function pause_job(name text, paused boolean) returns void
language sql volatile security definer set search_path from current
begin atomic
    insert into worker_job as j (name, paused) values (pause_job.name, pause_job.paused)
    on conflict (name) do update set paused = excluded.paused;
end;

-- Takes the job's row lock; makes it due at once; returns nothing.
create or replace function hasten_job(name text) returns void
language sql volatile security definer set search_path from current
begin atomic
    insert into worker_job as j (name) values (hasten_job.name)
    on conflict (name) do update set next_run = null;
end;

-- Takes the row's lock; deletes the worker's row, and lets go of what it still has; returns nothing.
create or replace function worker_leaves(worker_id text) returns void
language sql volatile security definer set search_path from current
begin atomic
    delete from worker w where w.worker_id = worker_leaves.worker_id;
    update worker_job j set lease_until = null, next_run = null, summary = 'broken off', result = null,
                            finished_at = clock_timestamp()
    where j.holder = worker_leaves.worker_id and j.lease_until is not null;
end;

-- Takes no lock, reads the staging tables by their indexes, writes nothing, returns whether the drain job would
-- find something to do.
create or replace function drain_wanted() returns boolean
language plpgsql volatile security definer set search_path from current
set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_bitmapscan = off as $$
declare
    mark drained;
    base pg_snapshot;
    open xid8[];
begin
    select d.* into mark from drained d order by d.id desc limit 1;
    base := coalesce(mark.base, '3:3:');
    open := array(select pg_snapshot_xip(base));
    return mark.target is not null or pg_snapshot_xmax(base) > pg_snapshot_xmax(pg_current_snapshot())
        or exists (select from staged s where s.xid >= pg_snapshot_xmax(base)
                   union all select from staged s where s.xid = any (open))
        or exists (select from generate_series(0, 2) n
                   where n <> staging_turn() and staging_bytes(n) > 8388608);
end
$$;

-- Takes no lock beyond ACCESS SHARE; reads the state of replication, the newest seal and, if anything was committed since,
-- the tips of all partitions; writes nothing; returns whether there are batches that followers may not show yet.
create or replace function seal_wanted() returns boolean
language plpgsql volatile security definer set search_path from current as $$
declare
    newest constant seal := newest_seal();
begin
    return exists (select from pg_catalog.pg_stat_get_wal_senders())
        and has_more(pg_current_snapshot(), newest.confirmed)
        and exists (
            select from topic t
            cross join lateral partition_tips(
                array_fill(t.topic_id, array[t.partitions]), array(select generate_series(0, t.partitions - 1))) e
            where readable_end(coalesce(newest.confirmed, '1:1:'), e.topic_id, e.partition, e.log_start, e.end_offset,
                               e.bytes, e.xact) < e.end_offset);
end
$$;

-- Takes no lock, reads the catalog, writes nothing, returns whether a run of the job could find anything to do:
-- false only if it is certain that it would not. For jobs that are due often and seldom have work.
create or replace function job_wanted(name text) returns boolean
language plpgsql volatile security definer set search_path from current as $$
begin
    return case job_wanted.name
        when 'drain' then drain_wanted()
        when 'roll' then exists (select from topics_to_roll())
        when 'reclaim' then exists (select from dropped_segment) or exists (select from deleted_topic)
        when 'compaction' then exists (select from topic t where t.compacted) or exists (select from rewrite)
        when 'erasure' then exists (select from topics_to_erase())
        when 'tier' then exists (select from tiered_topics())
        when 'mirror' then mirror_wanted()
        when 'seal' then seal_wanted()
        else true end;
end
$$;

-- The jobs, and what they last came to. state: running; lost: the worker that ran it is gone, another one takes
-- it over within seconds; waiting; failing: the last run failed; paused.
create or replace view worker_jobs as
select j.name as job, j.cron, j.every_ms,
       case when j.lease_until >= clock_timestamp() then 'running'
            when j.lease_until is not null then 'lost'
            when j.paused then 'paused'
            when j.failures > 0 then 'failing'
            else 'waiting' end as state,
       j.holder as worker, j.started_at, j.finished_at, j.summary, j.result, j.failures, j.runs,
       case when not j.paused then j.next_run end as next_run
from worker_job j;

-- The workers that were seen within the last quarter of a minute.
create or replace view workers as
select w.worker_id as worker, w.host, w.pid, w.version, w.jobs, w.started_at, w.seen_at,
       array(select j.name from worker_job j
             where j.holder = w.worker_id and j.lease_until >= clock_timestamp() order by j.name) as running
from worker w where w.seen_at > clock_timestamp() - interval '15 seconds';
