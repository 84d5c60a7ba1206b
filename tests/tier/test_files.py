"""The files themselves: plain Parquet, checked part by part."""

from __future__ import annotations

import hashlib
import random
from pathlib import Path

import duckdb
import pyarrow.parquet
import pytest

from logstore._core.calls import FetchRow
from logstore._core.tier_calls import RemoteFile
from logstore.errors import RemoteFileError
from logstore.tier import files, store
from logstore.tier.erasing import erased, holds
from tests.support.tiered import TieredLog

Row = tuple[int, int, bytes | None, bytes | None, tuple[tuple[str, bytes | None], ...], int, int]


def batch(dice: random.Random, base: int) -> FetchRow:
    """Any batch that the log may have: with holes, without keys, with headers."""
    count = dice.choice([0, 1, 2, 9])
    span = count + dice.choice([0, 0, 3]) or 1
    deltas = None if span == count else sorted(dice.sample(range(span), count))
    stamps = [1000 + dice.randrange(5) for _ in range(count)]
    some: list[bytes | None] = [None, b"", b"key", bytes(range(256))]
    headers = sorted(dice.choices(range(1, count + 1), k=dice.choice([0, 0, 4]))) if count else []
    return FetchRow(
        1, None, None, base, base + span - 1, count, dice.randrange(2), dice.randrange(2),
        max(stamps, default=0),
        None if len(set(stamps)) == 1 else stamps,
        None if dice.random() < 0.3 else dice.choices(some, k=count),
        None if dice.random() < 0.2 else dice.choices(some, k=count),
        headers or None,
        [dice.choice(["", "a", "ü"]) for _ in headers] or None,
        [dice.choice(some) for _ in headers] or None,
        deltas,
    )  # fmt: skip


def records(row: FetchRow) -> list[Row]:
    """What the batch has, record by record."""
    assert row.base_offset is not None
    headers: dict[int, list[tuple[str, bytes | None]]] = {}
    for ordinal, key, value in zip(
        row.header_records or (), row.header_keys or (), row.header_values or (), strict=True
    ):
        headers.setdefault(ordinal, []).append((key, value))
    return [
        (
            row.base_offset + (place if row.offset_deltas is None else row.offset_deltas[place]),
            row.max_timestamp if row.timestamps is None else row.timestamps[place],
            None if row.keys is None else row.keys[place],
            None if row.values is None else row.values[place],
            tuple(headers.get(place + 1, ())),
            row.leader_epoch,
            row.timestamp_type,
        )
        for place in range(row.record_count)
    ]


def written(path: Path, rows: list[FetchRow], first: int, last: int) -> RemoteFile:
    url = f"file://{path}"
    with store.writing(url) as sink:
        writer = files.FileWriter(sink, first, last, {"topic": "t"})
        for row in rows:
            writer.add(row)
        came_to = writer.finish()
    return RemoteFile(
        1, 1, 0, first, last, came_to.records, came_to.size, 0, came_to.min_timestamp, came_to.max_timestamp,
        url, came_to.sha256, came_to.part_ends, came_to.part_sha256, came_to.group_last_offsets,
        came_to.group_max_timestamps,
    )  # fmt: skip


@pytest.mark.parametrize("seed", range(30))
def test_what_is_written_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    dice = random.Random(seed)
    monkeypatch.setattr(files, "GROUP_RECORDS", dice.choice([1, 7, 50]))
    rows: list[FetchRow] = []
    for _ in range(dice.choice([0, 1, 30])):
        rows.append(batch(dice, rows[-1].last_offset + 1 if rows else 3))
    end = rows[-1].last_offset if rows else 10
    first, last = sorted((dice.randrange(end + 1), dice.randrange(end + 1)))
    file = written(tmp_path / "f.parquet", rows, first, last)
    expected = [each for row in rows for each in records(row) if first <= each[0] <= last]
    assert [each for row in files.batches(file) for each in records(row)] == expected
    assert file.records == len(expected)
    files.check(file)
    content = (tmp_path / "f.parquet").read_bytes()
    assert hashlib.sha256(content).digest() == file.sha256
    assert file.size == len(content)
    # Wherever a reader begins, it comes to the file's end.
    reader = files.Reader(file)
    for offset in range(first, last + 1):
        group = reader.group_of(offset)
        if group < reader.groups:
            found = [each for row in reader.rows(group, 1) for each in records(row)]
            wanted = [each for each in expected if each[0] >= offset]
            assert not wanted or wanted[0] in found
            assert reader.rows(group, 1)[-1].last_offset >= offset
        else:
            assert not expected
    for timestamp in range(1000, 1006):
        late = [each for each in expected if each[1] >= timestamp]
        assert reader.find(timestamp, first) == ((late[0][0], late[0][1], late[0][5]) if late else None)


