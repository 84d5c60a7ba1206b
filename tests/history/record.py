"""Histories: what clients did and what they saw, one JSON line each.

A process writes a line before it begins an operation and one when it is over, each with one ``write`` to a
file opened for appending, so a history survives kill -9 of whoever wrote it: an operation that never ended is
one whose outcome nobody knows.  Times are ``time.monotonic()``, which all processes of a machine share.

====================  ==================================================================================
operation             what it carries
====================  ==================================================================================
``send``              one send; ``acks`` (0, 1, -1), ``idempotent``
``poll``              one poll; ``marks``: how far the log said that it may be read; ``group``, ``epochs``
``txn``               sends and polls of one transaction, in their order; ``producer``, ``epoch``
``assign``            partitions by hand, and the positions that were sought
``subscribe``         partitions given by a group: the consumer's positions begin anew
``init``              a producer took a transactional id: ``producer``, ``epoch``
``claim``             a member took partitions: ``group``, ``epochs`` by partition
``commit``            offsets of a group: ``group``, ``offsets`` and ``epochs`` by partition
``reset``             offsets of a group were set back on purpose: ``group``
``marks``             the watermarks of partitions as one statement saw them, on ``node``
``drained``           at the end, everything was read that there was
``log``               at the end, the batches of a partition: [base, records, leader epoch, producer, epoch]
``rows``              at the end, the values whose business row is there, beside all that were tried
``source``            at the end, a table that was captured: key -> value
====================  ==================================================================================

Every value is sent once and never again; a partition is ``topic-number``.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

__all__ = ["FAIL", "INFO", "OK", "Op", "Poll", "Recorder", "Send", "Step", "read_history"]

Outcome = Literal["ok", "info", "fail"]
OK: Final = "ok"
INFO: Final = "info"
"""Nobody knows whether it happened."""
FAIL: Final = "fail"
"""It did not happen."""


class Send(NamedTuple):
    partition: str
    value: str
    offset: int | None = None
    """Where it is, as far as the sender was told."""


class Poll(NamedTuple):
    """What one poll brought, in order: (partition, offset, value)."""

    records: tuple[tuple[str, int, str], ...]


Step = Send | Poll


@dataclass
class Op:
    """One operation of one process."""

    process: str
    number: int
    """Counts the operations of the process, in the order in which they began."""
    kind: str
    outcome: Outcome = INFO
    begin: float = 0.0
    end: float = float("inf")
    steps: list[Step] = field(default_factory=list)
    said: dict[str, Any] = field(default_factory=dict)
    """The rest of what the operation carries."""

    @property
    def sends(self) -> list[Send]:
        return [step for step in self.steps if isinstance(step, Send)]

    @property
    def polled(self) -> list[tuple[str, int, str]]:
        return [record for step in self.steps if isinstance(step, Poll) for record in step.records]

    def __str__(self) -> str:
        return f"{self.process}#{self.number} ({self.kind}, {self.outcome})"


class Recorder:
    """Writes the operations of one process into a history."""

    def __init__(self, path: Path, process: str) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self.process = process
        self._number = 0

    def begin(self, kind: str, steps: Iterable[Step] = (), **said: Any) -> Op:
        """An operation is about to begin, with ``steps`` as far as they are known before."""
        op = Op(self.process, self._number, kind, INFO, time.monotonic(), steps=list(steps), said=said)
        self._number += 1
        self._write(op, "begin")
        return op

    def end(self, op: Op, outcome: Outcome) -> None:
        """It is over."""
        op.outcome, op.end = outcome, time.monotonic()
        self._write(op, outcome)

    def note(self, kind: str, steps: Iterable[Step] = (), **said: Any) -> Op:
        """An operation that is over already."""
        now = time.monotonic()
        op = Op(self.process, self._number, kind, OK, now, now, list(steps), said)
        self._number += 1
        self._write(op, OK)
        return op

    @contextmanager
    def operation(self, kind: str, steps: Iterable[Step] = (), **said: Any) -> Iterator[Op]:
        """Around an operation: ok unless it raises, then info; whoever knows better sets ``outcome``."""
        op = self.begin(kind, steps, **said)
        op.outcome = OK
        try:
            yield op
        except BaseException:
            self.end(op, INFO if op.outcome == OK else op.outcome)
            raise
        self.end(op, op.outcome)

    def close(self) -> None:
        os.close(self._file)

    def _write(self, op: Op, type_: str) -> None:
        line: dict[str, Any] = {
            "type": type_,
            "process": op.process,
            "number": op.number,
            "kind": op.kind,
            "at": op.begin if type_ == "begin" else op.end,
            "began": op.begin,
        }
        if op.steps:
            line["steps"] = [
                {"poll": step.records} if isinstance(step, Poll) else {"send": step} for step in op.steps
            ]
        if op.said:
            line["said"] = op.said
        os.write(self._file, json.dumps(line).encode() + b"\n")


def read_history(*paths: Path) -> list[Op]:
    """The operations of some files, in the order in which they began."""
    found: dict[tuple[str, int], Op] = {}
    for path in paths:
        for text in path.read_text().splitlines(keepends=True):
            if not text.endswith("\n"):
                continue  # killed while it was written
            line = json.loads(text)
            op = Op(
                line["process"],
                line["number"],
                line["kind"],
                INFO if line["type"] == "begin" else line["type"],
                line["began"],
                float("inf") if line["type"] == "begin" else line["at"],
                [_step(step) for step in line.get("steps", ())],
                line.get("said", {}),
            )
            found[op.process, op.number] = op
    return sorted(found.values(), key=lambda op: (op.begin, op.process, op.number))


def _step(step: dict[str, Any]) -> Step:
    if "send" in step:
        return Send(*step["send"])
    return Poll(tuple((partition, offset, value) for partition, offset, value in step["poll"]))
