"""How the demo tells what it does."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from logstore.cli.cells import table_cell
from logstore.cli.output import Column, counted, human_bytes, human_count, print_rows, progress_bar

if TYPE_CHECKING:
    from logstore.cli.checks import Check
    from logstore.cli.demo import Run
    from logstore.cli.query import Answer

__all__ = ["Teller"]

INDENT = 2


class Teller:
    """Prints the demo as it goes; ``quiet`` prints nothing, for programs that want one document."""

    def __init__(self, *, quiet: bool) -> None:
        self._quiet = quiet

    def _say(self, text: str = "") -> None:
        if not self._quiet:
            click.echo(" " * INDENT + text if text else "")

    def _head(self, text: str) -> None:
        if not self._quiet:
            click.echo()
            click.secho(text, bold=True)

    def opening(self, run: Run) -> None:
        self._head(f"{human_count(len(run.requests))} real HTTP requests through a commit log in PostgreSQL")
        self._say()
        sys.stdout.flush()

    def setting(self, run: Run) -> None:
        clients = len({request.client for request in run.requests})
        damaged = sum(not request.parsed for request in run.requests)
        count = len(run.requests)
        where = "embedded" if run.embedded else "given"
        durable = "on" if run.server["fsync"] else "off: a crash of the machine can lose records"
        self._say(f"server    PostgreSQL {run.server['version']}, {where}, fsync {durable}")
        self._say(f"topic     {run.topic}: {len(run.extents)} partitions, acks=all, keyed by client address")
        self._say(
            f"input     {counted(count, 'request')} of {counted(clients, 'client')}, {human_bytes(run.bytes)}"
        )
        if damaged:
            self._say(
                f"          {human_count(count - damaged)} became JSON, {counted(damaged, 'line')} "
                "cut short in the log stayed text"
            )
        self._say()

    @contextmanager
    def progress(self, title: str, total: int) -> Iterator[Callable[[int], object]]:
        """A bar; the function it gives takes how many are done."""
        if self._quiet:
            yield lambda done: None
            return
        sys.stdout.flush()
        with progress_bar(stderr=False) as progress:
            task = progress.add_task(title, total=total)
            yield lambda done: progress.update(task, completed=done)

    def checks(self, checks: Sequence[Check]) -> None:
        self._head("Checked, record by record")
        self._say()
        width = max(len(check.title) for check in checks)
        for check in checks:
            mark = (
                click.style("✓", fg="green") if check.passed else click.style("✗ FAILED", fg="red", bold=True)
            )
            self._say(f"{mark} {check.title:<{width}}   {check.detail}")

    def results(self, run: Run) -> None:
        if self._quiet:
            return
        assert run.latency is not None
        count = len(run.requests)
        self._head("Measured in this run")
        self._say()
        for name, seconds, what in (
            ("produced", run.produced_s, "first send() to last acknowledgement, on disk"),
            ("consumed", run.consumed_s, "assign() to last record"),
        ):
            rate = f"{human_count(count / seconds)} rec/s"
            speed = f"{run.bytes / seconds / 1e6:,.1f} MB/s"
            self._say(f"{name}   {seconds * 1000:>6,.0f} ms  {rate:>16}  {speed:>11}   {what}")
        self._say(f"latency    {run.latency.line()}")
        self._say(
            f"           send() to poll(), {counted(run.latency.samples, 'request')}, "
            f"{human_count(run.rate)} a second, linger 0, acks=all"
        )
        self._head("Partitions")
        self._say()
        self._partitions(run)
        self._head("Ask SQL")
        for answer in run.answers:
            self._answer(answer)

    def _partitions(self, run: Run) -> None:
        total = max(1, sum(len(records) for records in run.received.values()))
        rows = []
        for tp, records in run.received.items():
            size = sum(len(record.key or b"") + len(record.value or b"") for record in records)
            share = len(records) / total
            rows.append(
                (
                    tp.partition,
                    human_count(len(records)),
                    human_count(len({record.key for record in records})),
                    f"{records[0].offset}-{records[-1].offset}",
                    human_bytes(size),
                    f"{'█' * round(share * 40)} {share:.0%}",
                )
            )
        print_rows(
            [
                Column("partition", number=True),
                Column("records", number=True),
                Column("clients", number=True),
                Column("offsets", number=True),
                Column("bytes", number=True),
                "share",
            ],
            rows,
            indent=INDENT,
        )

    def _answer(self, answer: Answer) -> None:
        self._say()
        self._say(answer.query.question)
        self._say()
        for line in answer.query.sql.splitlines():
            self._say(click.style("  " + line, fg="cyan"))
        self._say()
        print_rows(
            [
                Column(name, number=number)
                for name, number in zip(answer.columns, answer.numeric, strict=True)
            ],
            [[table_cell(cell) for cell in row] for row in answer.rows],
            indent=INDENT + 2,
            empty="(no rows)",
        )
        self._say(
            click.style(f"  {counted(len(answer.rows), 'row')} in {answer.seconds * 1000:,.0f} ms", dim=True)
        )

    def closing(self, run: Run) -> None:
        self._head("Yours to look at")
        self._say()
        for line in (
            f"consume {run.topic} --max-messages 3 --show partition,offset,key",
            f"topic describe {run.topic}",
            "sql",
        ):
            self._say(f"{_program()} {line}")
        self._say()


def _program() -> str:
    """What the shell calls this command: after `make demo` it is in .venv, where no PATH leads."""
    ours = Path(sys.argv[0])
    if ours.name != "logstore" or shutil.which("logstore") is not None:
        return "logstore"
    return str(ours)
