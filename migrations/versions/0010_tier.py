"""Segments that were moved to files.

The text is frozen: later changes are later revisions.  Names are unqualified; the runner sets
``search_path``.
"""

from alembic import op

revision = "0010"
down_revision = "0009"

TABLES = """
-- They return one column more from now on.
drop function if exists partition_tips(int4[], int4[]) cascade;
drop function if exists list_offsets(int4[], int4[], int8[]) cascade;

alter table topic add column tiered boolean not null default false;  -- sealed segments are copied to files

-- Records below it (and from log_start on) are in files only.
alter table topic_partition add column local_start int8 not null default 0;

-- One row a file. The row is written before the file and says "copied" only after the file was read back:
-- whatever is killed when, no file is believed that is not whole, and none is left that no row knows.
create table remote_segment (
    file_id               int8        generated always as identity primary key,
    topic_id              int4        not null,
    partition             int4        not null,
    first_offset          int8        not null,     -- of the range it covers; compaction may leave holes
    last_offset           int8        not null,
    url                   text        collate "C" not null,
    state                 text        collate "C" not null check (state in ('copying', 'copied', 'deleting')),
    created_at            timestamptz not null default clock_timestamp(),
    -- From here on null until it is copied.
    verified_at           timestamptz,
    records               int8,
    bytes                 int8,                     -- of the file
    log_bytes             int8,                     -- of its batches in the log
    min_timestamp         int8,
    max_timestamp         int8,
    sha256                bytea,                    -- of the file
    part_ends             int8[],                   -- where each row group ends, then the file
    part_sha256           bytea[],                  -- of each row group, then of what comes after them
    group_last_offsets    int8[],
    group_max_timestamps  int8[],
    keep_until            int8,                     -- ms: it was restored, and stays until then
    check (state <> 'copied' or num_nulls(verified_at, records, bytes, log_bytes, sha256, part_ends,
                                          part_sha256, group_last_offsets, group_max_timestamps) = 0)
);
create unique index remote_segment_range on remote_segment (topic_id, partition, last_offset)
    where state = 'copied';
create index remote_segment_unfinished on remote_segment (topic_id) where state <> 'copied';

-- Leaves that are being filled from files: not live yet.
create table tier_restore (
    topic_id  int4 not null,
    segment   int4 not null,
    primary key (topic_id, segment)
);

-- Where files go unless a topic says otherwise; at most one row.
create table tier_location (
    only_row  boolean primary key default true check (only_row),
    url       text    collate "C" not null
);
"""


def upgrade() -> None:
    op.get_bind().exec_driver_sql(TABLES)


def downgrade() -> None:
    op.get_bind().exec_driver_sql(
        "drop table tier_location, tier_restore, remote_segment;"
        "alter table topic_partition drop column local_start;"
        "alter table topic drop column tiered"
    )
