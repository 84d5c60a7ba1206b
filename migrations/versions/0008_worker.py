"""The worker: its jobs, who runs them, and what they came to.

The text is frozen: later changes are later revisions.  Names are unqualified; the runner sets
``search_path``.
"""

from alembic import op

revision = "0008"
down_revision = "0007"

TABLES = """
select 1;
"""


def upgrade() -> None:
    op.get_bind().exec_driver_sql(TABLES)


def downgrade() -> None:
    op.get_bind().exec_driver_sql("select 1")
