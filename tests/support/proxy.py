"""A server's socket with somebody in between, who can be told to misbehave."""

from __future__ import annotations

import contextlib
import selectors
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum
from functools import partial
from types import TracebackType
from typing import Final, Self

from psycopg.conninfo import conninfo_to_dict, make_conninfo

__all__ = ["Fault", "Proxy", "refusing_server", "silent_server"]

CHUNK: Final = 1 << 16


class Fault(Enum):
    """What becomes of one request and its answer; the connection is of no use afterwards."""

    REQUEST = "the request is lost"
    HALF_REQUEST = "the server gets half of the request"
    ANSWER = "the request is carried out, the answer is lost"
    HALF_ANSWER = "the client gets half of the answer"
    HALF_CLOSE = "the client gets half of the answer, and its end of the connection stays open"
    RESET = "the request is carried out, the client gets a reset"
    SILENCE = "the request is carried out, and nothing is heard any more, though nothing is closed"


@dataclass
class _Strike:
    fault: Fault
    text: bytes
    after: int


class Proxy:
    """Passes everything between clients and the server that ``dsn`` names; clients connect to :attr:`dsn`."""

    def __init__(self, dsn: str) -> None:
        parameters = conninfo_to_dict(dsn)
        self._host, self._port = str(parameters.get("host")), int(parameters.get("port") or 5432)
        self._listener = socket.create_server(("127.0.0.1", 0))
        port = self._listener.getsockname()[1]
        self.dsn = make_conninfo(
            "", **{**parameters, "host": "127.0.0.1", "port": port, "sslmode": "disable"}
        )
        self._lock = threading.Lock()
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._refusing = False
        self._cut_before_answer_to: bytes | None = None
        self._strikes: list[_Strike] = []
        self.cuts = 0
        """How many answers were withheld, and requests lost."""
        self.on_request: Callable[[bytes, Callable[[], None]], None] | None = None
        """Called instead of passing on what a client has sent: with that, and with what passes it on.  A
        ConnectionError that it raises ends the connection."""
        self._closed = False
        self._flowing = threading.Event()
        self._flowing.set()
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def cut_before_answer_to(self, text: bytes | None) -> None:
        """Once a client has sent ``text``, swallow the server's next answer and close; until told
        otherwise.
        """
        with self._lock:
            self._cut_before_answer_to = text

    def lose_once(self, text: bytes) -> None:
        """The next time that a client sends ``text``, close instead of passing it on."""
        self.strike(Fault.REQUEST, text)

    def strike(self, fault: Fault, text: bytes = b"", *, after: int = 0) -> None:
        """Let ``fault`` befall the next request with ``text`` in it, once; several strikes queue up.

        The first message of a connection, and so its establishment, has ``user`` in it.  ``after``: so many
        such requests are spared first.
        """
        with self._lock:
            self._strikes.append(_Strike(fault, text, after))

    def refuse(self, refusing: bool = True) -> None:
        """Drop all connections and accept no more, until told otherwise."""
        with self._lock:
            self._refusing = refusing
            pairs = list(self._pairs) if refusing else []
        for pair in pairs:
            _drop(*pair)

    def freeze(self, frozen: bool = True) -> None:
        """Pass nothing on, read nothing, close nothing, until told otherwise."""
        if frozen:
            self._flowing.clear()
        else:
            self._flowing.set()

    def close(self) -> None:
        self._closed = True
        self._flowing.set()
        self.refuse()
        # Wakes the accepting thread.
        with contextlib.suppress(OSError), socket.create_connection(self._listener.getsockname()):
            pass
        self._thread.join()
        self._listener.close()

    def _accept(self) -> None:
        while not self._closed:
            client, _ = self._listener.accept()
            with self._lock:
                refused = self._refusing or self._closed
            if refused:
                client.close()
                continue
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        try:
            server = self._connect()
        except OSError:  # it is down, or just coming up
            client.close()
            return
        with self._lock:
            self._pairs.append((client, server))
        with client, server, contextlib.suppress(OSError), selectors.DefaultSelector() as ready:
            ready.register(client, selectors.EVENT_READ, server)
            ready.register(server, selectors.EVENT_READ, client)
            self._pass(ready, client)
        with self._lock:
            self._pairs.remove((client, server))

    def _connect(self) -> socket.socket:
        if not self._host.startswith("/"):
            return socket.create_connection((self._host, self._port))
        server = socket.socket(socket.AF_UNIX)
        try:
            server.connect(f"{self._host}/.s.PGSQL.{self._port}")
        except OSError:
            server.close()
            raise
        return server

    def _pass(self, ready: selectors.BaseSelector, client: socket.socket) -> None:
        armed = False
        fault: Fault | None = None
        while True:
            for key, _ in ready.select():
                source = key.fileobj
                assert isinstance(source, socket.socket)
                self._flowing.wait()
                data = source.recv(CHUNK)
                if not data:
                    return
                if source is client and self.on_request is not None:
                    self.on_request(data, partial(key.data.sendall, data))
                    continue
                with self._lock:
                    text = self._cut_before_answer_to
                if source is client:
                    armed = armed or (text is not None and text in data)
                    fault = fault or self._struck(data)
                    if fault in (Fault.REQUEST, Fault.HALF_REQUEST):
                        if fault is Fault.HALF_REQUEST:
                            key.data.sendall(data[: len(data) // 2])
                        return
                elif fault is not None:
                    _spoil(fault, client, data)
                    return
                elif armed and text is not None:
                    with self._lock:
                        self.cuts += 1
                    return
                key.data.sendall(data)

    def _struck(self, data: bytes) -> Fault | None:
        with self._lock:
            for strike in self._strikes:
                if strike.text in data:
                    if strike.after == 0:
                        self._strikes.remove(strike)
                        self.cuts += 1
                        return strike.fault
                    strike.after -= 1
        return None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _spoil(fault: Fault, client: socket.socket, answer: bytes) -> None:
    """The server has answered: what the client notices of it, until it has had enough."""
    if fault in (Fault.HALF_ANSWER, Fault.HALF_CLOSE):
        client.sendall(answer[: len(answer) // 2])
    if fault is Fault.RESET:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    if fault is Fault.HALF_CLOSE:
        client.shutdown(socket.SHUT_WR)
    if fault in (Fault.HALF_CLOSE, Fault.SILENCE):
        while client.recv(CHUNK):
            pass


def _drop(*sockets: socket.socket) -> None:
    for each in sockets:
        with contextlib.suppress(OSError):
            each.shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def silent_server() -> Iterator[int]:
    """The port of a server that accepts connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


@contextlib.contextmanager
def refusing_server() -> Iterator[int]:
    """The port of a server that knows another password."""
    fields = b"SFATAL\0VFATAL\0C28P01\0Mpassword authentication failed\0\0"
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    client, _ = listener.accept()
                    with client:
                        client.recv(4096)
                        client.sendall(b"R" + struct.pack("!ii", 8, 3))  # the password, please
                        client.recv(4096)
                        client.sendall(b"E" + struct.pack("!i", 4 + len(fields)) + fields)

        threading.Thread(target=serve, daemon=True).start()
        yield listener.getsockname()[1]
        # Closing alone does not end an accept().
        listener.shutdown(socket.SHUT_RDWR)
