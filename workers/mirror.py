"""Keep the mirrors of another log's topics up to date."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass

from logstore.errors import ConfigurationError
from logstore.workers.connections import opened
from logstore.workers.mirroring import Cycle, Link, Mirror

__all__ = ["Mirrored", "came_to", "run_once"]

SOURCE = "LOGSTORE_MIRROR_FROM"
"""In the worker's environment: the DSN of the log that its mirrors are copied from."""
TOPICS = "LOGSTORE_MIRROR_TOPICS"
"""Which, separated by commas, with ``*`` and ``?``; unset: those that are mirrors already."""


@dataclass(frozen=True, slots=True)
class Mirrored:
    """What one run came to."""

    topics: tuple[str, ...]
    """Those of which something was copied."""
    records: int
    """How many offsets were copied."""
    offsets: int
    """How many committed offsets changed."""
    refused: tuple[str, ...]
    """Topics that cannot be mirrored, and why."""
    missing: tuple[str, ...]
    """Mirrors whose topic is gone from the source; they stay."""
    behind: int
    """How many offsets were still lacking at the end."""
    groups_left: tuple[str, ...] = ()
    """Groups in use at the mirror, whose offsets are not touched."""
    configs_left: tuple[str, ...] = ()
    """Configs that the mirror's server cannot apply."""

    def summary(self) -> str:
        """In one line."""
        parts = [
            f"{self.records:,} records of {len(self.topics)} topics copied, {self.offsets} group offsets"
        ]
        if self.behind:
            parts.append(f"{self.behind:,} records behind")
        if self.missing:
            parts.append(f"gone from the source: {', '.join(self.missing)}")
        if self.groups_left:
            parts.append(f"groups in use here: {', '.join(self.groups_left)}")
        if self.configs_left:
            parts.append(f"configs not applied: {', '.join(self.configs_left)}")
        parts += [f"refused: {each}" for each in self.refused]
        return "; ".join(parts)


def came_to(cycle: Cycle) -> Mirrored:
    """A cycle as a job's result."""
    return Mirrored(
        tuple(sorted(cycle.topics)),
        cycle.records,
        cycle.offsets,
        tuple(str(error) for _, error in sorted(cycle.refused.items())),
        tuple(cycle.missing),
        cycle.behind,
        tuple(sorted(cycle.groups_left)),
        tuple(f"{topic}: {name}" for topic, names in sorted(cycle.configs_left.items()) for name in names),
    )


def run_once(
    dsn: str,
    schema: str = "logstore",
    *,
    source: str | None = None,
    source_schema: str | None = None,
    topics: Sequence[str] | None = None,
    parallel: int = 2,
    stop: threading.Event | None = None,
) -> Mirrored:
    """Copy what is new at ``source`` (None: LOGSTORE_MIRROR_FROM) to the mirrors in ``dsn``.

    ``topics``: names or patterns; None: LOGSTORE_MIRROR_TOPICS, else the topics that are mirrors already.
    Where no source is named there must be no mirror.  It may be killed anywhere, two at once do no harm, and
    it works through a pooler.  Raises ConnectionFailedError and what
    :func:`logstore.errors.from_server` makes of the servers' errors; what is wrong with one topic is in the
    answer.
    """
    source = source or os.environ.get(SOURCE)
    if not source:
        with opened(dsn, schema, "mirror") as connection:
            names = connection.value(
                "SELECT string_agg(t.name, ', ' ORDER BY t.name) FROM {}.mirrored_topic m"
                " JOIN {}.topic t USING (topic_id) WHERE m.state = 'mirror'"
            )
        if names:
            raise ConfigurationError(
                f"There are mirrors ({names}), but this worker does not know what to copy them from.",
                advice=f"Set {SOURCE} to the DSN of that log, or run `logstore mirror run`.",
            )
        return came_to(Cycle())
    if topics is None and os.environ.get(TOPICS):
        topics = [name for name in os.environ[TOPICS].split(",") if name]
    with Mirror(
        Link(source, dsn, source_schema or schema, schema), topics or (), parallel=parallel
    ) as mirror:
        if topics is None:
            mirror.only_known()
        return came_to(mirror.cycle(stop))
