"""Producing from SQL puts a record where the clients would, with whatever it carries."""

from __future__ import annotations

import json
import random
import zlib
from typing import Any

import pytest

from tests.support.sqllog import Connect, Session, refused, rows, value


def drained(session: Session) -> int:
    """How many records are in the log now that were not."""
    count: int = value(session, "SELECT records FROM drain()")
    return count


@pytest.fixture
def topic(session: Session) -> int:
    created: int = value(session, "SELECT create_topic('t', 7)")
    return created


def test_a_key_is_where_the_clients_put_it(session: Session, topic: int) -> None:
    dice = random.Random(7)
    keys = [b"", b"\x00", b"a", "ключ".encode(), b"\xff" * 300]
    keys += [dice.randbytes(dice.randrange(1, 40)) for _ in range(100)]
    answers = rows(
        session,
        "SELECT k, key_crc32(k), produce('t', k, 'v'::text) FROM unnest(%s::bytea[]) k",
        keys,
    )
    assert [(key, zlib.crc32(key), zlib.crc32(key) % 7) for key in keys] == answers
    assert drained(session) == len(keys)
    assert {(key, partition) for key, _, partition in answers} == set(
        rows(session, "SELECT key, partition FROM records")
    )
    assert value(session, "SELECT produce('t', 'ключ', 'v')") == zlib.crc32("ключ".encode()) % 7


def test_without_a_key_any_partition_will_do(session: Session, topic: int) -> None:
    chosen = {
        partition
        for (partition,) in rows(session, "SELECT produce('t', null, 'v') FROM generate_series(1, 200)")
    }
    assert chosen == set(range(7))


def test_a_named_partition_wins(session: Session, topic: int) -> None:
    assert value(session, "SELECT produce('t', 'k', 'v', partition => 3)") == 3
    for partition in (7, -1):
        assert refused(session, "SELECT produce('t', 'k', 'v', null, %s)", partition).sqlstate == "LS001"
    assert refused(session, "SELECT produce('nope', 'k', 'v')").sqlstate == "LS001"


CONTENTS = [
    ("'k', 'grüße'", b"k", "grüße".encode()),
    ("'k', null", b"k", None),
    ("null, null", None, None),
    ("'k', '{\"a\": [1, null]}'::jsonb", b"k", b'{"a": [1, null]}'),
    ("'k', '\\x00ff'::bytea", b"k", b"\x00\xff"),
    ("'\\x00'::bytea, '\\xff'::bytea", b"\x00", b"\xff"),
    ("'\\x00'::bytea, 'text'::text", b"\x00", b"text"),
    ("'\\x00'::bytea, '5'::jsonb", b"\x00", b"5"),
]


def test_text_json_and_bytes(session: Session, topic: int) -> None:
    for call, _, _ in CONTENTS:
        value(session, f"SELECT produce('t', {call}, partition => 0)")
    assert drained(session) == len(CONTENTS)
    assert rows(session, 'SELECT key, value FROM records ORDER BY "offset"') == [
        (key, stored) for _, key, stored in CONTENTS
    ]


HEADERS: list[tuple[Any, Any]] = [
    (None, []),
    ({}, []),
    ([], []),
    ({"trace": "4711"}, [{"key": "trace", "value": "4711"}]),
    ({"a": None}, [{"key": "a", "value": None}]),
    (
        [
            {"key": "k", "value": "1"},
            {"key": "j", "value": ""},
            {"key": "k", "value": "2"},
            {"key": "", "value": None},
        ],
        [
            {"key": "k", "value": "1"},
            {"key": "j", "value": ""},
            {"key": "k", "value": "2"},
            {"key": "", "value": None},
        ],
    ),
    ([{"key": "raw", "base64": "/wA="}], [{"key": "raw", "base64": "/wA="}]),
    ([{"key": "raw", "base64": "aGk="}], [{"key": "raw", "value": "hi"}]),
]


def test_headers_keep_order_repeats_and_bytes(session: Session, topic: int) -> None:
    for given, _ in HEADERS:
        headers = None if given is None else json.dumps(given)
        value(session, "SELECT produce('t', 'k', 'v', %s::jsonb)", headers)
    assert drained(session) == len(HEADERS)
    assert rows(session, 'SELECT headers FROM records ORDER BY "offset"') == [(back,) for _, back in HEADERS]


MISSHAPEN = [
    "5",
    '"a"',
    "[1]",
    '[{"value": "no key"}]',
    '[{"key": 5}]',
    '{"a": 5}',
    '{"a": {}}',
    '[{"key": "a", "base64": "!"}]',
    '[{"key": "a", "base64": "abc"}]',
    '[["a", "b"]]',
]


def test_headers_of_another_shape(session: Session, topic: int) -> None:
    for shape in MISSHAPEN:
        error = refused(session, "SELECT produce('t', 'k', 'v', %s::jsonb)", shape)
        assert error.sqlstate == "LS010", shape
    assert drained(session) == 0


def test_it_is_part_of_the_transaction(connect: Connect, session: Session, topic: int) -> None:
    writer = connect()
    writer.execute("BEGIN")
    writer.execute("SET LOCAL synchronous_commit = remote_apply")
    writer.execute("SELECT produce('t', 'k', 'v')")
    assert value(writer, "SHOW synchronous_commit") == "remote_apply"
    assert drained(session) == 0
    writer.execute("ROLLBACK")
    assert drained(session) == 0
