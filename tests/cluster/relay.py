"""The network of a local cluster: every connection between its parts goes through here and can be cut.

A listener stands before each member's PostgreSQL, each member's Patroni and etcd, and another one, for
clients, before each PostgreSQL.  Which member calls is found out from the system: the socket at the other end
belongs to a process, and a member's processes work in the member's directory.  So any two parties can be cut
off from each other, without root and without network namespaces (which would need an address of its own for
every member, and root, or a user namespace around everything, to be told who may talk to whom).
"""

from __future__ import annotations

import selectors
import socket
import threading
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal, Self

__all__ = ["CLIENT", "HOW", "How", "Relay"]

HOST: Final = "127.0.0.1"
CLIENT: Final = "client"
CHUNK: Final = 1 << 16
MOST_KEPT: Final = 1 << 20

How = Literal["silent", "deaf", "mute", "reset"]
"""``silent``: nothing passes and nothing is closed; ``deaf``: calls pass, answers do not; ``mute``: answers
pass, calls do not (followers get the log, and cannot say so); ``reset``: every connection is closed, and
every new one."""
HOW: Final[tuple[How, ...]] = ("silent", "deaf", "mute", "reset")


@dataclass
class _Pair:
    """A connection: ``caller`` has called ``callee``."""

    caller: str
    callee: str
    port: int
    """The callee's own."""
    near: socket.socket
    far: socket.socket | None = None
    kept: dict[socket.socket, bytearray] = field(default_factory=dict)
    """What is still to be written to a socket."""

    def ends(self) -> list[socket.socket]:
        return [self.near] if self.far is None else [self.near, self.far]

    def other(self, end: socket.socket) -> socket.socket | None:
        return self.far if end is self.near else self.near


