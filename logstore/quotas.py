"""Quotas: whom they are for, and what they are."""

from __future__ import annotations

from typing import Final, NamedTuple

__all__ = ["DEFAULT_ENTITY", "ClientQuotaEntity"]

DEFAULT_ENTITY: Final = "<default>"
"""Every role, or every client id, that has no quota of its own: each of them by itself."""


class ClientQuotaEntity(NamedTuple):
    """Whom a quota is for: a database role, a client id, or a client id of a role.

    All connections of the entity share the quota.  ``DEFAULT_ENTITY`` in place of a name means every one that
    has no quota of its own, each by itself.  Of several quotas that apply to a connection the most specific
    counts, in Kafka's order: (user, client_id), (user, default), (user,), (default, client_id),
    (default, default), (default,), (, client_id), (, default).
    """

    user: str | None = None
    """The role that connects (PostgreSQL's ``session_user``); None: any."""
    client_id: str | None = None
    """The client's ``client_id``, which is its connection's ``application_name``; None: any."""
