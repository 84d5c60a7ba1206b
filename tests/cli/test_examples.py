"""Every script of examples/ runs, and runs again on what it left."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
SAYS = {
    "first_steps.py": "b'alice' b'hello'",
    "follow_async.py": "tick 4",
    "work_queue.py": "left to do: 0",
    "web_log.py": "66.249.73.135 made ",
}


def test_every_example_is_run() -> None:
    # The group of eight has a test of its own, with its groups: it runs for a while and kills processes.
    assert {path.name for path in EXAMPLES.glob("*.py")} == SAYS.keys() | {"group_of_eight.py"}


@pytest.mark.parametrize("name", sorted(SAYS))
@pytest.mark.long
def test_an_example_runs_twice(name: str, database: str) -> None:
    # A quarter of the requests that it takes by itself: with all of them it is as right, and longer.
    arguments = [str(EXAMPLES / "data" / "apache_access.log"), "500"] if name == "work_queue.py" else []
    for _ in range(2):
        answer = subprocess.run(
            [sys.executable, "-W", "error", str(EXAMPLES / name), *arguments],
            env={**os.environ, "LOGSTORE_DSN": database},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert (answer.returncode, answer.stderr) == (0, "")
        assert SAYS[name] in answer.stdout
