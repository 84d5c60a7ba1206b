"""Let go of the leader's key for a member of this machine that is dead: for the service manager.

``python -m logstore.cluster.release /etc/patroni/patroni.yml``, run when Patroni has ended, however it ended
(``ExecStopPost`` in ``deploy/patroni.service``).  If no PostgreSQL works in the member's data directory any
more, and the key of the leader is its own, the key goes, and a follower is elected at once instead of after
the lease, which Patroni does not let anybody make shorter than 20 s.  If PostgreSQL lives, nothing is done:
Patroni is started again and finds it.

A leader that could not reach etcd a moment ago has told the followers so, and they would hold to it for as
long as that lease (failsafe mode): they are told that there is no such leader any more.

Exits with 0 whether or not there was something to let go of, with 1 when etcd could not be asked.
"""

from __future__ import annotations

import base64
import http.client
import json
import ssl
import sys
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, Final, TypeVar
from urllib.parse import urljoin

__all__ = ["in_sync", "main", "release"]

T = TypeVar("T")

_TIMEOUT_S: Final = 3.0
_FOLLOWER_TIMEOUT_S: Final = 1.0
_NOBODY: Final = {"name": "", "conn_url": "", "api_url": ""}
"""A leader as another one's Patroni announces itself; without a name it is none."""


def release(document: Mapping[str, Any], *, in_favour_of: str | None = None) -> bool | None:
    """Let go of the key of the member that ``document``, Patroni's configuration, describes.

    ``in_favour_of``: the member that is to lead, while it is well; for whoever knows that it has everything.
    Whether there was something to let go of; None when no etcd answered.
    """
    data, name = Path(document["postgresql"]["data_dir"]), document["name"]
    if _lives(data):
        return False

    def let_go(store: _Etcd) -> bool:
        holder = store.get("leader")
        # One that went on without etcd has lost the key to time, and is remembered all the same.
        if holder != name and (holder is not None or _follows(data)):
            return False
        # One that Patroni does not count among those in sync would be waited for, and never elected.
        favoured = in_favour_of if in_favour_of in store.in_sync() else None
        _disown(document, json.loads(store.get("failsafe") or "{}"), favoured)
        return holder is not None and store.let_go(name, favoured)

    return _ask(document, let_go)


def in_sync(document: Mapping[str, Any]) -> frozenset[str] | None:
    """The followers that may be elected, as etcd has it; None when no etcd answered.

    ``document`` is the configuration of any member's Patroni, which itself may know an older state.
    """
    return _ask(document, _Etcd.in_sync)


def _follows(data: Path) -> bool:
    """What was in this directory last did not lead."""
    return (data / "standby.signal").exists() or not (data / "PG_VERSION").exists()


def _disown(document: Mapping[str, Any], members: Mapping[str, str], only: str | None) -> None:
    """Have the members' Patroni forget that this one said that it leads.

    Before the key goes: its going is what wakes them.  Nobody is elected beside another leader that they
    hear from: they ask each other first, and it tells them again within ``loop_wait``.
    """
    from patroni.request import PatroniRequest
    from urllib3.exceptions import HTTPError

    interface = dict(document.get("restapi") or {})
    if names := interface.get("authentication"):
        interface["auth"] = f"{names['username']}:{names['password']}"
    ask = PatroniRequest({"ctl": document.get("ctl") or {}, "restapi": interface})
    others = [url for name, url in members.items() if name != document["name"] and only in (None, name)]
    patience: dict[str, Any] = {"timeout": _FOLLOWER_TIMEOUT_S, "retries": False}

    def forget(url: str) -> None:
        # Whether or not that can be said, the key is to go.
        with suppress(HTTPError, OSError, ValueError):
            if json.loads(ask.request("GET", url, **patience).data).get("failsafe_mode_is_active"):
                ask.request("POST", urljoin(url, "failsafe"), _NOBODY, **patience)

    with ThreadPoolExecutor(max(1, len(others))) as pool:
        list(pool.map(forget, others))


