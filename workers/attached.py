"""The worker process that belongs to an embedded server: ``python -m logstore.workers.attached ORDERS``.

It works for every log of the server, ends when its standard input does, however its parent died, and writes a
byte to its standard output at each tick, so that its parent sees that it lives.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import threading
from typing import Any

from psycopg.conninfo import make_conninfo

from logstore.workers.jobs import JOBS
from logstore.workers.journal import Journal
from logstore.workers.stopping import stopped_by
from logstore.workers.worker import Worker

__all__ = ["main"]


def main() -> None:
    """Work until told to stop, or left alone."""
    orders = json.loads(sys.argv[1])
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with contextlib.suppress(OSError):
        os.nice(5)
    with stopped_by(signal.SIGTERM) as stop:
        threading.Thread(target=_wait_for_the_end, args=[stop], daemon=True).start()
        _work(orders, stop)
    sys.stderr.flush()
    # A thread that is stuck must not keep the process.
    os._exit(0)


def _work(orders: dict[str, Any], stop: threading.Event) -> None:
    dsn = make_conninfo(orders["dsn"], application_name=orders["name"])
    workers = [
        Worker(dsn, schema, JOBS, journal=Journal(), stop=stop, on_tick=_tick) for schema in orders["schemas"]
    ]
    others = [threading.Thread(target=worker.run) for worker in workers[1:]]
    for thread in others:
        thread.start()
    workers[0].run()
    for thread in others:
        thread.join()


def _wait_for_the_end(stop: threading.Event) -> None:
    while os.read(0, 4096):
        pass
    stop.set()


def _tick() -> None:
    # Nobody reads it any more when the parent is gone.
    with contextlib.suppress(OSError):
        os.write(1, b".")


if __name__ == "__main__":
    main()
