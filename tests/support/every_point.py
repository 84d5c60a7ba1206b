"""One fault at each request that a few clients make, one after the other: nothing is lost, nothing twice.

``python -m tests.support.every_point`` has each kind of fault befall each request of a story: an idempotent
producer sends, a transactional one commits, aborts and commits, a member of a group processes everything
exactly once, a reader reads it.  One lost connection is no reason to fail: everything has to succeed in the
end, though a client may have to be made, or a transaction of the consumer begun, a second time.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar

from logstore import Consumer, Producer
from logstore._core.calls import Calls
from logstore._sync.driver import Connection
from logstore.errors import LogstoreError, TransactionAbortedError, UnknownOutcomeError
from tests.history.checker import Verdict, check
from tests.history.plan import Plan
from tests.history.readers import finish, polled
from tests.history.record import FAIL, INFO, OK, Recorder, Send, read_history
from tests.support.proxy import Fault, Proxy
from tests.support.servers import embedded

__all__ = ["Point", "points", "strike_each"]

T = TypeVar("T")

TIMEOUT_MS: Final = 1500
"""After so long a request that meets silence is given up; no other takes so long."""
SENT: Final = 3
TRANSACTIONS: Final = (OK, FAIL, OK)
"""Committed, aborted, committed."""
RECORDS: Final = SENT + 2 * TRANSACTIONS.count(OK)
"""What there is to be processed."""


class Point(NamedTuple):
    fault: Fault
    request: int
    """Counted from the story's beginning, over all connections."""


@dataclass
class Result:
    point: Point
    struck: bool
    """The story made so many requests."""
    verdict: Verdict
    wrong: list[str]

    @property
    def ok(self) -> bool:
        return self.verdict.ok and not self.wrong

    def __str__(self) -> str:
        return f"{self.point.fault.name} at request {self.point.request}: {self.wrong} {self.verdict}"


def points(faults: Sequence[Fault], stride: int = 1) -> Iterator[Point]:
    """Without end: the faults in turn, from request to request."""
    number = 0
    while True:
        yield Point(faults[number % len(faults)], number * stride)
        number += 1


def strike_each(dsn: str, directory: Path, chosen: Iterable[Point]) -> Iterator[Result]:
    """Tell the story again and again, each time with a fault at another point."""
    connection = Connection.open(dsn)
    try:
        for number, point in enumerate(chosen):
            topic = f"t{number}"
            connection.run(Calls().create_topic(topic, 2))
            plan = Plan(dsn, directory / f"{topic}.jsonl", topic, partitions=2)
            with Proxy(dsn) as proxy:
                proxy.strike(point.fault, after=point.request)
                wrong = _tell(replace(plan, dsn=proxy.dsn))
                struck = proxy.cuts == 1
            finish(plan)
            yield Result(point, struck, check(read_history(plan.path)), wrong)
            if not struck:
                return
    finally:
        connection.close()


def _tell(plan: Plan) -> list[str]:
    """The story; what did not succeed, in words."""
    recorder = Recorder(plan.path, "p")
    wrong: list[str] = []
    options: dict[str, Any] = {
        "linger_ms": 0, "retry_backoff_ms": 1, "request_timeout_ms": TIMEOUT_MS,
        "delivery_timeout_ms": 20_000,
    }  # fmt: skip
    with _at_last(lambda: Producer(plan.dsn, **options)) as producer:
        for number in range(SENT):
            send = Send(f"{plan.topic}-0", f"s{number}")
            op = recorder.begin("send", [send], acks=-1, idempotent=True)
            try:
                found = producer.send_and_wait(plan.topic, send.value.encode(), partition=0)
            except LogstoreError as error:
                recorder.end(op, INFO)
                wrong.append(f"{send.value}: {error!r}")
            else:
                op.steps = [send._replace(offset=found.offset)]
                recorder.end(op, OK)
    with _at_last(lambda: Producer(plan.dsn, transactional_id=plan.topic, **options)) as producer:
        _at_last(producer.init_transactions)
        for number, wanted in enumerate(TRANSACTIONS):
            wrong += _transact(plan, recorder, producer, number, abort=wanted == FAIL)
    wrong += _process(plan, recorder)
    recorder.close()
    return wrong