def test_every_changed_byte_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "GROUP_RECORDS", 20)
    dice = random.Random(1)
    rows = [batch(dice, 0)]
    for _ in range(20):
        rows.append(batch(dice, rows[-1].last_offset + 1))
    path = tmp_path / "f.parquet"
    file = written(path, rows, 0, rows[-1].last_offset)
    content = path.read_bytes()
    for place in range(0, len(content), 97):
        path.write_bytes(content[:place] + bytes([content[place] ^ 0x40]) + content[place + 1 :])
        with pytest.raises(RemoteFileError):
            files.check(file)
        with pytest.raises(RemoteFileError):
            list(files.batches(file))
    path.write_bytes(content)
    files.check(file)


def test_a_reader_asks_for_one_part_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "GROUP_RECORDS", 50)
    rows = [
        FetchRow(1, None, None, base, base + 49, 50, 0, 0, base, None, None, [b"x" * 100] * 50, None, None,
                 None, None)
        for base in range(0, 5000, 50)
    ]  # fmt: skip
    file = written(tmp_path / "f.parquet", rows, 0, 4999)
    asked: list[int] = []
    real = store.read

    def read(url: str, start: int, end: int) -> bytes:
        asked.append(end - start)
        return real(url, start, end)

    monkeypatch.setattr(store, "read", read)
    reader = files.Reader(file)
    assert [row.base_offset for row in reader.rows(70, 1)] == [3500]
    assert len(asked) == 2
    assert asked[1] < file.size / 50


def test_anybody_can_read_them(log: TieredLog, tmp_path: Path) -> None:
    path = log.files()[0]
    table = pyarrow.parquet.read_table(path)
    assert table.column_names == [
        "offset", "timestamp", "timestamp_type", "key", "value", "headers", "leader_epoch",
    ]  # fmt: skip
    first = log.records[0][: len(table)]
    assert table["offset"].to_pylist() == [record[1] for record in first]
    assert table["timestamp"].cast("int64").to_pylist() == [record[2] for record in first]
    assert table["key"].to_pylist() == [record[3] for record in first]
    assert table["value"].to_pylist() == [record[4] for record in first]
    assert [tuple((h["key"], h["value"]) for h in each) for each in table["headers"].to_pylist()] == [
        record[5] for record in first
    ]
    assert pyarrow.parquet.read_schema(path).metadata[b"logstore.topic"] == b"t"
    # All of them at once, the directories being columns.
    with duckdb.connect() as connection:
        parts = f"read_parquet('{tmp_path}/**/*.parquet', hive_partitioning = true)"
        found = connection.sql(
            f'SELECT topic, partition, "offset", epoch_ms(timestamp), key, value FROM {parts} '  # noqa: S608
            "ORDER BY 2, 3"
        ).fetchall()
    remote = [
        record
        for partition, records in log.records.items()
        for record in records[: log.local_start(partition)]
    ]
    assert found == [("t", *record[:5]) for record in remote]


def test_the_catalog_has_the_sha256(log: TieredLog) -> None:
    for url, digest, size in log.rows("SELECT url, sha256, bytes FROM remote_segments"):
        content = Path(url.removeprefix("file://")).read_bytes()
        assert (hashlib.sha256(content).hexdigest(), len(content)) == (digest, size)


def test_erasing(tmp_path: Path) -> None:
    rows = [
        FetchRow(1, None, None, 0, 5, 6, 0, 0, 9, [1, 2, 3, 9, 5, 6], [b"a", b"b", None, b"a", b"", b"a"],
                 [b"v"] * 6, None, None, None, None)
    ]  # fmt: skip
    table = files.Reader(written(tmp_path / "f.parquet", rows, 0, 5)).table(0)
    keys = {b"a": (7, 5), b"": (8, 100), b"x": (9, 100)}
    assert holds(table, keys)
    assert not holds(table, {b"x": (9, 100), b"b": (7, 1)})
    left, newest, counts = erased(table, keys)
    assert left["offset"].to_pylist() == [1, 2, 5]
    assert (newest, counts) == (6, {7: 2, 8: 1, 9: 0})
    left, newest, _ = erased(table, dict.fromkeys((b"a", b"b", b""), (1, 100)))
    assert left["offset"].to_pylist() == [2]
