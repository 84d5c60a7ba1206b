"""What is copied is the same in both logs, as SQL sees it."""

from __future__ import annotations

import pytest

from logstore.workers.mirroring import Mirror
from tests.support import jobs
from tests.support.appender import values
from tests.support.mirrored import Both

ACROSS = pytest.mark.parametrize(
    "both",
    [("server", "server"), ("server", "postgres15"), ("postgres15", "server"), ("pooled", "pooled")],
    indirect=True,
)


def fill(both: Both) -> None:
    """Topics with everything that a record can have."""
    both.create("orders", 3, segment_bytes="3000", retention_ms="-1")
    both.create("stamped", 1, message_timestamp_type="LogAppendTime")
    both.create("empty", 2)
    for number in range(20):
        for partition in range(3):
            both.append("orders", values(7, 7 * number), partition, keys=values(7), timestamps=[
                1_700_000_000_000 + 13 * number - offset for offset in range(7)])  # fmt: skip
    both.append("orders", [None, b"", b"\x00\xff"], 1, keys=[None, b"", b"k"],
                headers=[(1, "a", None), (1, "a", b""), (2, "", b"\xff\x00"), (3, "é", b"v")])  # fmt: skip
    # Small ones, which are joined on the way.
    for number in range(30):
        both.append("stamped", [b"%d" % number], headers=[(1, "n", b"%d" % number)] if number % 3 else None)
    both.source.execute("UPDATE topic_partition SET leader_epoch = 4 WHERE partition = 2")
    both.append("orders", values(5), 2)
    both.commit("billing", "orders", 0, 12, "twelve")
    both.commit("billing", "orders", 1, 143)
    both.commit("reports", "stamped", 0, 30)


@ACROSS
def test_the_same(both: Both) -> None:
    fill(both)
    cycle = both.cycle()
    assert cycle.topics == {"orders", "stamped"}
    assert cycle.records == 3 * 140 + 3 + 30 + 5
    assert both.differences() == []
    assert both.findings() == []
    again = both.cycle()
    assert (again.topics, again.records, again.offsets, again.refused) == (set(), 0, 0, {})


def test_small_batches_are_joined(both: Both) -> None:
    both.create("t", 1)
    for number in range(50):
        both.append(
            "t", [b"%d" % number], keys=[None if number % 2 else b"k"], timestamps=[1000 + number % 7]
        )
    assert both.cycle().batches == 1
    assert both.differences() == []
    assert both.findings() == []


def test_going_on(both: Both) -> None:
    both.create("t", 1)
    with Mirror(both.link) as mirror:
        for number in range(5):
            both.append("t", values(3, number))
            both.commit("g", "t", 0, 2 * number)
            assert mirror.cycle().records == 3
            assert both.differences() == []


def test_partitions_and_configs_that_change(both: Both) -> None:
    both.create("t", 1, retention_ms="5000")
    both.append("t", values(3))
    with Mirror(both.link) as mirror:
        mirror.cycle()
        both.source.execute("SELECT add_partitions('t', 3)")
        both.source.execute(
            """SELECT alter_topic('t', '{"segment.ms": 900, "segment.jitter.ms": 600}', '{retention.ms}')"""
        )
        both.append("t", values(2), 2)
        assert mirror.cycle().records == 2
    assert both.differences() == []
    # Nobody else writes to the new ones either.
    assert both.target.execute("SELECT bool_and(read_only) FROM topic_partition").fetchone() == (True,)


def test_what_belongs_to_the_place_stays(both: Both) -> None:
    both.create("t", 1, min_insync_replicas="2", retention_ms="-1")
    both.cycle()
    assert both.target.execute("SELECT configs FROM topic").fetchone() == ({"retention.ms": "-1"},)


def test_a_start_that_is_not_0(both: Both) -> None:
    both.create("t", 2)
    for partition in (0, 1):
        both.append("t", values(10), partition)
    both.source.execute("SELECT delete_records('t', 0, 4)")
    # Empty, and it does not begin at 0.
    both.source.execute("SELECT delete_records('t', 1, -1)")
    both.cycle()
    assert both.differences("records", "ends") == []
    both.append("t", values(3), 1)
    both.cycle()
    assert both.differences() == []
    assert both.findings() == []


