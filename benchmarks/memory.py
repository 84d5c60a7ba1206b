"""A client's memory while it streams: resident set size, in a process that does nothing else."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Final

from rich.console import Console

from benchmarks.figures import Section
from benchmarks.log import BenchServer, create_topic
from benchmarks.workload import PARTITIONS, Workload
from logstore import AsyncConsumer, Consumer, Producer, TopicPartition

__all__ = ["memory"]

_TOPIC: Final = "memory"
_POINTS: Final = 20
_console = Console(stderr=True, highlight=False)
_processes = multiprocessing.get_context("spawn")


def memory(server: BenchServer, *, records: int) -> Section:
    """Produce ``records`` by `send`, then read them by `poll`, each in a process whose memory is watched."""
    dsn = server.fresh_log("bench_memory")
    create_topic(dsn, _TOPIC, PARTITIONS)
    section = Section(
        "Client memory",
        f"Resident set size of a client process while {records:,} records "
        f"stream through it, looked at {_POINTS} times; the growth is the largest of the second half "
        "over what it was after the first tenth.",
    )
    streams: dict[str, Callable[[str, int, Connection], None]] = {
        "`Producer.send` loop": _stream_in,
        "`Consumer.poll` loop": _stream_out,
        "`AsyncConsumer.getmany` loop": _stream_out_async,
    }
    for name, stream in streams.items():
        receiving, sending = _processes.Pipe(duplex=False)
        child = _processes.Process(target=stream, args=(dsn, records, sending))
        child.start()
        sending.close()
        try:
            seen: list[float] = receiving.recv()
        finally:
            child.join()
        section.add(f"{name}: after the first tenth", "MiB", seen[_POINTS // 10 - 1])
        section.add(f"{name}: largest", "MiB", max(seen))
        grown = max(seen[_POINTS // 2 :]) / seen[_POINTS // 10 - 1]
        section.at_most(f"memory of a {name} over {records:,} records", 1.1, grown, "x")
        _console.print(f"  {name}: {seen[_POINTS // 10 - 1]:.0f} MiB, largest {max(seen):.0f} MiB")
    server.drop_log("bench_memory")
    return section


def _resident_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def _stream_in(dsn: str, records: int, answer: Connection) -> None:
    workload = Workload(10_000)
    seen = []
    step = records // _POINTS
    with Producer(dsn, acks=1) as producer:
        done = 0
        while done < records:
            for key, value in zip(workload.keys, workload.values, strict=True):
                producer.send(_TOPIC, value, key)
                done += 1
                if done % step == 0:
                    seen.append(_resident_mib())
                if done == records:
                    break
    answer.send(seen)


def _assignment() -> list[TopicPartition]:
    return [TopicPartition(_TOPIC, partition) for partition in range(PARTITIONS)]


def _stream_out(dsn: str, records: int, answer: Connection) -> None:
    seen: list[float] = []
    got = 0
    with Consumer(dsn=dsn, auto_offset_reset="earliest") as consumer:
        consumer.assign(_assignment())
        while got < records:
            batches = consumer.poll(timeout_ms=5000)
            assert batches, f"{got} of {records} records read"
            got += sum(map(len, batches.values()))
            _look(seen, got, records)
    answer.send(seen)


def _stream_out_async(dsn: str, records: int, answer: Connection) -> None:
    seen: list[float] = []

    async def run() -> None:
        got = 0
        async with AsyncConsumer(dsn=dsn, auto_offset_reset="earliest") as consumer:
            consumer.assign(_assignment())
            while got < records:
                batches = await consumer.getmany(timeout_ms=5000)
                assert batches, f"{got} of {records} records read"
                got += sum(map(len, batches.values()))
                _look(seen, got, records)

    asyncio.run(run())
    answer.send(seen)


def _look(seen: list[float], got: int, records: int) -> None:
    while len(seen) < _POINTS and got >= (len(seen) + 1) * records // _POINTS:
        seen.append(_resident_mib())
