"""What a run has shown: the history's anomalies, and how long nothing was acknowledged or answered."""

from __future__ import annotations

import json
from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Final

from tests.history.checker import Anomaly, Verdict, check
from tests.history.record import Op

__all__ = ["Progress", "judge", "longest_gap"]

STUCK_S: Final = 240.0


class Progress:
    """Reads a history while it is written: when records were acknowledged, and when members answered."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._at = 0
        self.strong: list[float] = []
        """When records sent with acks=all were acknowledged."""
        self.weak: list[float] = []
        self.given: dict[str, list[float]] = defaultdict(list)
        """When readers were given something, by reader."""
        self.answers: list[float] = []
        """When any member answered a spy."""
        self.reached: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
        """How far each reader has come, by partition."""

    def look(self) -> None:
        if not self._path.exists():
            return
        with self._path.open("rb") as file:
            file.seek(self._at)
            text = file.read()
        end = text.rfind(b"\n") + 1
        self._at += end
        for line in text[:end].splitlines():
            if not line.startswith(b'{"type": "ok"'):
                continue
            said = json.loads(line)
            if said["kind"] == "send":
                (self.strong if said["said"].get("acks") == -1 else self.weak).append(said["at"])
            elif said["kind"] == "answer":
                self.answers.append(said["at"])
            elif said["kind"] == "poll":
                name = said["process"].partition(".")[0]
                self.given[name].append(said["at"])
                for step in said["steps"]:
                    for partition, offset, _ in step["poll"]:
                        self.reached[name][partition] = offset + 1


def longest_gap(moments: Sequence[float], since: float, until: float) -> float:
    """The longest time between ``since`` and ``until`` without one of the (nearly sorted) moments."""
    found = sorted(moments)
    inside = found[bisect_left(found, since) : bisect_right(found, until)]
    return max(late - early for early, late in pairwise([since, *inside, until]))


def judge(ops: list[Op], *, last: str = "last") -> Verdict:
    """The checker's verdict, and what it does not look at: the log in the end against all that was said.

    ``last``: how the processes that read everything in the end are called.
    """
    verdict = check(ops, stuck_s=STUCK_S)
    for name, what in _against_the_log(ops, last):
        verdict.anomalies.append(Anomaly(name, what))
        verdict.names[name] += 1
    return verdict


def _against_the_log(ops: list[Op], last: str) -> Iterator[tuple[str, str]]:
    final: dict[tuple[str, int], str] = {}
    ends: dict[str, int] = defaultdict(int)
    for op in ops:
        if op.process.startswith(last):
            for partition, offset, value in op.polled:
                final[partition, offset] = value
                ends[partition] = max(ends[partition], offset + 1)
    if not final:
        return  # it was not read: the run has come to nothing
    for op in ops:
        for partition, offset, value in op.polled:
            now = final.get((partition, offset))
            if now != value:
                yield (
                    "changed",
                    f"{op} was given {value!r} at {partition} offset {offset}, which is {now!r} now",
                )
        if op.kind == "answer":
            for partition, mark in op.said["marks"].items():
                if mark > ends[partition]:
                    yield (
                        "taken-back",
                        f"{op.said['node']} said that {partition} is safe up to {mark}; it ends at "
                        f"{ends[partition]}",
                    )
        if op.kind == "send" and op.outcome == "ok" and op.said.get("acks") == -1:
            for send in op.sends:
                if send.offset is not None and final.get((send.partition, send.offset)) != send.value:
                    yield "lost", f"{send.value!r} was acknowledged at {send.partition} offset {send.offset}"
