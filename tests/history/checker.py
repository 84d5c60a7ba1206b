"""What must not be in a history, whatever failed meanwhile.  Pure: no database, no clock.

Each anomaly has a name; :func:`check` returns all that a history has.  A history without an operation that a
check needs passes that check, so every check has a bad history of its own in ``test_checker.py``.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Final, NamedTuple

from tests.history.cycles import components, edges_of
from tests.history.record import FAIL, OK, Op, Poll, Send

__all__ = ["ANOMALIES", "Anomaly", "Verdict", "check"]

STUCK_S: Final = 30.0
"""An acknowledged record that nobody has seen for so long was forgotten."""


class Anomaly(NamedTuple):
    name: str
    what: str

    def __str__(self) -> str:
        return f"{self.name}: {self.what}"


@dataclass
class Verdict:
    anomalies: list[Anomaly]
    operations: int = 0
    acknowledged: int = 0
    """Records whose senders were told so."""
    unknown: int = 0
    """Records whose senders never learned what became of them."""
    found_unknown: int = 0
    """How many of those are in the log."""
    read: int = 0
    """Different records that somebody has read."""
    lost_weakly: int = 0
    """Acknowledged with acks 0 or 1, and gone: what these levels allow when a server dies."""
    lag_p99_s: float = 0.0
    """From acknowledgement to the first poll that returned the record."""
    anti_dependency_cycles: int = 0
    """Cycles that need an rw edge: legal here, where transactions are READ COMMITTED."""
    names: Counter[str] = field(default_factory=Counter)

    @property
    def ok(self) -> bool:
        return not self.anomalies

    def __str__(self) -> str:
        head = (
            f"{self.operations:,} operations: {self.acknowledged:,} records acknowledged, {self.unknown:,} "
            f"unknown ({self.found_unknown:,} of them are there), {self.read:,} read, "
            f"p99 of the lag {self.lag_p99_s * 1000:.0f} ms"
        )
        if not self.anomalies:
            return f"{head}; no anomaly"
        shown = "\n".join(f"  {anomaly}" for anomaly in self.anomalies[:20])
        return f"{head}; {len(self.anomalies)} anomalies {dict(self.names)}\n{shown}"


@dataclass
class _Facts:
    """What the checks have in common."""

    ops: list[Op]
    sent: dict[str, tuple[Op, Send]] = field(default_factory=dict)
    """By value."""
    places: dict[str, set[tuple[str, int]]] = field(default_factory=lambda: defaultdict(set))
    """Where each value was seen, by readers and by its sender."""
    contents: dict[tuple[str, int], dict[str, str]] = field(default_factory=lambda: defaultdict(dict))
    """What was seen at each offset, and by whom."""
    first_read: dict[str, float] = field(default_factory=dict)
    """When the first poll that returned a value was over."""
    known: dict[str, list[int]] = field(default_factory=dict)
    """The offsets of each partition that are known to hold a record, ascending."""
    highest_read: dict[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, ops: list[Op]) -> _Facts:
        facts = cls(ops)
        for op in ops:
            for send in op.sends:
                facts.sent[send.value] = op, send
                # With acks 0 or 1 the offset may be another's by now.
                if send.offset is not None and op.outcome != FAIL and not _weak(op):
                    facts.places[send.value].add((send.partition, send.offset))
                    facts.contents[send.partition, send.offset].setdefault(send.value, str(op))
            for partition, offset, value in op.polled:
                facts.places[value].add((partition, offset))
                facts.contents[partition, offset].setdefault(value, str(op))
                facts.first_read[value] = min(op.end, facts.first_read.get(value, op.end))
                facts.highest_read[partition] = max(offset, facts.highest_read.get(partition, -1))
        known: dict[str, list[int]] = defaultdict(list)
        for partition, offset in sorted(facts.contents):
            known[partition].append(offset)
        facts.known = known
        return facts

    def of_kind(self, *kinds: str) -> Iterator[Op]:
        return (op for op in self.ops if op.kind in kinds)


def check(ops: Sequence[Op], *, compacted: bool = False, stuck_s: float = STUCK_S) -> Verdict:
    """All anomalies of a history.  ``compacted``: offsets may be missing."""
    facts = _Facts.of(list(ops))
    verdict = Verdict([], operations=len(facts.ops))
    for name, find in ANOMALIES.items():
        if compacted and name == "gap":
            continue
        verdict.anomalies += [Anomaly(name, what) for what in find(facts)]
    verdict.anomalies += [Anomaly("stuck", what) for what in _stuck(facts, stuck_s)]
    verdict.names = Counter(anomaly.name for anomaly in verdict.anomalies)
    lags = []
    for value, (op, _) in facts.sent.items():
        acknowledged = op.outcome == OK
        verdict.acknowledged += acknowledged
        verdict.unknown += op.outcome not in (OK, FAIL)
        verdict.found_unknown += op.outcome not in (OK, FAIL) and value in facts.first_read
        if acknowledged and value in facts.first_read:
            lags.append(max(0.0, facts.first_read[value] - op.end))
    drained = any(facts.of_kind("drained"))
    verdict.lost_weakly = sum(
        _weak(op) and op.outcome == OK and drained and value not in facts.first_read
        for value, (op, _) in facts.sent.items()
    )
    verdict.read = len(facts.first_read)
    verdict.lag_p99_s = sorted(lags)[int(len(lags) * 0.99)] if lags else 0.0
    verdict.anti_dependency_cycles = len(_cycles(facts, frozenset({"ww", "wr", "rw"}))) - len(
        _cycles(facts, frozenset({"ww", "wr"}))
    )
    return verdict


def _weak(op: Op) -> bool:
    return bool(op.said.get("acks", -1) != -1)


# ---- single records


def _inconsistent_offsets(facts: _Facts) -> Iterator[str]:
    for (partition, offset), seen in facts.contents.items():
        if len(seen) > 1:
            words = " and ".join(f"{value!r} by {who}" for value, who in seen.items())
            yield f"{partition} offset {offset} was seen as {words}"


def _lost_write(facts: _Facts) -> Iterator[str]:
    for value, (op, send) in facts.sent.items():
        if op.outcome != OK or _weak(op) or value in facts.first_read or send.offset is None:
            continue
        if send.offset < facts.highest_read.get(send.partition, -1):
            yield (
                f"{value!r} was acknowledged at {send.partition} offset {send.offset}; offset "
                f"{facts.highest_read[send.partition]} was read, this one by nobody"
            )


def _unseen(facts: _Facts) -> Iterator[str]:
    if not any(facts.of_kind("drained")):
        return
    for value, (op, send) in facts.sent.items():
        if op.outcome == OK and not _weak(op) and value not in facts.first_read:
            yield f"{value!r} was acknowledged by {op} at {send.partition} and never read"


def _stuck(facts: _Facts, stuck_s: float) -> Iterator[str]:
    for value, (op, _) in facts.sent.items():
        seen = facts.first_read.get(value)
        if op.outcome == OK and seen is not None and seen - op.end > stuck_s:
            yield f"{value!r} was acknowledged {seen - op.end:.1f} s before anybody had read it"


def _aborted_read(facts: _Facts) -> Iterator[str]:
    for value in facts.first_read:
        if value in facts.sent and facts.sent[value][0].outcome == FAIL:
            yield f"{value!r} was read, but {facts.sent[value][0]} failed"


def _phantom_read(facts: _Facts) -> Iterator[str]:
    if facts.sent:
        for value in facts.first_read:
            if value not in facts.sent:
                yield f"{value!r} was read, but nobody sent it"


def _duplicate(facts: _Facts) -> Iterator[str]:
    for value, places in facts.places.items():
        if len(places) > 1 and value in facts.sent and facts.sent[value][0].said.get("idempotent", True):
            yield f"{value!r} is at {sorted(places)}"


# ---- order


def _order_of_polls(facts: _Facts) -> Iterator[tuple[str, str]]:
    """(name, what): from one poll of a consumer to the next, and within one transaction."""
    reached: dict[tuple[str, str], int] = {}
    for op in facts.ops:
        if op.kind in ("assign", "subscribe"):
            for process, partition in list(reached):
                if process == op.process:
                    del reached[process, partition]
            for partition, position in op.said.get("positions", {}).items():
                reached[op.process, partition] = position - 1
            continue
        within: dict[str, int] = {}
        for partition, offset, _ in op.polled:
            inside = "int-" if op.kind == "txn" and partition in within else ""
            before = within.get(partition, reached.get((op.process, partition)))
            within[partition] = offset
            if before is None:
                continue
            if offset <= before:
                yield f"{inside}nonmonotonic-poll", f"{op}: {partition} offset {offset} came after {before}"
            known = facts.known[partition]
            between = known[bisect_right(known, before) : bisect_left(known, offset)]
            if between:
                what = f"{op}: {partition} offset {offset} came after {before} without {between[:5]}"
                yield f"{inside}poll-skip", what
        # What a transaction polled that was rolled back, or may have been, is polled again.
        if op.outcome == OK or op.kind == "poll":
            for partition, offset in within.items():
                reached[op.process, partition] = offset


def _polls(name: str) -> Callable[[_Facts], Iterator[str]]:
    return lambda facts: (what for found, what in _order_of_polls(facts) if found == name)


def _nonmonotonic_send(facts: _Facts) -> Iterator[str]:
    reached: dict[tuple[str, str], tuple[int, str]] = {}
    for op in facts.ops:
        # What was acknowledged weakly may be lost, and then its offset is another's.
        if op.outcome != OK or _weak(op):
            continue
        last: dict[str, tuple[int, str]] = {}
        for send in op.sends:
            if send.offset is not None:
                last.setdefault(send.partition, (send.offset, send.value))
        for partition, (offset, value) in last.items():
            before = reached.get((op.process, partition))
            if before is not None and offset <= before[0]:
                yield f"{op.process} sent {value!r} after {before[1]!r}, but {partition} has it before"
        for send in op.sends:
            if send.offset is not None:
                reached[op.process, send.partition] = send.offset, send.value


def _int_nonmonotonic_send(facts: _Facts) -> Iterator[str]:
    for op in facts.ops:
        reached: dict[str, int] = {}
        for send in op.sends:
            if send.offset is not None:
                if send.offset <= reached.get(send.partition, -1):
                    yield f"{op}: {send.partition} offset {send.offset} after {reached[send.partition]}"
                reached[send.partition] = send.offset


def _producer_order(facts: _Facts) -> Iterator[str]:
    """As readers saw it: what one process sent to a partition is there in the order of sending."""
    position = {value: at for at, value in enumerate(facts.sent)}
    reached: dict[tuple[str, str], tuple[int, str]] = {}
    for (partition, offset), seen in sorted(facts.contents.items()):
        for value in seen:
            if value not in facts.sent or not facts.sent[value][0].said.get("idempotent", True):
                continue
            source = facts.sent[value][0].process
            before = reached.get((source, partition))
            if before is not None and position[value] < before[0]:
                yield f"{partition} offset {offset}: {value!r} of {source} comes after its {before[1]!r}"
            reached[source, partition] = position[value], value


# ---- transactions


def _precommitted_read(facts: _Facts) -> Iterator[str]:
    for op in facts.of_kind("txn"):
        mine: set[str] = set()
        for step in op.steps:
            if isinstance(step, Send):
                mine.add(step.value)
            else:
                for partition, offset, value in step.records:
                    if value in mine:
                        yield f"{op} read its own {value!r}, {partition} offset {offset}, uncommitted"


def _cycles(facts: _Facts, kinds: frozenset[str]) -> list[list[int]]:
    numbers = {id(op): number for number, op in enumerate(facts.ops)}
    writers: dict[str, dict[int, int]] = defaultdict(dict)
    for value, places in facts.places.items():
        if value in facts.sent and facts.sent[value][0].kind == "txn":
            for partition, offset in places:
                writers[partition][offset] = numbers[id(facts.sent[value][0])]
    readers = []
    for op in facts.of_kind("txn"):
        by_partition: dict[str, list[int]] = defaultdict(list)
        if op.outcome == OK:
            for partition, offset, _ in op.polled:
                by_partition[partition].append(offset)
        readers += [(numbers[id(op)], partition, offsets) for partition, offsets in by_partition.items()]
    return components(edges_of(writers, readers), kinds)


def _circular(facts: _Facts) -> Iterator[str]:
    for kinds, word in ((frozenset({"wr"}), "read"), (frozenset({"ww", "wr"}), "read or overwrote")):
        found = _cycles(facts, kinds)
        for cycle in found:
            names = ", ".join(str(facts.ops[number]) for number in cycle[:5])
            yield f"{names}: each {word} what another of them wrote"
        if found:
            return


def _torn_transaction(facts: _Facts) -> Iterator[str]:
    if not any(facts.of_kind("drained")):
        return
    for op in facts.of_kind("txn"):
        values = [send.value for send in op.sends]
        seen = [value for value in values if value in facts.first_read]
        if seen and len(seen) < len(values):
            yield f"{op}: of {len(values)} records {len(seen)} were read"


# ---- the log


def _gap(facts: _Facts) -> Iterator[str]:
    for op in facts.of_kind("log"):
        for partition, batches in op.said["batches"].items():
            for (base, count, *_), (following, *_) in pairwise(batches):
                if base + count != following:
                    yield f"{partition}: the batch at {base} has {count} records, the next is at {following}"
    for op in facts.ops:
        for step in op.steps:
            if isinstance(step, Poll):
                last: dict[str, int] = {}
                for partition, offset, _ in step.records:
                    if last.get(partition, offset - 1) < offset - 1:
                        yield f"{op}: {partition} has {offset} after {last[partition]}"
                    last[partition] = offset


def _watermark(facts: _Facts) -> Iterator[str]:
    highest: dict[tuple[str, str, int], tuple[float, int]] = {}
    promised: dict[str, int] = {}
    for op in facts.of_kind("marks"):
        if op.outcome != OK:
            continue
        node = op.said.get("node", "")
        for partition, marks in op.said["marks"].items():
            log_start, high, durable, end = (
                marks["log_start"], marks["hw"], marks.get("durable_end", marks["end"]), marks["end"]
            )  # fmt: skip
            if not log_start <= high <= durable <= end:
                yield f"{op}: {partition} has {log_start} <= {high} <= {durable} <= {end}"
            key = node, partition, marks.get("epoch", 0)
            before = highest.get(key)
            if before is not None and before[0] <= op.begin and high < before[1]:
                yield f"{op}: the watermark of {partition} fell from {before[1]} to {high}"
            if before is None or high > before[1]:
                highest[key] = op.end, high
            promised[partition] = max(high, promised.get(partition, 0))
    for op in facts.ops:
        marks = op.said.get("marks", {}) if op.kind == "poll" else {}
        for partition, offset, _ in op.polled:
            if partition in marks and offset >= marks[partition]:
                yield f"{op} read {partition} offset {offset}, but the mark was {marks[partition]}"
    for op in facts.of_kind("log"):
        for partition, batches in op.said["batches"].items():
            end = batches[-1][0] + batches[-1][1] if batches else 0
            if end < promised.get(partition, 0):
                yield f"{partition} ends at {end}, but {promised[partition]} was a watermark"


def _fencing(facts: _Facts) -> Iterator[str]:
    for op in facts.of_kind("log"):
        for partition, batches in op.said["batches"].items():
            newest, producers = -1, dict[int, int]()
            for base, _, *rest in batches:
                leader, producer, epoch = (*rest, None, None, None)[:3]
                if leader is not None and leader < newest:
                    yield f"{partition} offset {base}: leader epoch {leader} after {newest}"
                newest = max(newest, leader if leader is not None else -1)
                if producer is not None and epoch < producers.get(producer, -1):
                    yield f"{partition} offset {base}: producer {producer}, epoch {epoch} after a later"
                if producer is not None:
                    producers[producer] = max(epoch, producers.get(producer, -1))
    taken: dict[str, list[tuple[int, float]]] = defaultdict(list)
    for op in facts.of_kind("init"):
        if op.outcome == OK:
            taken[op.said["producer"]].append((op.said["epoch"], op.end))
    for op in facts.of_kind("txn"):
        for epoch, since in taken.get(op.said.get("producer", ""), ()):
            if op.outcome == OK and op.said["epoch"] < epoch and op.begin > since:
                yield f"{op} committed in epoch {op.said['epoch']}, after {epoch} had begun"


# ---- groups


def _group(facts: _Facts) -> Iterator[str]:
    owners: dict[tuple[str, str, int], str] = {}
    begun: dict[tuple[str, str], list[tuple[int, float]]] = defaultdict(list)
    resets: dict[str, list[float]] = defaultdict(list)
    for op in facts.ops:
        if op.kind == "claim" and op.outcome == OK:
            for partition, epoch in op.said["epochs"].items():
                other = owners.setdefault((op.said["group"], partition, epoch), op.process)
                if other != op.process:
                    yield f"{partition} belonged to {other} and {op.process} in claim epoch {epoch}"
                begun[op.said["group"], partition].append((epoch, op.end))
        elif op.kind == "reset":
            resets[op.said["group"]].append(op.begin)
    committed: dict[tuple[str, str], list[tuple[int, int, float]]] = defaultdict(list)
    for op in facts.of_kind("commit"):
        if op.outcome != OK:
            continue
        group = op.said["group"]
        for partition, offset in op.said["offsets"].items():
            epoch = op.said.get("epochs", {}).get(partition, 0)
            for later, since in begun[group, partition]:
                if epoch < later and op.begin > since:
                    yield f"{op} committed {partition} in claim epoch {epoch}, after {later} had begun"
            for _, before, over in committed[group, partition]:
                if (
                    over <= op.begin
                    and offset < before
                    and not any(over <= at <= op.begin for at in resets[group])
                ):
                    yield f"{op} committed {offset} of {partition}, which was at {before}"
            committed[group, partition].append((epoch, offset, op.end))
    read: dict[tuple[str, str], set[int]] = defaultdict(set)
    members: set[str] = set()
    for op in facts.of_kind("poll"):
        if "group" in op.said:
            members.add(op.said["group"])
            for partition, offset, _ in op.polled:
                read[op.said["group"], partition].add(offset)
    for (group, partition), commits in committed.items():
        end = max(offset for _, offset, _ in commits)
        left_out = [offset for offset in facts.known.get(partition, ()) if offset < end]
        missing = [offset for offset in left_out if offset not in read[group, partition]]
        if group in members and missing:
            yield f"group {group} committed {end} of {partition}, but no member was given {missing[:5]}"


def _processed_twice(facts: _Facts) -> Iterator[str]:
    """What members of a group process in transactions, whose commits are known or seen."""
    by: dict[tuple[str, str, int], Op] = {}
    for op in facts.of_kind("txn"):
        if "group" not in op.said or op.outcome == FAIL:
            continue
        if op.outcome != OK and not any(send.value in facts.first_read for send in op.sends):
            continue
        for partition, offset, _ in op.polled:
            other = by.setdefault((op.said["group"], partition, offset), op)
            if other is not op:
                yield f"{other} and {op} both processed {partition} offset {offset}"


# ---- beside the log


def _outbox(facts: _Facts) -> Iterator[str]:
    for op in facts.of_kind("rows"):
        there, tried = set(op.said["rows"]), set(op.said["tried"])
        for value in sorted(there):
            if value not in facts.first_read:
                yield f"the row {value!r} is there, its record is not"
        for value in sorted(tried - there):
            if value in facts.first_read:
                yield f"the record {value!r} is there, its row is not"


def _capture(facts: _Facts) -> Iterator[str]:
    for op in facts.of_kind("source"):
        table: dict[str, str] = {}
        changes = sorted(
            {(offset, value) for o in facts.ops for p, offset, value in o.polled if p == op.said["partition"]}
        )
        for _, value in changes:
            key, _, content = value.partition("=")
            if content:
                table[key] = content
            else:
                table.pop(key, None)
        if table != op.said["rows"]:
            wrong = sorted(set(table.items()) ^ set(op.said["rows"].items()))
            yield f"replaying {op.said['partition']} gives another table: {wrong[:5]}"


ANOMALIES: Final[dict[str, Callable[[_Facts], Iterable[str]]]] = {
    "inconsistent-offsets": _inconsistent_offsets,
    "lost-write": _lost_write,
    "unseen": _unseen,
    "aborted-read": _aborted_read,
    "phantom-read": _phantom_read,
    "duplicate": _duplicate,
    "poll-skip": _polls("poll-skip"),
    "nonmonotonic-poll": _polls("nonmonotonic-poll"),
    "int-poll-skip": _polls("int-poll-skip"),
    "int-nonmonotonic-poll": _polls("int-nonmonotonic-poll"),
    "nonmonotonic-send": _nonmonotonic_send,
    "int-nonmonotonic-send": _int_nonmonotonic_send,
    "producer-order": _producer_order,
    "precommitted-read": _precommitted_read,
    "circular": _circular,
    "torn-transaction": _torn_transaction,
    "gap": _gap,
    "watermark": _watermark,
    "fencing": _fencing,
    "group": _group,
    "processed-twice": _processed_twice,
    "outbox": _outbox,
    "capture": _capture,
}
"""Every check but ``stuck``, which has a limit."""
