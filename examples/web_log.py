"""A web server's log in a topic, keyed by client address; then SQL about it.

python examples/web_log.py [FILE]
"""

import sys
from pathlib import Path

import psycopg

from logstore import Admin, Producer

source = Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parent / "data" / "apache_access.log")

with Admin() as admin:
    # The demo's requests are of 2015: seven days, Kafka's default, would be over at once.
    admin.create_topic("web-log", partitions=4, configs={"retention.ms": -1}, if_not_exists=True)
    dsn = admin.dsn or ""

lines = source.read_bytes().splitlines()
with Producer() as producer:
    written = producer.send_many("web-log", lines, keys=[line.split(b" ", 1)[0] for line in lines])
    for run in written.get(timeout=60):
        print(f"partition {run.partition}: {run.record_count} records from offset {run.base_offset}")

with psycopg.connect(dsn) as connection:
    busiest = connection.execute(
        """
        SELECT key_text, count(*)
        FROM logstore.records WHERE topic = 'web-log'
        GROUP BY 1 ORDER BY 2 DESC LIMIT 3
        """
    )
    for client, requests in busiest:
        print(f"{client} made {requests} requests")
