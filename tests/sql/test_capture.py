"""Capturing a table: a record for each change, in the transaction that makes it."""

from __future__ import annotations

import json
from typing import Any

import psycopg
import pytest

from logstore import migrations
from tests.support.servers import Server
from tests.support.sqllog import Connect, Session, refused, rows, value


@pytest.fixture(autouse=True)
def tables(session: Session) -> None:
    session.execute("SELECT create_topic('t', 4)")
    session.execute('CREATE TABLE public.orders (id int4 PRIMARY KEY, state text, "At" date)')


def changes(session: Session) -> list[tuple[Any, dict[str, Any]]]:
    """Key and value of what has been produced, in the order in which it was staged."""
    found = rows(
        session,
        "SELECT convert_from(key, 'UTF8'), convert_from(value, 'UTF8') FROM staged ORDER BY seq",
    )
    return [(key and json.loads(key), json.loads(text)) for key, text in found]


def order(number: int, state: str | None = None) -> dict[str, Any]:
    return {"id": number, "state": state, "At": "2026-01-02"}


def change(op: str, before: dict[str, Any] | None, after: dict[str, Any] | None) -> dict[str, Any]:
    return {"op": op, "table": "public.orders", "before": before, "after": after}


def test_every_change_in_its_transaction(connect: Connect, session: Session) -> None:
    session.execute("SELECT capture('public.orders', 't')")
    session.execute("INSERT INTO public.orders VALUES (1, 'new', '2026-01-02'), (2, null, '2026-01-02')")
    session.execute("UPDATE public.orders SET state = 'paid' WHERE id = 1")
    session.execute("BEGIN")
    session.execute("DELETE FROM public.orders")
    session.execute("ROLLBACK")
    session.execute("DELETE FROM public.orders WHERE id = 2")
    assert changes(session) == [
        ({"id": 1}, change("insert", None, order(1, "new"))),
        ({"id": 2}, change("insert", None, order(2))),
        ({"id": 1}, change("update", order(1, "new"), order(1, "paid"))),
        ({"id": 2}, change("delete", order(2), None)),
    ]
    assert value(session, "SELECT records FROM drain()") == 4
    # What concerns one row is in one partition, in the order of the changes.
    first = rows(
        session, "SELECT value_json ->> 'op' FROM records WHERE key_text = '{\"id\": 1}' ORDER BY \"offset\""
    )
    assert first == [("insert",), ("update",)]


def test_a_key_that_changes(session: Session) -> None:
    session.execute("SELECT capture('public.orders', 't')")
    session.execute("INSERT INTO public.orders VALUES (1, null, '2026-01-02')")
    session.execute("UPDATE public.orders SET id = 9")
    assert changes(session)[1:] == [
        ({"id": 1}, change("delete", order(1), None)),
        ({"id": 9}, change("insert", None, order(9))),
    ]


def test_other_keys_and_operations(session: Session) -> None:
    session.execute("SELECT capture('public.orders', 't', '{At,state}', '{delete,truncate}')")
    session.execute("INSERT INTO public.orders VALUES (1, 'a', '2026-01-02'), (2, 'b', '2026-01-02')")
    session.execute("UPDATE public.orders SET state = 'c' WHERE id = 2")
    session.execute("DELETE FROM public.orders WHERE id = 1")
    session.execute("TRUNCATE public.orders")
    assert changes(session) == [
        ({"At": "2026-01-02", "state": "a"}, change("delete", order(1, "a"), None)),
        (None, change("truncate", None, None)),
    ]
    assert rows(session, 'SELECT "table"::text, topic, operations, enabled FROM captures ORDER BY 3') == [
        ("public.orders", "t", ["delete"], True),
        ("public.orders", "t", ["truncate"], True),
    ]
    session.execute("SELECT capture('public.orders', 't', '{}', '{insert}')")
    assert rows(session, "SELECT operations FROM captures") == [(["insert"],)]
    session.execute("INSERT INTO public.orders VALUES (3, null, '2026-01-02')")
    assert changes(session)[2:] == [(None, change("insert", None, order(3)))]


