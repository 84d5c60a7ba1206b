"""The local cluster's directory and what is remembered in it.

::

    <home>/cluster/cluster.json     replicas, ports, settings and passwords; readable by its owner only
    <home>/cluster/pgpass           the owner's password, for clients: the DSN names this file
    <home>/cluster/starting.lock    exclusive: somebody starts, or removes, the cluster
    <home>/cluster/supervisor.lock  exclusive: the supervisor lives
    <home>/cluster/status.json      what the supervisor last said;   supervisor.log: its log
    <home>/cluster/histories/       of the timelines: where each branched off
    <home>/cluster/<name>/          a member (pg1, pg2, ...) or etcd:
        data/        its data           lock     exclusive: the process that the supervisor started lives
        patroni.yml  what Patroni reads log      Patroni's and PostgreSQL's log, or etcd's
        held         it was stopped on purpose and is not to be started again
"""

from __future__ import annotations

import json
import os
import random
import secrets
import socket
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from logstore.embedded.home import DATABASE, OWNER, SUPERUSER, Home
from logstore.errors import ClusterError

__all__ = ["ETCD", "HOST", "Layout", "Place", "Plan", "unusable"]

HOST: Final = "127.0.0.1"
ETCD: Final = "etcd"
REPLICATION: Final = "replicator"
API: Final = "patroni"
PORTS: Final = range(18_000, 32_000)


@dataclass(frozen=True, slots=True)
class Place:
    """The directory of one member, or of etcd."""

    path: Path

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def data(self) -> Path:
        return self.path / "data"

    @property
    def configuration(self) -> Path:
        return self.path / "patroni.yml"

    @property
    def lock(self) -> Path:
        return self.path / "lock"

    @property
    def log(self) -> Path:
        return self.path / "log"

    @property
    def held(self) -> Path:
        return self.path / "held"


@dataclass(frozen=True, slots=True)
class Plan:
    """What the cluster consists of.  Ports are chosen once and kept, so that a DSN stays true."""

    ports: dict[str, int]
    """Of PostgreSQL, by member."""
    api_ports: dict[str, int]
    """Of Patroni's REST interface, by member."""
    etcd_port: int
    etcd_peer_port: int
    settings: dict[str, str] = field(default_factory=dict)
    passwords: dict[str, str] = field(default_factory=dict, repr=False)
    """Of the roles, and of whoever may give Patroni orders."""
    doors: dict[str, int] = field(default_factory=dict)
    """Where a member's PostgreSQL (``pg1``) and Patroni (``pg1/api``) are found by the others, and etcd by it
    (``pg1/etcd``), if somebody stands in between, as tests do who cut them off; empty: at the ports."""

    @classmethod
    def make(cls, replicas: int, settings: Mapping[str, str]) -> Plan:
        names = [f"pg{number}" for number in range(1, replicas + 1)]
        free = iter(free_ports(2 * replicas + 2))
        return cls(
            ports={name: next(free) for name in names},
            api_ports={name: next(free) for name in names},
            etcd_port=next(free),
            etcd_peer_port=next(free),
            settings=dict(settings),
            passwords={role: secrets.token_urlsafe(24) for role in (SUPERUSER, REPLICATION, OWNER, API)},
        )

    @property
    def members(self) -> tuple[str, ...]:
        return tuple(self.ports)

    @property
    def followers_to_wait_for(self) -> int:
        """How many followers a commit waits for: with the leader they are a majority."""
        return len(self.ports) // 2

    def with_free_ports(self) -> Plan:
        """The same with other ports in place of those that somebody else has taken; nothing may run."""

        def kept(port: int) -> int:
            return port if is_free(port) else free_ports(1)[0]

        return replace(
            self,
            ports={name: kept(port) for name, port in self.ports.items()},
            api_ports={name: kept(port) for name, port in self.api_ports.items()},
            etcd_port=kept(self.etcd_port),
            etcd_peer_port=kept(self.etcd_peer_port),
        )


