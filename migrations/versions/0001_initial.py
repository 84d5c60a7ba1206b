"""The first tables: topics, their partitions and segments, and the batches themselves.

The text is frozen: later changes are later revisions.  Names are unqualified; the runner sets
``search_path``.
"""

from alembic import op

revision = "0001"
down_revision = None

TABLES = """
-- One row a topic. The columns after configs are what append() needs on every call, compiled from configs by
-- create_topic and alter_topic.
create table topic (
    topic_id               int4        generated always as identity primary key,
    name                   text        collate "C" not null unique,
    partitions             int4        not null,
    configs                jsonb       not null default '{}',   -- overrides only: name -> text
    created_at             timestamptz not null default now(),
    view_name              name,                                -- its view in the schema of topic views
    active_segment         int4        not null default 0,
    roll_at                int8        not null,                -- ms: old enough to close the segment
    segment_bytes          int8        not null,
    max_message_bytes      int4        not null,
    timestamp_type         int2        not null,                -- 0 CreateTime, 1 LogAppendTime
    timestamp_before_max   int8        not null,                -- ms
    timestamp_after_max    int8        not null,                -- ms
    min_insync_replicas    int2        not null
);

-- One row a partition: its lock and fence. append() locks it and reads it; only moves (of the log start, to
-- the next segment, to another leader) write it.
create table topic_partition (
    topic_id       int4 not null,
    partition      int4 not null,
    segment        int4 not null,             -- the segment it appends to; at most topic.active_segment
    segment_start  int8 not null default 0,   -- the offset at which it entered that segment
    log_start      int8 not null default 0,
    leader_epoch   int4 not null default 0,
    primary key (topic_id, partition)
);

-- One row a segment, that is a leaf table b_<topic_id>_<segment>.
create table topic_segment (
    topic_id    int4        not null,
    segment     int4        not null,
    created_at  timestamptz not null default clock_timestamp(),
    primary key (topic_id, segment)
);

-- What a partition left behind in a segment it will not write to any more. Partitions that wrote nothing
-- there have no row.
create table sealed_segment (
    topic_id       int4 not null,
    partition      int4 not null,
    segment        int4 not null,
    first_offset   int8 not null,
    last_offset    int8 not null,
    bytes          int8 not null,
    min_timestamp  int8 not null,
    max_timestamp  int8 not null,
    disorder       int8 not null,
    primary key (topic_id, partition, last_offset)
);

-- Topics that were deleted and whose leaves are still to be dropped.
create table deleted_topic (
    topic_id    int4        primary key,
    name        text        collate "C" not null,
    view_name   name,
    deleted_at  timestamptz not null default now()
);

-- The log: one row is one batch of records of one partition, as arrays. Partitioned by topic, then by
-- segment; indexes are made on the leaves. The segment_* columns are running values over this partition's
-- batches in this segment, this one included: both the maximum of the time stamps and the byte position never
-- fall, so a search for a time is a binary search over the index (partition, last_offset), and rolling needs
-- no file size.
create table batches (
    base_offset            int8  not null,
    last_offset            int8  not null,
    durable_before         int8,               -- end of the log known to be replicated when this was appended
    producer_id            int8,
    append_time            int8  not null,     -- ms, the server's clock, under the partition's lock
    max_timestamp          int8  not null,     -- ms since the epoch
    segment_max_timestamp  int8  not null,
    segment_min_timestamp  int8  not null,
    segment_disorder       int8  not null,     -- ms: none lies further behind segment_max_timestamp
    segment_bytes          int8  not null,
    topic_id               int4  not null,
    segment                int4  not null,
    partition              int4  not null,
    record_count           int4  not null,
    leader_epoch           int4  not null,
    base_sequence          int4,
    last_sequence          int4,
    size_bytes             int4  not null,     -- of the arrays, as sent, before any compression
    producer_epoch         int2,
    timestamp_type         int2  not null,
    offset_deltas          int4[],   -- null: dense from base_offset
    timestamps             int8[],   -- null: each is max_timestamp
    keys                   bytea[],   -- null: all null
    "values"               bytea[],   -- null: all null
    header_records         int4[],   -- 1-based positions of the headers' records, ascending; null: none
    header_keys            text[],
    header_values          bytea[]
) partition by list (topic_id);

-- pglz would cost more time than everything else; lz4 is a topic's choice.
alter table batches
    alter offset_deltas set storage external, alter timestamps set storage external,
    alter keys set storage external, alter "values" set storage external,
    alter header_records set storage external, alter header_keys set storage external,
    alter header_values set storage external;
"""


def upgrade() -> None:
    op.get_bind().exec_driver_sql(TABLES)


def downgrade() -> None:
    op.get_bind().exec_driver_sql(
        "drop table batches, deleted_topic, sealed_segment, topic_segment, topic_partition, topic"
    )
