"""Topics of which a part is in files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import psycopg

from logstore.workers import tier
from tests.support.appender import Appender

__all__ = ["Record", "TieredLog"]

START_MS = 1_700_000_000_000

Record = tuple[int, int, int, bytes | None, bytes | None, tuple[tuple[str, bytes | None], ...]]
"""Partition, offset, time stamp, key, value, headers."""


class TieredLog:
    """A topic ``t`` whose records a test knows, in segments of about 1 kB.

    ``fill`` appends batches of five records with keys, tombstones and headers; a record's time stamp is
    ``START_MS`` and 10 ms for each record before it.  ``settle`` copies what is sealed and takes it out of
    PostgreSQL.
    """

    def __init__(self, dsn: str, url: str, *, partitions: int = 1, **configs: str) -> None:
        self.dsn = dsn
        self.url = url
        self.records: dict[int, list[Record]] = {number: [] for number in range(partitions)}
        self._appender = Appender(dsn)
        # Through a pooler, too: nothing is left in the session.
        self.sql = psycopg.connect(dsn, autocommit=True, prepare_threshold=None)
        self._appender.create(
            "t",
            partitions,
            **{
                "segment_bytes": "1000",
                "retention_ms": "-1",
                "remote_storage_enable": "true",
                "remote_storage_url": url,
                "local_retention_ms": "0",
                **configs,
            },
        )
        self.topic_id = self._appender.topic_id("t")

    @classmethod
    def again(cls, dsn: str, *records: list[Record], url: str = "") -> Self:
        """The topic that is there already, with the records that are known to be in its partitions."""
        made = cls.__new__(cls)
        made.dsn, made.url = dsn, url
        made.records = {partition: list(log) for partition, log in enumerate(records)}
        made._appender = Appender(dsn)
        made.sql = psycopg.connect(dsn, autocommit=True, prepare_threshold=None)
        made.topic_id = made._appender.topic_id("t")
        return made

    def moved(self, url: str) -> Self:
        """Its files have been moved to ``url``."""
        self.rows(
            "UPDATE topic SET configs = configs || jsonb_build_object('remote.storage.url', %s::text)", url
        )
        self.rows("UPDATE remote_segment SET url = %s || substr(url, length(%s) + 1)", url, self.url)
        self.url = url
        return self

    def fill(self, batches: int = 40, *, only: int | None = None) -> Self:
        """Append ``batches`` batches to each partition in turn, or to one of them."""
        for number in range(batches):
            for partition, log in self.records.items():
                if only in (None, partition):
                    self._append(partition, log, number)
        return self

    def _append(self, partition: int, log: list[Record], number: int) -> None:
        base = len(log)
        headers = [(2, "h", b"\xff\x00"), (2, "h", None), (5, "", b"")] if number % 3 == 0 else None
        fresh: list[Record] = []
        for place in range(5):
            offset = base + place
            fresh.append(
                (
                    partition,
                    offset,
                    START_MS + offset * 10,
                    None if number % 4 == 1 else b"key-%d" % (offset % 7),
                    None if offset % 11 == 3 else b"value %d of %d" % (offset, partition),
                    tuple((name, value) for record, name, value in headers or () if record == place + 1),
                )
            )
        keys = [record[3] for record in fresh]
        self._appender.append(
            self.topic_id,
            [record[4] for record in fresh],
            partition,
            keys=None if keys == [None] * 5 else keys,
            headers=headers,
            timestamps=[record[2] for record in fresh],
            wake=False,
        )
        log.extend(fresh)

    def settle(self) -> tier.Tiered:
        """Everything that is sealed is in files, and in files only."""
        return tier.run_once(self.dsn)

    def value(self, query: str, *args: Any) -> Any:
        found = self.rows(query, *args)
        return found[0][0] if found else None

    def rows(self, query: str, *args: Any) -> list[tuple[Any, ...]]:
        """What a statement answers that uses the names of the log."""
        with self.sql.transaction():
            self.sql.execute("SET LOCAL search_path = logstore")
            cursor = self.sql.execute(query.encode(), args or None)
            return cursor.fetchall() if cursor.description is not None else []

    def alter(self, **configs: str | None) -> None:
        named = {name.replace("_", "."): value for name, value in configs.items()}
        self.rows("SELECT alter_topic('t', %s)", json.dumps(named))

    def local_start(self, partition: int = 0) -> int:
        found: int = self.value("SELECT local_start FROM partitions WHERE partition = %s", partition)
        return found

    def files(self, partition: int = 0) -> list[Path]:
        """The files of a partition on a local file system, oldest first."""
        return [
            Path(url.removeprefix("file://"))
            for (url,) in self.rows(
                "SELECT url FROM remote_segments WHERE partition = %s AND state = 'copied'"
                " ORDER BY last_offset",
                partition,
            )
        ]

    def everything(self) -> list[Record]:
        return [record for log in self.records.values() for record in log]

    def damage(self, how: Callable[[bytes], bytes], number: int = 0) -> Path:
        """Change one of the files."""
        path = self.files()[number]
        path.write_bytes(how(path.read_bytes()))
        return path

    def close(self) -> None:
        self._appender.close()
        self.sql.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def shape(record: Any) -> Record:
    """A ConsumerRecord as the model has it."""
    return (record.partition, record.offset, record.timestamp, record.key, record.value, record.headers)
