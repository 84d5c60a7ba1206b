"""The process that owns a local cluster: the parent of etcd and of one Patroni a member.

Does what the service manager of a machine does: starts what is not *held*, starts it again when it dies,
stops everything when told to (SIGTERM) or when its directory is removed.  If it dies itself, the kernel tells
its children to stop (Linux); whatever is left is cleared by the next `cluster up` or `cluster down`.

When a member has died, its Patroni and its PostgreSQL, the supervisor lets go of the leader's key in its
name: nobody can be surer that it is dead than the parent.  Its followers elect a leader at once, and need not
wait for the end of its lease, which Patroni does not let anybody make shorter than 20 s.  In production the
unit file does the same (``deploy/patroni.service``).
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import select
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from logstore.cluster import configuration, processes, rest
from logstore.cluster.configuration import Programs
from logstore.cluster.layout import ETCD, Layout, Place, Plan, places
from logstore.cluster.orders import Orders, Report
from logstore.cluster.receiver import astray
from logstore.cluster.release import release
from logstore.embedded import asroot
from logstore.embedded.asroot import Identity
from logstore.embedded.cluster import rotate
from logstore.embedded.home import Lock
from logstore.errors import ClusterError, LogstoreError

__all__ = ["main"]

log = logging.getLogger("logstore.cluster.supervisor")

_TICK_S: Final = 0.5
_LOOK_EVERY_S: Final = 2.0
"""At who receives from whom: for so long PostgreSQL has time to see to that itself."""
_QUICK_DEATH_S: Final = 5.0
_LONGEST_PAUSE_S: Final = 5.0
_FOLLOWERS_STOP_S: Final = 20.0
_LEADER_STOPS_S: Final = 30.0
_ETCD_STOPS_S: Final = 5.0


class _Told(Exception):
    """Told to stop."""


@dataclass
class _Child:
    """etcd, or the Patroni of a member."""

    place: Place
    command: list[str]
    process: subprocess.Popen[bytes] | None = None
    started: float = 0.0
    deaths: int = 0
    next_start: float = 0.0
    lost: bool = False
    """It died, and what that means has still to be seen to."""

    @property
    def runs(self) -> bool:
        return self.process is not None and self.process.poll() is None


@dataclass
class Supervisor:
    """Runs until everything has been stopped.  Holds ``supervisor.lock``."""

    orders: Orders
    lock: Lock
    children: list[_Child] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.layout = Layout(Path(self.orders.path))
        self._told = False
        self._wake, self._waker = os.pipe()
        self._astray: set[int] = set()
        self._look_at = 0.0

    def run(self) -> int:
        """Start, watch, stop.  Returns the exit code."""
        os.set_blocking(self._wake, False)
        os.set_blocking(self._waker, False)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        signal.set_wakeup_fd(self._waker, warn_on_full_buffer=False)
        signal.signal(signal.SIGTERM, self._on_term)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        # Not SIG_IGN, which the children would inherit: SIGINT is what the kernel sends them if we die.
        signal.signal(signal.SIGHUP, lambda *_: None)
        signal.signal(signal.SIGINT, lambda *_: None)
        report = Report("stopped")
        try:
            self._prepare()
            self._say(Report("running", os.getpid(), self.programs.postgres.version))
            while self._at_home():
                for child in self.children:
                    self._tend(child)
                self._lead_back(time.monotonic())
                self._pause(_TICK_S)
        except _Told:
            pass
        except LogstoreError as exc:
            log.error("%s", exc)
            report = Report("failed", message=exc.message, advice=exc.advice)
        except Exception as exc:
            log.exception("unexpected")
            advice = f"See {self.layout.supervisor_log}."
            report = Report("failed", message=f"The cluster's supervisor failed: {exc!r}.", advice=advice)
        self._say(Report("stopping", os.getpid()))
        self._stop()
        self._say(report)
        return 0 if report.phase == "stopped" else 1

    def _on_term(self, *_: object) -> None:
        self._told = True

    def _say(self, report: Report) -> None:
        log.info("%s", report.phase)
        with contextlib.suppress(OSError):
            report.write(self.layout)

    def _pause(self, timeout_s: float) -> None:
        """Wait for a signal, at most ``timeout_s``; raise if it was an order to stop."""
        if not self._told:
            select.select([self._wake], [], [], timeout_s)
        with contextlib.suppress(BlockingIOError):
            os.read(self._wake, 4096)
        if self._told:
            raise _Told

    def _at_home(self) -> bool:
        """The directory has not been removed (or replaced) under us."""
        try:
            return os.path.samestat(self.layout.supervisor.stat(), os.fstat(self.lock.fileno()))
        except OSError:
            return False

    # ---- beginning

    def _prepare(self) -> None:
        plan = self.layout.read_plan()
        if plan is None:
            raise ClusterError(f"There is no plan of a cluster in {self.layout.path}.")
        self.plan: Plan = plan
        self.programs: Programs = configuration.find_programs(self._major())
        self.identity: Identity = self._identity()
        self.layout.histories.mkdir(mode=0o700, exist_ok=True)
        self.identity.give(self.layout.histories)
        for place in places(self.layout, plan):
            place.path.mkdir(mode=0o700, exist_ok=True)
            self.identity.give(place.path)
            command = self._command(place)
            self.children.append(_Child(place, command))

    def _major(self) -> int | None:
        for name in self.plan.members:
            with contextlib.suppress(OSError, ValueError):
                return int((self.layout.place(name).data / "PG_VERSION").read_text())
        return None

    def _identity(self) -> Identity:
        reach = (self.layout.path, self.programs.postgres.directory, Path(sys.executable).parent)
        identity = asroot.choose(reach=reach, namespaces=self.orders.namespaces)
        if identity.kind == "account":
            self.layout.path.chmod(0o711)
            for path in (*reach, Path(configuration.__file__).parent):
                if not asroot.reachable(identity, path):
                    raise ClusterError(
                        "PostgreSQL and Patroni cannot run as root, this system refuses user namespaces, "
                        f"and the account {identity.name} cannot reach {path}.",
                        advice="Open the way to it, or run as another user.",
                    )
        return identity

    def _command(self, place: Place) -> list[str]:
        if place.name == ETCD:
            return configuration.etcd_command(self.programs, self.plan, place)
        text = configuration.patroni_configuration(self.layout, self.plan, self.programs, place.name)
        place.configuration.unlink(missing_ok=True)
        descriptor = os.open(place.configuration, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(text)
        self.identity.give(place.configuration)
        return configuration.patroni_command(place)

    # ---- watching

    def _tend(self, child: _Child) -> None:
        """Start a child that is to run and does not; see to what the death of one means."""
        if child.runs:
            return
        now = time.monotonic()
        if child.process is not None:
            log.warning("%s died: %s", child.place.name, child.process.returncode)
            child.process = None
            child.lost = True
            child.deaths = child.deaths + 1 if now - child.started < _QUICK_DEATH_S else 0
            child.next_start = now + min(0.2 * 2**child.deaths, _LONGEST_PAUSE_S) if child.deaths else now
        held = child.place.held.exists()
        if child.lost:
            child.lost = not self._bury(child, held)
        if not held and now >= child.next_start:
            self._start(child)

    def _bury(self, child: _Child, held: bool) -> bool:
        """Make sure that what died is dead, and say so to the others; whether that is done."""
        if held:
            processes.kill(child.place)
        elif processes.of(child.place):
            # PostgreSQL lives and serves; a new Patroni takes it over.
            return True
        if child.place.name == ETCD:
            return True
        released = release(json.loads(child.place.configuration.read_text()))
        if released:
            log.info("%s led; its key is released", child.place.name)
        return released is not None or not held

    def _lead_back(self, now: float) -> None:
        """End the walreceivers that stay with a server they were told to leave; the next ones do not."""
        if now < self._look_at:
            return
        self._look_at = now + _LOOK_EVERY_S
        before, self._astray = self._astray, set()
        for child in self.children:
            if child.place.name != ETCD and (process := astray(child.place)) is not None:
                self._astray.add(process.pid)
                if process.pid in before:
                    log.warning("%s receives from a server that it was told to leave", child.place.name)
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(process.pid, signal.SIGTERM)

    def _start(self, child: _Child) -> None:
        place = child.place
        with Lock(place.lock) as lock:
            if not lock.take():
                log.warning("an earlier process of %s lives", place.name)
                processes.end([place])
                if not lock.take():
                    return
            rotate(place.log)
            output = os.open(place.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
            try:
                child.process = asroot.start(
                    self.identity,
                    child.command,
                    self._environment(),
                    cwd=place.path,
                    log=output,
                    keep=lock.fileno(),
                    bind=sys.platform == "linux",
                )
            finally:
                os.close(output)
        child.started = time.monotonic()

    def _environment(self) -> dict[str, str]:
        env = self.programs.postgres.environment()
        return {name: value for name, value in env.items() if not name.startswith(("PATRONI_", "ETCD_"))}

    # ---- the end

    def _stop(self) -> None:
        """Followers first, so that none is elected while the leader stops; etcd last."""
        if self.layout.doomed.exists():
            for child in self.children:
                processes.discard(child.place)
            return
        seen = rest.members_seen(self.plan) if self.children else {}
        leaders = [name for name, each in seen.items() if each.leads]
        members = [child for child in self.children if child.place.name != ETCD]
        followers = [child for child in members if child.place.name not in leaders]
        leading = [child for child in members if child.place.name in leaders]
        rest_of_them = [child for child in self.children if child.place.name == ETCD]
        for group, patience_s in (
            (followers, _FOLLOWERS_STOP_S),
            (leading, _LEADER_STOPS_S),
            (rest_of_them, _ETCD_STOPS_S),
        ):
            self._stop_these(group, patience_s)
        with contextlib.suppress(OSError):
            processes.end([child.place for child in self.children])

    def _stop_these(self, children: list[_Child], patience_s: float) -> None:
        for child in children:
            if child.process is not None and child.runs:
                child.process.terminate()
        until = time.monotonic() + patience_s
        for child in children:
            if child.process is not None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    child.process.wait(max(0.0, until - time.monotonic()))
        processes.end(child.place for child in children)


def main() -> int:
    """Take ``supervisor.lock`` and go on in the background; if it is taken, there is nothing to do."""
    orders = Orders.decode(sys.argv[1])
    layout = Layout(Path(orders.path))
    lock = Lock(layout.supervisor)
    # Those who look whether a supervisor lives hold the lock for an instant.
    if not lock.wait(2.0):
        return 0
    layout.status_file.unlink(missing_ok=True)
    if os.fork() != 0:
        # Nobody waits for the child: the program that started us gets no zombie.
        return 0
    rotate(layout.supervisor_log)
    logging.basicConfig(format="%(asctime)s [%(process)d] %(message)s", level=logging.INFO)
    return Supervisor(orders, lock).run()


if __name__ == "__main__":
    sys.exit(main())
