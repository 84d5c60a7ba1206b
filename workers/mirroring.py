"""Copying topics from one log to another, offset for offset.

A chunk of a partition is read from the source and appended to the mirror in one transaction there.  How far
the mirror has come is where its partition ends, so a process that was killed leaves nothing to be put right:
the next one reads that and goes on.  Two at once do no harm: a batch is written only where the partition ends
just before it.
"""

from __future__ import annotations

import fnmatch
import threading
from collections import deque
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, Final

from psycopg.conninfo import conninfo_to_dict
from psycopg.types.json import Jsonb

from logstore._core.dsn import describe
from logstore._core.mirrored import fitted
from logstore.errors import ConfigurationError, LockTimeoutError, LogstoreError, MirrorError
from logstore.workers.connections import Connection, Limits, opened
from logstore.workers.mirror_batches import Reading, Writing, in_file

__all__ = ["LIMITS", "Cycle", "Lag", "Link", "Mirror", "Topic", "chosen", "log_end"]

CHUNK_BYTES: Final = 4 << 20
"""Read and appended at once; a batch is never divided, so a large one may be more."""
LIMITS: Final = Limits(statement_timeout_ms=120_000, lock_timeout_ms=5_000, idle_timeout_ms=120_000)
GROUP_OFFSETS: Final = 1_000
"""Committed offsets written in one transaction."""


@dataclass(frozen=True, slots=True)
class Link:
    """The two logs."""

    source: str
    """DSN."""
    target: str
    source_schema: str = "logstore"
    schema: str = "logstore"

    @property
    def source_address(self) -> str:
        """Where the source is, without its password."""
        return describe(conninfo_to_dict(self.source))

    @property
    def target_address(self) -> str:
        """Where the mirror is, without its password."""
        return describe(conninfo_to_dict(self.target))


@dataclass(frozen=True, slots=True)
class Topic:
    """One topic, in both logs."""

    name: str
    source_id: int
    target_id: int
    partitions: int


@dataclass(slots=True)
class Lag:
    """One partition, in both logs."""

    topic: Topic
    partition: int
    end: int
    """Where the mirror ends."""
    goal: int
    """The source's high watermark."""
    log_start: int
    """The source's."""
    local_start: int
    waiting_since: int | None

    @property
    def records(self) -> int:
        """How many offsets the mirror lacks."""
        return max(0, self.goal - max(self.end, self.log_start))


@dataclass(slots=True)
class Cycle:
    """What one look at the source came to."""

    topics: set[str] = field(default_factory=set)
    """Those of which something was copied."""
    records: int = 0
    """Offsets copied, with the holes between them."""
    batches: int = 0
    offsets: int = 0
    """Committed offsets that changed."""
    refused: dict[str, LogstoreError] = field(default_factory=dict)
    """Topics that cannot be mirrored, and why."""
    missing: list[str] = field(default_factory=list)
    """Mirrors whose topic is gone from the source; they stay."""
    groups_left: set[str] = field(default_factory=set)
    """Groups that are in use at the mirror, so that their offsets are not touched."""
    configs_left: dict[str, list[str]] = field(default_factory=dict)
    """Configs that the mirror's server does not have."""
    behind: int = 0
    """How many offsets were still lacking at the end."""


def chosen(name: str, patterns: Sequence[str]) -> bool:
    """One of the patterns (with ``*`` and ``?``) is the topic's; none at all: every topic is meant."""
    return not patterns or any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


