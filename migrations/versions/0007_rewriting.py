"""Rewriting segments: compaction, erasure, and what is under way.

The text is frozen: later changes are later revisions.  Names are unqualified; the runner sets
``search_path``.
"""

from alembic import op

revision = "0007"
down_revision = "0006"

TABLES = """
alter table topic_segment
    add column rewritten boolean not null default false;     -- by compaction or erasure, not by appends

-- It follows from cleaned_at.
alter table topic_partition drop column compacted_to;

alter table sealed_segment
    add column cleaned_at int8,                              -- ms: compacted when; null: never
    add column tombstones_until int8;                        -- ms: the last of its tombstones may go then

-- What is being written anew, a topic at a time. The rows of one step are committed together with the
-- position that they lead to, so whoever goes on goes on from there.
create table rewrite (
    topic_id         int4        primary key,
    kind             text        not null check (kind in ('compact', 'erase', 'evacuate')),
    phase            text        not null check (phase in ('gather', 'settle', 'write', 'swap')),
    sources          int4[]      not null,               -- leaves still to be written anew, in order
    merged           int4[]      not null default '{}',  -- leaves of which target has what is left
    target           int4,                               -- the leaf that is being filled
    slices           int4        not null default 1,     -- of the keys, by their hash
    slice            int4        not null default 0,     -- the next to be settled
    chunks           int4        not null default 0,     -- of the records, in order
    chunk            int4        not null default 0,     -- the next to be written
    gathered         int4        not null default 0,     -- sources whose keys have been read
    partition        int4        not null default -1,    -- the last batch that has been read
    last_offset      int8        not null default -1,
    delete_horizon   int8,                               -- ms: of tombstones compacted the first time
    erasures         int8[]      not null default '{}',  -- whose keys are left out
    records_read     int8        not null default 0,
    records_kept     int8        not null default 0,
    bytes_read       int8        not null default 0,
    bytes_kept       int8        not null default 0,
    started_at       timestamptz not null default clock_timestamp()
);

-- What target has of each partition.
create table rewrite_tally (
    topic_id         int4 not null,
    partition        int4 not null,
    first_offset     int8 not null,
    records          int8 not null,
    tombstones_until int8,
    primary key (topic_id, partition)
) with (fillfactor = 50);

-- Keys whose records were to be erased. The row stays, for the audit; the key goes with its records.
create table erasure (
    erasure_id         int8        generated always as identity primary key,
    topic_id           int4        not null,
    topic              text        collate "C" not null,
    key                bytea,                              -- null: removed
    key_sha256         bytea       not null,
    ends               int8[]      not null,               -- records before it, of partition p at p + 1
    requested_by       name        not null default session_user,
    requested_at       timestamptz not null default clock_timestamp(),
    records            int8        not null default 0,     -- erased so far
    files_searched_at  timestamptz,                        -- where the topic has some
    removed_at         timestamptz,                        -- nobody can read them any more
    finished_at        timestamptz                         -- nor are they in a table of the log
);
create index erasure_pending on erasure (topic_id) where finished_at is null;
"""


def upgrade() -> None:
    op.get_bind().exec_driver_sql(TABLES)


def downgrade() -> None:
    op.get_bind().exec_driver_sql(
        "drop table erasure, rewrite_tally, rewrite;"
        "alter table sealed_segment drop column tombstones_until, drop column cleaned_at;"
        "alter table topic_segment drop column rewritten;"
        "alter table topic_partition add column compacted_to int8 not null default 0"
    )
