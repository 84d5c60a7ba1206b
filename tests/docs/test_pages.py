"""Every Python, SQL and shell snippet of the documentation runs, and prints what the page says."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import pytest

from tests.docs.snippets import EXECUTED, Block, Story, blocks, kind_of_server, same_output

ROOT = Path(__file__).parents[2]
OWN_TESTS = {"docs/sql.md", "docs/cli.md"}
"""Pages whose snippets have tests that look closer: tests/sql and tests/cli."""
PAGES = sorted(
    str(page.relative_to(ROOT))
    for page in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    if "docs/adr/" not in page.as_posix()
)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", [page for page in PAGES if page not in OWN_TESTS])
@pytest.mark.long
def test_every_snippet_of_the_page_runs(name: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    page = ROOT / name
    text = page.read_text()
    todo = [block for block in blocks(text) if block.language in EXECUTED and block.not_run is None]
    if not todo:
        return
    kind = kind_of_server(text)
    environment = {
        variable: value
        for variable, value in os.environ.items()
        if not variable.startswith(("LOGSTORE_", "PG"))
    }
    command: Path = request.getfixturevalue("command")
    environment["PATH"] = os.pathsep.join(
        [str(command), str(Path(sys.executable).parent), environment["PATH"]]
    )
    environment["COLUMNS"] = "200"
    environment["LOGSTORE_HOME"] = str(tmp_path / "home")
    dsn: str | None = None
    if kind == "embedded":
        request.getfixturevalue("embedded_home")
        environment["LOGSTORE_HOME"] = str(request.getfixturevalue("embedded_home"))
    else:
        dsn = request.getfixturevalue({"database": "database", "pgbouncer": "pgbouncer_dsn"}[kind])
        environment["LOGSTORE_DSN"] = dsn
    directory = tmp_path / "work"
    directory.mkdir()
    story = Story(page, directory, environment, dsn)
    for block in todo:
        check(story, block)


def check(story: Story, block: Block) -> None:
    where = f"{story.page.relative_to(ROOT)}:{block.line}"
    try:
        printed = story.run(block)
    except Exception as exc:
        raise AssertionError(f"{where} failed: {exc}") from exc
    if block.output is not None:
        assert same_output(block.output, printed), (
            f"{where} printed\n{printed}\nbut the page shows\n{block.output}"
        )


@pytest.mark.parametrize("name", PAGES)
def test_links_to_files_of_the_repository_are_right(name: str) -> None:
    page = ROOT / name
    for target in re.findall(r"\]\((?!https?:|mailto:)([^)#]+)(?:#[^)]*)?\)", page.read_text()):
        assert (page.parent / target).exists(), f"{name} links to {target}, which does not exist"
