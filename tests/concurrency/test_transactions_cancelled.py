"""Tasks that are cancelled in the middle of a transaction, and threads that share its producer."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable

import pytest

from logstore import AsyncConsumer, AsyncProducer, Producer
from logstore.errors import IllegalStateError
from tests.support import programs
from tests.support.appender import Appender, values
from tests.support.log import blocked, records, waiting_for_a_lock, watch


async def eventually(condition: Callable[[], bool]) -> None:
    await asyncio.to_thread(programs.eventually, condition, "the state that is waited for")


def test_a_commit_that_is_cancelled_is_in_doubt_and_can_be_repeated(
    database: str, appender: Appender
) -> None:
    appender.create("t", 1)

    async def main() -> None:
        async with AsyncProducer(database, transactional_id="t") as producer:
            await producer.init_transactions()
            await producer.begin_transaction()
            future = await producer.send("t", b"1")
            with blocked(database, "t"):
                committing = asyncio.create_task(producer.commit_transaction())
                await eventually(lambda: waiting_for_a_lock(database))
                committing.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await committing
                with pytest.raises(IllegalStateError, match="not known yet"):
                    await producer.begin_transaction()
                assert not future.done()
            await producer.commit_transaction()
            assert (await future).offset == 0
            async with producer.transaction():
                await producer.send("t", b"2")

    asyncio.run(main(), debug=True)
    assert [each.value for each in records(database, "t")] == [b"1", b"2"]


def test_a_consumers_transaction_that_is_cancelled_is_rolled_back(database: str, appender: Appender) -> None:
    appender.create("in", 1)
    appender.create("t", 1)
    appender.append("in", values(3), 0)

    async def main() -> None:
        async with AsyncConsumer(
            "in", dsn=database, group_id="g", auto_offset_reset="earliest", delivery="exactly_once"
        ) as consumer:

            async def process() -> None:
                async with consumer.transaction(timeout_ms=30_000) as tx:
                    for record in tx.records:
                        await tx.send("t", record.value)

            with blocked(database, "t"):
                processing = asyncio.create_task(process())
                await eventually(lambda: waiting_for_a_lock(database))
                processing.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await processing
            await process()

    asyncio.run(main(), debug=True)
    assert [each.value for each in records(database, "t")] == values(3)
    assert watch(database, "SELECT max(committed_offset) FROM logstore.group_lag WHERE topic = 'in'") == 3


def test_threads_may_send_in_one_transaction(database: str, appender: Appender) -> None:
    appender.create("t", 2)
    with Producer(database, transactional_id="t") as producer:

        def send(thread: int) -> None:
            for number in range(500):
                producer.send("t", b"%d %d" % (thread, number), partition=thread % 2)

        with producer.transaction():
            threads = [threading.Thread(target=send, args=[thread]) for thread in range(4)]
            for each in threads:
                each.start()
            for each in threads:
                each.join()
            assert records(database, "t") == []
    for thread in range(4):
        found = [each.value for each in records(database, "t")]
        mine = [value for value in found if value and value.startswith(b"%d " % thread)]
        assert mine == [b"%d %d" % (thread, number) for number in range(500)]
