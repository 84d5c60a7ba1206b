"""The raw ceilings: the same records without the client."""

from __future__ import annotations

import asyncio
import time
import zlib
from collections.abc import Iterable, Sequence
from typing import Any

import asyncpg
import psycopg
from psycopg import pq, sql
from psycopg.adapt import Dumper

from benchmarks.figures import Clock, Speed
from benchmarks.workload import Batch, Workload
from logstore._core.arrays import ByteaArray, Int8Array

__all__ = [
    "BareTable",
    "Encoded",
    "accumulate_and_promise",
    "append",
    "append_encoded",
    "append_text",
    "binary_connection",
    "encode",
    "encoded_requests",
]

Parameters = tuple[Any, ...]
Row = tuple[int, int, int, bytes, bytes]


class Encoded(bytes):
    """``bytea[]`` in PostgreSQL's binary format already."""


class EncodedTimes(bytes):
    """``int8[]`` in PostgreSQL's binary format already."""


class _EncodedDumper(Dumper):
    format = pq.Format.BINARY
    oid = 1001

    def dump(self, obj: Any) -> bytes:
        return bytes(obj)


class _EncodedTimesDumper(_EncodedDumper):
    oid = 1016


def binary_connection(dsn: str) -> psycopg.Connection[Any]:
    """A psycopg connection with ``$1`` placeholders and binary arrays, prepared at the first use."""
    connection = psycopg.connect(dsn, autocommit=True, prepare_threshold=0, cursor_factory=psycopg.RawCursor)
    connection.adapters.register_dumper(Encoded, _EncodedDumper)
    connection.adapters.register_dumper(EncodedTimes, _EncodedTimesDumper)
    return connection


def encode(topic_id: int, batch: Batch, now_ms: int, acks: int = 1) -> Parameters:
    """The arguments of ``append`` for one batch."""
    count = len(batch.values)
    return (
        topic_id,
        batch.partition,
        count,
        now_ms,
        EncodedTimes(Int8Array([now_ms] * count).encode()),
        Encoded(ByteaArray(batch.keys).encode()),
        Encoded(ByteaArray(batch.values).encode()),
        acks,
    )


def append_text(batches: int, schema: str = "logstore") -> sql.Composed:
    """``SELECT append(…), append(…), …``: one transaction, one column a batch."""
    call = (
        "{schema}.append(${}::int4, ${}::int4, ${}::int4, ${}::int8, ${}::int8[], ${}::bytea[], ${}::bytea[],"
        " null, null, null, ${}::int2)"
    )
    calls = []
    for batch in range(batches):
        numbers = [sql.SQL(str(8 * batch + place)) for place in range(1, 9)]
        calls.append(sql.SQL(call).format(*numbers, schema=sql.Identifier(schema)))
    return sql.SQL("SELECT ") + sql.SQL(", ").join(calls)


def append(connection: psycopg.Connection[Any], topic_id: int, requests: Iterable[Sequence[Batch]]) -> None:
    """Append by bare SQL; the arrays are encoded on the way, as any program would have to."""
    texts: dict[int, sql.Composed] = {}
    cursor = connection.cursor(binary=True)
    for request in requests:
        now_ms = time.time_ns() // 1_000_000
        text = texts.setdefault(len(request), append_text(len(request)))
        parameters = [value for batch in request for value in encode(topic_id, batch, now_ms)]
        cursor.execute(text, parameters).fetchone()


def append_encoded(
    connection: psycopg.Connection[Any], requests: Iterable[tuple[sql.Composed, list[Any]]]
) -> None:
    """Append what :func:`encoded_requests` has prepared: what the server alone takes."""
    cursor = connection.cursor(binary=True)
    for text, parameters in requests:
        cursor.execute(text, parameters).fetchone()


def encoded_requests(
    topic_id: int, requests: Iterable[Sequence[Batch]]
) -> list[tuple[sql.Composed, list[Any]]]:
    now_ms = time.time_ns() // 1_000_000
    return [
        (append_text(len(request)), [value for batch in request for value in encode(topic_id, batch, now_ms)])
        for request in requests
    ]


class BareTable:
    """A plain table with a row a record and a primary key: what COPY writes into."""

    def __init__(self, dsn: str, name: str) -> None:
        self.dsn = dsn
        self.name = name
        with psycopg.connect(dsn, autocommit=True) as connection:
            connection.execute(
                sql.SQL(
                    'CREATE TABLE {} ("partition" int4, "offset" int8, timestamp int8, key bytea,'
                    ' value bytea, PRIMARY KEY ("partition", "offset"))'
                ).format(sql.Identifier(name))
            )

    def rows(self, workload: Workload) -> list[Row]:
        """The records with partition and offset, in the order in which they were made."""
        ends = [0] * workload.partitions
        now_ms = time.time_ns() // 1_000_000
        rows = []
        for key, value in zip(workload.keys, workload.values, strict=True):
            partition = zlib.crc32(key) % workload.partitions
            rows.append((partition, ends[partition], now_ms, key, value))
            ends[partition] += 1
        return rows

    def truncate(self) -> None:
        with psycopg.connect(self.dsn, autocommit=True) as connection:
            connection.execute(sql.SQL("TRUNCATE {}").format(sql.Identifier(self.name)))

    def copy(self, rows: Sequence[Row], per_commit: int | None = None) -> Speed:
        """psycopg's binary COPY by ``write_row``; one transaction, or one every ``per_commit`` rows."""
        text = sql.SQL("COPY {} FROM STDIN (FORMAT BINARY)").format(sql.Identifier(self.name))
        step = per_commit or len(rows)
        with psycopg.connect(self.dsn, autocommit=True) as connection:
            cursor = connection.cursor()
            with Clock(len(rows)) as clock:
                for place in range(0, len(rows), step):
                    with cursor.copy(text) as copy:
                        copy.set_types(["int4", "int8", "int8", "bytea", "bytea"])
                        for row in rows[place : place + step]:
                            copy.write_row(row)
        return clock.speed

    def copy_asyncpg(self, rows: Sequence[Row], per_commit: int | None = None) -> Speed:
        """The same with asyncpg's ``copy_records_to_table``."""
        step = per_commit or len(rows)

        async def run() -> Speed:
            connection = await asyncpg.connect(self.dsn)
            try:
                with Clock(len(rows)) as clock:
                    for place in range(0, len(rows), step):
                        await connection.copy_records_to_table(self.name, records=rows[place : place + step])
            finally:
                await connection.close()
            return clock.speed

        return asyncio.run(run())


class _Promise:
    __slots__ = ("batch", "place")

    def __init__(self, batch: list[bytes], place: int) -> None:
        self.batch = batch
        self.place = place


def accumulate_and_promise(workload: Workload) -> None:
    """No server: choose the partition, add to its batch, make a promise: a send loop cannot be faster."""
    keys: list[list[bytes]] = [[] for _ in range(workload.partitions)]
    values: list[list[bytes]] = [[] for _ in range(workload.partitions)]

    def send(value: bytes, key: bytes) -> _Promise:
        partition = zlib.crc32(key) % workload.partitions
        batch = values[partition]
        batch.append(value)
        keys[partition].append(key)
        return _Promise(batch, len(batch))

    for key, value in zip(workload.keys, workload.values, strict=True):
        send(value, key)
