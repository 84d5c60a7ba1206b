"""The worker that an embedded server runs by itself: started, watched and stopped by the supervisor."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

import logstore.errors
from logstore.embedded.cluster import rotate
from logstore.embedded.home import WORKER, Home

__all__ = ["Attendant"]

log = logging.getLogger("logstore.embedded.attendant")

SETTLING_S: Final = 1.0
"""The server's first moments belong to whoever started it."""
SILENCE_S: Final = 8.0
"""A worker ticks every two seconds; one that has not for so long hangs, and is replaced."""
LONGEST_PAUSE_S: Final = 60.0
STOP_S: Final = 3.0


class Attendant:
    """Keeps one worker process going for the logs that were noted in ``home``; none while there is no log.

    The process ends by itself when this one does, however it does: its standard input ends then.
    """

    def __init__(self, home: Home) -> None:
        self._home = home
        self._process: subprocess.Popen[bytes] | None = None
        self._schemas: list[str] = []
        self._not_before = time.monotonic() + SETTLING_S
        self._began = self._heard = 0.0
        self._deaths = 0

    def mind(self, dsn: str) -> None:
        """To be called about once a second while the server is up."""
        now = time.monotonic()
        if self._process is not None:
            self._listen(now)
        if self._process is None and now >= self._not_before:
            self._schemas = self._home.logs()
            if self._schemas:
                try:
                    self._start(dsn, now)
                except OSError as exc:
                    log.warning("the worker cannot be started: %s", exc)
                    self._put_off(now)

    def stop(self) -> None:
        """Let the worker finish its step; end it if that takes long."""
        process, self._process = self._process, None
        if process is None:
            return
        process.terminate()
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        self._let_go(process)

    def _listen(self, now: float) -> None:
        process = self._process
        assert process is not None
        assert process.stdout is not None
        if process.poll() is None:
            try:
                if os.read(process.stdout.fileno(), 4096):
                    self._heard = now
            except BlockingIOError:
                pass
            if now - self._heard <= SILENCE_S and self._home.logs() == self._schemas:
                if now - self._began > LONGEST_PAUSE_S:
                    self._deaths = 0
                return
            if now - self._heard <= SILENCE_S:
                log.info("there is another log: the worker begins anew")
                self.stop()
                return
            process.kill()
            process.wait()
        log.warning("the worker ended with %s; see %s", process.returncode, self._home.worker_log)
        self._put_off(now)
        self._process = None
        self._let_go(process)

    def _put_off(self, now: float) -> None:
        """Not again at once: each time later."""
        self._deaths += 1
        self._not_before = now + min(LONGEST_PAUSE_S, 0.5 * 2.0 ** min(self._deaths, 10))

    def _start(self, dsn: str, now: float) -> None:
        env = dict(os.environ)
        package_root = Path(logstore.errors.__file__).parents[1]
        if package_root.name not in ("site-packages", "dist-packages"):
            env["PYTHONPATH"] = os.pathsep.join(filter(None, [str(package_root), env.get("PYTHONPATH")]))
        orders = json.dumps({"dsn": dsn, "schemas": self._schemas, "name": WORKER})
        rotate(self._home.worker_log)
        with self._home.worker_log.open("ab") as errors:
            # By name: this package knows nothing of that one.
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "logstore.workers.attached", orders],
                env=env,
                cwd="/",
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                start_new_session=True,
            )
        assert self._process.stdout is not None
        os.set_blocking(self._process.stdout.fileno(), False)
        # It takes a moment to get going.
        self._began = now
        self._heard = now + SILENCE_S
        log.info("worker %s for %s", self._process.pid, ", ".join(self._schemas))

    def _let_go(self, process: subprocess.Popen[bytes]) -> None:
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                stream.close()
