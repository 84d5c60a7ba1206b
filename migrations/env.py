"""Alembic's environment: runs the revisions on the connection that the runner hands over."""

from alembic import context

options = context.config.attributes
context.configure(connection=options["connection"], version_table_schema=options["schema"])
with context.begin_transaction():
    context.run_migrations()
