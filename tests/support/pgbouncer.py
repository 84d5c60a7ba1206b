"""A PgBouncer in transaction mode in front of a server."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import parse_qs, quote, urlsplit, urlunsplit

import psycopg
import pytest

from tests.support.servers import PREFIX, Server

# PgBouncer refuses to run as root, as PostgreSQL does; and it must not outlive us.
_LAUNCH = """
import ctypes, os, pathlib, sys
from logstore.embedded import asroot
from logstore.embedded.home import Lock
# Free when PgBouncer is dead: then the directory may be removed.
lock = Lock(pathlib.Path(sys.argv[1]).with_name("supervisor.lock"), inheritable=True)
lock.take()
asroot.choose(reach=[pathlib.Path(sys.argv[1]).parent]).enter()
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, 15, 0, 0, 0)
os.execv(sys.argv[2], [sys.argv[2], sys.argv[1]])
"""


class PooledServer(Server):
    """Databases are made on the server itself and reached through PgBouncer."""

    def __init__(self, direct: Server, sockets: Path) -> None:
        parts = urlsplit(direct.dsn)
        pooled = parts._replace(query=f"host={quote(str(sockets), safe='/')}&port=6432")
        super().__init__(urlunsplit(pooled))
        self._direct = direct
        self._pooled = self.dsn

    def create(self, *, migrated: bool = True, like: str = "template1") -> str:
        name = urlsplit(self._direct.create(migrated=migrated, like=like)).path[1:]
        return self.database(name)

    def filled(self, fill: Callable[[str], object]) -> str:
        # PgBouncer would keep a session in it, and then it cannot be copied.
        return self._direct.filled(fill)

    def drop(self, dsn: str) -> None:
        self._direct.drop(dsn)


def find() -> str | None:
    return shutil.which(
        "pgbouncer", path=os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"])
    )


@contextlib.contextmanager
def pgbouncer(server: Server) -> Iterator[Server]:
    """PgBouncer in front of ``server``; skips the test where it is not installed."""
    program = find()
    if program is None:
        pytest.skip("PgBouncer is not installed (Debian: pgbouncer)")
    parts = urlsplit(server.dsn)
    query = parse_qs(parts.query)
    host = query["host"][0] if "host" in query else parts.hostname
    port = query["port"][0] if "port" in query else parts.port or 5432
    directory = Path(tempfile.mkdtemp(prefix=f"{PREFIX}pool-"))
    (directory / "users.txt").write_text(f'"{parts.username}" "{parts.password or ""}"\n')
    (directory / "pgbouncer.ini").write_text(
        f"""[databases]
* = host={host} port={port}
[pgbouncer]
unix_socket_dir = {directory}
listen_port = 6432
auth_type = trust
auth_file = {directory}/users.txt
pool_mode = transaction
max_client_conn = 500
default_pool_size = 10
server_check_delay = 0
ignore_startup_parameters = extra_float_digits
"""
    )
    with (directory / "pgbouncer.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", _LAUNCH, str(directory / "pgbouncer.ini"), program],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    try:
        pooled = PooledServer(server, directory)
        deadline = time.monotonic() + 20
        while True:
            try:
                psycopg.connect(pooled.dsn).close()
                break
            except psycopg.OperationalError as exc:
                if process.poll() is not None or time.monotonic() > deadline:
                    words = (directory / "pgbouncer.log").read_text()
                    raise RuntimeError(f"PgBouncer does not answer: {words}") from exc
                time.sleep(0.02)
        yield pooled
    finally:
        process.terminate()
        process.wait(10)
        shutil.rmtree(directory, ignore_errors=True)