class Relay:
    """``targets``: the port of each server, by name (``pg1``, ``pg1/api``, ``pg1/client``, ``etcd``);
    ``places``: the directory of each member.  What comes by a door ``.../client`` comes from clients.
    """

    def __init__(self, targets: Mapping[str, int], places: Mapping[str, Path]) -> None:
        self._places = {path.resolve(): name for name, path in places.items()}
        self._targets: dict[socket.socket, tuple[str, int, bool]] = {}
        self.doors: dict[str, int] = {}
        """Where each server is found by others."""
        for name, port in targets.items():
            listener = socket.create_server((HOST, 0))
            listener.setblocking(False)
            self.doors[name] = listener.getsockname()[1]
            self._targets[listener] = name.partition("/")[0], port, name.endswith(f"/{CLIENT}")
        self._cuts: dict[frozenset[str], How] = {}
        self._pairs: dict[socket.socket, _Pair] = {}
        self._ready = selectors.DefaultSelector()
        self._wake, self._waker = socket.socketpair()
        self._lock = threading.Lock()
        self._changed = False
        self._closed = False
        for each in (*self._targets, self._wake):
            each.setblocking(False)
            self._ready.register(each, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._run, name="relay", daemon=True)
        self._thread.start()

    # ---- from any thread

    def cut(self, pairs: Iterable[tuple[str, str]], how: How = "silent") -> None:
        """Nothing passes between these any more."""
        with self._lock:
            self._cuts |= {frozenset(pair): how for pair in pairs}
            self._changed = True
        self._waker.send(b"!")

    def heal(self) -> None:
        """Everything passes; what was held up goes on."""
        with self._lock:
            self._cuts.clear()
            self._changed = True
        self._waker.send(b"!")

    def close(self) -> None:
        self._closed = True
        self._waker.send(b"!")
        self._thread.join()
        for each in (*self._pairs, *self._targets, self._wake, self._waker):
            each.close()
        self._ready.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ---- in the relay's own thread

    def _run(self) -> None:
        while not self._closed:
            for key, mask in self._ready.select():
                found = key.fileobj
                assert isinstance(found, socket.socket)
                if found is self._wake:
                    with suppress(BlockingIOError):
                        found.recv(CHUNK)
                    self._apply()
                elif found in self._targets:
                    self._accept(found)
                elif found in self._pairs:
                    self._serve(found, mask)

    def _apply(self) -> None:
        with self._lock:
            changed, self._changed = self._changed, False
        if changed:
            for pair in {id(pair): pair for pair in self._pairs.values()}.values():
                self._watch(pair)

    def _how(self, pair: _Pair) -> How | None:
        with self._lock:
            return self._cuts.get(frozenset((pair.caller, pair.callee)))

    def _accept(self, listener: socket.socket) -> None:
        with suppress(OSError):
            near, (_, port) = listener.accept()
            name, own, by_client = self._targets[listener]
            near.setblocking(False)
            near.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            pair = _Pair(CLIENT if by_client else self._caller(port), name, own, near)
            pair.kept[near] = bytearray()
            self._pairs[near] = pair
            self._watch(pair)

    def _watch(self, pair: _Pair) -> None:
        """Wait for what may pass now."""
        how = self._how(pair)
        if how == "reset":
            self._drop(pair)
            return
        if pair.far is None and how != "silent" and not self._connect(pair):
            return
        for end in pair.ends():
            other = pair.other(end)
            calls = end is pair.near
            # What comes from this end, and what goes to it.
            comes = how is None or how == ("deaf" if calls else "mute")
            goes = how is None or how == ("mute" if calls else "deaf")
            mask = 0
            if comes and other is not None and len(pair.kept[other]) < MOST_KEPT:
                mask |= selectors.EVENT_READ
            if goes and pair.kept[end]:
                mask |= selectors.EVENT_WRITE
            self._set(end, mask)

    def _set(self, end: socket.socket, mask: int) -> None:
        known = end in self._ready.get_map()
        if known and mask:
            self._ready.modify(end, mask)
        elif known:
            self._ready.unregister(end)
        elif mask:
            self._ready.register(end, mask)

    def _connect(self, pair: _Pair) -> bool:
        try:
            far = socket.create_connection((HOST, pair.port), timeout=2)
        except OSError:
            self._drop(pair)
            return False
        far.setblocking(False)
        far.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        pair.far = far
        pair.kept[far] = bytearray()
        self._pairs[far] = pair
        return True

    def _serve(self, end: socket.socket, mask: int) -> None:
        pair = self._pairs[end]
        other = pair.other(end)
        try:
            if mask & selectors.EVENT_READ and other is not None:
                data = end.recv(CHUNK)
                if not data:
                    self._drop(pair)
                    return
                pair.kept[other] += data
                self._flush(pair, other)
            if mask & selectors.EVENT_WRITE:
                self._flush(pair, end)
        except BlockingIOError:
            pass
        except OSError:
            self._drop(pair)
            return
        self._watch(pair)

    def _flush(self, pair: _Pair, end: socket.socket) -> None:
        if self._how(pair) in (None, "deaf" if end is pair.far else "mute"):
            kept = pair.kept[end]
            with suppress(BlockingIOError):
                del kept[: end.send(kept)]

    def _drop(self, pair: _Pair) -> None:
        for end in pair.ends():
            self._set(end, 0)
            self._pairs.pop(end, None)
            end.close()

    def _caller(self, port: int) -> str:
        """Whose the socket with this port is."""
        inode = _inode(port)
        if inode is not None:
            for process in Path("/proc").iterdir():
                if process.name.isdigit():
                    name = self._member(process)
                    if name is not None and _holds(process, inode):
                        return name
        return CLIENT

    def _member(self, process: Path) -> str | None:
        with suppress(OSError):
            where = (process / "cwd").readlink()
            for path in (where, *where.parents):
                if path in self._places:
                    return self._places[path]
        return None


def _inode(port: int) -> str | None:
    wanted = f"0100007F:{port:04X}"
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        words = line.split()
        if words[1] == wanted:
            return f"socket:[{words[9]}]"
    return None


def _holds(process: Path, inode: str) -> bool:
    with suppress(OSError):
        for descriptor in (process / "fd").iterdir():
            with suppress(OSError):
                if str(descriptor.readlink()) == inode:
                    return True
    return False