def _lives(data: Path) -> bool:
    """A PostgreSQL works in this directory."""
    import psutil

    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            if process.name().startswith("postgres") and Path(process.cwd()) == data.resolve():
                return bool(process.status() != psutil.STATUS_ZOMBIE)
    return False


def _ask(document: Mapping[str, Any], question: Callable[[_Etcd], T]) -> T | None:
    """The answer of the first etcd that gives one."""
    etcd = document["etcd3"]
    group = f"/{str(document.get('namespace') or 'service').strip('/')}/{document['scope']}"
    for host, port in _hosts(etcd):
        with (
            suppress(OSError, http.client.HTTPException, ValueError),
            closing(_connection(etcd, host, port)) as connection,
        ):
            return question(_Etcd(connection, etcd, group))
    return None


def _hosts(etcd: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    found = etcd.get("hosts") or etcd.get("host") or "127.0.0.1:2379"
    for each in found.split(",") if isinstance(found, str) else found:
        host, _, port = str(each).strip().rpartition(":")
        yield host.strip("[]"), int(port)


def _connection(etcd: Mapping[str, Any], host: str, port: int) -> http.client.HTTPConnection:
    if etcd.get("protocol") != "https":
        return http.client.HTTPConnection(host, port, timeout=_TIMEOUT_S)
    context = ssl.create_default_context(cafile=etcd.get("cacert"))
    if etcd.get("cert"):
        context.load_cert_chain(etcd["cert"], etcd.get("key"))
    return http.client.HTTPSConnection(host, port, timeout=_TIMEOUT_S, context=context)


class _Etcd:
    """What is asked of it about a group, over its gateway for HTTP."""

    def __init__(
        self, connection: http.client.HTTPConnection, settings: Mapping[str, Any], group: str
    ) -> None:
        self._connection = connection
        self._group = group
        self._headers = {"Content-Type": "application/json"}
        if settings.get("username"):
            names = {"name": settings["username"], "password": settings.get("password", "")}
            self._headers["Authorization"] = str(self._post("/v3/auth/authenticate", names)["token"])

    def get(self, name: str) -> str | None:
        """The value of a key of the group; None: there is no such key."""
        found = self._post("/v3/kv/range", {"key": self._key(name)}).get("kvs")
        return base64.b64decode(found[0]["value"]).decode() if found else None

    def in_sync(self) -> frozenset[str]:
        listed = json.loads(self.get("sync") or "{}").get("sync_standby") or ""
        return frozenset(filter(None, listed.split(",")))

    def let_go(self, name: str, in_favour_of: str | None) -> bool:
        """Delete the leader's key if it is still that of ``name``; whether it was."""
        key = self._key("leader")
        orders: list[Any] = [{"requestDeleteRange": {"key": key}}]
        if in_favour_of is not None:
            # What Patroni keeps of a switchover that was asked of it.
            said = json.dumps({"leader": name, "member": in_favour_of})
            orders.insert(0, {"requestPut": {"key": self._key("failover"), "value": _text(said)}})
        compared = {"target": "VALUE", "result": "EQUAL", "key": key, "value": _text(name)}
        return bool(self._post("/v3/kv/txn", {"compare": [compared], "success": orders}).get("succeeded"))

    def _key(self, name: str) -> str:
        return _text(f"{self._group}/{name}")

    def _post(self, path: str, body: Any) -> dict[str, Any]:
        self._connection.request("POST", path, json.dumps(body), self._headers)
        answer = self._connection.getresponse()
        text = answer.read()
        if answer.status != 200:
            raise ValueError(text)
        found: dict[str, Any] = json.loads(text)
        return found


def _text(value: str) -> str:
    return base64.b64encode(value.encode()).decode()


def main() -> int:
    """See the module."""
    import yaml

    document = yaml.safe_load(Path(sys.argv[1]).read_text())
    released = release(document)
    if released is None:
        print("no etcd answered; the followers wait for the end of the lease", file=sys.stderr)
        return 1
    if released:
        print(f"{document['name']} led and is dead: its key is released")
    return 0


if __name__ == "__main__":
    sys.exit(main())
