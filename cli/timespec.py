"""Times and durations as people type them."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import click

__all__ = ["TIME", "Time", "format_time", "parse_time_ms"]

_UNITS_MS: Final = {"ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000, "w": 604_800_000}
EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_AGO = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d|w)")


def parse_time_ms(text: str, now_ms: int) -> int:
    """Milliseconds since the epoch of ``text``; ValueError when it is no time.

    ``2026-11-22T10:00:00+01:00`` or ``2026-11-22 10:00`` or ``2026-11-22`` (local time without an
    offset), ``now``, milliseconds since the epoch (13 digits), or how long ago: ``90s``, ``15m``, ``2h``,
    ``7d``, ``1h30m``.
    """
    text = text.strip()
    if text == "now":
        return now_ms
    if re.fullmatch(r"\d{11,15}", text):
        return int(text)
    if _AGO.sub("", text) == "" and text:
        return now_ms - round(sum(float(n) * _UNITS_MS[unit] for n, unit in _AGO.findall(text)))
    moment = datetime.fromisoformat(text)
    return round(moment.timestamp() * 1000)


def format_time(milliseconds: int) -> str:
    """A time stamp for people and programs: ISO 8601 in UTC with milliseconds."""
    try:
        moment = EPOCH + timedelta(milliseconds=milliseconds)
    except OverflowError:
        return f"{milliseconds} ms"
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


class Time(click.ParamType[int]):
    """A moment, as milliseconds since the epoch."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        try:
            found = parse_time_ms(str(value), round(datetime.now(UTC).timestamp() * 1000))
        except (ValueError, OverflowError):
            self.fail(
                f"{value!r} is not a time. Write 2026-11-22T10:00:00Z, 2026-11-22, now, milliseconds since "
                "the epoch, or how long ago: 90s, 15m, 2h, 7d.",
                param,
                ctx,
            )
        if found < 0:
            # To the log, -1 and so on are names: the end, the beginning.
            self.fail(f"{value!r} is before 1970.", param, ctx)
        return found


TIME: Final = Time()
