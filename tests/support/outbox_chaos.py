"""Many writers stage records in transactions of every kind; what has committed has to be in the log, once.

``python -m tests.support.outbox_chaos --seconds 600`` runs it for long, with transactions that sleep for 5 s.
Each record has a row in a table of the writers', written in the same transaction: the table and the log have
to agree to the last record, whoever was killed.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import threading
import time
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import psycopg

from logstore import Consumer
from tests.support import servers

__all__ = ["Outcome", "Terms", "run"]

LEVELS = ("READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE")
PARTITIONS = 4
ACCOUNTS = 32


@dataclass(frozen=True)
class Terms:
    seconds: float
    sleep_s: float
    """What a long transaction sleeps."""
    lock_timeout_ms: int = 50
    """Whoever waits longer than this for a lock inside of produce() or COMMIT has been blocked."""
    writers: int = 16
    pause_s: float = 0.0
    """Between two transactions of a writer, on average."""
    kills_per_s: float = 2.0
    seed: int = 0


@dataclass
class Outcome:
    """What has happened, and what must not have."""

    committed: int = 0
    aborted: int = 0
    kills: int = 0
    swept: int = 0
    """How often a table was emptied."""
    blocked: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    short_ms: list[float] = field(default_factory=list)
    """How long short transactions took, from their first statement to the end of COMMIT."""
    delay_ms: list[float] = field(default_factory=list)
    """From the end of COMMIT to the record in the hands of the consumer."""

    def share(self, values: list[float], part: float) -> float:
        return sorted(values)[min(len(values) - 1, int(len(values) * part))] if values else 0.0

    def __str__(self) -> str:
        def both(values: list[float]) -> str:
            return f"p50 {self.share(values, 0.5):.1f} ms, p99 {self.share(values, 0.99):.1f} ms"

        return (
            f"{self.committed} committed, {self.aborted} not, {self.kills} kills, "
            f"{self.swept} tables emptied; short transactions: {both(self.short_ms)}; "
            f"from commit to consumer: {both(self.delay_ms)}; "
            f"blocked: {len(self.blocked)}, wrong: {self.wrong[:5]}"
        )


class Chaos:
    def __init__(self, dsn: str, terms: Terms) -> None:
        self.dsn = dsn
        self.terms = terms
        self.outcome = Outcome()
        self.lock = threading.Lock()
        self.commits = 0
        """How many commits have been acknowledged: a transaction that begins now comes after all of them."""
        self.ended: dict[str, float] = {}
        self.number_of: dict[str, int] = {}
        """Of each transaction whose commit was acknowledged: its number among them."""
        self.read: list[tuple[int, int, str]] = []
        self.stop = threading.Event()
        self.finished = threading.Event()
        self.failures: list[BaseException] = []

    def run(self) -> Outcome:
        with psycopg.connect(self.dsn, autocommit=True) as setup:
            setup.execute("SELECT logstore.create_topic('t', %s)", [PARTITIONS])
            # Tables take turns so quickly that transactions use all of them, and old ones.
            setup.execute(
                "CREATE OR REPLACE FUNCTION logstore.staging_turn() RETURNS int4 LANGUAGE sql "
                "RETURN (floor(extract(epoch from clock_timestamp()) * 4)::int8 % 3)::int4"
            )
            setup.execute("CREATE TABLE mine (id text)")
            setup.execute("CREATE TABLE account (id int4 PRIMARY KEY, version int4 NOT NULL)")
            setup.execute("INSERT INTO account SELECT i, 0 FROM generate_series(0, %s) i", [ACCOUNTS - 1])
        writers = [self._thread(self._write, number) for number in range(self.terms.writers)]
        others = [self._thread(self._consume), self._thread(self._sweep), self._thread(self._kill)]
        self.stop.wait(self.terms.seconds)
        self.stop.set()
        for thread in writers:
            thread.join()
        self._drain_the_rest()
        self.finished.set()
        for thread in others:
            thread.join()
        if self.failures:
            raise self.failures[0]
        self._check()
        return self.outcome

    def _thread(self, target: Callable[..., None], *arguments: Any) -> threading.Thread:
        def guarded() -> None:
            try:
                target(*arguments)
            except BaseException as error:
                self.failures.append(error)
                self.stop.set()
                self.finished.set()

        thread = threading.Thread(target=guarded, daemon=True)
        thread.start()
        return thread

    # -- writers -------------------------------------------------------------------------------------------

    def _write(self, number: int) -> None:
        dice = random.Random(self.terms.seed * 1000 + number)
        connection: psycopg.Connection[Any] | None = None
        count = 0
        while not self.stop.is_set():
            if connection is None or connection.closed:
                connection = psycopg.connect(
                    self.dsn,
                    autocommit=True,
                    application_name="chaos writer",
                    options=f"-c lock_timeout={self.terms.lock_timeout_ms}",
                )
            count += 1
            self.stop.wait(2 * self.terms.pause_s * dice.random())
            try:
                self._transaction(connection, dice, f"{number}-{count}", sleeper=number < 3)
            except psycopg.OperationalError:
                self.outcome.aborted += 1  # or committed: the table knows
                # Whoever kills it may do so now.
                with suppress(psycopg.OperationalError):
                    connection.execute("ROLLBACK")
        if connection is not None:
            connection.close()

    def _transaction(
        self, connection: psycopg.Connection[Any], dice: random.Random, name: str, *, sleeper: bool
    ) -> None:
        after = self.commits
        began = time.monotonic()
        connection.execute(f"BEGIN ISOLATION LEVEL {dice.choice(LEVELS)}".encode())
        slept = False
        waited = False
        for records in range(dice.randrange(1, 5)):
            kind = dice.random()
            if kind < 0.2:
                connection.execute("SAVEPOINT s")
                self._stage(connection, f"{name}-{records}-never", after, dice.randrange(PARTITIONS))
                connection.execute("ROLLBACK TO s")
            elif kind < 0.4 and not sleeper:
                waited = True
                account = dice.randrange(ACCOUNTS)
                row = connection.execute(
                    "UPDATE account SET version = version + 1 WHERE id = %s RETURNING version", [account]
                ).fetchone()
                assert row is not None
                version = f"{account}.{row[0]}"
                self._stage(connection, f"{name}-{records}", after, account % PARTITIONS, version=version)
            else:
                self._stage(connection, f"{name}-{records}", after, dice.randrange(PARTITIONS))
            if sleeper and not slept:
                slept = True
                self.stop.wait(self.terms.sleep_s)
        if dice.random() < 0.2:
            connection.execute("ROLLBACK")
            self.outcome.aborted += 1
            return
        with self._unblocked("COMMIT"):
            connection.execute("COMMIT")
        now = time.monotonic()
        with self.lock:
            self.commits += 1
            self.number_of[name] = self.commits
            self.ended[name] = now
            self.outcome.committed += 1
            if not sleeper and not waited:
                self.outcome.short_ms.append((now - began) * 1000)

    def _stage(
        self, connection: psycopg.Connection[Any], name: str, after: int, partition: int, version: str = ""
    ) -> None:
        connection.execute("INSERT INTO mine VALUES (%s)", [name])
        value = json.dumps({"id": name, "after": after, "version": version})
        with self._unblocked("produce"):
            connection.execute(
                "SELECT logstore.produce('t', null, %s::text, partition => %s)", [value, partition]
            )

    def _unblocked(self, what: str) -> _Unblocked:
        return _Unblocked(self.outcome.blocked, what)

    # -- the others ----------------------------------------------------------------------------------------

    def _consume(self) -> None:
        with Consumer("t", dsn=self.dsn, auto_offset_reset="earliest", client_id="chaos reader") as consumer:
            while not self.finished.is_set() or not self._complete():
                for part in consumer.poll(timeout_ms=200).values():
                    now = time.monotonic()
                    for record in part:
                        text = record.value.decode()
                        self.read.append((record.partition, record.offset, text))
                        ended = self.ended.get(_transaction_of(json.loads(text)["id"]))
                        if ended is not None:
                            self.outcome.delay_ms.append((now - ended) * 1000)

    def _complete(self) -> bool:
        if self.failures:
            return True
        with psycopg.connect(self.dsn) as connection:
            row = connection.execute("SELECT sum(high_watermark) FROM logstore.partitions").fetchone()
            return row is not None and len(self.read) >= (row[0] or 0)

    def _sweep(self) -> None:
        """Empties tables at every opportunity, and drains beside the consumer."""
        dice = random.Random(self.terms.seed)
        with psycopg.connect(self.dsn, autocommit=True) as connection:
            while not self.finished.wait(0.05):
                swept = connection.execute("SELECT logstore.sweep_staged(0)").fetchone()
                self.outcome.swept += swept[0] if swept else 0
                if dice.random() < 0.1:
                    with suppress(psycopg.errors.LockNotAvailable):
                        connection.execute("SELECT logstore.drain(%s)", [dice.choice((1, 10, 10000))])

    def _kill(self) -> None:
        dice = random.Random(self.terms.seed + 1)
        with psycopg.connect(self.dsn, autocommit=True) as connection:
            while self.terms.kills_per_s and not self.stop.wait(dice.expovariate(self.terms.kills_per_s)):
                found = connection.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = %s "
                    "AND datname = current_database() ORDER BY random() LIMIT 1",
                    [dice.choice(("chaos writer", "chaos reader"))],
                ).fetchone()
                self.outcome.kills += found is not None

    def _drain_the_rest(self) -> None:
        deadline = time.monotonic() + 60
        with psycopg.connect(self.dsn, autocommit=True) as connection:
            while time.monotonic() < deadline:
                row = connection.execute(
                    "SELECT records = 0 AND topic_ids IS NOT NULL AND NOT more FROM logstore.drain()"
                ).fetchone()
                if row == (True,):
                    return
        raise AssertionError("draining does not come to an end")

    # -- what has to hold ----------------------------------------------------------------------------------

    def _check(self) -> None:
        wrong = self.outcome.wrong
        with psycopg.connect(self.dsn) as connection:
            mine = Counter(row[0] for row in connection.execute("SELECT id FROM mine"))
            rows = connection.execute(
                'SELECT partition, "offset", value_text FROM logstore.records ORDER BY partition, "offset"'
            ).fetchall()
            left = connection.execute("SELECT count(*) FROM logstore.outbox").fetchone()
        if left != (0,):
            wrong.append(f"{left} records are waiting still")
        found = Counter(json.loads(text)["id"] for _, _, text in rows)
        if found != mine:
            wrong.append(f"lost: {list(mine - found)[:5]}, not committed or twice: {list(found - mine)[:5]}")
        if sorted(self.read) != rows:
            wrong.append(f"the consumer read {len(self.read)} records, the log has {len(rows)}")
        for partition in range(PARTITIONS):
            offsets = [offset for number, offset, _ in rows if number == partition]
            if offsets != list(range(len(offsets))):
                wrong.append(f"offsets of partition {partition} are not dense")
            self._check_order([json.loads(text) for number, _, text in rows if number == partition])

    def _check_order(self, values: list[dict[str, Any]]) -> None:
        # For the first n commits: where the last of their records is.
        places: dict[int, int] = {}
        for place, value in enumerate(values):
            number = self.number_of.get(_transaction_of(value["id"]))
            if number is not None:
                places[number] = place
        numbers = sorted(places)
        last, furthest = -1, []
        for number in numbers:
            last = max(last, places[number])
            furthest.append(last)
        versions: dict[str, int] = {}
        own: dict[str, int] = {}
        for place, value in enumerate(values):
            before = bisect_right(numbers, value["after"])
            if before and furthest[before - 1] > place:
                self.outcome.wrong.append(f"{value} comes before a record that was committed when it began")
            account, _, version = value["version"].partition(".")
            if version and int(version) <= versions.get(account, 0):
                self.outcome.wrong.append(f"{value} comes after version {versions[account]}")
            if version:
                versions[account] = int(version)
            transaction, index = _transaction_of(value["id"]), int(value["id"].split("-")[2])
            if own.get(transaction, -1) >= index:
                self.outcome.wrong.append(f"{value} comes before an earlier record of its transaction")
            own[transaction] = index


class _Unblocked:
    """Nobody waits for a lock in here."""

    def __init__(self, blocked: list[str], what: str) -> None:
        self._blocked = blocked
        self._what = what

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, psycopg.errors.LockNotAvailable | psycopg.errors.DeadlockDetected):
            self._blocked.append(f"{self._what}: {error}")


def _transaction_of(name: str) -> str:
    return "-".join(name.split("-")[:2])


def run(dsn: str, terms: Terms) -> Outcome:
    """Raise havoc in a fresh log, and say what came of it."""
    return Chaos(dsn, terms).run()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    parser.add_argument("--kills-per-s", type=float, default=2.0)
    options = parser.parse_args()
    print(f"seed {options.seed}")
    terms = Terms(
        options.seconds, sleep_s=5.0, seed=options.seed, kills_per_s=options.kills_per_s, pause_s=0.05
    )
    with servers.embedded() as server:
        outcome = run(server.create(), terms)
    print(outcome)
    late = outcome.share(outcome.short_ms, 0.99) >= 50
    return 1 if outcome.wrong or outcome.blocked or late else 0


if __name__ == "__main__":
    sys.exit(main())
