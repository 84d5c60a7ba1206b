"""Consume, update a table and produce, exactly once, in processes that are killed, frozen and cut off.

Every record pays an amount into an account.  In one transaction its payment goes into the table, the
account's new balance into another topic, and the offset on.  In the end table, topic and offsets have to
agree to the last record.  ``python -m tests.support.exactly_once_chaos --faults 100`` runs it at length.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import os
import random
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import psycopg

from logstore import AsyncConsumer, Consumer, Producer
from logstore.errors import LogstoreError
from tests.support.servers import embedded

__all__ = ["Outcome", "Payment", "Plan", "check", "run"]

FAULTS: Final = ("kill", "kill", "kill", "freeze", "terminate", "terminate")
PATIENCE_S: Final = 60.0
CRASHES_APART_S: Final = 15.0

_PAY: Final = """
INSERT INTO account VALUES ($1::int, $2::bigint, $3::bigint)
ON CONFLICT (id) DO UPDATE SET balance = account.balance + excluded.balance,
    payments = account.payments + excluded.payments
RETURNING balance"""


@dataclass(frozen=True)
class Plan:
    faults: int = 8
    records_a_fault: int = 150
    """Produced between one fault and the next."""
    partitions: int = 4
    accounts: int = 12
    workers: int = 3
    batch: int = 10
    pause_s: float = 0.25
    """Between faults, on average."""
    seed: int = 0


@dataclass(frozen=True)
class Payment:
    """One record of the output: what it was made from, and the balance that came of it."""

    number: int
    account: int
    balance: int


@dataclass
class Outcome:
    plan: Plan
    seconds: float
    faults: int
    paid: dict[int, tuple[int, int]]
    """What was produced: number -> (account, amount), in the order of numbers."""
    balances: dict[int, tuple[int, int]]
    """The table: account -> (balance, payments)."""
    output: list[Payment]
    """Account by account in the order of the log."""
    lag: int
    problems: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return (
            f"{len(self.paid)} records, {self.faults} faults in {self.seconds:.1f} s: "
            f"{len(self.output)} records of output; {len(self.problems)} problems"
        )


class Observer:
    """Asks the server, again if it has been killed."""

    def __init__(self, dsn: str, postmaster: Path | None) -> None:
        self._dsn = dsn
        self._postmaster = postmaster
        self._crashed = -CRASHES_APART_S

    def rows(self, text: str, parameters: Sequence[Any] | None = None) -> list[Any]:
        deadline = time.monotonic() + PATIENCE_S
        while True:
            try:
                with psycopg.connect(self._dsn, autocommit=True) as raw:
                    cursor = raw.execute(text.encode(), parameters)
                    return cursor.fetchall() if cursor.description else []
            except psycopg.OperationalError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)

    def crash(self) -> None:
        """kill -9 of the server, which is started again by whoever looks after it, but not any number of
        times a minute.
        """
        if self._postmaster is not None and time.monotonic() - self._crashed >= CRASHES_APART_S:
            self._crashed = time.monotonic()
            self.rows("SELECT")  # it runs
            with suppress(FileNotFoundError, ProcessLookupError):
                os.kill(int(self._postmaster.read_text().split("\n", 1)[0]), signal.SIGKILL)


def run(dsn: str, plan: Plan, postmaster: Path | None = None) -> Outcome:
    """Produce, process with workers that have a hard time, and check.

    ``postmaster``: the file with the id of the server's process, which may then be killed as well.
    """
    raw = Observer(dsn, postmaster)
    with Producer(dsn, client_id="feeder") as producer:
        raw.rows("SELECT logstore.create_topic('in', %s, null), logstore.create_topic('out', 3, null)",
                    [plan.partitions])  # fmt: skip
        raw.rows("CREATE TABLE account (id int PRIMARY KEY, balance bigint, payments bigint)")
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([__name__])
        chance = random.Random(plan.seed)
        began = time.monotonic()
        paid: dict[int, tuple[int, int]] = {}

        def start(place: int) -> Any:
            process = context.Process(target=_work, args=(dsn, plan, place), daemon=True)
            process.start()
            return process

        workers = [start(place) for place in range(plan.workers)]
        try:
            for _ in range(plan.faults):
                for number in range(len(paid), len(paid) + plan.records_a_fault):
                    paid[number] = chance.randrange(plan.accounts), chance.randrange(1, 100)
                    account, amount = paid[number]
                    producer.send("in", b"%d %d %d" % (number, account, amount), key=b"%d" % account)
                producer.flush()
                time.sleep(chance.uniform(0.2, 1.8) * plan.pause_s)
                place = chance.randrange(plan.workers)
                _strike(
                    chance.choice(FAULTS if postmaster is None else (*FAULTS, "crash")), workers, place, raw
                )
                if not workers[place].is_alive():
                    workers[place].join()
                    workers[place] = start(place)
            deadline = time.monotonic() + PATIENCE_S
            while _lag(raw) and time.monotonic() < deadline:
                time.sleep(0.02)
        finally:
            for worker in workers:
                worker.kill()
                worker.join()
        # What the last worker was committing when it was killed.
        while _lag(raw) and time.monotonic() < deadline:
            time.sleep(0.02)
        rows = raw.rows("SELECT id, balance, payments FROM account")
        outcome = Outcome(
            plan,
            time.monotonic() - began,
            plan.faults,
            paid,
            {account: (balance, payments) for account, balance, payments in rows},
            _output(raw),
            _lag(raw),
        )
    outcome.problems = check(outcome)
    return outcome


def check(outcome: Outcome) -> list[str]:
    """What does not agree, in words."""
    problems: list[str] = []
    balances: dict[int, list[int]] = {}
    for account, amount in outcome.paid.values():
        before = balances.setdefault(account, [0, 0])
        before[0] += amount
        before[1] += 1
    expected = {account: (balance, count) for account, (balance, count) in balances.items()}
    for account in sorted(expected.keys() | outcome.balances.keys()):
        if expected.get(account) != outcome.balances.get(account):
            problems.append(
                f"account {account} is {outcome.balances.get(account)}, and should be {expected.get(account)}"
            )
    times: dict[int, int] = {}
    running: dict[int, int] = {}
    reached: dict[int, int] = {}
    for payment in outcome.output:
        times[payment.number] = times.get(payment.number, 0) + 1
        if payment.number not in outcome.paid:
            problems.append(f"payment {payment.number} was never made")
            continue
        account, amount = outcome.paid[payment.number]
        running[account] = running.get(account, 0) + amount
        if payment.account != account or payment.balance != running[account]:
            problems.append(f"{payment} should leave {running[account]} in account {account}")
        if payment.number <= reached.get(account, -1):
            problems.append(f"{payment} comes after {reached[account]}")
        reached[account] = payment.number
    problems += [f"payment {number} came out {count} times" for number, count in times.items() if count > 1]
    problems += [f"payment {number} never came out" for number in outcome.paid if number not in times]
    if outcome.lag:
        problems.append(f"the group is {outcome.lag} records behind")
    return problems


# -- a worker ----------------------------------------------------------------------------------------------


def _options(dsn: str, plan: Plan) -> dict[str, Any]:
    return {
        "dsn": dsn,
        "group_id": "g",
        "auto_offset_reset": "earliest",
        "max_poll_records": plan.batch,
        "session_timeout_ms": 800,
        "heartbeat_interval_ms": 100,
        "max_poll_interval_ms": 1000,
        "delivery": "exactly_once",
    }


def _work(dsn: str, plan: Plan, place: int) -> None:
    """Threads and asyncio, ``run`` and ``transaction``."""
    match place % 3:
        case 0:
            Consumer("in", **_options(dsn, plan)).run(_handle)
        case 1:
            asyncio.run(_run_tasks(dsn, plan))
        case _:
            with Consumer("in", **_options(dsn, plan)) as consumer:
                while True:
                    # A connection that is lost in the middle is the program's affair here.
                    with suppress(LogstoreError, psycopg.Error), consumer.transaction() as tx:
                        _handle(tx)


def _handle(tx: Any) -> None:
    cursor = psycopg.RawCursor(tx.connection)
    # In one order for all, or the program's own rows would be locked crosswise.
    for record in sorted(tx.records, key=lambda each: int(each.key)):
        number, account, amount = map(int, record.value.split())
        (balance,) = cursor.execute(_PAY, (account, amount, 1)).fetchone() or (0,)
        tx.send("out", b"%d %d %d" % (number, account, balance), key=record.key)


async def _run_tasks(dsn: str, plan: Plan) -> None:
    async def handle(tx: Any) -> None:
        for record in sorted(tx.records, key=lambda each: int(each.key)):
            number, account, amount = map(int, record.value.split())
            balance = await tx.connection.fetchval(_PAY, account, amount, 1)
            await tx.send("out", b"%d %d %d" % (number, account, balance), key=record.key)

    async with AsyncConsumer("in", **_options(dsn, plan)) as consumer:
        await consumer.run(handle)


# -- from outside ------------------------------------------------------------------------------------------


def _strike(fault: str, workers: Sequence[Any], place: int, raw: Observer) -> None:
    process = workers[place]
    if fault == "kill":
        process.kill()
        process.join()
    elif fault == "freeze":
        # Longer than its session: when it wakes up somebody else has its partitions.
        with suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGSTOP)
            time.sleep(1.2)
            os.kill(process.pid, signal.SIGCONT)
    elif fault == "crash":
        raw.crash()
    else:
        raw.rows(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database()"
            " AND pid <> pg_backend_pid() AND application_name = 'logstore'"
            " ORDER BY random() LIMIT 1"
        )


def _lag(raw: Observer) -> int:
    ((behind, partitions),) = raw.rows(
        "SELECT sum(end_offset - coalesce(committed_offset, 0)), count(*) FROM logstore.lag_of('g')"
    )
    return int(behind) if partitions else 1


def _output(raw: Observer) -> list[Payment]:
    rows = raw.rows(
        "SELECT value_text FROM logstore.records WHERE topic = 'out' ORDER BY partition, \"offset\""
    )
    return [Payment(*map(int, value.split())) for (value,) in rows]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Process exactly once under random faults.")
    parser.add_argument("--faults", type=int, default=100)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--seed", type=int, default=time.time_ns() % 10_000)
    options = parser.parse_args(arguments)
    plan = Plan(options.faults, partitions=8, accounts=50, workers=options.workers, seed=options.seed)
    print(plan, flush=True)
    with embedded() as server:
        assert server.home is not None
        outcome = run(server.create(), plan, server.home / "data" / "postmaster.pid")
    print(outcome)
    print(*outcome.problems[:20], sep="\n")
    return 1 if outcome.problems else 0


if __name__ == "__main__":
    sys.exit(main())
