"""Kill the process that mirrors, again and again, while the source is written to, and compare the two logs.

``python -m tests.support.mirror_killed --kills 40 --seed 1`` makes two logs of its own.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import signal
import subprocess
import sys
import threading
import time

from logstore.workers.mirroring import Link
from tests.support import servers
from tests.support.appender import Appender
from tests.support.mirrored import Both

__all__ = ["hurt"]

PROGRAM = """
import sys
from logstore.workers.mirroring import Link, Mirror
with Mirror(Link(*sys.argv[1:3]), parallel=3) as mirror:
    print("begun", flush=True)
    mirror.cycle()
    print("copied", flush=True)
    while True:
        mirror.cycle()
"""
PARTITIONS = 3


def hurt(both: Both, kills: int, seed: int, *, at_once: int = 1) -> int:
    """Kill ``kills`` times, each process a moment after it began; answer how many records there are."""
    rng = random.Random(seed)
    both.create("t", PARTITIONS, segment_bytes="200000", retention_ms="-1")
    written = 0
    stop = threading.Event()
    appender = Appender(both.link.source)

    def write() -> None:
        nonlocal written
        while not stop.is_set():
            partition = written % PARTITIONS
            appender.append(
                "t", [b"%d" % written, None, b"x" * 500], partition, keys=[b"k", None, b""], wake=False
            )
            written += 1
            if written % 50 == 0:
                both.commit("g", "t", partition, written // PARTITIONS * 3 - 3)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        while kills > 0:
            with contextlib.ExitStack() as stack:
                children = [stack.enter_context(_started(both.link)) for _ in range(at_once)]
                for child in children:
                    assert child.stdout is not None
                    assert child.stdout.readline() == b"begun\n"
                    # Every other one gets somewhere.
                    if kills % 2:
                        assert child.stdout.readline() == b"copied\n"
                time.sleep(rng.random() * 0.2)
                for child in children:
                    child.send_signal(signal.SIGKILL)
                    child.wait()
                    kills -= 1
    finally:
        stop.set()
        writer.join()
        appender.connection.close()
    ahead = both.target.execute(
        "SELECT o.* FROM group_offset o JOIN topic t USING (topic_id) JOIN partitions p"
        " ON p.topic = t.name AND p.partition = o.partition WHERE o.committed_offset > p.high_watermark"
    ).fetchall()
    assert ahead == []
    assert both.target.execute("SELECT count(*) FROM records").fetchone() != (0,)
    both.cycle()
    assert both.differences() == []
    assert both.findings() == []
    return 3 * written


def _started(link: Link) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, link.source, link.target], stdout=subprocess.PIPE, stderr=None
    )


def main() -> None:
    """Hurt two logs of our own, on two servers."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=40)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    with servers.embedded() as one, servers.embedded(stranger=True) as other:
        for at_once in (1, 2):
            with Both(Link(one.create(), other.create())) as both:
                records = hurt(both, arguments.kills, arguments.seed, at_once=at_once)
            print(
                f"{arguments.kills} kills, {at_once} at once, seed {arguments.seed}: "
                f"{records} records, all the same"
            )


if __name__ == "__main__":
    main()
