"""The demo's input: 10,000 real HTTP requests, and how a line becomes a record."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from datetime import datetime
from importlib.resources import files
from typing import NamedTuple

__all__ = ["Request", "parse_line", "requests"]

COMBINED = re.compile(
    r'(?P<client>\S+) \S+ (?P<user>\S+) \[(?P<time>[^\]]+)\] "(?P<method>[A-Z]+) '
    r'(?P<path>\S+) (?P<protocol>HTTP/\d\.\d)" '
    r'(?P<status>\d{3}) (?P<bytes>\d+|-) "(?P<referrer>(?:[^"\\]|\\.)*)" "(?P<agent>(?:[^"\\]|\\.)*)"'
)
"""Apache's combined log format, whole line or nothing."""


class Request(NamedTuple):
    """A line of the log as a record."""

    client: bytes
    """The key: the client's address."""
    value: bytes
    """JSON of the request; the line as it is where it is not in the format."""
    timestamp_ms: int
    """When the request was made."""
    parsed: bool


def parse_line(line: bytes) -> Request:
    """One line.  What is not the combined format, whole, is kept as it is: nothing is guessed or lost."""
    text = line.decode("utf-8", "surrogateescape")
    match = COMBINED.fullmatch(text)
    client = line.split(b" ", 1)[0]
    if match is None:
        stamp = re.search(r"\[([^\]]+)\]", text)
        return Request(client, line, _milliseconds(stamp[1]) if stamp else 0, parsed=False)
    fields = match.groupdict()
    document = {
        "method": fields["method"],
        "path": fields["path"],
        "status": int(fields["status"]),
        "bytes": None if fields["bytes"] == "-" else int(fields["bytes"]),
        "referrer": None if fields["referrer"] == "-" else fields["referrer"],
        "agent": None if fields["agent"] == "-" else fields["agent"],
        "protocol": fields["protocol"],
    }
    value = json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogateescape")
    return Request(client, value, _milliseconds(fields["time"]), parsed=True)


def _milliseconds(stamp: str) -> int:
    return round(datetime.strptime(stamp, "%d/%b/%Y:%H:%M:%S %z").timestamp() * 1000)


def requests() -> Iterator[Request]:
    """All requests of the log that comes with logstore, in its order."""
    with (files("logstore.cli") / "data" / "apache_access.log").open("rb") as log:
        for line in log:
            yield parse_line(line.rstrip(b"\n"))