def test_two_topics_and_back(session: Session) -> None:
    session.execute("SELECT create_topic('u.with-a.name', 1)")
    session.execute("SELECT capture('public.orders', 't'), capture('public.orders', 'u.with-a.name')")
    session.execute("INSERT INTO public.orders VALUES (1)")
    assert len(changes(session)) == 2
    assert value(session, "SELECT uncapture('public.orders', 't')") == 1
    session.execute("INSERT INTO public.orders VALUES (2)")
    assert len(changes(session)) == 3
    assert rows(session, "SELECT topic FROM captures") == [("u.with-a.name",)]
    assert value(session, "SELECT uncapture('public.orders')") == 1
    assert value(session, "SELECT uncapture('public.orders')") == 0
    session.execute("INSERT INTO public.orders VALUES (3)")
    assert len(changes(session)) == 3


def test_a_partitioned_table_with_an_odd_name(session: Session) -> None:
    session.execute(
        'CREATE TABLE public."odd ""name" (a int4, b int4, PRIMARY KEY (b, a)) PARTITION BY LIST (a)'
    )
    session.execute('CREATE TABLE public.leaf PARTITION OF public."odd ""name" FOR VALUES IN (1)')
    session.execute("SELECT capture('public.\"odd \"\"name\"', 't')")
    session.execute('INSERT INTO public."odd ""name" VALUES (1, 2)')
    ((key, found),) = changes(session)
    assert key == {"b": 2, "a": 1}
    assert found["table"] == 'public."odd ""name"'


def test_a_topic_that_is_gone_is_not_passed_over(session: Session) -> None:
    """Better no change than one that nobody hears of."""
    session.execute("SELECT capture('public.orders', 't')")
    session.execute("SELECT delete_topic('t')")
    assert refused(session, "INSERT INTO public.orders VALUES (1)").sqlstate == "LS001"
    session.execute("SELECT uncapture('public.orders')")
    session.execute("INSERT INTO public.orders VALUES (1)")


@pytest.mark.parametrize(
    ("arguments", "sqlstate"),
    [
        ("'public.orders', 'missing'", "LS001"),
        ("'public.missing', 't'", "42P01"),
        ("'public.orders', 't', '{id,missing}'", "LS036"),
        ("'public.orders', 't', operations => '{upsert}'", "LS036"),
        ("'public.orders', 't', operations => '{}'", "LS036"),
        ("'public.orders', 't', operations => '{insert,null}'", "LS036"),
        ("'public.keyless', 't'", "LS036"),
    ],
)
def test_what_cannot_be(session: Session, arguments: str, sqlstate: str) -> None:
    session.execute("CREATE TABLE public.keyless (a int4)")
    assert refused(session, f"SELECT capture({arguments})").sqlstate == sqlstate
    assert rows(session, "SELECT FROM captures") == []


def test_who_writes_needs_no_right_to_the_log(connect: Connect, session: Session, log_dsn: str) -> None:
    role = f"logstore_test_writer_{session.info.backend_pid}"
    session.execute(f'CREATE ROLE "{role}"')
    session.execute(f'GRANT "{role}" TO CURRENT_USER')
    try:
        session.execute("SELECT capture('public.orders', 't')")
        session.execute(f'GRANT INSERT ON public.orders TO "{role}"')
        session.execute(f'SET ROLE "{role}"')
        session.execute("INSERT INTO public.orders VALUES (1)")
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            session.execute("SELECT logstore.produce('t', 'k', 'v')")
        session.execute("RESET ROLE")
        assert len(changes(session)) == 1
    finally:
        session.execute("RESET ROLE")
        session.execute(f'REVOKE ALL ON public.orders FROM "{role}"')
        session.execute(f'DROP ROLE "{role}"')


def test_a_log_with_a_long_name(release: Server) -> None:
    dsn = release.create(migrated=False)
    try:
        migrations.upgrade(dsn, "\u0436" * 28)
        with psycopg.connect(dsn, autocommit=True) as session:
            session.execute("SELECT set_config('search_path', %s, false)", ["\u0436" * 28])
            session.execute("CREATE TABLE public.orders (id int4 PRIMARY KEY)")
            for topic in ("t", "u", "t"):
                session.execute(
                    "SELECT create_topic(%s, 1, null, true), capture('public.orders', %s)", [topic] * 2
                )
            assert rows(session, "SELECT topic FROM captures ORDER BY 1") == [("t",), ("u",)]
            assert value(session, "SELECT uncapture('public.orders')") == 2
    finally:
        release.drop(dsn)
