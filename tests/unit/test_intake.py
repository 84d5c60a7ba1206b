"""What a producer is given, made into bytes or refused."""

from __future__ import annotations

from typing import Any

import pytest

from logstore._core.batch import Columns
from logstore._core.intake import Intake, as_headers, as_timestamp, check_target
from logstore.errors import InvalidArgumentError, SerializationError
from logstore.serde import from_json, from_text, to_json, to_text

PLAIN = Intake(None, None)


@pytest.mark.parametrize("given", [b"x", bytearray(b"x"), memoryview(b"x")])
def test_bytes_of_any_kind_are_taken(given: Any) -> None:
    assert PLAIN.value(given) == b"x"
    assert type(PLAIN.key(given)) is bytes


def test_bytearray_is_copied() -> None:
    given = bytearray(b"x")
    taken = PLAIN.value(given)
    given[0] = 0
    assert taken == b"x"


@pytest.mark.parametrize("given", ["text", 1, ["x"], {"a": 1}])
def test_anything_else_is_refused_with_advice(given: Any) -> None:
    with pytest.raises(InvalidArgumentError, match="set value_serializer"):
        PLAIN.value(given)


def test_serializer_is_not_asked_about_none() -> None:
    def explode(item: object) -> bytes:
        raise AssertionError

    assert Intake(explode, explode).key(None) is None


def test_serializer_that_fails_is_named() -> None:
    with pytest.raises(SerializationError, match="key_serializer raised TypeError") as caught:
        Intake(to_text, None).key(5)
    assert isinstance(caught.value.__cause__, TypeError)


def test_serializer_that_returns_something_else_is_named() -> None:
    with pytest.raises(SerializationError, match="value_serializer returned str"):
        Intake(None, str).value(5)  # type: ignore[arg-type]


def test_columns() -> None:
    intake = Intake(to_text, to_json)
    assert intake.columns([{"a": 1}, None], ["k", None], [[("h", b"1")], None], [5, 6], 9) == Columns(
        [b"k", None], [b'{"a":1}', None], [5, 6], [[("h", b"1")], None]
    )


def test_columns_have_defaults() -> None:
    assert PLAIN.columns(iter([b"a", b"b"]), None, None, None, 9) == Columns(
        [None] * 2, [b"a", b"b"], [9] * 2, None
    )
    assert PLAIN.columns([b"a", b"b"], None, None, 5, 9).timestamps == [5, 5]


@pytest.mark.parametrize(
    "arguments",
    [
        ([b"a"], [b"k", b"l"], None, None),
        ([b"a"], None, [[], []], None),
        ([b"a"], None, None, [1, 2]),
        ([b"a", b"b"], [b"k"], None, None),
    ],
)
def test_columns_of_different_lengths_are_refused(arguments: Any) -> None:
    with pytest.raises(InvalidArgumentError, match="one entry for each record"):
        PLAIN.columns(*arguments, *[9])


@pytest.mark.parametrize("given", ["text", b"bytes", {"a": 1}, 5])
def test_what_is_no_list_of_records_is_refused(given: Any) -> None:
    with pytest.raises(InvalidArgumentError, match="list with one entry for each record"):
        PLAIN.columns(given, None, None, None, 9)


@pytest.mark.parametrize("given", [[b"a", "b"], [1]])
def test_list_with_something_else_in_it_is_refused(given: Any) -> None:
    with pytest.raises(InvalidArgumentError, match="bytes or None"):
        PLAIN.columns(given, None, None, None, 9)


def test_headers_keep_order_repetitions_and_empty_values() -> None:
    given: Any = [("a", b"1"), ("a", None), ("", b""), ("ü", bytearray(b"\xff"))]
    assert as_headers(given) == [("a", b"1"), ("a", None), ("", b""), ("ü", b"\xff")]
    mapping: Any = {"a": b"1"}
    assert as_headers(mapping) == [("a", b"1")]


@pytest.mark.parametrize(
    "given", [5, "ab", [("a",)], [(1, b"")], [("a", "text")], [("a\0", b"")], [("\ud800", b"")]]
)
def test_other_headers_are_refused(given: Any) -> None:
    with pytest.raises(InvalidArgumentError):
        as_headers(given)


@pytest.mark.parametrize("given", [-1, 253_402_300_800_000, 1.5, "1", True])
def test_impossible_timestamp_is_refused(given: Any) -> None:
    with pytest.raises(InvalidArgumentError, match="milliseconds"):
        as_timestamp(given)


@pytest.mark.parametrize(
    ("topic", "partition"), [(None, None), (b"t", None), ("t", -1), ("t", "0"), ("t", True)]
)
def test_impossible_target_is_refused(topic: Any, partition: Any) -> None:
    with pytest.raises(InvalidArgumentError):
        check_target(topic, partition)


def test_serializers_come_back() -> None:
    assert from_text(to_text("é")) == "é"
    assert from_json(to_json({"é": [1, None]})) == {"é": [1, None]}
    with pytest.raises(ValueError, match="not JSON compliant"):
        to_json(float("nan"))
