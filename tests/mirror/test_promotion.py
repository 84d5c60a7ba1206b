"""A mirror takes the place of its source: at no time do both take records, and nothing is lost on the way."""

from __future__ import annotations

import threading

import psycopg
import pytest

from logstore import Producer, errors
from logstore.workers import mirror as job
from logstore.workers.mirror_status import report
from logstore.workers.mirroring import Link, Mirror
from logstore.workers.promotion import Promoted, promote
from tests.support.appender import Appender, values
from tests.support.mirrored import Both

NOWHERE = "host=127.0.0.1 port=1 connect_timeout=2"


def switch(link: Link, *topics: str, **options: float) -> Promoted:
    return promote(link, link.target, topics, **options)  # type: ignore[arg-type]


def test_a_mirror_refuses_writers(both: Both) -> None:
    both.create("t", 1)
    both.append("t", values(3))
    both.cycle()
    with pytest.raises(errors.TopicReadOnlyError) as caught:
        both.append_there("t", values(1))
    assert caught.value.details["state"] == "mirror"
    assert not caught.value.retriable
    with Producer(both.link.target) as producer, pytest.raises(errors.TopicReadOnlyError):
        producer.send("t", b"v").get(timeout=20)
    for text in ("SELECT produce('t', 'k', 'v')", "SELECT stage('t', 0, null, 'v', null, null, null)"):
        with pytest.raises(psycopg.DatabaseError, match="read-only") as refused:
            both.target.execute(text.encode())
        assert refused.value.sqlstate == "LS060"
    assert both.differences() == []


def test_there_and_back(both: Both) -> None:
    both.create("t", 2)
    both.append("t", values(10))
    both.cycle()
    # Not mirrored yet.
    both.append("t", values(5, 10), 1)
    both.commit("g", "t", 0, 7)
    came_to = switch(both.link)
    assert (came_to.topics, came_to.fenced, came_to.ends, came_to.lacking) == (
        ("t",),
        True,
        {"t": [10, 5]},
        (),
    )
    # Newer than the source's, which the fence has raised.
    assert came_to.epochs == {"t": [2, 2]}
    assert both.differences("records", "groups") == []
    with pytest.raises(errors.TopicReadOnlyError) as caught:
        both.append("t", values(1))
    assert caught.value.details["state"] == "fenced"
    assert both.append_there("t", values(3, 100)) == 10

    # It leads now: nothing is copied over it.
    assert both.cycle().refused["t"].details["reason"] == "promoted"

    # What was fenced for it becomes its mirror.
    cycle = both.cycle(link=both.back)
    assert (cycle.records, cycle.refused) == (3, {})
    assert both.differences("records", "stamps", "groups", "ends") == []
    both.append_there("t", values(2), 1)
    came_to = switch(both.back)
    assert came_to.fenced
    assert came_to.epochs == {"t": [4, 4]}
    assert both.differences("records") == []
    with pytest.raises(errors.TopicReadOnlyError):
        both.append_there("t", values(1))
    assert both.append("t", values(1)) == 13
    # And once more.
    both.cycle()
    assert switch(both.link).epochs == {"t": [6, 6]}
    assert both.findings() == []


def test_while_producers_write(both: Both) -> None:
    """Every record that was acknowledged by either is in the mirror, once; none comes after the fence."""
    both.create("t", 2)
    both.cycle()
    acknowledged: list[tuple[int, int, bytes]] = []
    begun = threading.Barrier(3)

    def write(partition: int) -> None:
        appender = Appender(both.link.source)
        for number in range(100_000):
            value = b"%d-%d" % (partition, number)
            try:
                offset = appender.append("t", [value], partition, wake=False)
            except errors.TopicReadOnlyError:
                break
            acknowledged.append((partition, offset, value))
            if number == 20:
                begun.wait(30)
        appender.connection.close()

    writers = [threading.Thread(target=write, args=[partition]) for partition in (0, 1)]
    for writer in writers:
        writer.start()
    begun.wait(30)
    came_to = switch(both.link)
    for writer in writers:
        writer.join(30)
    assert came_to.fenced
    there = both.target.execute('SELECT "partition", "offset", value FROM records').fetchall()
    assert sorted(there) == sorted(acknowledged)
    assert both.differences("records") == []


