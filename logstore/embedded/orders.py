"""What a supervisor is told on its command line."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict, dataclass, field

__all__ = ["Orders", "worker_wanted"]


def worker_wanted() -> bool:
    """``LOGSTORE_WORKER`` does not say off."""
    return os.environ.get("LOGSTORE_WORKER", "").strip().lower() not in ("off", "0", "false", "no")


@dataclass(frozen=True)
class Orders:
    """What the supervisor is told at its start."""

    home: str
    settings: dict[str, str] = field(default_factory=dict)
    idle_s: float = 30.0
    """Seconds without users after which the server is stopped."""
    throw_away: bool = False
    """Remove the home directory at the end."""
    programs: str = ""
    """The directory of PostgreSQL's programs; default: looked for."""
    namespaces: bool = True
    """Use a user namespace where we are root and the system allows one."""
    guard: bool = sys.platform != "linux"
    """Let a second process stop the server if the supervisor dies."""
    bind: bool = sys.platform == "linux"
    """Let the kernel do so."""
    worker: bool = True
    """Run a worker for the logs that are noted."""
    patience_s: float = 15.0
    """Seconds that an orphaned server may take to stop by itself."""

    def encode(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def decode(cls, text: str) -> Orders:
        return cls(**json.loads(text))
