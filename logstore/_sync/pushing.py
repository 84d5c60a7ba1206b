"""Statements with much to send, spoken to libpq directly: as few turns of the interpreter as can be.

A thread that comes back from the network waits until another one that computes gives the interpreter away,
for 5 ms and more.  psycopg takes such a turn for each buffer full that the socket takes, twenty for two
megabytes, and several for an answer; meanwhile the server has nothing to do.
"""

from __future__ import annotations

import _thread
import os
import select
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol

import psycopg
from psycopg.adapt import Transformer
from psycopg.pq import ConnStatus, ExecStatus, Format
from psycopg.pq.abc import PGconn, PGresult

from logstore._core.arrays import ArrayParameter
from logstore._core.call import Call

__all__ = ["pushed", "rows_of"]


class Droppable(Protocol):
    """A psycopg connection of ours."""

    pgconn: PGconn
    deadline: float | None
    pooled: bool
    prepared: dict[str, bytes]

    def drop(self) -> None:
        """Make whoever waits for this connection see that it is lost."""


class _Pushes:
    """Threads that are inside libpq, where no deadline of ours reaches them.

    One thread, which exists while there are any, looks at them now and then and drops the connection of one
    that takes too long: the sending thread must not need the interpreter for that.
    """

    LOOK_EVERY_S: Final = 0.5

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._deadlines: dict[Droppable, float] = {}
        self._seen = False
        self._watched = False

    def begin(self, raw: Droppable, deadline: float) -> None:
        with self._lock:
            self._deadlines[raw] = deadline
            self._seen = True
            start = not self._watched
            self._watched = True
        if start:
            # threading.Thread waits until it runs, which is two turns of the interpreter.
            _thread.start_new_thread(self._watch, ())

    def end(self, raw: Droppable) -> None:
        with self._lock:
            self._deadlines.pop(raw, None)

    def _watch(self) -> None:
        while True:
            time.sleep(self.LOOK_EVERY_S)
            now = time.monotonic()
            with self._lock:
                late = [raw for raw, deadline in self._deadlines.items() if deadline <= now]
                if not self._seen and not self._deadlines:
                    self._watched = False
                    return
                self._seen = False
            for raw in late:
                raw.drop()


_pushes = _Pushes()


def _forked() -> None:
    """In the child of a fork nobody looks, whatever the parent's threads were doing."""
    global _pushes
    _pushes = _Pushes()


os.register_at_fork(after_in_child=_forked)


def pushed(raw: Droppable, call: Call[Any], meanwhile: Callable[[], None] | None) -> PGresult:
    """Make ``call``, whose arguments are int, None or arrays, and wait for its answer; call ``meanwhile``, if
    there is, when it is sent.

    It is prepared, which is an answer more to wait for, once: a statement that is not is planned with the
    values of its parameters, for which the server copies them all.
    """
    pgconn = raw.pgconn
    if raw.deadline is not None:
        _pushes.begin(raw, raw.deadline)
    try:
        pgconn.nonblocking = 0
        text = call.sql
        values, formats = _spoken(call.args)
        kept = call.prepared and not raw.pooled
        name = raw.prepared.get(text, b"") if kept else b""
        if kept and not name:
            name = b"logstore_%d" % len(raw.prepared)
            answer = pgconn.prepare(name, text.encode())
            if answer.status != ExecStatus.COMMAND_OK:
                return answer
            raw.prepared[text] = name
        if not name:
            pgconn.send_query_params(text.encode(), values, None, formats, Format.BINARY)
        elif meanwhile is None:
            return pgconn.exec_prepared(name, values, formats, Format.BINARY)
        else:
            pgconn.send_query_prepared(name, values, formats, Format.BINARY)
        if meanwhile is not None:
            meanwhile()
        return _answer(pgconn, raw.deadline)
    finally:
        if pgconn.status == ConnStatus.OK:
            pgconn.nonblocking = 1
        _pushes.end(raw)


def rows_of(raw: psycopg.Connection[Any], result: PGresult) -> list[tuple[Any, ...]]:
    """The rows of an answer.  Raises the error that it is."""
    if result.status == ExecStatus.FATAL_ERROR:
        raise psycopg.errors.error_from_result(result, encoding=raw.info.encoding)
    reader = Transformer(raw)
    reader.set_pgresult(result)
    return reader.load_rows(0, result.ntuples, tuple)


def _spoken(arguments: Sequence[Any]) -> tuple[list[Any], list[int]]:
    """As libpq takes them: values and formats."""
    values: list[Any] = []
    formats: list[int] = []
    for argument in arguments:
        if isinstance(argument, ArrayParameter):
            values.append(argument.binary or argument.encode())
            formats.append(Format.BINARY)
        else:
            values.append(None if argument is None else b"%d" % argument)
            formats.append(Format.TEXT)
    return values, formats


def _answer(pgconn: PGconn, deadline: float | None) -> PGresult:
    # In this way, of all ways to be told by libpq, only poll() gives the interpreter away.
    socket = select.poll()
    socket.register(pgconn.socket, select.POLLIN)
    answer: PGresult | None = None
    while True:
        while pgconn.is_busy():
            left_s = None if deadline is None else max(0.0, deadline - time.monotonic())
            if not socket.poll(None if left_s is None else left_s * 1000):
                raise psycopg.OperationalError("no answer in time")
            pgconn.consume_input()
        result = pgconn.get_result()
        if result is None:
            break
        # Whatever comes after an error is about the connection that ended with it.
        answer = answer or result
    if answer is None:
        raise psycopg.OperationalError("the connection was closed without an answer")
    return answer
