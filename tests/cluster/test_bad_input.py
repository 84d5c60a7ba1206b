"""A DSN that will not do: a typed error that names host and cause."""

from __future__ import annotations

import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from logstore import Admin
from logstore.cluster import LocalCluster
from logstore.embedded.home import OWNER
from logstore.errors import (
    AuthenticationFailedError,
    ConfigurationError,
    NotEnoughReplicasError,
    NotLeaderError,
)
from tests.support import servers
from tests.support.colours import Colour
from tests.support.programs import eventually

ENOUGH_S = 60.0


@pytest.fixture
def ports(cluster: LocalCluster) -> list[int]:
    """The leader's, then the followers'."""
    found = cluster.status()
    assert found.leader is not None
    return [found.leader.port, *(member.port for member in found.followers)]


def with_password(cluster: LocalCluster, ports: list[int], **passwords: str) -> str:
    """The DSN for these ports; ``p<port>``: another password for that one."""
    plan = cluster.layout.read_plan()
    assert plan is not None
    file = cluster.layout.path / "other-pgpass"
    lines = [
        f"127.0.0.1:{port}:*:{OWNER}:{passwords.get(f'p{port}', plan.passwords[OWNER])}" for port in ports
    ]
    file.write_text("\n".join(lines) + "\n")
    file.chmod(0o600)
    hosts = ",".join("127.0.0.1" for _ in ports)
    return make_conninfo(
        "", host=hosts, port=",".join(map(str, ports)), user=OWNER, dbname="logstore", passfile=str(file)
    )


def test_followers_take_no_producer(cluster: LocalCluster, colour: Colour, ports: list[int]) -> None:
    _, one, other = ports
    with pytest.raises(NotLeaderError, match=f"127.0.0.1:{one}/logstore as logstore is a follower"):
        colour.producer(with_password(cluster, [one]))
    with pytest.raises(NotLeaderError, match="is a follower") as refused:
        colour.producer(with_password(cluster, [one, other]))
    for port in (one, other):
        assert f"127.0.0.1:{port}" in refused.value.message


def test_a_follower_can_be_read_when_that_is_asked_for(
    cluster: LocalCluster, colour: Colour, ports: list[int]
) -> None:
    with Admin(cluster.status().dsn) as admin:
        admin.create_topic("followed", if_not_exists=True)
    dsn = make_conninfo(with_password(cluster, ports), target_session_attrs="standby")
    eventually(lambda: "followed" in colour.admin(dsn).list_topics(), "it has replayed that")


def test_a_wrong_password_on_one_host_of_three_is_told(
    cluster: LocalCluster, colour: Colour, ports: list[int]
) -> None:
    for port in ports:
        dsn = with_password(cluster, ports, **{f"p{port}": "wrong"})
        with pytest.raises(AuthenticationFailedError, match=f"127.0.0.1:{port}/logstore"):
            # Each a DSN of its own: what has been seen to be right is not looked at again.
            colour.producer(make_conninfo(dsn, application_name=f"{colour.name}{port}"))


def test_a_database_that_is_not_there_is_told(
    cluster: LocalCluster, colour: Colour, ports: list[int]
) -> None:
    dsn = make_conninfo(with_password(cluster, ports), dbname="nix")
    with pytest.raises(ConfigurationError, match='"nix" does not exist'):
        colour.producer(dsn)


def test_a_host_of_another_cluster_is_told(cluster: LocalCluster, colour: Colour, ports: list[int]) -> None:
    with servers.embedded(stranger=True) as stranger:
        directory = str(conninfo_to_dict(stranger.dsn)["host"])
        dsn = conninfo_to_dict(with_password(cluster, ports))
        mixed = make_conninfo(
            "", **{**dsn, "host": f"{dsn['host']},{directory}", "port": f"{dsn['port']},5432"}
        )
        with pytest.raises(ConfigurationError, match="belong to different clusters") as refused:
            colour.producer(mixed)
    assert directory in refused.value.message


def test_more_replicas_than_there_are_take_no_record(cluster: LocalCluster, colour: Colour) -> None:
    dsn = cluster.status().dsn
    with Admin(dsn) as admin:
        admin.create_topic("four", configs={"min.insync.replicas": "4"}, if_not_exists=True)
    # Of the three, a commit waits for the leader and one follower.
    with pytest.raises(NotEnoughReplicasError, match=r"127\.0\.0\.1:\d+/logstore.* is 4, but 2") as refused:
        colour.producer(dsn, retries=0).send_and_wait("four", b"v")
    assert refused.value.details["min.insync.replicas"] == 4
