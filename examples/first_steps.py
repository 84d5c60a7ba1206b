"""A topic, a record, and the record again.

    python examples/first_steps.py

Without LOGSTORE_DSN it starts, or joins, a PostgreSQL of its own.
"""

from logstore import Admin, Consumer, Producer

with Admin() as admin:
    admin.create_topic("first-steps", partitions=2, if_not_exists=True)

with Producer() as producer:
    where = producer.send("first-steps", key=b"alice", value=b"hello").get(timeout=10)
    print(f"written to partition {where.partition} at offset {where.offset}")

with Consumer("first-steps", auto_offset_reset="earliest", consumer_timeout_ms=500) as consumer:
    for record in consumer:
        print(record.partition, record.offset, record.key, record.value)
