"""How many servers a topic's creator asked for.

The text is frozen: later changes are later revisions.  Names are unqualified; the runner sets
``search_path``.
"""

from alembic import op

revision = "0013"
down_revision = "0012"

TABLES = """
-- It has an argument more now.
drop function if exists create_topic(text, int4, jsonb, boolean);

-- How many servers are to have the topic's records; null: as many as the group has.
alter table topic add column replication_factor int2 check (replication_factor >= 1);
"""


def upgrade() -> None:
    op.get_bind().exec_driver_sql(TABLES)


def downgrade() -> None:
    op.get_bind().exec_driver_sql("alter table topic drop column replication_factor")
