"""Bring a database's log to a version, and say which version it has.

Tables change by the Alembic revisions in ``versions/``; functions and views are whatever
:mod:`logstore.schema` says today and are put in place as the last step of an upgrade to the newest revision.
All in one transaction.
"""

from logstore.migrations.runner import REQUIRED_REVISION, SchemaStatus, downgrade, status, upgrade

__all__ = ["REQUIRED_REVISION", "SchemaStatus", "downgrade", "status", "upgrade"]
