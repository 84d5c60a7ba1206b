"""What can go wrong, one function a fault: it strikes, yields what it has hurt, and heals.

A fault draws everything it chooses from ``chance``, which comes from the seed of the run, before it looks at
the cluster: so a run is the same each time but for who happens to lead.
"""

from __future__ import annotations

import contextlib
import random
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Final, LiteralString

import psutil
import psycopg

from logstore.cluster.layout import ETCD
from logstore.errors import ClusterError
from tests.cluster.crew import Crew
from tests.cluster.relay import CLIENT, HOW, How
from tests.cluster.topology import PATIENCE_S, Topology
from tests.support.programs import eventually

__all__ = ["FAULTS", "Fault", "Scene", "signal_all"]


@dataclass(frozen=True)
class Scene:
    """What faults happen to."""

    top: Topology
    crew: Crew


Body = Callable[[Scene, random.Random], Iterator[str]]


@dataclass(frozen=True)
class Fault:
    body: Body
    weight: int
    hold_s: tuple[float, float]
    """For how long it lasts, at least and at most."""


FAULTS: Final[dict[str, Fault]] = {}


CANCEL: Final = "SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE wait_event = 'SyncRep'"
TERMINATE: Final = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE wait_event = 'SyncRep'"


def fault(weight: int, low_s: float, high_s: float) -> Callable[[Body], Body]:
    def known(body: Body) -> Body:
        FAULTS[body.__name__.replace("_", " ")] = Fault(body, weight, (low_s, high_s))
        return body

    return known


def one_of(names: Iterable[str], draw: float) -> str:
    found = sorted(names)
    return found[int(draw * len(found))]


def signal_all(targets: Iterable[psutil.Process], number: signal.Signals) -> None:
    for process in targets:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(number)


# ---- death


@fault(3, 2, 8)
def leader_killed(scene: Scene, chance: random.Random) -> Iterator[str]:
    """kill -9 of Patroni and PostgreSQL at once; whoever started them says so to etcd."""
    yield from _killed(scene, scene.top.leader())


@fault(2, 2, 8)
def follower_killed(scene: Scene, chance: random.Random) -> Iterator[str]:
    draw = chance.random()
    yield from _killed(scene, one_of(scene.top.followers(), draw))


@fault(1, 4, 8)
def etcd_killed(scene: Scene, chance: random.Random) -> Iterator[str]:
    yield from _killed(scene, ETCD)


def _killed(scene: Scene, name: str) -> Iterator[str]:
    with contextlib.suppress(ClusterError):  # it is dead already
        scene.top.cluster.kill(name)
    yield name
    scene.top.layout.place(name).held.unlink(missing_ok=True)


@fault(2, 0, 1)
def postmaster_killed(scene: Scene, chance: random.Random) -> Iterator[str]:
    """kill -9 of PostgreSQL alone: its Patroni sees it."""
    leads, draw = chance.random() < 0.5, chance.random()
    name = scene.top.leader() if leads else one_of(scene.top.followers(), draw)
    signal_all(scene.top.postmaster(name), signal.SIGKILL)
    yield f"{name} ({'leader' if leads else 'follower'})"


@fault(2, 0, 1)
def walreceiver_killed(scene: Scene, chance: random.Random) -> Iterator[str]:
    draw = chance.random()
    name = one_of(scene.top.followers(), draw)
    signal_all(scene.top.walreceiver(name), signal.SIGKILL)
    yield name


@fault(2, 1, 3)
def patroni_killed(scene: Scene, chance: random.Random) -> Iterator[str]:
    draw = chance.random()
    name = one_of(scene.top.members, draw)
    signal_all(scene.top.patroni(name), signal.SIGKILL)
    yield name


@fault(1, 0, 1)
def backend_killed(scene: Scene, chance: random.Random) -> Iterator[str]:
    """kill -9 of one of the leader's backends: PostgreSQL does not restart by itself after that."""
    draw = chance.random()
    name = scene.top.leader()
    with scene.top.superuser(name) as session:
        rows = session.execute(
            "SELECT pid FROM pg_stat_activity WHERE backend_type = 'client backend'"
            " AND usename = 'logstore' ORDER BY pid"
        ).fetchall()
    if rows:
        (pid,) = rows[int(draw * len(rows))]
        with contextlib.suppress(psutil.NoSuchProcess):
            psutil.Process(pid).kill()
    yield name


# ---- standing still


@fault(2, 3, 30)
def leader_stopped(scene: Scene, chance: random.Random) -> Iterator[str]:
    """SIGSTOP of all its processes: half of the time until after its lease has ended."""
    name = scene.top.leader()
    yield from _stopped(name, scene.top.everything(name))


@fault(2, 2, 8)
def follower_stopped(scene: Scene, chance: random.Random) -> Iterator[str]:
    draw = chance.random()
    name = one_of(scene.top.followers(), draw)
    yield from _stopped(name, scene.top.everything(name))


