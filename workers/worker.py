"""The worker: runs jobs when they are due, beside any number of others that do the same.

APScheduler fires the jobs; the database decides.  Every two seconds a worker asks it how each job stands
and moves its own clockwork accordingly; before it runs one it claims it there.  So all workers go by one
schedule, one of them runs a job at a time, and what a worker leaves behind when it is killed, or stopped, is
taken over when its lease has run out.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Final

from apscheduler.executors.pool import ThreadPoolExecutor
from apscheduler.schedulers.background import BackgroundScheduler
from apscheduler.triggers.base import BaseTrigger
from apscheduler.triggers.interval import IntervalTrigger

from logstore.errors import LogstoreError
from logstore.migrations import REQUIRED_REVISION
from logstore.workers import connections
from logstore.workers.job import idle, wants_more, words
from logstore.workers.jobs import Job
from logstore.workers.journal import Finished, Journal
from logstore.workers.leases import Leases, Standing
from logstore.workers.schedule import Cron, Every, Schedule, pause_s

__all__ = ["TICK_S", "Tally", "Worker"]

TICK_S: Final = 2.0
"""How often a worker asks how the jobs stand."""
SAY_S: Final = 5.0
"""How often it says that it is there."""
GRACE_S: Final = 5.0
"""How long a job has to finish its step when the worker is told to stop; then its connections are dropped."""
END_S: Final = 1.5
"""How long it has after that."""
LEAVE_S: Final = 1.5
"""How long the database has to hear that the worker is gone."""
HUNG_S: Final = 8.0
"""A server that has not answered a worker's question for so long is taken for gone."""
NEVER_S: Final = 86400.0
"""It is known better long before that."""
LONGEST_SILENCE_S: Final = 8.0
"""Between two attempts to reach a server that does not answer."""

# It warns when a job is due again while it runs, which is nothing to worry about.
logging.getLogger("apscheduler").setLevel(logging.CRITICAL)


@dataclass
class Tally:
    """What a job has come to in this worker."""

    runs: int = 0
    failures: int = 0
    seconds: float = 0.0
    succeeded_at: float = 0.0
    """Seconds since the epoch; 0: never."""
    totals: dict[str, float] = field(default_factory=dict)
    """The numbers of all results, added up."""


class _Ticks(BaseTrigger):  # type: ignore[misc]
    """Fires as the worker's schedule of a job says."""

    def __init__(self, worker: Worker, job: Job) -> None:
        self._worker = worker
        self._job = job

    def get_next_fire_time(self, previous_fire_time: datetime | None, now: datetime) -> datetime:
        return now + timedelta(seconds=self._worker.schedule(self._job).next_in_s(now))