class Mirror:
    """Copies what is new, each time it is told to; keeps its connections in between.

    ``parallel`` partitions are copied at once, each on connections of its own and with at most about three
    times CHUNK_BYTES in memory, or three times the largest batch.
    """

    def __init__(
        self, link: Link, topics: Sequence[str] = (), *, parallel: int = 4, groups: bool = True
    ) -> None:
        self.link = link
        self._patterns = tuple(topics)
        self._parallel = parallel
        self._groups = groups
        self._stack = ExitStack()
        self._pairs: list[tuple[Reading, Writing]] = []
        self._topics: dict[str, Topic] = {}
        self._seen: dict[str, tuple[Any, ...]] = {}
        self._configs_left: dict[str, list[str]] = {}
        self._followed: dict[tuple[int, int], tuple[int, int]] = {}
        self._told: dict[int, tuple[list[int], list[int]]] = {}
        self._committed: dict[tuple[str, int, int], tuple[Any, ...]] = {}
        self.source: Connection
        self.target: Connection

    def __enter__(self) -> Mirror:
        try:
            self.target = self._opened(self.link.target, self.link.schema)
            self.source = self._opened(self.link.source, self.link.source_schema)
            self.source_identity = str(self.source.value("SELECT {}.log_identity()"))
            self.target_identity = str(self.target.value("SELECT {}.log_identity()"))
        except BaseException:
            self._stack.close()
            raise
        if self.source_identity == self.target_identity:
            self._stack.close()
            raise ConfigurationError(
                f"Both DSNs lead to the same log: {self.link.source_address}.",
                advice="A log cannot mirror itself; another schema or database is another log.",
            )
        return self

    def __exit__(self, *_exc: object) -> None:
        self._stack.close()
        self._pairs.clear()

    def cycle(self, stop: threading.Event | None = None) -> Cycle:
        """Copy everything that is there now.

        Raises what connections raise; what is wrong with one topic only is in the answer.
        """
        stop = stop or threading.Event()
        cycle = Cycle()
        self._agree(cycle)
        lags = self.lags(cycle)
        self._copy([lag for lag in lags if lag.end < lag.goal], cycle, stop)
        if self._groups and not stop.is_set():
            self._offsets(cycle)
        self._tell(lags)
        cycle.behind = sum(lag.records for lag in lags)
        return cycle

    # Topics.

    def only_known(self) -> None:
        """Make no topic a mirror that is not one already."""
        self._patterns = tuple(
            name
            for (name,) in self.target.rows(
                "SELECT t.name FROM {}.mirrored_topic m JOIN {}.topic t USING (topic_id)"
                " WHERE m.state = 'mirror' AND m.peer = %s",
                self.source_identity,
            )
        ) or ("",)

    def _agree(self, cycle: Cycle) -> None:
        """Make topics that there are not, with the configs and partitions that they have at the source."""
        there = self.source.rows(
            "SELECT t.name, t.topic_id, t.partitions, t.configs, m.state, m.peer"
            " FROM {}.topic t LEFT JOIN {}.mirrored_topic m USING (topic_id) ORDER BY t.name"
        )
        for name, topic_id, partitions, configs, state, peer in there:
            # What is mirrored the other way round is no topic of the source's own.
            if not chosen(name, self._patterns) or (state == "mirror" and peer == self.target_identity):
                continue
            if self._seen.get(name) != (topic_id, partitions, configs):
                self._begin(cycle, name, topic_id, partitions, configs)
        names = {row[0]: row[1] for row in there}
        for name in [name for name in self._topics if name not in names]:
            del self._topics[name], self._seen[name]
        cycle.configs_left = {name: left for name, left in self._configs_left.items() if left}
        for (name,) in self.target.rows(
            "SELECT t.name FROM {}.mirrored_topic m JOIN {}.topic t USING (topic_id)"
            " WHERE m.state = 'mirror' AND m.peer = %s ORDER BY t.name",
            self.source_identity,
        ):
            if name not in names and chosen(name, self._patterns):
                cycle.missing.append(name)

    def _begin(
        self, cycle: Cycle, name: str, topic_id: int, partitions: int, configs: dict[str, str]
    ) -> None:
        mirrored = {
            config: value
            for config, value in configs.items()
            if self.target.value("SELECT {}.is_mirrored_config(%s)", config)
        }
        try:
            row = self.target.row(
                "SELECT topic_id, configs_left FROM {}.begin_mirror(%s, %s, %s, %s, %s, %s)",
                name,
                self.source_identity,
                topic_id,
                self.link.source_address,
                partitions,
                Jsonb(mirrored),
            )
            assert row is not None
            topic = Topic(name, topic_id, row[0], partitions)
            self._compare(topic)
        except LockTimeoutError:
            # The next time.
            self._forget(name)
            return
        except LogstoreError as error:
            if error.retriable:
                raise
            self._forget(name)
            cycle.refused[name] = error
            return
        if self._topics.get(name) != topic:
            self._committed = {key: commit for key, commit in self._committed.items() if key[1] != topic_id}
        self._topics[name] = topic
        self._seen[name] = (topic_id, partitions, configs)
        self._configs_left[name] = row[1]

    def _forget(self, name: str) -> None:
        self._topics.pop(name, None)
        self._seen.pop(name, None)

    def _compare(self, topic: Topic) -> None:
        """Refuse a mirror that has other records than its source, as far as ends and epochs tell."""
        for partition, end in enumerate(self._ends([topic])):
            ours = self.target.value("SELECT {}.epoch_of(%s, %s, %s)", topic.target_id, partition, end - 1)
            theirs = self.source.value("SELECT {}.epoch_of(%s, %s, %s)", topic.source_id, partition, end - 1)
            if ours is not None and theirs is not None and ours != theirs:
                raise _parted(
                    topic,
                    partition,
                    f"offset {end - 1} has leader epoch {theirs} at the source, and {ours} in the mirror",
                )

    def _ends(self, topics: Iterable[Topic]) -> list[int]:
        ids, partitions, _ = _wanted(topics, "target_id")
        return [
            end
            for (end,) in self.target.rows(
                "SELECT e.end_offset FROM {}.partition_tips(%s::int4[], %s::int4[]) e ORDER BY e.idx",
                ids,
                partitions,
            )
        ]

    # Partitions.

    def lags(self, cycle: Cycle | None = None, topics: Sequence[Topic] | None = None) -> list[Lag]:
        """Where each partition is, in both logs; a log start that has moved is followed."""
        cycle = cycle or Cycle()
        topics = list(self._topics.values()) if topics is None else topics
        ids, partitions, owners = _wanted(topics, "source_id")
        ends = self._ends(topics)
        if len(ends) != len(ids):
            # A mirror has been deleted: it is made anew the next time.
            self._topics.clear()
            self._seen.clear()
            return []
        found = []
        rows = self.source.rows(
            "SELECT l.log_start, l.high_watermark, l.leader_epoch, l.local_start, l.waiting_since"
            " FROM {}.mirror_lag(%s::int4[], %s::int4[], %s::int8[]) l ORDER BY l.idx",
            ids,
            partitions,
            ends,
        )
        if len(rows) != len(ids):
            # A topic has been deleted since it was asked for.
            return []
        for topic, partition, end, (log_start, goal, epoch, local_start, since) in zip(
            owners, partitions, ends, rows, strict=True
        ):
            if topic.name in cycle.refused or log_start is None:
                continue
            if end > goal:
                # The next time, it is compared again.
                self._forget(topic.name)
                if (last := log_end(self.source, topic.source_id, partition)) < end:
                    cycle.refused[topic.name] = _parted(
                        topic, partition, f"it ends at {last} at the source, and at {end} in the mirror"
                    )
                continue
            key = (topic.target_id, partition)
            if self._followed.get(key) != (log_start, epoch):
                if key in self._followed and self._followed[key][1] != epoch:
                    # Somebody else leads there: look again whether it is the same history.
                    self._seen.pop(topic.name, None)
                try:
                    end = self.target.value("SELECT {}.follow_mirror(%s, %s, %s, %s)", *key, log_start, epoch)
                    self._followed[key] = (log_start, epoch)
                except (LockTimeoutError, MirrorError) as error:
                    if isinstance(error, MirrorError):
                        self._forget(topic.name)
                        cycle.refused[topic.name] = error
                    continue
            found.append(Lag(topic, partition, end, goal, log_start, local_start, since))
        return [lag for lag in found if lag.topic.name not in cycle.refused]

    def _copy(self, lags: list[Lag], cycle: Cycle, stop: threading.Event) -> None:
        tasks = deque(lags)
        copiers = min(self._parallel, len(tasks))
        while len(self._pairs) < copiers:
            self._pairs.append(
                (
                    Reading(self._opened(self.link.source, self.link.source_schema)),
                    Writing(self._opened(self.link.target, self.link.schema)),
                )
            )
        run = _Copying(tasks, cycle, stop)
        threads = [
            threading.Thread(target=run.work, args=pair, name=f"mirror-{number}", daemon=True)
            for number, pair in enumerate(self._pairs[:copiers])
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if cycle.topics:
            self.target.rows(
                "SELECT {}.wake(%s::int4[])",
                sorted(topic.target_id for topic in self._topics.values() if topic.name in cycle.topics),
            )
        if run.failed is not None:
            raise run.failed

    # Groups.

    def _offsets(self, cycle: Cycle) -> None:
        """Committed offsets, none beyond what is mirrored: whoever goes on from there misses nothing."""
        ids = {topic.source_id: topic.target_id for topic in self._topics.values()}
        changed = []
        for group, source_id, partition, *commit in self.source.rows(
            "SELECT g.name, o.topic_id, o.partition, o.committed_offset, o.leader_epoch, o.metadata"
            " FROM {}.group_offset o JOIN {}.log_group g USING (group_id)"
            " WHERE o.topic_id = ANY (%s) AND g.kind = 'consumer' ORDER BY g.name, o.topic_id, o.partition",
            list(ids),
        ):
            if self._committed.get((group, source_id, partition)) != tuple(commit):
                changed.append((group, ids[source_id], partition, *commit, source_id))
        for begin in range(0, len(changed), GROUP_OFFSETS):
            part = changed[begin : begin + GROUP_OFFSETS]
            columns = [list(column) for column in zip(*part, strict=True)]
            row = self.target.row(
                "SELECT written, groups_left FROM {}.mirror_offsets("
                "%s::text[], %s::int4[], %s::int4[], %s::int8[], %s::int4[], %s::text[])",
                *columns[:6],
            )
            assert row is not None
            cycle.offsets += row[0]
            cycle.groups_left.update(row[1])
        ends: dict[tuple[int, int], int] = {}
        if changed:
            _, partitions, owners = _wanted(self._topics.values(), "target_id")
            ends = {
                (topic.target_id, partition): end
                for topic, partition, end in zip(
                    owners, partitions, self._ends(self._topics.values()), strict=False
                )
            }
        for group, target_id, partition, committed, epoch, metadata, source_id in changed:
            # One that was held back is sent again, as is one of a group that is in use.
            if committed <= ends.get((target_id, partition), -1) and group not in cycle.groups_left:
                self._committed[group, source_id, partition] = (committed, epoch, metadata)

    def _tell(self, lags: list[Lag]) -> None:
        """Write down what was seen of the source, for whoever asks when it cannot be reached."""
        starts: dict[int, list[int]] = {}
        goals: dict[int, list[int]] = {}
        for lag in lags:
            starts.setdefault(lag.topic.target_id, []).append(lag.log_start)
            goals.setdefault(lag.topic.target_id, []).append(lag.goal)
        for topic in self._topics.values():
            told = (starts.get(topic.target_id, []), goals.get(topic.target_id, []))
            if len(told[0]) == topic.partitions:
                self.target.rows("SELECT {}.mirror_seen(%s, %s::int8[], %s::int8[])", topic.target_id, *told)

    def _opened(self, dsn: str, schema: str) -> Connection:
        return self._stack.enter_context(opened(dsn, schema, "mirror", LIMITS))


class _Copying:
    """The partitions that are to be copied, and the threads that do it: a chunk of one, then of the next."""

    def __init__(self, tasks: deque[Lag], cycle: Cycle, stop: threading.Event) -> None:
        self._tasks = tasks
        self._cycle = cycle
        self._stop = stop
        self._lock = threading.Lock()
        self.failed: LogstoreError | None = None

    def work(self, reading: Reading, writing: Writing) -> None:
        while not self._stop.is_set() and self.failed is None:
            with self._lock:
                if not self._tasks:
                    return
                lag = self._tasks.popleft()
                if lag.topic.name in self._cycle.refused:
                    continue
            try:
                more = self._chunk(lag, reading, writing)
            except LockTimeoutError:
                # Somebody has the partition locked: the next time.
                continue
            except LogstoreError as error:
                with self._lock:
                    if isinstance(error, MirrorError):
                        self._cycle.refused[lag.topic.name] = error
                    else:
                        self.failed = self.failed or error
                continue
            except Exception as error:
                with self._lock:
                    self.failed = self.failed or MirrorError(f"{type(error).__name__}: {error}")
                raise
            if more:
                with self._lock:
                    self._tasks.append(lag)

    def _chunk(self, lag: Lag, reading: Reading, writing: Writing) -> bool:
        """Copy one chunk; whether there is more."""
        topic, read_from = lag.topic, lag.end
        while True:
            if read_from < lag.local_start:
                found = in_file(reading.connection, topic.source_id, lag.partition, read_from)
                rows, next_offset = ([], lag.local_start) if found is None else found
            else:
                rows = reading.batches(topic.source_id, lag.partition, read_from, CHUNK_BYTES)
                next_offset = rows[-1].last_offset + 1 if rows else lag.goal
            batches = list(fitted(rows, lag.end))
            if batches:
                break
            # All of it is erased, or in the mirror already.
            read_from = next_offset
            if read_from >= lag.goal:
                return False
        end = writing.append(topic.target_id, lag.partition, batches)
        with self._lock:
            self._cycle.topics.add(topic.name)
            self._cycle.records += max(0, end - lag.end)
            self._cycle.batches += len(batches)
        lag.end = end
        return end < lag.goal


def log_end(source: Connection, topic_id: int, partition: int) -> int:
    """Where the partition ends (0: it is gone), shown or not: a new leader may not show all of it yet."""
    found: int = source.value(
        "SELECT coalesce(e.end_offset, 0) FROM {}.partition_tips(ARRAY[%s::int4], ARRAY[%s::int4]) e",
        topic_id,
        partition,
    )
    return found


def _parted(topic: Topic, partition: int, how: str) -> MirrorError:
    return MirrorError(
        f"Partition {partition} of topic {topic.name!r} has parted from its mirror: {how}.",
        advice="The source has lost records that were mirrored, by a failover or a restored backup. Compare "
        "the two, then delete the mirror's topic to copy it anew.",
        details={"topic": topic.name, "partition": partition, "reason": "parted"},
    )


def _wanted(topics: Iterable[Topic], side: str) -> tuple[list[int], list[int], list[Topic]]:
    """All partitions: the topics' ids, the partitions' numbers, the topics."""
    every = [(topic, partition) for topic in topics for partition in range(topic.partitions)]
    return (
        [getattr(topic, side) for topic, _ in every],
        [partition for _, partition in every],
        [topic for topic, _ in every],
    )
