"""DSNs that are none are refused, and nothing that may be a password is repeated."""

from __future__ import annotations

import pytest

from logstore._core.dsn import connect_error
from logstore.conninfo import parameters_of
from logstore.errors import ConfigurationError

HIDDEN = [
    "mysql://app:hush@db/orders",
    "postgresql://app:old@hush@db/orders",
    "postgresql://app:hush/hush@db/orders",
    "postgresql://app:hush%zz@db/orders",
    "postgresql://app:hush@[::1/orders",
    "host=db password=old hush",
    "postgresql://app:hush@db:port/orders",
    "postgresql://app:hush\ud800@db/orders",
    "host=db\0 password=hush",
]


@pytest.mark.parametrize("dsn", HIDDEN)
def test_error_has_no_part_of_a_password(dsn: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        parameters_of(dsn)
    assert "hush" not in str(caught.value)
    assert "%40" in caught.value.advice


@pytest.mark.parametrize(
    ("dsn", "named"),
    [
        ("postgresql://app@db/orders?colour=red", "colour"),
        ("host=db colour=red", "colour"),
        ("postgresql://app@db:99999/orders", "99999"),
    ],
)
def test_error_names_what_is_no_secret(dsn: str, named: str) -> None:
    with pytest.raises(ConfigurationError, match=named):
        parameters_of(dsn)


@pytest.mark.parametrize(
    "dsn", ["postgresql://", "postgresql:///orders?host=@abstract", "host=a,b port=1,", "host=/tmp/a@b"]
)
def test_what_libpq_takes_is_taken(dsn: str) -> None:
    parameters_of(dsn)


def test_libpqs_question_is_left_out() -> None:
    said = "connection to a failed: refused\n\tIs the server running?\nconnection to b failed: refused\n"
    assert connect_error("a,b", None, said).message == (
        "No connection to a,b: connection to a failed: refused; connection to b failed: refused."
    )
