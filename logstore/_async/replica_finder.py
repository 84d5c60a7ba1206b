"""Which server a consumer reads from, of those that its DSN names."""

from __future__ import annotations

from collections.abc import Collection
from random import shuffle
from time import monotonic
from typing import Final, NamedTuple

from logstore._async.driver import Connection
from logstore._async.session import Session
from logstore._core.call import Call
from logstore._core.calls import ServerInfo
from logstore._core.hosts import Host
from logstore.errors import LogstoreError

__all__ = ["Replica", "ReplicaFinder"]

CONNECT_S: Final = 1.5
"""How long one host is given to answer."""
PINGS: Final = 3

_RACK: Final[Call[tuple[str | None, ...]]] = Call(
    "SELECT pg_catalog.current_setting('logstore.rack', true), pg_catalog.current_setting('cluster_name')",
    (),
    lambda rows: tuple(rows[0]),
    "rack",
)


class Replica(NamedTuple):
    """A server that may be read from."""

    host: Host
    connection: Connection
    info: ServerInfo
    in_rack: bool
    round_trip_s: float


class ReplicaFinder:
    """``nearest``: the leader will do as well, if it is nearer; ``rack``: servers there come first."""

    def __init__(self, session: Session, *, nearest: bool, rack: str | None) -> None:
        self._session = session
        self._nearest = nearest
        self._rack = rack
        self.closing = False
        self.leader_is_nearest = False
        """The last search found that there is no need for another server than the leader."""

    async def find(self, avoid: Collection[Host]) -> Replica | None:
        """A follower to read from; None: there is none, or the leader is nearer.  Those to ``avoid`` are
        taken only when there is no other.
        """
        hosts = list(self._session.hosts)
        if len(hosts) < 2:
            return None
        leader, *others = hosts
        shuffle(others)  # or all consumers would go to the same
        hosts = sorted([*others, leader], key=lambda host: host in avoid)
        met: list[Replica] = []
        best: Replica | None = None
        try:
            for host in hosts:
                found = None if self.closing else await self._meet(host)
                if found is None:
                    continue
                met.append(found)
                if self._will_do(found, avoid):
                    break
            candidates = [each for each in met if each.info.is_in_recovery or self._nearest]
            best = min(candidates, key=lambda each: self._rank(each, avoid), default=None)
            self.leader_is_nearest = best is not None and not best.info.is_in_recovery
            if self.leader_is_nearest:
                best = None
            return best
        finally:
            for each in met:
                if each is not best:
                    await each.connection.close()

    def _will_do(self, found: Replica, avoid: Collection[Host]) -> bool:
        """There is no need to look at the others."""
        if not found.info.is_in_recovery or found.host in avoid:
            return False
        return found.in_rack if self._rack is not None else not self._nearest

    def _rank(self, each: Replica, avoid: Collection[Host]) -> tuple[bool, bool, bool, float]:
        in_rack = each.in_rack
        leads = not each.info.is_in_recovery
        return (
            each.host in avoid,
            not in_rack,
            in_rack and leads,
            each.round_trip_s if self._nearest else 0.0,
        )

    async def _meet(self, host: Host) -> Replica | None:
        try:
            connection, info = await self._session.open_host(host, CONNECT_S)
        except LogstoreError:
            return None
        try:
            round_trips = []
            said: tuple[str | None, ...] = ()
            for _ in range(PINGS if self._nearest else 1):
                began = monotonic()
                said = await connection.run(_RACK, timeout_s=CONNECT_S)
                round_trips.append(monotonic() - began)
        except LogstoreError:
            await connection.close()
            return None
        except BaseException:
            connection.abort()
            raise
        names = {*said, str(host.parameters.get("host") or ""), host.place}
        in_rack = self._rack is not None and self._rack in names
        return Replica(host, connection, info, in_rack, min(round_trips))
