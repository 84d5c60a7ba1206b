"""Run a slice of the tests on a PostgreSQL in a container.

Uses the Docker that runs, if one does; else, as root, starts one of its own on its own socket, with its own
data, and stops it afterwards.  The image is made here (``image.py``), so no registry is needed.  Arguments
go to pytest.
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
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

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
START_S: Final = 60.0
PR_SET_PDEATHSIG: Final = 1


@contextlib.contextmanager
def daemon() -> Iterator[str]:
    """The address of a Docker daemon."""
    with contextlib.suppress(DockerException), contextlib.closing(docker.from_env()) as client:
        client.ping()
        yield os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock")
        return
    program = shutil.which("dockerd", path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
    if program is None or os.geteuid() != 0:
        raise SystemExit("No Docker answers, and to start one takes root and dockerd (Debian: docker.io).")
    for left in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        if not answers(f"unix://{left}/docker.sock"):
            shutil.rmtree(left, ignore_errors=True)
    directory = Path(tempfile.mkdtemp(prefix=PREFIX))
    address = f"unix://{directory}/docker.sock"
    command = [
        program,
        f"--host={address}",
        f"--data-root={directory}/data",
        f"--exec-root={directory}/exec",
        f"--pidfile={directory}/pid",
        "--storage-driver=vfs",
    ]
    log = directory / "dockerd.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            stdout=output,
            stderr=output,
            env={**os.environ, "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin"},
            start_new_session=True,
            preexec_fn=end_with_us,
        )
    try:
        deadline = time.monotonic() + START_S
        while not answers(address):
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"dockerd does not answer:\n{log.read_text()[-4000:]}")
            time.sleep(0.1)
        yield address
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)
        shutil.rmtree(directory, ignore_errors=True)


def end_with_us() -> None:
    """Let the kernel stop the daemon when this process is killed."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)


def answers(address: str) -> bool:
    try:
        with contextlib.closing(docker.DockerClient(address)) as client:
            return bool(client.ping())
    except (DockerException, OSError):
        return False


def main() -> int:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with daemon() as address, contextlib.closing(docker.DockerClient(address)) as client:
        archive, changes = build()
        client.api.import_image_from_data(archive, repository=IMAGE, tag="latest", changes=list(changes))
        print(f"image {IMAGE}: {len(archive) >> 20} MB, on {address}", flush=True)
        try:
            return subprocess.run(
                [sys.executable, "-m", "pytest", "--postgres=docker", *(sys.argv[1:] or SLICE)],
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
    sys.exit(main())
