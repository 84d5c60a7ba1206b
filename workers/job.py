"""What a job is: a function that does one run of something, bounded in time, and says what it came to."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol, runtime_checkable

from logstore.errors import ConnectionFailedError, LogstoreError

__all__ = ["Attempts", "Result", "RunOnce", "idle", "storable", "wants_more", "words"]


@runtime_checkable
class Result(Protocol):
    """What a run came to: a frozen dataclass with numbers, and tuples of names.

    A result may have ``more: bool``, a field or a property: something is left, run it again at once.
    """

    def summary(self) -> str:
        """In one line."""


class RunOnce(Protocol):
    """One run of a job.

    It opens its own connections (:mod:`logstore.workers.connections`), does its work in bounded steps, each a
    transaction of its own, looks between them whether ``stop`` is set and ends early then.  It may be killed
    anywhere: the next run goes on from what it finds.  Two at once do no harm.  It raises nothing but
    :class:`logstore.errors.LogstoreError`.
    """

    def __call__(
        self, dsn: str, schema: str = "logstore", *, stop: threading.Event | None = None
    ) -> Result: ...


class Attempts:
    """What a job does for one after the other: what goes wrong with one keeps it from none.

    Without a connection there is no next one.
    """

    def __init__(self) -> None:
        self._first: LogstoreError | None = None

    @contextmanager
    def one(self) -> Iterator[None]:
        """What it raises is raised by :meth:`settle`."""
        try:
            yield
        except ConnectionFailedError:
            raise
        except LogstoreError as error:
            self._first = self._first or error

    def settle(self) -> None:
        """After the last one: raise what was raised first."""
        if self._first is not None:
            raise self._first


def words(result: Result) -> dict[str, Any]:
    """The fields of a result, as JSON can hold them."""
    fields: Any = result
    return {name: _plain(value) for name, value in dataclasses.asdict(fields).items()}


def idle(result: Result) -> bool:
    """The run found nothing to do: every number is 0, every list empty."""
    return not any(
        value for name, value in words(result).items() if name not in ("more", "seconds", "elapsed_s")
    )


def wants_more(result: Result) -> bool:
    """Something is left to do."""
    return bool(getattr(result, "more", False))


def storable(text: str) -> str:
    """``text`` as PostgreSQL can keep it: no zero bytes, nothing that is no Unicode."""
    return text.replace("\0", "\ufffd").encode("utf-8", "replace").decode("utf-8")


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(name): _plain(each) for name, each in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(each) for each in value]
    if value is None or isinstance(value, bool | int | float):
        return value
    return storable(str(value))
