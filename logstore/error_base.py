"""What all errors have in common, and those that errors of several kinds are.  Import them from
:mod:`logstore.errors`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

__all__ = ["LogstoreError", "OffsetOutOfRangeError", "RetriableError"]


class LogstoreError(Exception):
    """Something went wrong.

    ``message`` says what happened, with the values; ``advice`` says what to do about it; ``details`` holds
    the values for programs.  ``str()`` joins the first two.
    """

    retriable: ClassVar[bool] = False
    """Trying the same thing again may succeed."""
    fatal: ClassVar[bool] = False
    """The client cannot be used any more: close it and make a new one."""
    advice: str = ""

    def __init__(
        self, message: str = "", *, advice: str | None = None, details: Mapping[str, Any] | None = None
    ) -> None:
        self.message = message or (type(self).__doc__ or "").splitlines()[0]
        if advice is not None:
            self.advice = advice
        self.details: dict[str, Any] = dict(details or {})
        super().__init__(self.message)

    def __str__(self) -> str:
        if not self.advice:
            return self.message
        # The server's own messages come without a full stop.
        stop = "" if self.message.endswith((".", "!", "?", ":")) else "."
        return f"{self.message}{stop} {self.advice}"

    def __reduce__(self) -> tuple[Any, ...]:
        return (_rebuild, (type(self), self.message, self.advice, self.details))


def _rebuild(
    cls: type[LogstoreError], message: str, advice: str, details: Mapping[str, Any]
) -> LogstoreError:
    return cls(message, advice=advice, details=details)


class RetriableError(LogstoreError):
    """Trying again may succeed."""

    retriable = True


class OffsetOutOfRangeError(LogstoreError):
    """The offset is below the start of the log or beyond its end."""
