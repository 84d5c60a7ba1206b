"""The log's clock in a test's hands."""

from __future__ import annotations

from types import TracebackType
from typing import Final, Self

import psycopg
from psycopg import sql

from tests.support.sqllog import NOW_MS

__all__ = ["DAY_MS", "HOUR_MS", "MINUTE_MS", "Clock"]

MINUTE_MS: Final = 60_000
HOUR_MS: Final = 60 * MINUTE_MS
DAY_MS: Final = 24 * HOUR_MS


class Clock:
    """What everything in the log of ``dsn`` that goes by the time goes by from now on."""

    def __init__(self, dsn: str, now_ms: int = NOW_MS, *, schema: str = "logstore") -> None:
        self._connection = psycopg.connect(dsn, autocommit=True)
        self.now_ms = now_ms
        # A sequence: reading it takes no lock, and setting it leaves no dead row and waits for no commit.
        self._connection.execute("CREATE SEQUENCE IF NOT EXISTS public.test_clock")
        self.set(now_ms)
        self._connection.execute(
            sql.SQL(
                "CREATE OR REPLACE FUNCTION {}.clock_ms() RETURNS int8 LANGUAGE sql VOLATILE "
                "RETURN (SELECT last_value FROM public.test_clock)"
            ).format(sql.Identifier(schema))
        )

    def set(self, now_ms: int) -> None:
        """It is ``now_ms``."""
        self.now_ms = now_ms
        self._connection.execute("SELECT setval('public.test_clock', %s)", [now_ms])

    def advance(self, milliseconds: int) -> int:
        """So much time passes; what time it is then."""
        self.set(self.now_ms + milliseconds)
        return self.now_ms

    def close(self) -> None:
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
