"""Quotas: whom they are for, what is charged, and that nobody else notices."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest

from tests.support.servers import Server
from tests.support.sqllog import Connect, Session, append, refused, rows, value, waits_for_lock

DEFAULT = "<default>"
SECOND_MS = 1_000
START_MS = 1_800_000_000_000

Clock = Callable[[int], None]


@pytest.fixture
def clock(session: Session) -> Clock:
    """Sets the log's time, in ms after a beginning."""

    def at(ms: int) -> None:
        session.execute(
            "CREATE OR REPLACE FUNCTION clock_ms() RETURNS int8 LANGUAGE sql VOLATILE"
            f" RETURN {START_MS + ms}::int8"
        )

    at(0)
    return at


@pytest.fixture
def topic(session: Session) -> int:
    made: int = value(session, "SELECT create_topic('t', 2)")
    return made


def alter(session: Session, role: str | None, client_id: str | None, **rates: int | None) -> None:
    session.execute("SELECT alter_client_quota(%s, %s, %s)", (role, client_id, json.dumps(rates)))


def charge(session: Session, kind: str, size: int, *, refusing: bool = False) -> int:
    told: int = value(session, "SELECT charge_quota(%s, %s, %s)", kind, size, refusing)
    return told


def fetched(session: Session, topic: int, offset: int = 0, most: int = 1 << 20) -> list[tuple[int, int, int]]:
    """idx, record_count and size of what a fetch brings."""
    return [
        (idx, count, size)
        for idx, base, count, size in rows(
            session,
            'SELECT idx, base_offset, record_count, size_bytes FROM "fetch"(ARRAY[%s::int4], ARRAY[0], '
            "ARRAY[%s::int8], %s, %s)",
            topic,
            offset,
            most,
            most,
        )
        if base is not None or not idx
    ]


def throttled(session: Session) -> list[tuple[Any, ...]]:
    return rows(
        session, "SELECT role, client_id, quota, rate, throttle_time_ms FROM quota_usage ORDER BY 1, 2, 3, 4"
    )


# -- whom a quota is for


def test_the_most_specific_quota_counts(session: Session, connect: Connect) -> None:
    role = value(session, "SELECT session_user::text")
    order = [
        ("", DEFAULT),
        ("", "etl"),
        (DEFAULT, ""),
        (DEFAULT, DEFAULT),
        (DEFAULT, "etl"),
        (role, ""),
        (role, DEFAULT),
        (role, "etl"),
    ]
    client = connect(application_name="etl")
    other = connect(application_name="other")
    for rate, (whose, which) in enumerate(order, 1):
        alter(session, whose, which, producer_byte_rate=rate)
        # A fetch has no quota yet, whatever there is for producing.
        assert rows(client, "SELECT * FROM quota_of('fetch')") == []
        ((_, _, found, _),) = rows(client, "SELECT * FROM quota_of('produce')")
        assert found == rate, (whose, which)
    ((shares_role, shares_client, rate, _),) = rows(other, "SELECT * FROM quota_of('produce')")
    assert (shares_role, shares_client, rate) == (role, "other", 7), "the default is each one's own"
    for whose, which in reversed(order[4:]):
        alter(session, whose, which, producer_byte_rate=None)
    ((shares_role, shares_client, rate, _),) = rows(client, "SELECT * FROM quota_of('produce')")
    assert (shares_role, shares_client, rate) == (role, "etl", 4)


def test_each_kind_is_found_by_itself(session: Session, connect: Connect) -> None:
    alter(session, None, "etl", producer_byte_rate=10)
    alter(session, None, DEFAULT, producer_byte_rate=20, consumer_byte_rate=30)
    client = connect(application_name="etl")
    assert [value(client, "SELECT rate FROM quota_of(%s)", kind) for kind in ("produce", "fetch")] == [10, 30]


