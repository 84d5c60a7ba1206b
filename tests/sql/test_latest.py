"""The last record of a key, without a scan."""

from __future__ import annotations

import pytest

from tests.support.compacting import all_records, close_segments, compact, create, keyed
from tests.support.sqllog import NOW_MS, Session, refused, rows, value

pytestmark = pytest.mark.every_server

LATEST = 'SELECT partition, "offset", value FROM latest(%s, %s::text)'


def test_the_last_record_wherever_it_is(session: Session) -> None:
    topic_id = create(session, partitions=2)
    keyed(session, topic_id, a="old", b="only", c="1")
    keyed(session, topic_id, 1, d="elsewhere")
    for number in range(40):
        keyed(session, topic_id, **{f"filler{number}": "x"})
    assert rows(session, LATEST, "t", "b") == [(0, 1, b"only")], "in a large head"
    close_segments(session, topic_id)
    keyed(session, topic_id, a="new", e="1")
    keyed(session, topic_id, a="newest", c=None)
    for key, place in {
        "a": (0, 45, b"newest"),
        "b": (0, 1, b"only"),
        "c": (0, 46, None),
        "d": (1, 0, b"elsewhere"),
        "e": (0, 44, b"1"),
    }.items():
        assert rows(session, LATEST, "t", key) == [place]
    assert rows(session, LATEST, "t", "nobody") == []
    close_segments(session, topic_id)
    compact(session, topic_id)
    assert rows(session, LATEST, "t", "a") == [(0, 45, b"newest")]
    assert rows(session, LATEST, "t", "b") == [(0, 1, b"only")]
    for _, offset, key, text, *_ in all_records(session):
        assert rows(session, 'SELECT "offset", value FROM latest(%s, %s::bytea)', "t", key) == [
            (offset, text)
        ]


def test_of_several_partitions_the_one_that_was_appended_last(session: Session) -> None:
    topic_id = create(session, partitions=3)
    keyed(session, topic_id, 2, a="first")
    keyed(session, topic_id, 0, a="second")
    keyed(session, topic_id, 2, a="third")
    session.execute("UPDATE batches SET append_time = append_time + 10 * last_offset WHERE partition = 2")
    assert rows(session, LATEST, "t", "a") == [(2, 1, b"third")]
    keyed(session, topic_id, 1, b="older")
    keyed(session, topic_id, 0, b="newer")
    session.execute("UPDATE batches SET append_time = 1 WHERE partition = 1")
    assert rows(session, LATEST, "t", "b") == [(0, 1, b"newer")]
    # What is below its partition's start does not count.
    session.execute("SELECT delete_records('t', 0, 2)")
    assert rows(session, LATEST, "t", "b") == [(1, 0, b"older")]
    in_partition = "SELECT value FROM latest(%s, %s::text, %s)"
    assert rows(session, in_partition, "t", "b", 1) == [(b"older",)]
    assert rows(session, in_partition, "t", "a", 0) == rows(session, in_partition, "t", "a", 1) == []
    assert refused(session, in_partition, "t", "a", 3).sqlstate == "LS001"


def test_records_below_the_log_start_are_gone(session: Session) -> None:
    topic_id = create(session)
    keyed(session, topic_id, a="1", b="1")
    session.execute("SELECT delete_records('t', 0, 1)")
    assert rows(session, LATEST, "t", "a") == []
    assert rows(session, LATEST, "t", "b") == [(0, 1, b"1")]


def test_only_compacted_topics_have_the_index(session: Session) -> None:
    topic_id = create(session, cleanup_policy="delete")
    keyed(session, topic_id, a="1", b="1")
    assert refused(session, LATEST, "t", "a").sqlstate == "LS053"
    assert refused(session, LATEST, "nothing", "a").sqlstate == "LS001"
    session.execute("""SELECT alter_topic('t', '{"cleanup.policy": "compact,delete"}')""")
    assert rows(session, LATEST, "t", "a") == [(0, 0, b"1")], "right, if slow, before the index is made"
    keyed(session, topic_id, a="2")
    ((_, segment, active),) = rows(session, "SELECT * FROM missing_key_indexes()")
    assert not active
    assert value(session, "SELECT mend_key_index(%s, %s)", topic_id, segment)
    assert rows(session, "SELECT * FROM missing_key_indexes()") == []
    assert rows(session, LATEST, "t", "a") == [(0, 2, b"2")]


@pytest.fixture
def large_head(session: Session) -> int:
    """60,000 records of as many keys in 600 batches of the segment that is appended to."""
    topic_id = create(session)
    session.execute(
        "SELECT append(%s, 0, 100, %s, null, array(SELECT convert_to(b || '-' || n, 'UTF8') "
        "FROM generate_series(1, 100) n), null, null, null, null, 0::int2) FROM generate_series(1, 600) b",
        [topic_id, NOW_MS],
    )
    return topic_id


def test_no_scan_of_a_large_head(session: Session, large_head: int) -> None:
    leaf = f"b_{large_head}_0"
    session.execute("SET enable_seqscan = off; SET enable_sort = off")
    bucket = value(session, "SELECT key_buckets(array['3-14'::bytea])")
    query = value(session, "SELECT latest_query(%s)", leaf)
    for name, text in {"$1": f"'{{{bucket[0]}}}'::int4[]", "$2": "0", "$3": "100"}.items():
        query = query.replace(name, text)
    plan = [
        line for (line,) in rows(session, "EXPLAIN (ANALYZE, TIMING OFF, COSTS OFF, SUMMARY OFF) " + query)
    ]
    shown = "\n".join(plan)
    assert "Seq Scan" not in shown
    assert f"Bitmap Index Scan on {leaf}_key" in shown
    assert f"Index Scan Backward using {leaf}_offset" in shown
    # Of 600 batches: the last 100, without their keys, and those that share the bucket, one in 650.
    (total,) = [int(float(line.split("rows=")[1].split(" ")[0])) for line in plan[:1]]
    assert 101 <= total < 125

    assert rows(session, LATEST, "t", "3-14") == [(0, 213, None)]
    assert rows(session, LATEST, "t", "600-100") == [(0, 59_999, None)]
    assert rows(session, LATEST, "t", "601-1") == []
