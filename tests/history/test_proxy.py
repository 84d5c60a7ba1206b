"""What the fault-injecting proxy does to a connection is what it says."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import psycopg
import pytest

from tests.support.programs import eventually
from tests.support.proxy import Fault, Proxy


@pytest.fixture
def proxy(database: str) -> Iterator[Proxy]:
    with psycopg.connect(database) as connection:
        connection.execute("CREATE TABLE public.words (word text)")
    with Proxy(database) as made:
        yield made


def words(database: str) -> list[str]:
    with psycopg.connect(database) as connection:
        return [word for (word,) in connection.execute("SELECT word FROM public.words ORDER BY 1")]


@pytest.mark.parametrize("fault", Fault)
def test_a_fault_befalls_one_request(database: str, proxy: Proxy, fault: Fault) -> None:
    done = fault not in (Fault.REQUEST, Fault.HALF_REQUEST)
    with closing(psycopg.connect(proxy.dsn, autocommit=True)) as connection:
        connection.execute("INSERT INTO public.words VALUES ('before')")
        proxy.strike(fault, b"struck")
        connection.execute("INSERT INTO public.words VALUES ('spared')")
        if fault is Fault.SILENCE:
            # Nothing comes and nothing ends: whoever waits without a deadline waits for ever.
            connection.pgconn.send_query(b"INSERT INTO public.words VALUES ('struck')")
            eventually(lambda: "struck" in words(database), "it was carried out")
            connection.pgconn.nonblocking = 1
            assert connection.pgconn.is_busy()
        else:
            with pytest.raises(psycopg.OperationalError):
                connection.execute("INSERT INTO public.words VALUES ('struck')")
    assert proxy.cuts == 1
    if done:
        eventually(lambda: "struck" in words(database), "it was carried out")
    with psycopg.connect(proxy.dsn, autocommit=True) as connection:
        connection.execute("INSERT INTO public.words VALUES ('struck, but not again')")
    expected = ["before", "spared", *(["struck"] if done else []), "struck, but not again"]
    assert words(database) == expected


def test_a_connection_is_struck_while_it_is_being_made(proxy: Proxy) -> None:
    proxy.strike(Fault.ANSWER, b"user")
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(proxy.dsn)
    psycopg.connect(proxy.dsn).close()


def test_strikes_queue_up(database: str, proxy: Proxy) -> None:
    proxy.strike(Fault.REQUEST, b"INSERT")
    proxy.strike(Fault.RESET, b"INSERT")
    for _ in range(2):
        with (
            psycopg.connect(proxy.dsn, autocommit=True) as connection,
            pytest.raises(psycopg.OperationalError),
        ):
            connection.execute("INSERT INTO public.words VALUES ('x')")
    assert proxy.cuts == 2
    eventually(lambda: words(database) == ["x"], "the second one was carried out")
