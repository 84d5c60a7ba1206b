"""What append() refuses, and that it then writes nothing."""

from __future__ import annotations

import json
import random
import time
from typing import Any

from logstore._core.batch import BATCH_OVERHEAD, RECORD_OVERHEAD, headers_size
from tests.support.sqllog import NOW_MS, Connect, Session, append, refused, rows, value

NOTHING: Any = None


def create(session: Session, configs: dict[str, Any] | None = None) -> int:
    created: int = value(session, "SELECT create_topic('t', 1, %s)", json.dumps(configs or {}))
    return created


CALL = (
    "SELECT append(%s::int4, %s::int4, %s::int4, %s::int8, %s::int8[], %s::bytea[], %s::bytea[], %s::int4[],"
    " %s::text[], %s::bytea[], 1::int2)"
)


MISFITS: list[tuple[Any, ...]] = [
    # count, timestamps, keys, values, header_records, header_keys, header_values
    (0, None, None, None, None, None, None),
    (-1, None, None, None, None, None, None),
    (None, None, None, None, None, None, None),
    (1, None, None, "{}", None, None, None),
    (2, None, None, "{a}", None, None, None),
    (1, None, "{a,b}", "{a}", None, None, None),
    (2, None, None, "{{a},{b}}", None, None, None),
    (2, None, None, "[0:1]={a,b}", None, None, None),
    (2, "{5}", None, "{a,b}", None, None, None),
    (2, "{5,NULL}", None, "{a,b}", None, None, None),
    (2, "{5,6}", None, "{a,b}", None, None, None),
    (2, "{3,4}", None, "{a,b}", None, None, None),
    (1, None, None, "{a}", "{1}", "{k}", None),
    (1, None, None, "{a}", "{1}", "{k,l}", "{v,w}"),
    (1, None, None, "{a}", "{2}", "{k}", "{v}"),
    (1, None, None, "{a}", "{0}", "{k}", "{v}"),
    (1, None, None, "{a}", "{NULL}", "{k}", "{v}"),
    (1, None, None, "{a}", "{1}", "{NULL}", "{v}"),
    (2, None, None, "{a,b}", "{2,1}", "{k,l}", "{v,w}"),
    (2, None, None, "{a,b}", "[2:3]={1,2}", "{k,l}", "{v,w}"),
    (1, None, None, "{a}", "{}", "{}", "{}"),
]


def test_arrays_have_to_fit_each_other(session: Session) -> None:
    topic = create(session)
    for count, *arrays in MISFITS:
        error = refused(session, CALL, topic, 0, count, 5, *arrays)
        assert error.sqlstate == "LS010", (count, arrays)
    assert rows(session, "SELECT FROM batches") == []


def test_unknown_partition(session: Session) -> None:
    topic = create(session)
    for partition in (-1, 1, None):
        error = refused(session, CALL, topic, partition, 1, NOW_MS, *[None] * 6)
        assert error.sqlstate == "LS001"
        assert json.loads(error.diag.message_detail or "")["topic"] == "t"


def test_unknown_topic(session: Session) -> None:
    error = refused(session, CALL, 99, 0, 1, NOW_MS, *[None] * 6)
    assert error.sqlstate == "LS001"
    assert "99" in str(error)


def test_too_large_a_batch_names_the_limit(session: Session) -> None:
    topic = create(session, {"max.message.bytes": 1000})
    append(session, topic, [b"x" * 900])
    error = refused(session, CALL, topic, 0, 1, NOW_MS, None, None, [b"x" * 1000], None, None, None)
    assert error.sqlstate == "LS007"
    detail = json.loads(error.diag.message_detail or "")
    assert detail["max.message.bytes"] == 1000
    assert detail["size"] > 1000
    assert value(session, "SELECT count(*) FROM batches") == 1


CLOCKS: list[tuple[dict[str, Any], int, str | None]] = [
    # configs, distance from the server's clock in ms, error
    ({}, 3_599_000, None),
    ({}, 3_700_000, "LS008"),
    ({"message.timestamp.after.max.ms": 1000}, 60_000, "LS008"),
    ({"message.timestamp.after.max.ms": str(2**63 - 1)}, 10**11, None),
    ({"message.timestamp.before.max.ms": 60_000}, -50_000, None),
    ({"message.timestamp.before.max.ms": 60_000}, -70_000, "LS008"),
    ({"message.timestamp.after.max.ms": str(2**63 - 1)}, 10**15, "LS008"),
]


