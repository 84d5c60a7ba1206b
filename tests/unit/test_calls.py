"""The texts that clients send: quoted names, a cast on each parameter, values never in the text."""

from __future__ import annotations

import re
from typing import Any

import pytest

from logstore._core.arrays import ByteaArray
from logstore._core.call import Call
from logstore._core.calls import AppendBatch, AppendResult, Calls

HOSTILE = 'x"; DROP TABLE topic; --'


def every_call(calls: Calls) -> list[Call[Any]]:
    batch = AppendBatch(1, 2, 1, 5, None, None, ByteaArray([b"v"]))
    made: list[Call[Any]] = [
        calls.info(),
        calls.schema_version(),
        calls.metadata(),
        calls.metadata([HOSTILE]),
        calls.append([batch], 1),
        calls.append([batch, batch, batch], -1),
        calls.fetch([1], [2], [3], 4, 5),
        calls.high_watermarks([1], [2]),
        calls.list_offsets([1], [2], [-1]),
        calls.create_topic(HOSTILE, 1, {HOSTILE: HOSTILE}),
        calls.alter_topic(HOSTILE, {HOSTILE: HOSTILE}, [HOSTILE]),
        calls.add_partitions(HOSTILE, 2),
        calls.delete_topic(HOSTILE),
        calls.delete_records(HOSTILE, 0, -1),
        calls.describe_configs(HOSTILE),
        calls.produce(HOSTILE, None, b"v", {HOSTILE: HOSTILE}),
        calls.wake([1]),
        calls.waiting([1]),
        calls.not_waiting([1]),
    ]
    return made


def test_values_never_are_in_the_text() -> None:
    for call in every_call(Calls()):
        assert "DROP" not in call.sql, call.name


def test_schema_is_quoted() -> None:
    for call in every_call(Calls(HOSTILE)):
        assert '"x""; DROP TABLE topic; --"."' + call.name + '"(' in call.sql


def test_each_parameter_is_numbered_and_cast() -> None:
    for call in every_call(Calls()):
        numbers = [int(number) for number in re.findall(r"\$(\d+)::[a-z]", call.sql)]
        assert numbers == list(range(1, len(call.args) + 1)), call.name


def test_append_of_several_batches_is_one_statement_with_one_column_each() -> None:
    batch = AppendBatch(7, 2, 1, 5, None, None, ByteaArray([b"v"]))
    call = Calls().append([batch, batch._replace(partition=3)], 0)
    assert call.sql.count('"append"') == 2
    assert call.args[:2] == (7, 2)
    assert call.args[15:17] == (7, 3)
    assert call.args[10] == call.args[25] == 0
    assert call.decode([[[5, -1, 0], [9, 1000, 1]]]) == [AppendResult(5, -1, 0), AppendResult(9, 1000, 1)]


def test_only_small_appends_are_kept() -> None:
    """Or a producer of a thousand partitions would have the server keep a thousand plans, up to 7 MB each."""
    batch = AppendBatch(7, 0, 1, 5, None, None, ByteaArray([b"v"]))
    calls = Calls()
    for count, kept in ((1, True), (64, True), (65, False), (1000, False)):
        call = calls.append([batch._replace(partition=number) for number in range(count)], 1)
        assert call.prepared is kept
        assert call.sql.count('"append"') == count
    assert sorted(calls._append_sql) == [1, 64]


@pytest.mark.parametrize("name", ["append", "create_topic", "delete_topic", "produce"])
def test_calls_that_commit_say_so(name: str) -> None:
    for call in every_call(Calls()):
        if call.name == name:
            assert call.writes
