"""What a reader may see: who appended each batch, seals, and when a partition's server was started.

The text is frozen: later changes are later revisions.  Names are unqualified; the runner sets
``search_path``.
"""

from alembic import op

revision = "0012"
down_revision = "0011"

TABLES = """
-- They return columns more from now on.
drop function if exists partition_tips(int4[], int4[]) cascade;
drop function if exists info() cascade;

-- The transaction that appended the batch, if standbys were to have it before it was acknowledged; null:
-- nobody promised that. (The column was never written before.)
alter table batches rename column durable_before to xact;

-- When the server was started that last appended under leader_epoch; null: not known.
alter table topic_partition add column boot timestamptz;

-- Insert-only: the newest row counts. Each names what the leader had committed, as of a place in the
-- write-ahead log, and the newest such set that the synchronous standbys had then.
create table seal (
    seal_id    int8        generated always as identity primary key,
    xact       int8        not null,      -- the transaction that made this row
    snapshot   pg_snapshot not null,      -- what it saw as committed, of the transactions before it
    lsn        pg_lsn      not null,      -- their commits, and this row, lie before it
    confirmed  pg_snapshot,               -- the snapshot of an earlier row that is replicated; null: none yet
    sealed_at  timestamptz not null default clock_timestamp()
);
"""


def upgrade() -> None:
    op.get_bind().exec_driver_sql(TABLES)


def downgrade() -> None:
    op.get_bind().exec_driver_sql(
        "drop table seal;"
        "alter table topic_partition drop column boot;"
        "alter table batches rename column xact to durable_before"
    )
