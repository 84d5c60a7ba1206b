"""Refuse to lead where a newer timeline has left this member behind: for Patroni's ``pre_promote``.

``python divergence.py DATA_DIRECTORY PATRONI_URL FETCH`` runs on a member that is about to be promoted, and
exits with 1 if its write-ahead log goes beyond the point at which a newer timeline branched off.  Else it
leaves a file ``promoted`` beside the data directory: the timeline that begins now may be archived.

Patroni compares members by their positions in the write-ahead log, and learns of a new timeline a second
after it began.  A leader that died and comes back has more of its old timeline than the others had when one
of them was promoted; if that one dies before Patroni knows, the old leader looks like the one that is ahead,
and what the new one acknowledged meanwhile would be gone.  PostgreSQL itself knows better: the history of a
timeline, archived as it begins, says where it branched off.  ``FETCH`` is ``restore_command``, which finds
it (``%f``: the file, ``%p``: where to put it).

Only what is certain counts: a member that cannot find out is not held up.  Runs without the rest of logstore,
because a failover waits for it.
"""

from __future__ import annotations

import http.client
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

__all__ = ["Branch", "branches", "left_behind", "main"]

_SEGMENT: Final = re.compile(r"([0-9A-F]{8})[0-9A-F]{16}(\.partial)?\Z")
_PLACE: Final = re.compile("(%[fpr%])")
_ENOUGH_MISSES: Final = 3
"""A timeline may be missing from the archive: whoever began it died before it was archived."""
_TIMEOUT_S: Final = 2.0


@dataclass(frozen=True, slots=True)
class Branch:
    """A timeline, and where each of those before it ended, in bytes of the write-ahead log."""

    timeline: int
    ends: Mapping[int, int]

    @classmethod
    def of(cls, timeline: int, history: str) -> Branch:
        """``history``: the text of a timeline's history file."""
        ends = {}
        for line in history.splitlines():
            words = line.split()
            if len(words) >= 2 and words[0].isdigit() and "/" in words[1]:
                high, _, low = words[1].partition("/")
                ends[int(words[0])] = (int(high, 16) << 32) + int(low, 16)
        return cls(timeline, ends)


def left_behind(timeline: int, position: int, newer: Iterator[Branch]) -> Branch | None:
    """The first timeline that does not go on from this position of this timeline, if there is one."""
    for branch in newer:
        end = branch.ends.get(timeline)
        if end is None or position > end:
            return branch
    return None


def branches(after: int, fetch: str) -> Iterator[Branch]:
    """The timelines with higher numbers whose histories are in the archive."""
    with tempfile.TemporaryDirectory(prefix="logstore-histories-") as directory:
        misses, timeline = 0, after
        while misses < _ENOUGH_MISSES:
            timeline += 1
            place = Path(directory, str(timeline))
            words = {"%f": f"{timeline:08X}.history", "%p": str(place), "%r": "0" * 24, "%%": "%"}
            command = "".join(words.get(part, part) for part in _PLACE.split(fetch))
            try:
                subprocess.run(command, shell=True, check=True, stdin=subprocess.DEVNULL)
                found = Branch.of(timeline, place.read_text())
            except (OSError, ValueError, subprocess.CalledProcessError):
                misses += 1
            else:
                misses = 0
                yield found


def timeline_of(data: Path) -> int:
    """The newest timeline of which there is write-ahead log in a data directory; 0 if there is none."""
    found = (_SEGMENT.match(entry.name) for entry in (data / "pg_wal").iterdir())
    return max((int(segment[1], 16) for segment in found if segment), default=0)


def position_of(url: str) -> int:
    """How far the member has received or replayed, says its Patroni."""
    address = urlsplit(url)
    with closing(
        http.client.HTTPConnection(address.hostname or "", address.port, timeout=_TIMEOUT_S)
    ) as connection:
        connection.request("GET", "/patroni")
        said = json.loads(connection.getresponse().read())["xlog"]
    return max(int(said.get(f"{what}_location") or 0) for what in ("received", "replayed"))


def main(arguments: list[str]) -> int:
    """See the module."""
    place, url, fetch = arguments
    data = Path(place).resolve()
    try:
        mine, position = timeline_of(data), position_of(url)
        newer = left_behind(mine, position, branches(mine, fetch))
    except (OSError, http.client.HTTPException, ValueError, KeyError, TypeError) as error:
        print(f"whether a newer timeline left this member behind is not known: {error!r}", file=sys.stderr)
        newer = None
    if newer is None:
        try:
            (data.parent / "promoted").touch(mode=0o600)
        except OSError as error:
            print(f"the timeline that begins will not be archived: {error}", file=sys.stderr)
        return 0
    end = newer.ends.get(mine)
    where = f"at {end >> 32:X}/{end & 0xFFFFFFFF:X}" if end is not None else "before it began"
    here = f"{position >> 32:X}/{position & 0xFFFFFFFF:X} of timeline {mine}"
    print(
        f"not promoted: this member is at {here}, which timeline {newer.timeline} left {where}",
        file=sys.stderr,
    )
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
