"""What a producer puts into the log, and what it says about it."""

from __future__ import annotations

import time
import zlib
from collections import defaultdict
from typing import Any

import psycopg
import pytest

from logstore.errors import InvalidArgumentError, SerializationError
from logstore.records import CREATE_TIME, LOG_APPEND_TIME, BatchMetadata, RecordMetadata
from logstore.serde import to_json, to_text
from tests.support.appender import Appender
from tests.support.colours import Colour
from tests.support.log import Written, records, watch

pytestmark = pytest.mark.both_colours

ENOUGH_S = 60.0


@pytest.fixture
def topic(appender: Appender) -> str:
    appender.create("t", 4)
    return "t"


def test_record_is_where_its_future_says(colour: Colour, database: str, topic: str) -> None:
    producer = colour.producer(database)
    future = producer.send("t", b"value", key=b"key", timestamp_ms=1234)
    metadata = future.get(ENOUGH_S)
    partition = zlib.crc32(b"key") % 4
    assert metadata == RecordMetadata("t", partition, 0, 1234, CREATE_TIME, 3, 5)
    assert future.result(ENOUGH_S) == metadata
    assert (future.done(), future.succeeded(), future.failed()) == (True, True, False)
    assert records(database, "t") == [Written(partition, 0, b"key", b"value")]


def test_key_goes_where_sql_puts_it(colour: Colour, database: str, topic: str, appender: Appender) -> None:
    producer = colour.producer(database)
    for key in (b"", b"a", b"\xff\0", b"123456789", "schlüssel".encode()):
        from_sql = appender.connection.run(appender.calls.produce(topic, key, b"v"))
        assert producer.send_and_wait(topic, b"v", key=key).partition == from_sql


def test_records_of_a_key_stay_in_order(colour: Colour, database: str, topic: str) -> None:
    with colour.producer(database, linger_ms=0) as producer:
        for number in range(2000):
            producer.send(topic, b"%d" % number, key=b"key %d" % (number % 7))
    by_partition: dict[int, list[int]] = defaultdict(list)
    by_key: dict[bytes | None, list[int]] = defaultdict(list)
    for partition, offset, key, value in records(database, topic):
        by_partition[partition].append(offset)
        by_key[key].append(int(value or b""))
    for offsets in by_partition.values():
        assert offsets == list(range(len(offsets)))
    for number in range(7):
        assert by_key[b"key %d" % number] == list(range(number, 2000, 7))


def test_missing_and_empty_keys_values_and_headers(colour: Colour, database: str, topic: str) -> None:
    headers = [("a", b"1"), ("a", None), ("", b""), ("ü", b"\xff\xfe")]
    with colour.producer(database) as producer:
        futures = [
            producer.send(topic, None, key=b"", partition=0),
            producer.send(topic, b"", headers=headers, partition=0),
            producer.send(topic, b"v", headers=[], partition=0),
        ]
    sizes = [(each.serialized_key_size, each.serialized_value_size) for each in (f.get() for f in futures)]
    assert sizes == [(0, -1), (-1, 0), (-1, 1)]
    consumer = colour.consumer(topic, dsn=database, auto_offset_reset="earliest")
    got: list[Any] = []
    while len(got) < 3:
        for some in consumer.poll(timeout_ms=60_000).values():
            got += some
    assert [(record.key, record.value, list(record.headers)) for record in got] == [
        (b"", None, []),
        (None, b"", headers),
        (None, b"v", []),
    ]


def test_timestamp_is_now_unless_given(colour: Colour, database: str, topic: str) -> None:
    producer = colour.producer(database)
    before = time.time_ns() // 1_000_000
    metadata = producer.send_and_wait(topic, b"v")
    assert before <= metadata.timestamp <= time.time_ns() // 1_000_000
    assert metadata.timestamp_type == CREATE_TIME


