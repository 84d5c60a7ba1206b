"""The judge sees what it is there to see: three systems, each with one of its rules taken out."""

from __future__ import annotations

import base64
import json
import signal
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from logstore import Admin, Producer
from logstore.cluster.layout import API
from logstore.embedded.home import OWNER
from logstore.errors import UnknownOutcomeError
from tests.cluster.faults import signal_all
from tests.cluster.judge import judge
from tests.cluster.storm import SETTINGS
from tests.cluster.topology import PATIENCE_S, Topology, topology
from tests.history.plan import Plan
from tests.history.record import OK, Poll, Recorder, Send, read_history
from tests.history.workload import finish
from tests.support.log import records
from tests.support.programs import eventually
from tests.support.proxy import Proxy

ENOUGH_S = 60.0


@pytest.fixture(scope="module")
def top() -> Iterator[Topology]:
    with topology(SETTINGS) as made:
        yield made


@pytest.fixture
def whole(top: Topology) -> Topology:
    eventually(top.whole, "all are well", PATIENCE_S)
    return top


class Story:
    """What one producer and one reader do, written down."""

    def __init__(self, top: Topology, path: Path, topic: str, **configs: str) -> None:
        self.top, self.path, self.topic = top, path / "history.jsonl", topic
        self.reader = Recorder(self.path, "reader")
        self.sender = Recorder(self.path, "sender")
        with Admin(top.dsn) as admin:
            admin.create_topic(topic, configs=configs)

    def send(self, producer: Producer, value: str, acks: int) -> None:
        op = self.sender.begin("send", [Send(f"{self.topic}-0", value)], acks=acks, idempotent=True)
        offset = producer.send(self.topic, value.encode(), partition=0).get(ENOUGH_S).offset
        op.steps = [Send(f"{self.topic}-0", value, offset)]
        self.sender.end(op, OK)

    def anomalies(self) -> set[str]:
        plan = Plan(self.top.dsn, self.path, self.topic, partitions=1)
        finish(plan)
        return set(judge(read_history(self.path)).names)


@contextmanager
def followers_held_up(top: Topology, leader: str) -> Iterator[None]:
    """They get nothing, and Patroni does not notice: it would rule them out as leaders."""
    patroni = top.patroni(leader)
    signal_all(patroni, signal.SIGSTOP)
    try:
        pairs = [(leader, name) for name in top.members if name != leader]
        top.relay.cut(pairs, "reset")
        yield
    finally:
        top.relay.heal()
        signal_all(patroni, signal.SIGCONT)


def lose_the_leader(top: Topology, leader: str) -> None:
    top.cluster.kill(leader)


def another_leads(top: Topology, leader: str) -> None:
    eventually(lambda: any(name != leader for name in top.leaders()), "another leads", PATIENCE_S)
    top.layout.place(leader).held.unlink(missing_ok=True)


@pytest.mark.timeout(240)
def test_a_reader_that_ignores_the_watermark(whole: Topology, tmp_path: Path) -> None:
    top, leader = whole, whole.leader()
    story = Story(top, tmp_path, "ignored")
    with Producer(top.dsn, acks=1, linger_ms=0) as weak, Producer(top.dsn, acks="all") as strong:
        story.send(strong, "first", -1)
        with followers_held_up(top, leader):
            story.send(weak, "second", 1)
            # Everything that is committed here, safe or not.
            seen = [
                ("ignored-0", found.offset, (found.value or b"").decode())
                for found in records(top.dsn, "ignored")
            ]
            assert [value for _, _, value in seen] == ["first", "second"]
            story.reader.note("poll", [Poll(tuple(seen))])
            lose_the_leader(top, leader)
        another_leads(top, leader)
        story.send(strong, "third", -1)
    assert story.anomalies() >= {"inconsistent-offsets", "changed"}


