"""``logstore perf``: what this server and this machine do, measured through the public clients."""

from __future__ import annotations

import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import click

from logstore.cli.arguments import ACKS, ACKS_HELP, LINGER_HELP, complete_topic, property_option
from logstore.cli.clients import open_admin, open_consumer, open_producer, polls
from logstore.cli.endtoend import measure
from logstore.cli.extent import all_partitions
from logstore.cli.failures import CheckFailed, told_when_interrupted
from logstore.cli.latency import Latency, summarize
from logstore.cli.load import Payloads, paced
from logstore.cli.output import counted, human_count, note, print_json, progress_bar
from logstore.cli.root import Group, connection_options, output_option, settings

if TYPE_CHECKING:
    from logstore import BulkFuture, Producer, SendFuture

__all__ = ["perf"]

SAMPLES: Final = 10_000
"""At full speed the latency of this many records is taken, evenly spread: timing each would slow the rest."""
CHUNK: Final = 5000
"""Records in one call of send_many."""
SEEN: Final = 2000
"""Records between two looks at the bar."""


@click.group(
    cls=Group,
    examples=(
        "logstore perf produce --records 200000",
        "logstore perf e2e --rate 500 --records 1000",
    ),
)
@connection_options
def perf() -> None:
    """Measure throughput and latency.

    Without TOPIC each test makes a topic of its own and deletes it afterwards.  Clocks run from the
    first call to the last acknowledgement or record; connecting is not counted.
    """


def common(command: Any) -> Any:
    for option in (
        click.argument("topic", metavar="[TOPIC]", required=False, shell_complete=complete_topic),
        click.option("--partitions", metavar="N", type=click.IntRange(1), default=4, show_default=True,
                     help="Partitions of the test's own topic."),
        click.option("-s", "--record-size", metavar="N", type=click.IntRange(8), default=100,
                     show_default=True, help="Bytes of a value."),
        click.option("--keys", metavar="N", type=click.IntRange(0), default=1000, show_default=True,
                     help="Different keys, 16 bytes each; 0: no keys."),
        click.option("--json", "as_json", is_flag=True, help="The same as --output json."),
        output_option("text", "json"),
        connection_options,
    )[::-1]:  # fmt: skip
        command = option(command)
    return command


@perf.command(
    examples=(
        "logstore perf produce --records 200000 --acks 1",
        "logstore perf produce --records 5000 --rate 1000 --record-size 1000 --json",
    ),
)
@click.option(
    "-n",
    "--records",
    metavar="N",
    type=click.IntRange(1),
    default=500_000,
    show_default=True,
    help="Records to send.",
)
@click.option(
    "-r",
    "--rate",
    metavar="N",
    type=click.FloatRange(0),
    default=0,
    help="Records a second.  [default: as fast as it goes]",
)
@click.option("--acks", type=ACKS, default="all", show_default=True, help=ACKS_HELP)
@click.option("--bulk", is_flag=True, help=f"Use send_many with {CHUNK:,} records a call instead of send.")
@click.option("--linger-ms", metavar="N", type=click.IntRange(0), help=f"{LINGER_HELP}  [default: 5]")
@property_option("producer")
@common
def produce(
    topic: str | None,
    partitions: int,
    record_size: int,
    keys: int,
    as_json: bool,
    records: int,
    rate: float,
    acks: str,
    bulk: bool,
    linger_ms: int | None,
    client_properties: dict[str, Any],
) -> None:
    """Send records; latency is from send() to the acknowledgement."""
    if bulk and rate:
        raise click.UsageError("--bulk is for full speed: leave out --rate.", click.get_current_context())
    options = _producer_options(acks, linger_ms, client_properties)
    payloads = Payloads.make(record_size, keys)
    with _topic(topic, partitions) as name:
        sent, seconds, latencies = _produce(name, payloads, records, rate, bulk, options)
    size = sent * (record_size + (16 if keys else 0))
    _report(
        "produce",
        sent,
        size,
        seconds,
        summarize(latencies),
        "send to acknowledgement",
        {"acks": acks, "record_size": record_size, "keys": keys, "rate": rate, "bulk": bulk, "topic": name},
        as_json,
    )


