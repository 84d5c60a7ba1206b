"""A topic that everything happens to, beside a model of it in plain Python.

Records come, time passes, policies change, records are deleted, the jobs run in any order; and at every
moment each way of reading shows what Kafka's rules say (see :mod:`tests.support.kafka_rules`).
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from itertools import count
from typing import ClassVar, Final

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from tests.support import audit, jobs
from tests.support.clock import DAY_MS, HOUR_MS, MINUTE_MS, Clock
from tests.support.kafka_rules import Policy, Record, compacted, dirty_ratio, retained_from
from tests.support.log_view import Place, fetched, looked_up, places, spans, visible
from tests.support.sqllog import Session, append, refused, rows, value

__all__ = ["LogMachine", "hold"]

KEYS: Final = (b"a", b"b", b"c", b"d", b"e")
PARTITIONS: Final = 2
_numbers = count()


@dataclass
class Model:
    """One partition."""

    records: list[Record] = field(default_factory=list)
    """All that have not been removed, also below the log start."""
    log_start: int = 0
    end: int = 0
    compacted_to: int = 0
    horizons: dict[int, int] = field(default_factory=dict)
    """Of tombstones that were compacted."""

    def visible(self) -> list[Record]:
        return [record for record in self.records if record.offset >= self.log_start]


class LogMachine(RuleBasedStateMachine):
    """Drives the log and the model side by side; a subclass says where, and with which policies."""

    dsn: ClassVar[str]
    session: ClassVar[Session]
    clock: ClassVar[Clock]
    cleanup: ClassVar[tuple[str, ...]] = ("delete", "")
    """What cleanup.policy may be; with a policy that compacts all records have keys."""

    @initialize(data=st.data())
    def begin(self, data: st.DataObject) -> None:
        self.topic = f"t{next(_numbers)}"
        self.policy = data.draw(self.policies())
        self.segment = data.draw(self.segments())
        self.id: int = value(
            self.session,
            "SELECT create_topic(%s, %s, %s)",
            self.topic,
            PARTITIONS,
            json.dumps(self.policy.configs() | self.segment),
        )
        self.model = {partition: Model() for partition in range(PARTITIONS)}
        self.written = count()

    # -- what may be chosen --------------------------------------------------------------------------------

    @property
    def keyed(self) -> bool:
        return any("compact" in each for each in self.cleanup)

    def policies(self) -> st.SearchStrategy[Policy]:
        return st.builds(
            Policy,
            cleanup=st.sampled_from(self.cleanup),
            retention_ms=st.sampled_from([-1, 0, 5 * MINUTE_MS, HOUR_MS, 7 * DAY_MS]),
            retention_bytes=st.sampled_from([-1, -1, 0, 300, 900, 3000]),
            delete_retention_ms=st.sampled_from([0, 10 * MINUTE_MS, DAY_MS]),
            min_compaction_lag_ms=st.sampled_from([0, 0, 10 * MINUTE_MS]),
            max_compaction_lag_ms=st.sampled_from([(1 << 63) - 1, (1 << 63) - 1, 2 * HOUR_MS]),
            min_cleanable_dirty_ratio=st.sampled_from([0.0, 0.0, 0.5, 1.0]),
        )

    def segments(self) -> st.SearchStrategy[dict[str, str]]:
        return st.fixed_dictionaries(
            {
                "segment.bytes": st.sampled_from(["200", "500", "100000"]),
                "segment.ms": st.sampled_from([str(10 * MINUTE_MS), str(DAY_MS)]),
                "file.delete.delay.ms": st.just("0"),
            }
        )

    # -- what happens --------------------------------------------------------------------------------------

    @rule(
        partition=st.integers(0, PARTITIONS - 1),
        keys=st.lists(st.sampled_from(KEYS), min_size=1, max_size=6),
        dead=st.sets(st.integers(0, 5)),
        ages=st.lists(st.sampled_from([0, 0, 1, MINUTE_MS, HOUR_MS, -MINUTE_MS]), min_size=6, max_size=6),
        stamped=st.booleans(),
        size=st.sampled_from([0, 20, 150]),
    )
    def append(
        self, partition: int, keys: list[bytes], dead: set[int], ages: list[int], stamped: bool, size: int
    ) -> None:
        """Some are tombstones, some are stamped out of order."""
        model = self.model[partition]
        now = self.clock.now_ms
        values = [
            None if self.keyed and place in dead else b"%d." % next(self.written) + b"x" * size
            for place in range(len(keys))
        ]
        timestamps = [now - age for age in ages[: len(keys)]] if stamped else None
        base, *_ = append(self.session, self.id, values, partition, keys=keys, timestamps=timestamps, at=now)
        assert base == model.end
        model.records += [
            Record(base + place, timestamps[place] if timestamps else now, keys[place], values[place])
            for place in range(len(keys))
        ]
        model.end += len(keys)

    @precondition(lambda self: self.policy.compacts)
    @rule(partition=st.integers(0, PARTITIONS - 1))
    def append_without_a_key(self, partition: int) -> None:
        error = refused(
            self.session,
            "SELECT append(%s, %s, 1, %s, null, null, array['x'::bytea], null, null, null, 1::int2)",
            self.id,
            partition,
            self.clock.now_ms,
        )
        assert error.sqlstate is not None and error.sqlstate.startswith("LS")

    @rule(passing=st.sampled_from([1, MINUTE_MS, 11 * MINUTE_MS, HOUR_MS, 25 * HOUR_MS]))
    def pass_time(self, passing: int) -> None:
        self.clock.advance(passing)

    @rule(data=st.data())
    def alter(self, data: st.DataObject) -> None:
        self.policy = data.draw(self.policies())
        self.segment = data.draw(self.segments())
        self.session.execute(
            "SELECT alter_topic(%s, %s)", [self.topic, json.dumps(self.policy.configs() | self.segment)]
        )

    @rule(partition=st.integers(0, PARTITIONS - 1), part=st.floats(0, 1))
    def delete_records(self, partition: int, part: float) -> None:
        model = self.model[partition]
        before = int(model.end * part)
        start = value(self.session, "SELECT delete_records(%s, %s, %s)", self.topic, partition, before)
        model.log_start = max(model.log_start, before)
        assert start == model.log_start

    @rule()
    def roll(self) -> None:
        jobs.run(self.dsn, "roll")

    @rule(times=st.integers(1, 2))
    def retain(self, times: int) -> None:
        jobs.run(self.dsn, "roll")
        wanted = {
            partition: retained_from(
                spans(self.session, self.id)[partition],
                model.log_start,
                self.clock.now_ms,
                self.policy,
            )
            for partition, model in self.model.items()
        }
        for _ in range(times):
            jobs.run(self.dsn, "retention")
        for partition, place in places(self.session, self.id).items():
            model = self.model[partition]
            assert place.log_start == wanted[partition], (
                f"partition {partition} starts at {place.log_start}, not {wanted[partition]}"
            )
            model.log_start = wanted[partition]

    @rule()
    def reclaim(self) -> None:
        jobs.run(self.dsn, "reclaim")

    @rule()
    def compact(self) -> None:
        before = places(self.session, self.id)
        policy = self.policy
        ratio = max(
            dirty_ratio(each, before[partition].compacted_to, before[partition].segment_start)
            for partition, each in spans(self.session, self.id).items()
        )
        worth_while = (
            ratio > policy.min_cleanable_dirty_ratio
            or policy.max_compaction_lag_ms < 1 << 62
            or any(
                until <= self.clock.now_ms
                for model in self.model.values()
                for until in model.horizons.values()
            )
        )
        jobs.run(self.dsn, "compaction")
        after = places(self.session, self.id)
        there = visible(self.session, self.topic)
        for partition, model in self.model.items():
            self.compare(model, before[partition], after[partition], worth_while, there.get(partition, []))

    @rule(key=st.sampled_from(KEYS))
    def erase(self, key: bytes) -> None:
        """It goes from wherever it is; what comes afterwards stays."""
        self.session.execute("SELECT erase_key(%s, %s::bytea)", [self.topic, key])
        for _ in range(10):
            jobs.run(self.dsn, "erasure")
            if not value(self.session, "SELECT count(*) FROM pending_erasures(%s)", self.id):
                break
        else:
            raise AssertionError("the key is not erased")
        for model in self.model.values():
            model.records = [record for record in model.records if record.key != key]

    def compare(
        self, model: Model, before: Place, after: Place, worth_while: bool, there: list[Record]
    ) -> None:
        """One partition that compaction has been at."""
        policy, now = self.policy, self.clock.now_ms
        to = after.compacted_to
        assert before.compacted_to <= to <= max(before.segment_start, before.compacted_to), (
            "the head is not compacted"
        )
        cleaned = to > before.compacted_to
        if cleaned:
            assert policy.compacts
            assert worth_while
        if not policy.compacts:
            assert there == model.visible()
            return
        left, optional = compacted(model.visible(), to, now, model.horizons)
        if not cleaned and there == model.visible():
            return
        kept = {record.offset for record in there}
        assert there == [
            record for record in left if record.offset in kept or record.offset not in optional
        ], "what compaction leaves is the last record of each key and the head"
        gone = [record for record in model.visible() if record.offset not in kept]
        for record in gone:
            assert record.timestamp + policy.min_compaction_lag_ms <= now, "it was too young"
        for record in there:
            if record.value is None and record.offset < to:
                model.horizons.setdefault(record.offset, now + policy.delete_retention_ms)
        model.records = [
            record for record in model.records if record.offset < model.log_start or record.offset in kept
        ]
        model.compacted_to = to

    # -- what always holds ---------------------------------------------------------------------------------

    @invariant()
    def every_reader_sees_the_same(self) -> None:
        there = visible(self.session, self.topic)
        for partition, place in places(self.session, self.id).items():
            model = self.model[partition]
            wanted = model.visible()
            assert (place.log_start, place.end) == (model.log_start, model.end)
            assert there.get(partition, []) == wanted
            assert fetched(self.session, self.id, partition, place.log_start, place.end) == wanted
            if wanted:
                middle = wanted[len(wanted) // 2]
                assert looked_up(self.session, self.id, partition, middle.timestamp) == next(
                    record.offset for record in wanted if record.timestamp >= middle.timestamp
                )
                newest = max(record.timestamp for record in wanted)
                assert looked_up(self.session, self.id, partition, -3) == next(
                    record.offset for record in wanted if record.timestamp == newest
                )

    @rule(partition=st.integers(0, PARTITIONS - 1), part=st.floats(0, 1), at_once=st.sampled_from([1, 400]))
    def read_from_anywhere(self, partition: int, part: float, at_once: int) -> None:
        """From each offset on, also one that was compacted away: the next survivors, in order."""
        model = self.model[partition]
        begin = model.log_start + int((model.end - model.log_start) * part)
        wanted = [record for record in model.visible() if record.offset >= begin]
        got = fetched(self.session, self.id, partition, begin, model.end, at_once=at_once)
        assert got == wanted
        read = rows(
            self.session,
            'SELECT "offset", value FROM read(%s, %s, %s) ORDER BY 1',
            self.topic,
            partition,
            begin,
        )
        assert read == [(record.offset, record.value) for record in wanted]

    @precondition(lambda self: self.policy.compacts)
    @rule(partition=st.integers(0, PARTITIONS - 1), key=st.sampled_from(KEYS))
    def look_for_the_last_of_a_key(self, partition: int, key: bytes) -> None:
        found = rows(
            self.session,
            'SELECT "offset", value FROM latest(%s, %s::bytea, %s)',
            self.topic,
            key,
            partition,
        )
        wanted = [(each.offset, each.value) for each in self.model[partition].visible() if each.key == key]
        assert found == wanted[-1:]

    def teardown(self) -> None:
        if not hasattr(self, "id"):
            return
        try:
            self.finish()
        finally:
            self.session.execute("SELECT delete_topic(%s)", [self.topic])
            jobs.run(self.dsn, "reclaim")

    def finish(self) -> None:
        """In the end nothing is left over, and nothing else than before is there."""
        self.retain(1)
        self.compact()
        before = {partition: model.visible() for partition, model in self.model.items()}
        jobs.settle(self.dsn)
        found = audit.faults(self.dsn)
        assert not found, found
        if not self.policy.compacts:
            there = visible(self.session, self.topic)
            assert {partition: there.get(partition, []) for partition in before} == before
            return
        self.nothing_but_the_newest()

    def nothing_but_the_newest(self) -> None:
        """A last compaction, late enough, leaves one record a key; also of tombstones, which are gone."""
        self.policy = Policy("compact", min_cleanable_dirty_ratio=0.0, delete_retention_ms=0)
        self.segment |= {"segment.bytes": "14", "segment.ms": "1"}
        self.session.execute(
            "SELECT alter_topic(%s, %s)", [self.topic, json.dumps(self.policy.configs() | self.segment)]
        )
        for late in (0, 2 * DAY_MS, 0):
            self.clock.advance(late + 2)
            for partition in self.model:
                self.append(partition, [b"end"], set(), [0] * 6, False, 0)
            jobs.settle(self.dsn)
        there = visible(self.session, self.topic)
        for partition, place in places(self.session, self.id).items():
            assert place.compacted_to == place.end
            newest = {record.key: record for record in self.model[partition].visible()}
            assert there[partition] == sorted(each for each in newest.values() if each.value is not None)


def hold(
    machine: type[LogMachine],
    dsn: str,
    session: Session,
    clock: Clock,
    *,
    examples: int,
    steps: int,
    shrink: bool = False,
) -> None:
    """Let ``machine`` run; ``shrink``: look for the shortest way to what goes wrong, which takes minutes."""
    bound = type(machine.__name__, (machine,), {"dsn": dsn, "session": session, "clock": clock})
    run_state_machine_as_test(
        bound,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            phases=(Phase.generate, Phase.shrink) if shrink else (Phase.generate,),
        ),
    )
