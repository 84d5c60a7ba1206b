"""What `logstore produce` makes of a line."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from logstore.cli.display import json_formatter
from logstore.cli.failures import InputError
from logstore.cli.lines import Line, json_parser, line_parser
from logstore.records import CREATE_TIME, ConsumerRecord


def test_a_line_is_a_value_byte_for_byte() -> None:
    parse = line_parser(None, None)
    assert parse(b"\xff\x00 a:b\r", 1) == Line(b"\xff\x00 a:b\r")
    assert parse(b"", 1) == Line(b"")


def test_a_key_ends_at_the_first_separator() -> None:
    parse = line_parser(b"::", None)
    assert parse(b"k::v::w", 1) == Line(b"v::w", b"k")
    assert parse(b"::v", 1) == Line(b"v", b"")


def test_a_line_without_the_separator_is_refused_by_number() -> None:
    with pytest.raises(InputError, match=r"Line 7: there is no key separator ':' in 'hello'"):
        line_parser(b":", None)(b"hello", 7)


def test_the_null_value_stands_for_a_tombstone() -> None:
    parse = line_parser(b":", b"NULL")
    assert parse(b"k:NULL", 1) == Line(None, b"k")
    assert parse(b"k:NULLs", 1) == Line(b"NULLs", b"k")


def test_json_carries_everything_a_record_has() -> None:
    line = (
        b'{"key": "k", "value": {"a": [1, "\xc3\xa9"]}, "partition": 3, "timestamp": 5,'
        b' "headers": [["h", "1"], ["h", null], ["b", {"base64": "/w=="}]]}'
    )
    assert json_parser()(line, 1) == Line(
        '{"a":[1,"é"]}'.encode(), b"k", [("h", b"1"), ("h", None), ("b", b"\xff")], 3, 5
    )
    assert json_parser()(b'{"headers": {"a": "b"}}', 1) == Line(None, None, [("a", b"b")])
    assert json_parser(keep_partition=False)(line, 1).partition is None


def test_json_times_may_be_iso() -> None:
    assert json_parser()(b'{"timestamp": "1970-01-01T00:00:01Z"}', 1).timestamp_ms == 1000


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"hello", "not JSON"),
        (b"\xff", "not JSON (not UTF-8)"),
        (b'{"value": ' + b"[" * 100_000, "not JSON (nested too deeply)"),
        (b'{"value": ' + b"1" * 5000 + b"}", "not JSON (a number with too many digits)"),
        (b"[1]", "not a JSON object"),
        (b'{"vlaue": 1}', "unknown field 'vlaue'. Did you mean 'value'?"),
        (b'{"value": "a", "value_base64": "YQ=="}', "value and value_base64 are both given"),
        (b'{"value_base64": "a"}', "value_base64 is not base64"),
        (b'{"value_base64": 5}', "value_base64 is not base64"),
        (b'{"value": "\\ud800"}', "value is no text"),
        (b'{"partition": -1}', "partition must be a whole number from 0, not -1"),
        (b'{"partition": true}', "partition must be a whole number"),
        (b'{"timestamp": "soon"}', "timestamp must be"),
        (b'{"timestamp": -5}', "timestamp must be"),
        (b'{"headers": "x"}', "headers must be"),
        (b'{"headers": [["a"]]}', "a header must be"),
        (b'{"headers": {"a": 1}}', "header 'a' must be"),
    ],
)
def test_a_wrong_json_line_is_refused_with_number_and_reason(line: bytes, reason: str) -> None:
    with pytest.raises(InputError) as raised:
        json_parser()(line, 12)
    assert raised.value.message.startswith("Line 12: ")
    assert reason in raised.value.message


BYTES = st.one_of(st.none(), st.binary(max_size=20))


@given(
    key=BYTES,
    value=BYTES,
    headers=st.lists(st.tuples(st.text(max_size=5).filter(lambda t: "\x00" not in t), BYTES), max_size=3),
    partition=st.integers(0, 9),
    timestamp=st.integers(0, 2**40),
)
def test_what_consume_prints_as_json_is_read_back_to_the_same_record(
    key: bytes | None,
    value: bytes | None,
    headers: list[tuple[str, bytes | None]],
    partition: int,
    timestamp: int,
) -> None:
    record = ConsumerRecord("t", partition, 4, timestamp, CREATE_TIME, key, value, tuple(headers), 0)
    printed = json_formatter(record)
    assert printed.count(b"\n") == 1
    json.loads(printed)
    read = json_parser()(printed.rstrip(b"\n"), 1)
    assert read == Line(value, key, headers, partition, timestamp)
