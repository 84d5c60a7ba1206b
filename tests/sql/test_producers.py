"""Who holds a transactional id."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor

from tests.support.sqllog import Connect, Session, refused, rows, value, wait_until, waits_for_lock

INIT = "SELECT init_producer(%s, %s, %s)"
CHECK = "SELECT check_producer(%s, %s, %s::int2)"


def test_without_a_transactional_id_nothing_is_written(session: Session) -> None:
    ids = {tuple(value(session, INIT, None, None, None)) for _ in range(50)}
    assert len(ids) == 50
    assert {epoch for _, epoch in ids} == {0}
    assert all(0 <= number < 2**63 for number, _ in ids)
    assert max(number for number, _ in ids) > 2**60, "random in all its bits"
    assert value(session, "SELECT count(*) FROM producer") == 0
    session.execute("BEGIN READ ONLY")
    value(session, INIT, None, None, None)


def test_each_holder_fences_the_one_before(session: Session) -> None:
    number, epoch = value(session, INIT, "bank", 60_000, "teller")
    assert epoch == 0
    session.execute(CHECK, ["bank", number, 0])
    assert value(session, INIT, "bank", 1_000, None) == [number, 1]
    error = refused(session, CHECK, "bank", number, 0)
    assert error.sqlstate == "LS014"
    assert json.loads(error.diag.message_detail or "")["current_epoch"] == 1
    assert refused(session, CHECK, "bank", number + 1, 1).sqlstate == "LS014"
    session.execute(CHECK, ["bank", number, 1])
    assert rows(session, "SELECT transactional_id, producer_epoch, timeout_ms, client_id FROM producer") == [
        ("bank", 1, 1000, None)
    ]
    assert value(session, INIT, "other", 60_000, None)[0] != number
    assert refused(session, CHECK, "nobody", number, 0).sqlstate == "LS017"


def test_when_the_epochs_are_used_up_there_is_a_new_id(session: Session) -> None:
    number, _ = value(session, INIT, "bank", 60_000, None)
    session.execute("UPDATE producer SET producer_epoch = 32766")
    assert value(session, INIT, "bank", 60_000, None) == [number, 32767]
    again, epoch = value(session, INIT, "bank", 60_000, None)
    assert again != number
    assert epoch == 0
    assert refused(session, CHECK, "bank", number, 32767).sqlstate == "LS014"


def test_a_new_holder_waits_for_the_commit_of_the_one_before(connect: Connect, session: Session) -> None:
    number, _ = value(session, INIT, "bank", 60_000, None)
    old, new = connect(), connect()
    old.execute("BEGIN")
    old.execute(CHECK, ["bank", number, 0])
    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(value, new, INIT, "bank", 60_000, None)
        wait_until(lambda: waits_for_lock(session, new))
        old.execute("COMMIT")
        assert coming.result() == [number, 1]
    assert refused(old, CHECK, "bank", number, 0).sqlstate == "LS014"


def test_the_fence_is_durable(connect: Connect) -> None:
    careless = connect(synchronous_commit="off")
    careless.execute("BEGIN")
    value(careless, INIT, "bank", 60_000, None)
    assert value(careless, "SHOW synchronous_commit") == "on"
    careless.execute("COMMIT")
    assert value(careless, "SHOW synchronous_commit") == "off"


def test_values_that_cannot_be(session: Session) -> None:
    for name, timeout_ms in (("", 1), ("x" * 1025, 1), ("a", 0), ("a", 900_001), ("a", None)):
        assert refused(session, INIT, name, timeout_ms, None).sqlstate == "LS012", (name, timeout_ms)
    value(session, INIT, "x" * 1024, 900_000, "ü")
