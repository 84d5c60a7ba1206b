"""A batch that a producer sends again is not in the log twice, and none of its batches is left out."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest

from tests.support.sqllog import NOW_MS, Connect, Session, append, rows, value, wait_until, waits_for_lock

ME = 77
LAST_SEQUENCE = 2**31 - 1


def create(session: Session, partitions: int = 1, **configs: Any) -> int:
    named = {name.replace("_", "."): text for name, text in configs.items()}
    created: int = value(session, "SELECT create_topic('t', %s, %s)", partitions, json.dumps(named))
    return created


def send(
    session: Session,
    topic: int,
    sequence: int,
    count: int = 1,
    *,
    epoch: int = 0,
    partition: int = 0,
    producer: int = ME,
    **rest: Any,
) -> int:
    """Append ``count`` records; the base offset."""
    return append(session, topic, count, partition, producer=(producer, epoch, sequence), **rest)[0]


def refusal(session: Session, *args: Any, **rest: Any) -> tuple[str | None, dict[str, Any]]:
    """How that is refused: the SQLSTATE and what DETAIL says."""
    with pytest.raises(psycopg.Error) as caught:
        send(session, *args, **rest)
    return caught.value.sqlstate, json.loads(caught.value.diag.message_detail or "{}")


def batches(session: Session) -> list[Any]:
    return rows(session, "SELECT base_offset, record_count FROM batches ORDER BY partition, base_offset")


def test_a_batch_that_comes_again_gets_its_first_answer(session: Session) -> None:
    topic = create(session, message_timestamp_type="LogAppendTime")
    first = append(session, topic, 3, producer=(ME, 0, 0))
    append(session, topic, 2)
    assert append(session, topic, 3, producer=(ME, 0, 0)) == first
    assert send(session, topic, 3, 2) == 5
    assert append(session, topic, 3, producer=(ME, 0, 0)) == first, "also when it is not the newest any more"
    assert batches(session) == [(0, 3), (3, 2), (5, 2)]


def test_the_last_five_batches_are_remembered(session: Session) -> None:
    topic = create(session)
    for number in range(6):
        assert send(session, topic, number * 2, 2) == number * 4
        append(session, topic, 2)
    for number in range(1, 6):
        assert send(session, topic, number * 2, 2) == number * 4
    code, detail = refusal(session, topic, 0, 2)
    assert code == "LS016"
    assert (detail["base_sequence"], detail["expected_sequence"]) == (0, 12)
    assert len(batches(session)) == 12


@pytest.mark.parametrize("others", [False, True])
def test_a_gap_is_refused(session: Session, others: bool) -> None:
    topic = create(session)
    send(session, topic, 0, 3)
    if others:
        append(session, topic)
    for sequence in (4, 1000, 2**30):
        code, detail = refusal(session, topic, sequence, 2)
        assert code == "LS015"
        assert (detail["producer_id"], detail["producer_epoch"], detail["expected_sequence"]) == (ME, 0, 3)
    assert refusal(session, topic, 1, 3)[0] == "LS015", "half of it is known, half of it is not"
    assert send(session, topic, 3) == 3 + others


def test_a_producer_that_is_not_known_may_begin_anywhere(session: Session) -> None:
    topic = create(session, 2)
    assert send(session, topic, 1234, 2, epoch=3) == 0
    assert send(session, topic, 1236, epoch=3) == 2
    assert refusal(session, topic, 1238, epoch=3)[0] == "LS015"
    assert send(session, topic, 9, partition=1) == 0, "each partition has its own sequences"
    assert send(session, topic, 0, producer=ME + 1) == 3, "and each producer"


def test_a_newer_epoch_begins_at_0_and_fences_the_older(session: Session) -> None:
    topic = create(session)
    send(session, topic, 0, 3)
    code, detail = refusal(session, topic, 3, epoch=1)
    assert (code, detail["expected_sequence"]) == ("LS015", 0)
    assert send(session, topic, 0, 2, epoch=1) == 3
    for sequence in (0, 3):
        code, detail = refusal(session, topic, sequence, 3, epoch=0)
        assert code == "LS014"
        assert (detail["producer_epoch"], detail["current_epoch"]) == (0, 1)
    assert send(session, topic, 0, 2, epoch=1) == 3, "sequences of an earlier epoch are not this one's"
    assert send(session, topic, 2, epoch=1) == 5
    assert send(session, topic, 0, epoch=9) == 6


@pytest.mark.parametrize("others", [False, True])
def test_after_the_last_sequence_comes_0(session: Session, others: bool) -> None:
    topic = create(session)
    start = LAST_SEQUENCE - 1
    send(session, topic, start, 4)  # start, start + 1, 0, 1
    if others:
        append(session, topic)
    assert send(session, topic, start, 4) == 0
    assert send(session, topic, 2, 3) == 4 + others
    assert send(session, topic, start, 4) == 0
    assert send(session, topic, LAST_SEQUENCE, 2) == 1, "a part of it, over the seam"
    assert refusal(session, topic, 6)[0] == "LS015"
    assert refusal(session, topic, start - 5)[0] == "LS016"


def test_a_batch_may_come_again_in_other_pieces(session: Session) -> None:
    topic = create(session)
    send(session, topic, 0, 10)
    append(session, topic)
    assert [send(session, topic, sequence, 3) for sequence in (0, 3, 6)] == [0, 3, 6]
    session.execute("BEGIN")
    assert [send(session, topic, sequence, 2) for sequence in (10, 12)] == [11, 13]
    session.execute("COMMIT")
    assert send(session, topic, 10, 4) == 11, "and in one piece what came in two"
    append(session, topic)
    send(session, topic, 14, 2)
    assert refusal(session, topic, 13, 2)[0] == "LS015", "no offset holds for records that lie apart"
    assert [count for _, count in batches(session)] == [10, 1, 2, 2, 1, 2]


def test_what_is_in_the_log_is_in_the_log_whatever_the_topic_takes_now(session: Session) -> None:
    topic = create(session)
    send(session, topic, 0, 50)
    session.execute("SELECT alter_topic('t', %s)", [json.dumps({"max.message.bytes": 100})])
    assert send(session, topic, 0, 50) == 0
    assert refusal(session, topic, 50, 50)[0] == "LS007"
    session.execute("SELECT alter_topic('t', %s)", [json.dumps({"message.timestamp.before.max.ms": 1})])
    assert send(session, topic, 49, at=NOW_MS - 10) == 49
    assert refusal(session, topic, 50, at=NOW_MS - 10)[0] == "LS008"


def test_what_does_not_go_together(session: Session) -> None:
    topic = create(session)
    for producer in ((ME, None, 0), (ME, 0, None), (None, 0, 0), (-1, 0, 0), (ME, -1, 0), (ME, 0, -1)):
        with pytest.raises(psycopg.Error) as caught:
            append(session, topic, producer=producer)  # type: ignore[arg-type]
        assert caught.value.sqlstate == "LS010", producer
    assert refusal(session, topic, 0, 0)[0] == "LS010", "no records"
    assert batches(session) == []


def test_what_a_producer_did_is_known_in_the_next_segment(session: Session) -> None:
    topic = create(session, segment_bytes=14)  # every batch has a segment of its own
    for number in range(7):
        assert send(session, topic, number * 2, 2) == number * 2
    assert value(session, "SELECT count(DISTINCT segment) FROM batches") == 7
    for number in range(2, 7):
        assert send(session, topic, number * 2, 2) == number * 2
    assert refusal(session, topic, 2, 2)[0] == "LS016"
    assert refusal(session, topic, 15)[0] == "LS015"
    assert rows(
        session,
        "SELECT producer_epoch, base_sequences, last_sequences, base_offsets, append_times"
        " FROM producer_state",
    ) == [(0, [2, 4, 6, 8, 10], [3, 5, 7, 9, 11], [2, 4, 6, 8, 10], [-1] * 5)]
    assert send(session, topic, 14) == 14


def test_old_and_new_segment_count_together(session: Session) -> None:
    topic = create(session, message_timestamp_type="LogAppendTime")
    times = [append(session, topic, producer=(ME, 0, number))[1] for number in range(3)]
    append(session, topic, producer=(ME + 1, 5, 10))
    session.execute("UPDATE topic SET roll_at = 0")
    assert send(session, topic, 3) == 4
    append(session, topic)
    assert value(session, "SELECT active_segment FROM topic") == 1
    for number in range(3):
        assert append(session, topic, producer=(ME, 0, number)) == [number, times[number], 0]
    assert send(session, topic, 3) == 4
    assert refusal(session, topic, 0, epoch=4, producer=ME + 1)[0] == "LS014"
    assert send(session, topic, 10, epoch=5, producer=ME + 1) == 3
    assert send(session, topic, 11, epoch=5, producer=ME + 1) == 6
    # The epoch rises in the middle of a segment: what came before it is not kept.
    assert send(session, topic, 0, epoch=1) == 7
    session.execute("UPDATE topic SET roll_at = 0")
    append(session, topic)
    assert rows(
        session,
        "SELECT producer_id, producer_epoch, base_sequences, base_offsets FROM producer_state ORDER BY 1",
    ) == [(ME, 1, [0], [7]), (ME + 1, 5, [10, 11], [3, 6])]
    assert refusal(session, topic, 3)[0] == "LS014"
    assert send(session, topic, 0, epoch=1) == 7
    assert send(session, topic, 1, epoch=1) == 9


def test_many_producers_leave_a_segment(session: Session) -> None:
    topic = create(session, 2)
    for sequence in range(7):
        for producer in range(20):
            send(session, topic, sequence, producer=producer, partition=producer % 2)
    session.execute("UPDATE topic SET roll_at = 0")
    append(session, topic, partition=0)
    append(session, topic, partition=1)
    assert rows(
        session,
        "SELECT count(*), count(DISTINCT (partition, producer_id)), min(base_sequences), max(base_sequences)"
        " FROM producer_state WHERE partition = producer_id % 2",
    ) == [(20, 20, [2, 3, 4, 5, 6], [2, 3, 4, 5, 6])]
    assert send(session, topic, 4, producer=3, partition=1) == 4 * 10 + 1


def test_records_that_are_deleted_are_remembered(session: Session) -> None:
    topic = create(session)
    send(session, topic, 0, 5)
    session.execute("SELECT delete_records('t', 0, 5)")
    assert append(session, topic, 5, producer=(ME, 0, 0)) == [0, -1, 5]
    assert refusal(session, topic, 6)[0] == "LS015"
    assert send(session, topic, 5) == 5


def test_a_topic_that_is_made_again_knows_nobody(session: Session) -> None:
    topic = create(session, segment_bytes=14)
    for sequence in range(3):
        send(session, topic, sequence)
    session.execute("SELECT delete_topic('t')")
    assert value(session, "SELECT count(*) FROM producer_state") == 0
    again = create(session)
    assert send(session, again, 3) == 0


def test_several_partitions_in_one_statement(session: Session) -> None:
    topic = create(session, 3)
    send(session, topic, 0, 2, partition=1)
    append(session, topic, 1, 1)
    call = (
        "append(%s::int4, {}, 2, %s::int8, null, null, '{{a,b}}', null, null, null, 1::int2, 77, 0::int2, 0)"
    )
    query = "SELECT " + ", ".join(call.format(partition) for partition in range(3))
    for _ in range(2):
        assert rows(session, query, *[topic, NOW_MS] * 3) == [([0, -1, 0], [0, -1, 0], [0, -1, 0])]
    assert [count for _, count in batches(session)] == [2, 2, 1, 2]


def test_who_waited_for_the_lock_sees_what_was_written_before(connect: Connect, session: Session) -> None:
    topic = create(session)
    first, second = connect(), connect()
    first.execute("BEGIN")
    assert send(first, topic, 0, 3) == 0
    with ThreadPoolExecutor(1) as pool:
        again = pool.submit(send, second, topic, 0, 3)
        wait_until(lambda: waits_for_lock(session, second))
        first.execute("COMMIT")
        assert again.result() == 0
        first.execute("BEGIN")
        assert send(first, topic, 3, 2) == 3
        again = pool.submit(send, second, topic, 3, 2)
        wait_until(lambda: waits_for_lock(session, second))
        first.execute("ROLLBACK")
        assert again.result() == 3
    assert batches(session) == [(0, 3), (3, 2)]


def test_a_repeated_batch_is_a_barrier(session: Session) -> None:
    """Its commit is in the write-ahead log, so with acks=all it waits for the followers."""
    topic = create(session)
    send(session, topic, 0, 3)

    def written(acks: int) -> tuple[bool, bool]:
        session.execute("BEGIN")
        assert send(session, topic, 0, 3, acks=acks) == 0
        assert value(session, "SHOW synchronous_commit") == {-1: "on", 1: "local", 0: "off"}[acks]
        xid = value(session, "SELECT pg_current_xact_id_if_assigned()::text")
        inserted = value(session, "SELECT pg_current_wal_insert_lsn()")
        session.execute("COMMIT")
        flushed = value(session, "SELECT pg_current_wal_flush_lsn() > %s", inserted)
        return xid is not None, flushed

    assert written(-1) == (True, True)
    assert written(1) == (True, True)
    assert batches(session) == [(0, 3)]


def test_nothing_is_updated_by_an_append(session: Session) -> None:
    topic = create(session, 2)
    for sequence in range(50):
        for producer in (1, 2, 3):
            for _ in range(2):
                send(session, topic, sequence, producer=producer, partition=producer % 2)
    session.execute("SELECT pg_stat_force_next_flush()")
    assert rows(
        session,
        "SELECT relname::text, n_tup_ins, n_tup_upd, n_tup_del, n_dead_tup FROM pg_stat_user_tables"
        " WHERE schemaname = 'logstore' AND (relname LIKE 'b\\_%' OR relname LIKE 'producer%')"
        " ORDER BY 1",
    ) == [
        ("b_1", 0, 0, 0, 0),
        ("b_1_0", 150, 0, 0, 0),
        ("producer", 0, 0, 0, 0),
        ("producer_state", 0, 0, 0, 0),
    ]


def test_a_producer_is_found_by_the_index(session: Session) -> None:
    """However many batches others have appended since, and whatever the planner believes of the leaf."""
    topic = create(session)
    send(session, topic, 0)
    session.execute(
        """
        INSERT INTO b_1_0 SELECT (b).* FROM (
            SELECT jsonb_populate_record(b, jsonb_build_object(
                'base_offset', n, 'last_offset', n, 'producer_id', n % 5 + 1000, 'base_sequence', n,
                'last_sequence', n)) AS b
            FROM b_1_0 b, generate_series(1, 20000) n) u"""
    )
    for analyzed in (False, True):
        if analyzed:
            session.execute("ANALYZE b_1_0")
        session.execute("SELECT pg_stat_force_next_flush()")
        before = usage(session)
        assert send(session, topic, 0) == 0
        assert refusal(session, topic, 2)[0] == "LS015"
        session.execute("SELECT pg_stat_force_next_flush()")
        after = usage(session)
        assert after["b_1_0_producer"] - before["b_1_0_producer"] == 4, "its newest, then its newest five"
        assert after["b_1_0_offset"] - before["b_1_0_offset"] == 2, "the tip of the log, once each"
    session.execute("UPDATE topic SET roll_at = 0")
    before = usage(session)
    append(session, topic)
    session.execute("SELECT pg_stat_force_next_flush()")
    after = usage(session)
    assert value(session, "SELECT count(*) FROM producer_state") == 6
    assert after["b_1_0_offset"] - before["b_1_0_offset"] == 2, "the last batch, twice"
    read = after["b_1_0_producer"] - before["b_1_0_producer"]
    assert read <= 6 * 5 + 7, "five batches of each, however many there are"


def usage(session: Session) -> dict[str, int]:
    """How many rows were read by each index."""
    return dict(rows(session, "SELECT indexrelname::text, idx_tup_read FROM pg_stat_user_indexes"))


def test_producers_that_do_nothing_are_forgotten(session: Session) -> None:
    topic = create(session, segment_bytes=14)
    for producer in (1, 2, 3):
        for sequence in range(2):
            send(session, topic, sequence, producer=producer)
    append(session, topic)
    assert value(session, "SELECT count(*) FROM producer_state") == 3
    assert value(session, "SELECT expire_producers()") == 0
    session.execute(
        "UPDATE producer_state SET updated_at = now() - interval '25 hours' WHERE producer_id < 3"
    )
    assert value(session, "SELECT expire_producers(max_rows => 1)") == 1
    assert value(session, "SELECT expire_producers()") == 1
    assert send(session, topic, 99, producer=1) == 7, "it is not known any more"
    assert refusal(session, topic, 99, producer=3)[0] == "LS015"
    assert value(session, "SELECT expire_producers(0)") == 1


def test_a_partition_that_goes_on_forgets_by_itself(session: Session) -> None:
    topic = create(session, 2, segment_bytes=14)
    for partition in (0, 1):
        for producer in (1, 2, 3):
            send(session, topic, 0, producer=producer, partition=partition)
        append(session, topic, partition=partition)
    send(session, topic, 1, producer=1)
    session.execute(
        "UPDATE producer_state SET updated_at = now() - interval '25 hours' WHERE producer_id < 3"
    )
    append(session, topic)
    assert rows(session, "SELECT partition, producer_id FROM producer_state ORDER BY 1, 2") == [
        (0, 1),
        (0, 3),
        (1, 1),
        (1, 2),
        (1, 3),
    ]
    assert send(session, topic, 0, producer=1) == 0, "who has come back is known as before"
