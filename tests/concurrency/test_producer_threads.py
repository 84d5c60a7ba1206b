"""The threaded producer where threads meet in it."""

from __future__ import annotations

import sys
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from time import monotonic, time
from typing import Any

import pytest

from logstore import Producer, SendFuture
from logstore._core.accumulator import Accumulator
from logstore._core.batch import Batch
from logstore._core.row_batch import _HOLE
from logstore._sync.driver import Connection
from logstore._sync.lane import Lane
from logstore.errors import ClientClosedError, LogstoreError, RetriableError
from tests.support.appender import Appender
from tests.support.log import blocked, records, terminate, waiting_for_a_lock
from tests.support.programs import eventually

ENOUGH_S = 60.0


@pytest.fixture(autouse=True)
def hasty_threads() -> Iterator[None]:
    """Threads change as often as the interpreter can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def together(*jobs: Callable[[], object]) -> list[BaseException]:
    """Run ``jobs`` at once; what they raised."""
    raised: list[BaseException] = []
    begin = threading.Barrier(len(jobs))

    def run(job: Callable[[], object]) -> None:
        begin.wait()
        try:
            job()
        except BaseException as error:
            raised.append(error)

    threads = [threading.Thread(target=run, args=(job,)) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return raised


def test_threads_that_send_at_once_each_keep_their_order(database: str, appender: Appender) -> None:
    appender.create("t", 3)
    futures: dict[int, list[SendFuture]] = defaultdict(list)
    with Producer(database, linger_ms=0, batch_size=500) as producer:

        def send(thread: int) -> None:
            for number in range(0, 400, 4):
                for single in (number, number + 1):
                    value = b"%d %d" % (thread, single)
                    futures[thread].append(producer.send("t", value, partition=thread % 3))
                pair = [b"%d %d" % (thread, single) for single in (number + 2, number + 3)]
                producer.send_many("t", pair, partition=thread % 3)

        def flush() -> None:
            for _ in range(50):
                producer.flush()
                producer.metrics()

        sending = [lambda thread=thread: send(thread) for thread in range(5)]
        assert together(*sending, flush, flush) == []
    by_thread: dict[int, list[int]] = defaultdict(list)
    at: dict[tuple[int, int], bytes | None] = {}
    for partition, offset, _, value in records(database, "t"):
        thread, number = map(int, (value or b"").split())
        by_thread[thread].append(number)
        at[partition, offset] = value
    for thread in range(5):
        assert by_thread[thread] == list(range(400))
        wanted = [b"%d %d" % (thread, number) for number in range(400) if number % 4 < 2]
        found = [future.get(0) for future in futures[thread]]
        assert [at[each.partition, each.offset] for each in found] == wanted


def test_keyed_records_of_many_threads_are_there_once_and_in_order(database: str, appender: Appender) -> None:
    """They are added without the lock, while lanes take the batches away."""
    appender.create("t", 2)
    futures: dict[int, list[SendFuture]] = defaultdict(list)
    with Producer(database, linger_ms=0, batch_size=300) as producer:

        def send(thread: int) -> None:
            key = b"%d" % thread
            futures[thread] = [producer.send("t", b"%d" % number, key) for number in range(1500)]

        assert together(*(lambda thread=thread: send(thread) for thread in range(4))) == []
        producer.flush()
    by_thread: dict[int, list[int]] = defaultdict(list)
    at: dict[tuple[int, int], tuple[bytes | None, bytes | None]] = {}
    for partition, offset, key, value in records(database, "t"):
        by_thread[int(key or b"")].append(int(value or b""))
        at[partition, offset] = key, value
    for thread in range(4):
        assert by_thread[thread] == list(range(1500))
        found = [future.get(0) for future in futures[thread]]
        wanted = [(b"%d" % thread, b"%d" % number) for number in range(1500)]
        assert [at[each.partition, each.offset] for each in found] == wanted


def test_record_whose_batch_is_taken_away_goes_with_the_next(
    database: str, appender: Appender, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The batch is taken in the middle of send(), between its place and its record."""
    appender.create("t", 1)
    with Producer(database, linger_ms=60_000) as producer:
        first = producer.send("t", b"first", b"k")
        taken: list[Batch] = []

        def steal() -> float:
            monkeypatch.undo()
            with producer._lock:
                producer._accumulator.urgent += 1
                taken.extend(producer._accumulator.drain(monotonic(), 1))
                producer._accumulator.urgent -= 1
            return time()

        monkeypatch.setattr("logstore._sync.producer.time", steal)
        second = producer.send("t", b"second", b"k")
        assert [batch is first.batch for batch in taken] == [True]
        assert second.batch is not first.batch
        third = producer.send("t", b"third", b"k")
        with producer._lock:
            for batch in taken:
                assert len(batch) == 1
                assert producer._accumulator.retry(batch, RetriableError("again"), monotonic(), at_once=True)
        producer.flush()
        assert [future.get(0).offset for future in (first, second, third)] == [0, 1, 2]
    assert [value for _, _, _, value in records(database, "t")] == [b"first", b"second", b"third"]


