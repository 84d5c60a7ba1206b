"""A Kafka-like commit log whose broker is PostgreSQL.

::

    from logstore import Consumer, Producer

    with Producer() as producer:
        producer.send("orders", b"a value", key=b"a key")
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Final

from logstore.errors import *  # noqa: F403 (every error, which its module lists)
from logstore.errors import __all__ as _errors

if TYPE_CHECKING:
    from logstore._async.admin import AsyncAdmin
    from logstore._async.consumer import AsyncConsumer
    from logstore._async.consumer_transaction import ConsumerTransaction as AsyncConsumerTransaction
    from logstore._async.futures import BulkFuture as AsyncBulkFuture
    from logstore._async.futures import SendFuture as AsyncSendFuture
    from logstore._async.futures import StagedFuture as AsyncStagedFuture
    from logstore._async.producer import AsyncProducer
    from logstore._async.reading import read as async_read
    from logstore._async.share_consumer import AsyncShareConsumer
    from logstore._core.listener import ConsumerRebalanceListener
    from logstore._sync.admin import Admin
    from logstore._sync.consumer import Consumer
    from logstore._sync.consumer_transaction import ConsumerTransaction
    from logstore._sync.futures import BulkFuture, SendFuture, StagedFuture
    from logstore._sync.producer import Producer
    from logstore._sync.reading import read
    from logstore._sync.share_consumer import ShareConsumer
    from logstore.quotas import ClientQuotaEntity
    from logstore.records import (
        BatchMetadata,
        ConsumerGroupMetadata,
        ConsumerRecord,
        OffsetAndMetadata,
        OffsetAndTimestamp,
        RecordMetadata,
        TopicPartition,
    )
    from logstore.share import AcknowledgeType, ShareRecord, deliver_after

__all__ = [
    "AcknowledgeType",
    "Admin",
    "AsyncAdmin",
    "AsyncBulkFuture",
    "AsyncConsumer",
    "AsyncConsumerTransaction",
    "AsyncProducer",
    "AsyncSendFuture",
    "AsyncShareConsumer",
    "AsyncStagedFuture",
    "BatchMetadata",
    "BulkFuture",
    "ClientQuotaEntity",
    "Consumer",
    "ConsumerGroupMetadata",
    "ConsumerRebalanceListener",
    "ConsumerRecord",
    "ConsumerTransaction",
    "OffsetAndMetadata",
    "OffsetAndTimestamp",
    "Producer",
    "RecordMetadata",
    "SendFuture",
    "ShareConsumer",
    "ShareRecord",
    "StagedFuture",
    "TopicPartition",
    "async_read",
    "deliver_after",
    "read",
]
__all__ += _errors

_HOMES: Final = {
    "AcknowledgeType": "share:AcknowledgeType",
    "Admin": "_sync.admin:Admin",
    "AsyncAdmin": "_async.admin:AsyncAdmin",
    "AsyncBulkFuture": "_async.futures:BulkFuture",
    "AsyncConsumer": "_async.consumer:AsyncConsumer",
    "AsyncConsumerTransaction": "_async.consumer_transaction:ConsumerTransaction",
    "AsyncProducer": "_async.producer:AsyncProducer",
    "AsyncSendFuture": "_async.futures:SendFuture",
    "AsyncShareConsumer": "_async.share_consumer:AsyncShareConsumer",
    "AsyncStagedFuture": "_async.futures:StagedFuture",
    "BatchMetadata": "records:BatchMetadata",
    "BulkFuture": "_sync.futures:BulkFuture",
    "ClientQuotaEntity": "quotas:ClientQuotaEntity",
    "Consumer": "_sync.consumer:Consumer",
    "ConsumerGroupMetadata": "records:ConsumerGroupMetadata",
    "ConsumerRebalanceListener": "_core.listener:ConsumerRebalanceListener",
    "ConsumerRecord": "records:ConsumerRecord",
    "ConsumerTransaction": "_sync.consumer_transaction:ConsumerTransaction",
    "OffsetAndMetadata": "records:OffsetAndMetadata",
    "OffsetAndTimestamp": "records:OffsetAndTimestamp",
    "Producer": "_sync.producer:Producer",
    "RecordMetadata": "records:RecordMetadata",
    "SendFuture": "_sync.futures:SendFuture",
    "ShareConsumer": "_sync.share_consumer:ShareConsumer",
    "ShareRecord": "share:ShareRecord",
    "StagedFuture": "_sync.futures:StagedFuture",
    "TopicPartition": "records:TopicPartition",
    "async_read": "_async.reading:read",
    "deliver_after": "share:deliver_after",
    "read": "_sync.reading:read",
}
"""Where each name is, imported when it is first asked for: a program pays for the driver that it uses, and
``logstore --help`` for none."""


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, _, attribute = home.partition(":")
    found = globals()[name] = getattr(importlib.import_module(f"{__name__}.{module}"), attribute)
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
