"""Reading from a follower: a second task of a consumer, with a connection of its own.

It fetches while the fetcher keeps to the leader's connection, which may be lost and found meanwhile: commits,
positions, seals and what is staged are the leader's business.  When no follower will do, the fetcher fetches.
"""

from __future__ import annotations

import logging
from collections import deque
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

from logstore._async.concurrency import Condition, Lock, Task, spawn
from logstore._async.driver import Connection
from logstore._async.questions import Question
from logstore._async.replica_finder import ReplicaFinder
from logstore._async.session import Session
from logstore._core.call import Call
from logstore._core.calls import Sealed
from logstore._core.hosts import Host
from logstore._core.pace import Pace
from logstore._core.replica_lag import ReplicaLag
from logstore._core.subscription import FetchRequest, Subscription
from logstore.consumer_config import ConsumerConfig
from logstore.errors import LogstoreError

if TYPE_CHECKING:
    from logstore._async.fetcher import Fetcher

__all__ = ["ReplicaReads"]

_log = logging.getLogger("logstore.consumer")

IDLE_S: Final = 5.0
QUIET_S: Final = 0.1
"""A reader that looks no more often than this wants to be woken through the leader."""
SHORTEST_REST_S: Final = 0.2
LONGEST_REST_S: Final = 5.0
"""How often followers are looked for when none will do; it doubles from the shortest."""
SETTLED_S: Final = 60.0
"""How often to look again when the leader was found to be the nearest."""
ANSWER_S: Final = 1.0
"""A follower is given at least this long to answer."""
LEADER_S: Final = 0.5
"""A follower that is ready waits this long for the leader to say how far it has come."""
RETRIES: Final = 3
"""So many requests in a row may be refused (replay cancels what is in its way)."""
CLOSE_S: Final = 2.0


