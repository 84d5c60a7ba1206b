"""Samples, their medians, and the targets they are held against."""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Self

from rich.console import Console

__all__ = [
    "Figure",
    "Section",
    "Speed",
    "Target",
    "interleave",
    "median_ratio",
    "percentile",
    "rates",
    "timed",
]

_console = Console(stderr=True, highlight=False)


@dataclass(frozen=True)
class Figure:
    """One quantity, measured once per repetition."""

    name: str
    unit: str
    samples: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.samples)


@dataclass(frozen=True)
class Target:
    """What the project promises about a quantity, and what came out."""

    name: str
    bound: float
    direction: Literal[">=", "<="]
    measured: float
    unit: str

    @property
    def met(self) -> bool:
        return self.measured >= self.bound if self.direction == ">=" else self.measured <= self.bound


@dataclass
class Section:
    """The outcome of one scenario."""

    name: str
    setup: str
    """What was done, in a sentence or two, with the sizes."""
    figures: list[Figure] = field(default_factory=list)
    targets: list[Target] = field(default_factory=list)
    disturbance: float = 0.0
    """How much of the processors other work had, just before and just after: from 0 to 1."""

    def add(self, name: str, unit: str, samples: float | Sequence[float]) -> Figure:
        figure = Figure(name, unit, tuple(samples) if isinstance(samples, Sequence) else (float(samples),))
        self.figures.append(figure)
        return figure

    def at_least(self, name: str, bound: float, measured: float, unit: str) -> None:
        self.targets.append(Target(name, bound, ">=", measured, unit))

    def at_most(self, name: str, bound: float, measured: float, unit: str) -> None:
        self.targets.append(Target(name, bound, "<=", measured, unit))

    def document(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "name": self.name,
            "setup": self.setup,
            "disturbance": self.disturbance,
            "figures": [
                {"name": figure.name, "unit": figure.unit, "median": figure.median, "samples": figure.samples}
                for figure in self.figures
            ],
            "targets": [
                {
                    "name": target.name,
                    "unit": target.unit,
                    "bound": target.bound,
                    "direction": target.direction,
                    "measured": target.measured,
                    "met": target.met,
                }
                for target in self.targets
            ],
        }


def from_document(document: Mapping[str, Any]) -> Section:
    """The section that :meth:`Section.document` made ``document`` of."""
    return Section(
        document["name"],
        document["setup"],
        [Figure(each["name"], each["unit"], tuple(each["samples"])) for each in document["figures"]],
        [
            Target(each["name"], each["bound"], each["direction"], each["measured"], each["unit"])
            for each in document["targets"]
        ],
        document["disturbance"],
    )


class Speed(NamedTuple):
    """How fast something was done, once."""

    rate: float
    """Things a second."""
    cpu_us: float
    """What this process computed for each of them, in µs: without the server, and without waiting for it."""


class Clock:
    """``with Clock(count) as clock: …`` measures what is inside, which handles ``count`` things.

    Garbage of earlier work is collected first; the collector stays on, as it is for users.
    """

    speed: Speed

    def __init__(self, count: int) -> None:
        self._count = count

    def __enter__(self) -> Self:
        gc.collect()
        self._begin, self._computed = time.perf_counter(), time.process_time()
        return self

    def __exit__(self, *_: object) -> None:
        elapsed, computed = time.perf_counter() - self._begin, time.process_time() - self._computed
        self.speed = Speed(self._count / elapsed, computed / self._count * 1e6)


def timed(count: int, work: Callable[[], object]) -> Speed:
    """How fast ``work`` handles ``count`` things."""
    with Clock(count) as clock:
        work()
    return clock.speed


def interleave(
    contestants: Mapping[str, Callable[[], Speed]],
    repetitions: int,
    *,
    before: Callable[[], object] = lambda: None,
) -> dict[str, list[Speed]]:
    """Run every contestant in turn, ``repetitions`` times; the samples by name.

    The order alternates from round to round, so that no contestant always runs in another's wake.  ``before``
    runs ahead of every sample, outside of it.
    """
    samples: dict[str, list[Speed]] = {name: [] for name in contestants}
    for repetition in range(repetitions):
        order = list(contestants)[:: 1 if repetition % 2 == 0 else -1]
        for name in order:
            before()
            speed = contestants[name]()
            samples[name].append(speed)
            _console.print(
                f"  [dim]{repetition + 1}/{repetitions}[/dim] {name}: {speed.rate:,.0f}/s, "
                f"{speed.cpu_us:.2f} µs each"
            )
    return samples


def rates(speeds: Sequence[Speed]) -> list[float]:
    return [speed.rate for speed in speeds]


def median_ratio(numerators: Sequence[float], denominators: Sequence[float]) -> float:
    """The median of the ratios round by round: what was measured side by side is compared side by side."""
    return statistics.median(a / b for a, b in zip(numerators, denominators, strict=True))


def percentile(samples: Sequence[float], share: float) -> float:
    """Nearest rank: a value that was really seen."""
    ordered = sorted(samples)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]
