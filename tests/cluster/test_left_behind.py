"""An old leader with more of its own timeline does not take over from a newer one that died.

A leader dies and has more log than the followers; one of them is promoted and acknowledges records with the
other; it dies before its Patroni has told anybody of the new timeline; the old leader comes back.  By its
position in the log it is ahead.  Without an archive of histories it was elected, and what had been
acknowledged was gone.
"""

from __future__ import annotations

import base64
import http.client
import json
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest

from logstore import Admin, Producer
from logstore.cluster import rest
from tests.cluster.topology import PATIENCE_S, Topology, topology
from tests.support.log import records
from tests.support.programs import eventually

KNOWN = ("history", "sync")
"""What Patroni keeps of timelines and of who is in sync."""
AWHILE_S = 20.0


@dataclass(frozen=True)
class Etcd:
    port: int

    def _ask(self, what: str, body: dict[str, str]) -> dict[str, list[dict[str, str]]]:
        with closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)) as connection:
            connection.request("POST", f"/v3/kv/{what}", json.dumps(body))
            found: dict[str, list[dict[str, str]]] = json.loads(connection.getresponse().read())
            return found

    @staticmethod
    def _key(name: str) -> str:
        return base64.b64encode(f"/logstore/logstore/{name}".encode()).decode()

    def get(self, name: str) -> str | None:
        found = self._ask("range", {"key": self._key(name)}).get("kvs")
        return base64.b64decode(found[0]["value"]).decode() if found else None

    def put(self, name: str, value: str | None) -> None:
        if value is None:
            self._ask("deleterange", {"key": self._key(name)})
        else:
            text = base64.b64encode(value.encode()).decode()
            self._ask("put", {"key": self._key(name), "value": text})


@pytest.fixture
def top() -> Iterator[Topology]:
    with topology({"fsync": "off"}) as found:
        yield found


def writable(top: Topology, name: str) -> bool:
    try:
        with top.superuser(name, "postgres") as session:
            row = session.execute("SELECT NOT pg_is_in_recovery()").fetchone()
    except psycopg.Error:
        return False
    return bool(row and row[0])


@pytest.mark.timeout(600)
@pytest.mark.parametrize("when", ["archived", "archived late"])
def test_what_the_newer_leader_acknowledged_is_kept(top: Topology, when: str) -> None:
    eventually(top.whole, "all are well", PATIENCE_S)
    etcd, held = Etcd(top.plan.etcd_port), top.layout.place
    with Admin(top.dsn) as admin:
        admin.create_topic("kept", configs={"min.insync.replicas": "2"})
    with Producer(dsn=top.dsn, acks="all", linger_ms=0) as producer:
        producer.send("kept", b"before", partition=0).get(PATIENCE_S)
    old, others = top.leader(), top.followers()
    known = {name: etcd.get(name) for name in KNOWN}
    top.cluster.kill(old)
    new: list[str] = []

    def promoted() -> bool:
        new[:] = [name for name in others if writable(top, name)]
        return bool(new)

    eventually(promoted, "another one is promoted", PATIENCE_S)
    third = next(name for name in others if name not in new)
    for process in top.patroni(new[0]):
        process.suspend()
    with Producer(dsn=top.dsn, acks="all", linger_ms=0) as producer:
        assert producer.send("kept", b"acknowledged", partition=0).get(PATIENCE_S).offset == 1
    [history] = [path for path in top.layout.histories.iterdir() if not path.name.endswith(".new")]
    top.cluster.kill(new[0])
    # As if it had not come to telling etcd.
    for name, value in known.items():
        etcd.put(name, value)
    hidden = history.with_name("hidden")
    if when == "archived late":
        # The old leader starts before it can know, and nobody can be elected before it does.
        history.rename(hidden)
        for process in top.patroni(third):
            process.suspend()
    etcd.put("leader", None)
    held(old).held.unlink()
    if when == "archived late":
        eventually(lambda: bool(top.postmaster(old)) and running(top, old), "the old leader runs", PATIENCE_S)
        hidden.rename(history)
        for process in top.patroni(third):
            process.resume()
        eventually(
            lambda: "not promoted: this member is at" in said(held(old).log), "it is refused", PATIENCE_S
        )
    else:
        eventually(
            lambda: "is not a child of this server's history" in said(held(old).log),
            "PostgreSQL does not start", PATIENCE_S,
        )  # fmt: skip
    until = time.monotonic() + AWHILE_S
    eventually(lambda: time.monotonic() > until or old in top.leaders(), "a while", PATIENCE_S)
    assert old not in top.leaders()
    held(new[0]).held.unlink()
    eventually(top.whole, "all are well again", PATIENCE_S)
    with Producer(dsn=top.dsn, acks="all", linger_ms=0) as producer:
        producer.send("kept", b"after", partition=0).get(PATIENCE_S)
    assert [each.value for each in records(top.dsn, "kept")] == [b"before", b"acknowledged", b"after"]


def running(top: Topology, name: str) -> bool:
    seen = rest.members_seen(top.plan, only=name, timeout_s=0.5).get(name)
    return seen is not None and seen.position is not None


def said(log: Path) -> str:
    return log.read_text(errors="replace")
