"""A work queue: four processes share the requests of a web server's log, client by client in order.

    python examples/work_queue.py [FILE] [REQUESTS]

Requests that the server answered with an error fail here too: they are tried again, after a while, and end as
dead letters. Meanwhile no later request of the same client is taken, and one of the processes is killed.
"""

import multiprocessing
import re
import sys
import time
from pathlib import Path

import psycopg

from logstore import Admin, Producer, ShareConsumer
from logstore.share import ACCEPT, REJECT, RELEASE

TOPIC, DEAD, GROUP = "work", "dlq.work", "workers"


def work(name: str, dsn: str) -> None:
    """Take requests, until none has come for two seconds."""
    counts = dict.fromkeys(("done", "to be tried again", "given up"), 0)
    with ShareConsumer(
        TOPIC, group_id=GROUP, dsn=dsn, share_acknowledgement_mode="explicit", key_ordered=True
    ) as consumer:
        while polled := consumer.poll(timeout_ms=2000, max_records=100):
            for request in (each for requests in polled.values() for each in requests):
                failed = re.search(rb'" ([45]\d\d) ', request.value)
                if failed is None:
                    consumer.acknowledge(request, ACCEPT)
                    counts["done"] += 1
                elif request.delivery_count < 3:
                    consumer.acknowledge(request, RELEASE)
                    counts["to be tried again"] += 1
                else:
                    consumer.acknowledge(request, REJECT, reason=f"status {failed[1].decode()}")
                    counts["given up"] += 1
        consumer.commit()
    print(f"{name}: " + ", ".join(f"{count} {outcome}" for outcome, count in counts.items()), flush=True)


def main() -> None:
    source = Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parent / "data" / "apache_access.log")
    lines = source.read_bytes().splitlines()[: int(sys.argv[2]) if len(sys.argv) > 2 else 2000]
    with Admin() as admin:
        admin.create_topic(TOPIC, if_not_exists=True)
        admin.create_topic(DEAD, if_not_exists=True)
        admin.alter_share_configs(
            GROUP,
            {
                "errors.deadletterqueue.topic.name": DEAD,
                "share.auto.offset.reset": "earliest",
                "share.record.lock.duration.ms": 1000,
                "share.retry.backoff.ms": 100,
            },
        )
        dsn = admin.dsn or ""
    with Producer() as producer:
        producer.send_many(TOPIC, lines, keys=[line.split(b" ", 1)[0] for line in lines]).get(timeout=60)
    print(f"{len(lines)} requests wait")

    context = multiprocessing.get_context("spawn")
    crew = [context.Process(target=work, args=(f"worker {number}", dsn)) for number in range(4)]
    for process in crew:
        process.start()
    with psycopg.connect(dsn, autocommit=True) as connection:
        begun = 'SELECT sum(start_offset) > 0 FROM logstore.share_groups WHERE "group" = %s'
        while not (connection.execute(begun, [GROUP]).fetchone() or (False,))[0]:
            time.sleep(0.05)
        crew[0].kill()
        print("worker 0: killed; others get what it had in a second")
        for process in crew:
            process.join()
        left = connection.execute(
            'SELECT sum(lag)::int8 FROM logstore.share_groups WHERE "group" = %s', [GROUP]
        ).fetchone()
        print(f"left to do: {left[0] if left else 0}")
        letters = connection.execute(
            """SELECT h ->> 'value', count(*) FROM logstore.records, jsonb_array_elements(headers) h
               WHERE topic = %s AND h ->> 'key' = '__dlq.errors.message' GROUP BY 1 ORDER BY 2 DESC""",
            [DEAD],
        ).fetchall()
        print("dead letters: " + ", ".join(f"{count} because of {reason}" for reason, count in letters))


if __name__ == "__main__":
    main()
