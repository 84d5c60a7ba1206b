"""Where files are: any URL of fsspec's.  Every failure is one of our errors."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, Final

from logstore.errors import ConfigurationError, LogstoreError, RemoteFileError, RemoteStorageError
from logstore.tier.extra import needed

__all__ = ["default_location", "delete", "display", "files_below", "read", "writing"]

_ADVICE: Final = "`logstore tier verify` checks every file; a good copy, put in its place, is as good."
UNFINISHED: Final = ".part"
"""What the name of a local file ends in until it is whole."""


def default_location() -> str:
    """Where files go when nobody has said: a directory of this machine, beside the embedded server's."""
    from platformdirs import user_data_dir

    home = os.environ.get("LOGSTORE_HOME") or user_data_dir("logstore")
    return f"file://{Path(home).expanduser().absolute() / 'tier'}"  # fsspec takes it as it is, unquoted


def display(url: str) -> str:
    """``url`` without a password, for messages."""
    return re.sub(r"://([^/:@]*):[^/@]*@", r"://\1:***@", url)


def read(url: str, start: int, end: int) -> bytes:
    """The bytes from ``start`` to ``end`` of a file.

    Raises RemoteFileError when there is no such file or it ends before ``end``, RemoteStorageError when it
    cannot be asked for, ConfigurationError when nothing here knows that kind of URL.
    """
    with _translated(url, "read"):
        system, path = _opened(url)
        found: bytes = system.cat_file(path, start=start, end=end) if end > start else b""
    if len(found) != end - start:
        raise RemoteFileError(
            f"{display(url)} is cut off: it has no bytes from {start + len(found)} to {end}.",
            advice=_ADVICE,
            details={"url": display(url)},
        )
    return found


@contextlib.contextmanager
def writing(url: str) -> Iterator[BinaryIO]:
    """A new file to write to.

    On a local file system it gets its name when it is whole and on the disk; elsewhere (in an object store,
    that is) it appears when it is closed.  Raises RemoteStorageError and ConfigurationError.
    """
    with _translated(url, "write"):
        system, path = _opened(url)
        if not _is_local(system):
            system.makedirs(system._parent(path), exist_ok=True)
            with system.open(path, "wb") as sink:
                yield sink
            return
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        unfinished = Path(path + UNFINISHED)
        with unfinished.open("wb") as sink:
            yield sink
            sink.flush()
            os.fsync(sink.fileno())
        unfinished.replace(path)
        _sync_directory(Path(path).parent)


def delete(url: str) -> None:
    """Delete a file, whole or not; that there is none is fine.

    Raises RemoteStorageError and ConfigurationError.
    """
    with _translated(url, "delete"):
        system, path = _opened(url)
        local = _is_local(system)
        for name in (path, path + UNFINISHED) if local else (path,):
            with contextlib.suppress(FileNotFoundError):
                system.rm_file(name)
        if local:
            # The directories of a partition, of a topic's id and of its name, as far as they are empty now.
            with contextlib.suppress(OSError):
                for directory in list(Path(path).parents)[:3]:
                    directory.rmdir()


def files_below(url: str) -> Iterator[str]:
    """The URLs of all Parquet files below ``url``, whoever's they are; none if there is no such place.

    Raises RemoteStorageError and ConfigurationError.
    """
    with _translated(url, "list"):
        system, path = _opened(url)
        with contextlib.suppress(FileNotFoundError):
            scheme = url.partition("://")[0]
            for name in sorted(system.find(path)):
                if name.endswith(".parquet"):
                    yield f"{scheme}://{name}" if "://" in url else name


def _opened(url: str) -> tuple[Any, str]:
    fsspec = needed("fsspec.core")
    system, path = fsspec.url_to_fs(url)
    return system, path


def _is_local(system: Any) -> bool:
    return isinstance(system, needed("fsspec.implementations.local").LocalFileSystem)


def _sync_directory(directory: Path) -> None:
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def _translated(url: str, what: str) -> Iterator[None]:
    shown = display(url)
    details = {"url": shown}
    try:
        yield
    except LogstoreError:
        raise
    except FileNotFoundError as error:
        if what == "read":
            raise RemoteFileError(
                f"{shown} does not exist.",
                advice="Where clients run on several machines, remote.storage.url has to be a place that all "
                "of them reach. " + _ADVICE,
                details=details,
            ) from error
        raise RemoteStorageError(f"Cannot {what} {shown}: {error}.", details=details) from error
    except ImportError as error:
        raise ConfigurationError(
            f"{shown} needs a package that is not installed: {error}.",
            advice="Install fsspec's package for that kind of URL, as in: pip install s3fs",
            details=details,
        ) from error
    except ValueError as error:
        raise ConfigurationError(f"{shown} is no URL for files: {error}.", details=details) from error
    except Exception as error:  # every store has errors of its own
        raise RemoteStorageError(
            f"Cannot {what} {shown}: {type(error).__name__}: {error}.",
            advice="Check that the place is there and that this process may use it.",
            details=details,
        ) from error
