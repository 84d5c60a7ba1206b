"""How a connection string is shown and how a failure to connect is explained: never with the password."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from logstore.errors import (
    AuthenticationFailedError,
    ConfigurationError,
    ConnectionFailedError,
    LogstoreError,
    ServerBusyError,
    from_server,
)

__all__ = ["KEEPALIVE", "connect_error", "describe"]

KEEPALIVE: Final[Mapping[str, int]] = {
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": 10_000,
}
"""A machine that is gone is noticed after 11 s; what is sent to one, 10 s after it was sent.

A DSN may say otherwise.
"""


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


def connect_error(where: str, sqlstate: str | None, message: str) -> LogstoreError:
    """Why no connection to ``where`` came about."""
    text = f"No connection to {where}: {' '.join(message.split()).rstrip('.')}."
    if sqlstate is None:
        return ConnectionFailedError(text)
    error = from_server(sqlstate, text)
    if isinstance(error, AuthenticationFailedError | ServerBusyError | ConnectionFailedError):
        return error
    if sqlstate == "3D000":  # the database does not exist
        return ConfigurationError(text, advice="Create the database, or name another one in the DSN.")
    return ConnectionFailedError(text, details=error.details)
