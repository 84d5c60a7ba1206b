"""A worker's health and numbers over HTTP: ``/health`` for orchestrators, ``/metrics`` for Prometheus."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import TCPServer
from typing import TYPE_CHECKING, Any, Final

from logstore.errors import ConfigurationError
from logstore.workers import replica_metrics

if TYPE_CHECKING:
    from logstore.workers.worker import Worker

__all__ = ["address", "metrics", "serving"]

_TEXT: Final = "text/plain; version=0.0.4; charset=utf-8"


def address(text: str) -> tuple[str, int]:
    """``[HOST:]PORT``; without a host this machine only."""
    host, _, port = text.rpartition(":")
    if not port.isdecimal() or int(port) > 65535:
        raise ConfigurationError(f"{text!r} is no address: write PORT or HOST:PORT.")
    return host.strip("[]") or "127.0.0.1", int(port)


@contextlib.contextmanager
def serving(worker: Worker, place: tuple[str, int]) -> Iterator[tuple[str, int]]:
    """Answer requests at ``place`` (port 0: a free one) until the end; yields where that is."""

    class Handler(_Handler):
        of = worker

    class Server(_Server):
        address_family = socket.AF_INET6 if ":" in place[0] else socket.AF_INET

    try:
        server = Server(place, Handler)
    except OSError as error:
        raise ConfigurationError(
            f"Nothing can be served at {place[0]}:{place[1]}: {error.strerror}."
        ) from None
    thread = threading.Thread(target=server.serve_forever, args=(0.1,), name="health", daemon=True)
    thread.start()
    try:
        yield server.server_address[0], server.server_address[1]  # type: ignore[misc]
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def server_bind(self) -> None:
        # HTTPServer would ask for its host's name, and wait for an answer.
        TCPServer.server_bind(self)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Who asks may hang up."""


class _Handler(BaseHTTPRequestHandler):
    of: Worker
    timeout = 5

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path == "/metrics":
            self._answer(200, _TEXT, metrics(self.of))
        elif path in ("/health", "/healthz"):
            well = self.of.healthy()
            words = {"worker": self.of.worker_id, "healthy": well, "running": self.of.running}
            self._answer(200 if well else 503, "application/json", json.dumps(words) + "\n")
        else:
            self._answer(404, "text/plain", "There are /health and /metrics.\n")

    def _answer(self, code: int, kind: str, text: str) -> None:
        body = text.encode()
        self.send_response(code)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Who asks every few seconds is not worth a line."""


def metrics(worker: Worker) -> str:
    """What the worker has done, and who has a copy of the log, in Prometheus' text format."""
    running = set(worker.running)
    lines = [
        "# HELP logstore_worker_healthy The server answers, and the log fits this release.",
        "# TYPE logstore_worker_healthy gauge",
        f"logstore_worker_healthy {int(worker.healthy())}",
    ]
    tallies = sorted(worker.tallies.items())
    for name, kind, doc, values in (
        (
            "job_running",
            "gauge",
            "The job runs in this worker.",
            [(n, int(n in running)) for n, _ in tallies],
        ),
        ("job_runs_total", "counter", "Runs of the job by this worker.", [(n, t.runs) for n, t in tallies]),
        ("job_failures_total", "counter", "Runs that failed.", [(n, t.failures) for n, t in tallies]),
        ("job_seconds_total", "counter", "Time in runs.", [(n, round(t.seconds, 3)) for n, t in tallies]),
        (
            "job_last_success_timestamp_seconds",
            "gauge",
            "When a run by this worker last succeeded; 0: never.",
            [(n, round(t.succeeded_at, 3)) for n, t in tallies],
        ),
    ):
        lines += [f"# HELP logstore_{name} {doc}", f"# TYPE logstore_{name} {kind}"]
        lines += [f'logstore_{name}{{job="{job}"}} {value}' for job, value in values]
    lines += [
        "# HELP logstore_job_result_total The numbers of all results of this worker, added up.",
        "# TYPE logstore_job_result_total counter",
    ]
    lines += [
        f'logstore_job_result_total{{job="{job}",what="{what}"}} {total:g}'
        for job, tally in tallies
        for what, total in sorted(tally.totals.items())
    ]
    if worker.healthy():
        lines += replica_metrics.lines(worker.dsn, worker.schema)
    return "\n".join(lines) + "\n"