@pytest.mark.timeout(240)
def test_a_reader_that_heeds_the_watermark(whole: Topology, tmp_path: Path) -> None:
    """The same, and nothing is found."""
    top, leader = whole, whole.leader()
    story = Story(top, tmp_path, "heeded")
    with Producer(top.dsn, acks=1, linger_ms=0) as weak, Producer(top.dsn, acks="all") as strong:
        story.send(strong, "first", -1)
        with followers_held_up(top, leader):
            story.send(weak, "second", 1)
            with psycopg.connect(top.door(leader)) as connection:
                marks = connection.execute(
                    "SELECT high_watermark FROM logstore.partitions WHERE topic = 'heeded'"
                ).fetchall()
            # The first is given out if it was given out before.
            assert marks in ([(0,)], [(1,)])
            seen = [
                ("heeded-0", found.offset, (found.value or b"").decode())
                for found in records(top.dsn, "heeded")
            ]
            story.reader.note("poll", [Poll(tuple(seen[: marks[0][0]]))])
            lose_the_leader(top, leader)
        another_leads(top, leader)
        story.send(strong, "third", -1)
    assert story.anomalies() == set()


@pytest.mark.timeout(240)
def test_a_leader_that_acknowledges_alone(whole: Topology, tmp_path: Path) -> None:
    top, leader = whole, whole.leader()
    story = Story(top, tmp_path, "alone", **{"min.insync.replicas": "1"})
    _configure(top, leader, {"synchronous_mode": "off"})
    try:
        eventually(lambda: _waits_for(top, leader) == "", "it waits for nobody", ENOUGH_S)
        with Producer(top.dsn, acks="all", linger_ms=0) as strong:
            story.send(strong, "first", -1)
            _replicated(top, leader)
            with followers_held_up(top, leader):
                story.send(strong, "second", -1)
                lose_the_leader(top, leader)
            another_leads(top, leader)
        with Producer(top.dsn, acks="all", linger_ms=0) as strong:
            story.send(strong, "third", -1)
        assert story.anomalies() >= {"inconsistent-offsets", "lost"}
    finally:
        now = top.leader()
        _configure(top, now, {"synchronous_mode": "quorum"})
        eventually(lambda: _waits_for(top, now) != "", "it waits for followers again", ENOUGH_S)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("idempotent", [True, False])
def test_a_producer_without_idempotence(whole: Topology, tmp_path: Path, idempotent: bool) -> None:
    topic = f"twice.{idempotent}".lower()
    story = Story(whole, tmp_path, topic, **{"min.insync.replicas": "2"})
    secret = whole.plan.passwords[OWNER]
    with Proxy(make_conninfo(whole.door(whole.leader()), password=secret, passfile=None)) as proxy:
        options: dict[str, Any] = {} if idempotent else {"enable_idempotence": False}
        with Producer(proxy.dsn, acks="all", linger_ms=0, retry_backoff_ms=10, **options) as producer:
            story.send(producer, "first", -1)
            proxy.cut_before_answer_to(b"second")
            op = story.sender.begin("send", [Send(f"{topic}-0", "second")], acks=-1, idempotent=True)
            future = producer.send(topic, b"second", partition=0)
            eventually(lambda: proxy.cuts > 0, "the answer is lost")
            proxy.cut_before_answer_to(None)
            try:
                offset = future.get(ENOUGH_S).offset
            except UnknownOutcomeError:
                # Without sequences a producer cannot find out; a program that knows no better tries again.
                assert not idempotent
                offset = producer.send(topic, b"second", partition=0).get(ENOUGH_S).offset
            op.steps = [Send(f"{topic}-0", "second", offset)]
            story.sender.end(op, OK)
    assert story.anomalies() == (set() if idempotent else {"duplicate"})


def _configure(top: Topology, member: str, change: dict[str, Any]) -> None:
    """Tell Patroni, which owns the setting."""
    said = base64.b64encode(f"{API}:{top.plan.passwords[API]}".encode()).decode()
    request = urllib.request.Request(
        f"http://127.0.0.1:{top.plan.api_ports[member]}/config",
        json.dumps(change).encode(),
        {"Content-Type": "application/json", "Authorization": f"Basic {said}"},
        method="PATCH",
    )
    with urllib.request.urlopen(request, timeout=10):
        pass


def _waits_for(top: Topology, member: str) -> str:
    with top.superuser(member) as session:
        row = session.execute("SHOW synchronous_standby_names").fetchone()
    return str(row[0]) if row else ""


def _replicated(top: Topology, leader: str) -> None:
    """Both followers have everything."""

    def done() -> bool:
        with top.superuser(leader) as session:
            row = session.execute(
                "SELECT count(*) FROM pg_stat_replication WHERE flush_lsn >= pg_current_wal_lsn()"
            ).fetchone()
        time.sleep(0.05)
        return row == (2,)

    eventually(done, "the followers have everything", ENOUGH_S)
