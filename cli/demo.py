"""``logstore demo``: 10,000 real HTTP requests through the log, and every one checked."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import click

from logstore.cli.access_log import Request, requests
from logstore.cli.checks import LINE, Check, compare, line_of
from logstore.cli.clients import open_admin, open_consumer, open_producer, polls
from logstore.cli.endtoend import measure
from logstore.cli.extent import Extent, extents, partitions_of
from logstore.cli.failures import CheckFailed, Refused
from logstore.cli.latency import Latency, summarize
from logstore.cli.output import print_json
from logstore.cli.query import Answer, Query, run_queries
from logstore.cli.questions import questions
from logstore.cli.root import Command, connection_options, output_option, settings
from logstore.cli.story import Teller
from logstore.records import ConsumerRecord, TopicPartition

if TYPE_CHECKING:
    from logstore import Admin

__all__ = ["demo"]

PARTITIONS: Final = 4
LATENCY_RATE: Final = 1000
LATENCY_RECORDS: Final = 2000
WARM_UP: Final = 100


@dataclass(slots=True)
class Run:
    """Everything the demo found out."""

    topic: str
    requests: list[Request]
    embedded: bool
    rate: int = LATENCY_RATE
    """Records a second, while latency is measured."""
    server: dict[str, Any] = field(default_factory=dict)
    produced_s: float = 0.0
    consumed_s: float = 0.0
    received: dict[TopicPartition, list[ConsumerRecord]] = field(default_factory=dict)
    checks: list[Check] = field(default_factory=list)
    latency: Latency | None = None
    extents: list[Extent] = field(default_factory=list)
    answers: list[Answer] = field(default_factory=list)

    @property
    def bytes(self) -> int:
        return sum(len(request.client) + len(request.value) for request in self.requests)


@click.command(cls=Command, examples=("logstore demo", "logstore demo --output json"))
@click.option(
    "--topic",
    default="access",
    show_default=True,
    metavar="TOPIC",
    help="Where to put the records.  Recreated if an earlier demo made it; never if somebody else did.",
)
@output_option("text", "json")
@connection_options
def demo(topic: str) -> None:
    """Run 10,000 real HTTP requests through the log and check every one.

    Produces a web server's access log keyed by client address, reads it back, checks that nothing is
    missing, repeated, altered or out of order per client, measures throughput and latency, and asks SQL
    about the records.  Exits with 1 if a check fails.  The topic stays, to be looked at.
    """
    tell = Teller(quiet=settings().output == "json")
    run = Run(topic, list(requests()), embedded=not (settings().dsn or os.environ.get("LOGSTORE_DSN")))
    tell.opening(run)
    with open_admin() as admin:
        _fresh_topic(admin, topic)
        assert admin.dsn is not None
        run.server = _server(admin.dsn)
        run.extents = extents(admin, partitions_of(admin, [topic]))
        tell.setting(run)
        _produce(run, tell)
        _consume(run, tell)
        run.latency = _latency(admin, run, tell)
        run.checks = compare(run.requests, run.received)
        tell.checks(run.checks)
        run.extents = extents(admin, partitions_of(admin, [topic]))
        run.answers = run_queries(admin.dsn, settings().schema, questions(settings().schema, topic))
    tell.results(run)
    if settings().output == "json":
        print_json(_document(run))
    failed = [check for check in run.checks if not check.passed]
    if failed:
        raise CheckFailed(
            f"{len(failed)} of {len(run.checks)} checks failed: {failed[0].title}: {failed[0].detail}"
        )
    tell.closing(run)


def _fresh_topic(admin: Admin, topic: str) -> None:
    """An empty topic; one that holds anything but an earlier demo's records is left alone."""
    if topic in admin.list_topics():
        if not _made_by_demo(admin, topic):
            raise Refused(
                f"Topic {topic!r} holds other records than the demo's. Choose another with --topic."
            )
        admin.delete_topic(topic)
    # The requests are of 2015: by Kafka's default of seven days they would be out of date at once.
    admin.create_topic(topic, partitions=PARTITIONS, configs={"retention.ms": "-1"})


