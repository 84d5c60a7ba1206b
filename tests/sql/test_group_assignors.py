"""Assignors, for any group: everything is assigned once, to a subscriber, evenly, and little moves."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.lengths import examples

Partition = tuple[int, int]
Owners = dict[Partition, int]


class Case:
    """A group: what its members subscribe to, what there is, who holds what."""

    def __init__(
        self, members: list[int], topics: dict[int, int], subscriptions: dict[int, set[int]], held: Owners
    ) -> None:
        self.members = members
        self.topics = topics
        self.subscriptions = subscriptions
        self.held = held

    def __repr__(self) -> str:
        return f"Case({self.members}, {self.topics}, {self.subscriptions}, {self.held})"

    @property
    def partitions(self) -> set[Partition]:
        read = set().union(*self.subscriptions.values()) if self.subscriptions else set()
        return {(topic, number) for topic in read for number in range(self.topics[topic])}

    def kept(self, owners: Owners) -> int:
        return sum(self.held.get(partition) == owner for partition, owner in owners.items())


def numbers(at_most: int) -> st.SearchStrategy[list[int]]:
    return st.lists(st.integers(1, 50), unique=True, max_size=at_most).map(sorted)


@st.composite
def cases(draw: st.DrawFn, *, alike: bool) -> Case:
    members = draw(numbers(7))
    topics = {topic: draw(st.integers(1, 12)) for topic in draw(numbers(4))}
    names = sorted(topics)
    everything = set(names)
    subscriptions = {
        member: everything if alike else draw(st.sets(st.sampled_from(names))) if names else set()
        for member in members
    }
    owner = st.sampled_from([*members, 99]) if members else st.just(99)
    held = {
        (topic, number): draw(owner)
        for topic in [*names, 77]
        for number in range(topics.get(topic, 1) + 1)
        if draw(st.booleans())
    }
    return Case(members, topics, subscriptions, held)


@pytest.fixture(scope="module")
def assign(server: Any) -> Iterator[Any]:
    dsn = server.create()
    with psycopg.connect(dsn, autocommit=True) as raw:

        def run(assignor: str, case: Case) -> Owners:
            pairs = [(member, topic) for member in case.members for topic in case.subscriptions[member]]
            read = sorted({topic for _, topic in pairs})
            held = [
                (topic, number, owner)
                for (topic, number), owner in case.held.items()
                if topic in case.subscriptions.get(owner, ())
            ]
            rows = raw.execute(
                "SELECT topic_id, partition, member_no FROM logstore.assign_partitions("
                "%s, %s::int8[], %s::int8[], %s::int4[], %s::int4[], %s::int4[], %s::int4[], %s::int4[], "
                "%s::int8[])",
                [
                    assignor, case.members, [m for m, _ in pairs], [t for _, t in pairs],
                    read, [case.topics[topic] for topic in read],
                    [t for t, _, _ in held], [n for _, n, _ in held], [o for _, _, o in held],
                ],
            ).fetchall()  # fmt: skip
            owners = {(topic, number): owner for topic, number, owner in rows}
            assert len(owners) == len(rows), "a partition is assigned twice"
            return owners

        yield run
    server.drop(dsn)


def check_complete(case: Case, owners: Owners) -> None:
    assert owners.keys() == case.partitions
    for (topic, _), owner in owners.items():
        assert topic in case.subscriptions[owner]


def loads(case: Case, owners: Owners) -> dict[int, int]:
    counted = Counter(owners.values())
    return {member: counted[member] for member in case.members}


many = settings(
    max_examples=examples(150), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@given(case=cases(alike=True))
@many
def test_uniform_is_even_and_moves_as_few_as_can_be(assign: Any, case: Case) -> None:
    owners = assign("uniform", case)
    check_complete(case, owners)
    load = loads(case, owners)
    if not load:
        return
    assert max(load.values()) - min(load.values()) <= 1
    # The most that anybody can keep: the larger shares go to those who have most.
    valid = Counter(case.held[partition] for partition in case.partitions if partition in case.held)
    share, larger = divmod(len(case.partitions), len(case.members))
    had = sorted((valid[member] for member in case.members), reverse=True)
    most = sum(min(count, share + (place < larger)) for place, count in enumerate(had))
    assert case.kept(owners) == most


@given(case=cases(alike=False))
@many
def test_uniform_with_any_subscriptions_cannot_be_improved_by_one_move(assign: Any, case: Case) -> None:
    owners = assign("uniform", case)
    check_complete(case, owners)
    load = loads(case, owners)
    for (topic, _), owner in owners.items():
        for member in case.members:
            if topic in case.subscriptions[member]:
                assert load[owner] - load[member] <= 1


@given(case=cases(alike=False))
@many
def test_uniform_is_stable(assign: Any, case: Case) -> None:
    owners = assign("uniform", case)
    again = Case(case.members, case.topics, case.subscriptions, owners)
    assert assign("uniform", again) == owners


@given(case=cases(alike=False))
@many
def test_range_gives_runs_that_land_together(assign: Any, case: Case) -> None:
    owners = assign("range", case)
    check_complete(case, owners)
    runs: dict[int, list[list[int]]] = {}
    for topic in case.topics:
        subscribers = [member for member in case.members if topic in case.subscriptions[member]]
        mine = [
            sorted(number for (t, number), owner in owners.items() if t == topic and owner == member)
            for member in subscribers
        ]
        if subscribers:
            assert [number for run in mine for number in run] == list(range(case.topics[topic]))
            sizes = [len(run) for run in mine]
            assert sizes == sorted(sizes, reverse=True)
            assert max(sizes) - min(sizes) <= 1
        runs[topic] = mine
    for one in case.topics:
        for other in case.topics:
            same_readers = all((one in s) == (other in s) for s in case.subscriptions.values())
            if same_readers and case.topics[one] == case.topics[other]:
                assert runs[one] == runs[other]


def test_one_more_member_among_fifty(assign: Any) -> None:
    everybody = list(range(1, 51))
    case = Case(everybody, {1: 1000}, {member: {1} for member in everybody}, {})
    owners = assign("uniform", case)
    more = [*everybody, 51]
    grown = Case(more, {1: 1000}, {member: {1} for member in more}, owners)
    after = assign("uniform", grown)
    assert len(owners) - grown.kept(after) == 1000 // 51
    assert set(Counter(after.values()).values()) == {19, 20}