def test_server_stamps_the_records_where_the_topic_says_so(
    colour: Colour, database: str, appender: Appender
) -> None:
    appender.create("t", message_timestamp_type="LogAppendTime")
    producer = colour.producer(database)
    metadata = producer.send_and_wait("t", b"v", timestamp_ms=5)
    assert metadata.timestamp_type == LOG_APPEND_TIME
    assert metadata.timestamp > 1_600_000_000_000
    (run,) = producer.send_many("t", [b"v"]).get(ENOUGH_S)
    assert run.append_time >= metadata.timestamp


def test_unawaited_record_has_no_offset(colour: Colour, database: str, topic: str) -> None:
    producer = colour.producer(database, acks=0)
    assert producer.send_and_wait(topic, b"v", partition=1, timestamp_ms=7) == RecordMetadata(
        topic, 1, -1, 7, CREATE_TIME, -1, 1
    )
    assert producer.send_many(topic, [b"w"], partition=1).get(ENOUGH_S) == [
        BatchMetadata(topic, 1, -1, 1, -1)
    ]
    producer.close()
    assert [each.value for each in records(database, topic)] == [b"v", b"w"]


@pytest.mark.parametrize(("acks", "level"), [(0, "off"), (1, "local"), ("all", "on")])
def test_acks_decide_how_the_server_commits(
    colour: Colour, database: str, topic: str, acks: Any, level: str
) -> None:
    with psycopg.connect(database, autocommit=True) as other:
        other.execute("CREATE TABLE public.levels (level text)")
        other.execute(
            "CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
            "INSERT INTO public.levels VALUES (current_setting('synchronous_commit')); RETURN null; END $$"
        )
        leaf = watch(database, "SELECT 'b_' || topic_id || '_0' FROM logstore.topic")
        other.execute(
            f"CREATE TRIGGER note AFTER INSERT ON logstore.{leaf} FOR EACH ROW EXECUTE FUNCTION note()"
        )
    with colour.producer(database, acks=acks) as producer:
        producer.send(topic, b"v")
    assert watch(database, "SELECT string_agg(level, ',') FROM public.levels") == level


def test_many_records_at_once(colour: Colour, database: str, topic: str) -> None:
    keys = [b"key %d" % (number % 50) for number in range(30_000)]
    values = [b"%d" % number for number in range(30_000)]
    producer = colour.producer(database)
    future = producer.send_many(topic, values, keys=keys)
    runs = future.get(ENOUGH_S)
    assert len(future) == sum(run.record_count for run in runs) == 30_000
    written = records(database, topic)
    assert len(written) == 30_000
    by_partition: dict[int, list[bytes]] = defaultdict(list)
    for key, value in zip(keys, values, strict=True):
        by_partition[zlib.crc32(key) % 4].append(value)
    ends: dict[int, int] = defaultdict(int)
    for run in runs:
        assert run.base_offset == ends[run.partition]
        ends[run.partition] += run.record_count
    for partition, wanted in by_partition.items():
        assert [each.value for each in written if each.partition == partition] == wanted
        assert ends[partition] == len(wanted)


def test_every_kind_of_send_mixes_in_order(colour: Colour, database: str, topic: str) -> None:
    """The commonest kind of record, a key and a value that are bytes, takes a way of its own."""
    partition = zlib.crc32(b"k") % 4
    plain: dict[str, Any] = {"key": b"k", "value": b"v"}
    kinds: list[dict[str, Any]] = [
        plain | {"value": None},
        plain | {"headers": [("h", b"1")]},
        plain | {"timestamp_ms": 1_700_000_000_000},
        plain | {"value": b"v" * 3000},
        {"partition": partition, "value": b"none"},
    ]
    before = time.time_ns() // 1_000_000
    with colour.producer(database, batch_size=20_000) as producer:
        sent = [
            (kind, producer.send(topic, **kind)) for _ in range(40) for odd in kinds for kind in (plain, odd)
        ]
        places = [(kind, future.get(ENOUGH_S)) for kind, future in sent]
    after = time.time_ns() // 1_000_000
    assert [place.offset for _, place in places] == list(range(400))
    assert records(database, topic) == [
        Written(partition, offset, kind.get("key"), kind["value"]) for offset, (kind, _) in enumerate(places)
    ]
    for kind, place in places:
        if (stamp := kind.get("timestamp_ms")) is not None:
            assert place.timestamp == stamp
        else:
            assert before <= place.timestamp <= after
    query = """
        SELECT array_agg(u.at ORDER BY base_offset, u.n)
        FROM logstore.batches, unnest(coalesce(timestamps, array_fill(max_timestamp, array[record_count])))
                               WITH ORDINALITY u (at, n)"""
    with psycopg.connect(database) as connection:
        assert connection.execute(query).fetchall() == [([place.timestamp for _, place in places],)]


