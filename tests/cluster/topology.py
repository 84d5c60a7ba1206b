"""A cluster of three whose connections all go through a relay, and its parts by name."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

import psutil
import psycopg
from psycopg.conninfo import make_conninfo

from logstore.cluster import LocalCluster, processes, rest
from logstore.cluster.layout import ETCD, Layout, Plan
from logstore.embedded.home import DATABASE, OWNER
from tests.cluster.guardian import guarded
from tests.cluster.relay import CLIENT, Door, Relay
from tests.support.programs import eventually
from tests.support.servers import make_directory

__all__ = ["PATIENCE_S", "Topology", "topology"]

PATIENCE_S: Final = 240.0
"""Everything heals within so long, on a machine that has other things to do."""


@dataclass(frozen=True)
class Topology:
    cluster: LocalCluster
    plan: Plan
    relay: Relay

    @property
    def layout(self) -> Layout:
        return self.cluster.layout

    @property
    def members(self) -> tuple[str, ...]:
        return self.plan.members

    @property
    def dsn(self) -> str:
        """All members, as clients see them."""
        return self._dsn(*self.members)

    def door(self, name: str) -> str:
        """One member, whatever its role, as clients see it."""
        return self._dsn(name)

    def _dsn(self, *names: str) -> str:
        return make_conninfo(
            host=",".join("127.0.0.1" for _ in names),
            port=",".join(str(self.relay.doors[f"{name}/{CLIENT}"]) for name in names),
            user=OWNER,
            dbname=DATABASE,
            passfile=str(self.layout.password_file),
            target_session_attrs="read-write" if len(names) > 1 else "any",
        )

    # ---- who is what

    def leaders(self) -> list[str]:
        """Those whose PostgreSQL takes writes and whose Patroni answers."""
        return [name for name, seen in rest.members_seen(self.plan, timeout_s=0.5).items() if seen.leads]

    def leader(self) -> str:
        """The one that leads; waits for one."""
        found: list[str] = []

        def one() -> bool:
            found[:] = self.leaders()
            return len(found) == 1

        eventually(one, "somebody leads", PATIENCE_S)
        return found[0]

    def followers(self) -> list[str]:
        leader = self.leader()
        return [name for name in self.members if name != leader]

    def whole(self) -> bool:
        """One leads, all others stream from it, enough of them in sync, etcd answers."""
        seen = rest.members_seen(self.plan, timeout_s=0.5)
        led = [each.timeline for each in seen.values() if each.leads and each.state == "running"]
        well = [each for each in seen.values() if each.leads or each.state == "streaming"]
        return (
            len(led) == 1
            and len(well) == len(self.members)
            and all(each.in_sync and each.timeline == led[0] for each in well)
            and rest.etcd_answers(self.plan)
        )

    # ---- processes

    def patroni(self, name: str) -> list[psutil.Process]:
        place = self.layout.place(name)
        return self._of(name, lambda process: str(place.configuration) in process.cmdline())

    def postgres(self, name: str) -> list[psutil.Process]:
        return self._of(name, lambda process: process.name() == "postgres")

    def postmaster(self, name: str) -> list[psutil.Process]:
        found = self.postgres(name)
        pids = {process.pid for process in found}
        return [process for process in found if _parent(process) not in pids]

    def walreceiver(self, name: str) -> list[psutil.Process]:
        return self._of(name, lambda process: any("walreceiver" in word for word in process.cmdline()))

    def everything(self, name: str) -> list[psutil.Process]:
        return processes.of(self.layout.place(name))

    def etcd(self) -> list[psutil.Process]:
        return self.everything(ETCD)

    def _of(self, name: str, wanted: Any) -> list[psutil.Process]:
        found = []
        for process in self.everything(name):
            with contextlib.suppress(psutil.Error):
                if wanted(process):
                    found.append(process)
        return found

    # ---- PostgreSQL, past the relay

    @contextlib.contextmanager
    def superuser(self, name: str, database: str = DATABASE) -> Iterator[psycopg.Connection[Any]]:
        """A session at a member, whatever is cut."""
        dsn = self.layout.member_dsn(self.plan, name, database=database)
        with psycopg.connect(dsn, autocommit=True, connect_timeout=3) as connection:
            yield connection

    # ---- cuts

    def cut_off(self, name: str) -> list[tuple[str, str]]:
        """The pairs that isolate a member from everybody."""
        return [(name, each) for each in (*self.members, ETCD, CLIENT) if each != name]


def _parent(process: psutil.Process) -> int:
    with contextlib.suppress(psutil.Error):
        return int(process.ppid())
    return 0


@contextlib.contextmanager
def topology(settings: Mapping[str, str]) -> Iterator[Topology]:
    """A new cluster of three, gone afterwards, however this process ends."""
    home = make_directory()
    with guarded(home):
        cluster = LocalCluster(home)
        plan = Plan.make(3, settings)
        cluster.layout.create()
        doors = [
            Door(f"{name}{kind}", caller, name, port)
            for name in plan.members
            for kind, caller, port in (
                ("", None, plan.ports[name]),
                ("/api", None, plan.api_ports[name]),
                (f"/{CLIENT}", CLIENT, plan.ports[name]),
            )
        ]
        doors += [Door(f"{name}/{ETCD}", name, ETCD, plan.etcd_port) for name in plan.members]
        places = {name: cluster.layout.place(name).path for name in plan.members}
        with Relay(doors, places) as relay:
            plan = replace(plan, doors=dict(relay.doors))
            cluster.layout.write_plan(plan)
            cluster.up(3, settings)
            # Other ports, if somebody else took some: nothing would be relayed to them.
            assert cluster.layout.read_plan() == plan
            try:
                yield Topology(cluster, plan, relay)
            finally:
                relay.heal()
                for name in (*plan.members, ETCD):
                    for process in processes.of(cluster.layout.place(name)):
                        with contextlib.suppress(psutil.Error, OSError):
                            process.resume()
                cluster.down(remove=True)
