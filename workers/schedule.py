"""When a job is due: every so often or by a cron expression, with some jitter; pauses after failures."""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

from apscheduler.triggers.base import BaseTrigger
from apscheduler.triggers.combining import OrTrigger
from apscheduler.triggers.cron import CronTrigger

from logstore.errors import ConfigurationError

__all__ = ["Cron", "Every", "Schedule", "pause_s", "seconds", "shown"]

JITTER: Final = 0.1
"""Part of an interval by which it may be longer, so that the jobs of many logs do not meet."""
LONGEST_PAUSE_S: Final = 300.0
"""After any number of failures a job is tried again after this long, or at its next time if that is later."""

_UNITS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_DAYS: Final = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")


@dataclass(frozen=True, slots=True)
class Every:
    """An interval, from one beginning to the next."""

    seconds: float

    def __post_init__(self) -> None:
        if not 0.1 <= self.seconds <= 366 * 86400:
            raise ConfigurationError(f"An interval is 100 ms to 366 days, not {shown(self.seconds)}.")

    def next_in_s(self, now: datetime) -> float:
        """Seconds from ``now`` to the next time."""
        return self.seconds * (1 + JITTER * random.random())

    @property
    def period_s(self) -> float:
        """About how far its times are apart."""
        return self.seconds

    def __str__(self) -> str:
        return f"every {shown(self.seconds)}"


@dataclass(frozen=True, slots=True)
class Cron:
    """The five fields of a crontab line, in UTC: minute, hour, day of the month, month, day of the week.

    As in crontab, Sunday is 0 or 7, and where both days are restricted, one of them has to fit.
    """

    expression: str

    def __post_init__(self) -> None:
        if self._next_after(datetime.now(UTC)) is None:
            raise ConfigurationError(f"The cron expression {self.expression!r} never comes true.")

    def next_in_s(self, now: datetime) -> float:
        """Seconds from ``now`` to the next time."""
        found = self._next_after(now)
        # The years a cron expression may name are never over: fields for years are not in a crontab.
        return (found - now).total_seconds() if found else LONGEST_PAUSE_S

    @property
    def period_s(self) -> float:
        """About how far its times are apart."""
        now = datetime.now(UTC)
        first = self.next_in_s(now)
        return self.next_in_s(now + timedelta(seconds=first + 1)) + 1

    def _next_after(self, now: datetime) -> datetime | None:
        found: datetime | None = _trigger(self.expression).get_next_fire_time(now, now)
        return found

    def __str__(self) -> str:
        return self.expression


Schedule = Every | Cron


def pause_s(failures: int, period_s: float) -> float:
    """Seconds until a job that has failed so often in a row is tried again."""
    longest = max(LONGEST_PAUSE_S, period_s)
    return min(longest, max(1.0, period_s) * 2.0 ** min(failures - 1, 20)) * (1 - 0.2 * random.random())


def seconds(text: str) -> float:
    """An interval such as ``500ms``, ``30s``, ``5m``, ``1h``, ``7d``; a bare number is seconds."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(ms|s|m|h|d)?\s*", text)
    if match is None:
        raise ConfigurationError(
            f"{text!r} is no interval.", advice="Write a number and a unit: 500ms, 30s, 5m, 1h, 7d."
        )
    return float(match[1]) * _UNITS[match[2] or "s"]


def shown(interval_s: float) -> str:
    """An interval as :func:`seconds` reads it."""
    for unit in ("d", "h", "m", "s"):
        number = interval_s / _UNITS[unit]
        if number >= 1 and abs(number - round(number)) < 1e-9:
            return f"{round(number)}{unit}"
    return f"{round(interval_s * 1000)}ms"


def _trigger(expression: str) -> BaseTrigger:
    fields = expression.split()
    if len(fields) != 5:
        raise ConfigurationError(
            f"The cron expression {expression!r} has {len(fields)} fields, not 5.",
            advice="Minute, hour, day of the month, month, day of the week: '*/5 * * * *'.",
        )
    minute, hour, day, month, weekday = fields
    try:
        weekdays = _weekdays(weekday)
        wanted = [(day, weekdays)]
        if day[0] != "*" and weekday[0] != "*":
            wanted = [(day, "*"), ("*", weekdays)]
        triggers = [
            CronTrigger(minute=minute, hour=hour, day=each, month=month, day_of_week=of_week, timezone=UTC)
            for each, of_week in wanted
        ]
    except (ValueError, IndexError) as error:
        raise ConfigurationError(f"The cron expression {expression!r} is not valid: {error}.") from None
    return triggers[0] if len(triggers) == 1 else OrTrigger(triggers)


def _weekdays(field: str) -> str:
    """A crontab's days of the week as names: APScheduler begins to count on Monday."""
    found: set[int] = set()
    for part in field.lower().split(","):
        span, _, step = part.partition("/")
        if span == "*":
            first, last = 0, 6
        else:
            begin, _, end = span.partition("-")
            first = _weekday(begin)
            last = _weekday(end) if end else first if not step else 6
            if end and last < first:
                last += 7
        found.update(number % 7 for number in range(first, last + 1, int(step or "1")))
    return ",".join(_DAYS[number] for number in sorted(found)) if len(found) < 7 else "*"


def _weekday(text: str) -> int:
    if text in _DAYS:
        return _DAYS.index(text)
    number = int(text)
    if not 0 <= number <= 7:
        raise ValueError(f"{number} is no day of the week")
    return number
