"""A worker in this process, with jobs made for the purpose."""

from __future__ import annotations

import io
import json
import os
import signal
import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import psycopg
import pytest

from logstore.errors import ServerBusyError
from logstore.migrations import REQUIRED_REVISION
from logstore.workers import health, leases
from logstore.workers import worker as module
from logstore.workers.connections import Limits, opened
from logstore.workers.job import RunOnce
from logstore.workers.jobs import Job
from logstore.workers.journal import Journal
from logstore.workers.schedule import Every, Schedule
from logstore.workers.worker import Worker
from tests.support.log import watch
from tests.support.programs import eventually
from tests.support.proxy import Fault, Proxy
from tests.support.servers import Server


@dataclass(frozen=True, slots=True)
class Came:
    """To something."""

    things: int = 1
    more: bool = False

    def summary(self) -> str:
        return f"{self.things} things"


def job(name: str, run: Callable[[str, threading.Event], Came], every_s: float = 0.1) -> Job:
    """A job that runs ``run``."""

    def run_once(dsn: str, schema: str = "logstore", *, stop: threading.Event | None = None) -> Came:
        assert stop is not None
        return run(dsn, stop)

    made = Job(name, Every(every_s), "For a test.")
    known: RunOnce = run_once
    vars(made)["run_once"] = known
    return made


@dataclass
class Bench:
    """Workers on one log, that tick fast."""

    dsn: str
    journal: io.StringIO = field(default_factory=io.StringIO)

    @contextmanager
    def working(self, *jobs: Job, **options: Any) -> Iterator[Worker]:
        stop = threading.Event()
        options.setdefault("journal", Journal(as_json=True, verbose=True, stream=self.journal))
        made = Worker(self.dsn, "logstore", {job.name: job for job in jobs}, stop=stop, **options)
        thread = threading.Thread(target=made.run)
        thread.start()
        try:
            yield made
        finally:
            stop.set()
            thread.join()

    def state(self, what: str, name: str = "job") -> Any:
        return watch(self.dsn, "SELECT " + what + " FROM logstore.worker_jobs WHERE job = %s", name)  # noqa: S608

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.journal.getvalue().splitlines()]

    def finished(self) -> list[dict[str, Any]]:
        return [line for line in self.lines() if "job" in line]


@pytest.fixture
def bench(database: str, monkeypatch: pytest.MonkeyPatch) -> Bench:
    monkeypatch.setattr(module, "TICK_S", 0.05)
    monkeypatch.setattr(leases, "LEASE_S", 1.0)
    return Bench(database)


def test_a_job_is_run_again_and_again_and_says_what_it_came_to(bench: Bench) -> None:
    with bench.working(job("job", lambda *_: Came(3))) as worker:
        eventually(lambda: worker.tallies["job"].runs >= 3, "three runs")
        assert worker.healthy()
        assert watch(bench.dsn, "SELECT worker FROM logstore.workers") == worker.worker_id
    assert bench.state("summary") == "3 things"
    assert bench.state("result") == {"things": 3, "more": False}
    assert bench.state("state") == "waiting"
    assert watch(bench.dsn, "SELECT count(*) FROM logstore.workers") == 0
    line = bench.finished()[0]
    assert (line["job"], line["outcome"], line["summary"]) == ("job", "ok", "3 things")


