"""The tables of ``docs/reference``, made from the code that they describe."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
from collections.abc import Iterable, Sequence
from typing import Any

import psycopg

from logstore import errors


def options(config: type[Any]) -> str:
    """Every option of a client: its default and the docstring below its field."""
    documentation = attribute_docs(config)
    rows = []
    for item in sorted(dataclasses.fields(config), key=lambda item: item.name):
        default = item.default
        required = default is dataclasses.MISSING
        rows.append(
            (
                f"`{item.name}`",
                "required" if required else f"`{_shown(item.name, default)}`",
                documentation[item.name],
            )
        )
    return table(("option", "default", "meaning"), rows)


def methods(client: type[Any]) -> str:
    """Every public method and property of a client, in the order of its classes, in a sentence."""
    rows = []
    members: dict[str, Any] = {}
    for cls in client.__mro__[:-1]:
        members = {**members, **{name: each for name, each in vars(cls).items() if name not in members}}
    for name, member in members.items():
        if name.startswith("_"):
            continue
        documentation = inspect.getdoc(member)
        assert documentation, f"{client.__name__}.{name} has no docstring"
        call = f"`{name}`" if isinstance(member, property) else f"`{name}({_parameters(member)})`"
        rows.append((call, _first_sentence(documentation)))
    return table(("method", "what it does"), rows)


def error_classes() -> str:
    """Every error: its parent, flags, SQLSTATEs, meaning and advice, parents first."""
    sqlstates: dict[str, list[str]] = {}
    for code, cls in errors.BY_SQLSTATE.items():
        sqlstates.setdefault(cls.__name__, []).append(code if len(code) == 5 else f"{code}xxx")
    rows = []
    for cls in _tree(errors.LogstoreError):
        parent = cls.__mro__[1].__name__
        meaning = (inspect.getdoc(cls) or "").split("\n\n")[0].replace("\n", " ")
        rows.append(
            (
                f"`{cls.__name__}`",
                f"`{parent}`" if parent != "Exception" else "",
                "yes" if cls.retriable else "",
                "yes" if cls.fatal else "",
                ", ".join(f"`{code}`" for code in sqlstates.get(cls.__name__, [])),
                f"{meaning} {cls.advice}".strip(),
            )
        )
    return table(("error", "is a", "retriable", "fatal", "SQLSTATE", "meaning and advice"), rows)


def topic_configs(dsn: str) -> str:
    """Every topic config, from the definitions in the database."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        found = connection.execute(
            'SELECT name, type, "default", "values", minimum, maximum, doc'
            " FROM logstore.topic_config ORDER BY name"
        ).fetchall()
    rows = []
    for name, kind, default, values, minimum, maximum, doc in found:
        allowed = ", ".join(f"`{value}`" for value in values) if values else f"{minimum} to {maximum}"
        if kind == "list":
            allowed = f"any of {allowed}"
        rows.append((f"`{name}`", f"`{default}`" if default else "empty", allowed, doc))
    return table(("config", "default", "allowed", "meaning"), rows)


def exit_codes(docstring: str) -> str:
    """The table in the docstring of ``logstore.cli.failures``."""
    rows: list[list[str]] = []
    for line in docstring.splitlines():
        match = re.fullmatch(r"(\d+)\s+(.+)", line)
        if match:
            rows.append([match[1], match[2].replace("``", "`")])
        elif rows and line.startswith("      "):
            rows[-1][1] += " " + line.strip().replace("``", "`")
    return table(("code", "meaning"), rows)


def attribute_docs(cls: type[Any]) -> dict[str, str]:
    """The string literal below each annotated name of a class."""
    tree = ast.parse(inspect.getsource(cls))
    body = tree.body[0]
    assert isinstance(body, ast.ClassDef)
    found: dict[str, str] = {}
    for statement, following in zip(body.body, body.body[1:], strict=False):
        if (
            isinstance(statement, ast.AnnAssign)
            and isinstance(statement.target, ast.Name)
            and isinstance(following, ast.Expr)
            and isinstance(following.value, ast.Constant)
            and isinstance(following.value.value, str)
        ):
            found[statement.target.id] = " ".join(following.value.value.replace("``", "`").split())
    return found


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def _parameters(function: Any) -> str:
    """The parameters as one writes them: without annotations, defaults as they are."""
    stars: dict[object, str] = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}
    shown: list[str] = []
    for parameter in list(inspect.signature(function).parameters.values())[1:]:
        if parameter.kind is parameter.KEYWORD_ONLY and not any(
            part == "*" or part.startswith("*") for part in shown
        ):
            shown.append("*")
        default = "" if parameter.default is parameter.empty else f"={parameter.default!r}"
        shown.append(f"{stars.get(parameter.kind, '')}{parameter.name}{default}")
    return ", ".join(shown)


def _first_sentence(documentation: str) -> str:
    text = " ".join(documentation.split("\n\n")[0].split())
    text = re.sub(r":\w+:`~?([^`]+)`", r"`\1`", text).replace("``", "`")
    return re.split(r"(?<=\.)\s+(?=[A-Z])", text)[0]


def _shown(name: str, default: object) -> str:
    if name == "acks":
        return '"all"'
    return (
        f'"{default}"'
        if isinstance(default, str)
        else f"{default:_}"
        if type(default) is int
        else str(default)
    )


def _tree(cls: type[errors.LogstoreError]) -> Iterable[type[errors.LogstoreError]]:
    yield cls
    for child in cls.__subclasses__():
        if child.__module__ == errors.__name__:
            yield from _tree(child)
