"""One member of a group: when to send what, what the lease still covers, what changes for the program.

Pure: every method takes ``now``, seconds of a monotonic clock; nothing here waits, sends or locks.  Two
parties use it, under one lock:

- the *heart* asks :meth:`Membership.step` what to send, sends it and brings the answer
  (:meth:`Membership.joined`, :meth:`Membership.beaten`, :meth:`Membership.released`,
  :meth:`Membership.left`, :meth:`Membership.failed`);
- the *program's side* says that it is alive (:meth:`Membership.polled`), asks what changes
  (:meth:`Membership.changes`), acts, and says so (:meth:`Membership.take_up`, :meth:`Membership.give_up`,
  :meth:`Membership.let_go`).

``claims`` is what the server last said that the member owns; ``held`` is what the program knows that it has.
A partition is given back to the group only after the program has let it go, so the program may finish and
commit first.  When the lease has run out by the member's own clock, which began before the server's, nothing
is held any more, whatever the server says.

::

    OUTSIDE ──subscribe──> JOINING ──joined──> MEMBER ──unsubscribe──> LEAVING ──left──> OUTSIDE
                             ^                  │ │
                             └──lease run out,──┘ └──polls too rarely──> LEAVING ──left──> EXPELLED
                                unknown member                                  (polls again: JOINING)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Final

from logstore._core.group_calls import Claim, HeartbeatAnswer, Joined
from logstore.errors import FencedInstanceIdError, LogstoreError, UnknownMemberError
from logstore.records import TopicPartition

__all__ = ["Changes", "Membership", "News", "Phase", "Release", "Step", "Wait"]

Claims = Mapping[TopicPartition, Claim]

EAGER_S: Final = 0.1
"""The first pause of a member that waits for partitions of others; it doubles up to the interval."""
WOKEN_S: Final = 0.05
"""Heartbeats that the group's notifications ask for are at least this far apart."""


class Phase(Enum):
    OUTSIDE = "outside"
    """No member, and does not want to be one."""
    JOINING = "joining"
    MEMBER = "member"
    LEAVING = "leaving"
    EXPELLED = "expelled"
    """Left because the program did not poll; joins again when it does."""
    FAILED = "failed"
    """Cannot be a member any more: :attr:`Membership.error`."""


class Step(Enum):
    """What the heart has to send."""

    JOIN = "join"
    HEARTBEAT = "heartbeat"
    LEAVE = "leave"


class News(Enum):
    """What members tell each other, so that nobody has to wait for the next heartbeat."""

    TARGETS = "targets"
    """The group has changed: everybody should ask."""
    FREED = "freed"
    """Partitions have been given up: those who wait for some should ask."""


