"""Quotas: how many bytes a second a client or a role may produce and fetch.

The text is frozen: later changes are later revisions.  Names are unqualified; the runner sets
``search_path``.
"""

from alembic import op

revision = "0009"
down_revision = "0008"

TABLES = """
-- Replaced by a function of other arguments.
drop function if exists fetch_records(int4[], int4[], int8[], int8[], int4);

-- How many bytes of records a second an entity may produce and fetch, over all its connections together. An
-- entity is a role, a client id or both: '' is any, '<default>' is every one that has no row of its own, each
-- by itself. What has been used is not here but in sequences, which are changed in place: quotas.sql.
create table quota (
    role                text  collate "C" not null,
    client_id           text  collate "C" not null,
    producer_byte_rate  int8,
    consumer_byte_rate  int8,
    primary key (role, client_id)
);

-- It has a value from the time on when the first quota was set: to ask it costs append() and fetch() less
-- than to look into the table.
create sequence quota_switch;
"""


def upgrade() -> None:
    op.get_bind().exec_driver_sql(TABLES)


def downgrade() -> None:
    op.get_bind().exec_driver_sql(
        """
do $drop$
declare
    bucket text;
begin
    for bucket in
        select c.relname from pg_catalog.pg_class c
        where c.relnamespace::regnamespace::text = quote_ident(current_schema()) and c.relkind = 'S'
          and c.relname ~ '^quota_[0-9a-f]{24}$'
    loop
        execute 'drop sequence ' || quote_ident(bucket);
    end loop;
end
$drop$;
drop table quota;
drop sequence quota_switch;
"""
    )