@dataclass(frozen=True, slots=True)
class Layout:
    """Where everything is."""

    path: Path

    @classmethod
    def of(cls, home: Path | None = None) -> Layout:
        """Below ``home``; default ``LOGSTORE_HOME``, else the user's data directory."""
        return cls((home.absolute() if home else Home.default().path) / "cluster")

    @property
    def supervisor(self) -> Path:
        return self.path / "supervisor.lock"

    @property
    def starting(self) -> Path:
        return self.path / "starting.lock"

    @property
    def supervisor_log(self) -> Path:
        return self.path / "supervisor.log"

    @property
    def status_file(self) -> Path:
        return self.path / "status.json"

    @property
    def doomed(self) -> Path:
        """A file that says that all of this is to be removed: nothing has to end well."""
        return self.path / "doomed"

    @property
    def histories(self) -> Path:
        """The archive of the timelines' histories."""
        return self.path / "histories"

    @property
    def plan_file(self) -> Path:
        return self.path / "cluster.json"

    @property
    def password_file(self) -> Path:
        return self.path / "pgpass"

    def place(self, name: str) -> Place:
        return Place(self.path / name)

    def create(self) -> None:
        """Make the directory, or raise :class:`ClusterError` saying why it cannot be used."""
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as exc:
            raise unusable(self.path, exc) from exc

    def read_plan(self) -> Plan | None:
        """The plan; None where there is no cluster."""
        try:
            return Plan(**json.loads(self.plan_file.read_text()))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as exc:
            raise unusable(self.path, exc) from exc
        except (ValueError, TypeError) as exc:
            raise ClusterError(
                f"{self.plan_file} cannot be understood: {exc}.",
                advice="`logstore cluster down --remove` removes the cluster and its data.",
            ) from exc

    def write_plan(self, plan: Plan) -> None:
        """Keep the plan, and the file with the password that the DSN names."""
        write_private(self.plan_file, json.dumps(asdict(plan), indent=1) + "\n")
        lines = [
            f"{HOST}:{port}:*:{role}:{plan.passwords[role]}\n"
            for port in (*plan.ports.values(), *plan.doors.values())
            for role in (OWNER, SUPERUSER)
        ]
        write_private(self.password_file, "".join(lines))

    def dsn(self, plan: Plan, user: str = OWNER, database: str = DATABASE) -> str:
        """All members, of which the driver takes the one that can be written to; holds no password."""
        hosts = ",".join(f"{HOST}:{port}" for port in plan.ports.values())
        return (
            f"postgresql://{user}@{hosts}/{database}?target_session_attrs=read-write"
            f"&passfile={quote(str(self.password_file), safe='/')}"
        )

    def member_dsn(self, plan: Plan, name: str, user: str = SUPERUSER, database: str = DATABASE) -> str:
        """One member, whatever its role."""
        return (
            f"postgresql://{user}@{HOST}:{plan.ports[name]}/{database}"
            f"?passfile={quote(str(self.password_file), safe='/')}"
        )


def write_private(path: Path, text: str) -> None:
    """Write a file that only its owner can read, whole or not at all."""
    draft = path.with_suffix(".new")
    draft.unlink(missing_ok=True)
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
    draft.replace(path)


def read_json(path: Path) -> dict[str, Any]:
    """What a file of ours says; nothing if it is not there, or half of it."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def free_ports(count: int) -> list[int]:
    """Ports of the loopback interface that nobody listens on."""
    # Not those that the system gives to outgoing connections: one might be gone before it is listened on.
    candidates = iter(random.sample(PORTS, len(PORTS)))
    with ExitStack() as stack:
        found: list[int] = []
        while len(found) < count:
            port = next(candidates, None)
            if port is None:
                raise ClusterError(f"There are not {count} free ports on {HOST}.")
            with suppress(OSError):
                stack.enter_context(socket.create_server((HOST, port)))
                found.append(port)
        return found


def is_free(port: int) -> bool:
    """Nobody listens on this port."""
    try:
        with socket.create_server((HOST, port)):
            return True
    except OSError:
        return False


def places(layout: Layout, plan: Plan) -> Iterator[Place]:
    """The members' directories and etcd's."""
    for name in (*plan.members, ETCD):
        yield layout.place(name)


def unusable(path: Path, exc: OSError) -> ClusterError:
    """The typed error for a directory that cannot be read or written."""
    return ClusterError(
        f"The local cluster's directory {path} cannot be used: {exc.strerror or exc}.",
        advice="Set LOGSTORE_HOME to a directory you may write to.",
    )
