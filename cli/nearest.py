"""What the log knows, for a shell that completes a name and for an error that advises one."""

from __future__ import annotations

import os
from collections.abc import Callable
from difflib import get_close_matches
from typing import TYPE_CHECKING

import click

from logstore.cli.root import settings
from logstore.errors import UnknownTopicOrPartitionError

if TYPE_CHECKING:
    from logstore import Admin

__all__ = ["asked", "suggest", "topic_names"]


def asked(context: click.Context | None, question: Callable[[Admin], list[str]]) -> list[str]:
    """Names that the log is asked for; none at all when that would start a server, take long or fail."""
    chosen = settings(context)
    dsn = chosen.dsn or os.environ.get("LOGSTORE_DSN")
    try:
        if dsn is None:
            from logstore.cli.server import running_dsn

            dsn = running_dsn()
        if dsn is None:
            return []
        from logstore import Admin

        with Admin(dsn, schema=chosen.schema, request_timeout_ms=2000) as admin:
            return question(admin)
    except Exception:
        # A completion that fails completes nothing: an error text would land in the middle of a command line.
        return []


def topic_names(context: click.Context | None) -> list[str]:
    """Names of topics, as :func:`asked` gives them."""
    return asked(context, lambda admin: admin.list_topics())


def suggest(error: BaseException, context: click.Context | None) -> None:
    """Lets ``error``, if it is about a topic that is missing and one like it is there, advise that one."""
    topic = getattr(error, "details", {}).get("topic")
    if not isinstance(error, UnknownTopicOrPartitionError) or not isinstance(topic, str):
        return
    names = topic_names(context)
    near = [] if topic in names else get_close_matches(topic, names, n=1)
    if near:
        error.advice = f"Did you mean {near[0]!r}?"
