"""How many examples property tests take: ``make test`` has time for some, ``make test-all`` for all."""

from __future__ import annotations

from typing import Final

import hypothesis

__all__ = ["SHORT", "examples"]

SHORT: Final = 40
"""Of a hundred.  The examples are the same each time: those that are taken are the first."""


def examples(number: int) -> int:
    """Out of ``number``, as many as the profile says of a hundred."""
    profile = hypothesis.settings.default
    assert profile is not None
    return max(1, number * profile.max_examples // 100)
