"""One rule is taken out, and the checker sees it; with the rule in place the same story is clean.

Nothing is left to chance: each story forces the one order of events in which the rule matters.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, Final

import psycopg
import pytest

from logstore import Consumer, Producer, TopicPartition
from logstore._core import outcome
from logstore._core.arrays import ByteaArray
from logstore._core.call import Call
from logstore._core.calls import AppendBatch, AppendResult, Calls
from logstore._core.transaction_calls import ProducerIdentity, TransactionCalls
from logstore._sync.driver import Connection
from logstore.errors import LogstoreError, UnknownOutcomeError
from tests.history import mutants
from tests.history.checker import check
from tests.history.record import FAIL, INFO, OK, Op, Poll, Recorder, Send, read_history
from tests.history.workload import Plan, finish
from tests.support.appender import Appender
from tests.support.membership import Member, settle
from tests.support.programs import eventually
from tests.support.proxy import Fault, Proxy
from tests.support.servers import Server

CALLS: Final = Calls()
PLACE: Final = "t-0"


class Story:
    """A topic with one partition, and the history of what happens to it."""

    def __init__(self, dsn: str, path: Path) -> None:
        self.dsn = dsn
        self.plan = Plan(dsn, path, partitions=1)
        self._recorders: dict[str, Recorder] = {}
        with Appender(dsn) as appender:
            self.topic_id = appender.create("t", self.plan.partitions)

    def by(self, name: str) -> Recorder:
        if name not in self._recorders:
            self._recorders[name] = Recorder(self.plan.path, name)
        return self._recorders[name]

    def batch(self, value: str, **said: Any) -> AppendBatch:
        now = time.time_ns() // 1_000_000
        return AppendBatch(self.topic_id, 0, 1, now, None, None, ByteaArray([value.encode()]), **said)

    def sent(self, op: Op, value: str, offset: int | None) -> None:
        op.steps[:] = [Send(PLACE, value, offset)]

    def read(self, consumer: Consumer, name: str, *, below: int | None = None) -> None:
        """What one poll brings, as far as it lies below ``below``."""
        for tp, records in consumer.poll(timeout_ms=20_000).items():
            got = [
                (f"{tp.topic}-{tp.partition}", record.offset, record.value.decode())
                for record in records
                if below is None or record.offset < below
            ]
            self.by(name).note("poll", [Poll(tuple(got))])

    def anomalies(self, *, at: str | None = None) -> set[str]:
        """What the checker finds, once all there is, ``at`` another database if need be, has been read."""
        finish(self.plan if at is None else Plan(at, self.plan.path, partitions=1))
        for recorder in self._recorders.values():
            recorder.close()
        return {anomaly.name for anomaly in check(read_history(self.plan.path)).anomalies}


@pytest.fixture
def story(database: str, tmp_path: Path) -> Story:
    return Story(database, tmp_path / "history.jsonl")


MUTATED = pytest.mark.parametrize("mutated", [False, True], ids=["as it is", "mutated"])


# ---- a sequence instead of the lock


@MUTATED
def test_a_sequence_instead_of_the_lock(story: Story, mutated: bool) -> None:
    """The one who came first commits last, and a reader looks in between."""
    if mutated:
        mutants.without_the_lock(story.dsn)

    def second() -> None:
        with closing(Connection.open(story.dsn, application_name="second")) as connection:
            op = story.by("second").begin("send", [Send(PLACE, "b")])
            (result,) = connection.run(CALLS.append([story.batch("b")], -1))
            connection.run(CALLS.wake([story.topic_id]))
            story.sent(op, "b", result.base_offset)
            story.by("second").end(op, OK)

    def waits_or_has_committed() -> bool:
        with psycopg.connect(story.dsn) as connection:
            row = connection.execute(
                "SELECT EXISTS (SELECT FROM logstore.batches) OR EXISTS (SELECT FROM pg_stat_activity"
                " WHERE application_name = 'second' AND wait_event_type = 'Lock')"
            ).fetchone()
        return bool(row and row[0])

    thread = threading.Thread(target=second)
    with Consumer(dsn=story.dsn, auto_offset_reset="earliest") as consumer:
        consumer.assign([TopicPartition("t", 0)])
        story.by("reader").note("assign", positions={PLACE: 0})
        with closing(Connection.open(story.dsn)) as first:
            op = story.by("first").begin("send", [Send(PLACE, "a")])
            with first.transaction():
                (result,) = first.run(CALLS.append([story.batch("a")], -1))
                thread.start()
                eventually(waits_or_has_committed, "the second one is at it")
                if mutated:
                    story.read(consumer, "reader")
            story.sent(op, "a", result.base_offset)
            story.by("first").end(op, OK)
        thread.join()
    assert story.anomalies() == ({"poll-skip"} if mutated else set())


# ---- a follower that reads past the watermark


@MUTATED
def test_a_follower_that_reads_past_the_watermark(
    story: Story, server: Server, mutated: bool, copies: Callable[[str], str]
) -> None:
    """There are no followers to read from yet: copies of the database are what replicas would have."""
    with Producer(story.dsn) as producer:
        for value in ("a", "b"):
            with story.by("p").operation("send", [Send(PLACE, value)]) as op:
                story.sent(op, value, producer.send_and_wait("t", value.encode()).offset)
    in_time = copies(story.dsn)
    with Producer(story.dsn) as producer:
        # The leader dies while this commit waits for its replicas: nobody is told anything.
        op = story.by("p").begin("send", [Send(PLACE, "c")])
        producer.send_and_wait("t", b"c")
        story.by("p").end(op, INFO)
    follower = copies(story.dsn)
    with Consumer(dsn=follower, auto_offset_reset="earliest") as consumer:
        consumer.assign([TopicPartition("t", 0)])
        story.read(consumer, "reader", below=None if mutated else 2)
    with Producer(in_time) as producer, story.by("q").operation("send", [Send(PLACE, "d")]) as op:
        story.sent(op, "d", producer.send_and_wait("t", b"d").offset)
    assert story.anomalies(at=in_time) == ({"inconsistent-offsets"} if mutated else set())


@pytest.fixture
def copies(server: Server) -> Iterator[Callable[[str], str]]:
    """Makes copies of a database that nobody is connected to."""
    made: list[str] = []

    def copy(dsn: str) -> str:
        name = f"{psycopg.conninfo.conninfo_to_dict(dsn)['dbname']}_{len(made)}"
        with psycopg.connect(server.dsn, autocommit=True) as connection:
            source = psycopg.conninfo.conninfo_to_dict(dsn)["dbname"]
            eventually(lambda: _unused(connection, str(source)), "everybody has gone")
            statement = psycopg.sql.SQL("CREATE DATABASE {} TEMPLATE {}")
            connection.execute(
                statement.format(psycopg.sql.Identifier(name), psycopg.sql.Identifier(str(source)))
            )
        made.append(server.database(name))
        return made[-1]

    yield copy
    for dsn in made:
        server.drop(dsn)


def _unused(connection: psycopg.Connection[Any], database: str) -> bool:
    row = connection.execute(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = %s AND backend_type = 'client backend'",
        [database],
    ).fetchone()
    return row == (0,)


# ---- no epoch check


@MUTATED
def test_no_check_of_claim_epochs(story: Story, mutated: bool) -> None:
    """A member that has lost its partition, and does not know it yet, commits."""
    if mutated:
        mutants.without_claim_epochs(story.dsn)
    place = "t", 0
    with closing(Connection.open(story.dsn)) as connection:
        first = Member(connection, "m1")
        settle(first)
        stale = first.claims[TopicPartition(*place)]
        story.by("m1").note("claim", group="g", epochs={PLACE: stale.epoch})
        first.leave()
        second = Member(connection, "m2")
        settle(second)
        story.by("m2").note("claim", group="g", epochs={PLACE: second.claims[TopicPartition(*place)].epoch})
        _commit(story, second, 0)
        first.subscribe(["t"])
        first.claims[TopicPartition(*place)] = stale
        _commit(story, first, 0)
    assert story.anomalies() == ({"group"} if mutated else set())


def _commit(story: Story, member: Member, offset: int) -> None:
    epoch = member.claims[TopicPartition("t", 0)].epoch
    op = story.by(member.name).begin("commit", group="g", epochs={PLACE: epoch}, offsets={PLACE: offset})
    try:
        member.commit(offset)
    except LogstoreError:
        story.by(member.name).end(op, FAIL)
    else:
        story.by(member.name).end(op, OK)


@MUTATED
def test_no_check_of_producer_epochs(story: Story, mutated: bool) -> None:
    """A producer whose transactional id has a newer holder commits a transaction."""
    if mutated:
        mutants.without_producer_epochs(story.dsn)
    calls = TransactionCalls()
    with closing(Connection.open(story.dsn)) as connection:

        def init(name: str) -> ProducerIdentity:
            holder = connection.run(calls.hold_transactional_id("id", 60_000, name))
            story.by(name).note("init", producer="id", epoch=holder.epoch)
            return holder

        def transact(name: str, holder: ProducerIdentity, value: str) -> None:
            op = story.by(name).begin("txn", [Send(PLACE, value)], producer="id", epoch=holder.epoch)
            try:
                with connection.transaction():
                    connection.run(calls.enter_transaction("id", holder))
                    batch = story.batch(
                        value, producer_id=holder.producer_id, producer_epoch=holder.epoch, base_sequence=0
                    )
                    (result,) = connection.run(CALLS.append([batch], -1))
            except LogstoreError:
                story.by(name).end(op, FAIL)
            else:
                story.sent(op, value, result.base_offset)
                story.by(name).end(op, OK)

        zombie = init("x1")
        transact("x2", init("x2"), "new")
        transact("x1", zombie, "old")
    assert story.anomalies() == ({"fencing"} if mutated else set())


@MUTATED
def test_no_check_of_sequences(story: Story, mutated: bool) -> None:
    """The answer to a batch is lost, and the batch is sent again."""
    if mutated:
        mutants.without_sequences(story.dsn)
    with Proxy(story.dsn) as proxy, Producer(proxy.dsn, retry_backoff_ms=1) as producer:
        proxy.strike(Fault.ANSWER, b"retry me")
        with story.by("p").operation("send", [Send(PLACE, "retry me")]) as op:
            story.sent(op, "retry me", producer.send_and_wait("t", b"retry me").offset)
        assert proxy.cuts == 1
    assert story.anomalies() == ({"duplicate"} if mutated else set())


# ---- confirm before append


@MUTATED
def test_confirming_before_appending(story: Story, mutated: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody is told that a record is there, and then the request is lost."""
    run = Connection.run
    confirmed: list[Call[Any]] = []

    def hasty(self: Connection, call: Call[Any], **options: Any) -> Any:
        if call.name != "append":
            return run(self, call, **options)
        if not confirmed:
            confirmed.append(call)
            return [AppendResult(0, -1, 0)]
        while len(confirmed) == 1:
            confirmed.append(call)
            with suppress(LogstoreError):
                run(self, confirmed[0], **options)
        return run(self, call, **options)

    if mutated:
        monkeypatch.setattr(Connection, "run", hasty)
    with Proxy(story.dsn) as proxy, Producer(proxy.dsn, retry_backoff_ms=1) as producer:
        proxy.strike(Fault.REQUEST, b"one, lost")
        for value in ("one, lost", "two"):
            with suppress(LogstoreError), story.by("p").operation("send", [Send(PLACE, value)]) as op:
                story.sent(op, value, producer.send_and_wait("t", value.encode()).offset)
        assert proxy.cuts == 1
    found = story.anomalies()
    # The offset that was promised to the first is the second one's.
    assert found == ({"unseen", "inconsistent-offsets", "nonmonotonic-send"} if mutated else set())


