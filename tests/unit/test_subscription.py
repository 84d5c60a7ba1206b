"""Positions, pauses, resets and fairness, without a server."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from logstore._core.calls import EARLIEST, LATEST, ListedOffset
from logstore._core.fetched import Deserializers
from logstore._core.partition_state import READ_AHEAD
from logstore._core.reset import ResetPolicy
from logstore._core.subscription import FetchRequest, OffsetsRequest, Subscription
from logstore.errors import (
    IllegalStateError,
    InvalidArgumentError,
    NoOffsetForPartitionError,
    OffsetOutOfRangeError,
    SerializationError,
    UnknownTopicOrPartitionError,
)
from logstore.records import TopicPartition
from tests.support.lengths import examples
from tests.unit.log_model import PartitionLog, answer, batch_row, state_row

P0, P1 = TopicPartition("t", 0), TopicPartition("t", 1)
NOW = 1_700_000_000_000


def reading(policy: str = "earliest", *tps: TopicPartition, max_buffered: int = 1 << 20) -> Subscription:
    subscription = Subscription(ResetPolicy.parse(policy), max_buffered=max_buffered)
    subscription.assign(tps or (P0,))
    subscription.learn({"t": (42, 9)})
    return subscription


def needs_metadata(subscription: Subscription) -> bool:
    return subscription.needs_metadata


def at(subscription: Subscription, offset: int, *tps: TopicPartition) -> Subscription:
    for tp in tps or (P0,):
        subscription.seek(tp, offset)
    return subscription


def bring(subscription: Subscription, logs: dict[int, PartitionLog], most: int = 100) -> bool:
    request = subscription.next_fetch()
    return request is not None and subscription.fetched(request, answer(logs, request, most))


def full(*counts: int) -> PartitionLog:
    log = PartitionLog()
    for count in counts:
        log.append([True] * count)
    return log


# -- resets


def test_position_comes_from_the_policy() -> None:
    subscription = reading("latest", P0, P1)
    assert subscription.position(P0) is None
    assert subscription.next_fetch() is None
    request = subscription.pending_resets(NOW)
    assert request is not None
    assert (request.topic_ids, request.partitions, request.specs) == ([42, 42], [0, 1], [LATEST, LATEST])
    subscription.offsets_listed(request, [ListedOffset(1, 5, None, 0), ListedOffset(2, 6, None, 0)])
    assert (subscription.position(P0), subscription.position(P1)) == (5, 6)
    assert subscription.pending_resets(NOW) is None


def test_no_record_young_enough_means_the_next_one() -> None:
    subscription = reading("by_duration:PT1S")
    request = subscription.pending_resets(NOW)
    assert request is not None
    assert request.specs == [NOW - 1000]
    subscription.offsets_listed(request, [ListedOffset(1, None, None, None)])
    again = subscription.pending_resets(NOW + 5)
    assert again is not None
    assert again.specs == [LATEST]


def test_seek_overtakes_a_reset() -> None:
    subscription = reading("earliest")
    request = subscription.pending_resets(NOW)
    assert request is not None
    subscription.seek(P0, 9)
    subscription.offsets_listed(request, [ListedOffset(1, 0, None, 0)])
    assert subscription.position(P0) == 9
    subscription.seek_to([], EARLIEST)
    late = subscription.pending_resets(NOW)
    assert late is not None
    subscription.seek_to([P0], LATEST)
    subscription.offsets_listed(late, [ListedOffset(1, 0, None, 0)])
    assert subscription.position(P0) is None


def test_without_a_policy_each_poll_says_so_until_somebody_seeks() -> None:
    subscription = reading("none")
    for _ in range(2):
        subscription.try_again()
        assert subscription.pending_resets(NOW) is None
        with pytest.raises(NoOffsetForPartitionError, match="partition 0 of topic 't'"):
            subscription.take(10)
    subscription.seek(P0, 3)
    assert subscription.take(10) == {}
    assert subscription.position(P0) == 3


@pytest.mark.parametrize("offset", [4, 21])
def test_out_of_range_without_a_policy(offset: int) -> None:
    subscription = at(reading("none"), offset)
    request = subscription.next_fetch()
    assert request is not None
    assert not subscription.fetched(request, [state_row(1, 5, 20)])
    with pytest.raises(OffsetOutOfRangeError, match=f"Offset {offset} .*from 5 to 20") as caught:
        subscription.take(1)
    assert caught.value.details["log_start"] == 5
    assert subscription.position(P0) == offset
    assert subscription.next_fetch() is None, "nothing is tried behind the program's back"
    assert subscription.try_again()
    assert subscription.next_fetch() is not None


@pytest.mark.parametrize("offset", [4, 21])
def test_out_of_range_with_a_policy_is_reset(offset: int) -> None:
    subscription = at(reading("latest"), offset)
    request = subscription.next_fetch()
    assert request is not None
    subscription.fetched(request, [state_row(1, 5, 20)])
    assert subscription.take(1) == {}
    reset = subscription.pending_resets(NOW)
    assert reset is not None
    assert reset.specs == [LATEST]


def test_a_follower_that_lags_is_waited_for() -> None:
    subscription = at(reading("earliest"), 21)
    request = subscription.next_fetch()
    assert request is not None
    subscription.fetched(request, [state_row(1, 5, 20)], follower=True)
    assert subscription.position(P0) == 21
    assert subscription.pending_resets(NOW) is None


def test_what_was_read_before_the_log_start_moved_is_handed_out() -> None:
    logs = {0: full(3, 3)}
    subscription = at(reading("earliest"), 0)
    bring(subscription, logs, most=1)
    logs[0].log_start = logs[0].end = 6
    bring(subscription, logs)
    assert [r.offset for r in subscription.take(10)[P0]] == [0, 1, 2]
    assert subscription.pending_resets(NOW) is not None


def test_topic_that_is_gone_is_told_after_its_last_records() -> None:
    subscription = at(reading(), 0)
    bring(subscription, {0: full(2)})
    request = subscription.next_fetch()
    assert request is not None
    subscription.fetched(request, [state_row(1, None, None)])
    assert len(subscription.take(10)[P0]) == 2
    with pytest.raises(UnknownTopicOrPartitionError, match="'t' does not exist any more"):
        subscription.take(10)
    assert needs_metadata(subscription)
    subscription.learn({})
    with pytest.raises(UnknownTopicOrPartitionError, match="There is no topic 't'"):
        subscription.hand_out(10)


def test_topic_made_anew_is_told_and_begins_at_its_start() -> None:
    subscription = at(reading("latest"), 7)
    bring(subscription, {0: full(9)})
    subscription.learn({"t": (43, 1)})
    with pytest.raises(UnknownTopicOrPartitionError):
        subscription.take(10)
    subscription.try_again()
    request = subscription.pending_resets(NOW)
    assert request is not None
    assert (request.topic_ids, request.specs) == ([43], [EARLIEST])


def test_partition_that_does_not_exist() -> None:
    subscription = Subscription(ResetPolicy.parse("earliest"))
    subscription.assign([P1])
    assert needs_metadata(subscription)
    assert subscription.pending_resets(NOW) is None
    for _ in range(2):
        subscription.learn({"t": (42, 1)})
        assert not needs_metadata(subscription)
        with pytest.raises(UnknownTopicOrPartitionError, match="no partition 1: it has 1"):
            subscription.take(1)
        assert subscription.try_again()
        assert needs_metadata(subscription)
    subscription.learn({"t": (42, 2)})
    assert subscription.pending_resets(NOW) is not None


# -- seeking, pausing, assigning


def test_answer_to_an_overtaken_fetch_is_dropped() -> None:
    logs = {0: full(10), 1: full(10)}
    subscription = at(reading("earliest", P0, P1), 0, P0, P1)
    request = subscription.next_fetch()
    assert request is not None
    subscription.seek(P0, 5)
    subscription.assign([P0])
    assert not subscription.fetched(request, answer(logs, request))
    assert subscription.take(100) == {}
    bring(subscription, logs)
    assert [r.offset for r in subscription.take(100)[P0]] == [5, 6, 7, 8, 9]


def test_paused_partition_keeps_what_was_fetched() -> None:
    subscription = at(reading("earliest", P0, P1), 0, P0, P1)
    bring(subscription, {0: full(2), 1: full(2)})
    subscription.pause([P0])
    assert subscription.paused() == {P0}
    assert set(subscription.take(10)) == {P1}
    request = subscription.next_fetch()
    assert request is not None
    assert request.partitions == [1]
    subscription.resume([P0])
    assert set(subscription.take(10)) == {P0}


def test_partition_that_stays_keeps_position_and_pause() -> None:
    subscription = at(reading("earliest", P0), 7)
    subscription.pause([])
    subscription.assign([P0, P1], start=EARLIEST)
    assert subscription.position(P0) == 7
    assert subscription.paused() == {P0}
    assert subscription.position(P1) is None


def test_foreign_partition_is_refused_before_anything_moves() -> None:
    subscription = at(reading(), 7)
    for call in (subscription.pause, subscription.resume):
        with pytest.raises(IllegalStateError, match=r"[Pp]artition 1"):
            call([P0, P1])
    with pytest.raises(IllegalStateError):
        subscription.seek_to([P0, P1], LATEST)
    assert subscription.position(P0) == 7
    assert not subscription.paused()


@pytest.mark.parametrize("offset", [-1, 1.0, "3", None, True])
def test_offset_has_to_be_one(offset: object) -> None:
    with pytest.raises(InvalidArgumentError):
        reading().seek(P0, offset)  # type: ignore[arg-type]


# -- limits and fairness


def test_partitions_take_turns() -> None:
    tps = [TopicPartition("t", number) for number in range(5)]
    subscription = at(reading("earliest", *tps), 0, *tps)
    bring(subscription, {tp.partition: full(100) for tp in tps})
    served = [tp for _ in range(10) for tp in subscription.take(10)]
    assert served == tps + tps


def test_one_take_serves_several_partitions() -> None:
    subscription = at(reading("earliest", P0, P1), 0, P0, P1)
    bring(subscription, {0: full(3), 1: full(100)})
    assert {tp: len(records) for tp, records in subscription.take(10).items()} == {P0: 3, P1: 7}


def test_only_the_partitions_asked_for() -> None:
    subscription = at(reading("earliest", P0, P1), 0, P0, P1)
    bring(subscription, {0: full(3), 1: full(3)})
    assert set(subscription.take(10, [P1])) == {P1}
    assert set(subscription.take(10)) == {P0}


def test_who_got_records_is_fetched_last() -> None:
    tps = [TopicPartition("t", number) for number in range(3)]
    subscription = at(reading("earliest", *tps), 0, *tps)
    bring(subscription, {0: full(1), 1: full(), 2: full()})
    request = subscription.next_fetch()
    assert request is not None
    assert request.partitions == [1, 2, 0]


def test_reads_ahead_no_further_than_allowed() -> None:
    logs = {0: full(*[10] * 50)}
    subscription = at(reading(), 0)
    while bring(subscription, logs, most=2):
        pass
    assert sum(map(len, subscription.take(1000).values())) == READ_AHEAD * 20
    assert subscription.buffered == 0
    assert bring(subscription, logs, most=2)


def test_buffer_has_a_limit_in_bytes() -> None:
    subscription = at(reading("earliest", P0, P1, max_buffered=10), 0, P0, P1)
    request = subscription.next_fetch()
    assert request is not None
    subscription.fetched(request, [state_row(1, 0, 1), batch_row(0, [b"0123456789"])])
    assert subscription.buffered == 10
    assert subscription.next_fetch() is None
    subscription.take(1)
    assert subscription.next_fetch() is not None


# -- what cannot be deserialized


def poisoned() -> Subscription:
    subscription = Subscription(ResetPolicy.parse("earliest"), Deserializers(value=int))
    subscription.assign([P0, P1])
    subscription.learn({"t": (42, 2)})
    request = at(subscription, 0, P0, P1).next_fetch()
    assert request is not None
    values = [b"0", b"1", b"x", b"3"]
    subscription.fetched(
        request,
        [state_row(1, 0, 4), batch_row(0, values), state_row(2, 0, 2), batch_row(0, [b"0", b"1"], idx=2)],
    )
    return subscription


def test_poison_is_raised_when_nothing_comes_before_it_and_can_be_skipped() -> None:
    subscription = poisoned()
    taken = subscription.take(100)
    assert {tp: len(records) for tp, records in taken.items()} == {P0: 2, P1: 2}
    for _ in range(2):
        with pytest.raises(SerializationError):
            subscription.take(100)
        assert subscription.position(P0) == 2
    request = at(subscription, 3).next_fetch()
    assert request is not None
    place = list(request.partitions).index(0) + 1
    subscription.fetched(request, [state_row(place, 0, 4), batch_row(3, [b"3"], idx=place)])
    assert [r.value for r in subscription.take(100)[P0]] == [3]


def test_poison_in_one_partition_does_not_stop_the_others() -> None:
    subscription = poisoned()
    subscription.take(2, [P0])
    seen: list[int] = []
    for _ in range(4):
        try:
            seen += [tp.partition for tp in subscription.take(1)]
        except SerializationError as error:
            seen.append(error.details["partition"])
    assert seen == [1, 0, 1, 0]


class Struck:
    """Deserializes as many values as it is told; then Ctrl-C strikes, once."""

    def __init__(self, after: int) -> None:
        self.left = after

    def __call__(self, value: bytes) -> bytes:
        self.left -= 1
        if self.left == -1:
            raise KeyboardInterrupt
        return value


@pytest.mark.parametrize("after", range(9))
@pytest.mark.parametrize("iterating", [False, True])
def test_what_ctrl_c_strikes_takes_nothing(after: int, iterating: bool) -> None:
    """Or the next commit would cover records that nobody has got."""
    struck = Struck(after)
    subscription = Subscription(ResetPolicy.parse("earliest"), Deserializers(value=struck))
    subscription.assign((P0, P1))
    subscription.learn({"t": (42, 9)})
    at(subscription, 0, P0, P1)
    logs = {0: full(2, 3), 1: full(4)}
    bring(subscription, logs)
    got: dict[int, list[int]] = {0: [], 1: []}

    def take() -> bool:
        if iterating:
            taken = [list(subscription.hand_out(100) or ())]
        else:
            taken = list(subscription.take(100).values())
        for records in taken:
            for record in records:
                got[record.partition].append(record.offset)
        return any(taken)

    before = subscription.positions()
    with pytest.raises(KeyboardInterrupt):
        while take():
            before = subscription.positions()
    assert struck.left == -1
    assert subscription.positions() == before
    while take() or bring(subscription, logs):
        pass
    assert got == {0: list(range(5)), 1: list(range(4))}
    assert subscription.buffered == 0


# -- iterating


def test_position_follows_the_iteration() -> None:
    subscription = at(reading(), 0)
    bring(subscription, {0: full(5)})
    records = subscription.hand_out(3)
    assert records is not None
    assert subscription.position(P0) == 0
    assert next(records).offset == 0
    assert subscription.position(P0) == 1
    assert [r.offset for r in subscription.take(10)[P0]] == [1, 2, 3, 4]
    assert list(records) == []


def test_seek_ends_the_iteration() -> None:
    subscription = at(reading(), 0)
    bring(subscription, {0: full(5)})
    records = subscription.hand_out(5)
    assert records is not None
    next(records)
    subscription.seek(P0, 4)
    assert list(records) == []
    bring(subscription, {0: full(5)})
    again = subscription.hand_out(5)
    assert again is not None
    assert [r.offset for r in again] == [4]


def test_unassigned_partition_is_not_handed_out_again() -> None:
    subscription = at(reading("earliest", P0, P1), 0, P0, P1)
    bring(subscription, {0: full(5), 1: full(5)})
    records = subscription.hand_out(2)
    assert records is not None
    assert next(records).partition == 0
    subscription.assign([P1])
    assert list(records) == []
    assert set(subscription.take(100)) == {P1}
    assert subscription.buffered == 0


class Reader(RuleBasedStateMachine):
    """Whatever a user does, each partition's records come in order, none twice, none left out."""

    tps = (P0, P1, TopicPartition("t", 2))

    @initialize()
    def begin(self) -> None:
        self.logs = {tp.partition: PartitionLog() for tp in self.tps}
        self.subscription = reading("earliest", *self.tps)
        self.expected: dict[TopicPartition, int | None] = dict.fromkeys(self.tps)
        self.in_flight: FetchRequest | None = None
        self.asked: OffsetsRequest | None = None

    def got(self, tp: TopicPartition, offsets: list[int]) -> None:
        expected = self.expected[tp]
        assert expected is not None
        assert offsets == self.logs[tp.partition].readable(expected)[: len(offsets)]
        self.expected[tp] = offsets[-1] + 1

    @rule(tp=st.sampled_from(tps), kept=st.lists(st.booleans(), min_size=1, max_size=9))
    def append(self, tp: TopicPartition, kept: list[bool]) -> None:
        self.logs[tp.partition].append(kept)

    @rule()
    def ask_for_offsets(self) -> None:
        self.asked = self.subscription.pending_resets(NOW)

    @rule()
    def offsets_arrive(self) -> None:
        if self.asked is not None:
            rows = [
                ListedOffset(place, 0 if spec == EARLIEST else self.logs[partition].end, None, 0)
                for place, (partition, spec) in enumerate(
                    zip(self.asked.partitions, self.asked.specs, strict=True), start=1
                )
            ]
            self.subscription.offsets_listed(self.asked, rows)
            for tp in self.expected:
                if self.expected[tp] is None:
                    self.expected[tp] = self.subscription.position(tp)
            self.asked = None

    @rule()
    def send_fetch(self) -> None:
        self.in_flight = self.subscription.next_fetch()

    @rule(most=st.integers(1, 3))
    def fetch_arrives(self, most: int) -> None:
        if self.in_flight is not None:
            self.subscription.fetched(self.in_flight, answer(self.logs, self.in_flight, most))
            self.in_flight = None

    @rule(count=st.integers(1, 20))
    def take(self, count: int) -> None:
        paused = self.subscription.paused()
        taken = self.subscription.take(count)
        assert sum(map(len, taken.values())) <= count
        for tp, records in taken.items():
            assert tp not in paused
            self.got(tp, [r.offset for r in records])

    @rule(count=st.integers(1, 20), steps=st.integers(0, 20))
    def iterate(self, count: int, steps: int) -> None:
        for _, record in zip(range(steps), self.subscription.hand_out(count) or (), strict=False):
            self.got(record.topic_partition, [record.offset])

    @rule(tp=st.sampled_from(tps), data=st.data())
    def seek(self, tp: TopicPartition, data: st.DataObject) -> None:
        if tp in self.subscription.assignment:
            offset = data.draw(st.integers(0, self.logs[tp.partition].end))
            self.subscription.seek(tp, offset)
            self.expected[tp] = offset

    @rule(tp=st.sampled_from(tps), spec=st.sampled_from([EARLIEST, LATEST]))
    def seek_to(self, tp: TopicPartition, spec: int) -> None:
        if tp in self.subscription.assignment:
            self.subscription.seek_to([tp], spec)
            self.expected[tp] = None

    @rule(tp=st.sampled_from(tps), pause=st.booleans())
    def pause_or_resume(self, tp: TopicPartition, pause: bool) -> None:
        if tp in self.subscription.assignment:
            (self.subscription.pause if pause else self.subscription.resume)([tp])

    @rule(chosen=st.sets(st.sampled_from(tps)))
    def assign(self, chosen: set[TopicPartition]) -> None:
        self.subscription.assign(sorted(chosen))
        self.subscription.learn({"t": (42, 3)})
        self.expected = {tp: self.expected.get(tp) if tp in self.expected else None for tp in sorted(chosen)}

    @invariant()
    def position_is_the_next_record(self) -> None:
        for tp, expected in getattr(self, "expected", {}).items():
            position = self.subscription.position(tp)
            if expected is None or position is None:
                assert position == expected
            else:
                log = self.logs[tp.partition]
                assert log.readable(expected) == log.readable(position)


Reader.TestCase.settings = settings(max_examples=examples(200), stateful_step_count=40, deadline=None)
TestReader = Reader.TestCase
