"""Producers: who holds a transactional id, and what idempotent producers have appended.

The text is frozen: later changes are later revisions.  Names are unqualified; the runner sets
``search_path``.
"""

from alembic import op

revision = "0004"
down_revision = "0003"

TABLES = """
-- One row a transactional id: who holds it. Every new holder raises the epoch, which fences the one before;
-- a transaction locks the row and reads it. Producers that are only idempotent have no row anywhere until a
-- partition that they wrote to goes on to its next segment.
create table producer (
    transactional_id  text        collate "C" primary key,
    producer_id       int8        not null unique,
    producer_epoch    int2        not null,
    timeout_ms        int4        not null,
    client_id         text,
    created_at        timestamptz not null default clock_timestamp(),
    updated_at        timestamptz not null default clock_timestamp()   -- when its holder was last seen
);

-- One row a partition and producer: the last batches, up to five, that the producer appended in segments that
-- the partition has left, oldest first. Batches in the partition's own segment come after them. Written when
-- a partition goes on to its next segment, never by an append.
create table producer_state (
    topic_id        int4        not null,
    partition       int4        not null,
    producer_id     int8        not null,
    producer_epoch  int2        not null,     -- of all of these batches
    base_sequences  int4[]      not null,
    last_sequences  int4[]      not null,
    base_offsets    int8[]      not null,
    append_times    int8[]      not null,     -- ms; -1: that batch keeps its producer's time stamps
    updated_at      timestamptz not null,     -- when the newest of these batches was appended
    primary key (topic_id, partition, producer_id)
);
create index on producer_state (updated_at);

-- append() asks for itself now.
drop function if exists roll_if_used(int4, int4, int4);

do $$
declare
    leaf text;
begin
    for leaf in select 'b_' || s.topic_id || '_' || s.segment from topic_segment s loop
        execute 'create index ' || leaf || '_producer on ' || leaf || ' (partition, producer_id, last_offset)'
             || ' where producer_id is not null';
    end loop;
end
$$;
"""


def upgrade() -> None:
    op.get_bind().exec_driver_sql(TABLES)


def downgrade() -> None:
    op.get_bind().exec_driver_sql(
        """
        do $$
        declare
            leaf text;
        begin
            for leaf in select 'b_' || s.topic_id || '_' || s.segment from topic_segment s loop
                execute 'drop index ' || leaf || '_producer';
            end loop;
        end
        $$;
        drop table producer_state, producer;
        """
    )
