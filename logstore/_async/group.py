"""The part of a consumer that belongs to its group: takes partitions up, gives them up, commits.

Everything here happens on the program's side, inside its calls of ``poll``, ``commit`` and ``close``: the
listener is called there and nowhere else.  The heart (:mod:`logstore._async.heart`) goes on meanwhile.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final
from uuid import uuid4

from logstore._async.apart import Bell, settle, settle_soon
from logstore._async.concurrency import Lock
from logstore._async.fetcher import Fetcher
from logstore._async.heart import Heart
from logstore._async.questions import Question
from logstore._async.session import Session
from logstore._core.group_calls import Claim, Commit, GroupCalls, MembershipTerms
from logstore._core.listener import ConsumerRebalanceListener
from logstore._core.membership import Changes, Membership, News, Phase
from logstore._core.subscription import Subscription
from logstore.consumer_config import ConsumerConfig
from logstore.errors import (
    CommitFailedError,
    IllegalStateError,
    LogstoreError,
    UnknownTopicOrPartitionError,
)
from logstore.records import ConsumerGroupMetadata, ConsumerRecord, OffsetAndMetadata, TopicPartition

__all__ = ["Group"]

_log = logging.getLogger("logstore.group")

CLOSE_S: Final = 2.0
"""How long closing waits for a server that does not answer."""

Offsets = Mapping[TopicPartition, OffsetAndMetadata]
CommitCallback = Callable[[Offsets, LogstoreError | None], object]


class Group:
    """The membership of one consumer.  ``lock`` is the consumer's; it guards ``subscription``."""

    def __init__(
        self,
        config: ConsumerConfig,
        session: Session,
        subscription: Subscription,
        fetcher: Fetcher,
        lock: Lock,
    ) -> None:
        assert config.group_id is not None
        self._config = config
        self._group_id: str = config.group_id
        self._calls = GroupCalls(config.schema)
        self._subscription = subscription
        self._fetcher = fetcher
        self._lock = lock
        self._listener: ConsumerRebalanceListener | None = None
        self.at_most_once = config.delivery == "at_most_once"
        self.exactly_once = config.delivery == "exactly_once"
        self.transactional = self.exactly_once
        """Offsets are committed by transactions, and not automatically besides."""
        self.turn: str | None = None
        """What the consumer is in the middle of, and why nothing else may be read or committed."""
        self.reading = False
        """A transaction reads its records."""
        self._enable_auto_commit = config.enable_auto_commit
        self.stirred = False
        """:meth:`attend` has something to do."""
        self.subscribed = False
        """Partitions come from the group, not from ``assign``."""
        self.program_waits = False
        """The program waits for records: it is alive, however long that takes."""
        self._attending = False
        self._member_id = f"{config.client_id[:200]}-{uuid4()}"
        self._committed: dict[TopicPartition, int] = {}
        self._unanchored: set[TopicPartition] = set()
        self._commit_due = 0.0
        self._posted: list[tuple[Any, Offsets, CommitCallback | None]] = []
        self._soon: Question[Any] | None = None
        self._membership = Membership(
            session_timeout_s=config.session_timeout_ms / 1000,
            heartbeat_interval_s=config.heartbeat_interval_ms / 1000,
            max_poll_interval_s=config.max_poll_interval_ms / 1000,
            static=config.group_instance_id is not None,
            now=time.monotonic(),
        )
        terms = MembershipTerms(
            config.group_id,
            config.group_instance_id,
            config.client_id,
            config.group_remote_assignor,
            config.session_timeout_ms,
            config.max_poll_interval_ms,
        )
        self._bell: Bell | None = None
        self.heart = Heart(
            session,
            self._calls,
            terms,
            self._member_id,
            self._membership,
            timeout_s=config.request_timeout_ms / 1000,
            changed=self._ring,
            progress=self._progress,
        )

    # -- what is subscribed to -----------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to be a member, if anything is subscribed to."""
        self._bell = Bell(self._stir)
        if self.subscribed:
            self.heart.start()

    def subscribe(
        self,
        topics: Iterable[str] | None,
        pattern: str | None,
        listener: ConsumerRebalanceListener | None,
    ) -> None:
        """Become a member that reads these topics, or change what a member reads."""
        self._listener = listener
        self.subscribed = True
        with self.heart.lock:
            self.heart.topics = None if topics is None else frozenset(topics)
            self.heart.pattern = pattern
            self._membership.subscribe(time.monotonic())
        if self._bell is not None:
            self.heart.start()
            self.heart.nudge()

    def unsubscribe(self) -> None:
        """Give everything up: tell the listener, commit (if that is automatic), then leave the group; none of
        it is waited for.
        """
        with self._lock:
            positions = self._subscription.committable()
        with self.heart.lock:
            held = dict(self._membership.held)
        if held and self._listener is not None:
            settle_soon(self._listener.on_partitions_revoked(list(held)))
        wanted = {
            tp: position
            for tp, position in positions.items()
            if tp in held and self._committed.get(tp) != position.offset
        }
        commits = self._auto_commit and not self.at_most_once and bool(wanted)
        call = self._commit_call(wanted, {tp.topic: held[tp].topic_id for tp in wanted}) if commits else None
        self.subscribed = False
        self._listener = None
        self._committed.clear()
        self._unanchored.clear()
        with self.heart.lock:
            self._membership.held.clear()
        if call is None:
            self._leave()
        else:
            self._fetcher.post(call, self._leave)

    def _leave(self) -> None:
        if not self.subscribed:
            with self.heart.lock:
                self._membership.unsubscribe(time.monotonic())
            self.heart.nudge()

    @property
    def _auto_commit(self) -> bool:
        return self._enable_auto_commit and not self.transactional

    def check_turn(self) -> None:
        """Raises when reading and committing is a transaction's business."""
        if self.turn is not None:
            raise IllegalStateError(
                self.turn, advice="Reading and committing are up to `with consumer.transaction() as tx:`."
            )
        if self.exactly_once and not self.reading:
            raise IllegalStateError(
                'delivery="exactly_once" hands out records, and commits, in transactions only.',
                advice="Use `with consumer.transaction() as tx:`, or consumer.run(handler).",
            )

    @property
    def metadata(self) -> ConsumerGroupMetadata:
        with self.heart.lock:
            epoch = self._membership.epoch if self._membership.phase is Phase.MEMBER else -1
            held = dict(self._membership.held)
        claims = (
            {tp: (claim.topic_id, claim.epoch) for tp, claim in held.items()} if self.subscribed else None
        )
        return ConsumerGroupMetadata(
            self._group_id, epoch, self._member_id, self._config.group_instance_id, claims
        )

    # -- inside poll ---------------------------------------------------------------------------------------

    @property
    def wanted(self) -> bool:
        """:meth:`attend` should be called before anything is handed out.  The lock must be held."""
        return self.stirred or (
            bool(self._unanchored)
            and any(self._subscription.position(tp) is not None for tp in self._unanchored)
        )

    async def attend(self) -> None:
        """Do what has come up: join, give partitions up, take partitions up, commit what is due.

        Raises what keeps the consumer from being a member: FencedInstanceIdError, InvalidSubscriptionError,
        InvalidGroupError and what the server says of permissions.
        """
        if self._attending:
            raise IllegalStateError("A rebalance listener cannot poll.")
        self.check_turn()
        now = time.monotonic()
        with self.heart.lock:
            expelled = self._membership.phase is Phase.EXPELLED
            self._membership.polled(now)
            error = self._membership.error
            changes = self._membership.changes(now)
        if expelled:
            self.heart.nudge()
        self.stirred = False
        self._call_back()
        self._attending = True
        try:
            if changes:
                await self._apply(changes)
            if error is not None:
                raise error
            await self._look_committed_up()
            await self._anchor()
            if self._auto_commit and not self.at_most_once and now >= self._commit_due:
                await self._commit_soon()
        finally:
            self._attending = False

    async def _apply(self, changes: Changes) -> None:
        try:
            if changes.lost:
                await self._lose(changes.lost)
            if changes.revoked:
                await self._give_up(changes.revoked)
        finally:
            if changes.assigned:
                await self._take_up(changes.assigned)

    async def _lose(self, claims: Mapping[TopicPartition, Claim]) -> None:
        _log.info("Group %s: lost %s", self._group_id, _listed(claims))
        with self.heart.lock:
            self._membership.let_go(claims)
        self._forget(claims)
        if self._listener is not None:
            await settle(self._listener.on_partitions_lost(list(claims)))

    async def _give_up(self, claims: Mapping[TopicPartition, Claim]) -> None:
        _log.info("Group %s: gives up %s", self._group_id, _listed(claims))
        if self._auto_commit and not self.at_most_once:
            await self._commit_quietly()
        try:
            if self._listener is not None:
                await settle(self._listener.on_partitions_revoked(list(claims)))
        finally:
            self._forget(claims)
            with self.heart.lock:
                self._membership.give_up(claims, time.monotonic())
            self.heart.nudge()

    async def _take_up(self, claims: Mapping[TopicPartition, Claim]) -> None:
        _log.info("Group %s: takes up %s", self._group_id, _listed(claims))
        with self.heart.lock:
            self._membership.take_up(claims)
        with self._lock:
            self._subscription.assign([*self._subscription.assignment, *claims], awaiting=True)
            self._subscription.anchor(
                {tp: (claim.committed, claim.leader_epoch) for tp, claim in claims.items()}
            )
            self._note({tp: claim.committed for tp, claim in claims.items()})
            self._fetcher.disturb()
        if self._listener is not None:
            await settle(self._listener.on_partitions_assigned(list(claims)))

    def missing(self, error: UnknownTopicOrPartitionError) -> None:
        """A partition does not exist any more: it is not read until the group says what becomes of it.  The
        consumer's lock must be held.
        """
        gone = TopicPartition(error.details["topic"], error.details["partition"])
        self._subscription.assign([tp for tp in self._subscription.assignment if tp != gone])
        with self.heart.lock:
            self._membership.woken(News.TARGETS, time.monotonic())

    def _forget(self, partitions: Iterable[TopicPartition]) -> None:
        gone = set(partitions)
        for tp in gone:
            self._committed.pop(tp, None)
        self._unanchored -= gone
        with self._lock:
            self._subscription.assign([tp for tp in self._subscription.assignment if tp not in gone])
            self._fetcher.disturb()

    def _note(self, committed: Mapping[TopicPartition, int | None]) -> None:
        for tp, offset in committed.items():
            if offset is not None:
                self._committed[tp] = offset
            elif self._auto_commit or self.transactional:
                self._unanchored.add(tp)

    async def _look_committed_up(self) -> None:
        """Partitions that were assigned by hand begin at the group's committed offsets."""
        with self._lock:
            wanted = [] if self.subscribed else self._subscription.awaiting()
        if wanted:
            found = await self.committed(wanted)
            offsets = {tp: None if each is None else each.offset for tp, each in found.items()}
            with self._lock:
                self._subscription.anchor(
                    {
                        tp: (None, None) if each is None else (each.offset, each.leader_epoch)
                        for tp, each in found.items()
                    }
                )
                self._note(offsets)
                self._fetcher.disturb()

    async def _anchor(self) -> None:
        """Commit the position of partitions that nobody has committed for, once the reset policy has found
        it: if this member dies now, the next one begins there too and skips nothing.
        """
        with self._lock:
            self._unanchored &= self._subscription.assignment
            positions = self._subscription.committable() if self._unanchored else {}
            found = {tp: positions[tp] for tp in self._unanchored if tp in positions}
        if found:
            self._unanchored.difference_update(found)
            await self._commit_quietly(found)

    async def before_handing_out(self, records: Mapping[TopicPartition, Sequence[ConsumerRecord]]) -> bool:
        """At most once: commit ``records``; False: they are somebody else's by now."""
        offsets = {
            tp: OffsetAndMetadata(each[-1].offset + 1, leader_epoch=each[-1].leader_epoch)
            for tp, each in records.items()
        }
        try:
            await self.commit(offsets)
        except BaseException as error:
            with self._lock:
                for tp in records:
                    if tp in self._subscription.assignment:
                        self._subscription.go_back(tp, records[tp][0].offset)
            if isinstance(error, CommitFailedError):
                with self.heart.lock:
                    self._membership.woken(News.TARGETS, time.monotonic())
                self.heart.nudge()
                return False
            raise
        return True

    # -- offsets -------------------------------------------------------------------------------------------

    async def commit(self, offsets: Offsets | None = None) -> None:
        """Commit ``offsets``, by default the positions.

        Raises CommitFailedError (somebody else has the partition), OffsetOutOfRangeError (beyond the end),
        OffsetMetadataTooLargeError, UnknownTopicOrPartitionError, FencedInstanceIdError; then nothing is
        committed.
        """
        self.check_turn()
        wanted = self._positions() if offsets is None else dict(offsets)
        if wanted:
            await self._fetcher.ask(self._commit_call(wanted, await self.topic_ids(wanted)))
            self.remember(wanted)

    async def post_commit(self, offsets: Offsets | None, callback: CommitCallback | None) -> None:
        """Commit without waiting; ``callback`` is called by a later :meth:`attend`, or :meth:`close`."""
        self.check_turn()
        wanted = self._positions() if offsets is None else dict(offsets)
        if wanted:
            call = self._commit_call(wanted, await self.topic_ids(wanted))
            self._posted.append((self._fetcher.post(call), wanted, callback))

    async def committed(
        self, partitions: Iterable[TopicPartition]
    ) -> dict[TopicPartition, OffsetAndMetadata | None]:
        """The committed offset of each partition; None where there is none."""
        wanted = list(partitions)
        ids = await self.topic_ids(wanted)
        call = self._calls.committed_offsets(self._group_id, [(ids[tp.topic], tp.partition) for tp in wanted])
        found = {
            TopicPartition(row.topic, row.partition): OffsetAndMetadata(
                row.offset, row.metadata, row.leader_epoch
            )
            for row in await self._fetcher.ask(call)
        }
        return {tp: found.get(tp) for tp in wanted}

    async def rebalance(self) -> None:
        """Have the group's assignment computed again."""
        with self.heart.lock:
            group_id = self._membership.group_id if self._membership.phase is Phase.MEMBER else None
        if group_id is not None:
            await self._fetcher.ask(self._calls.rebalance_group(group_id))
            await self._fetcher.ask(self._calls.wake_group(group_id, News.TARGETS.value))

    async def close(self) -> None:
        """Commit (if that is automatic), tell the listener, leave the group (unless static)."""
        if self._bell is None:
            return
        try:
            if self._auto_commit and not self.at_most_once and not self._attending:
                await self._commit_quietly(timeout_s=CLOSE_S)
            self._call_back()
            with self.heart.lock:
                held = list(self._membership.held)
            if held and self._listener is not None and not self._attending:
                await settle(self._listener.on_partitions_revoked(held))
        finally:
            with self.heart.lock:
                self._membership.held.clear()
                if self._config.group_instance_id is None:
                    self._membership.unsubscribe(time.monotonic())
                else:
                    self._membership.fall_silent(time.monotonic())
            await self.heart.stop(CLOSE_S)

    async def _commit_soon(self) -> None:
        """:meth:`_commit_quietly`; while a follower is read from, nobody waits for the leader."""
        replica = self._fetcher.replica
        if replica is None or not replica.serving:
            await self._commit_quietly()
        elif self._soon is None or self._soon.done:
            self._commit_due = time.monotonic() + self._config.auto_commit_interval_ms / 1000
            wanted = self._uncommitted()
            with self.heart.lock:
                held = dict(self._membership.held)
            known = {tp.topic: claim.topic_id for tp, claim in held.items()}
            if not self.subscribed:
                with self._lock:
                    ids = {tp: self._subscription.topic_id(tp) for tp in wanted}
                known = {tp.topic: topic_id for tp, topic_id in ids.items() if topic_id is not None}
                wanted = {tp: each for tp, each in wanted.items() if tp.topic in known}
            if wanted:
                self._soon = self._fetcher.post(self._commit_call(wanted, known))
                self._posted.append((self._soon, wanted, None))

    def _uncommitted(self) -> dict[TopicPartition, OffsetAndMetadata]:
        """The positions of what this member may commit, where they have changed."""
        with self._lock:
            known = self._subscription.committable()
        with self.heart.lock:
            held = set(self._membership.held)
        return {
            tp: each
            for tp, each in known.items()
            if self._committed.get(tp) != each.offset and (not self.subscribed or tp in held)
        }

    async def _commit_quietly(self, positions: Offsets | None = None, timeout_s: float | None = None) -> None:
        """Commit what has changed; what goes wrong is logged, and tried again with the next commit."""
        self._commit_due = time.monotonic() + self._config.auto_commit_interval_ms / 1000
        if positions is None:
            wanted = self._uncommitted()
        else:
            with self.heart.lock:
                held = self._membership.held
                wanted = {tp: each for tp, each in positions.items() if not self.subscribed or tp in held}
        if not wanted:
            return
        try:
            call = self._commit_call(wanted, await self.topic_ids(wanted, timeout_s))
            await self._fetcher.ask(call, timeout_s)
            self.remember(wanted)
        except LogstoreError as error:
            _log.warning("Group %s: offsets were not committed: %s", self._group_id, error)

    def _positions(self) -> dict[TopicPartition, OffsetAndMetadata]:
        with self._lock:
            return self._subscription.committable()

    def remember(self, offsets: Offsets) -> None:
        """These have been committed."""
        with self._lock:
            assigned = self._subscription.assignment
        for tp, committed in offsets.items():
            if tp in assigned:
                self._committed[tp] = committed.offset
                self._unanchored.discard(tp)

    def _commit_call(self, offsets: Offsets, ids: Mapping[str, int]) -> Any:
        with self.heart.lock:
            held = dict(self._membership.held)
        commits = []
        for tp, wanted in offsets.items():
            claim = held.get(tp)
            if self.subscribed and claim is None:
                raise CommitFailedError(
                    f"Partition {tp.partition} of topic {tp.topic!r} is not this member's (any more).",
                    details={"topic": tp.topic, "partition": tp.partition, "reason": "not_owner"},
                )
            commits.append(
                Commit(
                    ids[tp.topic],
                    tp.partition,
                    None if claim is None else claim.epoch,
                    wanted.offset,
                    wanted.leader_epoch,
                    wanted.metadata,
                )
            )
        member_id = self._member_id if self.subscribed else None
        return self._calls.commit_offsets(self._group_id, member_id, self._config.group_instance_id, commits)

    async def topic_ids(
        self, partitions: Iterable[TopicPartition], timeout_s: float | None = None
    ) -> dict[str, int]:
        """The ids of the topics of ``partitions``; raises UnknownTopicOrPartitionError."""
        names = {tp.topic for tp in partitions}
        with self.heart.lock:
            known = {tp.topic: claim.topic_id for tp, claim in self._membership.held.items()}
        missing = sorted(names.difference(known))
        if missing:
            for row in await self._fetcher.ask(self._calls.metadata(missing), timeout_s):
                known[row.topic] = row.topic_id
        for name in names:
            if name not in known:
                raise UnknownTopicOrPartitionError(f"There is no topic {name!r}.", details={"topic": name})
        return known

    def _call_back(self) -> None:
        """Call the callbacks of the commits that are done, in order."""
        while self._posted and self._posted[0][0].done:
            question, offsets, callback = self._posted.pop(0)
            error = question.error
            if error is None:
                self.remember(offsets)
            elif question is self._soon:
                _log.warning("Group %s: offsets were not committed: %s", self._group_id, error)
            if callback is not None:
                callback(offsets, question.error)

    # -- from the heart ------------------------------------------------------------------------------------

    def _progress(self) -> object:
        return object() if self.program_waits else self._subscription.progress

    def _ring(self) -> None:
        bell = self._bell
        if bell is not None:
            bell.ring()

    def _stir(self) -> None:
        with self._lock:
            self.stirred = True
            self._fetcher.changed.notify_all()


@contextmanager
def waiting_in(group: Group | None) -> Iterator[None]:
    """The program waits for records, and so is not slow."""
    if group is None:
        yield
        return
    group.program_waits = True
    try:
        yield
    finally:
        group.program_waits = False


def _listed(partitions: Iterable[TopicPartition]) -> str:
    return ", ".join(f"{tp.topic}-{tp.partition}" for tp in sorted(partitions))
