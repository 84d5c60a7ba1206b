"""The SQL functions of staging, as :class:`~logstore._core.call.Call` objects."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from logstore._core.call import Call, Row
from logstore._core.calls import Calls

__all__ = ["MOST_RECORDS", "Drained", "StagingCalls"]

MOST_RECORDS: Final = 10_000
"""One call appends no more than this."""


class Drained(NamedTuple):
    """What one call to drain came to."""

    records: int
    topic_ids: tuple[int, ...] | None
    """The topics that got records; None: somebody else is draining."""
    more: bool
    """There may be more to drain."""
    sweep: bool
    """``sweep_staged`` would find something to do."""


class StagingCalls(Calls):
    """The SQL functions of one log, with those of staging."""

    def __init__(self, schema: str = "logstore") -> None:
        super().__init__(schema)
        self._drain = self._rows("records, topic_ids, more, sweep", "drain", "int4")
        self._sweep = self._value("sweep_staged", "int8")
        self._attend = self._value("attend_staging")
        self._leave = self._value("leave_staging")
        self._arm = self._value("arm_doorbell")
        self._disarm = self._value("disarm_doorbell")

    @property
    def staged_channel(self) -> str:
        """The channel that a commit notifies while the doorbell is armed."""
        return self.schema + "_staged"

    def drain(self, max_records: int = MOST_RECORDS) -> Call[Drained]:
        """Append what committed transactions have staged.  Repeating it is harmless."""
        return Call(self._drain, (max_records,), _drained, "drain")

    def sweep_staged(self, min_bytes: int = 8 << 20) -> Call[int]:
        """Empty the staging tables that have been drained and are larger; how many."""
        return Call(self._sweep, (min_bytes,), _value, "sweep_staged")

    def attend_staging(self) -> Call[bool]:
        """Try to become the session that drains."""
        return Call(self._attend, (), _value, "attend_staging")

    def leave_staging(self) -> Call[None]:
        """Stop being it, and tell others so."""
        return Call(self._leave, (), _none, "leave_staging")

    def arm_doorbell(self) -> Call[bool]:
        """Ask commits to ring; False: one is under way that does not."""
        return Call(self._arm, (), _value, "arm_doorbell")

    def disarm_doorbell(self) -> Call[bool]:
        """Ask commits not to ring any more."""
        return Call(self._disarm, (), _value, "disarm_doorbell")


def _drained(rows: Sequence[Row]) -> Drained:
    records, topic_ids, more, sweep = rows[0]
    return Drained(records, None if topic_ids is None else tuple(topic_ids), more, sweep)


def _value(rows: Sequence[Row]) -> Any:
    return rows[0][0]


def _none(rows: Sequence[Row]) -> None:
    return None
