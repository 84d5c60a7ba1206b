"""Consumers that read from followers: from which, up to where, and what becomes of one that will not do."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import count
from typing import Any

import pytest

from logstore import Producer, TopicPartition
from logstore.errors import ConfigurationError, IllegalStateError, RequestTimedOutError
from tests.support.appender import Appender, values
from tests.support.colours import Colour
from tests.support.programs import eventually
from tests.support.proxy import Proxy
from tests.support.reading import ENOUGH_MS, read
from tests.support.several import running, together
from tests.support.sqllog import value
from tests.support.standbys import Group, Node, standbys, usurped

pytestmark = [pytest.mark.one_server, pytest.mark.long]
_numbers = count()


@pytest.fixture(scope="module")
def group() -> Iterator[Group]:
    """A leader and two followers, one of which has to have what is acknowledged."""
    with standbys(2, "ANY 1 (s1,s2)") as found:
        yield found


@pytest.fixture
def log(group: Group) -> Iterator[Appender]:
    """Appends to the leader, as ``acks=1`` does."""
    with Appender(group.leader.dsn) as found:
        yield found


@pytest.fixture
def topic(log: Appender) -> str:
    name = f"t{next(_numbers)}"
    log.create(name)
    return name


Consumers = Callable[..., Any]


@pytest.fixture
def consumer(colour: Colour, group: Group, topic: str) -> Consumers:
    """Makes a consumer of all nodes, or of those that are named."""

    def make(*nodes: Node, **options: Any) -> Any:
        dsn = together(*(node.dsn for node in nodes or group.nodes))
        return colour.consumer(
            topic, **{"dsn": dsn, "auto_offset_reset": "earliest", "read_from": "follower", **options}
        )

    return make


FAR_S = 0.03
"""A round trip to a server that is far away."""


def reads_from(consumer: Any, node: Node) -> Callable[[], bool]:
    def look() -> bool:
        consumer.poll()
        return f"/{node.name}:" in (consumer.reads_from or "")

    return look


def of_follower(consumer: Any) -> bool:
    return bool(consumer.metrics()["reading-from-follower"])


@contextmanager
def stopped(node: Node) -> Iterator[None]:
    """SIGSTOP, which closes nothing and answers nothing."""
    processes = node.processes()
    for process in processes:
        process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        for process in processes:
            process.send_signal(signal.SIGCONT)


@contextmanager
def replay_paused(node: Node) -> Iterator[None]:
    node.execute("SELECT pg_wal_replay_pause()")
    eventually(
        lambda: node.execute("SELECT pg_get_wal_replay_pause_state()") == [("paused",)], "replay is paused"
    )
    try:
        yield
    finally:
        node.execute("SELECT pg_wal_replay_resume()")


@contextmanager
def in_rack(node: Node, rack: str) -> Iterator[None]:
    """``logstore.rack`` in its configuration, as an administrator writes it there."""
    conf = node.data / "postgresql.conf"
    before = conf.read_text()

    def configured(text: str, expected: bool) -> None:
        conf.write_text(text)
        node.execute("SELECT pg_reload_conf()")
        found = "SELECT coalesce(current_setting('logstore.rack', true), '')"
        eventually(lambda: (node.execute(found) == [(rack,)]) == expected, f"{node.name} is in rack {rack}")

    configured(f"{before}logstore.rack = '{rack}'\n", True)
    try:
        yield
    finally:
        configured(before, False)


def test_records_come_from_a_follower(consumer: Consumers, group: Group, log: Appender, topic: str) -> None:
    log.append(topic, values(3))
    reader = consumer(client_rack="s2")
    assert [record.value for record in read(reader, 3)] == values(3)
    eventually(reads_from(reader, group.followers[1]), "it reads from the follower of its rack")
    for number in range(3, 8):
        log.append(topic, values(1, number))
        assert [record.value for record in read(reader, 1)] == values(1, number)
    metrics = reader.metrics()
    assert of_follower(reader)
    assert metrics["replica-fetch-total"] > 0
    assert metrics["replica-fallback-total"] == 0
    # Nothing was fetched from the leader meanwhile.
    before = metrics["fetch-total"] - metrics["replica-fetch-total"]
    log.append(topic, values(5))
    read(reader, 5)
    metrics = reader.metrics()
    assert metrics["fetch-total"] - metrics["replica-fetch-total"] == before


def test_the_nearest_server_may_be_the_leader(consumer: Consumers, group: Group) -> None:
    reader = consumer(read_from="nearest", client_rack="p")
    assert reader.poll(timeout_ms=0) == {}
    eventually(lambda: reader._fetcher.replica._finder.leader_is_nearest, "the leader is the nearest")
    assert not of_follower(reader)
    other = consumer(read_from="nearest", client_rack="s1")
    eventually(reads_from(other, group.followers[0]), "the follower of the rack is the nearest")


@pytest.mark.parametrize("near", ["p", "s1", "s2"])
@pytest.mark.parametrize("rack", [None, "elsewhere"])
def test_without_a_server_of_the_rack_the_shortest_way_wins(
    colour: Colour, group: Group, topic: str, near: str, rack: str | None
) -> None:
    def far(data: bytes, pass_on: Callable[[], None]) -> None:
        threading.Event().wait(FAR_S)
        pass_on()

    with ExitStack() as here:
        dsns = []
        for node in group.nodes:
            proxy = here.enter_context(Proxy(node.dsn))
            proxy.on_request = None if node.name == near else far
            dsns.append(node.dsn if node.name == near else proxy.dsn)
        here.callback(lambda: reader.close())
        reader = colour.consumer(topic, dsn=together(*dsns), read_from="nearest", client_rack=rack)
        if near == "p":
            eventually(lambda: reader._fetcher.replica._finder.leader_is_nearest, "the leader is the nearest")
            assert not of_follower(reader)
        else:
            eventually(reads_from(reader, group.node(near)), f"{near} is the nearest")


def test_the_rack_is_what_the_server_is_configured_with(consumer: Consumers, group: Group) -> None:
    first, second = group.followers
    with in_rack(second, "eu-1a"), in_rack(group.leader, "eu-1a"), in_rack(first, "eu-1b"):
        for rack, follower in (("eu-1a", second), ("eu-1b", first)):
            for choice in ("nearest", "follower"):
                reader = consumer(read_from=choice, client_rack=rack)
                eventually(reads_from(reader, follower), f"{choice}: the follower of {rack}, not its leader")
                reader.close()
        reader = consumer(client_rack="eu-1c")
        eventually(lambda: reader.poll() == {} and of_follower(reader), "without a match, any follower")


def test_a_follower_gives_nothing_that_a_failover_may_take_away(
    consumer: Consumers, group: Group, log: Appender, topic: str
) -> None:
    first, second = group.followers
    log.append(topic, values(1))
    reader = consumer(group.leader, first)
    read(reader, 1)
    eventually(reads_from(reader, first), "it reads from the follower")
    group.synchronous("ANY 2 (s1,s2)")
    group.cut_off(second)
    try:
        offset = log.append(topic, values(1, 1))
        group.caught_up(first)
        (shown,) = first.execute("SELECT count(*) FROM logstore.records WHERE topic = %s", topic)
        assert shown == (2,)  # it is there
        fetches = reader.metrics()["replica-fetch-total"]
        eventually(
            lambda: reader.poll() != {} or reader.metrics()["replica-fetch-total"] > fetches + 10, "it looks"
        )
        assert reader.position(TopicPartition(topic, 0)) == offset
        with pytest.raises(RequestTimedOutError, match="high watermark"):
            reader.wait_for_offset(TopicPartition(topic, 0), offset, timeout_ms=50)
    finally:
        group.follow(second)
    assert [record.value for record in read(reader, 1)] == values(1, 1)
    assert of_follower(reader)
    group.synchronous("ANY 1 (s1,s2)")


def test_a_follower_that_lags_is_left_and_returned_to(
    consumer: Consumers, group: Group, log: Appender, topic: str
) -> None:
    follower = group.followers[0]
    reader = consumer(group.leader, follower, max_replica_lag_ms=400)
    eventually(reads_from(reader, follower), "it reads from the follower")
    with replay_paused(follower):
        log.append(topic, values(2))
        assert [record.value for record in read(reader, 2)] == values(2)
        assert not of_follower(reader)
        assert reader.metrics()["replica-fallback-total"] == 1
    eventually(reads_from(reader, follower), "it has returned to the follower")
    log.append(topic, values(1, 2))
    assert [record.value for record in read(reader, 1)] == values(1, 2)


def test_one_that_lags_is_left_for_another_and_not_begun_with(
    consumer: Consumers, group: Group, log: Appender, topic: str
) -> None:
    """Though it is the one of the rack."""
    first, second = group.followers
    early = consumer(client_rack="s1", max_replica_lag_ms=400)
    eventually(reads_from(early, first), "it reads from the follower of its rack")
    with replay_paused(first):
        log.append(topic, values(2))
        assert [record.value for record in read(early, 2)] == values(2)
        late = consumer(client_rack="s1", max_replica_lag_ms=400)
        lag = late._fetcher.replica.lag
        eventually(lambda: lag.behind_s > 0, "it has looked at the one of the rack")
        assert not of_follower(late)
        assert [record.value for record in read(late, 2)] == values(2)
        for reader in (early, late):
            eventually(reads_from(reader, second), "it reads from the other one")
        log.append(topic, values(1, 2))
        for reader in (early, late):
            assert [record.value for record in read(reader, 1)] == values(1, 2)


def test_a_follower_of_another_cluster_is_not_read_from(
    consumer: Consumers, group: Group, log: Appender, topic: str
) -> None:
    """Not even if it comes later, has a topic of that name and id, and seems to be ahead."""
    follower = group.followers[0]
    log.append(topic, values(1))
    topic_id = log.topic_id(topic)

    def furnish(stranger: Node) -> None:
        with stranger.connect() as session:
            names = [f"other-{number}" for number in range(1, topic_id)]
            assert [value(session, "SELECT create_topic(%s, 1)", name) for name in [*names, topic]][
                -1
            ] == topic_id
            session.execute("SELECT setval(pg_get_serial_sequence('seal', 'seal_id'), 1000000)")
        with Appender(stranger.dsn) as theirs:
            theirs.append(topic, [b"theirs"] * 9)
        with stranger.connect() as session:
            assert value(session, "SELECT sealed_to FROM seal()") > 1_000_000

    reader = consumer(group.leader, follower)
    read(reader, 1)
    eventually(reads_from(reader, follower), "it reads from the follower")
    follower.kill()
    said = follower.home / "server.log"
    try:
        with usurped(follower, furnish):
            begin = len(said.read_text())
            eventually(
                lambda: (
                    said.read_text()[begin:].count("authorized: user=logstore") >= 2 or of_follower(reader)
                ),
                "it has been asked again and again",
            )
            assert not of_follower(reader)
            log.append(topic, values(1, 1))
            assert [record.value for record in read(reader, 1)] == values(1, 1)
    finally:
        follower.start()
        eventually(lambda: group.streams(follower), "the follower is back")


def test_a_follower_that_is_lost_is_left_for_another(
    consumer: Consumers, group: Group, log: Appender, topic: str
) -> None:
    first, second = group.followers
    reader = consumer(client_rack="s1")
    eventually(reads_from(reader, first), "it reads from the follower of its rack")
    first.kill()
    try:
        log.append(topic, values(1))
        assert read(reader, 1)[0].value == b"0"
        eventually(reads_from(reader, second), "it reads from the other one")
    finally:
        first.start()
        eventually(lambda: group.streams(first), "the follower is back")
    log.append(topic, values(1, 1))
    assert read(reader, 1)[0].value == b"1"


def test_a_follower_that_does_not_answer_is_left(
    colour: Colour, consumer: Consumers, group: Group, log: Appender, topic: str
) -> None:
    follower = group.followers[0]
    reader = consumer(group.leader, follower, max_replica_lag_ms=100)
    eventually(reads_from(reader, follower), "it reads from the follower")
    with stopped(follower):
        # Asked of the follower, answered by the leader.
        reader.wait_for_offset(TopicPartition(topic, 0), log.append(topic, values(1)))
        assert read(reader, 1)[0].value == b"0"
        assert not of_follower(reader)
        # Nobody waits for it, and nobody stays behind.
        reader.close()
        assert not any("replica" in name for name in running(colour))


def test_what_was_written_can_be_read(consumer: Consumers, group: Group, colour: Colour, topic: str) -> None:
    follower = group.followers[0]
    reader = consumer(group.leader, follower)
    partition = TopicPartition(topic, 0)
    eventually(reads_from(reader, follower), "it reads from the follower")
    with Producer(group.leader.dsn) as producer:
        for number in range(5):
            offset = producer.send_and_wait(topic, b"%d" % number).offset
            reader.wait_for_offset(partition, offset)
            assert reader.poll(timeout_ms=ENOUGH_MS)[partition][-1].offset == offset
            assert reader.end_offsets([partition]) == {partition: offset + 1}
        with replay_paused(follower):
            group.synchronous("")  # nothing keeps the leader from answering
            offset = producer.send_and_wait(topic, b"late").offset
            with pytest.raises(RequestTimedOutError) as refused:
                reader.wait_for_offset(partition, offset, timeout_ms=700)
            assert refused.value.details["offset"] == offset
        reader.wait_for_offset(partition, offset)
        assert of_follower(reader)
        group.synchronous("ANY 1 (s1,s2)")
    with pytest.raises(IllegalStateError):
        reader.wait_for_offset(TopicPartition(topic, 7), 0)


def test_offsets_mean_the_same_everywhere(
    consumer: Consumers, group: Group, log: Appender, topic: str
) -> None:
    partition = TopicPartition(topic, 0)
    log.append(topic, values(4))
    leader, follower = consumer(read_from="leader"), consumer()
    eventually(lambda: follower.poll() == {} and of_follower(follower), "it reads from a follower")
    for reader in (leader, follower):
        assert reader.end_offsets([partition]) == {partition: 4}
        reader.seek(partition, 2)
        assert [record.offset for record in read(reader, 2)] == [2, 3]
        assert reader.position(partition) == 4
        reader.seek_to_end(partition)
        assert reader.position(partition) == 4
        assert reader.highwater(partition) == 4


def test_a_group_reads_from_followers_and_commits_to_the_leader(
    consumer: Consumers, group: Group, log: Appender, topic: str
) -> None:
    partition = TopicPartition(topic, 0)
    log.append(topic, values(3))
    reader = consumer(group_id=f"g-{topic}", auto_commit_interval_ms=0)
    assert len(read(reader, 3)) == 3
    eventually(lambda: reader.poll() == {} and of_follower(reader), "it reads from a follower")
    log.append(topic, values(2, 3))
    assert [record.offset for record in read(reader, 2)] == [3, 4]
    eventually(lambda: reader.poll() == {} and reader.committed(partition) == 5, "what was read is committed")
    with Producer(group.leader.dsn) as producer:
        producer.send_and_wait(topic, b"once")
    with reader.transaction(timeout_ms=ENOUGH_MS) as tx:
        assert [record.value for record in tx.records] == [b"once"]
    assert reader.committed(partition) == 6


def test_reading_goes_on_without_a_leader(colour: Colour) -> None:
    """And with the next one: also of whom was read from and is promoted."""
    with standbys(2, "ANY 1 (s1,s2)") as group, Appender(group.leader.dsn) as log:
        log.create("t")
        first, second = group.followers
        dsn = together(*(node.dsn for node in group.nodes))
        options = {"dsn": dsn, "auto_offset_reset": "earliest", "read_from": "follower"}
        reader = colour.consumer("t", client_rack="s1", group_id="g", auto_commit_interval_ms=0, **options)
        other = colour.consumer("t", client_rack="s2", **options)
        log.append("t", values(1))
        for each, node in ((reader, first), (other, second)):
            read(each, 1)
            eventually(reads_from(each, node), "it reads from the follower of its rack")
        log.append("t", values(100, 1))
        reader.wait_for_offset(TopicPartition("t", 0), 100)
        group.cut_off(first)  # or it might have something that the one who is promoted has not
        group.caught_up(second)
        group.leader.kill()
        assert [record.value for record in read(reader, 100, max_records=1)] == values(100, 1)
        assert of_follower(reader)
        second.promote()
        group.leader, group.followers = second, [first, group.leader]
        group.follow(first)
        group.synchronous("ANY 1 (s1)")
        with Appender(second.dsn) as log:
            log.append("t", values(3, 101))
        assert [record.value for record in read(reader, 3)] == values(3, 101)
        assert [record.value for record in read(other, 103)] == values(103, 1)
        eventually(reads_from(other, first), "nobody reads from a follower that is none")
        # While there is somebody to tell: afterwards it takes them their time-outs.
        reader.close()
        other.close()


def test_a_follower_with_another_history_is_left(colour: Colour) -> None:
    """It follows somebody else, from before what was read here: it says nothing of what comes after."""
    with standbys(2) as group, Appender(group.leader.dsn) as log:
        log.create("t")
        log.append("t", values(5))
        other, follower = group.followers
        for node in group.followers:
            group.caught_up(node)
        group.cut_off(follower)  # first, or it might have something that the other one has not
        group.cut_off(other)
        log.append("t", values(5, 5))
        other.promote()
        with other.connect() as session:
            session.execute("SELECT setval(pg_get_serial_sequence('seal', 'seal_id'), 1000000)")
            session.execute("SELECT create_topic('u', 1)")
            session.execute("SELECT seal()")
        with Appender(other.dsn) as theirs:
            theirs.append("t", [b"theirs"] * 9)
        group.follow(follower, other)
        eventually(
            lambda: follower.execute("SELECT count(*) FROM logstore.records WHERE topic = 't'") == [(14,)],
            "it has their history",
        )
        follower.stop()
        reader = colour.consumer(
            "t",
            dsn=together(group.leader.dsn, follower.dsn),
            auto_offset_reset="earliest",
            read_from="follower",
        )
        assert [record.value for record in read(reader, 10)] == values(10)
        follower.start()
        got: list[bytes | None] = []

        def left() -> bool:
            got.extend(record.value for records in reader.poll().values() for record in records)
            return bool(reader.metrics()["replica-fallback-total"])

        eventually(left, "it has looked, and left it")
        log.append("t", values(3, 10))
        while len(got) < 3:
            got.extend(record.value for record in read(reader, 1))
        assert got == values(3, 10)


def test_a_single_server_is_read_from(colour: Colour, group: Group, log: Appender, topic: str) -> None:
    log.append(topic, values(2))
    reader = colour.consumer(topic, dsn=group.leader.dsn, auto_offset_reset="earliest", read_from="follower")
    assert len(read(reader, 2)) == 2
    assert not of_follower(reader)
    assert "/p:" in reader.reads_from


def test_nothing_goes_on_after_close(colour: Colour, consumer: Consumers, group: Group) -> None:
    reader = consumer()
    eventually(lambda: reader.poll() == {} and of_follower(reader), "it reads from a follower")
    assert any("replica" in name for name in running(colour))
    reader.close()
    assert not any("replica" in name for name in running(colour))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"read_from": "followers"}, "read_from is one of leader, follower, nearest"),
        ({"client_rack": "eu-1a"}, "needs read_from"),
        ({"read_from": "nearest", "client_rack": ""}, "client_rack is a string"),
        ({"max_replica_lag_ms": 5}, "integer from 100"),
        ({"read_form": "nearest"}, "read_form"),
    ],
)
def test_options_that_do_not_fit_are_refused(colour: Colour, options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigurationError, match=said) as refused:
        colour.consumer("t", dsn="host=nowhere", **options)
    if "read_form" in options:
        assert "'read_from'" in refused.value.advice
