"""The options of a producer."""

from __future__ import annotations

from typing import Any

import pytest

from logstore.config import ProducerConfig
from logstore.errors import ConfigurationError
from logstore.options import read_options


def read(**options: Any) -> ProducerConfig:
    return read_options(ProducerConfig, options)


def test_defaults_are_kafkas_but_for_the_batch() -> None:
    config = read()
    assert (config.acks, config.linger_ms, config.batch_size) == (-1, 5, 262_144)
    assert (config.buffer_memory, config.max_block_ms, config.max_request_size) == (
        33_554_432,
        60_000,
        1_048_576,
    )
    assert (config.retries, config.retry_backoff_ms, config.retry_backoff_max_ms) == (
        2_147_483_647,
        100,
        1000,
    )
    assert (config.delivery_timeout_ms, config.request_timeout_ms) == (120_000, 30_000)


@pytest.mark.parametrize(
    ("given", "level"), [("all", -1), (-1, -1), ("-1", -1), (0, 0), ("0", 0), (1, 1), ("1", 1)]
)
def test_acks(given: Any, level: int) -> None:
    assert read(acks=given).acks == level


@pytest.mark.parametrize(
    "options",
    [
        {"acks": 2},
        {"acks": True},
        {"acks": "some"},
        {"acks": None},
        {"linger_ms": -1},
        {"linger_ms": "5"},
        {"batch_size": -1},
        {"buffer_memory": 0},
        {"max_request_size": 10},
        {"retries": -1},
        {"partitioner": "murmur3"},
        {"partitioner": None},
        {"value_serializer": "json"},
        {"schema": ""},
        {"schema": "\ud800"},
        {"client_id": "a\0b"},
        {"transactional_id": "\ud800"},
    ],
)
def test_value_out_of_range_is_refused_with_the_name(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=next(iter(options))):
        read(**options)


def test_time_outs_have_to_agree() -> None:
    with pytest.raises(ConfigurationError, match=r"linger_ms \+ request_timeout_ms, which is 30005"):
        read(delivery_timeout_ms=30_000)


def test_unknown_option_is_refused_with_the_near_miss() -> None:
    with pytest.raises(ConfigurationError, match="linger_ms"):
        read(lingerms=5)


def test_dotted_names_are_understood() -> None:
    assert read(**{"linger.ms": 7}).linger_ms == 7


def test_idempotence_is_on_unless_it_makes_no_sense() -> None:
    assert read_options(ProducerConfig, {}).enable_idempotence is True
    assert read_options(ProducerConfig, {"acks": 1}).enable_idempotence is True
    assert read_options(ProducerConfig, {"acks": 0}).enable_idempotence is False
    assert read_options(ProducerConfig, {"retries": 0}).enable_idempotence is False
    assert read_options(ProducerConfig, {"enable.idempotence": False}).enable_idempotence is False
    assert read_options(ProducerConfig, {"enable.idempotence": True, "acks": 1}).enable_idempotence is True


@pytest.mark.parametrize(
    "given",
    [
        {"enable_idempotence": True, "acks": 0},
        {"enable_idempotence": True, "retries": 0},
        {"enable_idempotence": False, "transactional_id": "bank"},
        {"enable_idempotence": 1},
    ],
)
def test_what_contradicts_idempotence(given: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match="idempotence"):
        read_options(ProducerConfig, given)


def test_what_only_kafkas_clients_have_is_refused_with_what_to_do_instead() -> None:
    for name, instead in [
        ("bootstrap_servers", "DSN"),
        ("sasl_plain_username", "DSN"),
        ("compression.type", "topic"),
        ("isolation_level", "committed"),
        ("fetch_min_bytes", "woken"),
        ("connections_max_idle_ms", "leave it out"),
    ]:
        with pytest.raises(ConfigurationError, match=f"no option '{name}'") as caught:
            read(**{name: "x"})
        assert instead in caught.value.advice
