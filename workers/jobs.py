"""The jobs that a worker runs."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Final, cast

from logstore.errors import ConfigurationError
from logstore.workers.job import RunOnce
from logstore.workers.schedule import Every, Schedule

__all__ = ["JOBS", "Job", "chosen"]


@dataclass(frozen=True)
class Job:
    """One of the jobs, by itself: the database may say that it is due at other times."""

    name: str
    """Also its module's, in this package."""
    schedule: Schedule
    doc: str
    """What it does, in one line."""
    asks: bool = False
    """Run at an interval, it is left out while the database says that there is nothing for it to do."""

    @cached_property
    def run_once(self) -> RunOnce:
        """The function; its module is imported when it is first needed."""
        return cast(RunOnce, importlib.import_module(f"logstore.workers.{self.name}").run_once)


_ALL: Final = (
    Job(
        "drain",
        Every(5),
        "Append to the log what committed transactions have staged, where nobody waits for it.",
        asks=True,
    ),
    Job(
        "seal",
        Every(2),
        "Let followers show what the synchronous standbys have, where nobody waits for it.",
        asks=True,
    ),
    Job("roll", Every(10), "Close segments that are old enough, so that they can be dropped.", asks=True),
    Job("retention", Every(30), "Drop what retention.ms and retention.bytes say."),
    Job("reclaim", Every(30), "Give back the space of deleted topics and dropped segments.", asks=True),
    Job(
        "compaction", Every(15), "Keep the last record of each key, where cleanup.policy says so.", asks=True
    ),
    Job("erasure", Every(15), "Remove the records of keys that are to be erased.", asks=True),
    Job(
        "mirror",
        Every(2),
        "Copy what is new in the log that LOGSTORE_MIRROR_FROM names to its mirrors here.",
        asks=True,
    ),
    Job("tier", Every(30), "Move sealed segments to files, where remote.storage.enable says so.", asks=True),
    Job(
        "expiry", Every(60), "Forget members, groups, offsets, producers and share locks after long silence."
    ),
    Job("statistics", Every(300), "Count what is in each topic; freeze and analyze sealed segments."),
)

JOBS: Final[Mapping[str, Job]] = {
    job.name: job for job in _ALL if importlib.util.find_spec(f"{__package__}.{job.name}") is not None
}
"""Name -> job; those that this installation has."""


def chosen(names: Iterable[str]) -> dict[str, Job]:
    """The jobs with these names; all of them, if none is given.

    Raises :class:`~logstore.errors.ConfigurationError` for a name that is none.
    """
    wanted = list(names) or list(JOBS)
    for name in wanted:
        if name not in JOBS:
            raise ConfigurationError(f"There is no job {name!r}: there are {', '.join(JOBS)}.")
    return {name: JOBS[name] for name in JOBS if name in wanted}
