"""Topics that are copied from another log, or to one: who writes to them.

The text is frozen: later changes are later revisions.  Names are unqualified; the runner sets
``search_path``.
"""

from alembic import op

revision = "0011"
down_revision = "0010"

TABLES = """
-- Nobody appends to it but who mirrors another log's topic. append() looks at the partition's, under its
-- lock, so that whoever has set it knows that nobody writes any more; everybody else at the topic's.
alter table topic add column read_only boolean not null default false;
alter table topic_partition add column read_only boolean not null default false;

-- One row a topic that is, or was, one of two: the same topic in two logs.
create table mirrored_topic (
    topic_id       int4        primary key,
    state          text        collate "C" not null
                               check (state in ('mirror', 'promoted', 'fenced')),
    peer           text        collate "C" not null,       -- log_identity() of the other log
    peer_topic_id  int4        not null,                   -- and the topic's id there
    peer_address   text        not null,                   -- where it was found, without any password
    changed_at     timestamptz not null default clock_timestamp(),
    -- Of a mirror: the offsets between which the other log could be read when it was last seen, those of
    -- partition p at p + 1.
    peer_starts    int8[],
    peer_ends      int8[],
    seen_at        timestamptz
) with (fillfactor = 50);
"""


def upgrade() -> None:
    op.get_bind().exec_driver_sql(TABLES)


def downgrade() -> None:
    op.get_bind().exec_driver_sql(
        "drop table mirrored_topic;"
        "alter table topic_partition drop column read_only;"
        "alter table topic drop column read_only"
    )
