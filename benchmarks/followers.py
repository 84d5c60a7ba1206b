"""A leader with hot standbys on the loopback interface, fsync on."""

from __future__ import annotations

import os
import secrets
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import psycopg

from benchmarks.machine import on_memory_file_system
from logstore import migrations
from logstore.embedded import asroot, binaries, settings

__all__ = ["Member", "Replicated", "replicated"]

OWNER: Final = "logstore"
SUPERUSER: Final = "postgres"
PATIENCE_S: Final = 60.0


@dataclass
class Member:
    """One server."""

    name: str
    data: Path
    port: int
    password: str
    process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    def dsn(self, user: str = OWNER, database: str = "logstore") -> str:
        return f"postgresql://{user}:{self.password}@127.0.0.1:{self.port}/{database}"

    @property
    def superuser_dsn(self) -> str:
        return self.dsn(SUPERUSER)

    def processor_s(self) -> float:
        """What the server's processes have computed up to now, in s, also those that have ended since."""
        assert self.process is not None
        parents = {}
        ticks = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdecimal():
                try:
                    words = (entry / "stat").read_text().rpartition(")")[2].split()
                except OSError:
                    continue
                parents[int(entry.name)] = int(words[1])
                # utime and stime; of the postmaster also those of its children that have ended.
                ticks[int(entry.name)] = (int(words[11]) + int(words[12]), int(words[13]) + int(words[14]))
        own = self.process.pid
        total = sum(ticks[own]) + sum(ticks[pid][0] for pid, parent in parents.items() if parent == own)
        return total / os.sysconf("SC_CLK_TCK")


@dataclass
class Replicated:
    """The group."""

    leader: Member
    followers: list[Member]

    def wait_for(self, names: str) -> None:
        """Set ``synchronous_standby_names``, and wait until those it names are in sync."""
        with self.admin() as connection:
            connection.execute(f"ALTER SYSTEM SET synchronous_standby_names = '{names}'".encode())
            connection.execute("SELECT pg_reload_conf()")
            wanted = "quorum" if names else "async"
            _until(
                lambda: (
                    connection.execute(
                        "SELECT count(*) FROM pg_stat_replication"
                        " WHERE state = 'streaming' AND sync_state = %s",
                        [wanted],
                    ).fetchone()
                    == (len(self.followers),)
                ),
                f"{len(self.followers)} followers are {wanted}",
            )

    def settle(self) -> None:
        """Until the followers have replayed everything."""
        with self.admin() as connection:
            _until(
                lambda: (
                    connection.execute(
                        "SELECT bool_and(replay_lsn >= pg_current_wal_insert_lsn()) FROM pg_stat_replication"
                    ).fetchone()
                    == (True,)
                ),
                "everything is replayed",
            )

    def checkpoint(self) -> None:
        with self.admin() as connection:
            connection.execute("CHECKPOINT")

    def admin(self) -> psycopg.Connection[Any]:
        return psycopg.connect(self.leader.superuser_dsn, autocommit=True)


@contextmanager
def replicated(followers: int, chosen: Mapping[str, str] | None = None) -> Iterator[Replicated]:
    """A leader with a log in it and ``followers`` that stream from it; their directory is gone afterwards."""
    programs = binaries.find()
    with tempfile.TemporaryDirectory(prefix="logstore-bench-") as text, ExitStack() as stack:
        home = Path(text)
        if on_memory_file_system(home):
            raise SystemExit(
                f"{home} is in memory, where fsync is free: set TMPDIR to a directory on a disk."
            )
        identity = asroot.choose(reach=(home, programs.directory))
        identity.give(home)
        password = secrets.token_hex(8)
        members = [
            Member(name, home / name, port, password)
            for name, port in zip(
                ("leader", *(f"follower{number}" for number in range(1, followers + 1))),
                _free_ports(1 + followers),
                strict=True,
            )
        ]
        leader, *others = members
        secret = home / "password"
        secret.write_text(password)
        identity.give(secret)

        def run(*command: object) -> None:
            answer = subprocess.run(
                list(map(str, command)),
                env=programs.environment() | {"PGPASSWORD": password},
                cwd=home,
                capture_output=True,
                text=True,
                check=False,
                preexec_fn=identity.enter,
            )
            if answer.returncode:
                raise SystemExit(answer.stderr)

        def start(member: Member) -> None:
            with (home / f"{member.name}.log").open("wb") as log:
                member.process = subprocess.Popen(
                    [programs.postgres, "-D", member.data, "-c", f"port={member.port}"],
                    env=programs.environment(),
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                    preexec_fn=identity.enter,
                )
            stack.callback(_stop, member)
            _until(lambda: _answers(member), f"{member.name} answers: {home / f'{member.name}.log'}")

        run(
            programs.initdb, "-D", leader.data, "-U", SUPERUSER, "--auth=scram-sha-256", f"--pwfile={secret}",
            "--encoding=UTF8", "--locale=C",
        )  # fmt: skip
        own = settings.defaults(leader.data) | {
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": "",
            "shared_buffers": "256MB",
            "hot_standby_feedback": "off",
            **(chosen or {}),
        }
        with (leader.data / "postgresql.conf").open("a") as conf:
            conf.write(settings.render(own))
        start(leader)
        with psycopg.connect(leader.dsn(SUPERUSER, "postgres"), autocommit=True) as connection:
            connection.execute(f"CREATE ROLE {OWNER} LOGIN IN ROLE pg_monitor PASSWORD '{password}'".encode())
            connection.execute(f"CREATE DATABASE logstore OWNER {OWNER}".encode())
        migrations.upgrade(leader.dsn())
        for follower in others:
            run(
                programs.directory / "pg_basebackup", "-D", follower.data, "-R", "-X", "stream", "-c", "fast",
                "-C", "-S", follower.name,
                "-d", f"{leader.superuser_dsn}?application_name={follower.name}",
            )  # fmt: skip
            start(follower)
        yield Replicated(leader, others)


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def _answers(member: Member) -> bool:
    assert member.process is not None
    if member.process.poll() is not None:
        raise SystemExit(f"{member.name} has ended; see its log.")
    try:
        psycopg.connect(member.dsn(SUPERUSER, "postgres"), connect_timeout=2).close()
    except psycopg.OperationalError:
        return False
    return True


def _stop(member: Member) -> None:
    if member.process is not None:
        member.process.send_signal(signal.SIGQUIT)
        member.process.wait(30)


def _until(condition: Any, what: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        if time.monotonic() > deadline:
            raise SystemExit(f"still not: {what}")
        time.sleep(0.02)