def test_many_records_mix_with_single_ones_in_order(colour: Colour, database: str, topic: str) -> None:
    with colour.producer(database) as producer:
        for number in range(0, 300, 3):
            producer.send(topic, b"%d" % number, partition=2)
            producer.send_many(topic, [b"%d" % (number + 1), b"%d" % (number + 2)], partition=2)
    assert [int(each.value or b"") for each in records(database, topic)] == list(range(300))


def test_many_records_with_everything(colour: Colour, database: str, topic: str) -> None:
    producer = colour.producer(database, key_serializer=to_text, value_serializer=to_json)
    future = producer.send_many(
        topic,
        iter([{"a": 1}, None, [2]]),
        keys=["k", None, "k"],
        headers=[[("h", b"1")], None, [("h", None)]],
        timestamps_ms=[3, 2, 1],
        partition=3,
    )
    assert future.get(ENOUGH_S) == [BatchMetadata(topic, 3, 0, 3, -1)]
    with psycopg.connect(database) as connection:
        rows = connection.execute(
            'SELECT key_text, value_json, headers IS NULL, extract(epoch from "timestamp") * 1000 '
            'FROM logstore.records ORDER BY "offset"'
        ).fetchall()
    assert [(key, value, int(stamp)) for key, value, _, stamp in rows] == [
        ("k", {"a": 1}, 3),
        (None, None, 2),
        ("k", [2], 1),
    ]


def test_no_records_at_once(colour: Colour, database: str, topic: str) -> None:
    future = colour.producer(database).send_many(topic, [])
    assert future.done()
    assert future.get(0) == []
    called: list[Any] = []
    future.add_callback(called.append)
    assert called == [[]]


def test_records_without_a_key_reach_every_partition(colour: Colour, database: str, topic: str) -> None:
    with colour.producer(database, batch_size=1000) as producer:
        for number in range(400):
            producer.send(topic, b"v" * 100 + b"%d" % number)
    assert {each.partition for each in records(database, topic)} == {0, 1, 2, 3}


@pytest.mark.parametrize(
    ("partitioner", "partition"),
    [("murmur2", (-973932308 & 0x7FFFFFFF) % 4), (lambda key, partitions: partitions - 1, 3)],
)
def test_partitioner_is_the_users_choice(
    colour: Colour, database: str, topic: str, partitioner: Any, partition: int
) -> None:
    producer = colour.producer(database, partitioner=partitioner)
    assert producer.send_and_wait(topic, b"v", key=b"21").partition == partition
    (run,) = producer.send_many(topic, [b"v"], keys=[b"21"]).get(ENOUGH_S)
    assert run.partition == partition


def test_serializers_make_the_bytes(colour: Colour, database: str, topic: str) -> None:
    producer = colour.producer(database, key_serializer=to_text, value_serializer=to_json)
    producer.send_and_wait(topic, {"a": [1, None]}, key="ü")
    producer.send_and_wait(topic, None)
    with pytest.raises(SerializationError, match="key_serializer raised"):
        producer.send(topic, 1, key=b"bytes")
    with pytest.raises(SerializationError, match="value_serializer raised"):
        producer.send_many(topic, [object()])
    written = {(each.key, each.value) for each in records(database, topic)}
    assert written == {("ü".encode(), b'{"a":[1,null]}'), (None, None)}


