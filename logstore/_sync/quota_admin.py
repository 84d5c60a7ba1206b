# Generated from logstore/_async/quota_admin.py by tools/unasync.py; edit that file.
"""The methods of an admin client that concern quotas."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from logstore._core.call import Call
from logstore._core.quota_calls import QuotaCalls, QuotaUsage
from logstore.errors import InvalidArgumentError
from logstore.quotas import ClientQuotaEntity

__all__ = ["QuotaAdmin"]

T = TypeVar("T")


class QuotaAdmin:
    """Sets and describes quotas."""

    _quota_calls: QuotaCalls

    def _run(self, call: Call[T]) -> T:
        raise NotImplementedError

    def _run_together(self, calls: Mapping[Any, Call[T]]) -> dict[Any, T]:
        raise NotImplementedError

    def alter_client_quotas(
        self, alterations: Mapping[ClientQuotaEntity, Mapping[str, int | float | None]]
    ) -> None:
        """Set quotas, all or none of them.

        For example ``{ClientQuotaEntity(client_id="etl"): {"producer_byte_rate": 1_000_000}}``.  There are
        ``producer_byte_rate`` and ``consumer_byte_rate``, in bytes a second, of records as the topics' sizes
        count them; None takes one away, one that is not named stays.  Running clients keep to it from their
        next request on; one that waits notices within two seconds.

        Raises InvalidArgumentError for an impossible entity, InvalidConfigError for an unknown quota or rate,
        AuthorizationFailedError when the role may not act as the owner of the log.
        """
        calls = {}
        for given, rates in alterations.items():
            entity = _entity(given)
            calls[entity] = self._quota_calls.alter_client_quota(
                entity.user, entity.client_id, {name: _rate(rate) for name, rate in rates.items()}
            )
        # In one order, so that two who change the same quotas do not lock each other out.
        self._run_together(
            dict(sorted(calls.items(), key=lambda item: tuple(part or "" for part in item[0])))
        )

    def describe_client_quotas(
        self, entities: Iterable[ClientQuotaEntity] | None = None
    ) -> dict[ClientQuotaEntity, dict[str, int]]:
        """What has been set, of some entities or of all; an entity without quotas is absent."""
        wanted = None if entities is None else {_entity(entity) for entity in entities}
        found: dict[ClientQuotaEntity, dict[str, int]] = {}
        for row in self._run(self._quota_calls.quotas()):
            entity = ClientQuotaEntity(row.role, row.client_id)
            if wanted is None or entity in wanted:
                rates = {
                    "producer_byte_rate": row.producer_byte_rate,
                    "consumer_byte_rate": row.consumer_byte_rate,
                }
                found[entity] = {name: rate for name, rate in rates.items() if rate is not None}
        return found

    def describe_quota_usage(self) -> list[QuotaUsage]:
        """Everybody who has used a quota within about an hour, and for how long it is used up now."""
        return self._run(self._quota_calls.quota_usage())


def _entity(entity: object) -> ClientQuotaEntity:
    if (
        isinstance(entity, tuple)
        and len(entity) == 2
        and all(part is None or isinstance(part, str) for part in entity)
        and any(entity)
    ):
        return ClientQuotaEntity(*(part or None for part in entity))
    raise InvalidArgumentError(f"A quota is for ClientQuotaEntity(user, client_id), not for {entity!r}.")


def _rate(rate: object) -> int | None:
    if rate is None:
        return None
    if isinstance(rate, bool) or not isinstance(rate, int | float) or rate != rate // 1:
        raise InvalidArgumentError(f"A quota is a whole number of bytes a second, or None, not {rate!r}.")
    return int(rate)