@fault(2, 2, 6)
def walreceiver_stopped(scene: Scene, chance: random.Random) -> Iterator[str]:
    """Of one follower, or of both: nothing is replicated then."""
    both, draw = chance.random() < 0.4, chance.random()
    names = scene.top.followers()
    if not both:
        names = [one_of(names, draw)]
    stopped = [process for name in names for process in scene.top.walreceiver(name)]
    yield from _stopped(" and ".join(names), stopped)


@fault(2, 3, 28)
def patroni_stopped(scene: Scene, chance: random.Random) -> Iterator[str]:
    """A PostgreSQL that leads, and whose Patroni does not know that its lease has ended."""
    leads, draw = chance.random() < 0.6, chance.random()
    name = scene.top.leader() if leads else one_of(scene.top.followers(), draw)
    yield from _stopped(name, scene.top.patroni(name))


@fault(1, 3, 10)
def etcd_stopped(scene: Scene, chance: random.Random) -> Iterator[str]:
    yield from _stopped(ETCD, scene.top.etcd())


def _stopped(name: str, stopped: list[psutil.Process]) -> Iterator[str]:
    signal_all(stopped, signal.SIGSTOP)
    try:
        yield name
    finally:
        signal_all(stopped, signal.SIGCONT)


# ---- replication


@fault(2, 2, 8)
def upstream_misdirected(scene: Scene, chance: random.Random) -> Iterator[str]:
    """A follower's primary_conninfo names a port where nobody is."""
    draw = chance.random()
    name = one_of(scene.top.followers(), draw)
    with scene.top.superuser(name) as session:
        session.execute("ALTER SYSTEM SET primary_conninfo = 'host=127.0.0.1 port=1'")
        session.execute("SELECT pg_reload_conf()")
    yield name
    _at_last(scene, name, "ALTER SYSTEM RESET primary_conninfo", "SELECT pg_reload_conf()")


@fault(2, 2, 8)
def replay_paused(scene: Scene, chance: random.Random) -> Iterator[str]:
    draw = chance.random()
    name = one_of(scene.top.followers(), draw)
    with scene.top.superuser(name) as session:
        session.execute("SELECT pg_wal_replay_pause()")
    yield name
    _at_last(scene, name, "SELECT CASE WHEN pg_is_in_recovery() THEN pg_wal_replay_resume() END")


def _at_last(scene: Scene, name: str, *statements: str) -> None:
    """Say it to the member, as soon as it listens."""

    def said() -> bool:
        try:
            with scene.top.superuser(name) as session:
                for statement in statements:
                    session.execute(statement.encode())
        except psycopg.Error:
            return False
        return True

    eventually(said, f"{name} listens", PATIENCE_S)


# ---- the network


@fault(2, 2, 26)
def leader_isolated(scene: Scene, chance: random.Random) -> Iterator[str]:
    """From its followers, from etcd and from all clients."""
    how = chance.choice(HOW)
    name = scene.top.leader()
    yield from _cut(scene, scene.top.cut_off(name), how, name)


@fault(2, 2, 26)
def leader_cut_from_members(scene: Scene, chance: random.Random) -> Iterator[str]:
    """Clients reach it, and it reaches etcd or does not."""
    how, etcd = chance.choice(HOW), chance.random() < 0.5
    name = scene.top.leader()
    pairs = [pair for pair in scene.top.cut_off(name) if pair[1] != CLIENT and (etcd or pair[1] != ETCD)]
    yield from _cut(scene, pairs, how, name + (" and etcd" if etcd else ""))


@fault(2, 2, 8)
def members_cut(scene: Scene, chance: random.Random) -> Iterator[str]:
    """Any two of them."""
    how, draw = chance.choice(HOW), chance.random()
    names = [name for name in scene.top.members if name != one_of(scene.top.members, draw)]
    yield from _cut(scene, [(names[0], names[1])], how, " and ".join(names))


@fault(2, 2, 10)
def clients_cut_from_leader(scene: Scene, chance: random.Random) -> Iterator[str]:
    how = chance.choice(HOW)
    name = scene.top.leader()
    yield from _cut(scene, [(CLIENT, name)], how, name)


@fault(1, 2, 8)
def clients_cut_from_follower(scene: Scene, chance: random.Random) -> Iterator[str]:
    how, draw = chance.choice(HOW), chance.random()
    name = one_of(scene.top.followers(), draw)
    yield from _cut(scene, [(CLIENT, name)], how, name)


@fault(2, 3, 15)
def etcd_cut(scene: Scene, chance: random.Random) -> Iterator[str]:
    """From one member, or from all."""
    how, everybody, draw = chance.choice(HOW), chance.random() < 0.4, chance.random()
    names = list(scene.top.members) if everybody else [one_of(scene.top.members, draw)]
    yield from _cut(scene, [(name, ETCD) for name in names], how, " and ".join(names))


