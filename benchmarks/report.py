"""Figures as text: Markdown for `docs/benchmarks.md`, JSON for programs."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from benchmarks.figures import Section, Target, from_document

__all__ = [
    "BEGIN",
    "END",
    "add_between_markers",
    "as_json",
    "as_markdown",
    "replace_between_markers",
    "sections_of",
]

BEGIN: Final = "<!-- figures: begin (written by `make bench`) -->"
END: Final = "<!-- figures: end -->"


def as_json(machine: dict[str, Any], command: str, sections: Mapping[str, Section]) -> str:
    document = {
        "command": command,
        "machine": machine,
        "scenarios": {name: section.document() for name, section in sections.items()},
    }
    return json.dumps(document, indent=1) + "\n"


def as_markdown(machine: dict[str, Any], command: str, sections: Iterable[Section]) -> str:
    sections = list(sections)
    lines = [f"Made by `{command}` on:", ""]
    lines += [f"- {_words(name)}: {_fact(value)}" for name, value in machine.items()]
    lines += [
        "",
        "## Targets",
        "",
        "| target | bound | measured | met |",
        "|---|---:|---:|---|",
    ]
    for section in sections:
        lines += [_target_row(target) for target in section.targets]
    for section in sections:
        lines += ["", *_section_lines(section)]
    return "\n".join(lines) + "\n"


def _section_lines(section: Section) -> list[str]:
    lines = [f"## {section.name}", "", section.setup, ""]
    lines += [f"Other work had {section.disturbance:.0%} of the processors meanwhile.", ""]
    lines += ["| what | median | from | to | unit |", "|---|---:|---:|---:|---|"]
    for figure in section.figures:
        low, high = min(figure.samples), max(figure.samples)
        spread = (_number(low), _number(high)) if len(figure.samples) > 1 else ("", "")
        lines.append(
            f"| {figure.name} | {_number(figure.median)} | {spread[0]} | {spread[1]} | {figure.unit} |"
        )
    return lines


def sections_of(file: Path) -> dict[str, Section]:
    """The sections that are in a file of :func:`as_json`, by scenario; none if there is no file."""
    if not file.exists():
        return {}
    document = json.loads(file.read_text())
    return {name: from_document(section) for name, section in document["scenarios"].items()}


def replace_between_markers(page: Path, text: str) -> None:
    """Put ``text`` between the markers of ``page``; the rest of the page is written by people."""
    before, _, after = _parts(page)
    page.write_text(f"{before}{BEGIN}\n\n{text}\n{END}{after}")


def add_between_markers(page: Path, sections: Iterable[Section]) -> None:
    """Put ``sections`` between the markers of ``page``, in place of those with the same names; what other
    runs have put there stays.
    """
    _, kept, _ = _parts(page)
    for section in sections:
        heading = f"\n## {section.name}\n"
        rows = {_title(row): row for row in map(_target_row, section.targets)}
        lines = []
        for line in kept.splitlines():
            title = _title(line)
            lines.append(rows.pop(title) if title in rows else line)
        kept = "\n".join(lines) + "\n"
        if rows:
            head, targets, tail = kept.partition("\n## Targets\n")
            listed, blank, others = tail.partition("\n\n## ")
            kept = f"{head}{targets}{listed}\n" + "\n".join(rows.values()) + f"{blank}{others}"
        own = "\n".join(_section_lines(section))
        if heading in kept:
            head, _, tail = kept.partition(heading)
            _, more, others = tail.partition("\n## ")
            kept = f"{head}\n{own}\n" + (f"\n## {others}" if more else "")
        else:
            kept = f"{kept.rstrip()}\n\n{own}\n"
    replace_between_markers(page, kept.strip("\n") + "\n")


def _parts(page: Path) -> tuple[str, str, str]:
    before, found, rest = page.read_text().partition(BEGIN)
    between, ended, after = rest.partition(END)
    if not found or not ended:
        raise SystemExit(f"{page} lacks the markers {BEGIN} and {END}.")
    return before, between, after


def _title(row: str) -> str:
    """The first cell of a row of a table."""
    return row.split(" | ", 1)[0]


def _target_row(target: Target) -> str:
    sign = "≥" if target.direction == ">=" else "≤"
    return (
        f"| {target.name} | {sign} {_number(target.bound)} {target.unit} "
        f"| {_number(target.measured)} {target.unit} | {'yes' if target.met else '**no**'} |"
    )


def _number(value: float) -> str:
    if value == int(value) and abs(value) < 1e15 and abs(value) < 1000:
        return str(int(value))
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    if abs(value) >= 100:
        return f"{value:.0f}"
    if abs(value) >= 1:
        return f"{value:.2f}"
    return f"{value:.3f}"


def _words(name: str) -> str:
    return {
        "fsync_8k_ms": "fdatasync of 8 kB",
        "memory_gib": "memory",
        "postgresql": "server",
        "file_system": "file system",
        "python": "Python",
    }.get(name, name)


def _fact(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"`{name}={setting}`" for name, setting in value.items())
    return str(value)
