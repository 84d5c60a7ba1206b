"""`python -m benchmarks`: run scenarios, print a Markdown table, keep JSON."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from benchmarks import machine, report
from benchmarks.bloat import bloat
from benchmarks.compaction import compaction
from benchmarks.exactly_once import exactly_once
from benchmarks.fetch import fetch
from benchmarks.figures import Section
from benchmarks.groups import heartbeats, rebalance, takeover
from benchmarks.growth import growth
from benchmarks.idempotence import idempotence
from benchmarks.latency import idle, latency
from benchmarks.log import BenchServer, running_server
from benchmarks.memory import memory
from benchmarks.outbox import outbox
from benchmarks.produce import produce
from benchmarks.replication import follower_reads, replication
from benchmarks.retention import retention_run
from benchmarks.segments import segments
from benchmarks.share import share, share_snapshot

_Scenario = Callable[[BenchServer, bool, int], Section]

SCENARIOS: dict[str, _Scenario] = {
    "produce": lambda server, quick, n: produce(server, records=200_000 if quick else 500_000, repetitions=n),
    "idempotence": lambda server, quick, n: idempotence(
        server, records=200_000 if quick else 500_000, repetitions=n
    ),
    "fetch": lambda server, quick, n: fetch(server, records=200_000 if quick else 1_000_000, repetitions=n),
    "latency": lambda server, quick, n: latency(server, seconds=5 if quick else 20, repetitions=n),
    "idle": lambda server, quick, n: idle(server, seconds=6 if quick else 30),
    "growth": lambda server, quick, n: growth(
        server,
        retained=(0, 100_000, 1_000_000) if quick else (0, 1_000_000, 10_000_000),
        topics=(1, 10, 100) if quick else (1, 100, 1000),
        repetitions=n,
    ),
    "bloat": lambda server, quick, n: bloat(server, records=100_000 if quick else 1_000_000),
    "groups": lambda server, quick, n: rebalance(
        server, partitions=1000, members=50, repetitions=1 if quick else 3
    ),
    "takeover": lambda server, quick, n: takeover(server, repetitions=n),
    "heartbeats": lambda server, quick, n: heartbeats(server, members=500, seconds=10 if quick else 60),
    "share": lambda server, quick, n: share(
        server, records=100_000 if quick else 300_000, repetitions=1 if quick else 3
    ),
    "share-snapshot": lambda server, quick, n: share_snapshot(server, cycles=2_000 if quick else 20_000),
    "exactly-once": lambda server, quick, n: exactly_once(
        server, records=100_000 if quick else 300_000, repetitions=n
    ),
    "outbox": lambda server, quick, n: outbox(
        server,
        transactions=500 if quick else 2000,
        seconds=3 if quick else 10,
        repetitions=1 if quick else n,
    ),
    "retention": lambda server, quick, n: retention_run(
        server, megabytes=256 if quick else 1024, repetitions=1 if quick else n
    ),
    "segments": lambda server, quick, n: segments(
        server, few=10, many=1000 if quick else 10_000, repetitions=n
    ),
    "compaction": lambda server, quick, n: compaction(
        server,
        records=1_000_000 if quick else 4_000_000,
        distinct=1_000_000 if quick else 10_000_000,
        repetitions=1 if quick else n,
    ),
    "replication": lambda server, quick, n: replication(
        server, records=200_000 if quick else 500_000, appends=300 if quick else 1000, repetitions=n
    ),
    "follower-reads": lambda server, quick, n: follower_reads(
        server, records=200_000 if quick else 1_000_000, passes=2, repetitions=3 if quick else n
    ),
    "memory": lambda server, quick, n: memory(server, records=3_000_000 if quick else 10_000_000),
}


@click.command()
@click.argument("names", nargs=-1, type=click.Choice(list(SCENARIOS)))
@click.option(
    "--quick", is_flag=True, help="Smaller sizes: minutes, not a quarter of an hour; for a first look only."
)
@click.option(
    "--repetitions", type=click.IntRange(1), help="Samples of each figure.  [default: 7, with --quick 3]"
)
@click.option(
    "--dsn",
    help="A server, as superuser, that preloads pg_stat_statements.  [default: an embedded one, fsync on]",
)
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write every sample to this file.")
@click.option("--keep", is_flag=True, help="Keep what the --json file says of scenarios that are not NAMES.")
@click.option(
    "--update",
    type=click.Path(exists=True, path_type=Path),
    help="Put the tables into this page; those of scenarios that were not run stay.",
)
def main(
    names: tuple[str, ...],
    quick: bool,
    repetitions: int | None,
    dsn: str | None,
    json_file: Path | None,
    keep: bool,
    update: Path | None,
) -> None:
    """Measure NAMES (default: all scenarios) and print the tables as Markdown.

    Example: python -m benchmarks produce fetch --quick
    """
    if keep and not json_file:
        raise click.UsageError("--keep needs --json.")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the server is stopped and removed
    progress = Console(stderr=True, highlight=False)
    command = " ".join(
        ["python -m benchmarks", *(names if not keep else ()), *(["--quick"] if quick else [])]
    )
    measured = report.sections_of(json_file) if keep and json_file else {}
    facts: dict[str, Any] = {}
    with running_server(dsn) as server:
        facts = machine.describe(server.admin_dsn, server.directory)
        for name in names or SCENARIOS:
            progress.print(f"[bold]{name}[/bold]")
            before = machine.busy()
            begin = time.monotonic()
            section = SCENARIOS[name](server, quick, repetitions or (3 if quick else 7))
            progress.print(f"  {time.monotonic() - begin:.0f} s")
            section.disturbance = (before + machine.busy()) / 2
            measured[name] = section
            # After each scenario: a run that is interrupted leaves what it has.
            sections = {each: measured[each] for each in SCENARIOS if each in measured}
            if json_file:
                json_file.parent.mkdir(parents=True, exist_ok=True)
                json_file.write_text(report.as_json(facts, command, sections))
    text = report.as_markdown(facts, command, sections.values())
    sys.stdout.write(text)
    if update and set(sections) == set(SCENARIOS):
        report.replace_between_markers(update, text)
    elif update:
        report.add_between_markers(update, sections.values())


if __name__ == "__main__":
    main()