@perf.command(
    examples=("logstore perf consume --records 200000", "logstore perf consume orders --json"),
)
@click.option(
    "-n",
    "--records",
    metavar="N",
    type=click.IntRange(1),
    default=500_000,
    show_default=True,
    help="Records to read; the test's own topic is filled with as many first.",
)
@property_option("consumer")
@common
def consume(
    topic: str | None,
    partitions: int,
    record_size: int,
    keys: int,
    as_json: bool,
    records: int,
    client_properties: dict[str, Any],
) -> None:
    """Read records from the beginning; latency is that of a poll that returned some."""
    with _topic(topic, partitions) as name:
        if topic is None:
            _produce(name, Payloads.make(record_size, keys), records, 0, True, {}, title="filling")
        got, size, seconds, latencies = _consume(name, records, client_properties)
    _report(
        "consume",
        got,
        size,
        seconds,
        summarize(latencies),
        "a poll",
        {"record_size": record_size, "topic": name},
        as_json,
    )


@perf.command(
    examples=(
        "logstore perf e2e --rate 500 --records 1000",
        "logstore perf e2e --rate 1000 --records 2000 --acks 1 --json",
    ),
)
@click.option(
    "-n",
    "--records",
    metavar="N",
    type=click.IntRange(1),
    default=10_000,
    show_default=True,
    help="Records to send.",
)
@click.option(
    "-r",
    "--rate",
    metavar="N",
    type=click.FloatRange(1),
    default=1000,
    show_default=True,
    help="Records a second.",
)
@click.option(
    "--warm-up",
    metavar="N",
    type=click.IntRange(0),
    default=100,
    show_default=True,
    help="First records not to count.",
)
@click.option("--acks", type=ACKS, default="all", show_default=True, help=ACKS_HELP)
@click.option(
    "--linger-ms",
    metavar="N",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    help=LINGER_HELP,
)
@property_option("producer")
@common
def e2e(
    topic: str | None,
    partitions: int,
    record_size: int,
    keys: int,
    as_json: bool,
    records: int,
    rate: float,
    warm_up: int,
    acks: str,
    linger_ms: int,
    client_properties: dict[str, Any],
) -> None:
    """Send at a steady rate and read meanwhile; latency is from when a record is due to poll()."""
    options = _producer_options(acks, linger_ms, client_properties)
    payloads = Payloads.make(record_size, keys)
    with _topic(topic, partitions) as name, _watched("end to end", warm_up + records) as seen:
        run = measure(
            open_producer(**options),
            open_consumer(auto_offset_reset="latest"),
            name,
            [payloads.values[number % len(payloads.values)] for number in range(warm_up + records)],
            [payloads.keys[number % len(payloads.keys)] for number in range(warm_up + records)]
            if payloads.keys
            else None,
            rate,
            seen,
        )
    counted = run.latencies[warm_up:]
    _report(
        "e2e",
        len(counted),
        len(counted) * (record_size + (16 if keys else 0)),
        run.seconds * len(counted) / max(1, len(run.latencies)),
        summarize(counted),
        "due to polled",
        {
            "acks": acks,
            "record_size": record_size,
            "keys": keys,
            "rate": rate,
            "linger_ms": linger_ms,
            "topic": name,
        },
        as_json,
    )


def _producer_options(acks: str, linger_ms: int | None, properties: dict[str, Any]) -> dict[str, Any]:
    options: dict[str, Any] = {"acks": acks if acks == "all" else int(acks), **properties}
    if linger_ms is not None:
        options["linger_ms"] = linger_ms
    return options


@contextmanager
def _topic(given: str | None, partitions: int) -> Iterator[str]:
    """The topic to use: the one given, or a new one that is deleted again, also after Ctrl-C."""
    if given is not None:
        yield given
        return
    name = f"perf-{uuid.uuid4().hex[:12]}"
    with open_admin() as admin:
        admin.create_topic(name, partitions=partitions)
    try:
        yield name
    finally:
        with open_admin() as admin:
            admin.delete_topic(name)


@contextmanager
def _watched(title: str, total: int) -> Iterator[Any]:
    """A function that takes how many are done and moves a bar, where somebody can see one."""
    if not sys.stderr.isatty():
        yield lambda done: None
        return
    with progress_bar() as progress:
        task = progress.add_task(title, total=total)
        yield lambda done: progress.update(task, completed=done)


