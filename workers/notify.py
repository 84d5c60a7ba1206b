"""Tell the service manager how the process does (systemd's notification protocol; nothing elsewhere)."""

from __future__ import annotations

import contextlib
import os
import socket

__all__ = ["tell"]


def tell(state: str) -> None:
    """Send ``READY=1``, ``WATCHDOG=1`` or ``STOPPING=1``, if a service manager has asked for it."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if address[:1] not in ("/", "@"):
        return
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as there:
        there.connect(address.replace("@", "\0", 1) if address[0] == "@" else address)
        there.send(state.encode())
