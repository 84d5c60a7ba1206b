"""Every record is one SELECT away, whatever is in it."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.sqllog import NOW_MS, Connect, Session, append, rows, value

pytestmark = pytest.mark.every_server

TEXTS: list[tuple[bytes | None, str | None, Any]] = [
    (None, None, None),
    (b"", "", None),
    (b"plain", "plain", None),
    (b"back\\slash", "back\\slash", None),
    ("grüße 日本".encode(), "grüße 日本", None),
    (b"zero\x00byte", None, None),
    (b"\xff\xfe", None, None),
    (b"\xc3", None, None),
    (b"\xed\xa0\x80", None, None),
    (b'{"a": [1, "\\u00e9"]}', '{"a": [1, "\\u00e9"]}', {"a": [1, "é"]}),
    (b"5", "5", 5),
    (b" null ", " null ", None),
    (b'{"a": ', '{"a": ', None),
    (b'"\\u0000"', '"\\u0000"', None),
    (b'"\\ud800"', '"\\ud800"', None),
    (b"[" * 100_000, "[" * 100_000, None),
    (b"[" * 1900, "[" * 1900, None),
    (b'{"n": 1e999999}', '{"n": 1e999999}', None),
]


@pytest.mark.parametrize("one_by_one", [False, True])
def test_text_and_json_are_null_where_there_is_none(session: Session, one_by_one: bool) -> None:
    topic = value(session, "SELECT create_topic('t', 1)")
    contents = [content for content, _, _ in TEXTS]
    for batch in [[content] for content in contents] if one_by_one else [contents]:
        append(session, topic, batch, keys=batch)
    assert rows(
        session, 'SELECT key, value, key_text, value_text, value_json FROM records ORDER BY "offset"'
    ) == [(content, content, text, text, json) for content, text, json in TEXTS]
    assert value(session, "SELECT value_json::text FROM records WHERE value_text = ' null '") == "null"


def test_all_columns(session: Session) -> None:
    topic = value(session, "SELECT create_topic('t', 2)")
    append(session, topic, 1)
    append(session, topic, [b"a", b"b"], 1, keys=[b"k", None], timestamps=[NOW_MS + 1, NOW_MS])
    headers = [(1, "h", b"1"), (1, "h", None), (3, "z", b"\xff")]
    append(session, topic, 3, 1, headers=headers)
    got = rows(
        session,
        """SELECT topic, partition, "offset", (extract(epoch FROM "timestamp") * 1000)::int8, key, value,
                  headers
           FROM records ORDER BY partition, "offset" """,
    )
    assert got == [
        ("t", 0, 0, NOW_MS, None, b"value", []),
        ("t", 1, 0, NOW_MS + 1, b"k", b"a", []),
        ("t", 1, 1, NOW_MS, None, b"b", []),
        ("t", 1, 2, NOW_MS, None, b"value", [{"key": "h", "value": "1"}, {"key": "h", "value": None}]),
        ("t", 1, 3, NOW_MS, None, b"value", []),
        ("t", 1, 4, NOW_MS, None, b"value", [{"key": "z", "base64": "/w=="}]),
    ]
    columns = (
        "SELECT array_agg(attname::text ORDER BY attnum) FROM pg_attribute WHERE attnum > 0 AND attrelid ="
        " %s::regclass"
    )
    assert value(session, columns, "records") == value(session, columns, "logstore_topics.t")
    assert rows(session, "SELECT * FROM logstore_topics.t ORDER BY 2, 3") == rows(
        session, "SELECT * FROM records ORDER BY 2, 3"
    )


def test_a_sparse_batch_keeps_its_offsets(session: Session) -> None:
    topic = value(session, "SELECT create_topic('t', 1)")
    append(session, topic, 3, timestamps=[NOW_MS, NOW_MS + 5, NOW_MS + 9])
    session.execute("UPDATE batches SET last_offset = 7, offset_deltas = '{0,4,7}'")
    assert rows(session, 'SELECT "offset" FROM records ORDER BY 1') == [(0,), (4,), (7,)]
    assert rows(session, "SELECT \"offset\" FROM read('t', 0, 2, 7)") == [(4,)]
    assert rows(session, "SELECT \"offset\" FROM list_offsets(%s, '{0}', %s)", [topic], [NOW_MS + 1]) == [
        (4,)
    ]
    assert append(session, topic)[0] == 8


def test_one_topic_of_many_is_read_from_its_own_leaves(connect: Connect, session: Session) -> None:
    for number in range(5):
        topic = value(session, "SELECT create_topic(%s, 1)", f"t{number}")
        append(session, topic)
    plan = "\n".join(
        line
        for (line,) in rows(
            session,
            "EXPLAIN (ANALYZE, COSTS OFF, TIMING OFF, SUMMARY OFF) SELECT value FROM records WHERE topic ="
            " 't3'",
        )
    )
    assert plan.count("(never executed)") == 4
    assert plan.count(" on b_4_0 ") == 1
    assert "b_4_0 b_4 (never" not in plan
    plan = str(rows(session, "EXPLAIN (COSTS OFF) SELECT value FROM logstore_topics.t3"))
    assert "b_4_0" in plan
    assert "b_3_0" not in plan


def test_columns_nobody_asks_for_are_not_made(session: Session) -> None:
    topic = value(session, "SELECT create_topic('t', 1)")
    append(session, topic, 3)
    for source in ("records", "logstore_topics.t", "read('t')"):
        plan = str(rows(session, f"EXPLAIN (VERBOSE, COSTS OFF) SELECT count(*) FROM {source}"))  # noqa: S608
        assert "checked_text" not in plan
        assert "checked_json" not in plan
