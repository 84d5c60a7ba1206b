"""A Kafka-like commit log whose broker is PostgreSQL.

::

    from logstore import Consumer, Producer

    with Producer() as producer:
        producer.send("orders", b"a value", key=b"a key")
"""

from __future__ import annotations

from logstore._async.admin import AsyncAdmin
from logstore._async.consumer import AsyncConsumer
from logstore._async.futures import BulkFuture as AsyncBulkFuture
from logstore._async.futures import SendFuture as AsyncSendFuture
from logstore._async.producer import AsyncProducer
from logstore._sync.admin import Admin
from logstore._sync.consumer import Consumer
from logstore._sync.futures import BulkFuture, SendFuture
from logstore._sync.producer import Producer
from logstore.errors import *  # noqa: F403 (every error, which its module lists)
from logstore.errors import __all__ as _errors
from logstore.records import (
    BatchMetadata,
    ConsumerRecord,
    OffsetAndTimestamp,
    RecordMetadata,
    TopicPartition,
)

__all__ = [
    "Admin",
    "AsyncAdmin",
    "AsyncBulkFuture",
    "AsyncConsumer",
    "AsyncProducer",
    "AsyncSendFuture",
    "BatchMetadata",
    "BulkFuture",
    "Consumer",
    "ConsumerRecord",
    "OffsetAndTimestamp",
    "Producer",
    "RecordMetadata",
    "SendFuture",
    "TopicPartition",
]
__all__ += _errors
