"""Whatever a share group is asked to do, it does what a small model of it does."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from logstore._core.share_ledger import RETURN
from logstore.errors import InvalidRecordStateError
from logstore.share import ACCEPT, REJECT, RELEASE, RENEW
from tests.support.appender import values
from tests.support.lengths import examples
from tests.support.share import Queue

LOCK_S = 30.0
LIMIT = 3
LOCKS = 12
MEMBERS = ("a", "b", "c")


@dataclass
class Record:
    """One record in the model."""

    key: bytes | None
    member: str | None = None
    until: float = 0.0
    """Acquired: the lock runs out; else: not delivered before."""
    deliveries: int = 0
    finished: bool = False
    taken_up: bool = False
    """It has been in the window."""


@dataclass
class Model:
    keyed: bool
    now: float = 0.0
    log_start: int = 0
    records: list[Record] = field(default_factory=list)
    dead: list[int] = field(default_factory=list)

    def held(self, member: str, offset: int) -> bool:
        if not 0 <= offset < len(self.records):
            return False
        record = self.records[offset]
        return not record.finished and record.member == member and record.until > self.now

    def deliverable(self, offset: int) -> bool:
        record = self.records[offset]
        if record.finished or offset < self.log_start or record.until > self.now:
            return False
        return record.deliveries < LIMIT and not self.behind_another(offset)

    def behind_another(self, offset: int) -> bool:
        key = self.records[offset].key
        return (
            self.keyed
            and key is not None
            and any(not each.finished and each.key == key for each in self.records[:offset])
        )


class ShareGroup(RuleBasedStateMachine):
    """Drives the server and the model side by side; the test sets ``queue``."""

    queue: Queue
    keyed: bool

    def __init__(self) -> None:
        super().__init__()
        self.model = Model(self.keyed)

    @initialize()
    def fresh(self) -> None:
        # Each run has a group of its own, which begins at the end of the one topic.
        queue = type(self).queue
        number = queue.one("select count(*) from log_group")
        queue.group = f"g{number}"
        self.base = queue.one("select high_watermark from partitions where topic = 't'")
        queue.alter(
            share_delivery_count_limit=str(LIMIT),
            share_partition_max_record_locks=str(LOCKS),
            share_key_ordered=str(self.keyed).lower(),
            errors_deadletterqueue_topic_name="dlq",
        )
        queue.take("a", 1)

    def stored(self) -> set[int]:
        """The records that there are rows for."""
        queue = type(self).queue
        return {
            offset - self.base
            for table in (queue.rows(), queue.delayed())
            for first, last, *_ in table
            for offset in range(first, last + 1)
        }

    def in_flight(self) -> int:
        return sum(row.last_offset - row.first_offset + 1 for row in type(self).queue.rows())

    def due(self) -> int:
        records = self.model.records
        return sum(
            records[offset - self.base].until <= self.model.now
            for first, last in type(self).queue.delayed()
            for offset in range(first, last + 1)
        )

    @rule(keys=st.lists(st.sampled_from([None, b"A", b"B", b"C"]), min_size=1, max_size=8))
    def append(self, keys: list[bytes | None]) -> None:
        type(self).queue.append("t", values(len(keys), len(self.model.records)), keys=keys, wake=False)
        self.model.records += [Record(key) for key in keys]

    @rule(member=st.sampled_from(MEMBERS), count=st.integers(1, 10))
    def acquire(self, member: str, count: int) -> None:
        model, queue = self.model, type(self).queue
        crowded = self.in_flight() + self.due()
        got = [(offset - self.base, deliveries) for offset, deliveries in queue.take(member, count)]
        end = -self.base + queue.one(
            "select max(end_offset) from share_window w join log_group g using (group_id) where g.name = %s",
            queue.group,
        )
        assert end <= len(model.records)
        for offset, record in enumerate(model.records[:end]):
            if not record.taken_up:
                record.taken_up = True
                record.finished = offset < model.log_start
        # An acquirer gives up what was delivered too often, and forgets what has left the log, when it comes
        # to it.
        stored = self.stored()
        for offset, record in enumerate(model.records[:end]):
            if not record.finished and offset not in stored:
                assert record.until <= model.now
                assert not model.behind_another(offset)
                record.finished = True
                if offset >= model.log_start:
                    assert record.deliveries >= LIMIT
                    model.dead.append(offset)
        assert len(got) <= count
        for offset, deliveries in got:
            assert model.deliverable(offset), f"{offset} must not be delivered"
            record = model.records[offset]
            record.deliveries += 1
            assert record.deliveries == deliveries
        for offset, _ in got:
            model.records[offset].member, model.records[offset].until = member, model.now + LOCK_S
        if len(got) < count and max(crowded, self.in_flight()) < LOCKS:
            assert not any(map(model.deliverable, range(len(model.records))))

    @precondition(lambda self: self.held())
    @rule(
        data=st.data(),
        kind=st.sampled_from([ACCEPT, RELEASE, RELEASE, REJECT, RENEW, RETURN]),
        delay=st.sampled_from([None, 20_000]),
    )
    def acknowledge_what_is_held(self, data: st.DataObject, kind: int, delay: int | None) -> None:
        held = self.held()
        first = data.draw(st.sampled_from(held))
        last = data.draw(st.sampled_from([offset for offset in held if first <= offset <= first + 5]))
        member = self.model.records[first].member
        assert member is not None
        self.acknowledge(member, first, last - first + 1, kind, delay, False)

    def held(self) -> list[int]:
        return [
            offset
            for offset, record in enumerate(self.model.records)
            if record.member is not None and self.model.held(record.member, offset)
        ]

    @rule(
        member=st.sampled_from(MEMBERS),
        first=st.integers(0, 40),
        length=st.integers(1, 8),
        kind=st.sampled_from([ACCEPT, ACCEPT, RELEASE, REJECT, RENEW, RETURN]),
        delay=st.sampled_from([None, None, 0, 20_000]),
        strict=st.booleans(),
    )
    def acknowledge_anything(
        self, member: str, first: int, length: int, kind: int, delay: int | None, strict: bool
    ) -> None:
        self.acknowledge(member, first, length, kind, delay, strict)

    def acknowledge(
        self, member: str, first: int, length: int, kind: int, delay: int | None, strict: bool
    ) -> None:
        model = self.model
        offsets = range(first, first + length)
        held = [offset for offset in offsets if model.held(member, offset)]
        queue = type(self).queue
        span = self.base + first, self.base + offsets[-1]
        if strict and len(held) < length:
            before = queue.rows(), queue.delayed()
            with pytest.raises(InvalidRecordStateError):
                queue.acknowledge(member, *span, kind, delay_ms=delay)
            assert (queue.rows(), queue.delayed()) == before
            return
        refused = queue.acknowledge(member, *span, kind, delay_ms=delay, strict=strict)
        assert {
            offset - self.base
            for each in refused
            for offset in range(each.first_offset, each.last_offset + 1)
        } == set(offsets) - set(held)
        for offset in held:
            record = model.records[offset]
            if kind == RENEW:
                record.until = model.now + LOCK_S
            elif kind == ACCEPT:
                record.finished = True
            elif kind == REJECT or (kind == RELEASE and record.deliveries >= LIMIT):
                record.finished = True
                if offset >= model.log_start:
                    model.dead.append(offset)
            else:
                record.member = None
                record.until = model.now + (delay or 0) / 1000 if kind == RELEASE else model.now
                record.deliveries -= kind == RETURN

    @rule(seconds=st.sampled_from([12.0, 24.0, 36.0]))
    def pass_time(self, seconds: float) -> None:
        type(self).queue.pass_time(seconds)
        self.model.now += seconds

    @precondition(lambda self: self.model.records)
    @rule(part=st.floats(0, 1))
    def delete_records(self, part: float) -> None:
        queue = type(self).queue
        before = self.base + int(len(self.model.records) * part)
        start = queue.connection.run(queue.calls.delete_records("t", 0, before))
        self.model.log_start = start - self.base

    @invariant()
    def what_is_stored_is_what_is_in_flight(self) -> None:
        assert self.stored() == {
            offset
            for offset, record in enumerate(self.model.records)
            if record.taken_up and not record.finished
        }
        assert self.in_flight() <= LOCKS

    def teardown(self) -> None:
        letters = [headers for _, _, headers in type(self).queue.dead_letters("dlq")]
        assert sorted(self.model.dead) == sorted(
            int(each["__dlq.errors.offset"]) - self.base
            for each in letters
            if each["__dlq.errors.group"] == type(self).queue.group
        )


@pytest.fixture
def queue(database: str) -> Iterator[Queue]:
    with Queue(database, share_auto_offset_reset="latest") as made:
        made.create("dlq")
        yield made


@pytest.mark.parametrize("keyed", [False, True], ids=["plain", "keyed"])
def test_a_share_group_behaves_as_its_model(queue: Queue, keyed: bool) -> None:
    machine = type("Machine", (ShareGroup,), {"queue": queue, "keyed": keyed})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples(15),
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            phases=(Phase.generate, Phase.shrink),
        ),
    )
