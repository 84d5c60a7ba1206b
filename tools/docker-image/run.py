"""Run a slice of the tests on a PostgreSQL in a container.

Uses the Docker that runs, if one does; else, as root, starts one of its own.  That one, its containers and
the tests live in namespaces of their own (processes, network, mounts) and in one directory: they end with
this process, however it ends, and neither a bridge nor a rule of the firewall nor a mount is left.  The image
is made here (``image.py``), so no registry is needed.  Arguments go to pytest.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NoReturn

import docker
from docker.errors import DockerException
from image import build

IMAGE: Final = "logstore-test-postgres"
SLICE: Final = (
    "tests/sql",
    "tests/conformance/test_admin.py",
    "tests/conformance/test_consumer_reads.py",
    "tests/conformance/test_driver.py",
    "tests/conformance/test_producer_records.py",
)
PREFIX: Final = "logstore-docker-"
INSIDE: Final = "--inside"
CGROUPS: Final = Path("/sys/fs/cgroup")
START_S: Final = 60.0
STOP_S: Final = 60.0
PR_SET_PDEATHSIG: Final = 1
SIOCSIFFLAGS: Final = 0x8914
IFF_UP: Final = 1


def main() -> int:
    signal.signal(signal.SIGTERM, stop)
    if sys.argv[1:2] == [INSIDE]:
        return inside(Path(sys.argv[2]), sys.argv[3:])
    with contextlib.suppress(DockerException), contextlib.closing(docker.from_env()) as client:
        client.ping()
        return run(os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock"), sys.argv[1:])
    if dockerd() is None or os.geteuid() != 0:
        raise SystemExit("No Docker answers, and to start one takes root and dockerd (Debian: docker.io).")
    return outside(sys.argv[1:])


def stop(*_: object) -> NoReturn:
    sys.exit(143)


def dockerd() -> str | None:
    return shutil.which("dockerd", path=path())


def path() -> str:
    return f"{os.environ['PATH']}:/usr/sbin:/sbin"


def outside(arguments: list[str]) -> int:
    """Start this program again in namespaces, and clean up behind it."""
    with directory() as own:
        apart = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc", "--mount", "--net"]
        process = subprocess.Popen(
            [*apart, sys.executable, __file__, INSIDE, str(own), *arguments],
            # Signals reach it from here alone, and once.
            start_new_session=True,
            preexec_fn=end_with_us,
        )
        try:
            return process.wait()
        except (KeyboardInterrupt, SystemExit) as exc:
            number = signal.SIGINT if isinstance(exc, KeyboardInterrupt) else signal.SIGTERM
            for impatient in (signal.SIGINT, signal.SIGTERM):
                signal.signal(impatient, signal.SIG_IGN)
            os.killpg(process.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(2 * STOP_S)
            raise
        finally:
            # With it goes the first process of the namespace, and with that all others.
            process.kill()
            process.wait()


def end_with_us() -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


@contextlib.contextmanager
def directory() -> Iterator[Path]:
    """A directory whose name is a control group's too, and what earlier runs had no time to remove."""
    for left in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        remove(left)
    own = Path(tempfile.mkdtemp(prefix=PREFIX))
    with (own / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            yield own
        finally:
            lock.close()
            remove(own)


def remove(own: Path) -> None:
    """Remove a directory and its control groups, unless its process lives."""
    with contextlib.suppress(FileNotFoundError), (own / "lock").open() as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return
    # Version 1 of control groups has a hierarchy for each resource.
    groups = [found for place in (CGROUPS, *CGROUPS.glob("*")) if (found := place / own.name).is_dir()]
    deadline = time.monotonic() + STOP_S
    for group in (Path(name) for top in groups for name, _, _ in os.walk(top, topdown=False)):
        # The kernel takes a moment to end what was killed.
        while not removed(group) and time.monotonic() < deadline:
            time.sleep(0.05)
    shutil.rmtree(own, ignore_errors=True)


def removed(group: Path) -> bool:
    with contextlib.suppress(OSError):
        group.rmdir()
    return not group.exists()


def inside(own: Path, arguments: list[str]) -> int:
    """Run the tests on a Docker of our own; this is the first process of its namespaces."""
    # Where containerd puts what it shares with its containers.
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", "/run"], check=True)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", IFF_UP))
    with daemon(own) as address:
        return run(address, arguments)


@contextlib.contextmanager
def daemon(own: Path) -> Iterator[str]:
    """The address of a Docker daemon whose everything is in directory ``own``."""
    address = f"unix://{own}/docker.sock"
    command = [
        str(dockerd()),
        f"--host={address}",
        f"--data-root={own}/data",
        f"--exec-root={own}/exec",
        f"--pidfile={own}/pid",
        f"--cgroup-parent=/{own.name}",
        "--exec-opt=native.cgroupdriver=cgroupfs",
        "--storage-driver=vfs",
    ]
    log = own / "dockerd.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            stdout=output,
            stderr=output,
            env={**os.environ, "PATH": path()},
            start_new_session=True,
        )
    try:
        deadline = time.monotonic() + START_S
        while not answers(address):
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"dockerd does not answer:\n{log.read_text()[-4000:]}")
            time.sleep(0.1)
        yield address
    finally:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(STOP_S)


def answers(address: str) -> bool:
    try:
        with contextlib.closing(docker.DockerClient(address)) as client:
            return bool(client.ping())
    except (DockerException, OSError):
        return False


def run(address: str, arguments: list[str]) -> int:
    """Make the image, and run the tests on it."""
    with contextlib.closing(docker.DockerClient(address)) as client:
        archive, changes = build()
        client.api.import_image_from_data(archive, repository=IMAGE, tag="latest", changes=list(changes))
        print(f"image {IMAGE}: {len(archive) >> 20} MB, on {address}", flush=True)
        try:
            return subprocess.run(
                [sys.executable, "-m", "pytest", "--postgres=docker", *(arguments or SLICE)],
                env={
                    **os.environ,
                    "DOCKER_HOST": address,
                    "LOGSTORE_TEST_IMAGE": f"{IMAGE}:latest",
                    # Its image comes from a registry; the containers go with the daemon or with their tests.
                    "TESTCONTAINERS_RYUK_DISABLED": "true",
                },
                check=False,
            ).returncode
        finally:
            client.images.remove(f"{IMAGE}:latest", force=True)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
