"""Reads DSNs, and refuses what is none without repeating it: it may hold a password."""

from __future__ import annotations

import re
from typing import Any, Final

import psycopg
from psycopg.conninfo import conninfo_to_dict

from logstore.errors import ConfigurationError

__all__ = ["parameters_of"]

_ADVICE: Final = (
    "A DSN is postgresql://user@host:5432/database, or host=… dbname=… and so on; in a URI, @ / : ? # and % "
    "of a password are written %40 %2F %3A %3F %23 and %25."
)
_QUOTED: Final = re.compile(r'"([^"]*)"?')


def parameters_of(dsn: str) -> dict[str, Any]:
    """What a libpq URI or key/value string says.  Raises ConfigurationError when it makes no sense."""
    if "\0" in dsn:  # libpq would see what comes before it
        raise ConfigurationError("The DSN is not valid: there is a NUL in it.", advice=_ADVICE)
    try:
        parameters: dict[str, Any] = dict(conninfo_to_dict(dsn))
    except psycopg.Error as error:
        reason = _QUOTED.sub(lambda found: _shown(found[0], found[1], dsn), str(error).strip())
        raise ConfigurationError(f"The DSN is not valid: {reason}.", advice=_ADVICE) from None
    except UnicodeEncodeError:
        raise ConfigurationError("The DSN is not valid: it is no Unicode.", advice=_ADVICE) from None
    hosts = str(parameters.get("host") or "").split(",")
    # A name never has one; a Unix socket of the abstract kind begins with it.
    if any("@" in host[1:] for host in hosts if not host.startswith("/")):
        raise ConfigurationError("The DSN is not valid: there is one @ too many in it.", advice=_ADVICE)
    for port in filter(None, str(parameters.get("port") or "").split(",")):
        if not (port.isascii() and port.isdigit()):
            raise ConfigurationError("The DSN is not valid: the port is no number.", advice=_ADVICE)
        if not 1 <= int(port) <= 65535:
            raise ConfigurationError(f"The DSN is not valid: {port} is no port.", advice="1 to 65535 are.")
    return parameters


def _shown(quoted: str, word: str, dsn: str) -> str:
    """What libpq quotes, if it is the name of a parameter; anything else may be part of a password."""
    is_name = re.search(rf"(?:^|[\s?&]){re.escape(word)}\s*=", dsn) and re.fullmatch("[a-z_]+", word)
    return quoted if is_name or len(word) == 1 else '"…"'
