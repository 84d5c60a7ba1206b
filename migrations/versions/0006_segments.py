"""Segments come and go: numbers of their own, what is compacted, what waits to be dropped.

The text is frozen: later changes are later revisions.  Names are unqualified; the runner sets
``search_path``.
"""

from alembic import op

revision = "0006"
down_revision = "0005"

TABLES = """
-- Replaced by functions of other arguments.
drop function if exists roll_time(jsonb, timestamptz) cascade;
drop function if exists add_segment(int4, int4);

alter table topic
    add column last_segment int4 not null default 0,         -- the newest number that a leaf was given
    add column compacted boolean not null default false;     -- cleanup.policy has compact
update topic set last_segment = active_segment;

alter table topic_partition
    add column compacted_to int8 not null default 0;         -- offsets below it have been compacted

-- Readers look at live ones only: one that is being written anew is not yet, and one that it replaced is not
-- any more. The segments of a topic follow each other by place, in every partition: one that was written anew
-- has the last place of those that it replaced, which were neighbours.
alter table topic_segment
    add column live boolean not null default true,
    add column place int4 not null default 0;
update topic_segment set place = segment;
alter table topic_segment alter place drop default;

alter table sealed_segment add column records int8;          -- how many are left; null: all of them

alter table batches add column delete_horizon int8;          -- ms: from then on its tombstones may go

-- Leaves that belong to no topic's log any more, and are still to be detached and dropped.
create table dropped_segment (
    topic_id    int4        not null,
    segment     int4        not null,
    bytes       int8        not null,
    dropped_at  timestamptz not null,
    free_at     int8        not null,   -- ms: until then its table stays, for those who are reading it
    primary key (topic_id, segment)
);

-- Space for the moment when there is none: what dropping segments needs before it gives some back. Without an
-- index or TOAST table, which emptying it would have to make anew.
create unlogged table disk_reserve (a name, b name, c name, d name, e name, f name, g name)
    with (autovacuum_enabled = off);
"""


def upgrade() -> None:
    op.get_bind().exec_driver_sql(TABLES)


def downgrade() -> None:
    op.get_bind().exec_driver_sql(
        "drop table disk_reserve;"
        "drop table dropped_segment;"
        "alter table batches drop column delete_horizon;"
        "alter table sealed_segment drop column records;"
        "alter table topic_segment drop column live, drop column place;"
        "alter table topic_partition drop column compacted_to;"
        "alter table topic drop column last_segment, drop column compacted"
    )
