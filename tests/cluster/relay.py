"""The network of a local cluster: every connection between its parts goes through here and can be cut.

A door stands before each member's PostgreSQL and before its Patroni, for the others, and one before each
PostgreSQL for clients; each member has a door of its own to etcd.  Which member comes by a door that several
use is found out from the system: the socket at the other end belongs to a process, and a member's processes
work in the member's directory.  So any two parties can be cut off from each other without root and without
network namespaces, which would need an address of its own for every member.
"""

from __future__ import annotations

import os
import selectors
import socket
import struct
import threading
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal, NamedTuple, Self

__all__ = ["CLIENT", "HOW", "Door", "How", "Relay"]

HOST: Final = "127.0.0.1"
CLIENT: Final = "client"
CHUNK: Final = 1 << 16
MOST_KEPT: Final = 1 << 20

How = Literal["silent", "deaf", "mute", "reset"]
"""``silent``: nothing passes and nothing is closed; ``deaf``: calls pass, answers do not; ``mute``: answers
pass, calls do not (followers get the log, and cannot say so); ``reset``: every connection is closed, and
every new one."""
HOW: Final[tuple[How, ...]] = ("silent", "deaf", "mute", "reset")


class Door(NamedTuple):
    """A port that leads to another one."""

    name: str
    caller: str | None
    """Who comes by it; None: that has to be found out."""
    callee: str
    port: int
    """Where it leads to."""


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
    """``places``: the directory of each member."""

    def __init__(self, doors: Iterable[Door], places: Mapping[str, Path]) -> None:
        self._places = {str(path.resolve()): name for name, path in places.items()}
        self._members: dict[str, str | None] = {}
        """Whose the processes are that have been looked at."""
        self._targets: dict[socket.socket, Door] = {}
        self.doors: dict[str, int] = {}
        """The ports of the doors."""
        for door in doors:
            listener = socket.create_server((HOST, 0))
            self.doors[door.name] = listener.getsockname()[1]
            self._targets[listener] = door
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
            near, _ = listener.accept()
            door = self._targets[listener]
            near.setblocking(False)
            near.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            pair = _Pair(door.caller or self._caller(near), door.callee, door.port, near)
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
            far = socket.create_connection((HOST, pair.port), timeout=0.2)
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

    def _caller(self, near: socket.socket) -> str:
        """Whose the socket at the other end is."""
        inode = _inode(near)
        if inode is None:
            return CLIENT
        processes = [each for each in os.listdir("/proc") if each.isdigit()]  # noqa: PTH208 (many of them)
        known = self._members
        self._members = {each: known[each] if each in known else self._member(each) for each in processes}
        for process, name in reversed(self._members.items()):
            if name is not None and _holds(process, inode):
                return name
        # A number may be another process's by now.
        self._members.clear()
        return CLIENT

    def _member(self, process: str) -> str | None:
        """Whose this process is, if it is one that calls others."""
        with suppress(OSError):
            where = os.readlink(f"/proc/{process}/cwd")  # noqa: PTH115
            for path, name in self._places.items():
                if where == path or where.startswith(f"{path}/"):
                    title = Path("/proc", process, "cmdline").read_bytes()
                    # Of PostgreSQL's many, only this one does.
                    return name if b"walreceiver" in title or not title.startswith(b"postgres:") else None
        return None


_BY_FAMILY: Final = 20
_REQUEST: Final = struct.Struct("=IHHIIBBBxIHH4s12x4s12xIII")
_ANSWER_INODE: Final = 16 + 4 + 48 + 16
_ANY: Final = 0xFFFFFFFF


def _inode(near: socket.socket) -> str | None:
    """What the system calls the socket at the other end of this connection: one question, however many there
    are on the machine.
    """
    (host, port), (callee, door) = near.getpeername(), near.getsockname()
    request = _REQUEST.pack(
        _REQUEST.size, _BY_FAMILY, 1, 0, 0, socket.AF_INET, socket.IPPROTO_TCP, 0, _ANY, socket.htons(port),
        socket.htons(door), socket.inet_aton(host), socket.inet_aton(callee), 0, _ANY, _ANY,
    )  # fmt: skip
    with suppress(OSError, struct.error), socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 4) as asked:
        asked.settimeout(1)
        asked.send(request)
        (number,) = struct.unpack_from("=I", asked.recv(CHUNK), _ANSWER_INODE)
        return f"socket:[{number}]"
    return None


def _holds(process: str, inode: str) -> bool:
    with suppress(OSError):
        for descriptor in os.listdir(f"/proc/{process}/fd"):  # noqa: PTH208
            with suppress(OSError):
                if os.readlink(f"/proc/{process}/fd/{descriptor}") == inode:  # noqa: PTH115
                    return True
    return False
