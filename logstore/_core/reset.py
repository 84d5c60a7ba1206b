"""Where to begin when a partition has no position: Kafka's ``auto_offset_reset``."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from logstore._core.calls import EARLIEST, LATEST
from logstore.errors import ConfigurationError

__all__ = ["ResetPolicy", "duration_ms"]

_BY_DURATION: Final = "by_duration:"
_ISO_DURATION: Final = re.compile(
    r"P(?:(?P<weeks>\d+)W)?(?:(?P<days>\d+)D)?"
    r"(?:T(?=\d)(?:(?P<hours>\d+)H)?(?:(?P<minutes>\d+)M)?(?:(?P<seconds>\d+(?:[.,]\d{1,9})?)S)?)?",
    re.IGNORECASE | re.ASCII,
)
_UNIT_MS: Final = {"weeks": 604_800_000, "days": 86_400_000, "hours": 3_600_000, "minutes": 60_000}


def duration_ms(text: str) -> int:
    """Milliseconds in an ISO 8601 duration such as ``PT30M``, ``P1DT12H`` or ``PT0.5S``.

    Years and months are refused, because they have no fixed length, and so are negative durations.
    Raises :class:`ConfigurationError`.
    """
    found = _ISO_DURATION.fullmatch(text)
    parts = {name: part for name, part in found.groupdict().items() if part} if found else {}
    if not parts:
        raise ConfigurationError(
            f"{text!r} is not an ISO 8601 duration.",
            advice="Write days, hours, minutes and seconds as in P1DT2H30M or PT45S.",
        )
    seconds = float(parts.pop("seconds", "0").replace(",", "."))
    return round(seconds * 1000) + sum(_UNIT_MS[name] * int(part) for name, part in parts.items())


@dataclass(frozen=True, slots=True)
class ResetPolicy:
    """What ``auto_offset_reset`` says, parsed.

    It applies where a partition has no position yet, and where its position has left the log because
    retention or ``delete_records`` moved the log's start.
    """

    name: str
    duration_ms: int = 0

    @classmethod
    def parse(cls, text: str) -> ResetPolicy:
        """From "earliest", "latest", "none" or "by_duration:PT1H"; raises :class:`ConfigurationError`."""
        if isinstance(text, str):
            lowered = text.lower()
            if lowered in ("earliest", "latest", "none"):
                return cls(lowered)
            if lowered.startswith(_BY_DURATION):
                return cls("by_duration", duration_ms(text[len(_BY_DURATION) :]))
        raise ConfigurationError(
            f"auto_offset_reset cannot be {text!r}.",
            advice='It is "earliest", "latest", "none" or "by_duration:" and an ISO 8601 duration, as in '
            '"by_duration:PT1H".',
        )

    def spec(self, now_ms: int) -> int | None:
        """What to ask ``list_offsets`` for at ``now_ms`` (milliseconds since the epoch); None: there is no
        policy.
        """
        match self.name:
            case "earliest":
                return EARLIEST
            case "latest":
                return LATEST
            case "by_duration":
                return max(0, now_ms - self.duration_ms)
            case _:
                return None
