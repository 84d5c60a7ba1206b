"""The SQL functions of staging, as :class:`~logstore._core.call.Call` objects."""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from logstore._core.call import Call, Row
from logstore._core.calls import Calls
from logstore.records import Header

__all__ = ["MOST_RECORDS", "Drained", "StagedRecord", "StagingCalls", "header_json"]

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


class StagedRecord(NamedTuple):
    """A record as ``stage_here`` takes it."""

    topic: str
    partition: int
    key: bytes | None
    value: bytes | None
    headers: Sequence[Header] | None
    timestamp: int
    """Milliseconds."""


def header_json(headers: Sequence[Header]) -> str:
    """Headers as ``produce`` takes them; bytes as they are, whether they are text or not."""
    return json.dumps(
        [
            {"key": name, "value": None}
            if value is None
            else {"key": name, "base64": b64encode(value).decode()}
            for name, value in headers
        ]
    )


class StagingCalls(Calls):
    """The SQL functions of one log, with those of staging."""

    def __init__(self, schema: str = "logstore") -> None:
        super().__init__(schema)
        self._identity = self._value("log_identity")
        self._stage = self._value(
            "stage_here", "text", "text", "int4", "bytea", "bytea", "text::jsonb", "int8"
        )
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

    def log_identity(self) -> Call[str]:
        """What tells this log from every other one."""
        return Call(self._identity, (), _value, "log_identity")

    def stage(self, identity: str, record: StagedRecord) -> Call[int]:
        """Stage a record in the transaction of whoever runs this; the answer is its partition.

        The arguments are of plain types, so that any driver can run it.
        """
        headers = None if record.headers is None else header_json(record.headers)
        args = (identity, *record[:4], headers, record.timestamp)
        return Call(self._stage, args, _value, "stage_here", writes=True)

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
