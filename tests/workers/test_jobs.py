"""Every job as a worker sees it: one interface, every kind of server, nothing done on an empty log."""

from __future__ import annotations

import json
import threading
import time

import psycopg
import pytest

from logstore.errors import ConfigurationError, ConnectionFailedError, InvalidArgumentError
from logstore.workers import rewriting
from logstore.workers.job import Result, idle, words
from logstore.workers.jobs import JOBS, chosen
from tests.support.appender import Appender


@pytest.mark.every_server
def test_on_a_log_without_topics(database: str) -> None:
    for name, job in JOBS.items():
        result = job.run_once(database)
        assert isinstance(result, Result), name
        assert idle(result), (name, words(result))
        assert "\n" not in result.summary(), name


def test_told_to_stop_before_it_begins(database: str) -> None:
    stop = threading.Event()
    stop.set()
    for name, job in JOBS.items():
        assert isinstance(job.run_once(database, "logstore", stop=stop), Result), name


def test_no_server() -> None:
    for job in JOBS.values():
        with pytest.raises(ConnectionFailedError):
            job.run_once("host=127.0.0.1 port=1 connect_timeout=2")


def test_what_is_asked_for_is_wanted_when_there_is_work(database: str) -> None:
    with psycopg.connect(database, autocommit=True) as connection:

        def wanted() -> set[str]:
            return {
                name
                for name, job in JOBS.items()
                if job.asks
                and connection.execute("SELECT logstore.job_wanted(%s)", [name]).fetchone() == (True,)
            }

        def create(name: str, **configs: str) -> None:
            connection.execute("SELECT logstore.create_topic(%s, 1, %s)", [name, json.dumps(configs)])

        assert wanted() == set()
        create("plain")
        assert wanted() == set()
        connection.execute("SELECT logstore.produce('plain', 'k', 'v')")
        assert wanted() == {"drain"}
        connection.execute("SELECT logstore.drain()")
        connection.execute("UPDATE logstore.topic SET roll_at = 0")
        assert wanted() == {"roll"}
        JOBS["roll"].run_once(database)
        assert wanted() == set()
        create("erasable")
        connection.execute("SELECT logstore.erase_key('erasable', 'k'::bytea)")
        assert "erasure" in wanted()
        connection.execute("SELECT logstore.delete_topic('erasable')")
        assert "reclaim" in wanted()
        JOBS["reclaim"].run_once(database)
        create("compacted", **{"cleanup.policy": "compact"})
        assert "compaction" in wanted()
        create("tiered", **{"remote.storage.enable": "true"})
        assert "tier" in wanted()


@pytest.mark.parametrize(
    ("name", "policy", "setting", "found"),
    [
        ("retention", "delete", "retention.ms", {("bad", 3), ("good", 1)}),
        ("compaction", "compact", "delete.retention.ms", {("bad", 3), ("good", 2)}),
        ("erasure", "delete", "delete.retention.ms", {("bad", 3), ("good", 1)}),
    ],
)
def test_what_is_wrong_with_one_topic_keeps_no_other_from_it(
    database: str, name: str, policy: str, setting: str, found: set[tuple[str, int]]
) -> None:
    with psycopg.connect(database, autocommit=True) as connection, Appender(database) as log:
        for topic in ("bad", "good"):
            topic_id = log.create(
                topic, cleanup_policy=policy, segment_bytes="100", min_cleanable_dirty_ratio="0"
            )
            for number, key in enumerate((b"a", b"a", b"b")):
                log.append(topic_id, [b"%d" % number * 100], keys=[key])
            if name == "retention":
                connection.execute("SELECT logstore.alter_topic(%s, '{\"retention.bytes\": 100}')", [topic])
            elif name == "erasure":
                connection.execute("SELECT logstore.erase_key(%s, 'a'::text)", [topic])
        # As if somebody had written to the table.
        connection.execute(
            "UPDATE logstore.topic SET configs = configs || %s::jsonb WHERE name = 'bad'",
            [json.dumps({setting: "x"})],
        )
        with pytest.raises(InvalidArgumentError, match='"x"'):
            JOBS[name].run_once(database)
        left = connection.execute("SELECT topic, count(*) FROM logstore.records GROUP BY topic")
        assert set(left.fetchall()) == found


def test_a_choice() -> None:
    assert list(chosen(["statistics", "drain"])) == ["drain", "statistics"]
    assert chosen([]) == dict(JOBS)
    with pytest.raises(ConfigurationError, match="no job 'vacuum'"):
        chosen(["vacuum"])


def test_between_long_steps_a_session_idles_no_longer_than_it_may(monkeypatch: pytest.MonkeyPatch) -> None:
    class Slow:
        """Each step takes a hundred seconds."""

        seconds = 0.0
        steps = 0

        def row(self, *_: object) -> tuple[object, ...]:
            self.seconds += 100
            self.steps += 1
            return "write", 1, self.steps == 3, None

    class Stop(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            rests.append(timeout or 0)
            return False

    rests: list[float] = []
    slow = Slow()
    monkeypatch.setattr(time, "monotonic", lambda: slow.seconds)
    assert rewriting.advance(slow, 1, until=1e9, stop=Stop()).finished  # type: ignore[arg-type]
    assert len(rests) == 2
    assert 0 < max(rests) * 1000 < int(rewriting.LIMITS.settings["idle_in_transaction_session_timeout"])
