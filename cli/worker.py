"""``logstore worker``: run the jobs that keep a log in order, say when they are due, see how they do."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TypeVar

import click

from logstore.cli.failures import FAILED, UNAVAILABLE, redact
from logstore.cli.output import Column, print_json, print_rows
from logstore.cli.root import Group, connection_options, output_option, settings
from logstore.cli.timespec import format_time

if TYPE_CHECKING:
    from logstore.workers.schedule import Schedule

__all__ = ["worker"]

F = TypeVar("F", bound=Callable[..., Any])


def _schedule_options(command: F) -> F:
    for option in (
        click.option(
            "--every", "intervals", metavar="JOB=INTERVAL", multiple=True,
            help="Run JOB at this interval: 500ms, 30s, 5m, 1h.  Repeatable.",
        ),
        click.option(
            "--cron", "crons", metavar="JOB=EXPRESSION", multiple=True,
            help="Run JOB as a crontab line says, in UTC: 'retention=*/5 * * * *'.  Repeatable.",
        ),
    ):  # fmt: skip
        command = option(command)
    return command


@click.group(
    cls=Group,
    examples=(
        "logstore worker run --dsn postgresql://localhost/app",
        "logstore worker jobs --cron 'statistics=0 3 * * *'",
        "logstore worker status",
    ),
)
@connection_options
def worker() -> None:
    """Run the jobs that keep a log in order, and see what they come to.

    The embedded server runs a worker by itself (unless LOGSTORE_WORKER is off when it is started).
    """


@worker.command(
    examples=(
        "logstore worker run",
        "logstore worker run --log json --health-port 9108",
        "logstore worker run --only retention --only roll --once",
    )
)
@click.option(
    "--only",
    metavar="JOB",
    multiple=True,
    help="Run this job, and no others but those also named: compaction, retention and so on, as "
    "`worker jobs` shows them.",
)
@_schedule_options
@click.option("--once", is_flag=True, help="Run every job once, whether or not it is due, and exit.")
@click.option(
    "--log", "log_format", type=click.Choice(["text", "json"]), default="text", show_default=True,
    help="How the lines look that are written to standard error.",
)  # fmt: skip
@click.option(
    "--grace", "grace_s", metavar="SECONDS", type=click.FloatRange(0, 600), default=5.0, show_default=True,
    help="Told to stop, give jobs so long to finish the steps they are at; then break them off.",
)  # fmt: skip
@click.option("--verbose", is_flag=True, help="A line for runs that find nothing to do, too.")
@click.option(
    "--health-port",
    metavar="[HOST:]PORT",
    help="Serve /health and /metrics (Prometheus) there.  [default host: 127.0.0.1]",
)
@connection_options
def run(
    only: Sequence[str],
    crons: Sequence[str],
    intervals: Sequence[str],
    once: bool,
    log_format: str,
    grace_s: float,
    verbose: bool,
    health_port: str | None,
) -> None:
    """Run jobs until Ctrl-C or SIGTERM.

    Any number of workers may run: each job is run by one of them at a time.  Schedules given here hold for
    this worker only and win over those in the database (`logstore worker jobs --cron`).  Told to stop, it
    finishes the steps it is at and exits with 0 within ten seconds.
    """
    from logstore.workers import health, notify
    from logstore.workers.jobs import chosen
    from logstore.workers.journal import Journal
    from logstore.workers.stopping import stopped_by
    from logstore.workers.worker import Worker

    jobs = chosen(only)
    schedules = _schedules(crons, intervals)
    chosen(schedules)
    with _log() as dsn, stopped_by(signal.SIGINT, signal.SIGTERM) as stop, contextlib.ExitStack() as stack:
        made = Worker(
            dsn,
            settings().schema,
            jobs,
            schedules=schedules,
            journal=Journal(as_json=log_format == "json", verbose=verbose or once),
            stop=stop,
            on_tick=lambda: notify.tell("WATCHDOG=1"),
            grace_s=grace_s,
        )
        if health_port is not None:
            host, port = stack.enter_context(health.serving(made, health.address(health_port)))
            shown = f"[{host}]" if ":" in host else host
            click.echo(f"http://{shown}:{port}/health and /metrics", err=True)
        if once:
            if any(finished.outcome != "ok" for finished in made.once()):
                raise click.exceptions.Exit(FAILED)
            return
        notify.tell("READY=1")
        made.run()
        notify.tell("STOPPING=1")
    _leave()


@worker.command(
    examples=(
        "logstore worker jobs",
        "logstore worker jobs --cron 'retention=*/5 * * * *' --every statistics=1h",
        "logstore worker jobs --pause compaction",
    )
)
@_schedule_options
@click.option("--default", "defaults", metavar="JOB", multiple=True, help="Give JOB its own schedule again.")
@click.option("--pause", "paused", metavar="JOB", multiple=True, help="Leave JOB alone until --resume.")
@click.option("--resume", "resumed", metavar="JOB", multiple=True, help="Undo --pause.")
@click.option("--now", "due", metavar="JOB", multiple=True, help="Make JOB due at once.")
@output_option()
@connection_options
def jobs(
    crons: Sequence[str],
    intervals: Sequence[str],
    defaults: Sequence[str],
    paused: Sequence[str],
    resumed: Sequence[str],
    due: Sequence[str],
) -> None:
    """Show the jobs: when each is due, who runs it, what it last came to.

    With options it first changes when they are due: in the database, for all workers and for good.
    """
    from logstore.workers.connections import opened
    from logstore.workers.jobs import JOBS, chosen

    schedules = _schedules(crons, intervals)
    chosen([*schedules, *defaults, *paused, *resumed, *due])
    with _log() as dsn, opened(dsn, settings().schema, "worker jobs") as connection:
        from logstore.workers.schedule import Cron, Every

        for name, schedule in schedules.items():
            connection.rows(
                "SELECT {}.schedule_job(%s, %s, %s, %s)",
                name,
                schedule.expression if isinstance(schedule, Cron) else None,
                round(schedule.seconds * 1000) if isinstance(schedule, Every) else None,
                round(schedule.next_in_s(datetime.now(UTC)) * 1000),
            )
        for name in defaults:
            connection.rows("SELECT {}.schedule_job(%s, NULL, NULL)", name)
        for names, state in ((paused, True), (resumed, False)):
            for name in names:
                connection.rows("SELECT {}.pause_job(%s, %s)", name, state)
        for name in due:
            connection.rows("SELECT {}.hasten_job(%s)", name)
        known = {
            row[0]: row[1:]
            for row in connection.rows(
                "SELECT job, cron, every_ms, state, worker, started_at, finished_at, summary, result,"
                " failures, runs, next_run FROM {}.worker_jobs"
            )
        }
    documents = []
    for job in JOBS.values():
        empty = (None, None, "never run", None, None, None, None, None, 0, 0, None)
        cron, every_ms, state, who, started, finished, summary, result, failures, runs, next_run = known.get(
            job.name, empty
        )
        when = cron or (str(Every(every_ms / 1000)) if every_ms else str(job.schedule))
        documents.append(
            {
                "job": job.name,
                "schedule": when,
                "stored": bool(cron or every_ms),
                "state": state,
                "worker": who,
                "started_at": _ms(started),
                "finished_at": _ms(finished),
                "summary": summary,
                "result": result,
                "failures": failures,
                "runs": runs,
                "next_run": _ms(next_run),
                "doc": job.doc,
            }
        )
    if settings().output == "json":
        print_json(documents)
        return
    print_rows(
        [
            "job",
            "schedule",
            "state",
            "last run",
            "next run",
            Column("failures", number=True),
            "worker",
            "result",
        ],
        [
            (
                each["job"],
                each["schedule"] + (" (stored)" if each["stored"] else ""),
                each["state"],
                None if each["started_at"] is None else format_time(each["started_at"]),
                None if each["next_run"] is None else format_time(each["next_run"]),
                each["failures"],
                each["worker"],
                each["summary"],
            )
            for each in documents
        ],
    )  # fmt: skip


@worker.command(examples=("logstore worker status", "logstore worker status --output json"))
@output_option()
@connection_options
def status() -> None:
    """Show the workers that are there, and what they run.

    Exits with 5 when there is none, or when a job fails time after time.
    """
    from logstore.workers.connections import opened

    with _log() as dsn, opened(dsn, settings().schema, "worker status") as connection:
        found = connection.rows(
            "SELECT worker, host, pid, version, started_at, seen_at, running, jobs FROM {}.workers ORDER BY 5"
        )
        failing = connection.rows("SELECT job, failures, summary FROM {}.worker_jobs WHERE failures >= 3")
    if settings().output == "json":
        print_json(
            {
                "workers": [
                    {
                        "worker": name,
                        "host": host,
                        "pid": pid,
                        "version": version,
                        "started_at": _ms(started),
                        "seen_at": _ms(seen),
                        "running": running,
                        "jobs": names,
                    }
                    for name, host, pid, version, started, seen, running, names in found
                ],
                "failing": [
                    {"job": job, "failures": failures, "summary": summary}
                    for job, failures, summary in failing
                ],
            }
        )
    else:
        print_rows(
            ["worker", "host", Column("pid", number=True), "version", "since", "seen", "runs"],
            [
                (name, host, pid, version, _time(started), _time(seen), ", ".join(running) or "nothing now")
                for name, host, pid, version, started, seen, running, _ in found
            ],
            empty="No worker: start one with `logstore worker run`.",
        )
        for job, failures, summary in failing:
            click.echo(f"{job} has failed {failures} times in a row: {summary}", err=True)
    if not found or failing:
        raise click.exceptions.Exit(UNAVAILABLE)


def _schedules(crons: Sequence[str], intervals: Sequence[str]) -> dict[str, Schedule]:
    """``JOB=...`` pairs of both options."""
    from logstore.workers.schedule import Cron, Every, seconds

    found: dict[str, Schedule] = {}
    for option, pairs in (("--cron", crons), ("--every", intervals)):
        for pair in pairs:
            name, equals, text = pair.partition("=")
            if not equals or not name.strip() or not text.strip():
                raise click.UsageError(f"{option} takes JOB=WHEN, not {pair!r}.", click.get_current_context())
            name = name.strip()
            if name in found:
                raise click.UsageError(f"{name} has two schedules.", click.get_current_context())
            found[name] = Cron(text.strip()) if option == "--cron" else Every(seconds(text))
    return found


@contextlib.contextmanager
def _log() -> Iterator[str]:
    """The DSN of a log whose schema is there; an embedded server is kept running meanwhile."""
    from logstore import migrations
    from logstore.embedded.dsn import resolve
    from logstore.errors import SchemaMissingError, SchemaVersionError

    schema = settings().schema
    resolved = resolve(settings().dsn, schema)
    try:
        found = migrations.status(resolved.dsn, schema)
        command = f"logstore db upgrade --dsn '{redact(resolved.dsn)}' --schema {schema}"
        if found.current is None:
            raise SchemaMissingError(
                f"The database has no log in schema {schema}.", advice=f"Run `{command}`."
            )
        if found.current != found.head:
            raise SchemaVersionError(
                f"The log in schema {schema} has revision {found.current}; this release needs {found.head}.",
                advice=f"Run `{command}`." if found.current < found.head else "Install a newer release.",
            )
        yield resolved.dsn
    finally:
        if resolved.keep is not None:
            resolved.keep.close()


def _leave() -> None:
    """A thread that is stuck, as a server or a file system does not answer, must not keep the process.

    Nor a daemon thread: the scheduler's pool starts its threads from one, so they are daemons too, and yet
    Python waits for those of a pool.
    """
    import os

    deadline = time.monotonic() + 0.5
    for thread in threading.enumerate():
        if thread is not threading.current_thread():
            thread.join(max(0.0, deadline - time.monotonic()))
            if thread.is_alive():
                sys.stderr.flush()
                os._exit(0)


def _ms(moment: datetime | None) -> int | None:
    return None if moment is None else round(moment.timestamp() * 1000)


def _time(moment: datetime) -> str:
    return format_time(round(moment.timestamp() * 1000))
