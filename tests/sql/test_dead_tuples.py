"""Appending makes no dead tuples, whoever else holds a transaction open."""

from __future__ import annotations

import json

import pytest

from tests.support.sqllog import Connect, Session, append, rows, value

pytestmark = pytest.mark.every_server


def dead(session: Session) -> dict[str, int]:
    session.execute("SELECT pg_stat_force_next_flush()")
    return dict(
        rows(
            session,
            "SELECT relname::text, n_dead_tup FROM pg_stat_user_tables WHERE schemaname = 'logstore' AND"
            " n_dead_tup > 0",
        )
    )


@pytest.mark.parametrize("held", [False, True])
def test_a_thousand_appends_leave_nothing_behind(connect: Connect, session: Session, held: bool) -> None:
    topic = value(session, "SELECT create_topic('t', 4, %s)", json.dumps({"segment.bytes": 40_000}))
    holder = connect()
    if held:
        holder.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
        rows(holder, "SELECT * FROM topic_partition")
    for number in range(1000):
        append(session, topic, [b"x" * 100] * 4, number % 4)
    rolls = value(session, "SELECT active_segment FROM topic")
    assert rolls >= 2
    found = dead(session)
    assert not [name for name in found if name.startswith("b_")]
    assert found.pop("topic", 0) <= rolls + 3, "three are from its creation"
    assert found.pop("topic_partition", 0) <= 4 * rolls
    assert found == {}
