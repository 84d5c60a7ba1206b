"""A server's socket with somebody in between, who can be told to misbehave."""

from __future__ import annotations

import contextlib
import selectors
import socket
import threading
from collections.abc import Iterator
from types import TracebackType
from typing import Final, Self

from psycopg.conninfo import conninfo_to_dict, make_conninfo

__all__ = ["Proxy", "silent_server"]

CHUNK: Final = 1 << 16


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
        self.cuts = 0
        """How many answers were withheld."""
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
        if self._host.startswith("/"):
            server = socket.socket(socket.AF_UNIX)
            server.connect(f"{self._host}/.s.PGSQL.{self._port}")
        else:
            server = socket.create_connection((self._host, self._port))
        with self._lock:
            self._pairs.append((client, server))
        with client, server, contextlib.suppress(OSError), selectors.DefaultSelector() as ready:
            ready.register(client, selectors.EVENT_READ, server)
            ready.register(server, selectors.EVENT_READ, client)
            self._pass(ready, client)
        with self._lock:
            self._pairs.remove((client, server))

    def _pass(self, ready: selectors.BaseSelector, client: socket.socket) -> None:
        armed = False
        while True:
            for key, _ in ready.select():
                source = key.fileobj
                assert isinstance(source, socket.socket)
                self._flowing.wait()
                data = source.recv(CHUNK)
                if not data:
                    return
                with self._lock:
                    text = self._cut_before_answer_to
                if source is client:
                    armed = armed or (text is not None and text in data)
                elif armed and text is not None:
                    with self._lock:
                        self.cuts += 1
                    return
                key.data.sendall(data)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _drop(*sockets: socket.socket) -> None:
    for each in sockets:
        with contextlib.suppress(OSError):
            each.shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def silent_server() -> Iterator[int]:
    """The port of a server that accepts connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]
