"""Consumers that share a topic: who reads what, and what they are told."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import psycopg
import pytest

from logstore import ConsumerRebalanceListener
from logstore._core.group_calls import GroupCalls
from logstore.errors import (
    ConfigurationError,
    FencedInstanceIdError,
    IllegalStateError,
    InvalidArgumentError,
    InvalidGroupError,
    InvalidSubscriptionError,
    LogstoreError,
)
from logstore.records import TopicPartition
from tests.support.appender import Appender, values
from tests.support.colours import Colour
from tests.support.programs import eventually

pytestmark = pytest.mark.one_server

PARTITIONS = [TopicPartition("t", number) for number in range(4)]


@pytest.fixture
def log(appender: Appender) -> Appender:
    appender.create("t", 4)
    for tp in PARTITIONS:
        appender.append("t", values(10), tp.partition)
    return appender


@pytest.fixture
def member(colour: Colour, database: str) -> Callable[..., Any]:
    """Makes members of group g."""

    def make(*topics: str, **options: Any) -> Any:
        settings: dict[str, Any] = {
            "group_id": "g",
            "auto_offset_reset": "earliest",
            "heartbeat_interval_ms": 50,
            "session_timeout_ms": 30_000,
        }
        return colour.consumer(*topics, dsn=database, **{**settings, **options})

    return make


@pytest.fixture
def raw(database: str) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(database, autocommit=True, prepare_threshold=None) as made:
        yield made


class Diary(ConsumerRebalanceListener):
    """Writes down what it is told."""

    def __init__(self) -> None:
        self.entries: list[tuple[str, list[int]]] = []

    def on_partitions_assigned(self, assigned: Sequence[TopicPartition]) -> None:
        self._note("assigned", assigned)

    def on_partitions_revoked(self, revoked: Sequence[TopicPartition]) -> None:
        self._note("revoked", revoked)

    def on_partitions_lost(self, lost: Sequence[TopicPartition]) -> None:
        self._note("lost", lost)

    def _note(self, what: str, partitions: Sequence[TopicPartition]) -> None:
        self.entries.append((what, sorted(tp.partition for tp in partitions)))


def shared(*consumers: Any, count: int = 4) -> Callable[[], bool]:
    """Everybody polls; whether everything is assigned, evenly."""

    def check() -> bool:
        for consumer in consumers:
            consumer.poll(timeout_ms=5)
        sizes = [len(consumer.assignment()) for consumer in consumers]
        return sum(sizes) == count and max(sizes) - min(sizes) <= 1

    return check


def member_ids(raw: psycopg.Connection[Any]) -> set[str]:
    return {row[0] for row in raw.execute("SELECT member_id FROM logstore.group_members").fetchall()}


@pytest.mark.every_server
def test_members_share_the_partitions(member: Callable[..., Any], log: Appender) -> None:
    first, second, third = (member("t") for _ in range(3))
    sizes = (2, 1, 1)
    eventually(shared(first, second, third), "three members share four partitions")
    owned = [consumer.assignment() for consumer in (first, second, third)]
    assert sorted(map(len, owned), reverse=True) == list(sizes)
    assert frozenset().union(*owned) == frozenset(PARTITIONS)
    third.close()
    eventually(shared(first, second), "two share what three had")


def test_every_record_is_read_once(member: Callable[..., Any], log: Appender) -> None:
    consumers = [member("t", auto_commit_interval_ms=0) for _ in range(2)]
    seen: list[tuple[int, int]] = []

    def all_read() -> bool:
        for consumer in consumers:
            for records in consumer.poll(timeout_ms=5).values():
                seen.extend((record.partition, record.offset) for record in records)
        return len(seen) >= 60

    eventually(shared(*consumers), "balanced")
    for tp in PARTITIONS:
        log.append("t", values(15), tp.partition)
    eventually(all_read, "what was appended after the group was balanced is read")
    assert sorted(seen)[-60:] == sorted(set(seen))[-60:]


@pytest.mark.every_server
def test_listener_is_told_what_comes_and_goes(member: Callable[..., Any], log: Appender) -> None:
    diary = Diary()
    first = member()
    first.subscribe(["t"], listener=diary)
    eventually(shared(first), "alone")
    assert diary.entries == [("assigned", [0, 1, 2, 3])]
    second = member("t")
    eventually(shared(first, second), "two")
    assert diary.entries[1:] == [("revoked", [2, 3])]
    second.close()
    eventually(shared(first), "alone again")
    assert diary.entries[2:] == [("assigned", [2, 3])]
    first.close()
    assert diary.entries[3:] == [("revoked", [0, 1, 2, 3])]


def test_listener_that_raises_holds_nothing_up(member: Callable[..., Any], log: Appender) -> None:
    class Broken(ConsumerRebalanceListener):
        def on_partitions_revoked(self, revoked: Sequence[TopicPartition]) -> None:
            raise ZeroDivisionError

    first = member()
    first.subscribe(["t"], listener=Broken())
    eventually(shared(first), "alone")
    second = member("t")

    def raised() -> bool:
        second.poll(timeout_ms=5)
        try:
            first.poll(timeout_ms=5)
        except ZeroDivisionError:
            return True
        return False

    eventually(raised, "the listener's error comes out of poll")
    eventually(shared(first, second), "and the partitions have moved all the same")
    first.subscribe(["t"])


def test_seek_where_a_partition_comes(member: Callable[..., Any], log: Appender) -> None:
    class Rewinder(ConsumerRebalanceListener):
        consumer: Any = None

        def on_partitions_assigned(self, assigned: Sequence[TopicPartition]) -> None:
            for tp in assigned:
                self.consumer.seek(tp, 7)

    listener = Rewinder()
    consumer = member(max_poll_records=100)
    listener.consumer = getattr(consumer, "_client", consumer)
    consumer.subscribe(["t"], listener=listener)
    offsets: list[int] = []

    def read() -> bool:
        offsets.extend(r.offset for records in consumer.poll(timeout_ms=5).values() for r in records)
        return len(offsets) >= 12

    eventually(read, "everything from 7 on")
    assert sorted(offsets) == [7] * 4 + [8] * 4 + [9] * 4


@pytest.mark.every_server
def test_pattern_finds_topics_that_come_later(member: Callable[..., Any], log: Appender) -> None:
    consumer = member()
    consumer.subscribe(pattern="t|new[.].*")
    eventually(shared(consumer), "what there is")
    log.create("new.one", 2)
    log.create("renew.one", 2)
    eventually(shared(consumer, count=6), "what is new")
    assert {tp.topic for tp in consumer.assignment()} == {"t", "new.one"}


def test_deleted_topic_goes_quietly(member: Callable[..., Any], log: Appender) -> None:
    consumer = member()
    log.create("u", 2)
    consumer.subscribe(pattern=".")
    eventually(shared(consumer, count=6), "both")
    log.connection.run(log.calls.delete_topic("u"))
    eventually(shared(consumer), "one")


def test_pattern_that_is_no_pattern(member: Callable[..., Any], log: Appender) -> None:
    consumer = member()
    consumer.subscribe(pattern="(")
    with pytest.raises(InvalidSubscriptionError):
        for _ in range(1000):
            consumer.poll(timeout_ms=20)
    consumer.subscribe(["t"])
    eventually(shared(consumer), "a good subscription mends it")


def test_group_of_another_kind(member: Callable[..., Any], log: Appender, raw: Any) -> None:
    raw.execute("INSERT INTO logstore.log_group (name, kind) VALUES ('g', 'share')")
    consumer = member("t")
    with pytest.raises(InvalidGroupError):
        for _ in range(1000):
            consumer.poll(timeout_ms=20)


def test_subscribe_and_assign_do_not_mix(member: Callable[..., Any], log: Appender) -> None:
    consumer = member("t")
    with pytest.raises(IllegalStateError):
        consumer.assign(PARTITIONS)
    assert consumer.subscription() == {"t"}
    with pytest.raises(InvalidArgumentError):
        consumer.subscribe(["t"], pattern="t")
    consumer.unsubscribe()
    consumer.assign(PARTITIONS)
    with pytest.raises(IllegalStateError):
        consumer.subscribe(["t"])
    assert consumer.assignment() == frozenset(PARTITIONS)


def test_unsubscribing_leaves_the_group(member: Callable[..., Any], log: Appender, raw: Any) -> None:
    consumer = member("t")
    eventually(shared(consumer), "joined")
    assert len(member_ids(raw)) == 1
    consumer.unsubscribe()
    assert consumer.assignment() == frozenset()
    eventually(lambda: member_ids(raw) == set(), "left")
    consumer.subscribe(["t"])
    eventually(shared(consumer), "joined again")


def test_closing_leaves_the_group(member: Callable[..., Any], log: Appender, raw: Any) -> None:
    consumer = member("t")
    eventually(shared(consumer), "joined")
    consumer.close()
    assert member_ids(raw) == set()


def test_static_member_keeps_its_place(member: Callable[..., Any], log: Appender, raw: Any) -> None:
    other = member("t")
    first = member("t", group_instance_id="one")
    eventually(shared(other, first), "two")
    had, generation = first.assignment(), other.group_metadata().generation_id
    first.close()
    assert len(member_ids(raw)) == 2
    second = member("t", group_instance_id="one")

    def back() -> bool:
        second.poll(timeout_ms=5)
        other.poll(timeout_ms=5)
        return bool(second.assignment() == had)

    eventually(back, "the same partitions")
    assert other.group_metadata().generation_id == generation
    assert second.group_metadata().group_instance_id == "one"


@pytest.mark.every_server
def test_second_member_with_one_instance_id_fences_the_first(
    member: Callable[..., Any], log: Appender
) -> None:
    first = member("t", group_instance_id="one")
    eventually(shared(first), "alone")
    second = member("t", group_instance_id="one")
    eventually(shared(second), "the second one has everything")
    with pytest.raises(FencedInstanceIdError):
        for _ in range(1000):
            first.poll(timeout_ms=20)
    with pytest.raises(FencedInstanceIdError):
        first.poll()
    first.close()
    assert shared(second)()


def test_member_that_does_not_poll_loses_its_partitions(
    member: Callable[..., Any], log: Appender, raw: Any
) -> None:
    diary = Diary()
    slow = member(max_poll_interval_ms=300)
    slow.subscribe(["t"], listener=diary)
    eventually(shared(slow), "alone")
    eventually(lambda: member_ids(raw) == set(), "it has left")
    other = member("t")
    eventually(shared(other), "the other one has everything")
    eventually(shared(slow, other), "it is back")
    assert diary.entries[:2] == [("assigned", [0, 1, 2, 3]), ("lost", [0, 1, 2, 3])]


@pytest.mark.every_server
def test_handler_that_blocks_everything_keeps_its_partitions(
    colour: Colour, member: Callable[..., Any], log: Appender, raw: Any
) -> None:
    """Longer than the session timeout, and in asyncio on the event loop itself."""
    consumer = member("t", session_timeout_ms=1000)
    eventually(shared(consumer), "alone")

    def outlived() -> bool:
        row = raw.execute(
            "SELECT lease_until > joined_at + interval '3 seconds' FROM logstore.group_members"
        ).fetchone()
        assert row is not None, "it was thrown out"
        return bool(row[0])

    def handler() -> None:
        eventually(outlived, "the lease has been renewed beyond several session timeouts")

    run = getattr(colour, "run", lambda work: work())
    run(handler)
    generation = consumer.group_metadata().generation_id
    consumer.poll(timeout_ms=5)
    assert consumer.assignment() == frozenset(PARTITIONS)
    assert consumer.group_metadata().generation_id == generation


def test_member_that_was_removed_comes_back(member: Callable[..., Any], log: Appender, raw: Any) -> None:
    diary = Diary()
    consumer = member()
    consumer.subscribe(["t"], listener=diary)
    eventually(shared(consumer), "alone")
    raw.execute("SELECT logstore.remove_member('g', member_id) FROM logstore.group_members")

    def back() -> bool:
        consumer.poll(timeout_ms=5)
        return diary.entries[1:] == [("lost", [0, 1, 2, 3]), ("assigned", [0, 1, 2, 3])]

    eventually(back, "lost, and assigned again")


def test_members_survive_a_lost_connection(member: Callable[..., Any], log: Appender, raw: Any) -> None:
    diary = Diary()
    consumer = member()
    consumer.subscribe(["t"], listener=diary)
    eventually(shared(consumer), "alone")
    before = raw.execute("SELECT lease_until FROM logstore.group_members").fetchone()
    raw.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
        "WHERE application_name = 'logstore' AND datname = current_database() AND pid <> pg_backend_pid()"
    )

    def beats_again() -> bool:
        consumer.poll(timeout_ms=5)
        after = raw.execute("SELECT lease_until FROM logstore.group_members").fetchone()
        return bool(after[0] > before[0])

    eventually(beats_again, "the lease is renewed")
    log.append("t", values(1), 0)
    assert diary.entries == [("assigned", [0, 1, 2, 3])]


def test_member_whose_heart_fails_says_so(
    member: Callable[..., Any], log: Appender, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever it was: a member that is none any more must not wait for partitions for ever."""

    def fail(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(GroupCalls, "heartbeat_group", fail)
    consumer = member("t")

    def said() -> bool:
        try:
            consumer.poll(timeout_ms=5)
        except LogstoreError as error:
            return "ZeroDivisionError" in str(error)
        return False

    eventually(said, "poll raises it")


def test_enforced_rebalance_moves_nothing_that_is_even(member: Callable[..., Any], log: Appender) -> None:
    consumer = member("t")
    eventually(shared(consumer), "alone")
    generation = consumer.group_metadata().generation_id
    consumer.enforce_rebalance()

    def computed_again() -> bool:
        consumer.poll(timeout_ms=5)
        return bool(consumer.group_metadata().generation_id > generation)

    eventually(computed_again, "a new generation")
    assert consumer.assignment() == frozenset(PARTITIONS)


@pytest.mark.parametrize(
    "options",
    [
        {"delivery": "exactly_once", "group_id": None},
        {"delivery": "at_most_once", "group_id": None},
        {"delivery": "at_most_once", "enable_auto_commit": False},
        {"group_instance_id": "one", "group_id": None},
        {"heartbeat_interval_ms": 3000, "session_timeout_ms": 3000},
        {"group_id": ""},
        {"group_remote_assignor": "sticky"},
        {"enable_auto_commit": "yes"},
        {"group_idd": "g"},
    ],
)
def test_options_that_do_not_fit(member: Callable[..., Any], options: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        member("t", **options)


def test_without_a_group(colour: Colour, database: str, log: Appender) -> None:
    consumer = colour.consumer("t", dsn=database)
    for work in (consumer.commit, lambda: consumer.committed(PARTITIONS[0]), consumer.group_metadata):
        with pytest.raises(IllegalStateError):
            work()
    with pytest.raises(ConfigurationError):
        consumer.subscribe(pattern="t")
