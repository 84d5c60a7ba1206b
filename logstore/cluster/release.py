"""Let go of the leader's key for a member of this machine that is dead: for the service manager.

``python -m logstore.cluster.release /etc/patroni/patroni.yml``, run when Patroni has ended, however it ended
(``ExecStopPost`` in ``deploy/patroni.service``).  If no PostgreSQL works in the member's data directory any
more, and the key of the leader is its own, the key goes, and a follower is elected at once instead of after
the lease, which Patroni does not let anybody make shorter than 20 s.  If PostgreSQL lives, nothing is done:
Patroni is started again and finds it.

Exits with 0 whether or not there was something to let go of, with 1 when etcd could not be asked.
"""

from __future__ import annotations

import base64
import http.client
import json
import ssl
import sys
from collections.abc import Iterator, Mapping
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, Final

__all__ = ["main", "release"]

_TIMEOUT_S: Final = 3.0


def release(document: Mapping[str, Any], *, in_favour_of: str | None = None) -> bool | None:
    """Let go of the key of the member that ``document``, Patroni's configuration, describes.

    ``in_favour_of``: the member that is to lead, while it is well; for whoever knows that it has everything.
    Whether there was something to let go of; None when no etcd answered.
    """
    if _lives(Path(document["postgresql"]["data_dir"])):
        return False
    group = f"/{str(document.get('namespace') or 'service').strip('/')}/{document['scope']}"
    key = f"{group}/leader"
    orders: list[Any] = [{"requestDeleteRange": {"key": _text(key)}}]
    if in_favour_of is not None:
        # What Patroni keeps of a switchover that was asked of it.
        said = json.dumps({"leader": document["name"], "member": in_favour_of})
        orders.insert(0, {"requestPut": {"key": _text(f"{group}/failover"), "value": _text(said)}})
    body = {
        "compare": [
            {"target": "VALUE", "result": "EQUAL", "key": _text(key), "value": _text(document["name"])}
        ],
        "success": orders,
    }
    etcd = document["etcd3"]
    for host, port in _hosts(etcd):
        with (
            suppress(OSError, http.client.HTTPException, ValueError),
            closing(_connection(etcd, host, port)) as c,
        ):
            headers = {"Content-Type": "application/json"}
            if etcd.get("username"):
                names = {"name": etcd["username"], "password": etcd.get("password", "")}
                headers["Authorization"] = str(_post(c, "/v3/auth/authenticate", names, headers)["token"])
            return bool(_post(c, "/v3/kv/txn", body, headers).get("succeeded"))
    return None


def _lives(data: Path) -> bool:
    """A PostgreSQL works in this directory."""
    import psutil

    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            if process.name().startswith("postgres") and Path(process.cwd()) == data.resolve():
                return bool(process.status() != psutil.STATUS_ZOMBIE)
    return False


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


def _post(
    connection: http.client.HTTPConnection, path: str, body: Any, headers: Mapping[str, str]
) -> dict[str, Any]:
    connection.request("POST", path, json.dumps(body), dict(headers))
    answer = connection.getresponse()
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
