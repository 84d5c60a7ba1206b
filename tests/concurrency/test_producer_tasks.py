"""The asyncio producer where tasks meet in it."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any

import pytest

from logstore import AsyncProducer, AsyncSendFuture
from logstore.errors import ClientClosedError, ConnectionFailedError
from tests.support import programs
from tests.support.appender import Appender
from tests.support.log import blocked, records, waiting_for_a_lock

ENOUGH_S = 60.0


async def eventually(condition: Callable[[], bool]) -> None:
    await asyncio.to_thread(programs.eventually, condition, "the state that is waited for")


def run(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(main(), debug=True)


def test_tasks_that_send_at_once_each_keep_their_order(database: str, appender: Appender) -> None:
    appender.create("t", 3)

    async def main() -> None:
        async with AsyncProducer(database, linger_ms=0, batch_size=500) as producer:

            async def send(task: int) -> list[AsyncSendFuture]:
                return [
                    await producer.send("t", b"%d %d" % (task, number), partition=task % 3)
                    for number in range(300)
                ]

            async def flush() -> None:
                for _ in range(20):
                    await producer.flush()

            *sent, _ = await asyncio.gather(*(send(task) for task in range(4)), flush())
            for futures in sent:
                assert futures is not None
                await asyncio.gather(*futures)

    run(main)
    by_task: dict[int, list[int]] = defaultdict(list)
    for each in records(database, "t"):
        task, number = map(int, (each.value or b"").split())
        by_task[task].append(number)
    assert by_task == {task: list(range(300)) for task in range(4)}


def test_loop_that_never_waits_starves_nobody(database: str, appender: Appender) -> None:
    """``await send()`` has to let others run now and then, or nothing would ever leave."""
    appender.create("t", 1)

    async def main() -> None:
        # So much room that sending never has to wait for any.
        async with AsyncProducer(database, linger_ms=0, batch_size=1000, buffer_memory=1 << 30) as producer:
            first = await producer.send("t", b"v" * 100)
            for _ in range(400_000):
                if first.done():
                    return
                await producer.send("t", b"v" * 100)
            raise AssertionError("the first record never was acknowledged")

    run(main)


def test_cancelled_waits_leave_the_record_on_its_way(database: str, appender: Appender) -> None:
    appender.create("t", 1)

    async def main() -> None:
        async with AsyncProducer(database, linger_ms=0) as producer:
            future = await producer.send("t", b"first")
            await future
            with blocked(database, "t"):
                future = await producer.send("t", b"v")
                await eventually(lambda: waiting_for_a_lock(database))
                waits = [
                    asyncio.ensure_future(future.get()),
                    asyncio.ensure_future(producer.flush()),
                    asyncio.ensure_future(asyncio.wait_for(future, 60)),
                ]
                await asyncio.sleep(0)
                for wait in waits:
                    wait.cancel()
                assert [type(each) for each in await asyncio.gather(*waits, return_exceptions=True)] == [
                    asyncio.CancelledError
                ] * 3
                assert not future.done()
                assert producer._accumulator.urgent == 0
            assert (await future).offset == 1

    run(main)


def test_cancelled_send_that_waits_for_room_takes_nothing(database: str, appender: Appender) -> None:
    appender.create("t", 1)

    async def main() -> None:
        async with AsyncProducer(database, linger_ms=0, buffer_memory=2000) as producer:
            sent = 0
            with blocked(database, "t"), pytest.raises(TimeoutError):
                async with asyncio.timeout(0.2):
                    while True:
                        await producer.send("t", b"v" * 100)
                        sent += 1
            await producer.flush()
            assert producer.metrics()["record-send-total"] == sent

    run(main)


def test_send_that_is_cancelled_while_it_lets_others_run_takes_nothing(
    database: str, appender: Appender, monkeypatch: pytest.MonkeyPatch
) -> None:
    appender.create("t", 1)

    async def cancelled() -> None:
        raise asyncio.CancelledError

    async def main() -> None:
        async with AsyncProducer(database, linger_ms=0) as producer:
            await producer.send("t", b"first")  # which has to look the topic up
            sent = 1
            with monkeypatch.context() as patched:
                patched.setattr("logstore._async.producer.breathe", cancelled)
                for attempt in range(10):
                    with suppress(asyncio.CancelledError):
                        if attempt % 2:
                            await producer.send("t", b"v")
                        else:
                            await producer.send_many("t", [b"v"])
                        sent += 1
            assert sent < 11
            await producer.flush()
            assert producer.metrics()["record-send-total"] == sent

    run(main)


def test_block_that_is_cancelled_ends_at_once(database: str, appender: Appender) -> None:
    appender.create("t", 1)

    async def main() -> None:
        entered = asyncio.Event()
        futures: list[AsyncSendFuture] = []

        async def produce() -> None:
            async with AsyncProducer(database, linger_ms=0) as producer:
                futures.append(await producer.send("t", b"v"))
                entered.set()
                await asyncio.Event().wait()

        with blocked(database, "t"):
            task = asyncio.create_task(produce())
            await entered.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        with pytest.raises(ClientClosedError):
            await futures[0]

    run(main)


def test_producer_starts_with_its_first_use_and_says_when_it_is_closed(
    database: str, appender: Appender
) -> None:
    appender.create("t", 1)

    async def main() -> None:
        producer = AsyncProducer(database)
        assert (await producer.send_and_wait("t", b"v")).offset == 0
        await producer.close()
        with pytest.raises(ClientClosedError):
            await producer.send("t", b"v")
        unused = AsyncProducer(database)
        await unused.close()

    run(main)


def test_tasks_that_begin_at_once_are_all_told_that_there_is_no_server() -> None:
    async def main() -> None:
        producer = AsyncProducer("postgresql://alice@127.0.0.1:1/orders")
        told = await asyncio.gather(*(producer.send("t", b"v") for _ in range(3)), return_exceptions=True)
        assert [type(each) for each in told] == [ConnectionFailedError] * 3
        await producer.close()

    run(main)


def test_loop_that_ends_without_closing_leaves_no_task_behind(database: str, appender: Appender) -> None:
    appender.create("t", 1)
    futures: list[AsyncSendFuture] = []

    async def main() -> None:
        producer = AsyncProducer(database, linger_ms=60_000, delivery_timeout_ms=120_000)
        futures.append(await producer.send("t", b"v"))

    run(main)
    assert futures[0].failed()
    assert isinstance(futures[0].outcome(), ClientClosedError)
