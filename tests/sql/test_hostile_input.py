"""Nothing a user writes is ever executed, and no name is too strange for the log's own schema."""

from __future__ import annotations

import json

import psycopg
import pytest

from logstore import migrations
from tests.support.servers import Server
from tests.support.sqllog import Session, append, refused, rows, value

NASTY = [
    "",
    ".",
    "..",
    "a b",
    "a/b",
    "ä",
    "a\n",
    "x'; DROP TABLE topic; --",
    'x"; DROP TABLE topic; --',
    "$$; DROP TABLE topic; --",
    "%I%s",
    "t" * 250,
    "a\\",
    "a;b",
    "a,b",
    None,
]

CALLS = [
    "topic_id_of(%s)",
    "delete_topic(%s)",
    "produce(%s, 'k', 'v')",
    "read(%s)",
    "describe_configs(%s)",
    "alter_topic(%s, null)",
    "add_partitions(%s, 5)",
    "delete_records(%s, 0, 0)",
]


def test_names_kafka_would_refuse(session: Session) -> None:
    for name in NASTY:
        error = refused(session, "SELECT create_topic(%s, 1)", name)
        assert error.sqlstate == "LS003", name
        for call in CALLS:
            assert refused(session, f"SELECT {call}", name).sqlstate == "LS001", (name, call)
    assert rows(session, "SELECT FROM topic") == []


def test_records_and_configs_are_only_data(session: Session) -> None:
    topic = value(session, "SELECT create_topic('t', 1)")
    for text in filter(None, NASTY):
        stored = text.encode()
        append(session, topic, [stored], keys=[stored], headers=[(1, text, stored)])
        for name, content in (
            (text, "1"),
            ("retention.ms", text),
            ("cleanup.policy", text),
            ("compression.type", text),
        ):
            error = refused(session, "SELECT alter_topic('t', %s)", json.dumps({name: content}))
            assert error.sqlstate == "LS004"
    texts = list(filter(None, NASTY))
    assert rows(session, 'SELECT key_text, value_text, headers FROM records ORDER BY "offset"') == [
        (text, text, [{"key": text, "value": text}]) for text in texts
    ]


@pytest.mark.parametrize(
    "schema", ["Log", 'we"ird', "o'clock", "log; --", "100%", "%I", "$$", "the log", "ü" * 28]
)
def test_strange_schemas(release: Server, schema: str) -> None:
    dsn = release.create(migrated=False)
    try:
        migrations.upgrade(dsn, schema)
        with psycopg.connect(dsn, autocommit=True) as session:
            session.execute("SELECT set_config('search_path', quote_ident(%s), false)", (schema,))
            topic = value(session, "SELECT create_topic('t', 2, '{\"segment.bytes\": 20}')")
            for _ in range(3):
                append(session, topic)
            assert value(session, "SELECT count(*) FROM read('t')") == 3
            views = session.execute("SELECT quote_ident(%s)", (schema + "_topics",)).fetchone()
            assert views is not None
            assert value(session, f"SELECT count(*) FROM {views[0]}.t") == 3  # noqa: S608
            session.execute("SELECT wake(%s), delete_topic('t')", ([topic],))
            while found := rows(session, "SELECT statement FROM next_reclaim()"):
                session.execute(found[0][0])
            assert rows(session, "SELECT FROM deleted_topic") == []
        migrations.downgrade(dsn, schema, "base")
        assert migrations.status(dsn, schema).current is None
    finally:
        release.drop(dsn)
