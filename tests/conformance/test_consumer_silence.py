"""A connection on which nothing is heard any more, though nobody closed it: noticed, and replaced."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest

from logstore.errors import LogstoreError
from tests.support.appender import Appender
from tests.support.colours import Colour
from tests.support.programs import eventually
from tests.support.proxy import Fault, Proxy
from tests.support.reading import read

pytestmark = [pytest.mark.one_server, pytest.mark.both_colours]


@pytest.fixture
def proxy(database: str, appender: Appender) -> Iterator[Proxy]:
    appender.create("t")
    with Proxy(database) as made:
        yield made


@pytest.mark.parametrize(
    "group", [{}, {"group_id": "g", "heartbeat_interval_ms": 100}], ids=["alone", "group"]
)
@pytest.mark.parametrize("request_text", [b"LISTEN", b"fetch", b"waiting"])
def test_silence_in_answer_to_a_request(
    colour: Colour, appender: Appender, proxy: Proxy, request_text: bytes, group: dict[str, Any]
) -> None:
    proxy.strike(Fault.SILENCE, request_text)
    made: list[Any] = []

    def began() -> bool:
        with suppress(LogstoreError):  # it is not given long for that
            made.append(
                colour.consumer(
                    "t",
                    dsn=proxy.dsn,
                    auto_offset_reset="earliest",
                    request_timeout_ms=400,
                    reconnect_backoff_ms=1,
                    **group,
                )
            )
        return made != []

    eventually(began, "it has begun")
    (consumer,) = made
    eventually(lambda: not consumer.poll(timeout_ms=10) and proxy.cuts == 1, "it was struck")
    appender.append("t", [b"x"])
    (record,) = read(consumer, 1)
    assert record.value == b"x"
    consumer.close()  # while there is a server to tell
