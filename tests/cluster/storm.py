"""A replicated log in a storm: clients write and read while everything breaks, and nothing promised is lost.

``python -m tests.cluster.storm --seed 7 --faults 30`` makes a cluster of three, starts eight producers that
want ``acks="all"`` on a topic with ``min.insync.replicas=2``, two that want ``acks=1`` on another, two
groups, readers of the leader, of followers, and a spy at each member; then lets one fault after the other
happen (:mod:`tests.cluster.faults`), each drawn from the seed.  Everybody writes a history; it is compared
with the log at the end (:mod:`tests.cluster.judge`).

A run that fails leaves the history and the members' logs in a directory.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import psycopg

from logstore import Admin
from logstore.consumer_config import ConsumerOptions
from tests.cluster.crew import Crew, Hand
from tests.cluster.faults import FAULTS, Scene
from tests.cluster.judge import Progress, judge, longest_gap
from tests.cluster.topology import PATIENCE_S, Topology, topology
from tests.history.checker import Verdict
from tests.history.plan import Plan
from tests.history.record import read_history
from tests.history.workload import finish
from tests.support.programs import eventually

__all__ = ["Report", "Storm", "run"]

SETTINGS: Final = {"fsync": "off", "shared_buffers": "32MB"}
"""Processes die here, the machine does not."""
PATIENT: Final = {"delivery_timeout_ms": 220_000}
STRIKES_WITHIN_S: Final = 60.0


@dataclass(frozen=True)
class Storm:
    seed: int = 0
    faults: int = 30
    fixed: tuple[str, ...] = ()
    """These faults in this order, and no others."""
    producers: int = 8
    groups: int = 2
    pause_s: float = 0.03
    """Between records of a producer, on average."""
    longest_hold_s: float = 30.0

    @property
    def command(self) -> str:
        only = f' --only "{",".join(self.fixed)}"' if self.fixed else ""
        return f"python -m tests.cluster.storm --seed {self.seed} --faults {self.faults}{only}"


@dataclass(frozen=True)
class Step:
    kind: str
    hold_s: float
    settle: bool
    """The next fault waits until the whole cluster is well again, and not only until it takes records."""
    seed: str


def steps(storm: Storm) -> list[Step]:
    """What is going to happen: every kind once, as far as there is room, then any."""
    chance = random.Random(storm.seed)
    kinds = list(storm.fixed)
    if not kinds:
        kinds = chance.sample(list(FAULTS), min(storm.faults, len(FAULTS)))
        weights = [each.weight for each in FAULTS.values()]
        kinds += chance.choices(list(FAULTS), weights, k=storm.faults - len(kinds))
        chance.shuffle(kinds)
    return [
        Step(
            kind,
            min(chance.uniform(*FAULTS[kind].hold_s), storm.longest_hold_s),
            chance.random() < 0.7,
            f"{storm.seed} {number}",
        )
        for number, kind in enumerate(kinds)
    ]


@dataclass
class Row:
    """What became of one fault."""

    step: Step
    target: str
    lasted_s: float
    writes_s: float
    """The longest time without an acknowledgement."""
    reads_s: float
    """The longest time in which no member answered a reader."""
    recovered_s: float
    """From its end until records were taken again, or until all were well."""

    def __str__(self) -> str:
        return (
            f"{self.step.kind:34} {self.target[:34]:34} {self.lasted_s:6.1f} {self.writes_s:7.1f} "
            f"{self.reads_s:7.1f} {self.recovered_s:8.1f}"
        )


HEAD: Final = (
    f"{'fault':34} {'whom':34} {'lasted':>6} {'writes':>7} {'reads':>7} {'well in':>8}   (seconds; writes, "
    "reads: the longest time without)"
)


@dataclass
class Report:
    storm: Storm
    seconds: float = 0.0
    rows: list[Row] = field(default_factory=list)
    trouble: list[str] = field(default_factory=list)
    """What did not come back in time, and what `verify` found."""
    verdict: Verdict = field(default_factory=lambda: Verdict([]))

    @property
    def ok(self) -> bool:
        return self.verdict.ok and not self.trouble

    def __str__(self) -> str:
        kinds = Counter(row.step.kind for row in self.rows)
        lines = [
            f"seed {self.storm.seed}: {len(self.rows)} faults of {len(kinds)} kinds in {self.seconds:.0f} s",
            HEAD,
            *map(str, self.rows),
            str(self.verdict),
            *self.trouble,
            f"lost of what acks=1 had acknowledged: {self.verdict.lost_weakly} (allowed)",
        ]
        return "\n".join(lines)


def run(storm: Storm, directory: Path, tell: Any = print) -> Report:
    """Let it happen, and judge."""
    report = Report(storm)
    began = time.monotonic()
    path = directory / "history.jsonl"
    with topology(SETTINGS) as top:
        crew = Crew(path)
        try:
            _happen(storm, top, crew, path, report, tell)
        except AssertionError as error:
            report.trouble.append(f"{type(error).__name__}: {error}")
        finally:
            crew.kill()
            _keep_logs(top, directory)
    report.seconds = time.monotonic() - began
    if path.exists():
        tell("judging ...")
        report.verdict = judge(read_history(path))
    return report


def _happen(storm: Storm, top: Topology, crew: Crew, path: Path, report: Report, tell: Any) -> None:
    with Admin(top.dsn) as admin:
        small = {"segment.bytes": "200000"}
        admin.create_topic("strong", partitions=4, configs={"min.insync.replicas": "2", **small})
        admin.create_topic("weak", partitions=2, configs=small)
    strong = Plan(top.dsn, path, "strong", 4, storm.seed, "all", pause_s=storm.pause_s, producer=PATIENT)
    weak = Plan(top.dsn, path, "weak", 2, storm.seed, 1, pause_s=storm.pause_s, producer=PATIENT)
    progress = Progress(path)
    followed = _begin(storm, top, crew, strong, weak)

    def acknowledged(more: int) -> None:
        progress.look()
        goal = len(progress.strong) + more

        def done() -> bool:
            time.sleep(0.05)
            progress.look()
            crew.check()
            return len(progress.strong) >= goal

        eventually(done, f"{more} more records are acknowledged", PATIENCE_S)

    acknowledged(100)
    scene = Scene(top, crew)
    tell(f"{storm}\n{HEAD}")
    for step in steps(storm):
        row = _strike(scene, step, progress, acknowledged)
        report.rows.append(row)
        tell(str(row))
    _until_whole(top)
    acknowledged(100)
    crew.stop(writes=True)
    ends = {}
    with psycopg.connect(top.dsn) as connection:
        for topic, partition, high in connection.execute(
            "SELECT topic, partition, log_end_offset FROM logstore.partitions ORDER BY 1, 2"
        ):
            ends[f"{topic}-{partition}"] = high
    for name in followed:

        def there(name: str = name) -> bool:
            time.sleep(0.05)
            progress.look()
            reached = progress.reached[name]
            return all(reached[each] >= end for each, end in ends.items() if each.startswith(followed[name]))

        try:
            eventually(there, f"{name} comes to the end", 60)
        except AssertionError as error:
            report.trouble.append(f"{error}: {dict(progress.reached[name])} of {ends}")
    crew.stop(writes=False)
    for plan in (strong, weak):
        finish(plan, f"last {plan.topic}")
    report.trouble += _verify(top)


def _begin(storm: Storm, top: Topology, crew: Crew, strong: Plan, weak: Plan) -> dict[str, str]:
    """Start the clients; those that must see their topic to the end, and which that is."""
    readers = [Hand("reader", "reader", strong), Hand("reader", "weak reader", weak)]
    if "read_from" in ConsumerOptions.__annotations__:
        from_followers = replace(strong, consumer={"read_from": "follower"})
        readers.append(Hand("reader", "follower reader", from_followers))
    spies = [
        Hand("spy", f"spy {plan.topic}@{name}", replace(plan, dsn=top.door(name)))
        for name in top.members
        for plan in (strong, weak)
    ]
    crew.start(*readers)
    crew.start(*spies)
    for member in range(2):
        crew.start(
            *(
                Hand("subscriber", f"member{member} of g{group}", replace(strong, group=f"g{group}"))
                for group in range(storm.groups)
            )
        )
    senders = [Hand("sender", f"sender{number}", strong, writes=True) for number in range(storm.producers)]
    senders += [Hand("sender", f"weak sender{number}", weak, writes=True) for number in range(2)]
    for at in range(0, len(senders), 4):
        crew.start(*senders[at : at + 4])
    return {hand.name: hand.plan.topic for hand in (*readers, *spies)}


def _strike(scene: Scene, step: Step, progress: Progress, acknowledged: Any) -> Row:
    deadline = time.monotonic() + STRIKES_WITHIN_S
    while True:
        body = FAULTS[step.kind].body(scene, random.Random(step.seed))
        begun = time.monotonic()
        try:
            target = next(body)
            break
        except (psycopg.Error, IndexError):
            # The one that it was meant for is not there yet.
            scene.top.relay.heal()
            if time.monotonic() > deadline:
                raise AssertionError(f"{step.kind}: nobody to strike") from None
            time.sleep(0.2)
    time.sleep(step.hold_s)
    for _ in body:
        pass
    healed = time.monotonic()
    acknowledged(30)
    if step.settle:
        _until_whole(scene.top)
    now = time.monotonic()
    progress.look()
    return Row(
        step,
        target,
        healed - begun,
        longest_gap(progress.strong, begun, now),
        longest_gap(progress.answers, begun, now),
        now - healed,
    )


def _until_whole(top: Topology) -> None:
    def whole() -> bool:
        time.sleep(0.2)
        return top.whole()

    eventually(whole, "all members are well", PATIENCE_S)


def _verify(top: Topology) -> list[str]:
    command = [sys.executable, "-m", "logstore.cli", "verify", "--dsn", top.dsn]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    return [] if found.returncode == 0 else [f"verify: {found.stdout}{found.stderr}"]


def _keep_logs(top: Topology, directory: Path) -> None:
    for name in (*top.members, "etcd"):
        with contextlib.suppress(OSError):
            shutil.copy(top.layout.place(name).log, directory / f"{name}.log")
    with contextlib.suppress(OSError):
        shutil.copy(top.layout.supervisor_log, directory / "supervisor.log")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="A replicated log in a storm.")
    parser.add_argument("--seed", type=int, default=time.time_ns() % 10_000)
    parser.add_argument("--faults", type=int, default=Storm.faults)
    parser.add_argument("--only", default="", help="these faults, separated by commas, in this order")
    parser.add_argument("--keep", type=Path, help="where the history and the logs go, also if all is well")
    options = parser.parse_args(arguments)
    fixed = tuple(filter(None, options.only.split(",")))
    storm = Storm(options.seed, options.faults, fixed)
    directory = options.keep or Path(tempfile.mkdtemp(prefix="logstore-storm-"))
    directory.mkdir(parents=True, exist_ok=True)
    report = run(storm, directory, lambda text: print(text, flush=True))
    print(report)
    if not report.ok:
        print(f"history and logs: {directory}; to repeat it: {storm.command}")
    elif options.keep is None:
        shutil.rmtree(directory)
    return 0 if report.ok else 1


if __name__ == "__main__":
    sys.exit(main())
