"""The demo's checks find what they are for."""

from __future__ import annotations

import pytest

from logstore.cli.access_log import Request
from logstore.cli.checks import Check, compare
from logstore.records import CREATE_TIME, ConsumerRecord, TopicPartition

SENT = [Request(b"a", b"1", 10, True), Request(b"b", b"2", 20, True), Request(b"a", b"3", 30, True)]
ZERO, ONE = TopicPartition("t", 0), TopicPartition("t", 1)


def record(line: int, offset: int, *, partition: int = 0, value: bytes | None = None) -> ConsumerRecord:
    request = SENT[line - 1]
    return ConsumerRecord(
        "t",
        partition,
        offset,
        request.timestamp_ms,
        CREATE_TIME,
        request.client,
        request.value if value is None else value,
        (("line", b"%d" % line),),
        0,
    )


def failed(received: dict[TopicPartition, list[ConsumerRecord]]) -> dict[str, Check]:
    return {check.name: check for check in compare(SENT, received) if not check.passed}


def test_a_faithful_log_passes() -> None:
    checks = compare(SENT, {ZERO: [record(1, 0), record(3, 1)], ONE: [record(2, 0, partition=1)]})
    assert [check.name for check in checks] == ["missing", "repeated", "altered", "order", "offsets"]
    assert all(check.passed for check in checks)


@pytest.mark.parametrize(
    ("received", "names", "evidence"),
    [
        ({ZERO: [record(1, 0), record(3, 1)]}, {"missing"}, "line 2"),
        ({ZERO: [record(1, 0), record(2, 1), record(3, 2), record(2, 3)]}, {"repeated", "order"}, "line 2"),
        ({ZERO: [record(1, 0, value=b"x"), record(2, 1), record(3, 2)]}, {"altered"}, "line 1"),
        ({ZERO: [record(3, 0), record(1, 1), record(2, 2)]}, {"order"}, "b'a' at line 1"),
        ({ZERO: [record(1, 0), record(2, 1)], ONE: [record(3, 0, partition=1)]}, {"order"}, "b'a' at line 3"),
        ({ZERO: [record(1, 0), record(2, 2), record(3, 3)]}, {"offsets"}, "0:2 where 1 was due"),
        ({}, {"missing"}, "line 1, line 2, line 3"),
    ],
)
def test_each_fault_is_named_with_evidence(
    received: dict[TopicPartition, list[ConsumerRecord]], names: set[str], evidence: str
) -> None:
    found = failed(received)
    assert set(found) == names
    assert any(evidence in check.detail for check in found.values())


def test_a_record_the_demo_did_not_make_is_no_request() -> None:
    stranger = ConsumerRecord("t", 0, 3, 0, CREATE_TIME, b"z", b"z", (), 0)
    found = failed({ZERO: [record(1, 0), record(2, 1), record(3, 2), stranger]})
    assert "altered" in found