def test_of_several_workers_one_runs_a_job_at_a_time(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    # None is lost because this process had to wait for a processor.
    monkeypatch.setattr(leases, "LEASE_S", 60.0)
    at_it: list[int] = []
    most: list[int] = []
    enough = threading.Event()

    def run(_dsn: str, stop: threading.Event) -> Came:
        at_it.append(1)
        most.append(len(at_it))
        stop.wait(0.02)
        at_it.pop()
        if len(most) >= 20:
            enough.set()
        return Came()

    made = job("job", run)
    with bench.working(made) as one, bench.working(made) as two, bench.working(made) as three:
        assert enough.wait(30)
    assert set(most) == {1}
    assert sum(worker.tallies["job"].runs for worker in (one, two, three)) == bench.state("runs")


def test_a_failure_is_told_and_the_next_attempts_come_later(bench: Bench) -> None:
    def run(_dsn: str, _stop: threading.Event) -> Came:
        raise ServerBusyError("no room")

    with bench.working(job("job", run)) as worker:
        eventually(lambda: worker.tallies["job"].failures >= 1, "a failure")
    assert bench.state("summary") == "no room"
    assert bench.state("result") is None
    assert bench.state("state") == "failing"
    # The pause is a second and doubles, though the job is due ten times a second by itself.
    assert bench.finished()[0]["next_in_seconds"] >= 0.8


def test_a_mistake_in_a_job_does_no_harm_to_others(bench: Bench) -> None:
    def broken(_dsn: str, _stop: threading.Event) -> Came:
        raise ZeroDivisionError("oh")

    with bench.working(job("broken", broken), job("job", lambda *_: Came())) as worker:
        eventually(lambda: worker.tallies["broken"].failures >= 1, "a failure")
        eventually(lambda: worker.tallies["job"].runs >= 2, "runs of the other one")
    assert "ZeroDivisionError: oh" in bench.state("summary", "broken")


def test_what_wants_more_runs_again_at_once(bench: Bench) -> None:
    left = [True, True, False]
    with bench.working(job("job", lambda *_: Came(more=left.pop(0)), every_s=1000)) as worker:
        eventually(lambda: not left, "three runs")
        eventually(lambda: worker.running == [], "the end of the last one")
    assert bench.state("next_run > now() + interval '10 minutes'") is True


def test_what_is_not_wanted_is_not_run(bench: Bench) -> None:
    made = job("drain", lambda *_: Came())
    unwanted = Job(made.name, made.schedule, made.doc, asks=True)
    vars(unwanted)["run_once"] = made.run_once
    with psycopg.connect(bench.dsn, autocommit=True) as connection:
        connection.execute("SELECT logstore.create_topic('t', 1)")
        with bench.working(unwanted, job("other", lambda *_: Came())) as worker:
            eventually(lambda: worker.tallies["other"].runs >= 5, "runs of the other one")
            assert worker.tallies["drain"].runs == 0
            connection.execute("SELECT logstore.produce('t', null, 'v'::text)")
            eventually(lambda: worker.tallies["drain"].runs >= 1, "a run")


def test_schedules_may_be_changed_while_it_runs(bench: Bench) -> None:
    with (
        psycopg.connect(bench.dsn, autocommit=True) as connection,
        bench.working(job("job", lambda *_: Came(), every_s=1000)) as worker,
    ):
        eventually(lambda: worker.tallies["job"].runs == 1, "the first run")
        connection.execute("SELECT logstore.schedule_job('job', null, 100, 0)")
        eventually(lambda: worker.tallies["job"].runs >= 4, "runs at the new interval")
        connection.execute("SELECT logstore.pause_job('job', true)")
        eventually(lambda: worker.running == [], "the end of the last one")
        before = bench.state("runs")
        connection.execute("SELECT logstore.hasten_job('job')")
        assert bench.state("state") == "paused"
        assert bench.state("runs") <= before + 1
        connection.execute("SELECT logstore.schedule_job('job', '* * * * *', null, 0)")
        connection.execute("SELECT logstore.pause_job('job', false)")
        runs = worker.tallies["job"].runs
        eventually(lambda: worker.tallies["job"].runs > runs, "a run after the pause")
        within_a_minute = "next_run > now() AND next_run <= now() + interval '1 minute'"
        eventually(lambda: bool(bench.state(within_a_minute)), "the next one is at the full minute")


def test_a_schedule_that_is_none_is_told_once(bench: Bench) -> None:
    ticks: list[int] = []
    told = "job: The cron expression 'never' has 1 fields, not 5."
    with (
        psycopg.connect(bench.dsn, autocommit=True) as connection,
        bench.working(job("job", lambda *_: Came()), on_tick=lambda: ticks.append(1)) as worker,
    ):
        eventually(lambda: worker.tallies["job"].runs >= 1, "a run")
        connection.execute("UPDATE logstore.worker_job SET cron = 'never'")
        eventually(lambda: told in bench.journal.getvalue(), "a complaint")
        ticks.clear()
        eventually(lambda: len(ticks) > 5, "some ticks")
        connection.execute("UPDATE logstore.worker_job SET cron = null")
        eventually(lambda: "all is well again" in bench.journal.getvalue(), "the end of it")
    messages = [line.get("message", "") for line in bench.lines()]
    assert sum(told in message for message in messages) == messages.count("all is well again") == 1


def test_its_own_schedules_win(bench: Bench) -> None:
    chosen: dict[str, Schedule] = {"job": Every(0.1)}
    with bench.working(job("job", lambda *_: Came(), every_s=1000), schedules=chosen) as worker:
        eventually(lambda: worker.tallies["job"].runs >= 3, "three runs")


def test_who_loses_the_lease_ends_the_run(bench: Bench) -> None:
    began = threading.Event()
    ended = threading.Event()

    def run(_dsn: str, stop: threading.Event) -> Came:
        began.set()
        stop.wait()
        ended.set()
        return Came()

    with bench.working(job("job", run)):
        assert began.wait(30)
        with psycopg.connect(bench.dsn) as connection:
            connection.execute("UPDATE logstore.worker_job SET holder = 'somebody', lease_until = 'infinity'")
        assert ended.wait(30)
    assert bench.state("worker") == "somebody"


def test_who_loses_the_lease_in_the_middle_of_a_long_statement_is_free_again(bench: Bench) -> None:
    def run(dsn: str, _stop: threading.Event) -> Came:
        with opened(dsn, "logstore", "sleeper", Limits(statement_timeout_ms=0)) as connection:
            connection.rows("SELECT pg_sleep(100)")
        return Came()

    with bench.working(job("job", run), job("other", lambda *_: Came()), grace_s=0.1) as worker:
        eventually(lambda: worker.running == ["job"], "it runs")
        with psycopg.connect(bench.dsn, autocommit=True) as connection:
            lose = "UPDATE logstore.worker_job SET holder = 'somebody', lease_until = %s WHERE name = 'job'"
            connection.execute(lose, ["infinity"])
            eventually(lambda: worker.running in ([], ["other"]), "it does not run any more")
            # Somebody is lost as well.
            connection.execute(lose, ["now"])
        eventually(lambda: "job" in worker.running, "it runs again")
        assert worker.tallies["other"].failures == 0


def test_an_answer_that_came_late_takes_no_lease_away(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was asked before the run began, or is answered after it was told to be over, is no news of it."""
    monkeypatch.setattr(leases, "LEASE_S", 60.0)
    beat, finish = leases.Leases.beat, leases.Leases.finish
    began = threading.Event()
    ticks = threading.Semaphore(0)
    given_up: list[bool] = []

    def late(*arguments: Any, **options: Any) -> list[leases.Standing]:
        answer = beat(*arguments, **options)
        assert began.wait(30)
        return answer

    def tick_between(*arguments: Any) -> None:
        finish(*arguments)
        for _ in range(3):
            assert ticks.acquire(timeout=30)

    def run(_dsn: str, stop: threading.Event) -> Came:
        began.set()
        for _ in range(3):
            assert ticks.acquire(timeout=30)
        given_up.append(stop.is_set())
        return Came()

    monkeypatch.setattr(leases.Leases, "beat", late)
    monkeypatch.setattr(leases.Leases, "finish", tick_between)
    made = Worker(
        bench.dsn,
        "logstore",
        {"job": job("job", run)},
        journal=Journal(stream=bench.journal),
        on_tick=ticks.release,
    )
    assert [each.outcome for each in made.once()] == ["ok"]
    assert given_up == [False]
    assert "lease was lost" not in bench.journal.getvalue()


def test_a_failure_may_say_what_the_database_cannot_keep(bench: Bench) -> None:
    def run(_dsn: str, _stop: threading.Event) -> Came:
        raise ServerBusyError("zero \0 and \udcff")

    with bench.working(job("job", run)) as worker:
        eventually(lambda: worker.tallies["job"].failures >= 1, "a failure")
        eventually(lambda: worker.running == [], "the end of the run")
    assert bench.state("summary") == "zero \ufffd and ?"
    assert bench.state("state") == "failing"


def test_told_to_stop_it_lets_a_step_finish(bench: Bench) -> None:
    began = threading.Event()

    def run(_dsn: str, stop: threading.Event) -> Came:
        began.set()
        stop.wait()
        return Came(7)

    with bench.working(job("job", run, every_s=1000)):
        assert began.wait(30)
    assert bench.state("summary") == "7 things"
    # Somebody else goes on with it at once.
    assert bench.state("next_run <= now()") is True


def test_told_to_stop_it_breaks_off_what_does_not_end(bench: Bench) -> None:
    sleeping = (
        "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'SELECT pg_sleep%%' AND state = 'active'"
    )

    def run(dsn: str, _stop: threading.Event) -> Came:
        with opened(dsn, "logstore", "sleeper", Limits(statement_timeout_ms=0)) as connection:
            connection.rows("SELECT pg_sleep(100)")
        return Came()

    with bench.working(job("job", run), grace_s=0.1):
        eventually(lambda: watch(bench.dsn, sleeping) == 1, "a long statement")
    assert bench.state("state") == "waiting"
    assert bench.state("summary") == "broken off"
    assert bench.state("failures") == 0
    # The server notices that nobody waits for the answer any more.
    eventually(lambda: watch(bench.dsn, sleeping) == 0, "the end of the statement")


def test_who_breaks_off_leaves_other_workers_of_the_process_alone(bench: Bench) -> None:
    def run(dsn: str, _stop: threading.Event) -> Came:
        patient = Limits(statement_timeout_ms=0, lock_timeout_ms=0)
        with opened(dsn, "logstore", "waiter", patient) as connection:
            connection.rows("SELECT pg_advisory_lock(1)")
        return Came()

    with psycopg.connect(bench.dsn, autocommit=True) as holder:
        holder.execute("SELECT pg_advisory_lock(1)")
        with bench.working(job("other", run, every_s=1000)) as other:
            eventually(lambda: other.running == ["other"], "it runs")
            with bench.working(job("job", run), grace_s=0.1) as worker:
                eventually(lambda: worker.running == ["job"], "it runs")
            holder.execute("SELECT pg_advisory_unlock(1)")
            eventually(lambda: other.tallies["other"].runs == 1, "the end of the run")
    outcomes = {(line["job"], line["outcome"]) for line in bench.finished()}
    assert outcomes == {("job", "broken off"), ("other", "ok")}


def test_a_log_of_another_revision_is_left_alone(bench: Bench) -> None:
    with psycopg.connect(bench.dsn, autocommit=True) as connection:
        connection.execute("UPDATE logstore.alembic_version SET version_num = '9999'")
        with bench.working(job("job", lambda *_: Came())) as worker:
            eventually(lambda: "revision 9999" in bench.journal.getvalue(), "a complaint")
            assert not worker.healthy()
            assert worker.tallies["job"].runs == 0
            connection.execute("UPDATE logstore.alembic_version SET version_num = %s", [REQUIRED_REVISION])
            eventually(lambda: worker.tallies["job"].runs > 0, "a run")
        messages = [line["message"] for line in bench.lines() if "message" in line]
        assert messages.count("all is well again") == 1


def test_a_log_that_is_upgraded_under_it_is_left_alone(bench: Bench) -> None:
    ticks: list[int] = []
    with bench.working(job("job", lambda *_: Came()), on_tick=lambda: ticks.append(1)) as worker:
        eventually(lambda: worker.tallies["job"].runs > 0, "a run")
        with psycopg.connect(bench.dsn) as connection:
            connection.execute("UPDATE logstore.alembic_version SET version_num = '9999'")
        eventually(lambda: "revision 9999" in bench.journal.getvalue(), "a complaint")
        # One that was about to begin has begun by then.
        ticks.clear()
        eventually(lambda: len(ticks) > 3, "some ticks")
        eventually(lambda: worker.running == [], "the end of what ran")
        runs = worker.tallies["job"].runs
        ticks.clear()
        # That is ten times as long as the job's interval.
        eventually(lambda: len(ticks) > 20, "some ticks")
        assert worker.tallies["job"].runs == runs


def test_a_server_that_goes_away_is_found_again(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LONGEST_SILENCE_S", 0.1)
    with bench.working(job("job", lambda *_: Came())) as worker:
        eventually(lambda: worker.tallies["job"].runs >= 1, "a run")
        with psycopg.connect(bench.dsn, autocommit=True) as connection:
            connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
        runs = worker.tallies["job"].runs
        eventually(lambda: worker.tallies["job"].runs > runs + 1, "more runs")


def test_a_server_that_does_not_answer_is_taken_for_gone(
    bench: Bench, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    if server.home is None:
        pytest.skip("the server's processes are somebody else's")
    monkeypatch.setattr(module, "LONGEST_SILENCE_S", 0.1)
    own = (
        "SELECT pid FROM pg_stat_activity "
        "WHERE application_name = 'logstore worker' AND datname = current_database()"
    )
    with bench.working(job("job", lambda *_: Came())) as worker:
        eventually(lambda: worker.tallies["job"].runs >= 1, "a run")
        backend = watch(bench.dsn, own)
        os.kill(backend, signal.SIGSTOP)
        # Not before: it would have another backend if this process had to wait for a processor.
        monkeypatch.setattr(module, "HUNG_S", 0.2)
        try:
            runs = worker.tallies["job"].runs
            eventually(lambda: worker.tallies["job"].runs > runs + 1, "more runs, on another connection")
        finally:
            os.kill(backend, signal.SIGCONT)


def test_a_server_that_does_not_answer_a_new_connection_is_taken_for_gone(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "HUNG_S", 0.2)
    monkeypatch.setattr(module, "LONGEST_SILENCE_S", 0.1)
    with Proxy(bench.dsn) as proxy:
        proxy.strike(Fault.SILENCE, b"pg_backend_pid()")
        with Bench(proxy.dsn).working(job("job", lambda *_: Came())) as worker:
            eventually(lambda: worker.tallies["job"].runs >= 1, "a run, on another connection")
        assert proxy.cuts == 1


def test_once(bench: Bench) -> None:
    made = Worker(
        bench.dsn,
        "logstore",
        {"one": job("one", lambda *_: Came(1)), "two": job("two", lambda *_: Came(2))},
        journal=Journal(stream=bench.journal, verbose=True),
    )
    assert [(run.job, run.outcome, run.summary) for run in made.once()] == [
        ("one", "ok", "1 things"),
        ("two", "ok", "2 things"),
    ]
    assert "one: ok in" in bench.journal.getvalue()


def test_once_may_be_told_to_stop_in_the_middle_of_a_job(bench: Bench) -> None:
    began = threading.Event()
    stop = threading.Event()

    def run(_dsn: str, stopped: threading.Event) -> Came:
        began.set()
        return Came(int(stopped.wait(20)))

    jobs = {name: job(name, run) for name in ("one", "two")}
    made = Worker(bench.dsn, "logstore", jobs, journal=Journal(stream=bench.journal), stop=stop)
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(made.once)
        assert began.wait(30)
        stop.set()
        assert [(each.job, each.result["things"]) for each in running.result(30)] == [("one", 1)]


def test_once_breaks_off_what_does_not_end(bench: Bench) -> None:
    def run(dsn: str, _stop: threading.Event) -> Came:
        with opened(dsn, "logstore", "sleeper", Limits(statement_timeout_ms=0)) as connection:
            stop.set()
            connection.rows("SELECT pg_sleep(20)")
        return Came()

    stop = threading.Event()
    made = Worker(
        bench.dsn, "logstore", {"job": job("job", run)}, journal=Journal(stream=bench.journal), stop=stop,
        grace_s=0.1,
    )  # fmt: skip
    assert [each.outcome for each in made.once()] == ["broken off"]


def test_once_leaves_out_what_another_worker_runs(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    # It is not to run out meanwhile.
    monkeypatch.setattr(leases, "LEASE_S", 60.0)
    other = leases.Leases(bench.dsn, "logstore", ["one"])
    other.claim("one", at_once=True)
    made = Worker(
        bench.dsn, "logstore", {"one": job("one", lambda *_: Came())}, journal=Journal(stream=bench.journal)
    )
    assert made.once() == []
    assert "one: another worker runs it" in bench.journal.getvalue()
    other.close()


def test_idle_runs_make_no_noise(bench: Bench) -> None:
    quiet = Journal(stream=bench.journal)
    with bench.working(job("job", lambda *_: Came(0)), journal=quiet) as worker:
        eventually(lambda: worker.tallies["job"].runs >= 3, "three runs")
    assert "job: ok" not in bench.journal.getvalue()


def test_health_and_numbers_over_http(bench: Bench) -> None:
    def get(path: str) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(f"http://{host}:{port}{path}", timeout=10) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    with (
        bench.working(job("job", lambda *_: Came(5))) as worker,
        health.serving(worker, health.address("0")) as (host, port),
    ):
        eventually(lambda: worker.tallies["job"].runs >= 2, "two runs")
        code, text = get("/health")
        assert (code, json.loads(text)["healthy"]) == (200, True)
        code, text = get("/metrics")
        assert code == 200
        numbers = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
        assert numbers["logstore_worker_healthy"] == "1"
        assert int(numbers['logstore_job_runs_total{job="job"}']) >= 2
        assert int(numbers['logstore_job_result_total{job="job",what="things"}']) % 5 == 0
        assert numbers["logstore_replicas_known"] == numbers['logstore_replicas{state="running"}'] == "1"
        assert numbers["logstore_under_replicated_partitions"] == "0"
        assert get("/other")[0] == 404
        with psycopg.connect(bench.dsn, autocommit=True) as connection:
            connection.execute("UPDATE logstore.alembic_version SET version_num = '9999'")
        eventually(lambda: get("/health")[0] == 503, "bad health")


def test_health_on_ipv6_and_without_a_name(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("this machine has no IPv6")
    # Nobody is asked what this machine is called: without a name server that takes long.
    monkeypatch.setattr(socket, "getfqdn", lambda _name="": pytest.fail("asked for a name"))
    made = Worker(bench.dsn, "logstore", {})
    with health.serving(made, health.address("[::1]:0")) as (host, port):
        assert host == "::1"
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(f"http://[{host}]:{port}/health", timeout=10)
        with caught.value as answer:
            assert (answer.code, json.loads(answer.read())["healthy"]) == (503, False)
