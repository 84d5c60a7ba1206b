"""One line a finished run, for people or for programs."""

from __future__ import annotations

import json
import sys
import threading
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal, TextIO

__all__ = ["Finished", "Journal"]

Outcome = Literal["ok", "failed", "broken off"]


@dataclass(frozen=True, slots=True)
class Finished:
    """A run that is over."""

    job: str
    outcome: Outcome
    seconds: float
    summary: str
    result: dict[str, Any] = field(default_factory=dict)
    idle: bool = False
    """There was nothing to do."""
    next_in_s: float = 0.0


class Journal:
    """Writes lines to a stream, standard error by default; any thread may call it."""

    def __init__(self, *, as_json: bool = False, verbose: bool = False, stream: TextIO | None = None) -> None:
        self._as_json = as_json
        self._verbose = verbose
        self._stream = stream or sys.stderr
        self._lock = threading.Lock()

    def finished(self, run: Finished) -> None:
        """A run is over; one that found nothing to do is worth a line only where ``verbose``."""
        if run.idle and not self._verbose:
            return
        words = {
            "job": run.job,
            "outcome": run.outcome,
            "seconds": round(run.seconds, 3),
            "summary": run.summary,
            "result": run.result,
            "next_in_seconds": round(run.next_in_s, 1),
        }
        self._write(words, f"{run.job}: {run.outcome} in {run.seconds:.2f} s: {run.summary}")

    def note(self, text: str, *, level: str = "info") -> None:
        """Something else worth a line."""
        self._write({"level": level, "message": text}, text if level == "info" else f"{level}: {text}")

    def _write(self, words: dict[str, Any], text: str) -> None:
        at = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        line = json.dumps({"at": at, **words}) if self._as_json else f"{at} {' '.join(text.split())}"
        with self._lock:
            try:
                self._stream.write(line + "\n")
                self._stream.flush()
            except (OSError, ValueError):
                # Whoever read the lines has gone; the work goes on.
                pass
