"""The threaded consumer where threads, forks and signals meet it."""

from __future__ import annotations

import gc
import os
import random
import signal
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterator

import pytest

from logstore import Admin, Consumer
from logstore._core.call import Call
from logstore.errors import ForkedClientError, WakeupError
from logstore.records import TopicPartition
from tests.support.appender import Appender, values
from tests.support.reading import ENOUGH_MS, read

TP = TopicPartition("t", 0)


@pytest.fixture
def hasty_threads() -> Iterator[None]:
    """Threads change as often as the interpreter can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("hasty_threads")
def test_any_method_while_another_thread_polls(database: str, appender: Appender) -> None:
    """Nothing breaks, nothing hangs, and each partition goes on from where the last seek put it."""
    appender.create("t", 3)
    for partition in range(3):
        for _ in range(5):
            appender.append("t", values(50), partition)
    tps = [TopicPartition("t", partition) for partition in range(3)]
    failures: list[BaseException] = []
    done = threading.Event()

    with Consumer("t", dsn=database, auto_offset_reset="earliest", max_poll_records=10) as consumer:

        def poll() -> None:
            last: dict[TopicPartition, int] = {}
            try:
                while not done.is_set():
                    try:
                        polled = consumer.poll(timeout_ms=5)
                    except WakeupError:
                        continue
                    for tp, records in polled.items():
                        offsets = [record.offset for record in records]
                        assert offsets == list(range(offsets[0], offsets[-1] + 1))
                        assert offsets[0] in (last.get(tp, 0), *range(0, 250, 25))
                        last[tp] = offsets[-1] + 1
            except BaseException as error:
                failures.append(error)

        def disturb() -> None:
            chance = random.Random(os.getpid())
            calls: list[Callable[[TopicPartition], object]] = [
                lambda tp: consumer.seek(tp, chance.randrange(0, 250, 25)),
                consumer.pause,
                consumer.resume,
                consumer.position,
                consumer.highwater,
                lambda tp: consumer.end_offsets([tp]),
                lambda tp: consumer.assignment(),
                lambda tp: consumer.paused(),
                lambda tp: consumer.wakeup(),
            ]
            try:
                for _ in range(150):
                    chance.choice(calls)(chance.choice(tps))
            except BaseException as error:
                failures.append(error)

        poller = threading.Thread(target=poll)
        poller.start()
        others = [threading.Thread(target=disturb) for _ in range(3)]
        for thread in others:
            thread.start()
        for thread in others:
            thread.join()
        done.set()
        poller.join()
        assert failures == []


@pytest.mark.usefixtures("hasty_threads")
def test_admin_shared_by_threads(database: str) -> None:
    with Admin(database) as admin:
        threads = [
            threading.Thread(
                target=lambda number=number: admin.create_topics([f"{number}-{n}" for n in range(3)])
            )
            for number in range(6)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(admin.list_topics()) == 18


def test_fork(database: str, appender: Appender) -> None:
    """A child may not use its parent's client, and does not disturb it."""
    appender.create("t")
    appender.append("t", values(3))
    with Consumer("t", dsn=database, auto_offset_reset="earliest") as consumer, Admin(database) as admin:
        assert len(read(consumer, 3)) == 3
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # forking with threads is what this is about
            child = os.fork()
        if child == 0:
            status = 1
            try:
                calls: list[Callable[[], object]] = [
                    consumer.poll,
                    consumer.assignment,
                    consumer.wakeup,
                    admin.list_topics,
                    lambda: next(consumer),
                ]
                for call in calls:
                    with pytest.raises(ForkedClientError):
                        call()
                consumer.close()
                admin.close()
                del consumer, admin
                gc.collect()
                status = 0
            finally:
                os._exit(status)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        appender.append("t", [b"after"])
        assert [r.value for r in read(consumer, 1)] == [b"after"]
        assert admin.list_topics() == ["t"]


def test_consumer_that_nobody_closes_goes_away(database: str, appender: Appender) -> None:
    appender.create("t")
    consumer = Consumer("t", dsn=database, client_id="forgotten")
    consumer.poll()
    del consumer
    gc.collect()
    call = Call(
        "SELECT 1 FROM pg_catalog.pg_stat_activity WHERE application_name = $1::text",
        ("forgotten",),
        len,
        "pg_stat_activity",
    )
    while appender.connection.run(call):
        pass


@pytest.mark.parametrize("asynchronous", [False, True], ids=["threads", "asyncio"])
@pytest.mark.parametrize("wait", ["poll(timeout_ms=3_600_000)", "__anext__()"])
def test_ctrl_c_ends_a_program_that_waits(
    database: str, appender: Appender, wait: str, asynchronous: bool
) -> None:
    appender.create("t")
    threaded = f"""
from logstore import Consumer
with Consumer("t", dsn={database!r}) as consumer:
    consumer.poll()
    print("waiting", flush=True)
    consumer.{wait.replace("__anext__", "__next__")}
"""
    tasks = f"""
import asyncio
from logstore import AsyncConsumer
async def main():
    async with AsyncConsumer("t", dsn={database!r}) as consumer:
        await consumer.poll()
        print("waiting", flush=True)
        await consumer.{wait}
asyncio.run(main())
"""
    program = subprocess.Popen(
        [sys.executable, "-c", tasks if asynchronous else threaded],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with program:
        assert program.stdout is not None
        assert program.stdout.readline() == "waiting\n"
        program.send_signal(signal.SIGINT)
        _, errors = program.communicate(timeout=ENOUGH_MS / 1000)
    assert program.returncode == -signal.SIGINT
    assert errors.rstrip().endswith("KeyboardInterrupt")
