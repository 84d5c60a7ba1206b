"""Percentiles and pacing."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from logstore.cli.latency import summarize
from logstore.cli.load import Payloads


def test_percentiles_are_latencies_that_were_seen() -> None:
    found = summarize([number / 1000 for number in range(1000, 0, -1)])
    assert found.samples == 1000
    assert [round(value) for value in found[2:]] == [500, 950, 990, 999, 1000]
    assert found.avg == pytest.approx(500.5)


def test_without_samples_there_are_no_figures() -> None:
    found = summarize([])
    assert found.document()["p99"] is None
    assert "p50 -" in found.line()


@given(st.lists(st.floats(0, 1000), min_size=1))
def test_percentiles_never_fall(seconds: list[float]) -> None:
    found = summarize(seconds)
    ordered = found[2:]
    assert list(ordered) == sorted(ordered)
    assert ordered[-1] == max(seconds) * 1000


def test_payloads_have_the_size_and_the_keys_that_were_asked_for() -> None:
    made = Payloads.make(100, 3)
    assert {len(value) for value in made.values} == {100}
    assert len(set(made.values)) > 1000
    assert made.keys == [b"key-000000000000", b"key-000000000001", b"key-000000000002"]
    assert Payloads.make(8, 0).keys is None