class ReplicaReads:
    """Reads for one fetcher.  ``lock`` guards what both touch."""

    def __init__(
        self,
        fetcher: Fetcher,
        config: ConsumerConfig,
        session: Session,
        subscription: Subscription,
        lock: Lock,
    ) -> None:
        self._fetcher = fetcher
        self._config = config
        self._calls = session.calls
        self._subscription = subscription
        self._lock = lock
        self._work = Condition(lock)
        self._finder = ReplicaFinder(session, nearest=config.read_from == "nearest", rack=config.client_rack)
        self.lag = ReplicaLag(config.max_replica_lag_ms / 1000)
        self._answer_s = min(
            config.request_timeout_ms / 1000, max(ANSWER_S, config.max_replica_lag_ms / 1000)
        )
        self._attention = False
        self._questions: deque[Question[Any]] = deque()
        self.serving = False
        """Records are fetched here."""
        self.quiet = False
        """Nothing has come for a while."""
        self.where: str | None = None
        """The server that is read from."""
        self.fetches = 0
        self.fallbacks = 0
        """How often reading has gone back to the leader."""
        # The task's own:
        self._task: Task | None = None
        self._connection: Connection | None = None
        self._host: Host | None = None
        self._avoid: dict[Host, float] = {}
        self._rest_s = SHORTEST_REST_S
        self._pace = Pace(woken=False, longest_s=config.fetch_max_wait_ms / 2000)
        self._sealing: Question[Sealed] | None = None
        self._look_at = 0.0
        self._met_at = 0.0
        self._refused = 0

    # -- the fetcher's and the user's side -------------------------------------------------------------------

    def start(self) -> None:
        self._task = spawn(self._run, name="logstore-replica")

    def disturb(self) -> None:
        """Make the task look at what has changed.  The lock must be held."""
        self._attention = True
        self._work.notify_all()

    def wake(self) -> None:
        """There may be something new.  The lock must be held."""
        self._pace.found(monotonic())
        self.disturb()

    def post(self, call: Call[Any]) -> Question[Any] | None:
        """Ask the server that is read from; None: that is the leader.  The lock must be held."""
        if not self.serving:
            return None
        question: Question[Any] = Question(call, None)
        self._questions.append(question)
        self.disturb()
        return question

    async def stop(self) -> None:
        """End the task, at once: nobody waits for a follower that does not answer."""
        self._finder.closing = True
        with self._lock:
            self.disturb()
        task, connection = self._task, self._connection
        if connection is not None and not connection.closed:
            connection.abort()
        if task is not None and not task.is_current and not await task.join(CLOSE_S):
            task.cancel()
            await task.join(CLOSE_S)

    def by_name(self) -> dict[str, float]:
        """For ``metrics``."""
        return {
            "reading-from-follower": float(self.serving),
            "replica-lag-ms": round(self.lag.behind_s * 1000, 3) if self.serving else 0.0,
            "replica-fetch-total": self.fetches,
            "replica-fallback-total": self.fallbacks,
        }

    # -- the task --------------------------------------------------------------------------------------------

    async def _run(self) -> None:
        try:
            while not self._fetcher.closing:
                try:
                    if self._connection is None:
                        await self._connect()
                    else:
                        await self._turn(self._connection)
                        self._refused = 0
                except LogstoreError as error:
                    self._refused += 1
                    connection = self._connection
                    if connection is None or connection.closed or self._refused > RETRIES:
                        await self._give_up(error.message)
                    else:
                        await self._rest(0.01 * self._refused)
        finally:
            await self._leave()

    async def _connect(self) -> None:
        now = monotonic()
        self._avoid = {host: until for host, until in self._avoid.items() if until > now}
        found = await self._finder.find(self._avoid)
        if found is None:
            await self._rest(SETTLED_S if self._finder.leader_is_nearest else self._rest_s)
            self._rest_s = min(2 * self._rest_s, LONGEST_REST_S)
            return
        now = monotonic()
        self._connection, self._host = found.connection, found.host
        self._pace = Pace(woken=False, longest_s=self._config.fetch_max_wait_ms / 2000)
        self._look_at = self._met_at = now
        with self._lock:
            self.lag.begin(now)
            self.where = found.connection.dsn_for_display

    async def _turn(self, connection: Connection) -> None:
        """One round: whatever is to be done now, or waiting for something to do."""
        with self._lock:
            self._attention = False
            question = self._questions[0] if self._questions else None
        if not connection.access.follower:
            await self._give_up("it is a follower no more")
        elif question is not None:
            await self._answer(connection, question)
        elif monotonic() >= self._look_at:
            await self._look_at_lag(connection)
        elif not self.serving:
            await self._pause(min(0.05, self.lag.look_every_s()))
            self._look_at = monotonic()
        else:
            await self._fetch(connection)

    async def _answer(self, connection: Connection, question: Question[Any]) -> None:
        question.answer = await connection.run(question.call, timeout_s=self._answer_s)
        with self._lock:
            question.done = True
            self._questions.popleft()
            self._fetcher.changed.notify_all()

    # -- how far behind it is --------------------------------------------------------------------------------

    async def _look_at_lag(self, connection: Connection) -> None:
        now = monotonic()
        state = await connection.run(self._calls.replica_state(), timeout_s=self._answer_s)
        self._look_at = now + self.lag.look_every_s()
        lag = self.lag
        with self._lock:
            lag.follower_has(state.seal_id, now)
            behind_s, caught_up, too_far = lag.behind_s, lag.caught_up, lag.too_far
        self._seal()
        since_s = now - self._met_at
        # Without a leader, what is behind is the best there is.
        ready = caught_up or not self._fetcher.online or (behind_s == 0 and since_s > LEADER_S)
        if self.serving or not ready:
            if self._fetcher.online and (too_far or (not self.serving and since_s > self._answer_s)):
                await self._give_up(f"it is {behind_s:.1f} s behind")
        else:
            self._serve()

    def _seal(self) -> None:
        """Ask the leader what its newest seal is, unless it has been asked already."""
        with self._lock:
            if self._sealing is None or self._sealing.done:
                self._sealing = self._fetcher.post(self._calls.seal(), self._sealed)

    def _sealed(self) -> None:
        question = self._sealing
        if question is not None and question.answer is not None:
            with self._lock:
                self.lag.leader_has(question.answer.seal_id, monotonic())
                if not self.serving:
                    self.disturb()

    def _serve(self) -> None:
        _log.info("Reading from %s.", self.where)
        self._rest_s = SHORTEST_REST_S
        with self._lock:
            self._subscription.read_elsewhere()
            self.serving, self.quiet = True, False
            self._fetcher.disturb()

    async def _give_up(self, why: str) -> None:
        """This follower will not do, for now: the leader is read from until another one is found."""
        now = monotonic()
        if self._host is not None:
            self._avoid[self._host] = now + max(1.0, self._config.max_replica_lag_ms / 1000)
        if self.serving and not self._fetcher.closing:  # else stop() has cut the connection
            _log.warning("Reading from %s stopped: %s", self.where, why)
        else:
            _log.debug("%s is not read from: %s", self.where, why)
        served = self.serving
        await self._leave()
        if not served:
            await self._rest(self._rest_s)
            self._rest_s = min(2 * self._rest_s, LONGEST_REST_S)

    async def _leave(self) -> None:
        with self._lock:
            connection, self._connection, self._host = self._connection, None, None
            if self.serving:
                self.serving = False
                self.fallbacks += 1
                self._subscription.read_elsewhere()
            self.where = None
            # The leader answers what has not been answered here.
            self._fetcher.take_over(self._questions)
            self._questions.clear()
            self._fetcher.disturb()
        if connection is not None:
            connection.abort()
            await connection.close()

    # -- fetching --------------------------------------------------------------------------------------------

    async def _fetch(self, connection: Connection) -> None:
        throttled_s = self._fetcher.throttle.left(monotonic())
        if throttled_s > 0:
            await self._rest(min(throttled_s, self.lag.look_every_s()))
            return
        with self._lock:
            self._subscription.has_room = False
            request = self._subscription.next_fetch()
            self._fetcher.mind_files()
        if request is None:
            await self._park()
            return
        config = self._config
        call = self._calls.fetch(
            request.topic_ids,
            request.partitions,
            request.offsets,
            config.fetch_max_bytes,
            config.max_partition_fetch_bytes,
        )
        began = monotonic()
        rows = await connection.run(call, timeout_s=self._answer_s)
        # It cannot be written down how much was read: a follower says how long these bytes alone may take.
        self._fetcher.throttled(rows.throttle_ms)
        now = monotonic()
        with self._lock:
            self.fetches += 1
            found = self._fetcher.fetched(request, rows, now - began, self._pace, follower=True)
            behind = self._subscription.behind(request)
            pending = self._subscription.pending(request)
            lost = self._subscription.needs_metadata
            if lost:
                self._fetcher.disturb()
        if await self._check(connection, request):
            return
        if found:
            self._pace.found(now)
            with self._lock:
                self.quiet = False
            if behind:
                return
        if pending:
            self._seal()
            await self._pause(self._pace.hasten().seconds)
            return
        seconds = self._pace.pause(now, now - began).seconds
        if seconds >= QUIET_S and not self.quiet:
            with self._lock:
                self.quiet = True
                self._fetcher.disturb()
        await self._pause(seconds)

    async def _check(self, connection: Connection, request: FetchRequest) -> bool:
        """Some partitions go on under another epoch: whether that had to be looked at."""
        with self._lock:
            doubts = self._subscription.next_check(request.states)
        if doubts is None:
            return False
        rows = await connection.run(self._calls.epoch_ends(*doubts[1:]), timeout_s=self._answer_s)
        with self._lock:
            agreed = self._subscription.confirmed(doubts, rows)
        if not agreed:
            await self._give_up("it has another history than what was read")
        return True

    async def _park(self) -> None:
        with self._lock:
            if self._attention or self._subscription.has_room:
                return
            self._fetcher.nothing_to_fetch()
        await self._pause(min(IDLE_S, max(0.0, self._look_at - monotonic())))

    async def _pause(self, seconds: float) -> None:
        with self._lock:
            if not self._attention and not self._fetcher.closing:
                await self._work.wait(seconds)

    async def _rest(self, seconds: float) -> None:
        """Wait, whatever the user's side wants."""
        until = monotonic() + seconds
        with self._lock:
            while not self._fetcher.closing and (left := until - monotonic()) > 0:
                await self._work.wait(left)
