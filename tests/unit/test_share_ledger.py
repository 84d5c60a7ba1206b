"""What a member says of the records it has: once, and again only when the answer was lost."""

from __future__ import annotations

import pytest

from logstore._core.share_calls import Refused
from logstore._core.share_ledger import RETURN, Ledger, Place
from logstore.errors import InvalidRecordStateError
from logstore.records import TopicPartition
from logstore.share import ACCEPT, REJECT, RELEASE, RENEW

PLACE = Place(7, 0)
TP = TopicPartition("t", 0)


@pytest.fixture
def ledger() -> Ledger:
    """Records 0 to 9 handed out, locked until 30 s."""
    made = Ledger()
    made.opened("t", PLACE, range(10), 30.0)
    return made


def test_what_is_said_of_neighbours_goes_in_one_range(ledger: Ledger) -> None:
    for offset, kind in enumerate((ACCEPT, ACCEPT, RELEASE, ACCEPT, ACCEPT)):
        ledger.acknowledge(TP, offset, kind)
    ledger.acknowledge(TP, 6, RELEASE, 5)
    ledger.acknowledge(TP, 7, RELEASE, 5)
    ledger.acknowledge(TP, 8, REJECT, None, "bad")
    ledger.acknowledge(TP, 9, REJECT, None, "worse")
    request = ledger.request()
    assert request is not None
    assert list(zip(request.first_offsets, request.last_offsets, request.types, strict=True)) == [
        (0, 1, ACCEPT),
        (2, 2, RELEASE),
        (3, 4, ACCEPT),
        (6, 7, RELEASE),
        (8, 8, REJECT),
        (9, 9, REJECT),
    ]
    assert request.delays_ms == [None, None, None, 5, None, None]
    assert request.reasons == [None, None, None, None, "bad", "worse"]
    assert ledger.unacknowledged == 1
    assert ledger.settled([], 1, 2, 30).done == [
        (TP, [0, 1]),
        (TP, [2]),
        (TP, [3, 4]),
        (TP, [6, 7]),
        (TP, [8]),
        (TP, [9]),
    ]
    assert ledger.request() is None


def test_partitions_are_sent_in_order() -> None:
    ledger = Ledger()
    for place in (Place(8, 1), Place(7, 2), Place(7, 0)):
        ledger.opened(f"t{place.topic_id}", place, [3], 30.0)
    ledger.acknowledge_open()
    request = ledger.request()
    assert request is not None
    assert list(zip(request.topic_ids, request.partitions, strict=True)) == [(7, 0), (7, 2), (8, 1)]


def test_a_record_is_acknowledged_once(ledger: Ledger) -> None:
    ledger.acknowledge(TP, 3, ACCEPT)
    for _ in range(2):  # before it is sent, and while it is
        with pytest.raises(InvalidRecordStateError, match="already"):
            ledger.acknowledge(TP, 3, RELEASE)
        ledger.request()
    ledger.settled([], 1, 2, 30)
    with pytest.raises(InvalidRecordStateError, match="not acquired"):
        ledger.acknowledge(TP, 3, ACCEPT)


@pytest.mark.parametrize("tp", [TopicPartition("u", 0), TopicPartition("t", 1)])
def test_what_was_not_handed_out_is_not_acknowledged(ledger: Ledger, tp: TopicPartition) -> None:
    with pytest.raises(InvalidRecordStateError):
        ledger.acknowledge(tp, 3, ACCEPT)
    with pytest.raises(InvalidRecordStateError):
        ledger.acknowledge(TP, 10, ACCEPT)
    assert ledger.unacknowledged == 10


def test_a_renewed_record_stays(ledger: Ledger) -> None:
    ledger.acknowledge(TP, 3, RENEW)
    ledger.acknowledge(TP, 3, RENEW)
    assert ledger.unacknowledged == 9
    assert ledger.knows(PLACE, 3)
    request = ledger.request()
    assert request is not None
    assert request.types == [RENEW]
    ledger.settled([], 20, 21, 30)
    ledger.acknowledge(TP, 3, ACCEPT)
    ledger.request()
    ledger.unsettled()
    ledger.request()
    # The lock lasted from 20 to 50: whoever finished the record before that was this member.
    assert ledger.settled([Refused(1, 3, 3)], 48, 49, 30).refused == []


def test_what_was_refused_is_told(ledger: Ledger) -> None:
    ledger.acknowledge_open()
    ledger.request()
    answer = ledger.settled([Refused(1, 2, 3), Refused(1, 7, 7)], 1, 2, 30)
    assert answer.done == [(TP, [0, 1, 4, 5, 6, 8, 9])]
    assert answer.refused == [(TP, 2, 3), (TP, 7, 7)]


def test_a_refused_renewal_is_the_end_of_it(ledger: Ledger) -> None:
    ledger.acknowledge(TP, 3, RENEW)
    ledger.request()
    assert ledger.settled([Refused(1, 3, 3)], 1, 2, 30).refused == [(TP, 3, 3)]
    assert not ledger.knows(PLACE, 3)


def test_a_request_without_an_answer_is_sent_again(ledger: Ledger) -> None:
    ledger.acknowledge(TP, 0, ACCEPT)
    first = ledger.request()
    ledger.unsettled()
    ledger.acknowledge(TP, 5, ACCEPT)
    assert ledger.request() == first
    # Refused, because the first attempt had done it: the lock has not run out.
    assert ledger.settled([Refused(1, 0, 0)], 20, 29, 30).refused == []
    second = ledger.request()
    assert second is not None
    assert second.first_offsets == [5]


def test_after_the_lock_ran_out_a_refusal_is_one(ledger: Ledger) -> None:
    ledger.acknowledge(TP, 0, ACCEPT)
    ledger.request()
    ledger.unsettled()
    ledger.request()
    assert ledger.settled([Refused(1, 0, 0)], 20, 30, 30).refused == [(TP, 0, 0)]


def test_what_was_never_handed_out_is_returned(ledger: Ledger) -> None:
    ledger.settle_early("t", PLACE, [20, 21], 30.0, RETURN)
    request = ledger.request()
    assert request is not None
    assert (request.first_offsets, request.last_offsets, request.types) == ([20], [21], [RETURN])
    assert ledger.knows(PLACE, 21)
    assert ledger.unacknowledged == 10


def test_giving_everything_up_includes_what_was_renewed(ledger: Ledger) -> None:
    ledger.acknowledge(TP, 3, RENEW)
    ledger.request()
    ledger.settled([], 1, 2, 30)
    ledger.acknowledge_open(RELEASE)
    request = ledger.request()
    assert request is not None
    assert (request.first_offsets, request.last_offsets) == ([0], [9])
    assert request.delays_ms == [0]
    assert ledger.unacknowledged == 0
