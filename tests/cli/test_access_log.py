"""The demo's input."""

from __future__ import annotations

import json
from collections import Counter

from logstore.cli.access_log import parse_line, requests


def test_the_log_has_ten_thousand_requests_and_one_damaged_line() -> None:
    everything = list(requests())
    assert len(everything) == 10_000
    assert [number for number, request in enumerate(everything, 1) if not request.parsed] == [8899]
    assert len({request.client for request in everything}) == 1753
    statuses = Counter(json.loads(r.value)["status"] for r in everything if r.parsed)
    assert statuses[200] == 9125
    assert statuses[404] == 213
    assert sum(statuses.values()) == 9999


def test_a_line_becomes_json_with_the_time_of_the_request() -> None:
    request = parse_line(
        b'10.0.0.1 - - [20/May/2015:12:05:17 +0200] "GET /a\xc3\xa9?b HTTP/1.1" 200 - "-" "say \\"hi\\""'
    )
    assert request.client == b"10.0.0.1"
    assert request.timestamp_ms == 1_432_116_317_000
    assert json.loads(request.value) == {
        "method": "GET",
        "path": "/aé?b",
        "status": 200,
        "bytes": None,
        "referrer": None,
        "agent": 'say \\"hi\\"',
        "protocol": "HTTP/1.1",
    }


def test_a_line_of_another_format_is_kept_byte_for_byte() -> None:
    line = b'10.0.0.1 - - [20/May/2015:12:05:17 +0000] "GET / HTTP/1.1" 200 5 "-" "cut sho\xff'
    request = parse_line(line)
    assert not request.parsed
    assert (request.client, request.value, request.timestamp_ms) == (b"10.0.0.1", line, 1_432_123_517_000)
    assert parse_line(b"").value == b""
