"""Segments that were moved to files.

The text is frozen: later changes are later revisions.  Names are unqualified; the runner sets
``search_path``.
"""

from alembic import op

revision = "0010"
down_revision = "0009"

TABLES = """
select 1;
"""


def upgrade() -> None:
    op.get_bind().exec_driver_sql(TABLES)


def downgrade() -> None:
    op.get_bind().exec_driver_sql("select 1")