def test_connections_of_an_entity_share_a_bucket_and_others_do_not(
    session: Session, connect: Connect, clock: Clock
) -> None:
    alter(session, None, "etl", producer_byte_rate=1000)
    alter(session, None, DEFAULT, producer_byte_rate=1000)
    one, two, other = (connect(application_name=name) for name in ("etl", "etl", "other"))
    assert charge(one, "produce", 1500) == 500
    assert charge(two, "produce", 100) == 600
    assert charge(other, "produce", 100) == 0
    assert charge(other, "produce", 1000) == 100
    assert throttled(session) == [
        (None, "etl", "producer_byte_rate", 1000, 600),
        (None, "other", "producer_byte_rate", 1000, 100),
    ]


# -- setting


@pytest.mark.parametrize(
    ("role", "client_id", "rates", "code"),
    [
        (None, None, {"producer_byte_rate": 1}, "LS012"),
        ("", "", {"producer_byte_rate": 1}, "LS012"),
        (None, "é", {"producer_byte_rate": 1}, "LS012"),
        (None, "a\nb", {"producer_byte_rate": 1}, "LS012"),
        ("r" * 64, None, {"producer_byte_rate": 1}, "LS012"),
        (None, "a", {"bytes": 1}, "LS004"),
        (None, "a", {"producer_byte_rate": 0}, "LS004"),
        (None, "a", {"producer_byte_rate": -1}, "LS004"),
        (None, "a", {"producer_byte_rate": 1.5}, "LS004"),
        (None, "a", {"producer_byte_rate": 1e30}, "LS004"),
        (None, "a", {"consumer_byte_rate": "1"}, "LS004"),
        (None, "a", [1], "LS004"),
    ],
)
def test_nonsense_is_refused(
    session: Session, role: str | None, client_id: str | None, rates: Any, code: str
) -> None:
    error = refused(session, "SELECT alter_client_quota(%s, %s, %s)", role, client_id, json.dumps(rates))
    assert error.sqlstate == code
    assert rows(session, "SELECT * FROM quotas") == []


def test_what_is_not_named_stays_and_what_has_nothing_left_goes(session: Session) -> None:
    alter(session, "app", None, producer_byte_rate=10)
    alter(session, "app", None, consumer_byte_rate=20)
    assert rows(session, "SELECT * FROM quotas") == [("app", None, 10, 20)]
    alter(session, "app", None, producer_byte_rate=None)
    assert rows(session, "SELECT * FROM quotas") == [("app", None, None, 20)]
    alter(session, "app", None, consumer_byte_rate=None)
    assert rows(session, "SELECT * FROM quotas") == []


def test_a_program_may_not_change_its_own_quota(release: Server, session: Session, log_dsn: str) -> None:
    role = f"quota_{value(session, 'SELECT pg_backend_pid()')}"
    session.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'x'; GRANT USAGE ON SCHEMA logstore TO {role}")
    session.execute(f"GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA logstore TO {role}")
    try:
        topic = value(session, "SELECT create_topic('t', 1)")
        alter(session, role, None, producer_byte_rate=1000)
        with psycopg.connect(log_dsn, user=role, password="x", autocommit=True) as program:
            program.execute("SET search_path = logstore")
            assert refused(program, "SELECT alter_client_quota(%s, null, '{}')", role).sqlstate == "42501"
            # Neither by another name, nor by giving bytes back.
            for number in range(3):
                program.execute(f"SET application_name = 'name {number}'")
                append(program, topic, [b"x" * 6000])
                charge(program, "produce", -(10**9))
                if number == 1:
                    break
            assert refused(program, "SELECT produce('t', null::bytea, '\\x00'::bytea)").sqlstate == "LS059"
    finally:
        session.execute(f"REVOKE ALL ON ALL FUNCTIONS IN SCHEMA logstore FROM {role}")
        session.execute(f"REVOKE ALL ON SCHEMA logstore FROM {role}; DROP ROLE {role}")


# -- what is charged