def test_record_that_comes_while_its_batch_is_closed_goes_with_the_next(
    database: str, appender: Appender, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The batch's places are counted, its lists still there: nobody takes what is written to them now."""
    appender.create("t", 1)
    with Producer(database, linger_ms=60_000) as producer:
        first = producer.send("t", b"first", b"k")
        closing = first.batch

        def close() -> float:
            monkeypatch.undo()
            closing.closed, closing.given, closing.queue.open = True, 1, None
            return time()

        monkeypatch.setattr("logstore._sync.producer.time", close)
        second = producer.send("t", b"second", b"k")
        assert second.batch is not closing
        # Open again, as if nobody had written to it.
        closing.keys[1] = closing.values[1] = _HOLE
        closing.closed = False
        producer.flush()
        assert [future.get(0).offset for future in (first, second)] == [0, 1]
    assert [value for _, _, _, value in records(database, "t")] == [b"first", b"second"]


def test_flush_waits_for_what_was_sent_before_and_for_nothing_else(database: str, appender: Appender) -> None:
    appender.create("t", 2)
    with Producer(database, linger_ms=0) as producer:
        first = producer.send("t", b"first", partition=0)
        producer.flush()
        assert first.done()
        with blocked(database, "t"):
            before = producer.send("t", b"before", partition=0)
            eventually(lambda: waiting_for_a_lock(database), "it is under way")
            flushed = threading.Event()

            def flush() -> None:
                producer.flush()
                flushed.set()

            flushing = threading.Thread(target=flush)
            flushing.start()
            eventually(lambda: producer._accumulator.urgent > 0, "the flush has begun")
            assert not before.done()
            assert not flushed.is_set()
        flushing.join()
        assert before.done()


def test_close_while_others_send_delivers_or_fails_each_record(database: str, appender: Appender) -> None:
    appender.create("t", 2)
    for _ in range(10):
        producer = Producer(database, linger_ms=0)
        futures: list[SendFuture] = []

        def send(producer: Producer = producer, futures: list[SendFuture] = futures) -> None:
            while True:
                futures.append(producer.send("t", b"v"))

        def close(producer: Producer = producer, futures: list[SendFuture] = futures) -> None:
            eventually(lambda: len(futures) > 20, "some records are sent")
            producer.close()

        raised = together(send, send, close)
        assert [type(error) for error in raised] == [ClientClosedError] * 2
        assert all(future.succeeded() for future in futures)


def test_a_lane_that_ends_leaves_the_others_to_finish(
    database: str, appender: Appender, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unawaited records count as done before they are on their way: others have nothing left to do."""
    appender.create("t", 1)
    with Producer(database, acks=0, linger_ms=0) as producer:
        producer.partitions_for("t")
        lanes = producer._sender._lanes
        lanes.append(Lane(producer._sender))
        lanes[1].begin()
        eventually(lambda: producer.metrics()["connection-creation-total"] == 2, "both are connected")
        under_way = threading.Event()
        connect = Lane.connect

        def late(lane: Lane) -> Connection:
            under_way.set()
            (other,) = (each.task for each in lanes if each is not lane)
            assert other is not None
            eventually(lambda: not other.alive, "the other one has ended")
            return connect(lane)

        monkeypatch.setattr(Lane, "connect", late)
        producer.send("t", b"v")
        assert under_way.wait(ENOUGH_S)
    assert [value for _, _, _, value in records(database, "t")] == [b"v"]


def test_callbacks_added_while_the_batch_completes_are_called_once(database: str, appender: Appender) -> None:
    appender.create("t", 1)

    def once(producer: Producer) -> None:
        called: list[int] = []
        future = producer.send("t", b"v")
        adding = [lambda n=number: future.add_callback(lambda _: called.append(n)) for number in range(3)]
        assert together(*adding, lambda: future.get(ENOUGH_S)) == []
        eventually(lambda: len(called) == 3, "each was called")
        producer.flush()
        assert sorted(called) == [0, 1, 2]

    with Producer(database, linger_ms=0) as producer:
        for _ in range(200):
            once(producer)


def test_threads_wait_for_room_and_all_get_it(database: str, appender: Appender) -> None:
    appender.create("t", 2)
    with Producer(database, buffer_memory=3000, linger_ms=0) as producer:

        def send(thread: int) -> None:
            for number in range(100):
                producer.send("t", b"%d %d" % (thread, number) + b"x" * 200, partition=thread % 2)
            producer.send_many("t", [b"%d 100" % thread, b"%d 101" % thread], partition=thread % 2)

        assert together(*(lambda thread=thread: send(thread) for thread in range(4))) == []
    by_thread: dict[int, list[int]] = defaultdict(list)
    for each in records(database, "t"):
        thread, number = map(int, (each.value or b"").rstrip(b"x").split())
        by_thread[thread].append(number)
    assert by_thread == {thread: list(range(102)) for thread in range(4)}


def test_threads_ask_for_topics_at_once(database: str, appender: Appender) -> None:
    for number in range(4):
        appender.create(f"t{number}", number + 1)
    with Producer(database) as producer:

        def ask(number: int) -> None:
            assert producer.partitions_for(f"t{number % 4}") == set(range(number % 4 + 1))
            with pytest.raises(LogstoreError):
                producer.send(f"missing{number % 2}", b"v")

        assert together(*(lambda number=number: ask(number) for number in range(12))) == []


def test_connections_lost_under_many_threads_lose_nothing(database: str, appender: Appender) -> None:
    appender.create("t", 2)
    with Producer(database, linger_ms=0, client_id="victim", retry_backoff_ms=1) as producer:
        done = threading.Event()

        def kill() -> None:
            while not done.is_set():
                terminate(database, "victim")

        def send(thread: int) -> None:
            for number in range(150):
                producer.send("t", b"%d %d" % (thread, number), partition=thread % 2).get(ENOUGH_S)

        def send_all() -> None:
            try:
                assert together(*(lambda thread=thread: send(thread) for thread in range(3))) == []
            finally:
                done.set()

        assert together(kill, send_all) == []
    firsts: dict[int, dict[int, None]] = defaultdict(dict)
    for each in records(database, "t"):
        thread, number = map(int, (each.value or b"").split())
        firsts[thread][number] = None
    assert {thread: list(numbers) for thread, numbers in firsts.items()} == {
        thread: list(range(150)) for thread in range(3)
    }


def test_shared_state_is_touched_under_the_lock_only(
    database: str, appender: Appender, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The asyncio colour would not notice: whatever both sides touch has to be locked, every time."""
    appender.create("t", 3)
    appender.create("doomed", 1)
    unlocked: list[str] = []

    def guarded(name: str) -> Callable[..., Any]:
        plain = getattr(Accumulator, name)

        def method(self: Accumulator[Any], *arguments: Any, **options: Any) -> Any:
            if not self._lock._is_owned():
                unlocked.append(name)
            return plain(self, *arguments, **options)

        return method

    for name, found in vars(Accumulator).items():
        if callable(found) and not name.startswith("_"):
            monkeypatch.setattr(Accumulator, name, guarded(name))
    for name in ("callbacks", "event"):
        slot = vars(Batch)[name]

        def write(batch: Batch, value: object, slot: Any = slot, name: str = name) -> None:
            if value is not None and not batch.lock._is_owned():
                unlocked.append(name)
            slot.__set__(batch, value)

        monkeypatch.setattr(Batch, name, property(slot.__get__, write))

    with Producer(database, buffer_memory=20_000, batch_size=500, client_id="victim") as producer:
        for number in range(300):
            producer.send("t", b"v" * 200, key=b"%d" % number).add_callback(lambda _: None)
        future = producer.send_many("t", [b"v" * 50] * 300).add_callback(lambda _: None)
        terminate(database, "victim")
        future.get(ENOUGH_S)
        producer.send("doomed", b"v")
        appender.connection.run(appender.calls.delete_topic("doomed"))
        producer.flush()
        producer.metrics()
        assert producer.partitions_for("t") == {0, 1, 2}
    assert unlocked == []
