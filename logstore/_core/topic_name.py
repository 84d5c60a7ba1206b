"""What a program names a topic or a partition by: Kafka's rule for names."""

from __future__ import annotations

import re
from typing import Final

from logstore.errors import InvalidArgumentError, InvalidTopicError
from logstore.records import TopicPartition

__all__ = ["check_partition", "check_topic_name"]

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


def check_partition(tp: object) -> TopicPartition:
    """``tp``, a pair of a topic's name and a number; else raises :class:`InvalidArgumentError`."""
    if isinstance(tp, tuple) and len(tp) == 2:
        topic, number = tp
        if isinstance(number, int) and not isinstance(number, bool) and 0 <= number < 2**31:
            return TopicPartition(check_topic_name(topic), number)
    raise InvalidArgumentError(f"A partition is a TopicPartition of a name and a number, not {tp!r}.")
