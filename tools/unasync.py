"""Write ``logstore/_sync`` from ``logstore/_async``: ``python tools/unasync.py`` (``--check``: only compare).

Every module but the hand-written twins (:data:`BY_HAND`) is rewritten word by word with the table below,
then formatted.  A rule that nothing uses is an error, so that the table cannot rot.
"""

from __future__ import annotations

import argparse
import difflib
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "logstore" / "_async"
TARGET = ROOT / "logstore" / "_sync"
BY_HAND = {
    "__init__.py",
    "apart.py",
    "borrowed.py",
    "concurrency.py",
    "driver.py",
    "lent.py",
    "pushing.py",
}

RULES: list[tuple[str, str]] = [
    (r"\basync (def|with|for)\b", r"\1"),
    (r"\bawait ", ""),
    (r"\bAsync(Producer|Consumer|ShareConsumer|Admin)\b", r"\1"),
    (r"\blogstore\._async\b", "logstore._sync"),
    (r"\b__a(enter|exit|iter|next)__\b", r"__\1__"),
    (r"\bStopAsyncIteration\b", "StopIteration"),
    (r"\bAsyncIterator\b", "Iterator"),
    # An async generator has no "yield from", which is several times faster.
    (r"for (\w+) in ([\w.]+):\n +yield \1\n", r"yield from \2\n"),
]

HEADER = "# Generated from logstore/_async/{name} by tools/unasync.py; edit that file.\n"


def translate(text: str, used: set[str]) -> str:
    """``text`` in the other colour; the patterns that changed something are added to ``used``."""
    for pattern, replacement in RULES:
        text, count = re.subn(pattern, replacement, text)
        if count:
            used.add(pattern)
    return text


def tidy(files: dict[Path, str]) -> dict[Path, str]:
    """Sorted and wrapped as ruff wants it: shorter words make shorter lines."""
    with tempfile.TemporaryDirectory() as name:
        drafts = {path: Path(name) / path.name for path in files}
        for path, text in files.items():
            drafts[path].write_text(text, encoding="utf-8")
        for order in (["check", "--fix-only", "--select", "I"], ["format"]):
            ruff = [sys.executable, "-m", "ruff", *order, "--quiet", "--no-cache"]
            subprocess.run([*ruff, "--config", ROOT / "pyproject.toml", name], check=True, cwd=ROOT)
        return {path: draft.read_text(encoding="utf-8") for path, draft in drafts.items()}


def generate() -> dict[Path, str]:
    """Every generated module and its text.  Raises ValueError when a rule of the table is not used."""
    used: set[str] = set()
    files: dict[Path, str] = {}
    for source in sorted(SOURCE.glob("*.py")):
        if source.name not in BY_HAND:
            target = TARGET / source.name
            text = translate(source.read_text(encoding="utf-8"), used)
            files[target] = HEADER.format(name=source.name) + text
    unused = [pattern for pattern, _ in RULES if pattern not in used]
    if unused:
        raise ValueError(f"rules that nothing uses: {unused}")
    return tidy(files)


def stale(files: dict[Path, str]) -> list[str]:
    """How the folder differs from ``files``, as diff lines; empty when it does not."""
    lines: list[str] = []
    for path, text in files.items():
        have = path.read_text(encoding="utf-8") if path.exists() else ""
        lines += difflib.unified_diff(
            have.splitlines(), text.splitlines(), str(path), "generated", lineterm=""
        )
    known = {path.name for path in files} | BY_HAND
    lines += [
        f"{path}: nothing generates it" for path in sorted(TARGET.glob("*.py")) if path.name not in known
    ]
    return lines


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Generate logstore/_sync from logstore/_async.")
    parser.add_argument(
        "--check", action="store_true", help="write nothing; fail when something would change"
    )
    options = parser.parse_args(arguments)
    try:
        files = generate()
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    difference = stale(files)
    if options.check:
        print("\n".join(difference), end="\n" if difference else "")
        return 1 if difference else 0
    for path, text in files.items():
        path.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