def _produce(
    topic: str,
    payloads: Payloads,
    records: int,
    rate: float,
    bulk: bool,
    options: dict[str, Any],
    title: str = "producing",
) -> tuple[int, float, list[float]]:
    clock = time.perf_counter
    latencies: list[float] = []
    lost: list[Exception] = []

    def answered(due: float, _: object) -> None:
        latencies.append(clock() - due)

    with open_producer(**options) as producer, _watched(title, records) as seen:
        producer.partitions_for(topic)
        send = _bulk if bulk else partial(_one_by_one, rate=rate)
        began = clock()
        with told_when_interrupted(lambda: note(f"stopped: {_sent(producer)}")):
            for done, due, future in send(producer, topic, payloads, records):
                future.add_callback(answered, due).add_errback(lost.append)
                if done % SEEN == 0:
                    seen(done)
                    if lost:
                        break
            producer.flush()
        seconds = clock() - began
        seen(records)
    if lost:
        raise lost[0]
    if failures := producer.metrics()["record-error-total"]:
        raise CheckFailed(f"{failures:,.0f} of {records:,} records were not delivered.")
    return records, seconds, latencies


def _sent(producer: Producer) -> str:
    return f"{counted(int(producer.metrics()['record-send-total']), 'record')} acknowledged"


def _one_by_one(
    producer: Producer, topic: str, payloads: Payloads, records: int, rate: float
) -> Iterator[tuple[int, float, SendFuture]]:
    """Sends each record; yields every so many how many there were, when that was due, and its future."""
    every = 1 if rate else max(1, records // SAMPLES)
    values, keys = payloads.values, payloads.keys or (None,)
    variety, key_count = len(values), len(keys)
    send = producer.send
    for number, due in enumerate(paced(records, rate)):
        future = send(topic, values[number % variety], keys[number % key_count])
        if number % every == 0:
            yield number, due, future


def _bulk(
    producer: Producer, topic: str, payloads: Payloads, records: int
) -> Iterator[tuple[int, float, BulkFuture]]:
    values = (payloads.values * (CHUNK // len(payloads.values) + 1))[:CHUNK]
    keys = (payloads.keys * (CHUNK // len(payloads.keys) + 1))[:CHUNK] if payloads.keys else None
    for start in range(0, records, CHUNK):
        count = min(CHUNK, records - start)
        due = time.perf_counter()
        yield start, due, producer.send_many(topic, values[:count], keys=keys[:count] if keys else None)


def _consume(topic: str, records: int, options: dict[str, Any]) -> tuple[int, int, float, list[float]]:
    clock = time.perf_counter
    latencies: list[float] = []
    got = size = 0
    with open_consumer(**{"auto_offset_reset": "earliest", **options}) as consumer:
        everything = all_partitions(consumer, topic)
        ends = consumer.end_offsets(everything)
        starts = consumer.beginning_offsets(everything)
        wanted = min(records, sum(ends.values()) - sum(starts.values()))
        with _watched("consuming", wanted) as seen:
            began = last = clock()
            consumer.assign(everything)
            consumer.seek_to_beginning()
            polled = polls(consumer)
            with told_when_interrupted(lambda: note(f"stopped: {counted(got, 'record')} read")):
                while got < wanted:
                    asked = clock()
                    batches = next(polled).values()
                    if not batches:
                        continue
                    last = clock()
                    latencies.append(last - asked)
                    for batch in batches:
                        got += len(batch)
                        size += sum(len(record.value or b"") + len(record.key or b"") for record in batch)
                    seen(min(got, wanted))
    return got, size, last - began, latencies


def _report(
    test: str,
    records: int,
    size: int,
    seconds: float,
    latency: Latency,
    meaning: str,
    configuration: dict[str, Any],
    as_json: bool,
) -> None:
    rate = records / seconds if seconds > 0 else 0.0
    megabytes = size / seconds / 1e6 if seconds > 0 else 0.0
    if as_json or settings().output == "json":
        print_json(
            {
                "test": test,
                "records": records,
                "bytes": size,
                "seconds": round(seconds, 6),
                "records_per_second": round(rate, 1),
                "mb_per_second": round(megabytes, 3),
                "latency_ms": latency.document(),
                "configuration": configuration,
            }
        )
        return
    click.echo(
        f"{human_count(records)} records in {seconds:.2f} s: {human_count(rate)} rec/s, {megabytes:.1f} MB/s"
    )
    click.echo(f"{meaning}: {latency.line()}   ({human_count(latency.samples)} samples)")