def test_an_append_is_told_how_long_to_wait_and_in_the_end_refused(
    session: Session, connect: Connect, clock: Clock, topic: int
) -> None:
    client = connect(application_name="etl")
    append(client, topic, [b"x" * 1000], at=START_MS)
    (size,) = rows(session, "SELECT size_bytes FROM batches")[0]
    alter(session, None, "etl", producer_byte_rate=size)
    assert append(client, topic, [b"x" * 1000], at=START_MS) == [1, -1, 0], "what a second allows is there"
    assert append(client, topic, [b"x" * 1000], at=START_MS) == [2, -1, 0, SECOND_MS]
    assert append(client, topic, [b"x" * 1000], at=START_MS) == [3, -1, 0, 2 * SECOND_MS]
    for waits in range(3, 12):
        assert append(client, topic, [b"x" * 1000], at=START_MS)[3] == waits * SECOND_MS
    error = refused(
        client, "SELECT append(%s, 0, 1, %s, null, null, '{x}', null, null, null, 1::int2)", topic, START_MS
    )
    assert error.sqlstate == "LS059"
    told = json.loads(error.diag.message_detail or "")
    assert told == {
        "throttle_time_ms": 11 * SECOND_MS,
        "quota": "producer_byte_rate",
        "rate": size,
        "role": None,
        "client_id": "etl",
    }
    assert value(session, "SELECT count(*) FROM batches") == 13, "nothing was written"
    clock(11 * SECOND_MS)
    assert append(client, topic, [b"x" * 1000], at=START_MS)[3:] == [SECOND_MS]
    clock(60 * SECOND_MS)
    assert append(client, topic, [b"x" * 1000], at=START_MS)[3:] == []


def test_a_batch_that_is_sent_again_is_told_as_well(
    session: Session, connect: Connect, clock: Clock, topic: int
) -> None:
    alter(session, None, "etl", producer_byte_rate=100)
    client = connect(application_name="etl")
    for expected in ([0, -1, 0], [0, -1, 0]):
        assert append(client, topic, [b"x" * 500], producer=(1, 0, 0), at=START_MS)[:3] == expected
    assert len(append(client, topic, [b"x" * 500], producer=(1, 0, 0), at=START_MS)) == 4


def test_a_fetch_brings_a_second_s_worth_and_says_how_long_to_wait(
    session: Session, connect: Connect, clock: Clock, topic: int
) -> None:
    for _ in range(10):
        append(session, topic, [b"x" * 1000], at=START_MS)
    (size,) = rows(session, "SELECT size_bytes FROM batches")[0]
    alter(session, None, "etl", consumer_byte_rate=3 * size)
    client = connect(application_name="etl")
    assert fetched(session, topic) == [(1, 1, size)] * 10
    assert fetched(client, topic) == [(1, 1, size)] * 3
    assert fetched(client, topic, 3) == [*[(1, 1, size)] * 3, (0, SECOND_MS, None)]
    assert fetched(client, topic, 10) == [], "nothing was brought, nothing is charged"
    clock(SECOND_MS)
    assert fetched(client, topic, 9) == [(1, 1, size), (0, 334, None)]
    # A batch comes, however small the quota.
    alter(session, None, "etl", consumer_byte_rate=1)
    assert fetched(client, topic, 9)[0] == (1, 1, size)
    error = refused(client, 'SELECT * FROM "fetch"(ARRAY[%s::int4], ARRAY[0], ARRAY[0::int8], 1, 1)', topic)
    assert error.sqlstate == "LS059"


def test_who_only_reads_a_follower_or_in_a_read_only_transaction_is_told_for_itself(
    session: Session, connect: Connect, clock: Clock, topic: int
) -> None:
    append(session, topic, [b"x" * 1000], at=START_MS)
    (size,) = rows(session, "SELECT size_bytes FROM batches")[0]
    alter(session, None, "etl", consumer_byte_rate=size)
    client = connect(application_name="etl", default_transaction_read_only="on")
    for _ in range(3):
        assert fetched(client, topic) == [(1, 1, size), (0, SECOND_MS, None)]


def test_produce_and_read_count_as_well(session: Session, connect: Connect, clock: Clock, topic: int) -> None:
    alter(session, None, "etl", producer_byte_rate=100, consumer_byte_rate=100)
    client = connect(application_name="etl")
    client.execute("SELECT produce('t', null::bytea, %s::bytea)", (b"x" * 2000,))
    before = throttled(session)
    assert [each[2] for each in before] == ["consumer_byte_rate", "producer_byte_rate"]
    assert before[1][4] > 10 * SECOND_MS
    assert refused(client, "SELECT produce('t', null::bytea, '\\x00'::bytea)").sqlstate == "LS059"
    # Whoever drains appends what others have produced, and it was counted then.
    assert value(client, "SELECT records FROM drain()") == 1
    assert throttled(session) == before
    assert value(client, "SELECT count(*) FROM read('t')") == 1
    assert refused(client, "SELECT count(*) FROM read('t')").sqlstate == "LS059"
    assert value(client, "SELECT count(*) FROM records") == 1, "a view is a view"


