"""The worker: its jobs, who runs them, and what they came to.

The text is frozen: later changes are later revisions.  Names are unqualified; the runner sets
``search_path``.
"""

from alembic import op

revision = "0008"
down_revision = "0007"

TABLES = """
-- One row a job: when it is due, who runs it, what it came to. Who claims it has a lease, which is renewed
-- while it runs: a worker that dies, or is stopped, loses the job within seconds. No updated column is
-- indexed and pages have room, so updates stay in the page and are pruned there.
create table worker_job (
    name         text        collate "C" primary key,
    cron         text,                                  -- its schedule, if it was changed here; in UTC
    every_ms     int8,                                  -- the same, as an interval; at most one of the two
    paused       boolean     not null default false,
    next_run     timestamptz,                           -- null: at once
    holder       text,                                  -- the worker that runs it, or ran it last
    lease_until  timestamptz,                           -- null: nobody runs it
    started_at   timestamptz,
    finished_at  timestamptz,
    summary      text,                                  -- of the last run, in one line; of an error too
    result       jsonb,                                 -- its numbers; null: it failed, or was interrupted
    failures     int4        not null default 0,        -- in a row
    runs         int8        not null default 0,
    check (cron is null or every_ms is null)
) with (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 500);

-- One row a worker that was seen in the last hour. Unlogged: no write-ahead log; after a crash they say
-- again that they are there.
create unlogged table worker (
    worker_id   text        collate "C" primary key,
    host        text        not null,
    pid         int4        not null,
    version     text        not null,
    jobs        text[]      not null,
    started_at  timestamptz not null default clock_timestamp(),
    seen_at     timestamptz not null default clock_timestamp()
) with (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 500);

-- When a transaction was last written under the id, give or take an hour: idle ones are forgotten.
alter table producer add column used_at timestamptz not null default clock_timestamp();

-- One row a topic: what was in it when somebody last counted.
create table topic_statistics (
    topic_id     int4        primary key,
    partitions   int4        not null,
    segments     int4        not null,
    records      int8        not null,
    bytes        int8        not null,
    measured_at  timestamptz not null
) with (fillfactor = 50);
"""


def upgrade() -> None:
    op.get_bind().exec_driver_sql(TABLES)


def downgrade() -> None:
    op.get_bind().exec_driver_sql(
        "drop table topic_statistics, worker, worker_job;alter table producer drop column used_at"
    )
