"""Rules that every function of the log keeps, checked in the catalog and in the text."""

from __future__ import annotations

import re
from importlib import resources

import pytest

from logstore import schema
from tests.support.sqllog import Connect, Session, rows, value

FUNCTIONS = """
    SELECT p.oid::regprocedure::text, p.prosecdef, p.proconfig, p.prosrc, l.lanname
    FROM pg_proc p JOIN pg_language l ON l.oid = p.prolang WHERE p.pronamespace = 'logstore'::regnamespace"""

FILES = sorted(
    file.name.removesuffix(".sql")
    for file in resources.files("logstore.schema").iterdir()
    if file.name.endswith(".sql")
)


def test_definer_functions_pin_their_search_path(session: Session) -> None:
    functions = rows(session, FUNCTIONS)
    assert sum(definer for _, definer, *_ in functions) > 15
    for name, definer, settings, _, _ in functions:
        if definer:
            assert "search_path=logstore, pg_temp" in (settings or []), name


def test_nobody_else_may_call_anything(connect: Connect, session: Session) -> None:
    assert (
        rows(
            session,
            """SELECT p.oid::regprocedure
           FROM pg_proc p, aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) a
           WHERE p.pronamespace = 'logstore'::regnamespace AND a.grantee = 0""",
        )
        == []
    )
    for schema_name in ("logstore", "logstore_topics"):
        assert not value(session, "SELECT has_schema_privilege('public', %s, 'USAGE')", schema_name)


def test_no_exceptions_are_caught_where_it_is_hot(session: Session) -> None:
    for name, _, _, text, _ in rows(session, FUNCTIONS):
        if re.match(r"(append|\"?fetch\"?|high_watermarks|partition_tips|wake)\(", name):
            assert not re.search(r"\bexception\s+when\b", text, re.IGNORECASE), name


def test_every_file_is_installed() -> None:
    assert sorted(schema.INSTALL_ORDER) == FILES


@pytest.mark.parametrize("name", FILES)
def test_every_function_says_what_it_does(name: str) -> None:
    text = schema.read(name)
    for found in re.finditer(r"create or replace function (\S+?)\(", text):
        before = text[: found.start()].rstrip().removesuffix("do $install$\nbegin\n    execute format($read$")
        before = re.sub(r"(?s)\bdo \$install\$\nbegin\n(?!.*\bend\n\$install\$).*$", "", before).rstrip()
        assert before.splitlines()[-1].startswith("--") or "-- produce()" in before, f"{name}.sql: {found[1]}"


@pytest.mark.parametrize("name", FILES)
def test_no_text_names_the_schema(name: str) -> None:
    without_comments = re.sub(r"--.*", "", schema.read(name))
    without_header_names = re.sub(r"'logstore\.[a-z-]+'", "", without_comments)
    assert not re.search(r"\blogstore\.", without_header_names)
    assert "search_path =" not in without_comments


def test_statements_are_built_from_identifiers_and_literals_only(session: Session) -> None:
    """What is executed is put together by format(): names as %I, values as parameters, %L or numbers."""
    for name, _, _, text, language in rows(session, FUNCTIONS):
        if language == "plpgsql":
            for found in re.finditer(r"\bexecute\s+(?!format\(|[a-z_]+\b)(.{0,40})", text, re.IGNORECASE):
                raise AssertionError(f"{name}: execute {found[1]}")
