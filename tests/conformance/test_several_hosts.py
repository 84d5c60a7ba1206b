"""A DSN that names several hosts, and hosts that will not do: typed errors that say which, and why."""

from __future__ import annotations

import shutil
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from logstore.errors import (
    AuthenticationFailedError,
    CertificateError,
    ConfigurationError,
    ConnectionFailedError,
    NotEnoughReplicasError,
    NotLeaderError,
)
from tests.support import servers
from tests.support.appender import Appender
from tests.support.colours import Colour
from tests.support.log import records
from tests.support.proxy import Proxy, refusing_server, silent_server
from tests.support.servers import Server
from tests.support.several import running, together

pytestmark = [pytest.mark.one_server, pytest.mark.both_colours]


@pytest.fixture(scope="module")
def stranger() -> Iterator[Server]:
    """Another cluster."""
    with servers.embedded(stranger=True) as found:
        yield found


@contextmanager
def expired_server(directory: Path) -> Iterator[tuple[int, Path]]:
    """The port of a server whose certificate was good until yesterday, and that certificate."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("openssl is not installed")
    key, request, certificate = (directory / name for name in ("key.pem", "request.pem", "certificate.pem"))

    def run(*arguments: object) -> None:
        subprocess.run([openssl, *map(str, arguments)], check=True, capture_output=True)

    run("req", "-new", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=db", "-keyout", key, "-out", request)
    run("x509", "-req", "-in", request, "-signkey", key, "-days", "-1", "-out", certificate)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            with suppress(OSError):
                while True:
                    client, _ = listener.accept()
                    with client, suppress(OSError):
                        client.recv(8)
                        client.sendall(b"S")
                        context.wrap_socket(client, server_side=True).close()

        threading.Thread(target=serve, daemon=True).start()
        yield listener.getsockname()[1], certificate
        listener.shutdown(socket.SHUT_RDWR)


def nobody(dsn: str) -> str:
    """The same on a port where nobody listens."""
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        return make_conninfo(dsn, host="127.0.0.1", port=listener.getsockname()[1], sslmode="disable")


def test_a_host_that_is_down_is_passed_over(colour: Colour, database: str, appender: Appender) -> None:
    appender.create("t")
    producer = colour.producer(together(nobody(database), database, sslmode="disable"))
    assert producer.send_and_wait("t", b"v").offset == 0
    consumer = colour.consumer(
        "t", dsn=together(nobody(database), database, sslmode="disable"), auto_offset_reset="earliest"
    )
    assert consumer.getone().value == b"v"


def test_a_host_that_says_nothing_is_passed_over(colour: Colour, database: str, appender: Appender) -> None:
    appender.create("t")
    with silent_server() as port:
        mute = make_conninfo(database, host="127.0.0.1", port=port, sslmode="disable")
        producer = colour.producer(together(mute, database, sslmode="disable"))
        assert producer.send_and_wait("t", b"v").offset == 0


def test_when_all_are_down_all_are_named(colour: Colour, database: str) -> None:
    dsns = [nobody(database), nobody(database)]
    with pytest.raises(ConnectionFailedError) as refused:
        colour.producer(together(*dsns))
    for dsn in dsns:
        assert str(conninfo_to_dict(dsn)["port"]) in refused.value.message


def test_hosts_of_different_clusters_are_refused(
    colour: Colour, database: str, stranger: Server, appender: Appender
) -> None:
    """Before anything is written: after a failover it would go to another log."""
    appender.create("t")
    name = urlsplit(database).path[1:]
    with psycopg.connect(stranger.dsn, autocommit=True) as connection:
        if not connection.execute("SELECT FROM pg_database WHERE datname = %s", [name]).rowcount:
            connection.execute(f'CREATE DATABASE "{name}"'.encode())
    dsn = together(database, stranger.database(name))
    with pytest.raises(ConfigurationError, match="belong to different clusters") as refused:
        colour.producer(dsn).send_and_wait("t", b"v")
    assert len(refused.value.details["hosts"]) == 2
    assert records(database, "t") == []


def test_a_server_that_is_read_only_takes_no_producer(
    colour: Colour, database: str, appender: Appender
) -> None:
    appender.create("t")
    with psycopg.connect(database, autocommit=True) as connection:
        name = urlsplit(database).path[1:]
        connection.execute(f'ALTER DATABASE "{name}" SET default_transaction_read_only = on'.encode())
    host = str(conninfo_to_dict(database)["host"])
    for dsn in (database, together(database, database)):
        with pytest.raises(NotLeaderError, match="default_transaction_read_only is on") as refused:
            colour.producer(dsn)
        assert host in refused.value.message
    # Reading is what it is for.
    assert colour.consumer("t", dsn=database, auto_offset_reset="earliest").getmany(timeout_ms=0) == {}


def test_a_single_server_cannot_have_two_replicas(colour: Colour, database: str, appender: Appender) -> None:
    appender.create("t", min_insync_replicas="2")
    host = str(conninfo_to_dict(database)["host"])
    with pytest.raises(NotEnoughReplicasError, match=r"min\.insync\.replicas is 2, but 1") as refused:
        colour.producer(database, retries=0).send_and_wait("t", b"v")
    assert host in refused.value.message
    assert "synchronous_standby_names" in refused.value.advice


def test_lists_that_do_not_fit_are_refused(colour: Colour, database: str) -> None:
    for dsn in ("host=a,b,c port=1,2 dbname=log", "host=a,b target_session_attrs=writable"):
        with pytest.raises(ConfigurationError):
            colour.producer(dsn)


def test_a_wrong_password_on_one_host_is_told_with_its_name(
    colour: Colour, database: str, appender: Appender
) -> None:
    """Also when another host would do: it would be found out when that one is lost."""
    appender.create("t")
    with refusing_server() as port:
        wrong = make_conninfo(database, host="127.0.0.1", port=port, sslmode="disable")
        own = make_conninfo(database, password="secret")
        with pytest.raises(AuthenticationFailedError, match=f"127.0.0.1:{port}"):
            colour.producer(together(own, wrong, sslmode="disable"))


def test_an_expired_certificate_is_told(
    colour: Colour, database: str, tmp_path: Path, appender: Appender
) -> None:
    with expired_server(tmp_path) as (port, certificate):
        checked = {"sslmode": "verify-ca", "sslrootcert": str(certificate)}
        alone = make_conninfo(database, host="127.0.0.1", port=port, **checked)
        with pytest.raises(CertificateError, match=f"127.0.0.1:{port}.*expired"):
            colour.producer(alone)
        with pytest.raises(CertificateError, match=f"127.0.0.1:{port}.*expired"):
            colour.producer(together(database, alone, **checked))


def test_a_connection_that_is_lost_is_opened_again_wherever_the_leader_is(
    colour: Colour, database: str, appender: Appender
) -> None:
    appender.create("t")
    with Proxy(database) as first, Proxy(database) as second:
        producer = colour.producer(together(first.dsn, second.dsn), linger_ms=0, retry_backoff_ms=1)
        assert producer.send_and_wait("t", b"0").offset == 0
        first.refuse()
        assert producer.send_and_wait("t", b"1").offset == 1
        first.refuse(False)
        second.refuse()
        assert producer.send_and_wait("t", b"2").offset == 2
    assert [record.value for record in records(database, "t")] == [b"0", b"1", b"2"]


def test_nothing_goes_on_after_close(colour: Colour, database: str, appender: Appender) -> None:
    """Whoever looks after the connections is gone with them."""
    appender.create("t")
    producer = colour.producer(together(database, database))
    assert any("sentry" in name for name in running(colour))
    producer.close()
    assert not any("sentry" in name for name in running(colour))
