"""The checker on histories made by hand: each anomaly is found, and is the only one; good ones are clean."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.history.checker import ANOMALIES, check
from tests.history.cycles import components, edges_of
from tests.history.record import FAIL, INFO, OK, Op, Poll, Recorder, Send, Step, read_history


class History:
    """Operations one after the other, each taking a second."""

    def __init__(self) -> None:
        self.ops: list[Op] = []

    def add(self, process: str, kind: str, *steps: Step, outcome: Any = OK, **said: Any) -> Op:
        at = float(len(self.ops))
        op = Op(process, len(self.ops), kind, outcome, at, at + 0.5, list(steps), said)
        self.ops.append(op)
        return op

    def send(self, value: str, offset: int | None, partition: str = "t-0", **said: Any) -> Op:
        return self.add(said.pop("by", "p"), "send", Send(partition, value, offset), **said)

    def poll(self, *records: tuple[int, str], partition: str = "t-0", by: str = "c", **said: Any) -> Op:
        return self.add(by, "poll", poll(*records, partition=partition), **said)

    def txn(self, *steps: Step, by: str = "x", **said: Any) -> Op:
        return self.add(by, "txn", *steps, **said)


def poll(*records: tuple[int, str], partition: str = "t-0") -> Poll:
    return Poll(tuple((partition, offset, value) for offset, value in records))


def sent(h: History, *values: str, partition: str = "t-0") -> None:
    """Sent and read."""
    for offset, value in enumerate(values):
        h.send(value, offset, partition)
    h.poll(*enumerate(values), partition=partition)


def marks(log_start: int, hw: int, durable: int, end: int, epoch: int = 0) -> dict[str, Any]:
    at = {"log_start": log_start, "hw": hw, "durable_end": durable, "end": end, "epoch": epoch}
    return {"marks": {"t-0": at}, "node": "n"}


def _two_values_at_one_offset(h: History) -> None:
    h.send("a", 0)
    h.poll((0, "a"), by="c1")
    h.send("b", None, outcome=INFO)
    h.poll((0, "b"), by="c2")


def _acknowledged_twice_at_one_offset(h: History) -> None:
    h.send("a", 0, by="p1")
    h.send("b", 0, by="p2")


def _lost(h: History) -> None:
    for offset, value in enumerate("abc"):
        h.send(value, offset)
    h.poll((0, "a"), by="c1")
    h.poll((2, "c"), by="c2")


def _lost_at_the_end(h: History) -> None:
    sent(h, "a", "b")
    h.send("c", 2)
    h.add("c", "drained")


def _of_unknown_place_never_read(h: History) -> None:
    sent(h, "a")
    h.send("b", None)
    h.add("c", "drained")


def _failed_and_read(h: History) -> None:
    h.send("a", None, outcome=FAIL)
    h.poll((0, "a"))


def _aborted_transaction_read(h: History) -> None:
    h.txn(Send("t-0", "a"), outcome=FAIL)
    h.poll((0, "a"))


def _out_of_nowhere(h: History) -> None:
    sent(h, "a")
    h.poll((1, "b"))


def _twice_there(h: History) -> None:
    h.send("a", 0)
    h.poll((0, "a"), (1, "a"))


def _retried_at_another_offset(h: History) -> None:
    h.send("a", 1)
    h.send("b", 2)
    h.poll((0, "a"), by="c")


def _consumer_skips(h: History) -> None:
    for offset, value in enumerate("abc"):
        h.send(value, offset)
    h.poll((0, "a"), by="c1")
    h.poll((2, "c"), by="c1")
    h.poll((0, "a"), (1, "b"), (2, "c"), by="c2")


def _consumer_skips_what_it_sought(h: History) -> None:
    sent(h, "a", "b")
    h.add("c2", "assign", positions={"t-0": 0})
    h.poll((1, "b"), by="c2")


def _consumer_goes_back(h: History) -> None:
    sent(h, "a", "b")
    h.poll((1, "b"))


def _transaction_skips(h: History) -> None:
    sent(h, "a", "b", "c")
    h.txn(poll((0, "a")), poll((2, "c")))


def _transaction_goes_back(h: History) -> None:
    sent(h, "a", "b")
    h.txn(poll((1, "b")), poll((0, "a")))


def _sends_overtake_each_other(h: History) -> None:
    h.send("a", 1, idempotent=False)
    h.send("b", 0, idempotent=False)


def _sends_of_a_transaction_overtake_each_other(h: History) -> None:
    h.txn(Send("t-0", "a", 1), Send("t-0", "b", 0), idempotent=False)


def _unacknowledged_sends_overtake_each_other(h: History) -> None:
    h.send("a", None, outcome=INFO)
    h.send("b", None, outcome=INFO)
    h.poll((0, "b"), (1, "a"))


def _reads_its_own_before_commit(h: History) -> None:
    h.txn(Send("t-0", "a", 0), poll((0, "a")))


def _two_read_each_other(h: History) -> None:
    h.txn(Send("t-0", "a", 0), poll((0, "b"), partition="t-1"), by="x1")
    h.txn(Send("t-1", "b", 0), poll((0, "a")), by="x2")


def _two_overwrite_each_other(h: History) -> None:
    h.txn(Send("t-0", "a", 0), Send("t-1", "b", 1), by="x1")
    h.txn(Send("t-0", "c", 1), Send("t-1", "d", 0), by="x2")


def _half_a_transaction(h: History) -> None:
    h.txn(Send("t-0", "a"), Send("t-1", "b"), outcome=INFO)
    h.poll((0, "a"))
    h.add("c", "drained")


def _hole_in_the_log(h: History) -> None:
    h.add("c", "log", batches={"t-0": [[0, 3, 0, None, None], [4, 1, 0, None, None]]})


def _overlap_in_the_log(h: History) -> None:
    h.add("c", "log", batches={"t-0": [[0, 3, 0, None, None], [2, 1, 0, None, None]]})


def _hole_in_a_poll(h: History) -> None:
    h.poll((0, "a"), (2, "c"))


def _marks_out_of_order(h: History) -> None:
    h.add("n", "marks", **marks(0, 5, 4, 6))


def _log_start_beyond_the_mark(h: History) -> None:
    h.add("n", "marks", **marks(6, 5, 6, 6))


def _mark_falls(h: History) -> None:
    h.add("n", "marks", **marks(0, 5, 5, 5))
    h.add("n", "marks", **marks(0, 4, 5, 5))


def _read_beyond_the_mark(h: History) -> None:
    h.send("a", 0)
    h.poll((0, "a"), marks={"t-0": 0})


def _log_ends_below_a_mark(h: History) -> None:
    h.add("n", "marks", **marks(0, 5, 5, 5))
    h.add("n", "log", batches={"t-0": [[0, 4, 1, None, None]]})


def _old_leader_writes(h: History) -> None:
    h.add("n", "log", batches={"t-0": [[0, 1, 1, None, None], [1, 1, 0, None, None]]})


def _old_producer_writes(h: History) -> None:
    h.add("n", "log", batches={"t-0": [[0, 1, 0, 7, 1], [1, 1, 0, 7, 0]]})


def _old_holder_commits(h: History) -> None:
    h.add("x1", "init", producer="id", epoch=0)
    h.add("x2", "init", producer="id", epoch=1)
    h.txn(Send("t-0", "a", 0), by="x1", producer="id", epoch=0)


def _two_owners(h: History) -> None:
    h.add("m1", "claim", group="g", epochs={"t-0": 1})
    h.add("m2", "claim", group="g", epochs={"t-0": 1})


def _old_owner_commits(h: History) -> None:
    h.add("m1", "claim", group="g", epochs={"t-0": 1})
    h.add("m2", "claim", group="g", epochs={"t-0": 2})
    h.add("m1", "commit", group="g", epochs={"t-0": 1}, offsets={"t-0": 5})


def _commit_goes_back(h: History) -> None:
    for offset in (3, 5, 4):
        h.add("m1", "commit", group="g", epochs={"t-0": 1}, offsets={"t-0": offset})


def _lost_over_a_rebalance(h: History) -> None:
    sent(h, "a", "b", "c")
    h.poll((0, "a"), by="m1", group="g")
    h.poll((2, "c"), by="m2", group="g")
    h.add("m2", "commit", group="g", epochs={"t-0": 2}, offsets={"t-0": 3})


def _both_process_a_record(h: History) -> None:
    sent(h, "a")
    h.txn(poll((0, "a")), Send("t-1", "b", 0), by="m1", group="g")
    h.txn(poll((0, "a")), Send("t-1", "c", 1), by="m2", group="g")


def _perhaps_both_process_a_record(h: History) -> None:
    sent(h, "a")
    h.txn(poll((0, "a")), Send("t-1", "b"), by="m1", group="g", outcome=INFO)
    h.txn(poll((0, "a")), Send("t-1", "c", 1), by="m2", group="g")
    h.poll((0, "b"), (1, "c"), partition="t-1")


def _row_without_record(h: History) -> None:
    sent(h, "a")
    h.add("db", "rows", rows=["a", "b"], tried=["a", "b"])


def _record_without_row(h: History) -> None:
    sent(h, "a", "b")
    h.add("db", "rows", rows=["a"], tried=["a", "b"])


def _replay_differs(h: History) -> None:
    sent(h, "k=1", "l=1", "k=2", "l=")
    h.add("db", "source", partition="t-0", rows={"k": "1"})


BAD: list[tuple[str, Callable[[History], None]]] = [
    ("inconsistent-offsets", _two_values_at_one_offset),
    ("inconsistent-offsets", _acknowledged_twice_at_one_offset),
    ("lost-write", _lost),
    ("unseen", _lost_at_the_end),
    ("unseen", _of_unknown_place_never_read),
    ("aborted-read", _failed_and_read),
    ("aborted-read", _aborted_transaction_read),
    ("phantom-read", _out_of_nowhere),
    ("duplicate", _twice_there),
    ("duplicate", _retried_at_another_offset),
    ("poll-skip", _consumer_skips),
    ("poll-skip", _consumer_skips_what_it_sought),
    ("nonmonotonic-poll", _consumer_goes_back),
    ("int-poll-skip", _transaction_skips),
    ("int-nonmonotonic-poll", _transaction_goes_back),
    ("nonmonotonic-send", _sends_overtake_each_other),
    ("int-nonmonotonic-send", _sends_of_a_transaction_overtake_each_other),
    ("producer-order", _unacknowledged_sends_overtake_each_other),
    ("precommitted-read", _reads_its_own_before_commit),
    ("circular", _two_read_each_other),
    ("circular", _two_overwrite_each_other),
    ("torn-transaction", _half_a_transaction),
    ("gap", _hole_in_the_log),
    ("gap", _overlap_in_the_log),
    ("gap", _hole_in_a_poll),
    ("watermark", _marks_out_of_order),
    ("watermark", _log_start_beyond_the_mark),
    ("watermark", _mark_falls),
    ("watermark", _read_beyond_the_mark),
    ("watermark", _log_ends_below_a_mark),
    ("fencing", _old_leader_writes),
    ("fencing", _old_producer_writes),
    ("fencing", _old_holder_commits),
    ("group", _two_owners),
    ("group", _old_owner_commits),
    ("group", _commit_goes_back),
    ("group", _lost_over_a_rebalance),
    ("processed-twice", _both_process_a_record),
    ("processed-twice", _perhaps_both_process_a_record),
    ("outbox", _row_without_record),
    ("outbox", _record_without_row),
    ("capture", _replay_differs),
]


@pytest.mark.parametrize(("name", "make"), BAD, ids=[make.__name__.strip("_") for _, make in BAD])
def test_a_bad_history_is_found_out(name: str, make: Callable[[History], None]) -> None:
    history = History()
    make(history)
    verdict = check(history.ops)
    assert {anomaly.name for anomaly in verdict.anomalies} == {name}, verdict


def test_every_anomaly_has_a_bad_history() -> None:
    assert {name for name, _ in BAD} == set(ANOMALIES)


def test_a_record_that_nobody_reads_for_long_was_forgotten() -> None:
    history = History()
    history.send("a", 0)
    for _ in range(10):
        history.poll()
    history.poll((0, "a"))
    assert [anomaly.name for anomaly in check(history.ops, stuck_s=5).anomalies] == ["stuck"]
    assert check(history.ops, stuck_s=60).ok


def test_what_is_allowed_is_no_anomaly() -> None:
    h = History()
    sent(h, "a", "b")
    h.send("unknown and not there", None, outcome=INFO)
    h.send("unknown and there", None, outcome=INFO)
    h.send("failed", None, outcome=FAIL)
    h.send("weak and gone", 3, acks=1)
    h.poll((2, "unknown and there"))
    h.send("at least once", 4, idempotent=False)
    h.poll((3, "at least once"), (4, "at least once"))
    h.add("c", "assign", positions={"t-0": 1})
    h.poll((1, "b"), (2, "unknown and there"))
    h.add("c", "subscribe")
    h.poll((0, "a"))
    h.add("m", "commit", group="g", epochs={"t-0": 1}, offsets={"t-0": 3})
    h.add("m", "reset", group="g")
    h.add("m", "commit", group="g", epochs={"t-0": 1}, offsets={"t-0": 1})
    h.txn(Send("t-1", "of nobody knows", None), outcome=INFO)
    h.add("c", "drained")
    verdict = check(h.ops)
    assert verdict.ok, verdict
    assert (verdict.acknowledged, verdict.unknown, verdict.found_unknown, verdict.lost_weakly) == (4, 3, 1, 1)


def test_a_compacted_log_has_holes() -> None:
    history = History()
    history.poll((0, "a"), (2, "c"))
    assert not check(history.ops).ok
    assert check(history.ops, compacted=True).ok


def test_write_skew_is_counted_and_legal() -> None:
    """Each reads the end of what the other then writes to: no order of commits, but READ COMMITTED."""
    h = History()
    sent(h, "a")
    sent(h, "b", partition="t-1")
    h.txn(poll((0, "a")), Send("t-1", "c", 1), by="x1")
    h.txn(poll((0, "b"), partition="t-1"), Send("t-0", "d", 1), by="x2")
    h.poll((1, "d"))
    verdict = check(h.ops)
    assert verdict.ok, verdict
    # The records a and b were sent by no transaction, so nothing is known of their followers.
    assert verdict.anti_dependency_cycles == 0
    assert components(edges_of({"p": {0: 1, 1: 2}, "q": {0: 2, 1: 1}}, [(2, "p", [0])]), frozenset({"ww"}))


def test_long_chains_are_no_cycles() -> None:
    edges = edges_of({"p": {offset: offset for offset in range(20_000)}}, [])
    assert components(edges, frozenset({"ww"})) == []
    edges[19_999][0].add("ww")
    assert [len(cycle) for cycle in components(edges, frozenset({"ww"}))] == [20_000]


@given(st.lists(st.tuples(st.integers(0, 8), st.integers(0, 8)), max_size=25))
def test_components_are_those_of_reachability(pairs: list[tuple[int, int]]) -> None:
    edges = edges_of({}, [])
    for source, target in pairs:
        if source != target:
            edges[source][target].add("ww")
    reach = {node: {node} for node in range(9)}
    for _ in range(9):
        for source, targets in edges.items():
            for target in targets:
                reach[source] |= reach[target]
    expected = {
        tuple(sorted(other for other in reach if other in reach[node] and node in reach[other]))
        for node in reach
    }
    found = {tuple(component) for component in components(edges, frozenset({"ww"}))}
    assert found == {component for component in expected if len(component) > 1}


# ---- histories of a log that does everything right, and of one that does one thing wrong


def perfect(seed: int, length: int = 60) -> History:
    """What senders, transactions and readers of a flawless log see."""
    chance = random.Random(seed)
    h = History()
    log: dict[str, list[str]] = {"t-0": [], "t-1": []}
    positions = {"c1": dict.fromkeys(log, 0), "c2": dict.fromkeys(log, 0)}

    def write(value: str, partition: str, outcome: str) -> int | None:
        if outcome == FAIL or (outcome == INFO and chance.random() < 0.5):
            return None
        log[partition].append(value)
        return len(log[partition]) - 1 if outcome == OK else None

    def read(reader: str, partition: str) -> Poll:
        at = positions[reader][partition]
        end = min(len(log[partition]), at + chance.randrange(4))
        positions[reader][partition] = end
        return poll(*((offset, log[partition][offset]) for offset in range(at, end)), partition=partition)

    for number in range(length):
        what = chance.choice(["send", "send", "poll", "txn", "seek"])
        outcome = chance.choices([OK, INFO, FAIL], [6, 1, 1])[0]
        partition = chance.choice(list(log))
        if what == "send":
            h.send(f"{number}", write(f"{number}", partition, outcome), partition, outcome=outcome)
        elif what == "txn":
            polled = read("c2", partition)
            here = outcome == OK or (outcome == INFO and chance.random() < 0.5)
            sends = [
                Send(each, f"{number}{each}", write(f"{number}{each}", each, OK if here else FAIL))
                for each in log
            ]
            known = [*sends] if outcome == OK else [Send(each.partition, each.value) for each in sends]
            h.txn(polled, *known, by="c2", outcome=outcome)
            if outcome != OK:
                h.add("c2", "assign", positions=dict(positions["c2"]))
        elif what == "seek":
            positions["c1"][partition] = chance.randrange(len(log[partition]) + 1)
            h.add("c1", "assign", positions=dict(positions["c1"]))
        else:
            h.add("c1", "poll", read("c1", partition))
    for partition, values in log.items():
        h.poll(*enumerate(values), partition=partition, by="last")
    h.add("last", "drained")
    h.add("last", "log", batches={p: [[o, 1, 0, None, None] for o in range(len(v))] for p, v in log.items()})
    return h


@given(st.integers(0, 10_000))
def test_a_flawless_log_is_clean(seed: int) -> None:
    verdict = check(perfect(seed).ops, stuck_s=1000)
    assert verdict.ok, verdict


@given(st.integers(0, 10_000))
def test_a_flawless_log_with_one_record_taken_out_is_not(seed: int) -> None:
    h = perfect(seed)
    acknowledged = [op for op in h.ops if op.outcome == OK and op.sends]
    if not acknowledged:
        return
    victim = random.Random(seed).choice(acknowledged).sends[0].value
    for op in h.ops:
        op.steps = [
            Poll(tuple(record for record in step.records if record[2] != victim))
            if isinstance(step, Poll)
            else step
            for step in op.steps
        ]
    assert {anomaly.name for anomaly in check(h.ops).anomalies} & {"unseen", "lost-write", "poll-skip", "gap"}


@given(st.integers(0, 10_000))
def test_a_flawless_log_with_one_record_changed_is_not(seed: int) -> None:
    h = perfect(seed)
    last = next(op for op in reversed(h.ops) if op.process == "last" and op.polled)
    partition, offset, _ = last.polled[-1]
    last.steps = [Poll((*last.polled[:-1], (partition, offset, "another")))]
    assert not check(h.ops).ok


# ---- the file


def test_a_history_survives_its_process(tmp_path: Path) -> None:
    path = tmp_path / "h.jsonl"
    recorder = Recorder(path, "p")
    op = recorder.begin("send", [Send("t-0", "a")], acks=-1)
    recorder.end(op, OK)
    op.steps[:] = [Send("t-0", "a", 7)]
    recorder.end(op, OK)
    recorder.begin("txn", [Send("t-0", "b"), Poll((("t-0", 7, "a"),))])
    with pytest.raises(RuntimeError), recorder.operation("send", [Send("t-0", "c")]):
        raise RuntimeError
    recorder.note("drained")
    with path.open("a") as file:
        file.write('{"type": "ok", "process": "p", "num')
    recorder.close()
    first, unended, raised, drained = read_history(path)
    assert (first.outcome, first.sends, first.said) == (OK, [Send("t-0", "a", 7)], {"acks": -1})
    assert (unended.outcome, unended.end, unended.polled) == (INFO, float("inf"), [("t-0", 7, "a")])
    assert (raised.outcome, drained.outcome, drained.kind) == (INFO, OK, "drained")