# ---- a cancel in COMMIT


@MUTATED
def test_a_cancel_in_commit(
    story: Story, server: Server, mutated: bool, copies: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cancelled wait for replicas reports success; who believes it loses the record at failover."""
    if server.superuser_dsn is None:
        pytest.skip("only a superuser can demand a replica that there is not")
    standby = copies(story.dsn)
    if mutated:
        monkeypatch.setattr(outcome, "cut_short", lambda sqlstate: False)
    with psycopg.connect(server.superuser_dsn, autocommit=True) as superuser:
        superuser.execute("SET synchronous_commit = local")
        with Producer(
            story.dsn, acks="all", client_id="waiting", request_timeout_ms=2000, delivery_timeout_ms=2500,
            linger_ms=0,
        ) as producer:  # fmt: skip
            assert producer.partitions_for("t") == {0}  # it is connected
            try:
                _demand(superuser, "a replica that there is not")
                op = story.by("p").begin("send", [Send(PLACE, "a")])
                future = producer.send("t", b"a", partition=0)
                eventually(lambda: _cancelled(superuser), "the wait was cancelled")
                try:
                    story.sent(op, "a", future.get(60).offset)
                except LogstoreError as error:
                    assert isinstance(error, UnknownOutcomeError) and not mutated
                    story.by("p").end(op, INFO)
                else:
                    story.by("p").end(op, OK)
            finally:
                _demand(superuser, None)
    # The leader is gone; this is what the replica had.
    assert story.anomalies(at=standby) == ({"unseen"} if mutated else set())


def _demand(superuser: psycopg.Connection[Any], name: str | None) -> None:
    if name is None:
        superuser.execute("ALTER SYSTEM RESET synchronous_standby_names")
    else:
        superuser.execute(f"ALTER SYSTEM SET synchronous_standby_names = '\"{name}\"'".encode())
    superuser.execute("SELECT pg_reload_conf()")

    def heeded() -> bool:
        (value,) = superuser.execute("SHOW synchronous_standby_names").fetchone() or ("",)
        return (name is None) == (value == "")

    eventually(heeded, "the server has read it")


def _cancelled(superuser: psycopg.Connection[Any]) -> bool:
    row = superuser.execute(
        "SELECT bool_or(pg_cancel_backend(pid)) FROM pg_stat_activity"
        " WHERE application_name = 'waiting' AND wait_event = 'SyncRep'"
    ).fetchone()
    return row is not None and row[0] is True
