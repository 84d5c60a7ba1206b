"""A DSN that may be shown."""

from __future__ import annotations

import re
from typing import Final

__all__ = ["masked"]

_MASK: Final = "***"
_IN_URI: Final = re.compile(r"^(?P<before>[a-z]+://[^/?#@]*?):(?P<password>[^@/?#]*)@")
_IN_QUERY: Final = re.compile(r"(?P<before>[?&](?:ssl)?password=)[^&#]*")
_IN_KEY_VALUE: Final = re.compile(
    r"(?P<before>\b(?:ssl)?password\s*=\s*)(?:'(?:\\.|[^'\\])*'|(?:\\.|[^\s\\])+)"
)


def masked(dsn: str) -> str:
    """``dsn``, a libpq URI or key/value string, with every password replaced by ``***``."""
    if "://" in dsn:
        return _IN_QUERY.sub(rf"\g<before>{_MASK}", _IN_URI.sub(rf"\g<before>:{_MASK}@", dsn))
    return _IN_KEY_VALUE.sub(rf"\g<before>{_MASK}", dsn)
