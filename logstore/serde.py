"""From Python values to the bytes of a record, and back.

A serializer is any function of one argument that returns ``bytes`` (or None); a deserializer is given
``bytes``. Neither is called for None: a record without a key has no key, and a value of None is a
tombstone.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

__all__ = ["Deserializer", "Serializer", "from_json", "from_text", "to_json", "to_text"]

Serializer = Callable[[Any], bytes | None]
Deserializer = Callable[[bytes], Any]


def to_text(value: str) -> bytes:
    """UTF-8.  Raises TypeError for anything but a str."""
    if not isinstance(value, str):
        raise TypeError(f"a str was expected, not {type(value).__name__}")
    return value.encode()


def from_text(data: bytes) -> str:
    """UTF-8.  Raises UnicodeDecodeError for bytes that are not."""
    return data.decode()


def to_json(value: Any) -> bytes:
    """Compact JSON in UTF-8.  Raises TypeError or ValueError for what JSON cannot hold, NaN included."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.encode()


def from_json(data: bytes) -> Any:
    """JSON in UTF-8.  Raises ValueError for bytes that are not."""
    return json.loads(data)