def _cut(scene: Scene, pairs: list[tuple[str, str]], how: How, name: str) -> Iterator[str]:
    scene.top.relay.cut(pairs, how)
    yield f"{name}, {how}"
    scene.top.relay.heal()


# ---- waits for a follower


@fault(2, 1, 3)
def waits_cancelled(scene: Scene, chance: random.Random) -> Iterator[str]:
    yield from _waits_ended(scene, CANCEL, chance.choice(HOW), then_killed=False)


@fault(2, 1, 3)
def waits_terminated(scene: Scene, chance: random.Random) -> Iterator[str]:
    yield from _waits_ended(scene, TERMINATE, chance.choice(HOW), then_killed=False)


@fault(3, 1, 3)
def waits_cancelled_and_leader_killed(scene: Scene, chance: random.Random) -> Iterator[str]:
    """What became visible without being replicated is lost: nobody may have been told, or given, any."""
    # What a silent network still holds would get there in the end.
    yield from _waits_ended(scene, CANCEL, "reset", then_killed=True)


def _waits_ended(scene: Scene, end: LiteralString, how: How, *, then_killed: bool) -> Iterator[str]:
    """No follower gets anything, and whoever waits for one is told to stop waiting, again and again."""
    leader = scene.top.leader()
    pairs = [pair for pair in scene.top.cut_off(leader) if pair[1] not in (CLIENT, ETCD)]
    done = threading.Event()

    def end_waits() -> None:
        with contextlib.suppress(psycopg.Error), scene.top.superuser(leader) as session:
            while not done.wait(0.05):
                session.execute(end)

    # A Patroni that lost its followers says so in etcd, and then none of them may take over.
    patroni = scene.top.patroni(leader) if then_killed else []
    signal_all(patroni, signal.SIGSTOP)
    scene.top.relay.cut(pairs, how)
    thread = threading.Thread(target=end_waits)
    thread.start()
    try:
        yield leader + (", killed" if then_killed else "")
        if then_killed:
            with contextlib.suppress(ClusterError):
                scene.top.cluster.kill(leader)
    finally:
        done.set()
        thread.join()
        scene.top.relay.heal()
        signal_all(patroni, signal.SIGCONT)
    if then_killed:
        with contextlib.suppress(AssertionError):
            eventually(lambda: any(each != leader for each in scene.top.leaders()), "another leads", 30)
        scene.top.layout.place(leader).held.unlink(missing_ok=True)


# ---- who leads


@fault(2, 0, 1)
def switchover(scene: Scene, chance: random.Random) -> Iterator[str]:
    named, draw = chance.random() < 0.5, chance.random()
    eventually(scene.top.whole, "all are well", PATIENCE_S)
    to = one_of(scene.top.followers(), draw) if named else None
    try:
        before, after = scene.top.cluster.switchover(to)
    except ClusterError as error:
        yield f"refused: {error.message}"
    else:
        yield f"{before} to {after}" + (" by name" if named else "")


@fault(2, 2, 5)
def lagging_follower_promoted(scene: Scene, chance: random.Random) -> Iterator[str]:
    """One follower gets nothing for a while, then it is told to lead, past Patroni and while another does.

    Patroni finds out and brings it back; clients must not take it for the leader for long, and what they
    write there is not to be called safe.
    """
    draw, how = chance.random(), chance.choice(HOW)
    name = one_of(scene.top.followers(), draw)
    scene.top.relay.cut([(name, scene.top.leader())], how)
    time.sleep(1.0)
    with scene.top.superuser(name) as session:
        session.execute("SELECT pg_promote(false)")
    scene.top.relay.heal()
    yield name


@fault(2, 2, 6)
def lagging_follower_left(scene: Scene, chance: random.Random) -> Iterator[str]:
    """One follower gets nothing, then the leader dies: only the other one may follow it."""
    draw, how = chance.random(), chance.choice(HOW)
    leader = scene.top.leader()
    name = one_of(scene.top.followers(), draw)
    scene.top.relay.cut([(name, leader)], how)
    time.sleep(1.0)
    with contextlib.suppress(ClusterError):
        scene.top.cluster.kill(leader)
    yield f"{name} lags, {leader} killed"
    scene.top.relay.heal()
    scene.top.layout.place(leader).held.unlink(missing_ok=True)


# ---- clients


@fault(2, 1, 4)
def clocks_stepped(scene: Scene, chance: random.Random) -> Iterator[str]:
    """The wall clocks of all clients jump, and jump back."""
    seconds = chance.choice([-86_400.0, -600.0, -1.0, 1.0, 600.0, 3000.0])
    scene.crew.step_clocks(seconds)
    yield f"{seconds:+.0f} s"
    scene.crew.step_clocks(0)
