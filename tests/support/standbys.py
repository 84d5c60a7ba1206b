"""A primary with real hot standbys, without Patroni: a second or two, on sockets in a directory of its own.

Data directories are copies of one that was initialised, migrated and stopped once a run: copying a
stopped server is a base backup.  Nobody but the test promotes, kills or repairs anything.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, Final

import psutil
import psycopg
from psycopg import sql

from logstore import migrations
from logstore.embedded import asroot, binaries
from logstore.embedded.home import make_dsn
from tests.support import prepared
from tests.support.programs import eventually, lives
from tests.support.servers import MEMORY, ROOM

__all__ = ["Group", "Node", "standbys", "usurped"]

DATABASE: Final = "log"
NOWHERE: Final = "host=127.0.0.1 port=9 connect_timeout=1"
_IPC_RMID: Final = 0
_libc: Final = ctypes.CDLL(None)
_SETTINGS: Final = """
# Tests crash servers, not the machine.
fsync = off
full_page_writes = off
shared_buffers = 16MB
min_wal_size = 32MB
max_wal_size = 256MB
max_connections = 60
max_prepared_transactions = 4
listen_addresses = ''
restart_after_crash = off
# In the data directory, and gone with it.
dynamic_shared_memory_type = mmap
wal_retrieve_retry_interval = 50ms
wal_receiver_status_interval = 1s
jit = off
lc_messages = C
"""


class Node:
    """One server of a group."""

    def __init__(self, name: str, home: Path) -> None:
        self.name = name
        self.home = home
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def data(self) -> Path:
        return self.home / "data"

    @property
    def dsn(self) -> str:
        """Of the log's owner, who is no superuser."""
        return make_dsn(str(self.home), "logstore", DATABASE)

    @property
    def superuser_dsn(self) -> str:
        return make_dsn(str(self.home), "postgres", DATABASE)

    def connect(self, **options: str) -> psycopg.Connection[tuple[Any, ...]]:
        """A session of the log's owner; each statement commits, and the log needs no schema's name."""
        settings = " ".join(
            f"-c {name}={text}" for name, text in {"search_path": "logstore", **options}.items()
        )
        return psycopg.connect(self.dsn, autocommit=True, options=settings)

    def execute(self, text: str, *arguments: object) -> list[tuple[Any, ...]]:
        """What a superuser's statement answers."""
        with psycopg.connect(self.superuser_dsn, autocommit=True) as connection:
            cursor = connection.execute(text, arguments or None)
            return cursor.fetchall() if cursor.description else []

    def start(self) -> None:
        """Start it and wait until it can be read."""
        with (self.home / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                [*_as_somebody(self.home), _programs().postgres, "-D", self.data],
                env=_programs().environment(),
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        eventually(self.answers, f"{self.name} answers")

    def answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, (self.home / "server.log").read_text()[-2000:]
        try:
            self.execute("SELECT 1")
        except psycopg.OperationalError:
            return False
        return True

    def stop(self) -> None:
        """Stop it in order (a fast shutdown)."""
        self._end(signal.SIGINT)

    def kill(self) -> None:
        """kill -9 every process of it."""
        if self._process is not None:
            processes = self.processes()
            for process in processes:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            self._process.wait()
            # Whose children they are now may take seconds to notice; they are dead long before.
            eventually(lambda: not any(lives(process.pid) for process in processes), "they are dead")
            self._process = None

    def bury(self) -> None:
        """Kill it for good: what the kernel keeps for whoever starts it again is given back.

        A machine has room for 4,096 such segments, and starts no PostgreSQL any more when they are taken.
        """
        self.kill()
        with contextlib.suppress(FileNotFoundError, IndexError):
            segment = (self.data / "postmaster.pid").read_text().splitlines()[6].split()[1]
            _libc.shmctl(int(segment), _IPC_RMID, None)

    def restart(self) -> None:
        """Crash it, and let it recover."""
        self.kill()
        self.start()

    def processes(self) -> list[psutil.Process]:
        """The postmaster and its children."""
        if self._process is None:
            return []
        with contextlib.suppress(psutil.NoSuchProcess):
            postmaster = psutil.Process(self._process.pid)
            return [postmaster, *postmaster.children(recursive=True)]
        return []

    def promote(self) -> None:
        """Make a standby a primary, and wait until it is one."""
        assert self.execute("SELECT pg_promote(true, 30)") == [(True,)]

    def set(self, **settings: str) -> None:
        """ALTER SYSTEM, and wait until new sessions have it; older ones have it a statement or two later."""
        for name, value in settings.items():
            statement = sql.SQL("ALTER SYSTEM SET {} = {}").format(sql.Identifier(name), sql.Literal(value))
            with psycopg.connect(self.superuser_dsn, autocommit=True) as connection:
                connection.execute(statement)
        self.execute("SELECT pg_reload_conf()")
        for name, value in settings.items():
            eventually(
                lambda name=name, value=value: self.execute(f"SHOW {name}") == [(value,)],  # type: ignore[misc]
                f"{self.name} has {name}",
            )

    def receiver(self) -> int | None:
        """The process number of its walreceiver, while it has one."""
        rows = self.execute("SELECT pid FROM pg_stat_wal_receiver")
        return int(rows[0][0]) if rows else None

    def _end(self, number: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGCONT)
            self._process.send_signal(number)
            self._process.wait(60)
            self._process = None


class Group:
    """A leader and its followers."""

    def __init__(self, leader: Node, followers: list[Node]) -> None:
        self.leader = leader
        self.followers = followers

    @property
    def nodes(self) -> list[Node]:
        return [self.leader, *self.followers]

    def node(self, name: str) -> Node:
        return next(node for node in self.nodes if node.name == name)

    def synchronous(self, names: str) -> None:
        """Set ``synchronous_standby_names``, and wait until the leader sees its standbys so."""
        self.leader.set(synchronous_standby_names=names)
        if names:
            eventually(
                lambda: (
                    self.leader.execute(
                        "SELECT count(*) FROM pg_stat_replication WHERE sync_state IN ('sync', 'quorum')"
                    )
                    != [(0,)]
                ),
                "a standby is synchronous",
            )

    def follow(self, follower: Node, leader: Node | None = None) -> None:
        """Make ``follower`` stream from the leader (again), and wait until it does."""
        source = leader or self.leader
        follower.set(primary_conninfo=_conninfo(source, follower))
        eventually(lambda: self.streams(follower, source), f"{follower.name} streams from {source.name}")

    def streams(self, follower: Node, leader: Node | None = None) -> bool:
        return (leader or self.leader).execute(
            "SELECT state FROM pg_stat_replication WHERE application_name = %s", follower.name
        ) == [("streaming",)]

    def cut_off(self, follower: Node) -> None:
        """Point ``follower`` at a dead port: nothing reaches it any more, not even what is on its way."""
        follower.set(primary_conninfo=NOWHERE)
        eventually(lambda: follower.receiver() is None, f"{follower.name} receives nothing")
        eventually(
            lambda: (
                not self.leader.execute(
                    "SELECT 1 FROM pg_stat_replication WHERE application_name = %s", follower.name
                )
            ),
            f"{self.leader.name} has lost {follower.name}",
        )

    def caught_up(self, follower: Node) -> None:
        """Wait until ``follower`` has replayed what the leader has written by now."""
        (lsn,) = self.leader.execute("SELECT pg_current_wal_insert_lsn()")[0]
        # What is not flushed is not sent.
        self.leader.execute("SELECT txid_current()")
        eventually(
            lambda: follower.execute("SELECT pg_last_wal_replay_lsn() >= %s::pg_lsn", lsn) == [(True,)],
            f"{follower.name} has replayed {lsn}",
        )

    def fail_over(self, follower: Node) -> None:
        """Kill the leader and promote ``follower``; the others follow it only when they are told to."""
        self.leader.kill()
        follower.promote()
        old = self.leader
        self.leader = follower
        self.followers = [node for node in [*self.followers, old] if node is not follower]


@contextlib.contextmanager
def standbys(count: int, synchronous: str = "") -> Iterator[Group]:
    """A leader ``p`` and ``count`` followers ``s1``, ``s2``, ...; gone, with all their data, afterwards."""
    home = _directory()
    group = Group(
        Node("p", home / "p"), [Node(f"s{number}", home / f"s{number}") for number in range(1, count + 1)]
    )
    made = group.nodes
    try:
        _give(home)
        for node in made:
            _copy(_template(), node.home)
        group.leader.start()
        for follower in group.followers:
            (follower.data / "standby.signal").touch()
            _give(follower.data / "standby.signal")
            with (follower.data / "postgresql.auto.conf").open("a") as file:
                file.write(f"primary_conninfo = '{_conninfo(group.leader, follower)}'\n")
            follower.start()
        for follower in group.followers:
            eventually(lambda f=follower: group.streams(f), f"{follower.name} streams")  # type: ignore[misc]
        if synchronous:
            group.synchronous(synchronous)
        yield group
    finally:
        for node in made:
            node.bury()
        shutil.rmtree(home, ignore_errors=True)


@contextlib.contextmanager
def usurped(node: Node, furnish: Callable[[Node], None]) -> Iterator[None]:
    """A standby of another cluster in the place of ``node``, which does not run; ``furnish`` can write there
    before it is one.
    """
    own = node.data.rename(node.home / "own")
    try:
        shutil.copytree(_template() / "data", node.data)
        shutil.copy(own / "postgresql.conf", node.data)
        with (node.data / "postgresql.conf").open("a") as file:
            file.write("log_connections = on\n")
        _estrange(node.data)
        _give(node.data)
        subprocess.run(
            [*_as_somebody(node.home), _programs().directory / "pg_resetwal", "-f", "-D", node.data],
            env=_programs().environment(),
            cwd="/",
            check=True,
            capture_output=True,
        )
        node.start()
        furnish(node)
        node.stop()
        (node.data / "standby.signal").touch()
        _give(node.data / "standby.signal")
        node.start()
        yield
    finally:
        node.bury()
        shutil.rmtree(node.data)
        own.rename(node.data)


def _estrange(data: Path) -> None:
    """Give a stopped server another system identifier: the first eight bytes of its control file, which ends
    with the CRC-32C of what comes before.
    """
    control = data / "global" / "pg_control"
    content = bytearray(control.read_bytes())
    end = next(
        end
        for end in range(200, 1000, 4)
        if _crc32c(content[:end]) == int.from_bytes(content[end : end + 4], sys.byteorder)
    )
    content[0] ^= 1
    content[end : end + 4] = _crc32c(content[:end]).to_bytes(4, sys.byteorder)
    control.write_bytes(content)


def _crc32c(content: bytes | bytearray) -> int:
    crc = 0xFFFFFFFF
    for byte in content:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def _conninfo(leader: Node, follower: Node) -> str:
    return f"host={leader.home} port=5432 user=postgres application_name={follower.name}"


def _directory() -> Path:
    """A new directory, in memory if there is room; those of processes that were killed are removed."""
    place = (
        MEMORY if MEMORY.is_dir() and shutil.disk_usage(MEMORY).free > ROOM else Path(tempfile.gettempdir())
    )
    for left in place.glob("logstore-standbys-*-*"):
        owner = left.name.split("-")[2]
        if owner.isdecimal() and not lives(int(owner)):
            shutil.rmtree(left, ignore_errors=True)
    return Path(tempfile.mkdtemp(prefix=f"logstore-standbys-{os.getpid()}-", dir=place))


@cache
def _programs() -> binaries.Binaries:
    return binaries.find()


@cache
def _identity() -> asroot.Identity:
    return asroot.choose(reach=(Path(tempfile.gettempdir()), _programs().directory))


def _as_somebody(home: Path) -> list[str | Path]:
    """What goes before a command so that PostgreSQL, which refuses root, runs it; it stays one process."""
    who = _identity()
    dies_with_us: list[str | Path] = ["setpriv", "--pdeathsig", "INT"] if shutil.which("setpriv") else []
    if who.kind == "namespace":
        return ["unshare", "--user", f"--map-user={who.uid}", f"--map-group={who.gid}", *dies_with_us]
    if who.kind == "account":
        return ["setpriv", f"--reuid={who.uid}", f"--regid={who.gid}", "--clear-groups", *dies_with_us[1:]]
    return dies_with_us


def _give(path: Path) -> None:
    _identity().give(path)
    for inside in path.rglob("*") if path.is_dir() else ():
        _identity().give(inside)


def _copy(source: Path, home: Path) -> None:
    shutil.copytree(source, home)
    _give(home)
    conf = home / "data" / "postgresql.conf"
    conf.write_text(f"{_SETTINGS}unix_socket_directories = '{home}'\ncluster_name = '{home.name}'\n")


@cache
def _template() -> Path:
    """A directory with a stopped server that has an empty log; made once a run, or once a process."""
    import atexit

    # Another account does not reach what all processes of a run share.
    if _identity().kind != "account" and (shared := prepared.once("standbys", _make)):
        return shared
    home = _directory()
    atexit.register(shutil.rmtree, home, ignore_errors=True)
    _make(home)
    return home


def _make(home: Path) -> None:
    _give(home)
    node = Node("p", home)
    subprocess.run(
        [
            *_as_somebody(home),
            _programs().initdb,
            *("-D", node.data, "-U", "postgres", "-A", "trust", "-N", "-E", "UTF8", "--no-locale"),
        ],
        env=_programs().environment(),
        cwd="/",
        check=True,
        capture_output=True,
    )
    (node.data / "postgresql.conf").write_text(f"{_SETTINGS}unix_socket_directories = '{home}'\n")
    # The log's database is not there yet.
    with contextlib.ExitStack() as stack:
        stack.callback(node.bury)
        with (home / "server.log").open("ab") as log:
            node._process = subprocess.Popen(
                [*_as_somebody(home), _programs().postgres, "-D", node.data],
                env=_programs().environment(),
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        dsn = make_dsn(str(home), "postgres", "postgres")

        def furnished() -> bool:
            try:
                with psycopg.connect(dsn, autocommit=True) as connection:
                    connection.execute("CREATE ROLE logstore LOGIN CREATEDB IN ROLE pg_monitor")
                    connection.execute(f"CREATE DATABASE {DATABASE} OWNER logstore")
            except psycopg.OperationalError:
                return False
            return True

        eventually(furnished, "the template answers")
        migrations.upgrade(node.dsn)
        node.stop()
    (home / "server.log").unlink()
    for socket in home.glob(".s.*"):
        socket.unlink()
