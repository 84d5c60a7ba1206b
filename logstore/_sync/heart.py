# Generated from logstore/_async/heart.py by tools/unasync.py; edit that file.
"""What keeps a member in its group: joins, sends heartbeats, releases, leaves.

Runs apart from the program, on a connection of its own, so that a slow or blocking handler costs no
partition.  What to send and when is :class:`~logstore._core.membership.Membership`'s business.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Final

from logstore._core.group_calls import GroupCalls, MembershipTerms
from logstore._core.membership import Membership, News, Release, Step, Wait
from logstore._sync.apart import Apart, SharedLock
from logstore._sync.concurrency import sleep
from logstore._sync.driver import Connection
from logstore._sync.session import Session
from logstore.errors import LogstoreError

__all__ = ["Heart"]

_log = logging.getLogger("logstore.group")

NAP_S: Final = 0.05
"""How finely a heart without a connection waits."""
IDLE_S: Final = 5.0
"""How often a heart that has nothing to send looks whether its consumer still exists."""


class Heart:
    """The heart of one member.

    ``changed`` is called, from over there, when the program's side has something to look at.  ``progress``
    returns something that differs when the program has taken further records without polling.
    """

    def __init__(
        self,
        session: Session,
        calls: GroupCalls,
        terms: MembershipTerms,
        member_id: str,
        membership: Membership,
        *,
        timeout_s: float,
        changed: Callable[[], object],
        progress: Callable[[], object],
    ) -> None:
        self.lock = SharedLock()
        """Guards ``membership`` and the subscription here."""
        self.topics: frozenset[str] | None = None
        self.pattern: str | None = None
        self._session = session
        self._calls = calls
        self._terms = terms
        self._member_id = member_id
        self._membership = membership
        self._timeout_s = min(timeout_s, max(1.0, terms.session_timeout_ms / 3000))
        self._changed = changed
        self._progress = progress
        self._seen: object = None
        self._ending = False
        self._abandoned = False
        self._nudged = False
        self._sleeping = False
        self._connection: Connection | None = None
        self._apart: Apart | None = None

    # -- the program's side --------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to beat, if it does not yet."""
        if self._apart is None:
            self._apart = Apart(self._run, name="logstore-heart")

    def nudge(self) -> None:
        """Have it look at the membership again.  The lock must not be held."""
        if self._apart is not None:
            self._apart.call(self._interrupt)

    def stop(self, timeout_s: float) -> None:
        """Send what there is to send, once, and end; wait for that ``timeout_s`` seconds at most."""
        apart = self._apart
        if apart is None:
            return
        with self.lock:
            self._ending = True
        self.nudge()
        if not apart.join(timeout_s):
            connection = self._connection
            if connection is not None:
                apart.call(connection.abort)

    def abandon(self) -> None:
        """The consumer is gone without having been closed.  Takes no lock: a garbage collector may call."""
        self._abandoned = True

    # -- over there ----------------------------------------------------------------------------------------

    def _interrupt(self) -> None:
        with self.lock:
            self._nudged = True
            if self._sleeping and self._connection is not None:
                self._connection.interrupt()

    def _run(self) -> None:
        membership = self._membership
        try:
            while True:
                with self.lock:
                    self._nudged = False
                    now = time.monotonic()
                    self._look_at_the_program(now)
                    before = membership.phase
                    step = membership.step(now)
                    moved = membership.phase is not before
                    if self._ending and isinstance(step, Wait):
                        return
                if moved:
                    self._changed()
                if isinstance(step, Wait):
                    self._wait(step.until - now)
                else:
                    self._send(step)
        except Exception as unexpected:
            _log.exception("The heart of member %s failed.", self._member_id)
            with self.lock:
                membership.failed(
                    LogstoreError(f"The member's heart failed: {unexpected!r}."), time.monotonic()
                )
            self._changed()
        finally:
            self._disconnect()

    def _look_at_the_program(self, now: float) -> None:
        if self._abandoned and not self._ending:
            self._ending = True
            self._membership.held.clear()
            self._membership.unsubscribe(now)
        seen = self._progress()
        if seen != self._seen:
            self._seen = seen
            self._membership.progressed(now)

    def _send(self, step: Step | Release) -> None:
        membership = self._membership
        try:
            connection = self._connected()
            changed = self._exchange(connection, step)
            with self.lock:
                group_id, news = membership.group_id, membership.news()
            if group_id is not None and news is not None:
                wake = self._calls.wake_group(group_id, news.value)
                connection.run(wake, timeout_s=self._timeout_s)
        except LogstoreError as error:
            with self.lock:
                before = membership.phase
                membership.failed(error, time.monotonic())
                changed = membership.phase is not before
            _log.log(
                logging.WARNING if error.retriable else logging.INFO,
                "Member %s of group %s: %s: %s", self._member_id, self._terms.group, step, error,
            )  # fmt: skip
            if self._connection is not None and self._connection.closed:
                self._disconnect()
        if changed:
            self._changed()

    def _exchange(self, connection: Connection, step: Step | Release) -> bool:
        """Send, and bring the answer; whether the program's side has something to look at."""
        membership, calls = self._membership, self._calls
        with self.lock:
            group_id, known_epoch = membership.group_id, membership.known_epoch
            topics, pattern = self.topics, self.pattern
        sent = time.monotonic()
        if step is Step.JOIN:
            join = calls.join_group(self._terms, self._member_id, topics, pattern)
            joined = connection.run(join, timeout_s=self._timeout_s)
            with self.lock:
                membership.joined(joined, sent)
            return False
        if step is Step.LEAVE:
            if group_id is not None:
                connection.run(calls.leave_group(group_id, self._member_id), timeout_s=self._timeout_s)
            with self.lock:
                membership.left(time.monotonic())
            return False
        assert group_id is not None
        if isinstance(step, Release):
            release = calls.release_claims(group_id, self._member_id, step.claims.items())
            connection.run(release, timeout_s=self._timeout_s)
            with self.lock:
                membership.released(step, time.monotonic())
            return False
        beat = calls.heartbeat_group(group_id, self._member_id, self._terms.instance_id, known_epoch)
        answer = connection.run(beat, timeout_s=self._timeout_s)
        with self.lock:
            return membership.beaten(answer, sent, time.monotonic())

    def _wait(self, seconds: float) -> None:
        connection = self._connection
        if connection is None:
            sleep(min(max(seconds, 0.0), NAP_S))
            return
        with self.lock:
            if self._nudged:
                return
            self._sleeping = True
        try:
            payloads = connection.wait_notify(min(max(seconds, 0.0), IDLE_S))
        except LogstoreError:
            payloads = []
            self._disconnect()
        finally:
            with self.lock:
                self._sleeping = False
        with self.lock:
            now = time.monotonic()
            for news in News:
                if f"{self._membership.group_id} {news.value}" in payloads:
                    self._membership.woken(news, now)

    def _connected(self) -> Connection:
        if self._connection is None:
            connection, info = self._session.open()
            with self.lock:
                self._connection = connection
            if not connection.pooled and not info.is_in_recovery:
                connection.listen(self._calls.group_channel, timeout_s=self._timeout_s)
        return self._connection

    def _disconnect(self) -> None:
        with self.lock:
            connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()
