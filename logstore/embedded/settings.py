"""The embedded server's settings, chosen for a log on a machine that does other work too."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from logstore.errors import EmbeddedServerError

__all__ = ["defaults", "render"]

_MIB: Final = 1 << 20
_NAME: Final = re.compile(r"[a-z_][a-z0-9_]*(\.[a-z_][a-z0-9_]*)?")


def defaults(data_directory: Path) -> dict[str, str]:
    """Settings for this machine's memory and for the disk that holds ``data_directory``."""
    shared = min(max(memory_bytes() // 8, 128 * _MIB), 1024 * _MIB)
    wal = min(max(shutil.disk_usage(data_directory).free // 20, 256 * _MIB), 4096 * _MIB)
    return {
        "shared_buffers": f"{shared // _MIB}MB",
        "max_connections": "200",
        # A log has a table a segment: a query over all of them locks them all.
        "max_locks_per_transaction": "256",
        # Fewer checkpoints: each makes the next change of every page log the whole page.
        "max_wal_size": f"{wal // _MIB}MB",
        "min_wal_size": f"{min(wal // 2, 512 * _MIB) // _MIB}MB",
        "checkpoint_timeout": "15min",
        # Compiling takes longer than any statement of ours runs.
        "jit": "off",
        "autovacuum": "on",
        "timezone": "UTC",
        "log_timezone": "UTC",
        "log_checkpoints": "off",
        "log_autovacuum_min_duration": "-1",
        "log_line_prefix": "%m [%p] %q%a ",
        "lc_messages": "C",
    }


def fixed(socket_directory: Path) -> dict[str, str]:
    """Settings that keep the server private to its user; they cannot be overridden."""
    return {
        "listen_addresses": "",
        "unix_socket_directories": '"{}"'.format(str(socket_directory).replace('"', '""')),
        "unix_socket_permissions": "0700",
        "port": "5432",
    }


def render(settings: Mapping[str, str]) -> str:
    """The text of a configuration file."""
    lines = [
        "# Written anew at each start.  For settings of your own use ALTER SYSTEM, which wins over this file."
    ]
    for name, value in settings.items():
        if not _NAME.fullmatch(name) or "\n" in value or "\0" in value:
            raise EmbeddedServerError(f"{name!r} = {value!r} is no PostgreSQL setting.")
        escaped = value.replace("'", "''").replace("\\", "\\\\")
        lines.append(f"{name} = '{escaped}'")
    return "\n".join(lines) + "\n"


def memory_bytes() -> int:
    """The machine's memory, or the control group's limit where that is lower."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for limit in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            total = min(total, int(Path(limit).read_text()))
        except (OSError, ValueError):
            continue
    return total
