"""What `logstore consume` makes of a record."""

from __future__ import annotations

import json

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

from logstore.cli.display import json_formatter, raw_formatter, template_formatter, text_formatter
from logstore.records import CREATE_TIME, LOG_APPEND_TIME, ConsumerRecord


def record(
    value: bytes | None, key: bytes | None = None, headers: tuple[tuple[str, bytes | None], ...] = ()
) -> ConsumerRecord:
    return ConsumerRecord("orders", 2, 7, 1_000, CREATE_TIME, key, value, headers, 0)


def test_text_is_the_value_on_one_line() -> None:
    assert text_formatter()(record(b"hello\tworld")) == b"hello\tworld\n"
    assert text_formatter()(record(None)) == b"(null)\n"
    assert text_formatter()(record("é ✓".encode())) == "é ✓\n".encode()


def test_fields_come_before_the_value() -> None:
    show = text_formatter(("timestamp", "partition", "offset", "key", "headers", "topic"))
    assert show(record(b"v", b"k", (("a", b"1"), ("b", None)))) == (
        b"1970-01-01T00:00:01.000Z\t2\t7\tk\ta=1,b=(null)\torders\tv\n"
    )


def test_nothing_reaches_the_terminal_that_could_drive_it() -> None:
    hostile = "\x1b[2J\x07\x9b\r\n\u202egnp.exe".encode()
    assert text_formatter()(record(hostile)) == b"\\x1b[2J\\x07\\x9b\\r\\n\\u202egnp.exe\n"
    assert text_formatter()(record(b"\xff\xfeok")) == b"\\xff\\xfeok\n"
    assert text_formatter(("key", "headers"))(record(b"v", b"\x1b", (("\x1b", b"\x1b"),))) == (
        b"\\x1b\t\\x1b=\\x1b\tv\n"
    )


@given(st.binary(), st.binary(), st.text().filter(lambda text: "\x00" not in text))
def test_a_record_is_one_printable_line_whatever_is_in_it(value: bytes, key: bytes, name: str) -> None:
    name = name.encode("utf-8", "ignore").decode()
    shown = text_formatter(("key", "headers"))(record(value, key, ((name, value),))).decode("utf-8")
    assert shown.endswith("\n")
    assert not any(ord(character) < 32 and character != "\t" for character in shown[:-1])
    assert not any(127 <= ord(character) < 160 for character in shown)


def test_raw_is_the_bytes_themselves() -> None:
    assert raw_formatter(record(b"\xff\x1b")) == b"\xff\x1b\n"
    assert raw_formatter(record(None)) == b""


def test_json_has_stable_keys_and_marks_binary() -> None:
    document = json.loads(json_formatter(record(b"\xff", b"k", (("h", b"\xfe"),))))
    assert document == {
        "topic": "orders",
        "partition": 2,
        "offset": 7,
        "timestamp": 1000,
        "timestamp_type": "CreateTime",
        "key": "k",
        "value": None,
        "value_base64": "/w==",
        "headers": [["h", {"base64": "/g=="}]],
    }
    appended = record(b"v")._replace(timestamp_type=LOG_APPEND_TIME)
    assert json.loads(json_formatter(appended))["timestamp_type"] == "LogAppendTime"


def test_a_template_prints_fields_with_formats() -> None:
    render = template_formatter(r"{partition}:{offset:>4}\t{time} {key}={value} {{{size}}}")
    assert render(record(b"v\x1b", b"k")) == b"2:   7\t1970-01-01T00:00:01.000Z k=v\\x1b {2}\n"


@pytest.mark.parametrize(
    "template",
    ["{nothing}", "{key.__class__}", "{key[0]}", "{}", "{key!r}", "{", "{offset:{size}}", "{key:d}"],
)
def test_a_template_can_only_print(template: str) -> None:
    with pytest.raises(click.BadParameter):
        template_formatter(template)
