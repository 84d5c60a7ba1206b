"""Groups: consumer groups and what share groups have in common with them.

The text is frozen: later changes are later revisions.  Names are unqualified; the runner sets
``search_path``.
"""

from alembic import op

revision = "0002"
down_revision = "0001"

TABLES = """
-- One row a group. Written when its members, their subscriptions or its assignment change; never by a
-- heartbeat or a commit.
create table log_group (
    group_id        int4        generated always as identity primary key,
    name            text        collate "C" not null unique,
    kind            text        not null check (kind in ('consumer', 'share')),
    group_epoch     int8        not null default 0,   -- counts changes of members, subscriptions, partitions
    assigned_epoch  int8        not null default 0,   -- the group_epoch that the targets were computed for
    catalog         int8        not null default 0,   -- identifies the topics and partitions they were for
    configs         jsonb       not null default '{}',   -- overrides only: name -> text
    created_at      timestamptz not null default clock_timestamp(),
    emptied_at      timestamptz          default clock_timestamp()   -- null: it has members
);

-- One row a member. member_no is never used again, so a claim can name an owner that is gone.
create table group_member (
    group_id              int4        not null,
    member_no             int8        generated always as identity,
    member_id             text        collate "C" not null,
    instance_id           text        collate "C",       -- of a static member: survives restarts
    client_id             text        not null,
    host                  text        not null,
    topics                text[],                        -- names; null: by pattern
    pattern               text,
    assignor              text,                          -- what it would like; null: no preference
    session_timeout_ms    int4        not null,
    max_poll_interval_ms  int4        not null,
    joined_at             timestamptz not null,
    lease_floor           timestamptz not null,          -- its lease runs from here or a later heartbeat
    primary key (group_id, member_no),
    unique (group_id, member_id),
    unique (group_id, instance_id)
);

-- One row a partition that the group has ever had: who owns it, who should. claim_epoch rises whenever the
-- owner changes and never starts again: it is the fence. Written by rebalances only; a commit locks it.
create table group_claim (
    group_id     int4 not null,
    topic_id     int4 not null,
    partition    int4 not null,
    owner        int8,                       -- member_no; null: free
    target       int8,                       -- member_no; null: nobody subscribes
    claim_epoch  int8 not null default 0,
    primary key (group_id, topic_id, partition)
) with (fillfactor = 70);

-- One row a partition with a committed offset. No updated column is indexed and pages have room, so updates
-- stay in the page and are pruned there.
create table group_offset (
    group_id          int4        not null,
    topic_id          int4        not null,
    partition         int4        not null,
    committed_offset  int8        not null,
    leader_epoch      int4,
    claim_epoch       int8,                  -- that it was committed under; null: without membership
    metadata          text        not null,
    committed_at      timestamptz not null,
    primary key (group_id, topic_id, partition)
) with (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);

-- Heartbeats: rows are inserted into one of three tables, in turn, and the oldest table is truncated. Nothing
-- is updated or deleted, so no heartbeat leaves a dead tuple, whatever snapshot is held elsewhere. Unlogged:
-- no write-ahead log, no flush. member_no 0 is the group's own mark: "swept".
create unlogged table group_heartbeat_0 (
    group_id   int4        not null,
    member_no  int8        not null,
    at         timestamptz not null
) with (autovacuum_enabled = off);
create index on group_heartbeat_0 (group_id, member_no, at);
create unlogged table group_heartbeat_1 (like group_heartbeat_0 including all)
    with (autovacuum_enabled = off);
create unlogged table group_heartbeat_2 (like group_heartbeat_0 including all)
    with (autovacuum_enabled = off);

-- One row: which table takes the heartbeats. Unlogged like them: after a crash or on a new leader all four
-- are empty, and leases run from born_at.
create unlogged table heartbeat_ring (
    one         boolean     primary key default true check (one),
    slot        int2        not null,
    born_at     timestamptz not null,
    rotated_at  timestamptz not null
);
"""


def upgrade() -> None:
    op.get_bind().exec_driver_sql(TABLES)


def downgrade() -> None:
    op.get_bind().exec_driver_sql(
        "drop table heartbeat_ring, group_heartbeat_0, group_heartbeat_1, group_heartbeat_2, group_offset, "
        "group_claim, group_member, log_group"
    )
