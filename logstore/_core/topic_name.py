"""Kafka's rule for the names of topics."""

from __future__ import annotations

import re
from typing import Final

from logstore.errors import InvalidTopicError

__all__ = ["check_topic_name"]

_LEGAL: Final = re.compile(r"[a-zA-Z0-9._-]{1,249}", re.ASCII)


def check_topic_name(name: object) -> str:
    """``name``, if a topic can have it; else raises :class:`InvalidTopicError`.

    The server has the same rule; asking here keeps what no server would understand (a NUL, a lone
    surrogate) from being sent at all.
    """
    if not isinstance(name, str) or not _LEGAL.fullmatch(name) or name in (".", ".."):
        shown = repr(name) if len(repr(name)) <= 300 else repr(name)[:300] + "…"
        raise InvalidTopicError(f"{shown} is not a legal topic name.", details={"topic": name})
    return name