def test_jobs_of_the_worker_are_free(session: Session, connect: Connect, clock: Clock, topic: int) -> None:
    append(session, topic, [b"x" * 1000], at=START_MS)
    alter(session, None, DEFAULT, consumer_byte_rate=1)
    job = connect(application_name="logstore tier".replace(" ", "\\ "))
    assert value(job, "SELECT current_setting('application_name')") == "logstore tier"
    for _ in range(3):
        assert [idx for idx, _, _ in fetched(job, topic)] == [1]
    assert rows(job, "SELECT * FROM quota_state('fetch')") == [(None, 0)]
    assert throttled(session) == []


# -- that nobody else notices


def test_a_transaction_that_stays_open_keeps_nobody_from_charging(
    session: Session, connect: Connect, clock: Clock, topic: int
) -> None:
    alter(session, None, "etl", producer_byte_rate=1000)
    holder, other = (connect(application_name="etl", lock_timeout="5s") for _ in range(2))
    holder.execute("BEGIN")
    append(holder, topic, [b"x" * 500], partition=0, at=START_MS)
    assert len(append(other, topic, [b"x" * 900], partition=1, at=START_MS)) == 4
    holder.execute("ROLLBACK")
    # It was charged: whoever tries again has used the network twice.
    assert charge(other, "produce", 0) > 400


def test_nothing_that_is_charged_at_the_same_moment_is_lost(
    session: Session, connect: Connect, clock: Clock
) -> None:
    alter(session, None, "etl", producer_byte_rate=10_000)
    clients = [connect(application_name="etl") for _ in range(4)]

    def run(client: Session) -> None:
        client.execute("SELECT charge_quota('produce', 100, false) FROM generate_series(1, 300)")

    with ThreadPoolExecutor(len(clients)) as pool:
        list(pool.map(run, clients))
    assert charge(session, "produce", 0) == 0, "the test's own session has no quota"
    assert charge(clients[0], "produce", 0) == (4 * 300 * 100 - 10_000) // 10


def test_the_first_of_a_default_keeps_nobody_waiting(
    session: Session, connect: Connect, clock: Clock
) -> None:
    alter(session, None, DEFAULT, producer_byte_rate=1000)
    first, second = (connect(application_name="new", lock_timeout="5s") for _ in range(2))
    first.execute("BEGIN")
    assert charge(first, "produce", 3000) == 2 * SECOND_MS
    assert charge(second, "produce", 3000) == 0, "not counted until the bucket is there"
    first.execute("COMMIT")
    assert charge(second, "produce", 1000) == 3 * SECOND_MS


def test_a_charge_that_is_cancelled_leaves_no_lock(session: Session, connect: Connect, clock: Clock) -> None:
    alter(session, None, "etl", producer_byte_rate=1000)
    client, holder = connect(application_name="etl"), connect()
    holder.execute("BEGIN")
    bucket = value(client, "SELECT bucket FROM quota_of('produce')")
    holder.execute("SELECT pg_advisory_xact_lock(lock_class('quota'), hashtext(%s))", (bucket,))
    client.execute("SET statement_timeout = 100")
    assert refused(client, "SELECT charge_quota('produce', 1, false)").sqlstate == "57014"
    client.execute("SET statement_timeout = 0")
    holder.execute("COMMIT")
    assert charge(client, "produce", 0) == 0
    held = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND classid = (SELECT %s::oid)"
    assert value(session, held, value(session, "SELECT lock_class('quota')::int8 & 4294967295")) == 0
    assert not waits_for_lock(session, client)


