"""The long run: every kind of fault at least once, then more, from a seed (``make test-cluster SEED=7``)."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from pathlib import Path

import pytest

from tests.cluster.storm import Storm, run

SEED = int(os.environ.get("LOGSTORE_TEST_SEED") or time.time_ns() % 10_000)
FAULTS = int(os.environ.get("LOGSTORE_TEST_FAULTS") or 30)


@pytest.mark.timeout(7200)
def test_nothing_promised_is_lost_in_a_storm(capfd: pytest.CaptureFixture[str]) -> None:
    storm = Storm(SEED, FAULTS)
    directory = Path(tempfile.mkdtemp(prefix="logstore-storm-"))

    def tell(text: str) -> None:
        with capfd.disabled():
            print(text, flush=True)

    report = run(storm, directory, tell)
    tell(str(report))
    assert report.ok, f"{report}\nhistory and logs: {directory}; to repeat it: {storm.command}"
    assert len(report.rows) == FAULTS
    shutil.rmtree(directory)
