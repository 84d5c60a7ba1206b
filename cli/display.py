"""Records to text: what ``logstore consume`` prints.

A log holds what anybody wrote, so nothing reaches a terminal as it is: control characters (which could
drive the terminal), bidirectional overrides and bytes that are no UTF-8 are shown as escapes.  ``raw``
gives the bytes themselves; ``json`` loses nothing and is read back by ``logstore produce --format
jsonl``.
"""

from __future__ import annotations

import base64
import json
import re
import string
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import click

from logstore.cli.timespec import format_time
from logstore.records import CREATE_TIME, ConsumerRecord

__all__ = [
    "FIELDS",
    "NULL",
    "escape_controls",
    "json_formatter",
    "raw_formatter",
    "safe",
    "template_formatter",
    "text_formatter",
]

Formatter = Callable[[ConsumerRecord], bytes]
"""From a record to a line, its end included."""

NULL: Final = "(null)"
FIELDS: Final = ("timestamp", "partition", "offset", "key", "headers", "topic")

_UNSAFE = re.compile(
    "[\x00-\x08\x0a-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ufeff\ud800-\udfff]"
)
_ENCODE: Final = json.JSONEncoder(ensure_ascii=False).encode
_NAMED: Final = {"\n": "\\n", "\r": "\\r"}


def safe(data: bytes | None) -> str:
    """Text that is safe to print on one line; tabs stay."""
    if data is None:
        return NULL
    return escape_controls(data.decode("utf-8", "backslashreplace"))


def escape_controls(text: str, *, keep: str = "") -> str:
    """``text`` without anything that could drive a terminal; ``keep`` stays as it is."""
    return _UNSAFE.sub(lambda match: match[0] if match[0] in keep else _escape(match), text)


def _escape(match: re.Match[str]) -> str:
    character = match[0]
    code = ord(character)
    return _NAMED.get(character) or (f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}")


def safe_headers(headers: Sequence[tuple[str, bytes | None]]) -> str:
    return ",".join(f"{safe(name.encode())}={safe(value)}" for name, value in headers)


def text_formatter(fields: Sequence[str] = ()) -> Formatter:
    """The value, after ``fields`` separated by tabs."""
    if not fields:
        return lambda record: (safe(record.value) + "\n").encode()

    def render(record: ConsumerRecord) -> bytes:
        return ("\t".join([*(_field(record, name) for name in fields), safe(record.value)]) + "\n").encode()

    return render


def _field(record: ConsumerRecord, name: str) -> str:
    if name == "timestamp":
        return format_time(record.timestamp)
    if name == "key":
        return safe(record.key)
    if name == "headers":
        return safe_headers(record.headers)
    return str(getattr(record, name))


def raw_formatter(record: ConsumerRecord) -> bytes:
    """The value's own bytes and a line end; nothing for a tombstone."""
    return b"" if record.value is None else record.value + b"\n"


def json_formatter(record: ConsumerRecord) -> bytes:
    """One object with stable keys; ``key_base64`` or ``value_base64`` where the bytes are no text."""
    document: dict[str, Any] = {
        "topic": record.topic,
        "partition": record.partition,
        "offset": record.offset,
        "timestamp": record.timestamp,
        "timestamp_type": "CreateTime" if record.timestamp_type == CREATE_TIME else "LogAppendTime",
    }
    for name, data in (("key", record.key), ("value", record.value)):
        text = _as_text(data)
        document[name] = text
        if text is None and data is not None:
            document[f"{name}_base64"] = base64.b64encode(data).decode()
    document["headers"] = [[name, _header_value(value)] for name, value in record.headers]
    return _ENCODE(document).encode("utf-8") + b"\n"


def _as_text(data: bytes | None) -> str | None:
    if data is None:
        return None
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return None


def _header_value(value: bytes | None) -> str | dict[str, str] | None:
    text = _as_text(value)
    return {"base64": base64.b64encode(value).decode()} if text is None and value is not None else text


_FIELD_VALUES: Final[Mapping[str, Callable[[ConsumerRecord], Any]]] = {
    "topic": lambda record: record.topic,
    "partition": lambda record: record.partition,
    "offset": lambda record: record.offset,
    "timestamp": lambda record: record.timestamp,
    "time": lambda record: format_time(record.timestamp),
    "key": lambda record: safe(record.key),
    "value": lambda record: safe(record.value),
    "headers": lambda record: safe_headers(record.headers),
    "size": lambda record: len(record.value or b""),
}


def template_formatter(template: str) -> Formatter:
    r"""``{field}`` is replaced; ``\n`` and ``\t`` are what they are elsewhere; ``{{`` is a brace.

    A field may carry a format, ``{offset:>8}``, but no attribute or index: a template only prints.
    """
    template = template.replace("\\n", "\n").replace("\\t", "\t")
    names: list[str] = []
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError as error:
        raise click.BadParameter(f"{template!r}: {error}.", param_hint="--template") from None
    for _, name, spec, conversion in parts:
        if name is None:
            continue
        if name not in _FIELD_VALUES or conversion or "{" in (spec or ""):
            known = ", ".join(_FIELD_VALUES)
            raise click.BadParameter(
                f"{'{' + name + '}'} is not a field. Fields are {known}.", param_hint="--template"
            )
        names.append(name)
    wanted = {name: _FIELD_VALUES[name] for name in names}

    def render(record: ConsumerRecord) -> bytes:
        return (template.format_map({name: get(record) for name, get in wanted.items()}) + "\n").encode()

    probe = ConsumerRecord("t", 0, 0, 0, CREATE_TIME, b"", b"", (), 0)
    try:
        render(probe)
    except ValueError as error:
        raise click.BadParameter(f"{template!r}: {error}.", param_hint="--template") from None
    return render
