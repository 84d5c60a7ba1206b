"""A mirror takes the place of the topic that it mirrors.

Where the source can be reached it is fenced first: from then on nobody appends to it, what was staged in
transactions is drained, the rest is copied, and only when both are the same does the mirror become writable.
Whatever is killed on the way, at no time do both take records, and doing it again goes on from there.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from logstore.errors import (
    ConnectionFailedError,
    LockTimeoutError,
    MirrorError,
    RequestTimedOutError,
    RetriableError,
    UnknownTopicOrPartitionError,
)
from logstore.workers.connections import Connection, Limits, opened
from logstore.workers.mirroring import LIMITS, Link, Mirror, chosen

__all__ = ["Lacking", "Promoted", "promote"]

SETTLE: Final = Limits(statement_timeout_ms=30_000, lock_timeout_ms=200, idle_timeout_ms=30_000)
PAUSE_S: Final = 0.1


@dataclass(frozen=True, slots=True)
class Lacking:
    """What a mirror that was promoted without its source is known not to have."""

    topic: str
    partition: int
    end: int
    """Where the mirror ends."""
    records: int | None
    """How many offsets it lacked when the source was last seen; what came later is known to nobody. None: it
    was never seen."""
    seen_at: datetime | None


@dataclass(frozen=True, slots=True)
class Promoted:
    """What a promotion came to."""

    topics: tuple[str, ...]
    fenced: bool
    """The source takes no records any more, and the mirror has all of them."""
    epochs: dict[str, list[int]]
    """The leader epochs from now on, of each topic's partitions."""
    ends: dict[str, list[int]]
    """Where the promoted topics go on."""
    lacking: tuple[Lacking, ...]
    """Partitions that may lack records: all of them, when the source was not fenced."""
    groups_left: tuple[str, ...]
    """Groups in use at the mirror: they go on from their own offsets."""


def promote(
    link: Link | None,
    target: str,
    topics: Sequence[str] = (),
    *,
    schema: str = "logstore",
    force: bool = False,
    timeout_s: float = 60.0,
    say: Callable[[str], None] = lambda _text: None,
    stop: threading.Event | None = None,
) -> Promoted:
    """Make the mirrors in ``target`` whose names match ``topics`` (all, if none is given) ordinary topics.

    ``link``: where their source is; None, or one that cannot be reached: then ``force`` has to say that
    records may be lost, which the answer lists.  A topic that was itself fenced becomes writable again by
    ``force`` without a ``link``, if it is named.  What is promoted already stays as it is.

    Raises UnknownTopicOrPartitionError: there is no such mirror; MirrorError: the two logs do not belong
    together or have parted; RequestTimedOutError: transactions that have staged records stay open, or the
    source could not be copied, for ``timeout_s`` (it stays fenced: do it again); ConnectionFailedError.
    """
    stop = stop or threading.Event()
    with opened(target, schema, "mirror promote", LIMITS) as control:
        names = _mirrors(control, topics, force and link is None)
        if link is None and not force:
            raise MirrorError(
                "Where the source is was not said, so it cannot be fenced.",
                advice="Give --from; with --force the mirror is promoted without, and may lack records.",
                details={"reason": "no_source"},
            )
        mirror = None
        if link is not None:
            try:
                mirror = Mirror(link, names).__enter__()
            except RetriableError as error:
                if not force:
                    raise ConnectionFailedError(
                        f"The source cannot be reached, so it cannot be fenced: {error.message}",
                        advice="With --force the mirror is promoted without, and may lack records: "
                        + "; ".join(_words(each) for each in _lacking(control, names)),
                        details={"reason": "no_source"},
                    ) from error
                say(f"the source cannot be reached: {error.message}")
        if mirror is None:
            return _finished(control, names, {}, fenced=False, groups_left=())
        try:
            return _switched(mirror, control, names, time.monotonic() + timeout_s, say, stop)
        finally:
            mirror.__exit__()


def _mirrors(control: Connection, topics: Sequence[str], lifting: bool) -> list[str]:
    states: dict[str, str] = dict(
        control.rows("SELECT t.name, m.state FROM {}.mirrored_topic m JOIN {}.topic t USING (topic_id)")
    )
    for name in topics:
        if not any(chosen(known, [name]) for known in states):
            raise UnknownTopicOrPartitionError(
                f"No topic {name!r} is a mirror here.",
                advice="See what there is with `logstore mirror status`.",
                details={"topic": name},
            )
    names = []
    for name, state in sorted(states.items()):
        if not chosen(name, topics) or (state != "mirror" and not topics):
            continue
        if state == "fenced" and not lifting:
            raise MirrorError(
                f"Topic {name!r} is no mirror: it is fenced, because its mirror has taken its place.",
                advice="Mirror the other way round first; or lift the fence with --force and without --from.",
                details={"topic": name, "reason": "fenced"},
            )
        names.append(name)
    if not names:
        raise UnknownTopicOrPartitionError("No topic is a mirror here.", advice="")
    return names


