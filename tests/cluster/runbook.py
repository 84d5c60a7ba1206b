"""The commands of the runbooks in docs/replication.md, run on a local cluster as they stand there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Final

from logstore.cluster import LocalCluster
from tests.docs.snippets import blocks
from tests.support.programs import REPOSITORY

__all__ = ["Runbook"]

PAGE: Final = REPOSITORY / "docs" / "replication.md"


class Runbook:
    """The section with this heading."""

    def __init__(self, cluster: LocalCluster, heading: str) -> None:
        text = PAGE.read_text()
        section = re.search(rf"^### {re.escape(heading)}\n(.*?)(?=^##|\Z)", text, re.M | re.S)
        assert section is not None, heading
        self.blocks = [block.text for block in blocks(section[1]) if block.language == "sh"]
        self._cluster = cluster
        self.said = ""

    def run(self, number: int = 0, *, on: str, **variables: str) -> str:
        """Run a block on member ``on``; what it prints.  Every command in it has to succeed."""
        place = self._cluster.layout.place(on)
        environment = {
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "LOGSTORE_HOME": str(self._cluster.layout.path.parent),
            "PATRONICTL_CONFIG_FILE": str(place.configuration),
            "DATA": str(place.data),
            "COLUMNS": "200",
            **variables,
        }
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", self.blocks[number]],
            env=environment, capture_output=True, text=True, check=False, timeout=240,
        )  # fmt: skip
        self.said = done.stdout + done.stderr
        assert done.returncode == 0, self.said
        return self.said