def test_charging_leaves_nothing_behind_beside_an_open_snapshot(
    session: Session, connect: Connect, topic: int
) -> None:
    alter(session, None, "etl", producer_byte_rate=10**12, consumer_byte_rate=10**12)
    holder, client = connect(), connect(application_name="etl")
    holder.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
    rows(holder, "SELECT * FROM quota")
    before = value(session, "SELECT coalesce(sum(pg_total_relation_size(oid)), 0) FROM pg_class"
                            " WHERE relname ~ '^quota'")  # fmt: skip
    for _ in range(500):
        append(client, topic)
        fetched(client, topic, 0, 100)
    session.execute("SELECT pg_stat_force_next_flush()")
    dead = "SELECT coalesce(sum(n_dead_tup), 0) FROM pg_stat_all_tables WHERE relname LIKE 'quota%'"
    assert value(session, dead) == 0
    assert value(session, "SELECT sum(pg_total_relation_size(oid)) FROM pg_class"
                          " WHERE relname ~ '^quota'") == before  # fmt: skip


def test_a_charge_writes_no_log_and_needs_no_commit(session: Session, connect: Connect) -> None:
    alter(session, None, "etl", producer_byte_rate=10**6)
    client = connect(application_name="etl")
    charge(client, "produce", 10)
    client.execute("BEGIN")
    charge(client, "produce", 10)
    assert value(client, "SELECT pg_current_xact_id_if_assigned()") is None
    client.execute("COMMIT")


def test_a_changed_quota_begins_anew(session: Session, connect: Connect, clock: Clock) -> None:
    alter(session, None, "etl", producer_byte_rate=1)
    client = connect(application_name="etl")
    assert charge(client, "produce", 10**9) == 3_600_000, "an hour is the longest"
    assert value(client, "SELECT throttle_time_ms FROM quota_state('produce')") == 3_600_000
    alter(session, None, "etl", producer_byte_rate=1000)
    assert value(client, "SELECT throttle_time_ms FROM quota_state('produce')") == 0
    alter(session, None, "etl", producer_byte_rate=None)
    assert charge(client, "produce", 10**9) == 0
    assert rows(client, "SELECT * FROM quota_state('produce')") == [(None, 0)]


def test_a_clock_that_is_put_back_does_not_throttle_for_ever(
    session: Session, connect: Connect, clock: Clock
) -> None:
    alter(session, None, "etl", producer_byte_rate=1000)
    client = connect(application_name="etl")
    assert charge(client, "produce", 2000) == SECOND_MS
    clock(-10_000_000)
    assert charge(client, "produce", 1500) == 500


def test_buckets_that_nobody_has_used_for_an_hour_are_dropped(
    session: Session, connect: Connect, clock: Clock
) -> None:
    alter(session, None, DEFAULT, producer_byte_rate=1000)
    client = connect()
    for number in range(5):
        client.execute(f"SET application_name = 'worker-{number}'")
        charge(client, "produce", 10)
    buckets = "SELECT count(*) FROM pg_class WHERE relkind = 'S' AND relname ~ '^quota_[0-9a-f]{24}$'"
    assert value(session, buckets) == 5
    clock(3_000_000)
    charge(client, "produce", 10)
    assert value(session, "SELECT expire_quota_buckets()") == 0
    clock(4_000_000)
    assert value(session, "SELECT expire_quota_buckets(1)") == 1
    # One that an open transaction has charged is left alone.
    holder = connect(application_name="worker-3")
    holder.execute("BEGIN")
    charge(holder, "produce", 10)
    clock(9_000_000)
    assert value(session, "SELECT expire_quota_buckets()") == 3
    holder.execute("COMMIT")
    assert value(session, "SELECT expire_quota_buckets()") == 1
    assert charge(client, "produce", 3000) == 2 * SECOND_MS, "it is made again"


def test_a_log_without_quotas_has_no_bucket(session: Session, connect: Connect, topic: int) -> None:
    assert value(session, "SELECT quotas_on()") is False
    append(session, topic)
    fetched(session, topic)
    assert throttled(session) == []
    alter(session, None, "other", producer_byte_rate=1)
    assert value(session, "SELECT quotas_on()") is True
    assert append(connect(application_name="etl"), topic) == [1, -1, 0]