def test_what_is_staged_is_waited_for(both: Both) -> None:
    both.create("t", 1)
    both.cycle()
    stage = "SELECT stage('t', 0, null, 'staged', null, null, null)"
    both.source.execute(stage.encode())
    with psycopg.connect(both.link.source, options="-c search_path=logstore") as outbox:
        outbox.execute(stage.encode())
        with pytest.raises(errors.RequestTimedOutError, match="staged"):
            switch(both.link, timeout_s=0.5)
        # Fenced, and not promoted: nobody writes.
        for append in (both.append, both.append_there):
            with pytest.raises(errors.TopicReadOnlyError):
                append("t", values(1))
        outbox.commit()
    assert switch(both.link).ends == {"t": [2]}
    assert both.differences("records") == []


def test_a_retry_of_what_is_in_the_log_is_answered(both: Both) -> None:
    both.create("t", 1)
    both.cycle()
    call = (
        "SELECT append(topic_id_of('t'), 0, 1, 1, null, null, ARRAY['v'::bytea], null, null, null, 1::int2,"
        " 77, 0::int2, 0)"
    )
    first = both.source.execute(call.encode()).fetchone()
    switch(both.link)
    assert both.source.execute(call.encode()).fetchone() == first


def test_without_the_source(both: Both) -> None:
    both.create("t", 1)
    both.append("t", values(4))
    both.cycle()
    lost = Link(NOWHERE, both.link.target)
    with pytest.raises(errors.ConnectionFailedError, match="cannot be fenced") as caught:
        switch(lost)
    assert "at least 0 records of t-0 from offset 4 on, and all since" in caught.value.advice
    with pytest.raises(errors.MirrorError, match="cannot be fenced"):
        promote(None, both.link.target)
    # It was seen to have more than was copied.
    both.target.execute("UPDATE mirrored_topic SET peer_ends = '{9}'")
    came_to = switch(lost, force=True)
    assert (came_to.fenced, came_to.epochs) == (False, {"t": [1]})
    assert [(each.topic, each.partition, each.end, each.records) for each in came_to.lacking] == [
        ("t", 0, 4, 5)
    ]
    both.append_there("t", values(1))
    # Both lead now, so the old one is not overwritten.
    assert both.cycle(link=both.back).refused["t"].details["reason"] == "not_a_mirror"


def test_a_fence_can_be_lifted(both: Both) -> None:
    both.create("t", 1)
    both.cycle()
    both.append("t", values(1))
    both.source.execute("SELECT fence_topic('t', 'x', 1, 'somewhere')")
    with pytest.raises(errors.MirrorError, match="no mirror"):
        promote(None, both.link.source, ["t"])
    came_to = promote(None, both.link.source, ["t"], force=True)
    assert came_to.epochs == {"t": [2]}
    both.append("t", values(1))


def test_promoted_twice(both: Both) -> None:
    both.create("t", 1)
    both.cycle()
    first = switch(both.link)
    assert switch(both.link, "t").epochs == first.epochs
    with pytest.raises(errors.UnknownTopicOrPartitionError):
        switch(both.link)
    with pytest.raises(errors.UnknownTopicOrPartitionError, match="nosuch"):
        switch(both.link, "nosuch")


