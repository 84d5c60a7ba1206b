"""``auto_offset_reset`` is read as Kafka reads it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from logstore._core.calls import EARLIEST, LATEST
from logstore._core.reset import ResetPolicy, duration_ms
from logstore.errors import ConfigurationError

NOW = 1_700_000_000_000


@pytest.mark.parametrize(
    ("text", "spec"),
    [
        ("earliest", EARLIEST),
        ("Latest", LATEST),
        ("none", None),
        ("by_duration:PT1H", NOW - 3_600_000),
        ("by_duration:PT0S", NOW),
        ("by_duration:P36500D", 0),
    ],
)
def test_policy_says_what_to_ask_for(text: str, spec: int | None) -> None:
    assert ResetPolicy.parse(text).spec(NOW) == spec


@pytest.mark.parametrize("text", ["", "smallest", "by_duration:", "by_duration", "by_duration:1h", None, 7])
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(ConfigurationError, match=r"auto_offset_reset|duration"):
        ResetPolicy.parse(text)


@pytest.mark.parametrize(
    ("text", "ms"),
    [("PT1S", 1000), ("pt1.5s", 1500), ("PT0,25S", 250), ("P1W", 604_800_000), ("P1DT2H3M4S", 93_784_000)],
)
def test_duration(text: str, ms: int) -> None:
    assert duration_ms(text) == ms


@pytest.mark.parametrize("text", ["P", "PT", "P1Y", "P1M", "-PT1S", "PT-1S", "PT1S ", "1D", "P1DT", "PT١S"])
def test_what_has_no_fixed_length_is_no_duration(text: str) -> None:
    with pytest.raises(ConfigurationError, match="ISO 8601"):
        duration_ms(text)


@given(
    st.integers(0, 999),
    st.integers(0, 99),
    st.integers(0, 99),
    st.integers(1, 99_999).map(lambda ms: ms / 1000),
)
def test_duration_adds_up(days: int, hours: int, minutes: int, seconds: float) -> None:
    expected = ((days * 24 + hours) * 60 + minutes) * 60_000 + round(seconds * 1000)
    assert duration_ms(f"P{days}DT{hours}H{minutes}M{seconds:.3f}S") == expected
