"""What the figures were measured on."""

from __future__ import annotations

import os
import platform
import statistics
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psycopg

__all__ = ["busy", "describe", "mounted", "on_memory_file_system"]

_SETTINGS = ("fsync", "synchronous_commit", "wal_level", "shared_buffers", "max_wal_size", "full_page_writes")


def describe(dsn: str, directory: Path | None) -> dict[str, Any]:
    """Machine, versions and settings; ``directory`` is the server's, where it is ours."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        server = connection.execute("SELECT version()").fetchone()
        settings = {
            name: (connection.execute("SELECT current_setting(%s)", [name]).fetchone() or [""])[0]
            for name in _SETTINGS
        }
    facts: dict[str, Any] = {
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "processor": _processor(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": f"{platform.system()} {platform.release()}",
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "postgresql": (server or ["?"])[0].split(",")[0],
        "settings": settings,
        "logstore": version("logstore-pg"),
        "psycopg": version("psycopg"),
        "asyncpg": version("asyncpg"),
    }
    if directory is not None:
        facts["file_system"] = _file_system(directory)
        facts["fsync_8k_ms"] = round(_fsync_ms(directory), 3)
    return facts


def busy(seconds: float = 2.0) -> float:
    """How much of the processors is in use now, from 0 to 1; 0 where the system does not tell."""
    before = _processor_times()
    time.sleep(seconds)
    spent = [after - start for after, start in zip(_processor_times(), before, strict=True)]
    return 1 - (spent[3] + spent[4]) / sum(spent) if sum(spent) else 0.0


def _processor_times() -> list[int]:
    """Ticks of the processors: user, nice, system, idle, waiting for a disk, and so on."""
    try:
        return [int(ticks) for ticks in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    except OSError:
        return [0] * 8


def on_memory_file_system(directory: Path) -> bool:
    """``fsync`` costs nothing there, so no figure would mean anything."""
    return _file_system(directory) in ("tmpfs", "ramfs")


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def mounted(directory: Path) -> str:
    """The kind of the file system, and whether it tells the disk of what it deletes as it does so."""
    kind, options = _mount(directory)
    return f"{kind}, mounted with discard" if "discard" in options.split(",") else kind


def _file_system(directory: Path) -> str:
    return _mount(directory)[0]


def _mount(directory: Path) -> tuple[str, str]:
    """The kind and the options of the file system that ``directory`` is on."""
    try:
        mounts = Path("/proc/self/mounts").read_text().splitlines()
    except OSError:
        return "unknown", ""
    best, found = "", ("unknown", "")
    path = str(directory.resolve())
    for mount in mounts:
        _, point, kind, options, *_ = mount.split(" ")
        if (path == point or path.startswith(point.rstrip("/") + "/")) and len(point) >= len(best):
            best, found = point, (kind, options)
    return found


def _fsync_ms(directory: Path, writes: int = 200) -> float:
    """The median time of one write and fsync of 8 kB: what a commit cannot be faster than."""
    path = directory / "fsync.probe"
    samples = []
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        os.pwrite(descriptor, bytes(8192 * writes), 0)
        os.fsync(descriptor)
        for number in range(writes):
            begin = time.perf_counter()
            os.pwrite(descriptor, b"x" * 8192, 8192 * number)
            os.fdatasync(descriptor)
            samples.append(time.perf_counter() - begin)
    finally:
        os.close(descriptor)
        path.unlink()
    return statistics.median(samples) * 1000
