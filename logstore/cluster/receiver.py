"""A follower that receives the write-ahead log from a server that it was told to leave.

PostgreSQL takes no notice of a new ``primary_conninfo`` that comes while its walreceiver waits at the end of
a timeline: the receiver goes on with the connection that it has.  If that leads to a leader of the past, it
lasts, for a follower passes on what it receives; but whom the new leader does not see, that one is not in
sync.  Patroni finds the difference, and has the configuration read again each round, in vain.
"""

from __future__ import annotations

import re
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from logstore.cluster.layout import Place

if TYPE_CHECKING:
    import psutil

__all__ = ["astray"]

_UPSTREAM: Final = re.compile(r"^primary_conninfo = '.*\bport=(\d+)", re.MULTILINE)


def astray(place: Place) -> psutil.Process | None:
    """The walreceiver of a member, if it is connected to another port than the configuration says."""
    import psutil

    with suppress(OSError, ValueError, psutil.Error):
        wanted = _UPSTREAM.findall((place.data / "postgresql.conf").read_text())
        postmaster = int((place.data / "postmaster.pid").read_text().split("\n", 1)[0])
        for process in psutil.Process(postmaster).children():
            if "walreceiver" in " ".join(process.cmdline()):
                found = {each.raddr.port for each in process.net_connections("tcp") if each.raddr}
                return process if wanted and found and int(wanted[-1]) not in found else None
    return None
