"""What Patroni and etcd are asked over HTTP."""

from __future__ import annotations

import http.client
import json
from collections.abc import Mapping
from contextlib import closing, suppress
from dataclasses import dataclass
from typing import Any

from logstore.cluster.layout import HOST, Plan

__all__ = ["Seen", "etcd_answers", "members_seen"]


@dataclass(frozen=True, slots=True)
class Seen:
    """A member, as its Patroni sees it."""

    leads: bool
    """Its PostgreSQL takes writes."""
    state: str
    """``running``, ``streaming``, or what it does instead."""
    in_sync: bool
    timeline: int | None
    position: int | None
    """In the write-ahead log, bytes: a leader's end, what a follower has received."""
    failsafe: bool = False
    """It has heard within ``ttl`` from a leader that could not reach etcd, and elects nobody in its place."""

    @classmethod
    def of(cls, document: Mapping[str, Any]) -> Seen:
        leads = document.get("role") in ("primary", "master")
        state = str(document["state"])
        log = document.get("xlog") or {}
        return cls(
            leads,
            str(document.get("replication_state") or state) if state == "running" and not leads else state,
            leads or bool(document.get("quorum_standby") or document.get("sync_standby")),
            document.get("timeline"),
            log.get("location") if leads else log.get("received_location"),
            bool(document.get("failsafe_mode_is_active")),
        )


def _ask(port: int, path: str, *, timeout_s: float) -> tuple[int, str]:
    """Status and text; (0, reason) when nobody answers."""
    try:
        with closing(http.client.HTTPConnection(HOST, port, timeout=timeout_s)) as connection:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read().decode(errors="replace")
    except (OSError, http.client.HTTPException) as exc:
        return 0, str(exc) or type(exc).__name__


def members_seen(plan: Plan, *, only: str | None = None, timeout_s: float = 1.0) -> dict[str, Seen]:
    """What the Patroni of each member, or of one, says of it; those that do not answer are left out.

    Asked of each, and not of one for all: that would need etcd, and what is kept there of a member that died
    outlives it for a while.
    """
    seen = {}
    for name, port in plan.api_ports.items():
        if only not in (None, name):
            continue
        _, text = _ask(port, "/patroni", timeout_s=timeout_s)
        with suppress(ValueError):
            document = json.loads(text)
            if isinstance(document, dict) and "state" in document:
                seen[name] = Seen.of(document)
    return seen


def etcd_answers(plan: Plan) -> bool:
    status, text = _ask(plan.etcd_port, "/health", timeout_s=1.0)
    return status == 200 and '"true"' in text