def test_logs_that_do_not_belong_together(both: Both) -> None:
    both.create("t", 1)
    both.append("t", values(2))
    with pytest.raises(errors.ConfigurationError, match="same log"):
        both.cycle(link=Link(both.link.source, both.link.source))
    # A topic of its own.
    both.appenders[1].create("t", 1)
    both.append_there("t", values(1))
    assert both.cycle().refused["t"].details["reason"] == "not_a_mirror"
    assert both.append_there("t", values(1)) == 1
    both.target.execute("SELECT delete_topic('t')")
    both.cycle()
    assert both.differences() == []
    # Deleted at the source, then made anew.
    both.source.execute("SELECT delete_topic('t')")
    assert both.cycle().missing == ["t"]
    assert both.target.execute("SELECT count(*) FROM records").fetchone() == (2,)
    both.create("t", 1)
    assert both.cycle().refused["t"].details["reason"] == "recreated"
    # From somewhere else.
    both.target.execute("UPDATE mirrored_topic SET peer = 'another'")
    assert both.cycle().refused["t"].details["reason"] == "other_peer"


def test_a_source_that_has_lost_records(both: Both) -> None:
    both.create("t", 1)
    both.create("u", 1)
    for topic in "tu":
        both.append(topic, values(2))
        both.append(topic, values(2))
    both.cycle()
    # As a failover may: the end is gone, and under the next leader other records take its place.
    both.source.execute("DELETE FROM batches WHERE base_offset = 2")
    assert both.cycle().refused["t"].details["reason"] == "parted"
    both.source.execute("UPDATE topic_partition SET leader_epoch = 1")
    both.append("t", values(2))
    refused = both.cycle().refused
    assert {name: error.details["reason"] for name, error in refused.items()} == {
        "t": "parted",
        "u": "parted",
    }
    with pytest.raises(errors.MirrorError, match="parted"):
        switch(both.link, "t")


def test_a_source_that_may_not_show_all_it_has_just_now(both: Both) -> None:
    """As after a failover, until its followers have what the mirror has."""
    both.create("t", 1)
    both.source.execute(
        "CREATE OR REPLACE FUNCTION appending_xact() RETURNS int8 LANGUAGE sql VOLATILE"
        " RETURN pg_current_xact_id()::text::int8"
    )
    both.append("t", values(2))
    with Mirror(both.link) as mirror:
        mirror.cycle()
        limit = (
            "CREATE OR REPLACE FUNCTION safe_limit() RETURNS pg_snapshot LANGUAGE sql STABLE"
            " RETURN {}::pg_snapshot"
        )
        both.source.execute(limit.format("'1:1:'").encode())
        assert mirror.cycle().refused == {}
        assert [each["parted"] for each in report(both.link.target, source=both.link.source)[0]] == [False]
        both.append("t", values(1))
        both.source.execute(limit.format("null").encode())
        cycle = mirror.cycle()
        assert (cycle.records, cycle.refused) == (1, {})
        both.source.execute("DELETE FROM batches WHERE base_offset = 2")
        assert mirror.cycle().refused["t"].details["reason"] == "parted"
        assert [each["parted"] for each in report(both.link.target, source=both.link.source)[0]] == [True]


def test_the_job(both: Both, monkeypatch: pytest.MonkeyPatch) -> None:
    both.create("t", 1)
    both.create("u", 1)
    both.append("t", values(2))
    assert job.run_once(both.link.target).records == 0
    monkeypatch.setenv("LOGSTORE_MIRROR_FROM", both.link.source)
    # Only what is a mirror already.
    assert job.run_once(both.link.target).records == 0
    both.cycle("t")
    both.append("t", values(2))
    both.append("u", values(2))
    assert job.run_once(both.link.target).topics == ("t",)
    monkeypatch.setenv("LOGSTORE_MIRROR_TOPICS", "u,x*")
    assert job.run_once(both.link.target).topics == ("u",)
    assert both.differences() == []
    monkeypatch.delenv("LOGSTORE_MIRROR_FROM")
    with pytest.raises(errors.ConfigurationError, match="LOGSTORE_MIRROR_FROM"):
        job.run_once(both.link.target)
