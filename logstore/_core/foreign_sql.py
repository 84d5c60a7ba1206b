"""A call as SQLAlchemy's ``text()`` wants it."""

from __future__ import annotations

import re
from typing import Any

from logstore._core.call import Call

__all__ = ["named"]

_PARAMETER = re.compile(r"\$(\d+)\\:\\:(\w+)")


def named(call: Call[Any]) -> tuple[str, dict[str, Any], dict[str, str]]:
    """The text with ``:p1`` for ``$1``, the parameters, and the SQL type of each."""
    types: dict[str, str] = {}

    def parameter(found: re.Match[str]) -> str:
        name, kind = f"p{found[1]}", found[2]
        types[name] = kind
        return f"CAST(:{name} AS {kind})"

    # A colon that is none of ours, in the schema's name, is to stay one.
    text = _PARAMETER.sub(parameter, call.sql.replace(":", r"\:"))
    return text, {f"p{number}": argument for number, argument in enumerate(call.args, 1)}, types
