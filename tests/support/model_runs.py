"""The models of retention and compaction against the real thing, at length.

``python -m tests.support.model_runs --examples 300`` runs it on an embedded server.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from contextlib import closing

from tests.sql.test_compaction_model import Compaction
from tests.sql.test_retention_model import Retention
from tests.support.clock import Clock
from tests.support.log_machine import hold
from tests.support.log_story import connect
from tests.support.servers import embedded


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Hold retention and compaction against their models.")
    parser.add_argument("--examples", type=int, default=200)
    parser.add_argument("--steps", type=int, default=40)
    options = parser.parse_args(arguments)
    with embedded() as server:
        for machine in (Retention, Compaction):
            dsn = server.create()
            with closing(connect(dsn)) as session, Clock(dsn) as clock:
                hold(
                    machine,
                    dsn,
                    session,
                    clock,
                    examples=options.examples,
                    steps=options.steps,
                    shrink=True,
                )
            server.drop(dsn)
            print(f"{machine.__name__}: {options.examples} stories, each as the model says", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
