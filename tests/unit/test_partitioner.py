"""Which partition a key belongs to: the values of other clients."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from logstore._core.partitioner import as_partitioner, hash_of, murmur2
from logstore.errors import ConfigurationError, InvalidArgumentError


@pytest.mark.parametrize(
    ("key", "signed"),
    [  # from Kafka's UtilsTest.testMurmur2
        (b"21", -973932308),
        (b"foobar", -790332482),
        (b"a-little-bit-long-string", -985981536),
        (b"a-little-bit-longer-string", -1486304829),
        (b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58897971),
        (b"abc", 479470107),
    ],
)
def test_murmur2_is_that_of_the_java_client(key: bytes, signed: int) -> None:
    assert murmur2(key) == signed & 0xFFFFFFFF
    assert as_partitioner("murmur2")(key, 7) == (signed & 0x7FFFFFFF) % 7


def test_crc32_is_that_of_librdkafka() -> None:
    # The check value of CRC-32 is 0xcbf43926.
    assert as_partitioner("crc32")(b"123456789", 1000) == 0xCBF43926 % 1000


@given(st.binary(), st.integers(1, 10_000), st.sampled_from(["crc32", "murmur2"]))
def test_every_key_has_a_partition(key: bytes, partitions: int, name: str) -> None:
    partitioner = as_partitioner(name)
    assert 0 <= partitioner(key, partitions) < partitions
    hashed = hash_of(partitioner)
    assert hashed is None or hashed(key) % partitions == partitioner(key, partitions)


@pytest.mark.parametrize("chosen", [-1, 3, "1", None, 1.0, True])
def test_function_that_chooses_nonsense_is_refused(chosen: object) -> None:
    with pytest.raises(InvalidArgumentError, match="of 3 partitions"):
        as_partitioner(lambda key, partitions: chosen)(b"k", 3)


def test_function_is_used() -> None:
    assert as_partitioner(lambda key, partitions: len(key) % partitions)(b"abcd", 3) == 1


def test_unknown_name_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="murmur3"):
        as_partitioner("murmur3")