@dataclass(frozen=True, slots=True)
class Release:
    """Give these partitions back to the group."""

    claims: dict[TopicPartition, Claim]


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing to send before this time, unless something happens."""

    until: float


@dataclass(frozen=True, slots=True)
class Changes:
    """What changes for the program.  ``bool()``: whether anything does."""

    lost: dict[TopicPartition, Claim] = field(default_factory=dict)
    """Somebody else may have these already: no commit."""
    revoked: dict[TopicPartition, Claim] = field(default_factory=dict)
    """To be given up; commits are still possible."""
    assigned: dict[TopicPartition, Claim] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.lost or self.revoked or self.assigned)


class Membership:
    """The state of one member.  Times are seconds."""

    def __init__(
        self,
        *,
        session_timeout_s: float,
        heartbeat_interval_s: float,
        max_poll_interval_s: float,
        static: bool = False,
        now: float = 0.0,
    ) -> None:
        self._session_s = session_timeout_s
        self._interval_s = heartbeat_interval_s
        self._max_poll_s = max_poll_interval_s
        self._static = static
        self.phase = Phase.OUTSIDE
        self.error: LogstoreError | None = None
        """Why the phase is FAILED."""
        self.group_id: int | None = None
        self.epoch = -1
        """The assigned epoch of the group that the last answer was about."""
        self.settled = False
        """The member has exactly what it should have."""
        self.held: dict[TopicPartition, Claim] = {}
        self._claims: dict[TopicPartition, Claim] = {}
        self._lease_until = now
        self._next = now
        self._sent = float("-inf")
        self._pause_s = EAGER_S
        self._polled = now
        self._failures = 0
        self._rejoin = False
        self._news: News | None = None

    # -- the program's side --------------------------------------------------------------------------------

    def subscribe(self, now: float) -> None:
        """Become a member with the subscription that the join will bring, or change the subscription."""
        self._polled = now
        if self.phase is Phase.MEMBER:
            self._rejoin = True
            self._next = now
        elif self.error is None or not self.error.fatal:
            self.error = None
            self._enter(Phase.JOINING, now)

    def unsubscribe(self, now: float) -> None:
        """Leave the group; what is held has been let go by then."""
        if self.phase is Phase.MEMBER:
            self._enter(Phase.LEAVING, now)
        elif self.phase is not Phase.LEAVING:
            self._enter(Phase.OUTSIDE, now)
        self._claims.clear()

    def fall_silent(self, now: float) -> None:
        """Stop sending without leaving, as a static member does; what is held has been let go by then."""
        self._claims.clear()
        self._enter(Phase.OUTSIDE, now)

    def polled(self, now: float) -> None:
        """The program asks for records: it is alive."""
        self._polled = now
        if self.phase is Phase.EXPELLED:
            self._enter(Phase.JOINING, now)

    def progressed(self, now: float) -> None:
        """The program takes records that it has got already: it is alive, but does not ask for more."""
        if self.phase is Phase.MEMBER:
            self._polled = now

    def changes(self, now: float) -> Changes:
        """What changes for the program; first what is lost, then what is revoked, then what is assigned."""
        self._look_at_lease(now)
        claims = self._claims
        lost: dict[TopicPartition, Claim] = {}
        revoked: dict[TopicPartition, Claim] = {}
        for tp, held in self.held.items():
            claim = claims.get(tp)
            if claim is None or (claim.epoch, claim.topic_id) != (held.epoch, held.topic_id):
                lost[tp] = held
            elif claim.revoke:
                revoked[tp] = held
        assigned = {
            tp: claim
            for tp, claim in claims.items()
            if not claim.revoke and (tp not in self.held or tp in lost)
        }
        return Changes(lost, revoked, assigned)

    def let_go(self, partitions: Iterable[TopicPartition]) -> None:
        """The program knows that these are lost."""
        for tp in partitions:
            self.held.pop(tp, None)

    def give_up(self, partitions: Iterable[TopicPartition], now: float) -> None:
        """The program is done with these; the heart may release them."""
        self.let_go(partitions)
        self._next = min(self._next, now)

    def take_up(self, claims: Claims) -> None:
        """The program has these now."""
        self.held.update(claims)

    def covered(self, now: float) -> bool:
        """The lease has not run out: what is held is nobody else's."""
        return self.phase is Phase.MEMBER and now < self._lease_until

    # -- the heart -----------------------------------------------------------------------------------------

    def step(self, now: float) -> Step | Release | Wait:
        """What to send now, or until when there is nothing to send."""
        self._look_at_lease(now)
        if self.phase is Phase.MEMBER and now - self._polled > self._max_poll_s:
            # A static member keeps its place until its session times out, as in Kafka: it only falls silent.
            self._enter(Phase.EXPELLED if self._static else Phase.LEAVING, now)
            self._claims.clear()
        match self.phase:
            case Phase.JOINING:
                return Step.JOIN if now >= self._next else Wait(self._next)
            case Phase.LEAVING:
                return Step.LEAVE if now >= self._next else Wait(self._next)
            case Phase.MEMBER:
                return self._member_step(now)
            case _:
                return Wait(float("inf"))

    def _member_step(self, now: float) -> Step | Release | Wait:
        if now >= self._next:
            if self._rejoin:
                return Step.JOIN
            unused = {tp: claim for tp, claim in self._claims.items() if claim.revoke and tp not in self.held}
            return Release(unused) if unused else Step.HEARTBEAT
        return Wait(min(self._next, self._polled + self._max_poll_s, self._lease_until))

    @property
    def known_epoch(self) -> int:
        """What to tell the server; -1: the answer has to say everything."""
        return self.epoch if self.settled else -1

    def joined(self, answer: Joined, sent: float) -> None:
        """The answer to :attr:`Step.JOIN`, which was sent at ``sent``."""
        self._answered(sent)
        if self.phase is Phase.JOINING or (self.phase is Phase.MEMBER and self._rejoin):
            self._rejoin = False
            self._enter(Phase.MEMBER, sent)
        elif self.phase is Phase.OUTSIDE:
            self._enter(Phase.LEAVING, sent)  # it was unsubscribed meanwhile
        self.group_id = answer.group_id

    def beaten(self, answer: HeartbeatAnswer, sent: float, now: float) -> bool:
        """The answer to :attr:`Step.HEARTBEAT`; whether something changes for the program."""
        self._answered(sent)
        if self.phase is not Phase.MEMBER:
            return False
        progress = not answer.unchanged and set(answer.claims) != set(self._claims)
        if not answer.unchanged:
            self._claims = dict(answer.claims)
            self.epoch = answer.assigned_epoch
        to_give = any(claim.revoke for claim in self._claims.values())
        self.settled = not answer.waiting and not to_give
        if answer.assigned:
            self._news = News.TARGETS
        if answer.waiting:
            self._pause_s = EAGER_S if progress else min(2 * self._pause_s, self._interval_s)
            self._next = now + min(self._pause_s, self._interval_s)
        else:
            self._pause_s = EAGER_S / 2
            self._next = sent + self._interval_s
        if any(claim.revoke and tp not in self.held for tp, claim in self._claims.items()):
            self._next = now
        return bool(self.changes(now))

    def released(self, release: Release, now: float) -> None:
        """The server has what :class:`Release` named."""
        self._failures = 0
        for tp, claim in release.claims.items():
            if self._claims.get(tp) == claim:
                del self._claims[tp]
        self._news = self._news or News.FREED
        self._next = now

    def left(self, now: float) -> None:
        """The answer to :attr:`Step.LEAVE`."""
        self._failures = 0
        self._news = News.TARGETS
        if self.phase is Phase.LEAVING:
            overdue = now - self._polled > self._max_poll_s
            self._enter(Phase.EXPELLED if overdue else Phase.OUTSIDE, now)

    def failed(self, error: LogstoreError, now: float) -> None:
        """What was sent was not answered, or refused."""
        if isinstance(error, UnknownMemberError):
            self._claims.clear()
            if self.phase is Phase.LEAVING:
                self.left(now)
            elif self.phase is Phase.MEMBER:
                self._enter(Phase.JOINING, now)
        elif isinstance(error, FencedInstanceIdError) or not error.retriable:
            self._claims.clear()
            self._enter(Phase.FAILED, now)
            self.error = error
        else:
            self._failures += 1
            self._next = now + min(self._interval_s, EAGER_S * 2 ** min(self._failures - 1, 10))

    def woken(self, news: News, now: float) -> None:
        """Another member says that something has changed.  Partitions that were freed concern only those who
        wait for some.
        """
        if self.phase is Phase.MEMBER and not (news is News.FREED and self.settled):
            self._pause_s = EAGER_S
            self._next = min(self._next, max(now, self._sent + WOKEN_S))

    def news(self) -> News | None:
        """What the other members should be told now, if anything; asked once."""
        news, self._news = self._news, None
        return news

    # ------------------------------------------------------------------------------------------------------

    def _answered(self, sent: float) -> None:
        self._failures = 0
        self._sent = sent
        self._lease_until = sent + self._session_s

    def _look_at_lease(self, now: float) -> None:
        if self.phase is Phase.MEMBER and now >= self._lease_until:
            self._claims.clear()
            self._enter(Phase.JOINING, now)

    def _enter(self, phase: Phase, now: float) -> None:
        self.phase = phase
        self.settled = False
        self._next = now
        self._pause_s = EAGER_S