class Worker:
    """Runs ``jobs`` on the log that ``dsn`` and ``schema`` name.

    ``schedules``: job -> when, stronger than what the database and the job itself say.  :meth:`run` returns
    when ``stop`` is set, within ten seconds: jobs have ``grace_s`` to finish the step they are at, then their
    connections are dropped.  ``on_tick`` is called every two seconds while all is well in
    this process, whether or not the server answers.
    """

    def __init__(
        self,
        dsn: str,
        schema: str,
        jobs: Mapping[str, Job],
        *,
        schedules: Mapping[str, Schedule] | None = None,
        journal: Journal | None = None,
        stop: threading.Event | None = None,
        on_tick: Callable[[], object] | None = None,
        grace_s: float = GRACE_S,
    ) -> None:
        self._dsn = dsn
        self._schema = schema
        self._jobs = dict(jobs)
        self._chosen = dict(schedules or {})
        self._stored: dict[str, Schedule] = {}
        self._journal = journal or Journal()
        self._stop = stop or threading.Event()
        self._on_tick = on_tick or (lambda: None)
        self._grace_s = grace_s
        self._leases = Leases(dsn, schema, self._jobs)
        self._running: dict[str, threading.Event] = {}
        self._over: set[str] = set()
        self._changed = threading.Condition()
        self._not_before: dict[str, float] = {}
        self._given_up: dict[str, float] = {}
        self._said_at = self._retry_at = -1e9
        self._silence_s = 0.0
        self._complaint = ""
        self._beaten_at: float | None = None
        self._fits = False
        self.tallies: Final = {name: Tally() for name in self._jobs}
        self._scheduler = BackgroundScheduler(
            timezone=UTC,
            executors={"default": ThreadPoolExecutor(len(self._jobs) + 1)},
            job_defaults={"coalesce": True, "max_instances": 1, "misfire_grace_time": None},
        )

    @property
    def worker_id(self) -> str:
        """Its name in the table of workers."""
        return self._leases.worker_id

    @property
    def dsn(self) -> str:
        """Of the log that it works on."""
        return self._dsn

    @property
    def schema(self) -> str:
        """Of the log that it works on."""
        return self._schema

    @property
    def running(self) -> list[str]:
        """The jobs that it runs now."""
        with self._changed:
            return sorted(self._running)

    def healthy(self, *, within_s: float = 15.0) -> bool:
        """The server answered so recently, and the log's revision is the one that this release needs."""
        return self._fits and self._beaten_at is not None and time.monotonic() - self._beaten_at <= within_s

    def schedule(self, job: Job) -> Schedule:
        """When the job is due: as this worker was told, else as the database says, else by itself."""
        return self._chosen.get(job.name) or self._stored.get(job.name) or job.schedule

    def run(self) -> None:
        """Work until told to stop."""
        self._journal.note(f"worker {self.worker_id} begins: {', '.join(self._jobs)}")
        now = datetime.now(UTC)
        for job in self._jobs.values():
            self._scheduler.add_job(
                self._run,
                _Ticks(self, job),
                args=[job],
                id=job.name,
                next_run_time=now + timedelta(seconds=NEVER_S),
            )
        self._begin()
        try:
            while not self._stop.wait(TICK_S):
                if self._leases.hung(HUNG_S):
                    self._leases.drop()
        finally:
            self._end()

    def once(self) -> list[Finished]:
        """Run every job once, one after the other, due or not; answer what each came to.

        A job that another worker runs is left out.
        """
        self._begin()
        done = []
        # Whoever tells us to stop may do so in the middle of a job.
        ending = threading.Thread(target=self._break_off, name="ending", daemon=True)
        ending.start()
        try:
            for job in self._jobs.values():
                if self._stop.is_set():
                    break
                failures = self._leases.claim(job.name, at_once=True)
                if failures is None:
                    self._journal.note(f"{job.name}: another worker runs it")
                else:
                    done.append(self._carry_out(job, failures))
        finally:
            self._end()
            ending.join()
        return done

    def _begin(self) -> None:
        self._scheduler.add_job(
            self._watch,
            IntervalTrigger(seconds=TICK_S, timezone=UTC),
            id=" watch",
            next_run_time=datetime.now(UTC),
        )
        self._scheduler.start()

    def _end(self) -> None:
        self._stop.set()
        self._scheduler.shutdown(wait=False)
        self._break_off()
        # A server that does not answer must not keep us. The others take over when the leases have run out.
        leaving = threading.Thread(target=self._leave, name="leaving", daemon=True)
        leaving.start()
        leaving.join(LEAVE_S)
        if leaving.is_alive():
            self._leases.drop()
        self._journal.note(f"worker {self.worker_id} ends")

    def _break_off(self) -> None:
        """Once told to stop: have what runs end, by force if need be."""
        self._stop.wait()
        if not self._finished(self._grace_s):
            with self._changed:
                running = dict(self._running)
            # No other worker's, of which this process may have some.
            dropped = sum(connections.drop_all(of=run) for run in running.values())
            self._journal.note(f"{', '.join(sorted(running))}: broken off; {dropped} connections dropped")
            self._finished(END_S)

    def _leave(self) -> None:
        with contextlib.suppress(LogstoreError):
            self._leases.leave()

    def _finished(self, within_s: float) -> bool:
        """Nothing runs any more; wait for that, and keep the leases meanwhile."""
        deadline = time.monotonic() + within_s
        beating: threading.Thread | None = None
        while True:
            with self._changed:
                for stop in self._running.values():
                    stop.set()
                left = deadline - time.monotonic()
                if self._changed.wait_for(lambda: not self._running, max(0.0, min(left, TICK_S))):
                    return True
                if left <= 0:
                    return False
            if beating is None or not beating.is_alive():
                beating = threading.Thread(target=self._watch, name="beating", daemon=True)
                beating.start()

    def _watch(self) -> None:
        """Ask how the jobs stand, renew leases, and set the clockwork."""
        now = time.monotonic()
        self._on_tick()
        if now < self._retry_at:
            return
        say = now - self._said_at >= SAY_S and not self._stop.is_set()
        with self._changed:
            running = dict(self._running)
        try:
            standings = self._leases.beat(sorted(running), say=say)
        except LogstoreError as error:
            self._silence_s = min(LONGEST_SILENCE_S, max(1.0, self._silence_s * 2))
            self._retry_at = time.monotonic() + self._silence_s
            self._complain(str(error))
            return
        self._silence_s = 0.0
        self._beaten_at = now
        if say:
            self._said_at = now
        self._fits = all(standing.revision == REQUIRED_REVISION for standing in standings)
        if not self._fits:
            self._complain(
                f"the log's schema has revision {standings[0].revision} and this release needs "
                f"{REQUIRED_REVISION}: nothing is run until they agree"
            )
            return
        wrong = [self._adjust(standing, running.get(standing.name)) for standing in standings]
        self._complain("; ".join(filter(None, wrong)))

    def _complain(self, text: str) -> None:
        """Say what is wrong, once; and that it is over."""
        if text != self._complaint:
            self._journal.note(text or "all is well again", level="warning" if text else "info")
        self._complaint = text

    def _adjust(self, standing: Standing, asked: threading.Event | None) -> str:
        """Go by how a job stands, and say what is wrong with its schedule.

        ``asked``: its run for which that was asked.
        """
        wrong = self._store(standing)
        with self._changed:
            run = self._running.get(standing.name)
            # What was begun since then, or has been told to be over, says nothing of a lease that was lost.
            lost = run is asked and standing.name not in self._over and not standing.mine
        if run is not None:
            if lost:
                self._give_up(standing.name, run)
            return wrong
        if self._stop.is_set() or self._scheduler.get_job(standing.name) is None:
            return wrong
        now = datetime.now(UTC)
        wait_s = max(standing.due_in_s, self._not_before.get(standing.name, 0.0) - time.monotonic())
        job = self._jobs[standing.name]
        schedule = self.schedule(job)
        if job.asks and isinstance(schedule, Every) and schedule.seconds >= TICK_S:
            if wait_s <= 0 and not standing.wanted:
                self._not_before[job.name] = time.monotonic() + schedule.next_in_s(now)
            if wait_s > 0 or not standing.wanted:
                # Not before a later answer says that it is due, and wanted.
                wait_s = NEVER_S
        self._scheduler.modify_job(
            standing.name, next_run_time=None if standing.paused else now + timedelta(seconds=wait_s)
        )
        return wrong

    def _give_up(self, name: str, run: threading.Event) -> None:
        """End a run whose lease was lost: somebody else has begun the next one."""
        now = time.monotonic()
        if not run.is_set():
            self._journal.note(f"{name}: the lease was lost; ending the run", level="warning")
            run.set()
            self._given_up[name] = now
        elif now - self._given_up.get(name, now) >= self._grace_s:
            connections.drop_all(of=run)

    def _store(self, standing: Standing) -> str:
        try:
            if standing.cron is not None:
                self._stored[standing.name] = Cron(standing.cron)
            elif standing.every_ms is not None:
                self._stored[standing.name] = Every(standing.every_ms / 1000)
            else:
                self._stored.pop(standing.name, None)
        except LogstoreError as error:
            # Somebody has written it to the table by hand.
            return f"{standing.name}: {error}"
        return ""

    def _run(self, job: Job) -> None:
        """One tick of a job: run it if it is due, and ours."""
        if self._stop.is_set() or not self.healthy():
            return
        try:
            failures = self._leases.claim(job.name)
        except LogstoreError as error:
            self._complain(str(error))
            return
        if failures is not None:
            self._carry_out(job, failures)

    def _carry_out(self, job: Job, failures: int) -> Finished:
        stop = threading.Event()
        with self._changed:
            self._running[job.name] = stop
        if self._stop.is_set():
            stop.set()
        try:
            run = self._came_to(job, failures, stop)
            with self._changed:
                self._over.add(job.name)
            # Else the lease runs out by itself, and the run is repeated.
            with contextlib.suppress(LogstoreError):
                self._leases.finish(
                    job.name,
                    None if run.outcome == "broken off" else run.summary,
                    run.result if run.outcome == "ok" else None,
                    run.next_in_s,
                )
            self._count(run)
        finally:
            with self._changed:
                del self._running[job.name]
                self._over.discard(job.name)
                self._changed.notify_all()
        self._journal.finished(run)
        return run

    def _came_to(self, job: Job, failures: int, stop: threading.Event) -> Finished:
        began = time.monotonic()
        try:
            with connections.owned(stop):
                result = job.run_once(self._dsn, self._schema, stop=stop)
            seconds = time.monotonic() - began
            at_once = wants_more(result) or stop.is_set()
            next_s = 0.0 if at_once else self.schedule(job).next_in_s(datetime.now(UTC)) - seconds
            return Finished(
                job.name, "ok", seconds, result.summary(), words(result), idle(result), max(0.0, next_s)
            )
        except Exception as error:
            return self._failed(job, error, failures, time.monotonic() - began, stop)

    def _failed(
        self, job: Job, error: Exception, failures: int, seconds: float, stop: threading.Event
    ) -> Finished:
        if stop.is_set() and isinstance(error, LogstoreError):
            return Finished(job.name, "broken off", seconds, str(error))
        text = str(error) if isinstance(error, LogstoreError) else "".join(traceback.format_exception(error))
        period = self.schedule(job).period_s
        return Finished(job.name, "failed", seconds, text, next_in_s=pause_s(failures + 1, period))

    def _count(self, run: Finished) -> None:
        tally = self.tallies[run.job]
        tally.runs += 1
        tally.failures += run.outcome == "failed"
        tally.seconds += run.seconds
        if run.outcome == "ok":
            tally.succeeded_at = time.time()
        for name, value in run.result.items():
            number = len(value) if isinstance(value, list) else value
            if isinstance(number, int | float) and not isinstance(value, bool):
                tally.totals[name] = tally.totals.get(name, 0) + number
