"""What a failed statement means: did it happen, did it not, or is that unknown?"""

from __future__ import annotations

import select
from typing import Final

from logstore.errors import (
    ConnectionFailedError,
    LogstoreError,
    NotEnoughReplicasError,
    RequestTimedOutError,
    UnknownOutcomeError,
    from_server,
)

__all__ = ["ENDED", "connection_lost", "cut_short", "refused", "timed_out"]

ENDED: Final = getattr(select, "POLLRDHUP", 0)
"""What to poll a socket for that the server may have closed; where there is no such event, POLLHUP comes.

Asked before something is committed: a request that was never made is no unknown outcome.
"""

_CUT_SHORT = frozenset({"01000", "57P01"})


def refused(
    sqlstate: str, message: str, detail: str | None, hint: str | None, *, committing: bool, where: str
) -> LogstoreError:
    """The server answered with an error.

    ``committing``: the statement included its commit.  Then an end of the connection, in whatever words the
    server announces it, leaves the outcome unknown: it may have come after the commit, while that waited for
    followers.  Every other error means that nothing was written.
    """
    error = from_server(sqlstate, message, detail, hint)
    if isinstance(error, NotEnoughReplicasError):
        # Whose followers are missing is the first thing to know.
        return NotEnoughReplicasError(f"{where}: {message}", advice=hint or None, details=error.details)
    if isinstance(error, ConnectionFailedError):
        return connection_lost(message, committing=committing, where=where)
    return error


def connection_lost(message: str, *, committing: bool, where: str) -> LogstoreError:
    """The connection to ``where`` ended while a statement was under way."""
    reason = " ".join(message.split()).rstrip(".") or "the server closed it"
    if committing:
        return UnknownOutcomeError(f"The connection to {where} was lost during a commit: {reason}.")
    return ConnectionFailedError(f"The connection to {where} was lost: {reason}.")


def timed_out(timeout_s: float, *, committing: bool, where: str) -> LogstoreError:
    """The server did not answer in time; the connection was dropped, nothing was cancelled."""
    message = f"{where} did not answer within {timeout_s:g} s."
    if committing:
        return UnknownOutcomeError(message)
    return RequestTimedOutError(message)


def cut_short(sqlstate: str | None) -> bool:
    """A warning during a commit that takes its success back.

    A cancelled wait for followers is reported as success with a warning: the records are visible here, and
    perhaps nowhere else.
    """
    return sqlstate in _CUT_SHORT
