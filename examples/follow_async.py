"""A consumer that waits while a producer writes, on asyncio.

python examples/follow_async.py
"""

import asyncio

from logstore import AsyncAdmin, AsyncConsumer, AsyncProducer, TopicPartition

TOPIC = "ticks"
TICKS = 5


async def follow(consumer: AsyncConsumer) -> None:
    seen = 0
    async for record in consumer:
        print(f"offset {record.offset}: {record.value.decode()}")
        seen += 1
        if seen == TICKS:
            return


async def main() -> None:
    async with AsyncAdmin() as admin:
        await admin.create_topic(TOPIC, if_not_exists=True)
    async with AsyncConsumer() as consumer, AsyncProducer(linger_ms=0) as producer:
        partition = TopicPartition(TOPIC, 0)
        consumer.assign([partition])
        # What comes from now on; position() makes sure that "now" is before the first tick.
        await consumer.seek_to_end(partition)
        await consumer.position(partition)
        following = asyncio.create_task(follow(consumer))
        for number in range(TICKS):
            await producer.send_and_wait(TOPIC, f"tick {number}".encode())
        await following


asyncio.run(main())
