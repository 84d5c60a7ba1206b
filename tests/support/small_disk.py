"""A file system with little room."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

__all__ = ["small_disk"]


@contextmanager
def small_disk(size: int, owned_like: Path) -> Iterator[Path]:
    """A directory on a file system in memory of ``size`` bytes, with the owner of ``owned_like``.

    Skips the test where nothing may be mounted.
    """
    place = Path(tempfile.mkdtemp(prefix="logstore-disk-"))
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size},mode=0700", "tmpfs", str(place)]
    try:
        try:
            done = subprocess.run(mount, capture_output=True, text=True, check=False)
        except FileNotFoundError:
            pytest.skip("there is no program called mount")
        if done.returncode != 0:
            pytest.skip(f"a small file system cannot be mounted: {done.stderr.strip()}")
        try:
            owner = owned_like.stat()
            os.chown(place, owner.st_uid, owner.st_gid)
            yield place
        finally:
            subprocess.run(["umount", "--lazy", str(place)], check=True)
    finally:
        place.rmdir()
