"""Alembic, driven on a connection that somebody else opened and commits.

Apart from :mod:`logstore.migrations.runner` because importing Alembic and SQLAlchemy takes longer than most
upgrades, which find nothing to do.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources
from typing import Any, Final

import psycopg
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import NullPool, create_engine
from sqlalchemy.exc import DBAPIError

from logstore.errors import InvalidArgumentError

__all__ = ["Revisions", "opened"]

# Alembic keeps the migration that runs in module globals.
_one_at_a_time: Final = threading.Lock()


class Revisions:
    """The revisions, on one connection."""

    def __init__(self, config: Config) -> None:
        self._config = config

    def known(self, revision: str) -> bool:
        """This release has the revision."""
        scripts = ScriptDirectory.from_config(self._config)
        return any(script.revision == revision for script in scripts.walk_revisions())

    def upgrade(self, revision: str) -> None:
        """Run the revisions up to ``revision``."""
        command.upgrade(self._config, revision)

    def downgrade(self, revision: str) -> None:
        """Run the revisions down to ``revision``."""
        command.downgrade(self._config, revision)


@contextmanager
def opened(raw: psycopg.Connection[Any], schema: str) -> Iterator[Revisions]:
    """Revisions that run in one transaction of ``raw``, which is committed at the end and closed with it."""
    engine = create_engine("postgresql+psycopg://", creator=lambda: raw, poolclass=NullPool)
    with _one_at_a_time, _unwrapped(), engine.begin() as connection:
        config = Config()
        config.set_main_option("script_location", str(resources.files(__package__)).replace("%", "%%"))
        config.set_main_option("path_separator", "os")
        config.attributes.update(connection=connection, schema=schema)
        yield Revisions(config)


@contextmanager
def _unwrapped() -> Iterator[None]:
    """SQLAlchemy's errors as the driver raised them, Alembic's as ours."""
    try:
        yield
    except DBAPIError as error:
        raise error.orig or error from error
    except CommandError as error:
        raise InvalidArgumentError(
            f"{error}.", advice="`logstore db status` shows the revision there is, and this release's."
        ) from error
