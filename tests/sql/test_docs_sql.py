"""Every query of docs/sql.md runs on the log that the page speaks of, and answers what the page shows."""

from __future__ import annotations

from pathlib import Path

from psycopg.conninfo import make_conninfo

from tests.docs.snippets import Story, blocks, same_output
from tests.support import access_topic
from tests.support.sqllog import Session

PAGE = Path(__file__).parents[2] / "docs" / "sql.md"


def test_the_page_tells_the_truth(session: Session, log_dsn: str, tmp_path: Path) -> None:
    access_topic.make(session)
    story = Story(PAGE, tmp_path, {}, make_conninfo(log_dsn, options="-c TimeZone=UTC"))
    queries = blocks(PAGE.read_text())
    assert len(queries) >= 20
    for query in queries:
        where = f"docs/sql.md:{query.line}"
        assert (query.language, query.not_run) == ("sql", None), where
        assert query.output is not None, f"{where} shows no answer"
        answer = story.run(query)
        assert same_output(query.output, answer), f"{where} answered\n{answer}"
