"""Whether the log goes on from what was read, without a server."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from logstore._core.calls import EpochEnd, FetchRow
from logstore._core.reset import ResetPolicy
from logstore._core.subscription import Subscription
from logstore.errors import LogTruncationError
from logstore.records import OffsetAndMetadata, TopicPartition
from tests.unit.log_model import batch_row, state_row

TP = TopicPartition("t", 0)


def reading(policy: str = "none") -> Subscription:
    subscription = Subscription(ResetPolicy.parse(policy))
    subscription.assign([TP])
    subscription.learn({"t": (42, 1)})
    subscription.seek(TP, 0)
    return subscription


def rows(*batches: tuple[int, int, int], end: int | None = None) -> list[FetchRow]:
    """What a fetch brings: for each batch its base offset, its number of records and its epoch."""
    made = [
        batch_row(base, [b"%d" % each for each in range(base, base + count)])._replace(leader_epoch=epoch)
        for base, count, epoch in batches
    ]
    return [state_row(1, 0, made[-1].last_offset + 1 if end is None else end), *made]


def bring(subscription: Subscription, answer: Sequence[FetchRow], *, follower: bool = False) -> bool:
    request = subscription.next_fetch()
    assert request is not None
    return subscription.fetched(request, answer, follower=follower)


def taken(subscription: Subscription, count: int = 100) -> list[int]:
    return [record.offset for record in subscription.take(count).get(TP, [])]


def place(subscription: Subscription) -> tuple[int, int] | None:
    """What the log is to be asked for."""
    request = subscription.next_check()
    return None if request is None else (request.offsets[0], request.epochs[0])


def say(subscription: Subscription, *found: EpochEnd) -> list[int]:
    """The log answers; to where partitions were cut off that go on."""
    request = subscription.next_check()
    assert request is not None
    return [each.divergence for each in subscription.checked(request, found)]


def test_nothing_is_asked_while_one_leader_goes_on() -> None:
    subscription = reading()
    bring(subscription, rows((0, 3, 1)))
    bring(subscription, rows((3, 2, 1)))
    assert place(subscription) is None
    assert taken(subscription) == [0, 1, 2, 3, 4]


def test_another_epoch_in_the_middle_of_an_answer_is_of_the_same_log() -> None:
    subscription = reading()
    bring(subscription, rows((0, 3, 1), (3, 2, 2)))
    assert place(subscription) is None
    assert taken(subscription) == [0, 1, 2, 3, 4]


def test_another_epoch_at_its_beginning_is_asked_for_first() -> None:
    subscription = reading()
    bring(subscription, rows((0, 3, 1)))
    assert not bring(subscription, rows((3, 2, 2)))
    assert place(subscription) == (3, 1)
    assert subscription.next_fetch() is None
    assert taken(subscription) == []  # it may be gone
    assert say(subscription) == []
    assert taken(subscription) == [0, 1, 2]
    assert bring(subscription, rows((3, 2, 2)))
    assert place(subscription) is None
    assert taken(subscription) == [3, 4]


def test_what_was_confirmed_counts_for_that_server() -> None:
    subscription = reading()
    bring(subscription, rows((0, 3, 1)))
    subscription.doubt_all()
    say(subscription)
    subscription.read_elsewhere()
    assert not bring(subscription, rows((3, 2, 2)))
    assert place(subscription) == (3, 1)


def test_an_iteration_ends_where_it_is_doubted() -> None:
    subscription = reading()
    bring(subscription, rows((0, 4, 1)))
    records = subscription.hand_out(100)
    assert records is not None
    assert next(records).offset == 0
    subscription.doubt_all()
    assert next(records, None) is None
    assert subscription.hand_out(100) is None
    assert say(subscription, EpochEnd(1, 1, 2)) == []
    assert subscription.position(TP) == 1
    assert say(subscription) == []  # what was handed out is there
    bring(subscription, rows((1, 1, 1), (2, 3, 5)))
    assert taken(subscription) == [1, 2, 3, 4]


def test_what_was_handed_out_and_is_gone_is_an_error_until_the_program_says_more() -> None:
    subscription = reading()
    bring(subscription, rows((0, 4, 1)))
    taken(subscription)
    subscription.doubt_all()
    for _ in range(2):
        assert say(subscription, EpochEnd(1, 1, 2)) == []
        with pytest.raises(LogTruncationError) as told:
            subscription.take(1)
        assert told.value.details["position"] == 4
        assert told.value.details["divergence_offset"] == 2
        assert subscription.next_check() is None
        assert subscription.try_again()
    subscription.seek(TP, 2)
    assert place(subscription) is None
    assert bring(subscription, rows((2, 1, 5)))


@pytest.mark.parametrize("policy", ["earliest", "latest", "by_duration:PT1H"])
def test_with_a_policy_reading_goes_on_where_the_histories_part(policy: str) -> None:
    subscription = reading(policy)
    bring(subscription, rows((0, 2, 1), (2, 2, 2)))
    taken(subscription)
    subscription.doubt_all()
    # Of the second epoch nothing is left; the first one went on elsewhere, further than here.
    assert say(subscription, EpochEnd(1, 1, 9)) == [2]
    assert subscription.position(TP) == 2
    assert bring(subscription, rows((2, 7, 1), (9, 1, 5)))
    assert taken(subscription) == list(range(2, 10))


def test_a_log_that_has_nothing_so_old_is_read_from_where_it_is() -> None:
    subscription = reading("earliest")
    bring(subscription, rows((0, 3, 4)))
    taken(subscription)
    subscription.doubt_all()
    assert say(subscription, EpochEnd(1, None, 0)) == [0]
    assert subscription.position(TP) == 0


def test_a_follower_confirms_and_never_denies() -> None:
    subscription = reading("earliest")
    bring(subscription, rows((0, 3, 1)))
    taken(subscription)
    bring(subscription, rows((3, 1, 2)), follower=True)
    request = subscription.next_check()
    assert request is not None
    assert not subscription.confirmed(request, [EpochEnd(1, 1, 2)])
    assert place(subscription) == (3, 1)  # the leader is still to be asked
    assert subscription.confirmed(request, [])
    assert place(subscription) is None
    assert bring(subscription, rows((3, 1, 2)), follower=True)


def test_what_a_follower_has_not_got_yet_is_not_out_of_range() -> None:
    subscription = reading("none")
    bring(subscription, rows((0, 3, 1)))
    taken(subscription)
    assert not bring(subscription, rows((0, 1, 1))[:1], follower=True)
    assert place(subscription) is None
    # Of a leader it means that something was cut off.
    assert not bring(subscription, rows((0, 1, 1))[:1])
    assert place(subscription) == (3, 1)


def test_what_is_not_safe_yet_is_waited_for() -> None:
    subscription = reading("none")
    subscription.seek(TP, 4)
    request = subscription.next_fetch()
    assert request is not None
    state = state_row(1, 0, 3)._replace(log_end=5)
    assert not subscription.fetched(request, [state])
    assert subscription.pending(request)
    assert subscription.position(TP) == 4
    assert subscription.take(1) == {}
    assert not subscription.fetched(request, [state._replace(high_watermark=5)])
    assert not subscription.pending(request)


def test_a_committed_place_is_asked_for() -> None:
    subscription = Subscription(ResetPolicy.parse("none"))
    subscription.assign([TP], awaiting=True)
    subscription.learn({"t": (42, 1)})
    subscription.anchor({TP: (7, 3)})
    assert place(subscription) == (7, 3)
    before = subscription.positioned
    say(subscription)
    assert (before, subscription.positioned) == (False, True)
    assert subscription.committable() == {TP: OffsetAndMetadata(7, leader_epoch=3)}


def test_what_is_taken_back_keeps_its_place() -> None:
    """A transaction that was rolled back: its records come again, or it is told that they are gone."""
    subscription = reading()
    bring(subscription, rows((0, 2, 1), (2, 2, 2)))
    assert taken(subscription, 2) == [0, 1]
    assert taken(subscription, 2) == [2, 3]
    subscription.go_back(TP, 2)
    assert subscription.committable() == {TP: OffsetAndMetadata(2, leader_epoch=1)}
    assert place(subscription) is None
    subscription.doubt_all()
    assert place(subscription) == (2, 1)


def test_holes_have_an_epoch_too() -> None:
    """Compaction has left nothing of the second batch: what comes before the position is of its epoch."""
    subscription = reading()
    empty = batch_row(2, None, count=0, last_offset=3)._replace(leader_epoch=2)
    answer = rows((0, 2, 1), (4, 1, 3))
    bring(subscription, [answer[0], answer[1], empty, answer[2]])
    assert taken(subscription, 2) == [0, 1]
    assert subscription.committable() == {TP: OffsetAndMetadata(4, leader_epoch=2)}
    assert taken(subscription) == [4]
    assert subscription.committable() == {TP: OffsetAndMetadata(5, leader_epoch=3)}
