"""The local cluster as its users see it: start it, look at it, hurt it, stop it."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

import psycopg
from psycopg import sql

import logstore.errors
from logstore import migrations
from logstore.cluster import configuration, processes, rest
from logstore.cluster.layout import ETCD, HOST, Layout, Plan, places, unusable
from logstore.cluster.orders import Orders, Report
from logstore.cluster.release import in_sync, release
from logstore.cluster.state import ClusterStatus, MemberStatus, Phase
from logstore.embedded.home import DATABASE, OWNER, SUPERUSER, Lock, tail, wait_until
from logstore.errors import ClusterError

__all__ = ["DEFAULT_REPLICAS", "LocalCluster"]

DEFAULT_REPLICAS: Final = 3
START_TIMEOUT_S: Final = 180.0
STOP_TIMEOUT_S: Final = 90.0
SWITCHOVER_TIMEOUT_S: Final = 60.0
_NEEDED_BYTES: Final = 200 << 20
_ASK_AGAIN_S: Final = 0.5
_TAKES_OVER_S: Final = 5.0
"""For so long whoever is not to lead stands still."""


class LocalCluster:
    """etcd and a Patroni group on the loopback interface.

    ``home``: its data are in the directory ``cluster`` below it; default ``LOGSTORE_HOME``, else the user's
    data directory.  ``namespaces``: use a user namespace for root.
    """

    def __init__(self, home: Path | None = None, *, namespaces: bool = True) -> None:
        self.layout = Layout.of(home)
        self._orders = Orders(str(self.layout.path), namespaces)

    # ---- up and down

    def up(
        self,
        replicas: int | None = None,
        settings: Mapping[str, str] | None = None,
        *,
        schema: str = "logstore",
        timeout_s: float = START_TIMEOUT_S,
        tell: Callable[[str], None] = lambda _: None,
    ) -> ClusterStatus:
        """Start the cluster, or whatever of it does not run, and wait until all members keep up.

        ``replicas``: PostgreSQL servers, the leader included (default 3); ``settings``: PostgreSQL settings;
        both count when the cluster is made and are kept.  ``tell`` is given a line now and then.  Any number
        of processes may call this at once.  Ctrl-C stops again what this call has started.

        Raises :class:`ClusterError` saying which part did not come up, and why.
        """
        programs = configuration.find_programs()
        deadline = time.monotonic() + timeout_s
        self.layout.create()
        with self._starting(timeout_s):
            plan = self._plan(replicas, settings)
            self.layout.doomed.unlink(missing_ok=True)
            for place in places(self.layout, plan):
                place.held.unlink(missing_ok=True)
            started = not self.alive()
            try:
                if started:
                    tell(f"starting etcd and {len(plan.members)} PostgreSQL {programs.postgres.version}")
                    self._spawn()
                self._await_ready(plan, deadline, tell)
                self._furnish(plan, schema)
            except KeyboardInterrupt:
                if started:
                    self._stop(STOP_TIMEOUT_S)
                raise
        return self.status()

    def down(self, *, remove: bool = False, timeout_s: float = STOP_TIMEOUT_S) -> bool:
        """Stop everything; say whether there was anything to stop.  ``remove``: its data, too."""
        if not self.layout.path.is_dir():
            return False
        configuration.find_programs()
        if remove:
            self.layout.doomed.touch()
        # Whoever is starting it is told first, and gives up.
        found = self._stop(timeout_s)
        with self._starting(timeout_s):
            found = self._stop(timeout_s) or found
            plan = self._readable_plan()
            known = places(self.layout, plan) if plan else ()
            if remove:
                found = sum(processes.discard(place) for place in known) > 0 or found
            else:
                found = processes.end(known) > 0 or found
            if remove:
                shutil.rmtree(self.layout.path, ignore_errors=True)
        return found

    def alive(self) -> bool:
        """A supervisor lives."""
        if not self.layout.supervisor.exists():
            return False
        with Lock(self.layout.supervisor) as lock:
            return not lock.take(shared=True)

    def _starting(self, timeout_s: float) -> Lock:
        try:
            lock = Lock(self.layout.starting)
        except OSError as exc:
            raise unusable(self.layout.path, exc) from exc
        if not lock.wait(timeout_s):
            lock.close()
            raise ClusterError(f"Somebody else is starting or stopping the cluster in {self.layout.path}.")
        return lock

    def _readable_plan(self) -> Plan | None:
        try:
            return self.layout.read_plan()
        except ClusterError:
            return None

    def _plan(self, replicas: int | None, settings: Mapping[str, str] | None) -> Plan:
        plan = self.layout.read_plan()
        if plan is None:
            free = shutil.disk_usage(self.layout.path).free
            wanted = replicas or DEFAULT_REPLICAS
            if free < wanted * _NEEDED_BYTES:
                raise ClusterError(
                    f"The disk of {self.layout.path} is full: {free >> 20} MB are free, {wanted} servers "
                    f"need {wanted * _NEEDED_BYTES >> 20} MB to begin with.",
                    advice="Free some space, or set LOGSTORE_HOME to a directory on another disk.",
                )
            plan = Plan.make(wanted, settings or {})
            self.layout.write_plan(plan)
            return plan
        if (replicas or len(plan.members)) != len(plan.members):
            raise ClusterError(
                f"The cluster in {self.layout.path} was made with {len(plan.members)} replicas, "
                f"not {replicas}.",
                advice="Leave --replicas out, or remove it and its data first: "
                "`logstore cluster down --remove`.",
            )
        if settings and dict(settings) != plan.settings:
            raise ClusterError(
                f"The cluster in {self.layout.path} was made with other settings.",
                advice="Leave --setting out, or remove it and its data first: "
                "`logstore cluster down --remove`.",
            )
        if not self.alive():
            # Also those that a killed supervisor left behind: they listen on our ports.
            processes.end(places(self.layout, plan))
            moved = plan.with_free_ports()
            if moved != plan:
                plan = moved
                self.layout.write_plan(plan)
        return plan

    def _spawn(self) -> None:
        env = dict(os.environ)
        package_root = Path(logstore.errors.__file__).parents[1]
        if package_root.name not in ("site-packages", "dist-packages"):
            env["PYTHONPATH"] = os.pathsep.join(filter(None, [str(package_root), env.get("PYTHONPATH")]))
        with self.layout.supervisor_log.open("ab") as log:
            result = subprocess.run(
                [sys.executable, "-P", "-m", "logstore.cluster.supervisor", self._orders.encode()],
                env=env,
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                check=False,
            )
        if result.returncode != 0:
            raise ClusterError(
                f"The cluster's supervisor could not be started: {tail(self.layout.supervisor_log)}",
                advice=f"The whole log is {self.layout.supervisor_log}.",
            )

    def _stop(self, timeout_s: float) -> bool:
        """Tell the supervisor to stop everything; say whether there was one."""
        stopped = False
        deadline = time.monotonic() + timeout_s
        while self.alive():
            stopped = True
            with contextlib.suppress(ProcessLookupError):
                # It holds its lock, so the number it has written is its own.
                if pid := Report.read(self.layout).pid:
                    os.kill(pid, signal.SIGTERM)
            if not wait_until(lambda: not self.alive(), 5.0) and time.monotonic() > deadline:
                raise ClusterError(
                    f"The cluster in {self.layout.path} did not stop within {timeout_s:.0f} s.",
                    advice=f"See {self.layout.supervisor_log}.",
                )
        return stopped

    # ---- ready

    def _await_ready(self, plan: Plan, deadline: float, tell: Callable[[str], None]) -> None:
        said: set[str] = set()
        while True:
            report = Report.read(self.layout)
            if report.phase == "failed":
                raise ClusterError(report.message, advice=report.advice)
            if not self.alive():
                raise ClusterError(
                    f"The cluster's supervisor ended: {tail(self.layout.supervisor_log)}",
                    advice=f"The whole log is {self.layout.supervisor_log}.",
                )
            found = self.status()
            for member in found.members:
                if member.well and member.name not in said:
                    said.add(member.name)
                    tell(f"{member.name} is {member.role}")
            in_sync = sum(member.in_sync for member in found.members)
            if found.phase == "ready" and in_sync > plan.followers_to_wait_for:
                return
            if time.monotonic() >= deadline:
                missing = [member for member in found.members if not member.well]
                states = ", ".join(f"{member.name} is {member.state}" for member in missing)
                culprit = self.layout.place(missing[0].name if missing else ETCD)
                raise ClusterError(
                    f"The cluster in {self.layout.path} was not ready in time: "
                    f"{states or 'no follower is in sync'}; the last words of {culprit.name}: "
                    f"{tail(culprit.log)}",
                    advice=f"The whole log is {culprit.log}; `logstore cluster down` stops what runs.",
                )
            time.sleep(0.1)

    def _furnish(self, plan: Plan, schema: str) -> None:
        """Make the log's owner, who is no superuser, its database and the log, where they are missing."""
        try:
            with psycopg.connect(
                self.layout.dsn(plan, SUPERUSER, "postgres"), autocommit=True, connect_timeout=10
            ) as connection:
                if not connection.execute("SELECT FROM pg_roles WHERE rolname = %s", [OWNER]).rowcount:
                    verifier = connection.pgconn.encrypt_password(
                        plan.passwords[OWNER].encode(), OWNER.encode(), b"scram-sha-256"
                    )
                    # The role and the log's schema have one name: see the embedded server.
                    connection.execute(
                        sql.SQL(
                            "CREATE ROLE {0} LOGIN CREATEDB CREATEROLE IN ROLE pg_monitor PASSWORD {1};"
                            " ALTER ROLE {0} SET search_path = public"
                        ).format(sql.Identifier(OWNER), sql.Literal(verifier.decode()))
                    )
                if not connection.execute("SELECT FROM pg_database WHERE datname = %s", [DATABASE]).rowcount:
                    connection.execute(
                        sql.SQL("CREATE DATABASE {} OWNER {}").format(
                            sql.Identifier(DATABASE), sql.Identifier(OWNER)
                        )
                    )
        except psycopg.Error as error:
            raise ClusterError(f"The cluster's leader cannot be furnished: {error}") from error
        dsn = self.layout.dsn(plan)
        if not migrations.status(dsn, schema).up_to_date:
            migrations.upgrade(dsn, schema)

    # ---- looking

    def status(self) -> ClusterStatus:
        """What runs, who leads, who keeps up.  Starts nothing."""
        plan = self.layout.read_plan()
        if plan is None:
            return ClusterStatus("absent", str(self.layout.path))
        alive = self.alive()
        report = Report.read(self.layout)
        seen = rest.members_seen(plan) if alive else {}
        end = max((each.position or 0 for each in seen.values() if each.leads), default=0)
        members = tuple(self._member(plan, name, seen.get(name), alive, end) for name in plan.members)
        etcd = alive and rest.etcd_answers(plan)
        led = any(member.role == "leader" and member.well for member in members)
        phase: Phase
        if not alive:
            phase = "stopped"
        elif led:
            phase = "ready" if etcd and all(member.well for member in members) else "degraded"
        else:
            # Before there ever was a leader there is no data directory with a control file.
            known = any((self.layout.place(name).data / "PG_VERSION").exists() for name in plan.members)
            phase = "leaderless" if known and not self._is_starting() else "starting"
        return ClusterStatus(
            phase,
            str(self.layout.path),
            dsn=self.layout.dsn(plan),
            superuser_dsn=self.layout.dsn(plan, SUPERUSER, "postgres"),
            members=members,
            etcd="running" if etcd else "stopped",
            etcd_port=plan.etcd_port,
            followers_to_wait_for=plan.followers_to_wait_for,
            supervisor_pid=report.pid if alive else 0,
            version=report.version,
        )

    def _is_starting(self) -> bool:
        with Lock(self.layout.starting) as lock:
            return not lock.take(shared=True)

    def _member(self, plan: Plan, name: str, seen: rest.Seen | None, alive: bool, end: int) -> MemberStatus:
        pid = self._postmaster(name) if alive else 0
        place = (name, HOST, plan.ports[name])
        if seen is None or not pid:
            if pid:
                state = "silent"
            elif not alive or self.layout.place(name).held.exists():
                state = "stopped"
            else:
                state = seen.state if seen else "starting"
            return MemberStatus(*place, None, state, pid=pid)
        return MemberStatus(
            *place,
            "leader" if seen.leads else "follower",
            seen.state,
            in_sync=seen.in_sync,
            timeline=seen.timeline,
            lag_bytes=None if seen.leads or seen.position is None else max(0, end - seen.position),
            pid=pid,
        )

    def _postmaster(self, name: str) -> int:
        """The process number in a member's data directory, if such a process lives and works there."""
        data = self.layout.place(name).data
        try:
            pid = int((data / "postmaster.pid").read_text().split("\n", 1)[0])
            os.kill(pid, 0)
            return pid if Path(f"/proc/{pid}/cwd").readlink() == data.resolve() else 0
        except PermissionError:
            return pid
        except (FileNotFoundError, NotADirectoryError):
            return pid if not Path("/proc/self/cwd").exists() and data.exists() else 0
        except (OSError, ValueError):
            return 0

    # ---- hurting

    def kill(self, target: str) -> str:
        """kill -9 everything of a member at once, Patroni and PostgreSQL, and leave it dead until :meth:`up`.

        ``target``: ``leader``, ``follower`` (one that is in sync), ``etcd`` or a member's name.  Answers the
        name of what was killed.  Raises :class:`ClusterError` when there is nothing such to kill.
        """
        found = self._running()
        name = self._named(found, target)
        place = self.layout.place(name)
        place.held.touch(mode=0o600)
        if not processes.kill(place):
            raise ClusterError(f"{name} does not run.", advice="`logstore cluster up` starts it.")
        return name

    def _running(self) -> ClusterStatus:
        found = self.status()
        if found.phase in ("absent", "stopped"):
            raise ClusterError(
                f"There is no cluster running in {self.layout.path}.",
                advice="Start it with `logstore cluster up`.",
            )
        return found

    def _named(self, found: ClusterStatus, target: str) -> str:
        if target == ETCD or target in {member.name for member in found.members}:
            return target
        if target == "leader":
            if found.leader is None:
                raise ClusterError("The cluster has no leader at the moment.")
            return found.leader.name
        if target == "follower":
            followers = sorted(found.followers, key=lambda member: not member.in_sync)
            if not followers:
                raise ClusterError("The cluster has no follower that runs.")
            return followers[0].name
        names = ", ".join(member.name for member in found.members)
        raise ClusterError(f"There is no member {target!r}; there are {names} and {ETCD}.")

    def switchover(
        self, to: str | None = None, *, timeout_s: float = SWITCHOVER_TIMEOUT_S
    ) -> tuple[str, str]:
        """Let a follower lead: ``to``, or any that is in sync.  Answers who led and who leads now.

        Nothing acknowledged is lost: the leader stops, and the follower takes over when it has everything.
        Raises :class:`ClusterError` when ``to`` does not lead in the end.
        """
        plan, found = self.layout.read_plan(), self._running()
        before = found.leader
        if plan is None or before is None:
            raise ClusterError("The cluster has no leader at the moment.")
        in_sync = (member for member in found.followers if member.in_sync)
        candidates = [member.name for member in sorted(in_sync, key=lambda member: member.lag_bytes or 0)]
        if to is not None and to not in candidates:
            able = ", ".join(candidates) or "none"
            raise ClusterError(f"{to} cannot lead: it is no follower in sync. Those that are: {able}.")
        if not candidates:
            raise ClusterError("No follower is in sync: nobody can take over.")
        # Whoever is named need not be elected.
        self._step_down(plan, before, [to] if to else candidates, timeout_s)

        def done() -> bool:
            leader = self.status().leader
            return leader is not None and leader.name != before.name

        if not wait_until(done, timeout_s):
            raise ClusterError(f"{before.name} handed over, and nobody leads after {timeout_s:.0f} s.")
        after = self.status().leader
        if to is not None and after is not None and after.name != to:
            raise ClusterError(f"{before.name} handed over to {after.name}: {to} did not have everything.")
        return before.name, after.name if after else to or ""

    def _step_down(
        self, plan: Plan, leader: MemberStatus, candidates: Sequence[str], timeout_s: float
    ) -> None:
        """Stop the leader's PostgreSQL, which sends its followers everything before it ends, and let go of
        its key, in favour of the first candidate that is in sync if that has everything: Patroni elects
        another at once, and starts the old one as a follower.  Patroni's own switchover takes some seconds
        longer.
        """
        try:
            with psycopg.connect(self.layout.member_dsn(plan, leader.name), autocommit=True) as connection:
                # The one that is written while nobody leads is short then.
                connection.execute("CHECKPOINT")
        except psycopg.Error as error:
            raise ClusterError(f"The leader {leader.name} does not answer: {error}") from error
        document = json.loads(self.layout.place(leader.name).configuration.read_text())
        deadline = time.monotonic() + timeout_s
        while True:
            # Its Patroni would let go of the key in favour of anybody, were it to see its PostgreSQL end;
            # those that are not to lead would wait for two seconds before they follow, and nobody would be in
            # sync.  And while the leader's stands still, nobody else comes into sync, or falls out.
            with processes.held_up([self.layout.place(leader.name)]):
                able = in_sync(document) or ()
                to = next((name for name in candidates if name in able), None)
                if to is not None:
                    others = [name for name in plan.members if name not in (to, leader.name)]
                    with processes.held_up([self.layout.place(name) for name in others]):
                        self._hand_over(plan, leader, to, timeout_s)
                    return
            # The leader goes on meanwhile: a moment ago the members still took one of them to be in sync.
            if time.monotonic() > deadline:
                raise ClusterError(
                    f"{' and '.join(candidates)} cannot lead: etcd does not say that they are in sync."
                )
            time.sleep(_ASK_AGAIN_S)

    def _hand_over(self, plan: Plan, leader: MemberStatus, to: str, timeout_s: float) -> None:
        """Their Patroni stands still: see :meth:`_step_down`."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(leader.pid, signal.SIGINT)
        if not wait_until(lambda: self._postmaster(leader.name) != leader.pid, timeout_s):
            raise ClusterError(f"The PostgreSQL of {leader.name} did not stop within {timeout_s:.0f} s.")
        able = self._has_everything(plan, to, leader.name)
        document = json.loads(self.layout.place(leader.name).configuration.read_text())
        release(document, in_favour_of=to if able else None)
        if able:
            wait_until(lambda: self._leads(plan, to), _TAKES_OVER_S)

    @staticmethod
    def _leads(plan: Plan, name: str) -> bool:
        seen = rest.members_seen(plan, only=name).get(name)
        return seen is not None and seen.leads

    def _has_everything(self, plan: Plan, name: str, former: str) -> bool:
        """The follower has received the write-ahead log of the stopped leader to its end."""
        try:
            with psycopg.connect(self.layout.member_dsn(plan, name), autocommit=True) as connection:
                row = connection.execute(
                    "SELECT pg_last_wal_receive_lsn() > %s::pg_lsn", [self._shutdown(former)]
                ).fetchone()
        except (psycopg.Error, OSError):
            return False
        return bool(row and row[0])

    def _shutdown(self, name: str) -> str | None:
        """Where the last record in the write-ahead log of a stopped member begins."""
        data = self.layout.place(name).data
        programs = configuration.find_programs(int((data / "PG_VERSION").read_text())).postgres
        said = subprocess.run(
            [programs.directory / "pg_controldata", data],
            env={**programs.environment(), "LC_ALL": "C"},
            capture_output=True,
            text=True,
            check=False,
        ).stdout
        lines = (line.partition(":") for line in said.splitlines())
        return next((value.strip() for what, _, value in lines if what == "Latest checkpoint location"), None)
