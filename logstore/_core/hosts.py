"""The hosts of one DSN: in which order they are tried, which of them will do, what to say when none does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final

from logstore._core.dsn import describe
from logstore.errors import (
    AuthenticationFailedError,
    ConfigurationError,
    ConnectionFailedError,
    LogstoreError,
    NotLeaderError,
)

__all__ = ["Access", "Group", "Host", "Roster", "Standing", "none_will_do", "not_wanted"]

WANTED: Final = ("any", "read-write", "read-only", "primary", "standby", "prefer-standby")
_EACH: Final = ("host", "hostaddr", "port")


@dataclass(frozen=True, slots=True)
class Access:
    """What a server lets one do."""

    follower: bool
    """It replays what another one writes."""
    read_only: bool
    """It takes no writes: a follower, or one that is told so by ``default_transaction_read_only``."""

    def refusal(self, *, in_recovery: bool = False) -> str:
        """Why it takes no writes; nothing if it does.

        ``in_recovery``: what the log says; a pooler may keep what the server says at the handshake to itself.
        """
        if self.follower or in_recovery:
            return "is a follower"
        return "is read-only (default_transaction_read_only is on)" if self.read_only else ""

    def will_do(self, wanted: str) -> bool:
        """It is what ``target_session_attrs`` asks for."""
        return {
            "any": True,
            "read-write": not self.read_only,
            "read-only": self.read_only,
            "primary": not self.follower,
            "standby": self.follower,
            "prefer-standby": self.follower,
        }[wanted]


@dataclass(frozen=True, slots=True)
class Standing:
    """Which group a server belongs to, and how new the history is that it leads."""

    system: str | None = None
    """The system identifier, which all members of a group share; None where the server does not tell."""
    timeline: int | None = None
    """Of a leader: one more after each promotion.  None for a follower."""

    SQL: ClassVar[str] = (
        "SELECT s.system_identifier::pg_catalog.text, CASE WHEN NOT pg_catalog.pg_is_in_recovery() THEN"
        " pg_catalog.substr(pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_lsn()), 1, 8) END"
        " FROM pg_catalog.pg_control_system() s"
    )

    @classmethod
    def decode(cls, rows: Sequence[Sequence[Any]]) -> Standing:
        system, timeline = rows[0]
        return cls(system, None if timeline is None else int(timeline, 16))


@dataclass(frozen=True, slots=True, eq=False)
class Host:
    """One of the servers that a DSN names."""

    parameters: Mapping[str, Any]
    """Those of the DSN, with this host alone."""
    place: str
    """``db1:5432``"""
    where: str
    """``db1:5432/orders as alice``"""


class Roster:
    """The hosts of one DSN.

    The one that would do last is tried first, and those that did not answer last: the clients of a leader
    that has fallen silent wait for it once, not at every attempt.

    ``parameters``: of the DSN.  Raises ConfigurationError when its lists do not fit each other.
    """

    def __init__(self, parameters: Mapping[str, Any]) -> None:
        lists = {name: str(parameters[name]).split(",") for name in _EACH if parameters.get(name)}
        count = max((len(each) for name, each in lists.items() if name != "port"), default=1)
        for name, each in lists.items():
            if len(each) not in (1, count) or (len(each) == 1 < count and name != "port"):
                raise ConfigurationError(
                    f"The DSN names {count} hosts and {len(each)} values of {name}: {describe(parameters)}."
                )
        self.several = count > 1
        wanted = parameters.get("target_session_attrs")
        if wanted is not None and wanted not in WANTED:
            raise ConfigurationError(f"target_session_attrs is one of {', '.join(WANTED)}; not {wanted!r}.")
        # Hosts that are named together are one group, and its leader has the log.
        self.wanted: str = wanted or ("read-write" if self.several else "any")
        self._hosts = [self._host(parameters, lists, number) for number in range(count)]

    def _host(self, parameters: Mapping[str, Any], lists: Mapping[str, list[str]], number: int) -> Host:
        own = dict(parameters)
        if self.several:
            own.pop("target_session_attrs", None)
            own |= {name: each[min(number, len(each) - 1)] or None for name, each in lists.items()}
            own = {name: value for name, value in own.items() if value is not None}
        place = describe({name: own[name] for name in _EACH if name in own}).partition("/postgres")[0]
        return Host(own, place, describe(own))

    @property
    def hosts(self) -> tuple[Host, ...]:
        """In the order in which they are to be tried."""
        return tuple(self._hosts)

    def chosen(self, host: Host) -> None:
        """``host`` is what was wanted."""
        self._hosts = sorted(self._hosts, key=lambda each: each is not host)

    def silent(self, host: Host) -> None:
        """``host`` could not be reached."""
        self._hosts = sorted(self._hosts, key=lambda each: each is host)


def not_wanted(where: str, access: Access) -> NotLeaderError:
    """A server that is not what ``target_session_attrs`` asks for."""
    return NotLeaderError(f"{where} {access.refusal() or 'takes writes'}.")


def none_will_do(wanted: str, tried: Sequence[tuple[Host, LogstoreError]]) -> LogstoreError:
    """Why none of the hosts would do, naming each of them with its cause."""
    errors = [error for _, error in tried]
    for error in errors:
        if isinstance(error, AuthenticationFailedError):
            return AuthenticationFailedError(_all(tried), details=error.details)
    for error in errors:
        if not error.retriable:
            return error
    if any(isinstance(error, NotLeaderError) for error in errors):
        return NotLeaderError(
            f"None of the hosts is what target_session_attrs={wanted} asks for.  {_all(tried)}",
            advice="If a follower is just being promoted, try again; else name the leader, too.",
        )
    return ConnectionFailedError(
        f"None of the {len(tried)} hosts could be reached.  {_all(tried)}",
        advice="Check that the servers run and that hosts and ports are right.",
    )


def _all(tried: Sequence[tuple[Host, LogstoreError]]) -> str:
    return "  ".join(error.message for _, error in tried)


class Group:
    """What is known of the servers that the hosts of a DSN have led to."""

    def __init__(self) -> None:
        self._first: tuple[Host, str] | None = None
        self._newest: tuple[Host, int] | None = None

    @property
    def was_led(self) -> bool:
        """One of them was a leader."""
        return self._newest is not None

    def admit(self, host: Host, standing: Standing) -> None:
        """``host`` stands so.

        Raises ConfigurationError when it belongs to another cluster than those before it, NotLeaderError when
        it leads a history that another one has gone beyond: a leader that came back and has not noticed yet.
        """
        if standing.system is not None:
            if self._first is None:
                self._first = host, standing.system
            elif self._first[1] != standing.system:
                first, system = self._first
                raise ConfigurationError(
                    "The hosts of the DSN belong to different clusters: the system identifier of "
                    f"{first.place} is {system}, that of {host.place} is {standing.system}.",
                    advice="Name members of one group only: a client that fails over would go on in another "
                    "log.",
                    details={"hosts": {first.place: system, host.place: standing.system}},
                )
        if standing.timeline is not None:
            if self._newest is not None and standing.timeline < self._newest[1]:
                newer, timeline = self._newest
                raise NotLeaderError(
                    f"{host.where} has been replaced: it is on timeline {standing.timeline}, and "
                    f"{newer.place} led on timeline {timeline}."
                )
            self._newest = host, standing.timeline
