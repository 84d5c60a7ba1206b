"""Lines of text to records: what ``logstore produce`` reads.

``line``: a line is a value, byte for byte without its ``\\n``; with a key separator, ``key<separator>value``.

``jsonl``: a line is an object with the fields below, all of them optional; what ``logstore consume
--format json`` prints is read back to the same record.

    {"key": …, "value": …, "headers": …, "partition": 0, "timestamp": 1432116317000}

A string is its UTF-8 bytes, null is no key or a tombstone, anything else is written as compact JSON.
Bytes that are no text go as ``key_base64`` and ``value_base64``.  Headers are an object, or a list of
pairs where a name comes twice; a value is a string, null or ``{"base64": "…"}``.  A time stamp is
milliseconds since the epoch or ISO 8601.
"""

from __future__ import annotations

import base64
import binascii
import difflib
import json
from collections.abc import Callable
from typing import Any, Final, NamedTuple

from logstore.cli.failures import InputError
from logstore.cli.timespec import parse_time_ms

__all__ = ["Line", "Parser", "json_parser", "line_parser"]

Headers = list[tuple[str, bytes | None]]


class Line(NamedTuple):
    """A record to be sent."""

    value: bytes | None
    key: bytes | None = None
    headers: Headers | None = None
    partition: int | None = None
    timestamp_ms: int | None = None


Parser = Callable[[bytes, int], Line]
"""From a line without its end, and its number from 1, to a record.  :class:`InputError` names the line."""

FIELDS: Final = ("key", "key_base64", "value", "value_base64", "headers", "partition", "timestamp")
IGNORED: Final = frozenset({"topic", "offset", "timestamp_type", "leader_epoch"})
"""What ``consume --format json`` adds and a new record gets from its new place."""


def line_parser(key_separator: bytes | None, null_value: bytes | None) -> Parser:
    def parse(line: bytes, number: int) -> Line:
        key: bytes | None = None
        if key_separator is not None:
            key, found, line = line.partition(key_separator)
            if not found:
                separator = key_separator.decode("utf-8", "backslashreplace")
                raise InputError(
                    f"Line {number}: there is no key separator {separator!r} in {_shown(key)}. "
                    "Choose another --key-separator, or leave it out for records without a key."
                )
        if null_value is not None and line == null_value:
            return Line(None, key)
        return Line(line, key)

    return parse


def json_parser(*, keep_partition: bool = True) -> Parser:
    def parse(line: bytes, number: int) -> Line:
        try:
            fields = json.loads(line)
        except (ValueError, RecursionError) as error:
            reason = _reason(error)
            raise InputError(f"Line {number}: not JSON ({reason}): {_shown(line)}") from None
        if not isinstance(fields, dict):
            raise InputError(
                f'Line {number}: not a JSON object: {_shown(line)}. Write {{"key": …, "value": …}}, '
                "or use --format line."
            )
        _refuse_unknown(fields, number)
        try:
            return Line(
                value=_bytes(fields, "value"),
                key=_bytes(fields, "key"),
                headers=_headers(fields.get("headers")),
                partition=_partition(fields.get("partition")) if keep_partition else None,
                timestamp_ms=_timestamp(fields.get("timestamp")),
            )
        except ValueError as error:
            raise InputError(f"Line {number}: {error}") from None

    return parse


def _reason(error: Exception) -> str:
    """Why a line is no JSON that can be read."""
    if isinstance(error, json.JSONDecodeError):
        return error.msg
    if isinstance(error, UnicodeDecodeError):
        return "not UTF-8"
    return "nested too deeply" if isinstance(error, RecursionError) else "a number with too many digits"


def _refuse_unknown(fields: dict[str, Any], number: int) -> None:
    for name in fields:
        if name not in FIELDS and name not in IGNORED:
            near = difflib.get_close_matches(name, FIELDS, 1)
            guess = f" Did you mean {near[0]!r}?" if near else ""
            raise InputError(f"Line {number}: unknown field {name!r}.{guess} Fields are {', '.join(FIELDS)}.")


def _bytes(fields: dict[str, Any], name: str) -> bytes | None:
    encoded = fields.get(f"{name}_base64")
    plain = fields.get(name)
    if encoded is not None:
        if plain is not None:
            raise ValueError(f"{name} and {name}_base64 are both given")
        return _base64(encoded, f"{name}_base64")
    return _encode(plain, name)


def _encode(value: Any, name: str) -> bytes | None:
    if value is None:
        return None
    if not isinstance(value, str):
        value = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    try:
        return bytes(value, "utf-8")
    except UnicodeEncodeError:
        raise ValueError(f"{name} is no text: it holds half of a surrogate pair; use {name}_base64") from None


def _base64(text: Any, name: str) -> bytes:
    try:
        if isinstance(text, str):
            return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        pass
    raise ValueError(f"{name} is not base64: {text!r}")


def _headers(given: Any) -> Headers | None:
    if given is None:
        return None
    pairs = list(given.items()) if isinstance(given, dict) else given
    if not isinstance(pairs, list):
        raise ValueError(f"headers must be an object or a list of [name, value], not {given!r}")
    headers: Headers = []
    for pair in pairs:
        if not (isinstance(pair, list | tuple) and len(pair) == 2 and isinstance(pair[0], str)):
            raise ValueError(f"a header must be [name, value], not {pair!r}")
        name, value = pair
        if isinstance(value, dict) and set(value) == {"base64"}:
            headers.append((name, _base64(value["base64"], f"header {name!r}")))
        elif value is None or isinstance(value, str):
            headers.append((name, _encode(value, f"header {name!r}")))
        else:
            raise ValueError(f'header {name!r} must be a string, null or {{"base64": …}}, not {value!r}')
    return headers


def _partition(given: Any) -> int | None:
    if given is None or (isinstance(given, int) and not isinstance(given, bool) and given >= 0):
        return given
    raise ValueError(f"partition must be a whole number from 0, not {given!r}")


def _timestamp(given: Any) -> int | None:
    if given is None:
        return None
    if isinstance(given, int) and not isinstance(given, bool) and given >= 0:
        return given
    if isinstance(given, str):
        try:
            return parse_time_ms(given, 0) if not given.isdigit() else int(given)
        except (ValueError, OverflowError):
            pass
    raise ValueError(f"timestamp must be milliseconds since the epoch or ISO 8601, not {given!r}")


def _shown(line: bytes, limit: int = 60) -> str:
    text = line[:limit].decode("utf-8", "backslashreplace")
    return repr(text) + ("…" if len(line) > limit else "")
