"""Share groups: queues over the log.

The text is frozen: later changes are later revisions.  Names are unqualified; the runner sets
``search_path``.
"""

from alembic import op

revision = "0003"
down_revision = "0002"

TABLES = """
-- What a share group's configs come to; one row a group of kind 'share' (the name is in log_group).
-- Written when its configs change.
create table share_group (
    group_id            int4     primary key,
    configs             jsonb    not null default '{}',   -- overrides only: name -> text
    auto_offset_reset   text     not null,
    record_lock_ms      int4     not null,
    delivery_limit      int4     not null,
    max_record_locks    int4     not null,                -- of one partition
    retry_backoff_ms    int4     not null,
    retry_backoff_max_ms int4    not null,
    renew_enabled       boolean  not null,
    key_ordered         boolean,                          -- null: nobody has said yet
    dead_letter_topic   text     not null,                -- '': none
    copy_record         boolean  not null
);

-- One row a partition that the group consumes: the lock under which its window moves. Never updated.
create table share_partition (
    group_id   int4 not null,
    topic_id   int4 not null,
    partition  int4 not null,
    primary key (group_id, topic_id, partition)
);

-- One row a partition: its window. Everything below end_offset has been taken up; what of it is not
-- finished has a row in share_flight or share_delay. end_offset is in the key, so that moving it puts the
-- new version at the end of the index: the live row is the first one found from there, however many dead
-- versions an old snapshot keeps before it.
create table share_window (
    group_id      int4 not null,
    topic_id      int4 not null,
    partition     int4 not null,
    end_offset    int8 not null,
    start_offset  int8 not null,   -- no row of share_flight begins below it: dead ones there are not read
    primary key (group_id, topic_id, partition, end_offset)
);

-- The records between acquisition and their end, as ranges of offsets in one state. A finished record is
-- in no range: it leaves nothing behind.
create table share_flight (
    group_id        int4        not null,
    topic_id        int4        not null,
    partition       int4        not null,
    first_offset    int8        not null,
    last_offset     int8        not null,
    due_at          timestamptz not null,   -- acquired: when the lock runs out; available: since when
    key_hash        int8,                   -- of the one record, in groups that keep the order of keys
    delivery_count  int4        not null,
    member          text        collate "C",   -- who has acquired it; null: available
    primary key (group_id, topic_id, partition, first_offset)
) with (fillfactor = 60, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);

-- Records that nobody may have before due_at: released with a delay, or produced with one. They do not
-- count as in flight.
create table share_delay (
    group_id        int4        not null,
    topic_id        int4        not null,
    partition       int4        not null,
    first_offset    int8        not null,
    last_offset     int8        not null,
    due_at          timestamptz not null,
    key_hash        int8,
    delivery_count  int4        not null,
    primary key (group_id, topic_id, partition, first_offset)
) with (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);
create index on share_delay (group_id, topic_id, partition, due_at);
create index on share_delay (group_id, topic_id, partition, key_hash, first_offset)
    where key_hash is not null;
"""


def upgrade() -> None:
    op.get_bind().exec_driver_sql(TABLES)


def downgrade() -> None:
    op.get_bind().exec_driver_sql(
        "drop table share_delay, share_flight, share_window, share_partition, share_group;"
        "delete from log_group where kind = 'share'"
    )
