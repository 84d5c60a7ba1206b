"""A few hours of a few topics in seconds: disk stays what the configs allow, and nothing else grows."""

from __future__ import annotations

import pytest

from tests.support.clock import HOUR_MS, MINUTE_MS
from tests.support.servers import Server
from tests.support.simulated_day import Plan, live

pytestmark = pytest.mark.long


def test_a_log_takes_what_its_configs_allow(server: Server) -> None:
    day = live(server, Plan(topics=4, length_ms=12 * HOUR_MS, tick_ms=30 * MINUTE_MS, busy=2.0, seed=3))
    assert day.problems == []
    assert day.segments < day.segments_made / 2
    assert day.needed > 2_000_000