def _at_last(make: Callable[[], T]) -> T:
    """What ``make`` makes, at the second attempt if need be."""
    try:
        return make()
    except LogstoreError as error:
        if not error.retriable:
            raise
        return make()


def _transact(plan: Plan, recorder: Recorder, producer: Producer, number: int, *, abort: bool) -> list[str]:
    sends = [Send(f"{plan.topic}-{each}", f"x{number}.{each}") for each in (1, 0)]
    op = recorder.begin("txn", sends, idempotent=True)
    try:
        with producer.transaction():
            futures = [
                producer.send(plan.topic, send.value.encode(), partition=place)
                for place, send in zip((1, 0), sends, strict=True)
            ]
            if abort:
                raise TransactionAbortedError("enough of it")
    except TransactionAbortedError:
        recorder.end(op, FAIL)
        return []
    except LogstoreError as error:
        recorder.end(op, INFO if isinstance(error, UnknownOutcomeError) else FAIL)
        return [f"transaction {number}: {error!r}"]
    op.steps = [
        send._replace(offset=future.get(0).offset) for send, future in zip(sends, futures, strict=True)
    ]
    recorder.end(op, OK)
    return []


def _process(plan: Plan, recorder: Recorder) -> list[str]:
    """Exactly once, what there is; a transaction that fails is begun again."""
    seen: set[str] = set()
    failures: list[str] = []
    options: dict[str, Any] = {
        "group_id": plan.topic, "delivery": "exactly_once", "auto_offset_reset": "earliest",
        "heartbeat_interval_ms": 100, "request_timeout_ms": TIMEOUT_MS, "reconnect_backoff_ms": 1,
        "reconnect_backoff_max_ms": 20,
    }  # fmt: skip
    member = _at_last(lambda: Consumer(plan.topic, dsn=plan.dsn, **options))
    try:
        while len(seen) < RECORDS and len(failures) < 5:
            op = None
            outcome: Any = FAIL
            try:
                with member.transaction(timeout_ms=200) as tx:
                    mine = [each for each in tx.records if each.value and each.value[:1] in b"sx"]
                    if not tx.records:
                        continue
                    op = recorder.begin("txn", [polled(tx.records)], group=plan.topic, idempotent=True)
                    send = Send(f"{plan.topic}-1", f"done {mine[0].value.decode() if mine else op.number}")
                    future = tx.send(plan.topic, send.value.encode(), partition=1)
                    op.steps.append(send)
                op.steps[-1] = send._replace(offset=future.get(0).offset)
                outcome = OK
                seen.update(each.value.decode() for each in mine)
            except UnknownOutcomeError as error:
                outcome = INFO
                failures.append(repr(error))
            except LogstoreError as error:
                failures.append(repr(error))
            if op is not None:
                recorder.end(op, outcome)
    finally:
        with suppress(LogstoreError):
            member.close()
    if len(seen) < RECORDS:
        return [f"only {sorted(seen)} were processed: {failures}"]
    # One fault may end one transaction, and no more.
    return [f"{len(failures)} transactions failed: {failures}"] if len(failures) > 1 else []


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Have each kind of fault befall each request of a story.")
    parser.add_argument("--fault", choices=[fault.name for fault in Fault], action="append")
    options = parser.parse_args(arguments)
    logging.disable()
    failed = 0
    with tempfile.TemporaryDirectory() as directory, embedded() as server:
        for name in options.fault or [fault.name for fault in Fault]:
            requests = 0
            place = Path(directory) / name
            place.mkdir()
            for result in strike_each(server.create(), place, points([Fault[name]])):
                requests += result.struck
                if not result.ok:
                    failed += 1
                    print(result, flush=True)
            print(f"{name}: {requests} requests struck, one at a time", flush=True)
    print(f"{failed} stories went wrong")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