def _switched(
    mirror: Mirror,
    control: Connection,
    names: list[str],
    deadline: float,
    say: Callable[[str], None],
    stop: threading.Event,
) -> Promoted:
    states: dict[str, str] = dict(
        control.rows("SELECT t.name, m.state FROM {}.mirrored_topic m JOIN {}.topic t USING (topic_id)")
    )
    open_names = [name for name in names if states[name] == "mirror"]
    if not open_names:
        return _finished(control, names, {}, fenced=True, groups_left=())
    # While the source still takes records, so that it is fenced for as short as may be.
    say("copying what there is")
    _checked(mirror, open_names, stop)
    epochs: dict[str, list[int]] = {}
    for name, target_id in control.rows(
        "SELECT name, topic_id FROM {}.topic WHERE name = ANY (%s) ORDER BY topic_id", open_names
    ):
        epochs[name] = mirror.source.value(
            "SELECT {}.fence_topic(%s, %s, %s, %s)",
            name,
            mirror.target_identity,
            target_id,
            mirror.link.target_address,
        )
        say(f"{name} is fenced at the source")
    _settled(mirror.link, deadline, stop)
    while behind := _checked(mirror, open_names, stop):
        if time.monotonic() > deadline or stop.is_set():
            raise RequestTimedOutError(
                f"{behind} records are still to be copied. The source is fenced.",
                advice="Promote again to go on; or lift the fence there: logstore mirror promote --to SOURCE "
                "--topics NAME --force.",
            )
        stop.wait(PAUSE_S)
    cycle = mirror.cycle(stop)
    say("everything is copied")
    return _finished(control, names, epochs, fenced=True, groups_left=tuple(sorted(cycle.groups_left)))


def _checked(mirror: Mirror, names: Sequence[str], stop: threading.Event) -> int:
    """Copy; answer how many records are lacking after that.  Raises what is wrong with any of the topics."""
    cycle = mirror.cycle(stop)
    for error in cycle.refused.values():
        raise error
    missing = [name for name in cycle.missing if name in names]
    if missing:
        raise MirrorError(
            f"The source does not have {', '.join(missing)} any more.",
            advice="Promote with --force and without --from.",
            details={"reason": "missing"},
        )
    lags = mirror.lags(cycle)
    for error in cycle.refused.values():
        raise error
    if {lag.topic.name for lag in lags} < set(names):
        # Somebody had a lock that was needed.
        return max(1, sum(lag.records for lag in lags))
    return sum(lag.records for lag in lags)


def _settled(link: Link, deadline: float, stop: threading.Event) -> None:
    """Wait until what was staged at the source before the fence is in its log."""
    with opened(link.source, link.source_schema, "mirror promote", SETTLE) as source:
        while True:
            try:
                # Who has staged something has these tables locked until the end of the transaction.
                source.rows("SELECT {}.settle_staged()")
                break
            except LockTimeoutError:
                if time.monotonic() > deadline or stop.is_set():
                    raise RequestTimedOutError(
                        "A transaction that has staged records stays open at the source, which is fenced.",
                        advice="End it, then promote again. pg_stat_activity shows it; so does "
                        "pg_prepared_xacts.",
                    ) from None
                stop.wait(PAUSE_S)
        while True:
            row = source.row("SELECT records, topic_ids, more FROM {}.drain()")
            assert row is not None
            if row[1] is not None and not row[2]:
                return
            if time.monotonic() > deadline or stop.is_set():
                raise RequestTimedOutError(
                    "What was staged at the source, which is fenced, is not drained yet."
                )
            if row[1] is None:
                stop.wait(PAUSE_S)


def _finished(
    control: Connection,
    names: Sequence[str],
    epochs: dict[str, list[int]],
    *,
    fenced: bool,
    groups_left: tuple[str, ...],
) -> Promoted:
    lacking = () if fenced else tuple(_lacking(control, names))
    now: dict[str, list[int]] = {}
    ends: dict[str, list[int]] = {}
    for name in names:
        rows = control.rows(
            'SELECT "partition", end_offset, leader_epoch FROM {}.promote_mirror(%s, %s::int4[])',
            name,
            epochs.get(name),
        )
        ends[name] = [row[1] for row in rows]
        now[name] = [row[2] for row in rows]
    return Promoted(tuple(names), fenced, now, ends, lacking, groups_left)


def _lacking(control: Connection, names: Sequence[str]) -> list[Lacking]:
    return [
        Lacking(topic, partition, end, None if peer_end is None else max(0, peer_end - end), seen_at)
        for topic, partition, end, peer_end, seen_at in control.rows(
            'SELECT topic, "partition", end_offset, peer_end, seen_at FROM {}.mirrors'
            " WHERE topic = ANY (%s) AND state = 'mirror' ORDER BY topic, \"partition\"",
            list(names),
        )
    ]


def _words(lacking: Lacking) -> str:
    known = "an unknown number of" if lacking.records is None else f"at least {lacking.records}"
    since = "" if lacking.seen_at is None else f", and all since {lacking.seen_at:%Y-%m-%d %H:%M:%S}"
    return f"{known} records of {lacking.topic}-{lacking.partition} from offset {lacking.end} on{since}"