def test_retention_of_the_source_is_followed(both: Both) -> None:
    both.create("t", 1, segment_bytes="500", retention_ms="1000", file_delete_delay_ms="0")
    for number in range(10):
        both.append("t", values(20, number), timestamps=[1000] * 20)
    both.cycle()
    # Older than retention.ms, but the source has it still.
    jobs.settle(both.link.target, ["roll", "retention", "reclaim"])
    assert both.differences("records", "ends") == []
    segments = "SELECT count(*) FROM topic_segment"
    before = both.target.execute(segments).fetchone()
    jobs.settle(both.link.source, ["roll", "retention", "reclaim"])
    both.cycle()
    assert both.differences("records", "ends") == []
    assert both.target.execute("SELECT count(*) FROM records").fetchone() == (0,)
    jobs.settle(both.link.target, ["roll", "retention", "reclaim"])
    assert (both.target.execute(segments).fetchone() or (0,)) < (before or (0,))


def test_retention_that_was_faster_than_the_mirror(both: Both) -> None:
    both.create("t", 1)
    both.append("t", values(5))
    both.cycle()
    both.append("t", values(5))
    both.source.execute("SELECT delete_records('t', 0, -1)")
    both.cycle()
    assert both.differences("records", "ends") == []
    both.append("t", values(5))
    both.cycle()
    assert both.differences() == []
    assert both.findings() == []


@pytest.mark.parametrize("begun", [False, True], ids=["afterwards", "before"])
@pytest.mark.parametrize("stamps", ["CreateTime", "LogAppendTime"])
def test_holes_of_compaction(both: Both, begun: bool, stamps: str) -> None:
    both.create(
        "t",
        1,
        cleanup_policy="compact",
        segment_bytes="2000",
        min_cleanable_dirty_ratio="0",
        delete_retention_ms="0",
        message_timestamp_type=stamps,
    )
    for number in range(12):
        both.append(
            "t", values(10, 10 * number), keys=[b"%d" % (key % 7) for key in range(number, number + 10)]
        )
        if begun and number in (2, 7):
            both.cycle()
    jobs.settle(both.link.source, ["roll", "compaction", "reclaim"])
    both.append("t", values(2), keys=[b"x", b"y"])
    both.cycle()
    if begun:
        # What was copied before it was compacted is still there; the last of each key is the same.
        last = 'SELECT DISTINCT ON (key) key, "offset", value FROM records ORDER BY key, "offset" DESC'
        assert both.target.execute(last).fetchall() == both.source.execute(last).fetchall()
        assert both.differences("ends") == []
    else:
        assert both.differences() == []
        assert both.source.execute("SELECT count(*) < 100 FROM records").fetchone() == (True,)
    assert both.findings() == []


def test_what_the_server_stamped_and_compaction_joined(both: Both) -> None:
    """A batch of several moments, whose type says that it has one: an audit knows where that comes from."""
    both.create("t", 1, message_timestamp_type="LogAppendTime")
    both.cycle()
    both.target.execute(
        "SELECT mirror_append(topic_id_of('t'), 0, 0, 4, 2, 0, 1::int2, 9, 8, ARRAY[7, 8]::int8[], NULL,"
        " NULL, NULL, NULL, NULL, ARRAY[1, 3])"
    )
    assert both.findings() == []


def test_positions_that_are_ahead_wait(both: Both) -> None:
    both.create("t", 1)
    both.append("t", values(10))
    with Mirror(both.link) as mirror:
        mirror.cycle()
        both.append("t", values(10))
        both.commit("g", "t", 0, 20)
        # As if the partition were locked: nothing is copied.
        ends = "SELECT committed_offset, leader_epoch FROM group_offset"
        with both.target.transaction():
            both.target.execute("SELECT FROM topic_partition FOR UPDATE")
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(mirror, "_copy", lambda *_: None)
                mirror.cycle()
        assert both.target.execute(ends).fetchone() == (10, None)
        mirror.cycle()
        assert both.target.execute(ends).fetchone() == (20, 0)


def test_groups_that_are_in_use_are_left_alone(both: Both) -> None:
    both.create("t", 1)
    both.append("t", values(10))
    both.commit("g", "t", 0, 3)
    both.commit("s", "t", 0, 4)
    both.cycle()
    both.target.execute("UPDATE log_group SET kind = 'share' WHERE name = 's'")
    from logstore import Consumer

    with Consumer("t", dsn=both.link.target, group_id="g", auto_offset_reset="earliest") as consumer:
        assert consumer.poll(timeout_ms=10_000)
        both.commit("g", "t", 0, 7)
        both.commit("s", "t", 0, 7)
        assert both.cycle().groups_left == {"g", "s"}
    assert both.target.execute(
        "SELECT name, committed_offset FROM group_offset JOIN log_group USING (group_id) WHERE name = 's'"
    ).fetchone() == ("s", 4)
