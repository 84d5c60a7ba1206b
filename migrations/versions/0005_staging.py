"""Staging: records on their way from somebody's transaction to the log.

The text is frozen: later changes are later revisions.  Names are unqualified; the runner sets
``search_path``.
"""

from alembic import op

revision = "0005"
down_revision = "0004"

TABLES = """
-- The order of staging, and of the marks of draining.
create sequence staging_order;

-- Records that transactions have staged; those of one that has committed are drained, that is appended to the
-- log, in its order. Three tables, in turn by the clock: one that has been drained is truncated, so nothing
-- is updated or deleted, and no row dies but those of transactions that were rolled back.
create table staged_0 (
    seq            int8     not null default nextval('staging_order'),
    xid            xid8     not null default pg_current_xact_id(),   -- never a subtransaction's
    "timestamp"    int8     not null,                                -- ms
    topic_id       int4     not null,
    partition      int4     not null,
    rings          boolean  not null,                                -- it is the first of its transaction
    key            bytea,
    value          bytea,
    header_keys    text[],
    header_values  bytea[]
) with (autovacuum_enabled = off, toast.autovacuum_enabled = off);
alter table staged_0 alter key set storage external, alter value set storage external,
    alter header_values set storage external;
create index on staged_0 (xid);
create index on staged_0 (seq);
create table staged_1 (like staged_0 including all)
    with (autovacuum_enabled = off, toast.autovacuum_enabled = off);
create table staged_2 (like staged_0 including all)
    with (autovacuum_enabled = off, toast.autovacuum_enabled = off);

-- How far draining has come, inserted each time that something was drained; the newest row of the three
-- tables counts. They are truncated with the tables above.
create table drained_0 (
    id       int8         primary key default nextval('staging_order'),
    base     pg_snapshot  not null,   -- everything that this shows has been drained
    target   pg_snapshot,             -- not null: and, of what this shows,
    reached  int8                     -- everything up to this seq
) with (autovacuum_enabled = off);
create table drained_1 (like drained_0 including all) with (autovacuum_enabled = off);
create table drained_2 (like drained_0 including all) with (autovacuum_enabled = off);
"""


def upgrade() -> None:
    op.get_bind().exec_driver_sql(TABLES)


def downgrade() -> None:
    op.get_bind().exec_driver_sql(
        "drop table drained_0, drained_1, drained_2, staged_0, staged_1, staged_2;drop sequence staging_order"
    )
