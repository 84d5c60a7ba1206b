"""What a group keeps in etcd, past everybody."""

from __future__ import annotations

import base64
import http.client
import json
from contextlib import closing
from typing import Any, Final

from logstore.cluster.layout import HOST, Plan

__all__ = ["get", "put"]

ANSWER_S: Final = 5.0


def get(plan: Plan, name: str) -> str | None:
    """The value of a key of the group; None: there is no such key."""
    found = _ask(plan, "/v3/kv/range", {"key": _key(name)}).get("kvs")
    return base64.b64decode(found[0]["value"]).decode() if found else None


def put(plan: Plan, name: str, value: str) -> None:
    _ask(plan, "/v3/kv/put", {"key": _key(name), "value": base64.b64encode(value.encode()).decode()})


def _key(name: str) -> str:
    return base64.b64encode(f"/logstore/logstore/{name}".encode()).decode()


def _ask(plan: Plan, path: str, body: dict[str, Any]) -> Any:
    with closing(http.client.HTTPConnection(HOST, plan.etcd_port, timeout=ANSWER_S)) as connection:
        connection.request("POST", path, json.dumps(body))
        return json.load(connection.getresponse())
