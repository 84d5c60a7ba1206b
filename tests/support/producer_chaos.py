"""Idempotent producers that share partitions, while requests, answers and connections are lost at random.

``python -m tests.support.producer_chaos`` runs it at length, the server being killed now and then as well.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import psycopg

from logstore.errors import LogstoreError
from tests.support.appender import Appender
from tests.support.colours import Asyncio, Colour, Threads
from tests.support.log import records, terminate
from tests.support.programs import eventually
from tests.support.proxy import Fault, Proxy
from tests.support.servers import Server, embedded

__all__ = ["Outcome", "Plan", "kill_server", "run"]

NAME = "chaos"
PATIENCE_S = 120.0
BACKLOG = 30
"""Records that a producer has on their way: so few that there are many requests to strike."""


@dataclass(frozen=True)
class Plan:
    """What is to be done."""

    faults: int
    producers: int = 8
    partitions: int = 4
    seed: int = 1
    silence: bool = False
    """Also faults that are only noticed when the time for a request is over."""
    kill_every: int = 50
    """The server is killed at every so many faults, if there is a way to kill it."""


@dataclass
class Outcome:
    """What has come of it."""

    acknowledged: int = 0
    in_log: int = 0
    problems: list[str] = field(default_factory=list)


def run(colour: Colour, dsn: str, plan: Plan, kill: Callable[[], None] | None = None) -> Outcome:
    """Produce until all faults have happened; ``kill`` kills the server, and returns when it is back."""
    with Appender(dsn) as appender:
        appender.create("t", plan.partitions, segment_bytes="20000")
    dice = random.Random(plan.seed)
    stop = threading.Event()
    acknowledged: list[tuple[int, int, bytes]] = []
    problems: list[str] = []

    def produce(number: int, producer: Any) -> None:
        waiting: deque[tuple[bytes, Any]] = deque()
        sent = 0
        try:
            while not stop.is_set() or waiting:
                if stop.is_set() or len(waiting) >= BACKLOG:
                    value, future = waiting.popleft()
                    metadata = future.get(PATIENCE_S)
                    acknowledged.append((metadata.partition, metadata.offset, value))
                if not stop.is_set():
                    value = b"record %d %d" % (number, sent)
                    waiting.append((value, producer.send("t", value, partition=sent % plan.partitions)))
                    sent += 1
        except LogstoreError as error:
            problems.append(f"producer {number}: {error!r}")
            stop.set()

    with Proxy(dsn) as proxy:
        producers = [
            colour.producer(
                proxy.dsn, client_id=NAME, linger_ms=1, retry_backoff_ms=1, retry_backoff_max_ms=50,
                request_timeout_ms=1000 if plan.silence else 10_000, delivery_timeout_ms=100_000,
            )
            for _ in range(plan.producers)
        ]  # fmt: skip
        threads = [
            threading.Thread(target=produce, args=(number, producer))
            for number, producer in enumerate(producers)
        ]
        for thread in threads:
            thread.start()
        try:
            _strike(plan, dice, dsn, proxy, acknowledged, stop, kill)
        finally:
            stop.set()
            for thread in threads:
                thread.join()
            for producer in producers:
                producer.close()
    return _compare(dsn, acknowledged, problems)


def _strike(
    plan: Plan,
    dice: random.Random,
    dsn: str,
    proxy: Proxy,
    acknowledged: Sequence[object],
    stop: threading.Event,
    kill: Callable[[], None] | None,
) -> None:
    kinds = [fault for fault in Fault if plan.silence or fault not in (Fault.HALF_CLOSE, Fault.SILENCE)]
    for number in range(plan.faults):
        enough = len(acknowledged) + dice.randrange(2, 60)
        eventually(
            lambda enough=enough: stop.is_set() or len(acknowledged) >= enough,  # type: ignore[misc]
            "records are acknowledged",
            PATIENCE_S,
        )
        if stop.is_set():
            return
        if kill is not None and number % plan.kill_every == plan.kill_every // 2:
            kill()
        elif dice.random() < 0.15:
            terminate(dsn, NAME)
        else:
            before = proxy.cuts
            # Of a request with records in it, or when a connection is made again.
            proxy.strike(dice.choice(kinds), b"record" if dice.random() < 0.9 else b"")
            eventually(
                lambda before=before: stop.is_set() or proxy.cuts > before,  # type: ignore[misc]
                "it has struck",
                PATIENCE_S,
            )


def _compare(dsn: str, acknowledged: Sequence[tuple[int, int, bytes]], problems: list[str]) -> Outcome:
    there = records(dsn, "t")
    outcome = Outcome(len(acknowledged), len(there), problems)
    by_place = {(each.partition, each.offset): each.value for each in there}
    for partition, offset, value in acknowledged:
        found = by_place.get((partition, offset))
        if found != value:
            problems.append(f"{value!r} was acknowledged at {partition}:{offset}, where {found!r} is")
    if len({each.value for each in there}) != len(there):
        problems.append("records are there twice")
    newest: dict[tuple[int, bytes], int] = {}
    for each in there:
        assert each.value is not None
        _, producer, number = each.value.split()
        if int(number) <= newest.get((each.partition, producer), -1):
            problems.append(f"{each.value!r} at {each.partition}:{each.offset} comes too late")
        newest[each.partition, producer] = int(number)
    if len(there) != len(acknowledged):
        problems.append(f"{len(acknowledged)} were acknowledged, {len(there)} are there")
    with psycopg.connect(dsn) as connection:
        for audit in (
            "SELECT f.* FROM logstore.topic t, logstore.verify_producers(t.topic_id) f",
            "SELECT f.* FROM logstore.topic_segment s, logstore.verify_segment(s.topic_id, s.segment) f",
        ):
            problems += [str(row) for row in connection.execute(audit)]
    return outcome


def kill_server(server: Server) -> None:
    """kill -9 of the whole server, which is started again at once."""
    assert server.home is not None
    (pid_file,) = Path(server.home).rglob("postmaster.pid")
    os.kill(int(pid_file.read_text().split()[0]), signal.SIGKILL)

    def answers() -> bool:
        try:
            psycopg.connect(server.dsn, connect_timeout=2).close()
        except psycopg.Error:
            return False
        return True

    eventually(answers, "the server is back", PATIENCE_S)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Idempotent producers and lost requests, answers, servers.")
    parser.add_argument("--faults", type=int, default=200)
    parser.add_argument("--producers", type=int, default=8)
    parser.add_argument("--seed", type=int, default=time.time_ns() % 10_000)
    options = parser.parse_args(arguments)
    plan = Plan(options.faults, options.producers, seed=options.seed, silence=True)
    print(plan, flush=True)
    failed = False
    for kind in (Threads, Asyncio):
        colour = kind()
        with embedded() as server:
            try:
                outcome = run(colour, server.create(), plan, partial(kill_server, server))
            finally:
                colour.close()
        print(kind.__name__, f"{outcome.acknowledged:,} acknowledged, {outcome.in_log:,} in the log")
        print(*outcome.problems[:20], sep="\n")
        failed = failed or bool(outcome.problems)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