def _made_by_demo(admin: Admin, topic: str) -> bool:
    """Whether each partition begins and ends with a record that carries the demo's header."""
    reach = [extent for extent in extents(admin, partitions_of(admin, [topic])) if extent.records]
    with open_consumer(auto_offset_reset="earliest", max_poll_records=1) as consumer:
        for extent in reach:
            tp = TopicPartition(topic, extent.partition)
            consumer.assign([tp])
            for offset in (extent.start, extent.end - 1):
                consumer.seek(tp, offset)
                record = next(iter(consumer.poll(timeout_ms=5000).get(tp, ())), None)
                if record is None or line_of(record) is None:
                    return False
    return True


def _produce(run: Run, tell: Teller) -> None:
    clock = time.perf_counter
    with tell.progress("produce", len(run.requests)) as seen, open_producer(acks="all") as producer:
        producer.partitions_for(run.topic)
        began = clock()
        futures = []
        for number, request in enumerate(run.requests, 1):
            futures.append(
                producer.send(
                    run.topic,
                    request.value,
                    request.client,
                    headers=[(LINE, b"%d" % number)],
                    timestamp_ms=request.timestamp_ms,
                )
            )
            if number % 500 == 0:
                seen(number)
        producer.flush()
        run.produced_s = clock() - began
        for future in futures:
            future.result(0)


def _consume(run: Run, tell: Teller) -> None:
    clock = time.perf_counter
    received: dict[TopicPartition, list[ConsumerRecord]] = {}
    count = 0
    with (
        tell.progress("consume", len(run.requests)) as seen,
        open_consumer(auto_offset_reset="earliest") as consumer,
    ):
        everything = [TopicPartition(run.topic, number) for number in range(PARTITIONS)]
        end = sum(consumer.end_offsets(everything).values())
        began = last = clock()
        consumer.assign(everything)
        consumer.seek_to_beginning(*everything)
        polled = polls(consumer)
        while count < end:
            for tp, records in next(polled).items():
                received.setdefault(tp, []).extend(records)
                count += len(records)
            last = clock()
            seen(count)
        run.consumed_s = last - began
    run.received = dict(sorted(received.items()))


def _latency(admin: Admin, run: Run, tell: Teller) -> Latency:
    """The same requests at a steady rate, through a topic of their own, while a consumer waits for them."""
    with _passing_topic(admin, run.topic) as name, tell.progress("live", WARM_UP + LATENCY_RECORDS) as seen:
        sample = run.requests[: WARM_UP + LATENCY_RECORDS]
        measured = measure(
            open_producer(acks="all", linger_ms=0),
            open_consumer(auto_offset_reset="latest"),
            name,
            [request.value for request in sample],
            [request.client for request in sample],
            LATENCY_RATE,
            seen,
        )
    return summarize(measured.latencies[WARM_UP:])


@contextmanager
def _passing_topic(admin: Admin, topic: str) -> Iterator[str]:
    name = f"{topic}.latency-{uuid.uuid4().hex[:8]}"
    admin.create_topic(name, partitions=PARTITIONS)
    try:
        yield name
    finally:
        admin.delete_topic(name)


def _server(dsn: str) -> dict[str, Any]:
    answer = run_queries(
        dsn,
        settings().schema,
        [
            Query(
                "",
                "SELECT current_setting('server_version'), current_setting('fsync'), "
                "current_setting('synchronous_standby_names')",
            )
        ],
    )[0]
    version, fsync, standbys = answer.rows[0]
    return {"version": version, "fsync": fsync == "on", "synchronous_standbys": standbys}


def _document(run: Run) -> Mapping[str, Any]:
    count = len(run.requests)
    assert run.latency is not None
    return {
        "topic": run.topic,
        "server": run.server,
        "requests": count,
        "bytes": run.bytes,
        "passed": all(check.passed for check in run.checks),
        "checks": [check._asdict() for check in run.checks],
        "produce": {
            "seconds": round(run.produced_s, 6),
            "records_per_second": round(count / run.produced_s, 1),
        },
        "consume": {
            "seconds": round(run.consumed_s, 6),
            "records_per_second": round(count / run.consumed_s, 1),
        },
        "latency_ms": {**run.latency.document(), "rate": LATENCY_RATE},
        "partitions": [extent.document() for extent in run.extents],
        "queries": [
            {
                "question": answer.query.question,
                "sql": answer.query.sql,
                "rows": [dict(zip(answer.columns, row, strict=True)) for row in answer.rows],
            }
            for answer in run.answers
        ],
    }
