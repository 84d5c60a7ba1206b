"""Every job as a worker sees it: one interface, every kind of server, nothing done on an empty log."""

from __future__ import annotations

import threading

import pytest

from logstore.errors import ConfigurationError, ConnectionFailedError
from logstore.workers.job import Result, idle, words
from logstore.workers.jobs import JOBS, chosen


@pytest.mark.every_server
@pytest.mark.parametrize("name", JOBS)
def test_on_a_log_without_topics(database: str, name: str) -> None:
    result = JOBS[name].run_once(database)
    assert isinstance(result, Result)
    assert idle(result), words(result)
    assert "\n" not in result.summary()


@pytest.mark.parametrize("name", JOBS)
def test_told_to_stop_before_it_begins(database: str, name: str) -> None:
    stop = threading.Event()
    stop.set()
    assert isinstance(JOBS[name].run_once(database, "logstore", stop=stop), Result)


@pytest.mark.parametrize("name", JOBS)
def test_no_server(name: str) -> None:
    with pytest.raises(ConnectionFailedError):
        JOBS[name].run_once("host=127.0.0.1 port=1 connect_timeout=2")


def test_a_choice() -> None:
    assert list(chosen(["statistics", "drain"])) == ["drain", "statistics"]
    assert chosen([]) == dict(JOBS)
    with pytest.raises(ConfigurationError, match="no job 'vacuum'"):
        chosen(["vacuum"])
