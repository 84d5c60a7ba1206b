"""A few faults on a real cluster, and the judge; the long runs are ``make test-cluster``."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cluster.storm import Storm, run

pytestmark = pytest.mark.long

SHORT = Storm(
    seed=1,
    fixed=("members cut", "clocks stepped", "waits cancelled and leader killed"),
    longest_hold_s=1.0,
    producers=3,
    groups=1,
    pause_s=0.1,
)


@pytest.mark.timeout(400)
def test_nothing_promised_is_lost_in_a_short_storm(tmp_path: Path) -> None:
    report = run(SHORT, tmp_path)
    print(report)
    assert report.ok, f"{report}\nhistory and logs: {tmp_path}"
    assert len(report.rows) == len(SHORT.fixed)
    assert report.verdict.acknowledged > 200
