"""Topics and their configs."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from tests.support.sqllog import (
    Connect,
    Session,
    append,
    refused,
    rows,
    value,
    wait_until,
    waits_for_lock,
)


def create(session: Session, name: str = "t", partitions: Any = 1, configs: Any = None, **more: Any) -> Any:
    return value(
        session,
        "SELECT create_topic(%s, %s::int4, %s, if_not_exists => %s)",
        name,
        partitions,
        None if configs is None else json.dumps(configs),
        more.get("if_not_exists", False),
    )


def configs(session: Session, name: str = "t") -> dict[str, str]:
    found: dict[str, str] = value(session, "SELECT configs FROM metadata(%s)", [name])
    return found


def test_create_and_ask(session: Session) -> None:
    first = create(
        session, "a.topic_Name-1", 3, {"retention.ms": -1, "message.timestamp.type": "LogAppendTime"}
    )
    second = create(session, "b", 1)
    assert first != second
    asked = "SELECT topic, topic_id, partitions, timestamp_type, max_message_bytes FROM metadata(%s)"
    assert rows(session, asked, None) == [
        ("a.topic_Name-1", first, 3, 1, 1048588),
        ("b", second, 1, 0, 1048588),
    ]
    assert rows(session, asked, ["b", "nope"]) == [("b", second, 1, 0, 1048588)]
    assert rows(session, asked, []) == []
    assert configs(session, "a.topic_Name-1")["retention.ms"] == "-1"
    assert configs(session, "b")["retention.ms"] == "604800000"


def test_create_twice(session: Session) -> None:
    first = create(session)
    assert create(session, if_not_exists=True, partitions=9) == first
    error = refused(session, "SELECT create_topic('t', 1)")
    assert error.sqlstate == "LS002"
    assert json.loads(error.diag.message_detail or "") == {"topic": "t"}


def test_legal_names(session: Session) -> None:
    for name in ("t" * 249, "t" * 248, "-", "_", "...", "0", "__consumer_offsets", "a.b", "a_b"):
        topic = create(session, name)
        append(session, topic)
        assert value(session, "SELECT count(*) FROM records WHERE topic = %s", name) == 1
        view = value(session, "SELECT view_name FROM topic WHERE name = %s", name)
        assert len(view) <= 63
        assert (view == name) is (len(name) <= 63)
        assert value(session, f'SELECT topic FROM logstore_topics."{view}"') == name  # noqa: S608


def test_impossible_numbers_of_partitions(session: Session) -> None:
    for partitions in (0, -1, 10_001, None):
        assert refused(session, "SELECT create_topic('t', %s::int4)", partitions).sqlstate == "LS005"
    assert rows(session, "SELECT FROM metadata(null)") == []


GOOD = [
    ("cleanup.policy", "compact", "compact"),
    ("cleanup.policy", "compact, delete", "delete,compact"),
    ("cleanup.policy", "", ""),
    ("compression.type", "uncompressed", "uncompressed"),
    ("delete.retention.ms", 0, "0"),
    ("max.compaction.lag.ms", "9223372036854775807", "9223372036854775807"),
    ("max.message.bytes", " 12 ", "12"),
    ("max.message.bytes", 5.0, "5"),
    ("message.timestamp.type", "LogAppendTime", "LogAppendTime"),
    ("min.cleanable.dirty.ratio", 0.25, "0.25"),
    ("min.cleanable.dirty.ratio", "1", "1"),
    ("min.insync.replicas", 3, "3"),
    ("retention.bytes", -1, "-1"),
    ("retention.ms", "+5", "5"),
    ("segment.bytes", 14, "14"),
    ("segment.ms", 1, "1"),
]
BAD = [
    ("cleanup.policy", "shrink", "LS004"),
    ("cleanup.policy", "delete,,", "LS004"),
    ("compression.type", "gzip", "LS011"),
    ("compression.type", "zstd", "LS011"),
    ("compression.type", "snappy", "LS011"),
    ("compression.type", "LZ4", "LS004"),
    ("delete.retention.ms", -1, "LS004"),
    ("max.message.bytes", 268435457, "LS004"),
    ("max.message.bytes", "1.5", "LS004"),
    ("max.message.bytes", "1e3", "LS004"),
    ("max.message.bytes", "NaN", "LS004"),
    ("max.message.bytes", "9" * 40, "LS004"),
    ("max.message.bytes", "0x10", "LS004"),
    ("max.message.bytes", "", "LS004"),
    ("message.timestamp.type", "createtime", "LS004"),
    ("message.timestamp.type", "", "LS004"),
    ("min.cleanable.dirty.ratio", 1.01, "LS004"),
    ("min.insync.replicas", 0, "LS004"),
    ("retention.ms", -2, "LS004"),
    ("retention.ms", "9223372036854775808", "LS004"),
    ("retention.ms", True, "LS004"),
    ("retention.ms", [1], "LS004"),
    ("retention.ms", {"a": 1}, "LS004"),
    ("segment.bytes", 13, "LS004"),
    ("segment.bytes", "1g", "LS004"),
    ("retention.mss", 1, "LS004"),
    ("", 1, "LS004"),
]


def test_every_config_has_a_validator(session: Session) -> None:
    create(session)
    for name, given, stored in GOOD:
        session.execute("SELECT alter_topic('t', %s)", (json.dumps({name: given}),))
        assert configs(session)[name] == stored, (name, given)
    before = configs(session)
    for name, given, code in BAD:
        error = refused(
            session, "SELECT alter_topic('t', %s)", json.dumps({"retention.bytes": 7, name: given})
        )
        assert error.sqlstate == code, (name, given)
        assert json.loads(error.diag.message_detail or "")["config"] == name
        assert refused(session, "SELECT create_topic('u', 1, %s)", json.dumps({name: given})).sqlstate == code
    assert configs(session) == before, "all or nothing"
    for nonsense in ("[]", '"a"', "5"):
        assert refused(session, "SELECT alter_topic('t', %s)", nonsense).sqlstate == "LS004"


def test_bounds_are_the_definitions_own(session: Session) -> None:
    create(session)
    for name, low, high in rows(
        session, "SELECT name, minimum, maximum FROM describe_configs('t') WHERE minimum IS NOT NULL"
    ):
        room = {"segment.ms": high} if name == "segment.jitter.ms" else {}
        for given in (low, high):
            session.execute("SELECT alter_topic('t', %s)", (json.dumps({name: given, **room}),))
            assert configs(session)[name] == given
        for given in (int(low) - 1, int(high) + 1):
            assert (
                refused(session, "SELECT alter_topic('t', %s)", json.dumps({name: given})).sqlstate == "LS004"
            )
        session.execute("SELECT alter_topic('t', null, %s)", ([name, *room],))


def test_describe_and_unset(session: Session) -> None:
    create(session, configs={"segment.ms": 5, "retention.ms": 7, "segment.bytes": None})
    query = "SELECT name, value, \"default\", is_default FROM describe_configs('t') WHERE name LIKE '%.ms'"
    described = {name: rest for name, *rest in rows(session, query)}
    assert described["segment.ms"] == ["5", "604800000", False]
    assert described["delete.retention.ms"] == ["86400000", "86400000", True]
    assert value(session, "SELECT count(*) FROM describe_configs('t') WHERE doc = '' OR type IS NULL") == 0
    assert value(session, "SELECT configs FROM topics") == {"segment.ms": "5", "retention.ms": "7"}
    session.execute("SELECT alter_topic('t', '{\"segment.ms\": null}', '{retention.ms,retention.bytes}')")
    assert value(session, "SELECT configs FROM topics") == {}
    assert refused(session, "SELECT alter_topic('t', null, '{nope}')").sqlstate == "LS004"
    assert refused(session, "SELECT describe_configs('nope')").sqlstate == "LS001"
    assert refused(session, "SELECT alter_topic('nope', null)").sqlstate == "LS001"


def test_an_altered_config_counts_from_the_next_append(session: Session) -> None:
    topic = create(session)
    session.execute("SELECT alter_topic('t', '{\"max.message.bytes\": 10}')")
    error = refused(session, "SELECT produce('t', 'k', 'more than ten bytes')")
    assert error.sqlstate == "LS007"
    session.execute("SELECT alter_topic('t', null, '{max.message.bytes}')")
    append(session, topic)


def test_add_partitions(session: Session) -> None:
    topic = create(session, partitions=2, configs={"segment.bytes": 14})
    for _ in range(3):
        append(session, topic, partition=1)
    session.execute("SELECT add_partitions('t', 4)")
    assert append(session, topic, partition=3) == [0, -1, 0]
    assert value(session, "SELECT partitions FROM metadata('{t}')") == 4
    assert rows(session, "SELECT partition, high_watermark, segment FROM partitions ORDER BY 1") == [
        (0, 0, 0),
        (1, 3, 2),
        (2, 0, 3),
        (3, 1, 3),
    ]
    for total in (4, 3, 0, 10_001, None):
        assert refused(session, "SELECT add_partitions('t', %s::int4)", total).sqlstate == "LS005"
    assert refused(session, "SELECT add_partitions('nope', 4)").sqlstate == "LS001"


def test_a_deleted_topic_is_gone_at_once(connect: Connect, session: Session) -> None:
    topic = create(session)
    append(session, topic)
    session.execute("SELECT delete_topic('t')")
    for view in ("records", "topics", "partitions", "segments"):
        assert value(session, f"SELECT count(*) FROM {view}") == 0  # noqa: S608
    assert rows(session, "SELECT FROM metadata(null)") == []
    query = "SELECT append(%s::int4, 0, 1, 5, null, null, '{v}', null, null, null, 1::int2)"
    assert refused(session, query, topic).sqlstate == "LS001"
    assert rows(session, "SELECT log_start, high_watermark FROM high_watermarks(%s, '{0}')", [topic]) == [
        (None, None)
    ]
    assert rows(
        session,
        "SELECT log_start, high_watermark, base_offset FROM \"fetch\"(%s, '{0}', '{0}', 9, 9)",
        [topic],
    ) == [(None, None, None)]
    for call in ("delete_topic('t')", "produce('t', 'k', 'v')", "read('t')", "alter_topic('t', null)"):
        assert refused(session, f"SELECT {call}").sqlstate == "LS001"
    again = create(session)
    assert again != topic
    assert append(session, again) == [0, -1, 0]
    assert value(session, "SELECT count(*) FROM logstore_topics.t") == 1


def test_catalog_views(session: Session) -> None:
    topic = create(session, "orders", 2, {"segment.bytes": 150})
    create(session, "empty")
    for _ in range(3):
        append(session, topic, [b"x" * 50])
    session.execute("SELECT delete_records('orders', 0, 1)")
    size = value(session, "SELECT DISTINCT size_bytes FROM batches")
    assert rows(session, "SELECT topic, partitions, records, bytes, segments FROM topics ORDER BY topic") == [
        ("empty", 1, 0, 0, 1),
        ("orders", 2, 2, 3 * size, 2),
    ]
    assert rows(
        session,
        "SELECT topic, partition, log_start, high_watermark, records, bytes, segment FROM partitions ORDER BY"
        " 1, 2",
    ) == [
        ("empty", 0, 0, 0, 0, 0, 0),
        ("orders", 0, 1, 3, 2, 3 * size, 1 if 2 * size >= 150 else 0),
        ("orders", 1, 0, 0, 0, 0, 0),
    ]
    assert rows(
        session,
        "SELECT segment, partition, first_offset, last_offset, records, bytes, sealed, leaf FROM segments"
        " WHERE topic = 'orders' ORDER BY 1, 2",
    ) == [
        (0, 0, 0, 1, 2, 2 * size, True, f"b_{topic}_0"),
        (0, 1, 0, -1, 0, 0, False, f"b_{topic}_0"),
        (1, 0, 2, 2, 1, size, False, f"b_{topic}_1"),
    ]


def test_deleting_does_not_deadlock_with_whoever_writes_to_several_partitions(
    connect: Connect, session: Session
) -> None:
    topic = value(session, "SELECT create_topic('several', 3)")
    # Rows are no longer where their order would have them.
    session.execute("UPDATE topic_partition SET log_start = 0 WHERE partition = 0")
    writer, deleter = connect(), connect(enable_indexscan="off", enable_bitmapscan="off")
    writer.execute("BEGIN")
    append(writer, topic, partition=0)
    with ThreadPoolExecutor(1) as pool:
        deleting = pool.submit(deleter.execute, "SELECT delete_topic('several')")
        wait_until(lambda: waits_for_lock(session, deleter))
        append(writer, topic, partition=1)
        append(writer, topic, partition=2)
        writer.execute("COMMIT")
        deleting.result()
