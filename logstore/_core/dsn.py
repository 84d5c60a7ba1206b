"""How a connection string is shown and how a failure to connect is explained: never with the password."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import urlencode

from logstore.errors import (
    AuthenticationFailedError,
    ConfigurationError,
    ConnectionFailedError,
    LogstoreError,
    ServerBusyError,
    from_server,
)

__all__ = ["KEEPALIVE", "asyncpg_arguments", "certificate_refused", "connect_error", "describe"]

KEEPALIVE: Final[Mapping[str, int]] = {
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": 10_000,
}
"""A machine that is gone is noticed after 11 s; what is sent to one, 10 s after it was sent.

A DSN may say otherwise.
"""


# What libpq knows and asyncpg does not; sending them to the server as settings would be an error.
_LIBPQ_ONLY = (
    "channel_binding",
    "client_encoding",
    "connect_timeout",
    "gssdelegation",
    "gssencmode",
    "hostaddr",
    "keepalives",
    "load_balance_hosts",
    "max_protocol_version",
    "min_protocol_version",
    "require_auth",
    "requirepeer",
    "sslcertmode",
    "sslcompression",
    "sslsni",
    "tcp_user_timeout",
)
_ARGUMENTS = ("user", "password", "passfile", "target_session_attrs", "krbsrvname", "gsslib")


def describe(parameters: Mapping[str, Any]) -> str:
    """Where the parameters of a DSN lead, for messages: ``localhost:5432/orders as alice``."""
    hosts = str(parameters.get("host") or parameters.get("hostaddr") or "localhost").split(",")
    ports = str(parameters.get("port") or "5432").split(",")
    if len(ports) < len(hosts):
        ports = [ports[0]] * len(hosts)
    places = ",".join(f"{host}:{port}" for host, port in zip(hosts, ports, strict=False))
    database = parameters.get("dbname") or parameters.get("user") or "postgres"
    user = f" as {parameters['user']}" if parameters.get("user") else ""
    return f"{places}/{database}{user}"


def certificate_refused(where: str, reason: str) -> str:
    """What is said when the certificate of a server is not accepted."""
    return f"No connection to {where}: its certificate is not accepted: {reason}."


def connect_error(where: str, sqlstate: str | None, message: str) -> LogstoreError:
    """Why no connection to ``where`` came about."""
    # libpq asks on a line of its own, indented, whether the server is running; the advice says so too.
    lines = [" ".join(line.split()) for line in message.splitlines() if not line.startswith("\t")]
    text = f"No connection to {where}: {'; '.join(filter(None, lines)).rstrip('.')}."
    if sqlstate is None:
        return ConnectionFailedError(text)
    error = from_server(sqlstate, text)
    if isinstance(error, AuthenticationFailedError | ServerBusyError | ConnectionFailedError):
        return error
    if sqlstate == "3D000":  # the database does not exist
        return ConfigurationError(text, advice="Create the database, or name another one in the DSN.")
    return ConnectionFailedError(text, details=error.details)


def asyncpg_arguments(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """What libpq understands, as asyncpg takes it."""
    left = {name: str(value) for name, value in parameters.items() if value is not None}
    arguments: dict[str, Any] = {name: left.pop(name) for name in _ARGUMENTS if name in left}
    if hosts := left.pop("host", None) or left.get("hostaddr"):
        arguments["host"] = hosts.split(",")
    if ports := left.pop("port", None):
        numbers = [int(port or 5432) for port in ports.split(",")]
        count = len(arguments.get("host", ())) or len(numbers)
        arguments["port"] = numbers * count if len(numbers) == 1 else numbers
    if database := left.pop("dbname", None):
        arguments["database"] = database
    left = {name: value for name, value in left.items() if not name.startswith(_LIBPQ_ONLY)}
    tls = {name: left.pop(name) for name in list(left) if name.startswith("ssl") or name == "service"}
    if tls:
        arguments["dsn"] = "postgresql://?" + urlencode(tls)
    arguments["server_settings"] = left
    return arguments
