"""Clears a cluster when the program that made it ends, however it ends.

``python -m tests.cluster.guardian <home>``: waits for the end of its input, which is the end of that program
even if it was killed, then stops the cluster in ``home`` and removes the directory.
"""

from __future__ import annotations

import contextlib
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from logstore.cluster import LocalCluster
from logstore.cluster.processes import of
from tests.support.programs import REPOSITORY

__all__ = ["guarded"]


@contextlib.contextmanager
def guarded(home: Path) -> Iterator[None]:
    """What is in ``home`` is gone afterwards, whatever becomes of this process."""
    process = subprocess.Popen(
        [sys.executable, "-m", __name__, str(home)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        cwd=REPOSITORY,
        start_new_session=True,
    )
    try:
        yield
    finally:
        process.communicate()


def main() -> int:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    home = Path(sys.argv[1])
    sys.stdin.read()
    cluster = LocalCluster(home)
    plan = cluster.layout.read_plan()
    if plan is not None:
        for name in (*plan.members, "etcd"):
            for process in of(cluster.layout.place(name)):
                with contextlib.suppress(Exception):
                    process.resume()
    cluster.down(remove=True)
    shutil.rmtree(home, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
