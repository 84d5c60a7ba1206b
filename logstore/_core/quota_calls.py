"""The SQL functions of quotas as calls."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from logstore._core.call import Call, Row, quoted

__all__ = ["QuotaCalls", "QuotaRow", "QuotaUsage"]


class QuotaRow(NamedTuple):
    role: str | None
    client_id: str | None
    producer_byte_rate: int | None
    consumer_byte_rate: int | None


class QuotaUsage(NamedTuple):
    """Somebody who has used a quota lately."""

    role: str | None
    client_id: str | None
    quota: str
    """``producer_byte_rate`` or ``consumer_byte_rate``."""
    rate: int
    """Bytes a second."""
    throttle_time_ms: int
    """For how long it is used up."""


class QuotaCalls:
    """The SQL functions of one log's quotas."""

    def __init__(self, schema: str = "logstore") -> None:
        prefix = quoted(schema) + "."
        self._alter = f"SELECT {prefix}alter_client_quota($1::text, $2::text, $3::text::jsonb)"
        self._list = (
            "SELECT role, client_id, producer_byte_rate, consumer_byte_rate "  # noqa: S608 (our own names)
            f"FROM {prefix}quotas ORDER BY role NULLS FIRST, client_id NULLS FIRST"
        )
        self._usage = (
            "SELECT role, client_id, quota, rate, throttle_time_ms "  # noqa: S608 (our own names)
            f"FROM {prefix}quota_usage ORDER BY role NULLS FIRST, client_id NULLS FIRST, quota"
        )
        self._state = f"SELECT throttle_time_ms FROM {prefix}quota_state($1::text)"  # noqa: S608
        self._charge = f"SELECT {prefix}charge_quota($1::text, $2::int8, false)"

    def alter_client_quota(
        self, user: str | None, client_id: str | None, rates: Mapping[str, int | None]
    ) -> Call[None]:
        """Set rates, in bytes a second; None takes one away."""
        args = (user, client_id, json.dumps(dict(rates)))
        return Call(self._alter, args, _none, "alter_client_quota", writes=True)

    def quotas(self) -> Call[list[QuotaRow]]:
        """Every quota there is."""
        return Call(self._list, (), lambda rows: [QuotaRow(*row) for row in rows], "quotas")

    def quota_usage(self) -> Call[list[QuotaUsage]]:
        """Everybody who has used a quota lately."""
        return Call(self._usage, (), lambda rows: [QuotaUsage(*row) for row in rows], "quota_usage")

    def quota_state(self, kind: str) -> Call[int]:
        """For how many ms this client has used up its quota of a kind, "produce" or "fetch"."""
        return Call(self._state, (kind,), _value, "quota_state")

    def charge_quota(self, kind: str, size: int) -> Call[int]:
        """Count ``size`` bytes that came another way; for how many ms the quota then is used up."""
        return Call(self._charge, (kind, size), _value, "charge_quota")


def _value(rows: Sequence[Row]) -> Any:
    return rows[0][0]


def _none(rows: Sequence[Row]) -> None:
    return None
