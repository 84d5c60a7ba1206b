"""The state machine of a member: what it sends when, and that no two members have a partition at once."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from logstore._core.group_calls import Claim, HeartbeatAnswer, Joined
from logstore._core.membership import Membership, News, Phase, Release, Step, Wait
from logstore.errors import (
    AuthorizationFailedError,
    ConnectionFailedError,
    FencedInstanceIdError,
    UnknownMemberError,
)
from logstore.records import TopicPartition
from tests.support.lengths import examples

A, B = TopicPartition("t", 0), TopicPartition("t", 1)


def membership(*, static: bool = False) -> Membership:
    return Membership(
        session_timeout_s=10, heartbeat_interval_s=3, max_poll_interval_s=60, static=static, now=0.0
    )


def claim(epoch: int = 1, *, revoke: bool = False) -> Claim:
    return Claim(1, epoch, revoke, None, None)


def answer(epoch: int = 1, *, waiting: bool = False, **claims: Claim) -> HeartbeatAnswer:
    named = {"a": A, "b": B}
    return HeartbeatAnswer(epoch, False, waiting, False, {named[name]: each for name, each in claims.items()})


def member(**claims: Claim) -> Membership:
    """One that joined at 0 and has taken up what it has."""
    made = membership()
    made.subscribe(0)
    assert made.step(0) is Step.JOIN
    made.joined(Joined(5, 1, 1), 0)
    assert made.step(0) is Step.HEARTBEAT
    made.beaten(answer(1, waiting=False, **claims), 0, 0)
    made.take_up(made.changes(0).assigned)
    return made


def test_sends_nothing_before_it_is_subscribed() -> None:
    assert membership().step(0) == Wait(float("inf"))


def test_settled_member_beats_every_interval() -> None:
    made = member(a=claim())
    assert made.known_epoch == 1
    assert made.step(2.9) == Wait(3)
    assert made.step(3) is Step.HEARTBEAT
    made.beaten(HeartbeatAnswer(1, True, False, False, {}), 3, 3.1)
    assert made.step(3.1) == Wait(6)
    assert not made.changes(3.1)


def test_revoked_partition_is_released_only_after_the_program_gave_it_up() -> None:
    made = member(a=claim(), b=claim())
    made.step(3)
    assert made.beaten(answer(2, a=claim(), b=claim(revoke=True)), 3, 3)
    assert made.known_epoch == -1
    assert made.changes(3).revoked == {B: claim()}
    assert isinstance(made.step(3), Wait)
    assert made.step(6) is Step.HEARTBEAT  # however long the program takes
    made.give_up([B], 7)
    release = made.step(7)
    assert release == Release({B: claim(revoke=True)})
    made.released(release, 7)
    assert made.news() is News.FREED
    assert made.news() is None
    assert made.step(7) is Step.HEARTBEAT
    made.beaten(answer(2, a=claim()), 7, 7)
    assert made.known_epoch == 2
    assert not made.changes(7)


def test_claim_that_the_program_never_saw_is_released_without_it() -> None:
    made = member(a=claim())
    made.step(3)
    assert not made.beaten(answer(2, a=claim(), b=claim(revoke=True)), 3, 3)
    assert made.step(3) == Release({B: claim(revoke=True)})


def test_waiting_member_asks_again_soon_and_then_ever_less_often() -> None:
    made = member()
    now, gaps = 0.0, []
    for _ in range(8):
        made.beaten(answer(waiting=True), now, now)
        wait = made.step(now)
        assert isinstance(wait, Wait)
        gaps.append(round(wait.until - now, 3))
        now = wait.until
        made.polled(now)
    assert gaps == [0.1, 0.2, 0.4, 0.8, 1.6, 3, 3, 3]


def test_woken_member_asks_at_once_but_not_all_the_time() -> None:
    made = member(a=claim())
    made.woken(News.FREED, 1)
    assert made.step(1) == Wait(3)
    made.woken(News.TARGETS, 1)
    assert made.step(1) is Step.HEARTBEAT
    made.beaten(answer(a=claim()), 1, 1)
    made.woken(News.TARGETS, 1.01)
    wait = made.step(1.01)
    assert wait == Wait(1.05)


def test_lease_that_ran_out_takes_everything() -> None:
    made = member(a=claim())
    assert made.covered(9.9)
    assert not made.covered(10)
    assert made.changes(10).lost == {A: claim()}
    assert made.step(10) is Step.JOIN
    made.let_go([A])
    made.joined(Joined(5, 1, 1), 11)
    made.beaten(answer(a=claim()), 11, 11)
    assert made.changes(11).assigned == {A: claim()}


def test_unknown_member_has_lost_everything_and_joins_again() -> None:
    made = member(a=claim())
    made.failed(UnknownMemberError(), 3)
    assert made.changes(3).lost == {A: claim()}
    assert made.step(3) is Step.JOIN


def test_partition_that_came_back_under_another_epoch_was_lost_meanwhile() -> None:
    made = member(a=claim(1))
    made.beaten(answer(3, a=claim(3)), 3, 3)
    changes = made.changes(3)
    assert (changes.lost, changes.assigned) == ({A: claim(1)}, {A: claim(3)})


@pytest.mark.parametrize("error", [FencedInstanceIdError(), AuthorizationFailedError()])
def test_error_that_cannot_be_mended_ends_the_membership(error: Exception) -> None:
    made = member(a=claim())
    made.failed(error, 3)  # type: ignore[arg-type]
    assert made.phase is Phase.FAILED
    assert made.error is error
    assert made.changes(3).lost == {A: claim()}
    assert made.step(3) == Wait(float("inf"))
    made.subscribe(4)
    assert made.phase is (Phase.FAILED if isinstance(error, FencedInstanceIdError) else Phase.JOINING)


def test_lost_connection_is_tried_again_while_the_lease_lasts() -> None:
    made = member(a=claim())
    made.step(3)
    made.failed(ConnectionFailedError(), 3)
    assert made.step(3) == Wait(3.1)
    assert made.step(3.1) is Step.HEARTBEAT
    assert not made.changes(3.1)
    made.failed(ConnectionFailedError(), 3.25)
    assert made.step(3.25) == Wait(3.45)


def test_program_that_does_not_poll_loses_its_place_and_gets_it_back() -> None:
    made = member(a=claim())
    now = 0.0
    while made.step(now) is not Step.LEAVE:
        if made.step(now) is Step.HEARTBEAT:
            made.beaten(HeartbeatAnswer(1, True, False, False, {}), now, now)
        now += 1
    assert now == 61
    made.left(now)
    assert made.phase is Phase.EXPELLED
    assert made.changes(now).lost == {A: claim()}
    assert made.step(now) == Wait(float("inf"))
    made.polled(now + 5)
    assert made.step(now + 5) is Step.JOIN


def test_taking_records_is_a_sign_of_life() -> None:
    made = member(a=claim())
    for now in range(0, 300, 3):
        if made.step(now) is Step.HEARTBEAT:
            made.beaten(HeartbeatAnswer(1, True, False, False, {}), now, now)
        made.progressed(now)
    assert made.phase is Phase.MEMBER


def test_static_member_that_does_not_poll_falls_silent() -> None:
    made = membership(static=True)
    made.subscribe(0)
    made.joined(Joined(5, 1, 1), 0)
    made.beaten(answer(a=claim()), 55, 55)
    assert made.step(61) == Wait(float("inf"))
    assert made.phase is Phase.EXPELLED


def test_leaving_while_the_join_is_under_way() -> None:
    made = membership()
    made.subscribe(0)
    made.step(0)
    made.unsubscribe(1)
    made.joined(Joined(5, 1, 1), 0)
    assert made.step(1) is Step.LEAVE
    made.left(2)
    assert made.phase is Phase.OUTSIDE


def test_changed_subscription_keeps_what_it_has_until_the_server_says_otherwise() -> None:
    made = member(a=claim())
    made.subscribe(1)
    assert made.step(1) is Step.JOIN
    assert not made.changes(1)
    made.joined(Joined(5, 1, 2), 1)
    assert made.step(1) is Step.HEARTBEAT


# -- many members, one group ---------------------------------------------------------------------------------

PARTITIONS = [TopicPartition("t", number) for number in range(5)]
SESSION_S = 10.0


@dataclass
class Client:
    machine: Membership
    number: int = -1
    alive: bool = True
    in_flight: object = None
    sent: float = 0.0


@dataclass
class Row:
    owner: int | None = None
    target: int | None = None
    epoch: int = 0


@dataclass
class Server:
    """What the SQL functions promise, in few words."""

    rows: dict[TopicPartition, Row] = field(default_factory=lambda: {tp: Row() for tp in PARTITIONS})
    leases: dict[int, float] = field(default_factory=dict)
    numbers: dict[str, int] = field(default_factory=dict)
    next_number: int = 0
    epoch: int = 0

    def join(self, name: str, now: float) -> int:
        if self.numbers.get(name) not in self.leases:
            self.next_number += 1
            self.numbers[name] = self.next_number
        number = self.numbers[name]
        self.leases[number] = now + SESSION_S
        self.assign()
        return number

    def remove(self, number: int) -> None:
        self.leases.pop(number, None)
        for row in self.rows.values():
            if row.owner == number:
                row.owner = None
        self.assign()

    def assign(self) -> None:
        self.epoch += 1
        members = sorted(self.leases)
        for number, row in enumerate(self.rows.values()):
            row.target = members[number % len(members)] if members else None

    def beat(self, number: int, now: float) -> HeartbeatAnswer | None:
        if number not in self.leases:
            return None
        self.leases[number] = now + SESSION_S
        for gone in [each for each, until in self.leases.items() if until < now]:
            self.remove(gone)
        for row in self.rows.values():
            if row.target == number and row.owner is None:
                row.owner = number
                row.epoch += 1
        waiting = any(row.target == number != row.owner for row in self.rows.values())
        claims = {
            tp: Claim(1, row.epoch, row.target != number, None, None)
            for tp, row in self.rows.items()
            if row.owner == number
        }
        return HeartbeatAnswer(self.epoch, False, waiting, False, claims)


class Members(RuleBasedStateMachine):
    """Members come, go, stall and are cut off; messages are late; at no time do two have one partition."""

    names = st.sampled_from(["a", "b", "c"])

    @initialize()
    def begin(self) -> None:
        self.now = 0.0
        self.server = Server()
        self.clients: dict[str, Client] = {}
        self.history: dict[TopicPartition, int] = {}

    @rule(name=names)
    def comes(self, name: str) -> None:
        if name not in self.clients:
            machine = Membership(
                session_timeout_s=SESSION_S, heartbeat_interval_s=3, max_poll_interval_s=25, now=self.now
            )
            machine.subscribe(self.now)
            self.clients[name] = Client(machine)

    @rule(name=names)
    def dies(self, name: str) -> None:
        self.clients.pop(name, None)

    @rule(name=names)
    def unsubscribes(self, name: str) -> None:
        client = self.clients.get(name)
        if client is not None:
            client.machine.held.clear()
            client.machine.unsubscribe(self.now)

    @rule(seconds=st.sampled_from([0.1, 1.0, 3.0, 11.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule(name=names)
    def sends(self, name: str) -> None:
        client = self.clients.get(name)
        if client is None or client.in_flight is not None:
            return
        step = client.machine.step(self.now)
        if not isinstance(step, Wait):
            client.in_flight, client.sent = step, self.now

    @rule(name=names, lost=st.booleans())
    def is_answered(self, name: str, lost: bool) -> None:
        client = self.clients.get(name)
        if client is None or client.in_flight is None:
            return
        step, client.in_flight = client.in_flight, None
        machine = client.machine
        if lost:
            machine.failed(ConnectionFailedError(), self.now)
        elif step is Step.JOIN:
            client.number = self.server.join(name, self.now)
            machine.joined(Joined(1, client.number, self.server.epoch), client.sent)
        elif step is Step.LEAVE:
            self.server.remove(client.number)
            machine.left(self.now)
        elif isinstance(step, Release):
            for tp, each in step.claims.items():
                row = self.server.rows[tp]
                if (row.owner, row.epoch) == (client.number, each.epoch):
                    row.owner = None
            machine.released(step, self.now)
        else:
            found = self.server.beat(client.number, self.now)
            if found is None:
                machine.failed(UnknownMemberError(), self.now)
            else:
                machine.beaten(found, client.sent, self.now)

    @rule(name=names)
    def polls(self, name: str) -> None:
        client = self.clients.get(name)
        if client is None:
            return
        machine = client.machine
        machine.polled(self.now)
        changes = machine.changes(self.now)
        machine.let_go(changes.lost)
        machine.give_up(changes.revoked, self.now)
        machine.take_up(changes.assigned)
        for tp, each in changes.assigned.items():
            assert each.epoch >= self.history.get(tp, 0)
            self.history[tp] = each.epoch

    @precondition(lambda self: len(self.clients) > 0)
    @rule()
    def everybody_works_undisturbed(self) -> None:
        """Whatever has happened: left alone, everything is soon held, by exactly one each."""
        for _ in range(12):
            for name in list(self.clients):
                for _ in range(4):
                    self.sends(name)
                    self.is_answered(name, lost=False)
                self.polls(name)
            self.now += 1.5
        members = [c for c in self.clients.values() if c.machine.phase is Phase.MEMBER]
        if members:
            held = [tp for client in members for tp in client.machine.held]
            assert sorted(held) == PARTITIONS
            assert all(client.machine.covered(self.now) for client in members)

    @invariant()
    def nothing_is_had_twice(self) -> None:
        owners: dict[TopicPartition, str] = {}
        for name, client in getattr(self, "clients", {}).items():
            machine = client.machine
            if machine.covered(self.now):
                lost = machine.changes(self.now).lost
                for tp in machine.held:
                    if tp not in lost:
                        assert tp not in owners, f"{tp} is had by {name} and by {owners[tp]}"
                        owners[tp] = name


TestMembers = Members.TestCase
TestMembers.settings = settings(max_examples=examples(150), stateful_step_count=60, deadline=None)