@pytest.mark.parametrize(
    "arguments",
    [
        {"topic": 5, "value": b"v"},
        {"topic": ["t"], "value": b"v"},
        {"topic": "t", "value": "text"},
        {"topic": "t", "value": b"v", "key": 5},
        {"topic": "t", "value": b"v", "partition": -1},
        {"topic": "t", "value": b"v", "partition": "0"},
        {"topic": "t", "value": b"v", "headers": [("a", "text")]},
        {"topic": "t", "value": b"v", "timestamp_ms": 1.5},
    ],
)
def test_wrong_types_are_refused_before_anything_is_sent(
    colour: Colour, database: str, topic: str, arguments: dict[str, Any]
) -> None:
    producer = colour.producer(database)
    with pytest.raises(InvalidArgumentError):
        producer.send(**arguments)
    producer.close()
    assert records(database, topic) == []


def test_callbacks_get_the_metadata_and_errbacks_the_error(colour: Colour, database: str, topic: str) -> None:
    producer = colour.producer(database)
    called: list[Any] = []
    future = producer.send(topic, b"v", partition=0)
    future.add_callback(called.append).add_callback(lambda *got: called.append(got), 1).add_errback(
        called.append
    )
    metadata = future.get(ENOUGH_S)
    producer.flush()
    future.add_callback(called.append)
    assert called == [metadata, (1, metadata), metadata]
    bulk = producer.send_many(topic, [b"a", b"b"], keys=[b"1", b"2"]).add_callback(called.append)
    runs = bulk.get(ENOUGH_S)
    producer.flush()
    bulk.add_callback(called.append)
    assert called[3:] == [runs, runs]


def test_callback_that_raises_harms_nobody(colour: Colour, database: str, topic: str) -> None:
    def explode(metadata: RecordMetadata) -> None:
        raise ZeroDivisionError

    producer = colour.producer(database)
    called: list[Any] = []
    producer.send(topic, b"v").add_callback(explode).add_callback(called.append)
    producer.send_and_wait(topic, b"w")
    producer.close()  # callbacks are called before it returns
    assert len(called) == 1


def test_partitions_and_metrics(colour: Colour, database: str, topic: str) -> None:
    producer = colour.producer(database)
    assert producer.partitions_for(topic) == {0, 1, 2, 3}
    producer.send_and_wait(topic, b"v")
    metrics = producer.metrics()
    assert metrics["record-send-total"] == metrics["request-total"] == 1
    assert metrics["buffer-available-bytes"] == metrics["buffer-total-bytes"]
    assert metrics["record-error-total"] == metrics["requests-in-flight"] == 0


@pytest.mark.one_server  # a pooler passes no notifications on
def test_waiting_consumer_is_woken(colour: Colour, database: str, topic: str, appender: Appender) -> None:
    listening = colour.connection(database)
    listening.listen(appender.calls.wake_channel)
    topic_id = appender.topic_id(topic)
    listening.run(appender.calls.waiting([topic_id]))
    with colour.producer(database) as producer:
        producer.send_and_wait(topic, b"v")
        assert listening.wait_notify(ENOUGH_S) == [str(topic_id)]
        producer.send(topic, b"v")
    assert listening.wait_notify(ENOUGH_S) == [str(topic_id)]


def test_hostile_names_and_values_are_only_data(colour: Colour, database: str, topic: str) -> None:
    hostile = "'; DROP TABLE logstore.topic; --"
    with colour.producer(database) as producer:
        producer.send(topic, hostile.encode(), key=hostile.encode(), headers=[(hostile, hostile.encode())])
    (written,) = records(database, topic)
    assert written.value == hostile.encode()
