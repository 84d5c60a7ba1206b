"""What servers of a group show of a topic, and how far: for tests of the high watermark."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

import psycopg

from tests.support.programs import eventually
from tests.support.sqllog import Session, append, rows, value
from tests.support.standbys import Group, Node

__all__ = [
    "ALL",
    "ends",
    "fetched",
    "make_topic",
    "marks",
    "put",
    "rows_of",
    "sealed",
    "seen",
    "shows",
    "waiting",
]

ALL = -1


def make_topic(group: Group) -> int:
    with group.leader.connect() as session:
        made: int = value(session, "SELECT create_topic('t' || (SELECT count(*) FROM topic) || random(), 1)")
        return made


def seen(node: Node, topic: int) -> list[bytes]:
    """The values that a consumer of partition 0 gets from ``node``."""
    with node.connect() as session:
        return fetched(session, topic)


def fetched(session: Session, topic: int) -> list[bytes]:
    found = rows(
        session,
        "SELECT \"values\" FROM \"fetch\"(%s::int4[], '{0}', '{0}', 1000000, 1000000)"
        " WHERE base_offset IS NOT NULL",
        [topic],
    )
    return [one for (values,) in found for one in values]


def marks(node: Node, topic: int) -> tuple[int, int]:
    """The high watermark and the end of the log."""
    with node.connect() as session:
        ((high, end),) = rows(
            session,
            "SELECT high_watermark, log_end FROM \"fetch\"(%s::int4[], '{0}', '{0}', 0, 0)"
            " WHERE base_offset IS NULL",
            [topic],
        )
        return high, end


def put(group: Group, topic: int, content: bytes, acks: int = ALL) -> int:
    with group.leader.connect() as session:
        return append(session, topic, [content], acks=acks)[0]


def sealed(group: Group) -> None:
    """Seal, as a client that waits would, until there is nothing more to it."""

    def done() -> bool:
        with group.leader.connect() as session:
            return not value(session, "SELECT pending FROM seal()")

    eventually(done, "all is sealed")


def shows(node: Node, topic: int, contents: list[bytes]) -> None:
    eventually(lambda: seen(node, topic) == contents, f"{node.name} shows {contents}")


@contextlib.contextmanager
def waiting(group: Group, topic: int, content: bytes) -> Iterator[tuple[int, list[object]]]:
    """An append with acks=all that waits for standbys: its process number, and what became of it."""
    outcome: list[object] = []
    with group.leader.connect() as session:
        pid = session.info.backend_pid

        def run() -> None:
            try:
                outcome.append(append(session, topic, [content], acks=ALL)[0])
            except psycopg.Error as error:
                outcome.append(error)

        thread = threading.Thread(target=run)
        thread.start()
        try:
            eventually(
                lambda: (
                    group.leader.execute(
                        "SELECT 1 FROM pg_stat_activity WHERE pid = %s AND wait_event = 'SyncRep'", pid
                    )
                    == [(1,)]
                ),
                "the append waits for standbys",
            )
            yield pid, outcome
        finally:
            thread.join(60)
            assert not thread.is_alive()


def rows_of(node: Node, topic: int, offset: int) -> int:
    """The leader epoch of the record at ``offset``, committed or safe or not."""
    ((epoch,),) = node.execute(
        "SELECT leader_epoch FROM logstore.batches"
        " WHERE topic_id = %s AND %s BETWEEN base_offset AND last_offset",
        topic,
        offset,
    )
    return int(epoch)


def ends(node: Node, topic: int, epoch: int, offset: int) -> list[tuple[int, int, int]]:
    with node.connect() as session:
        return rows(
            session,
            "SELECT idx, leader_epoch, end_offset FROM epoch_ends(%s::int4[], '{0}', %s::int4[], %s::int8[])",
            [topic],
            [epoch],
            [offset],
        )
