"""An object store for tests, as a file system of fsspec's: ``object:///directory/key``.

Objects appear when they are closed, have no directories and cannot be renamed.  A file named ``DOWN`` above
them makes every request fail, as if the store could not be reached.
"""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import fsspec
from fsspec.spec import AbstractFileSystem

__all__ = ["ObjectStore", "install"]


class Unreachable(Exception):
    """As the errors of most stores' libraries: none of Python's own."""


class ObjectStore(AbstractFileSystem):  # type: ignore[misc]
    protocol = "object"
    root_marker = "/"

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return path.removeprefix("object://")

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **options: Any) -> bytes:
        with self._object(path).open("rb") as opened:
            opened.seek(start or 0)
            return opened.read(-1 if end is None else end - (start or 0))

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        self._object(path)

    def rm_file(self, path: str) -> None:
        self._object(path).unlink()

    def _open(self, path: str, mode: str = "rb", **options: Any) -> Any:
        assert mode == "wb"
        return _Upload(self._object(path))

    def _object(self, path: str) -> Path:
        found = Path(self._strip_protocol(path))
        if any((parent / "DOWN").exists() for parent in found.parents):
            raise Unreachable("connection timed out")
        return found


class _Upload(io.BytesIO):
    def __init__(self, target: Path) -> None:
        super().__init__()
        self._target = target

    def close(self) -> None:
        if not self.closed:
            self._target.parent.mkdir(parents=True, exist_ok=True)
            beside = self._target.with_suffix(f".{os.getpid()}")
            beside.write_bytes(self.getvalue())
            beside.replace(self._target)
        super().close()


def install() -> None:
    """Make this process know ``object://``."""
    fsspec.register_implementation("object", ObjectStore, clobber=True)


install()
