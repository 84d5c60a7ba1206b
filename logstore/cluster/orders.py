"""What the supervisor is told on its command line, and what it says of itself."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields

from logstore.cluster.layout import Layout, read_json

__all__ = ["Orders", "Report"]


@dataclass(frozen=True, slots=True)
class Orders:
    """What the supervisor is told at its start."""

    path: str
    """The cluster's directory."""
    namespaces: bool = True
    """Use a user namespace where we are root and the system allows one."""

    def encode(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def decode(cls, text: str) -> Orders:
        return cls(**json.loads(text))


@dataclass(frozen=True, slots=True)
class Report:
    """What the supervisor last said."""

    phase: str = "stopped"
    """``running``, ``stopping``, ``stopped`` or ``failed``."""
    pid: int = 0
    version: str = ""
    """PostgreSQL's."""
    message: str = ""
    advice: str = ""

    @classmethod
    def read(cls, layout: Layout) -> Report:
        """``stopped`` where there is none."""
        known = {each.name for each in fields(cls)}
        # Another release may say more, or less.
        said = read_json(layout.status_file)
        return cls(**{name: word for name, word in said.items() if name in known})

    def write(self, layout: Layout) -> None:
        draft = layout.status_file.with_suffix(".new")
        draft.write_text(json.dumps(asdict(self)) + "\n")
        draft.replace(layout.status_file)