def test_time_stamps_near_the_servers_clock(session: Session) -> None:
    for number, (configs, offset_ms, code) in enumerate(CLOCKS):
        topic = value(session, "SELECT create_topic(%s, 1, %s)", f"t{number}", json.dumps(configs))
        at = time.time_ns() // 1_000_000 + offset_ms
        if code is None:
            append(session, topic, at=at)
        else:
            assert refused(session, CALL, topic, 0, 1, at, *[None] * 6).sqlstate == code
        for nonsense in (-1, None, 2**63 - 1):
            assert refused(session, CALL, topic, 0, 1, nonsense, *[None] * 6).sqlstate == "LS008"


def test_the_oldest_of_a_batch_counts(session: Session) -> None:
    topic = create(session, {"message.timestamp.before.max.ms": 60_000})
    now = time.time_ns() // 1_000_000
    append(session, topic, 3, timestamps=[now, now - 50_000, now - 1])
    error = refused(session, CALL, topic, 0, 2, now, [now, now - 70_000], None, None, None, None, None)
    assert error.sqlstate == "LS008"


def test_the_servers_clock_where_the_topic_says_so(session: Session) -> None:
    topic = create(session, {"message.timestamp.type": "LogAppendTime"})
    before = time.time_ns() // 1_000_000
    base, at, start = append(session, topic, 2, timestamps=[1, 2])
    assert (base, start) == (0, 0)
    assert abs(at - before) < 60_000
    assert rows(session, "SELECT timestamp_type, max_timestamp, timestamps FROM batches") == [(1, at, None)]
    session.execute("SELECT alter_topic('t', null, '{message.timestamp.type}')")
    assert append(session, topic, 2, timestamps=[1, 2]) == [2, -1, 0]
    assert rows(session, "SELECT timestamp_type, timestamps FROM batches ORDER BY base_offset") == [
        (1, None),
        (0, [1, 2]),
    ]


def test_too_few_replicas_before_anything_is_written(session: Session) -> None:
    topic = create(session, {"min.insync.replicas": 2})
    query = CALL.replace("1::int2", "-1::int2")
    error = refused(session, query, topic, 0, 1, NOW_MS, *[None] * 6)
    assert error.sqlstate == "LS009"
    assert rows(session, "SELECT FROM batches") == []
    append(session, topic, acks=1)


def test_sequences_are_kept(connect: Connect) -> None:
    session = connect()
    topic = create(session)
    session.execute(
        "SELECT append(%s::int4, 0, 3, %s::int8, null, null, '{a,b,c}', null, null, null, 1::int2,"
        " 77, 5::int2, 2147483646)",
        (topic, NOW_MS),
    )
    assert rows(session, "SELECT producer_id, producer_epoch, base_sequence, last_sequence FROM batches") == [
        (77, 5, 2147483646, 0)
    ]


def test_the_clients_size_is_an_upper_bound_of_the_servers(session: Session) -> None:
    """So that a record which the client lets through is never refused for its size."""
    dice = random.Random(3)
    topic = create(session, {"max.message.bytes": 10_000_000})
    for count in (1, 1, 1, 2, 3, 8, 9, 100):
        records = [dice.choice([None, dice.randbytes(dice.randrange(6))]) for _ in range(count)]
        keys = [dice.choice([None, dice.randbytes(dice.randrange(6))]) for _ in range(count)]
        headers: list[tuple[int, str, bytes | None]] = [
            (ordinal, "k" * dice.randrange(6), dice.choice([None, b"v" * dice.randrange(6)]))
            for ordinal in range(1, count + 1)
            for _ in range(dice.randrange(1, 4))
        ]
        timestamps = [NOW_MS + dice.randrange(9) for _ in range(count)]
        append(session, topic, records, keys=keys, timestamps=timestamps, headers=headers)
        measured = value(session, "SELECT size_bytes FROM batches ORDER BY base_offset DESC LIMIT 1")
        reckoned = BATCH_OVERHEAD + headers_size([(name, content) for _, name, content in headers])
        reckoned += sum(
            RECORD_OVERHEAD + len(key or b"") + len(content or b"")
            for key, content in zip(keys, records, strict=True)
        )
        assert reckoned - 250 - 12 * count - 10 * len(headers) <= measured <= reckoned
