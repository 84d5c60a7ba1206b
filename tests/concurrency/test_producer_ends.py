"""How programs with a producer end: Ctrl-C at any point, no close, a fork.  The programs are real ones."""

from __future__ import annotations

import signal
import subprocess

import pytest

from tests.support.appender import Appender
from tests.support.log import blocked, records
from tests.support.programs import line_of, program

THREADS = """
    import sys
    from logstore import Producer
    dsn = sys.argv[1]
    def say(word):
        print(word, flush=True)
    {body}
"""
TASKS = """
    import asyncio, sys
    from logstore import AsyncProducer
    dsn = sys.argv[1]
    def say(word):
        print(word, flush=True)
    async def main():
        {body}
    asyncio.run(main())
"""


def text_of(colour: str, *lines: str) -> str:
    """``lines`` are in the asyncio colour."""
    template, indent = (THREADS, 4) if colour == "threads" else (TASKS, 8)
    if colour == "threads":
        words = (("await ", ""), ("async with", "with"), ("AsyncProducer", "Producer"))
        for old, new in words:
            lines = tuple(line.replace(old, new) for line in lines)
    return template.format(body=("\n" + " " * indent).join(lines))


def finished(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Its exit status and what it said on standard error; it must not need long."""
    _, errors = process.communicate(timeout=30)
    return process.returncode, errors


@pytest.fixture(params=["threads", "asyncio"])
def colour_name(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


WAITS = {
    "for a future": ["future = await producer.send('t', b'v')", "say('waiting')", "await future.get()"],
    "in flush": ["await producer.send('t', b'v')", "say('waiting')", "await producer.flush()"],
    "in close": ["await producer.send('t', b'v')", "say('waiting')", "await producer.close()"],
    "in send": [
        "say('waiting')",
        "while True:",
        "    await producer.send('t', b'v' * 100)",
    ],
    "in send_many": ["say('waiting')", "await producer.send_many('t', [b'v' * 100] * 100)"],
}


@pytest.mark.parametrize("wait", WAITS)
def test_ctrl_c_ends_it_at_once_wherever_it_waits(
    database: str, appender: Appender, colour_name: str, wait: str
) -> None:
    appender.create("t", 1)
    lines = [
        "async with AsyncProducer(dsn, linger_ms=0, buffer_memory=2000) as producer:",
        "    await producer.partitions_for('t')",
        *("    " + line for line in WAITS[wait]),
    ]
    with blocked(database, "t"), program(text_of(colour_name, *lines), database) as process:
        assert line_of(process.stdout) == "waiting"
        process.send_signal(signal.SIGINT)
        status, errors = finished(process)
    assert status == -signal.SIGINT, errors
    assert errors.rstrip().endswith("KeyboardInterrupt")


def test_ctrl_c_in_a_busy_loop_leaves_whole_records(
    database: str, appender: Appender, colour_name: str
) -> None:
    """Whatever instruction it strikes, no key is left without its value, and what is in flight is whole."""
    appender.create("t", 4)
    lines = [
        "async with AsyncProducer(dsn) as producer:",
        "    number = 0",
        "    while True:",
        "        number += 1",
        "        await producer.send('t', b'value %d' % number, key=b'key %d' % number)",
        "        if number == 2000:",
        "            say('busy')",
    ]
    for _ in range(3):
        with program(text_of(colour_name, *lines), database) as process:
            assert line_of(process.stdout) == "busy"
            process.send_signal(signal.SIGINT)
            status, errors = finished(process)
        assert status == -signal.SIGINT, errors
        assert "sender failed" not in errors
    for each in records(database, "t"):
        assert each.key == (each.value or b"").replace(b"value", b"key")


def test_program_that_does_not_close_ends_and_says_what_is_lost(
    database: str, appender: Appender, colour_name: str
) -> None:
    appender.create("t", 1)
    lines = [
        "producer = AsyncProducer(dsn, linger_ms=60_000, delivery_timeout_ms=120_000)",
        "await producer.send('t', b'v')",
    ]
    with program(text_of(colour_name, *lines), database) as process:
        status, errors = finished(process)
    assert status == 0
    assert "1 records were not delivered" in errors
    assert records(database, "t") == []


def test_program_that_ends_while_the_server_keeps_it_waiting(
    database: str, appender: Appender, colour_name: str
) -> None:
    appender.create("t", 1)
    lines = [
        "producer = AsyncProducer(dsn, linger_ms=0)",
        "await producer.send('t', b'v')",
        "import time; time.sleep(0.1)",
    ]
    with blocked(database, "t"), program(text_of(colour_name, *lines), database) as process:
        status, errors = finished(process)
    assert status == 0, errors
    assert "1 records were not delivered" in errors


def test_fork(database: str, appender: Appender, colour_name: str) -> None:
    """A child may not use its parent's producer, and does not disturb it."""
    appender.create("t", 1)
    lines = [
        "import os, gc",
        "from logstore.errors import ForkedClientError",
        "producer = AsyncProducer(dsn, linger_ms=0)",
        "await producer.send_and_wait('t', b'before')",
        "waiting = await producer.send('t', b'waiting')",
        "child = os.fork()",
        "if child == 0:",
        "    status = 1",
        "    try:",
        "        async def check():",
        "            for call in (",
        "                lambda: producer.send('t', b'child'),",
        "                lambda: producer.send_many('t', [b'child']),",
        "                lambda: producer.flush(),",
        "                lambda: producer.partitions_for('t'),",
        "            ):",
        "                try:",
        "                    await call()",
        "                except ForkedClientError:",
        "                    continue",
        "                return 2",
        "            await producer.close()",
        "            return 0",
        "        status = await check()",
        "        del producer",
        "        gc.collect()",
        "    finally:",
        "        os._exit(status)",
        "status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])",
        "await waiting.get(30)",
        "await producer.send_and_wait('t', b'after')",
        "await producer.close()",
        "sys.exit(status)",
    ]
    if colour_name == "threads":
        lines = [line.replace("async def", "def") for line in lines]
    with program(text_of(colour_name, *lines), database) as process:
        status, errors = finished(process)
    assert status == 0, errors
    assert [each.value for each in records(database, "t")] == [b"before", b"waiting", b"after"]


def test_forgotten_producer_delivers_and_goes_away(database: str, appender: Appender) -> None:
    appender.create("t", 1)
    lines = [
        "import gc, threading",
        "import logstore._sync.sender as sender",
        "sender.IDLE_S = 0.01",
        "producer = AsyncProducer(dsn)",
        "await producer.send('t', b'v')",
        "del producer",
        "gc.collect()",
        "while any(thread.name == 'logstore-producer' for thread in threading.enumerate()): pass",
    ]
    with program(text_of("threads", *lines), database) as process:
        status, errors = finished(process)
    assert status == 0, errors
    assert [each.value for each in records(database, "t")] == [b"v"]
