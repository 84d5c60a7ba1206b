"""A log that was restored to an earlier moment: everybody is told what is gone, and goes on."""

from __future__ import annotations

import pytest

from logstore import Admin, Consumer, Producer, ShareConsumer, TopicPartition
from logstore.errors import LogTruncationError, OutOfOrderSequenceError, ProducerFencedError
from tests.support.log import records, watch
from tests.support.programs import eventually
from tests.support.recovery import Archived, command, execute, verified

pytestmark = pytest.mark.long

ENOUGH_S = 30.0
ENOUGH_MS = 30_000


def values(dsn: str, topic: str) -> list[bytes | None]:
    return [record.value for record in records(dsn, topic)]


def read(dsn: str, group: str, count: int) -> list[bytes | None]:
    """What a new member of the group is given; it commits that it has read it."""
    with Consumer("t", dsn=dsn, group_id=group, auto_offset_reset="earliest") as consumer:
        found = polled(consumer, count)
        consumer.commit()
        return found


def polled(consumer: Consumer, count: int) -> list[bytes | None]:
    found: list[bytes | None] = []
    while len(found) < count:
        batches = consumer.poll(timeout_ms=ENOUGH_MS)
        assert batches, found
        found += [record.value for batch in batches.values() for record in batch]
    return found


def write(holder: Producer, value: bytes) -> None:
    holder.begin_transaction()
    holder.send("t", value)
    holder.commit_transaction()


@pytest.mark.timeout(120)
def test_everybody_goes_on_where_the_log_ends_now(archiving: Archived, by: str) -> None:
    server, dsn = archiving, archiving.dsn
    with Admin(dsn) as admin:
        for topic in ("t", "staged", "queue"):
            admin.create_topic(topic)
        admin.alter_share_configs("s", {"share.auto.offset.reset": "earliest"})
    with (
        Producer(dsn) as producer,
        Producer(dsn, transactional_id="tx") as first,
        ShareConsumer("queue", group_id="s", dsn=dsn, share_acknowledgement_mode="explicit") as share,
    ):
        first.init_transactions()
        server.back_up()
        producer.send("t", b"a").get(ENOUGH_S)
        producer.send("t", b"b").get(ENOUGH_S)
        write(first, b"c")
        assert read(dsn, "g", 3) == [b"a", b"b", b"c"]
        producer.send("queue", b"job").get(ENOUGH_S)
        [[job]] = share.poll(timeout_ms=ENOUGH_MS).values()
        execute(dsn, "SELECT logstore.worker_beat('lost', '{retention}', '{}', 500)")
        assert execute(dsn, "SELECT logstore.claim_job('lost', 'retention', 500)") == [(0,)]
        # Nobody polls from here to the moment: whoever does drains.
        execute(dsn, "SELECT logstore.stage('staged', 0, NULL, 'once', NULL, NULL, NULL)")
        moment = server.moment(by)

        # What will not have happened.
        for value in (b"x", b"y", b"z"):
            producer.send("t", value).get(ENOUGH_S)
        second = Producer(dsn, transactional_id="tx")
        second.init_transactions()
        write(second, b"of the second")
        assert len(read(dsn, "g", 4)) == 4
        execute(dsn, "SELECT FROM logstore.drain()")
        assert values(dsn, "staged") == [b"once"]
        share.acknowledge(job)
        share.commit()
        lost = newest_epoch(dsn)
        followers = [Consumer(dsn=dsn, auto_offset_reset=policy) for policy in ("none", "latest")]
        for follower in followers:
            follower.assign([TopicPartition("t", 0)])
            follower.seek_to_beginning()
            assert len(polled(follower, 7)) == 7

        server.restore(**moment)
        assert server.dsn == dsn
        assert command(dsn, "db", "recovered") == (
            0,
            "3 partitions under newer leader epochs, 1 transactional id fenced\n",
        )
        assert values(dsn, "t") == [b"a", b"b", b"c"]
        verified(dsn)

        # An idempotent producer learns once that records it was told are safe are gone; then it goes on.
        with pytest.raises(OutOfOrderSequenceError):
            producer.send("t", b"d").get(ENOUGH_S)
        assert producer.send("t", b"e").get(ENOUGH_S).offset == 3
        assert newest_epoch(dsn) > lost

        # Who held the transactional id is fenced, whenever that was; the next holder is not.
        with Producer(dsn, transactional_id="tx") as third:
            third.init_transactions()
            for fenced in (first, second):
                with pytest.raises(ProducerFencedError):
                    write(fenced, b"never")
            write(third, b"f")
        second.close()

        # The group's offset is the one of that moment.
        assert read(dsn, "g", 2) == [b"e", b"f"]
        assert watch(
            dsn, "SELECT leader_epoch FROM logstore.group_offset WHERE topic_id = 1"
        ) == newest_epoch(dsn)

        # Who had read on from there is told where the history parted, or goes back to there.
        strict, lenient = followers
        with pytest.raises(LogTruncationError) as told:
            strict.poll(timeout_ms=ENOUGH_MS)
        assert (told.value.details["position"], told.value.details["divergence_offset"]) == (7, 3)
        assert polled(lenient, 2) == [b"e", b"f"]
        for follower in followers:
            follower.close()

        # Staged records were not in the log yet, and are drained once.
        for _ in range(3):
            execute(dsn, "SELECT FROM logstore.drain()")
        assert values(dsn, "staged") == [b"once"]

        # The record was acquired and not acknowledged at that moment: its lock runs out.
        execute(dsn, "UPDATE logstore.share_flight SET due_at = now()")
        with ShareConsumer("queue", group_id="s", dsn=dsn) as other:
            [[again]] = other.poll(timeout_ms=ENOUGH_MS).values()
            assert (again.value, again.delivery_count) == (b"job", 2)

        # The lease of a worker that is gone has run out.
        eventually(
            lambda: execute(dsn, "SELECT logstore.claim_job('new', 'retention', 500)") == [(1,)],
            "another has the job",
        )
        verified(dsn)


def newest_epoch(dsn: str) -> int:
    return int(watch(dsn, "SELECT max(leader_epoch) FROM logstore.batches"))
