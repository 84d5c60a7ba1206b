"""A member that a newer timeline left behind is found out, from the histories in the archive."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from logstore.cluster import divergence
from logstore.cluster.configuration import Histories
from logstore.cluster.divergence import Branch, branches, left_behind

FORK = 0x0_0688_2620
HISTORY = f"1\t0/5890D78\tno recovery target specified\n\n6\t0/{FORK:X}\tno recovery target specified\n"


def test_a_history_says_where_each_timeline_ended() -> None:
    assert Branch.of(7, HISTORY).ends == {1: 0x5890D78, 6: FORK}
    assert Branch.of(2, "1\tA/10\tbefore 2000-01-01\n").ends == {1: (10 << 32) + 16}
    assert Branch.of(2, "# by hand\n").ends == {}


@pytest.mark.parametrize(
    ("timeline", "position", "behind"),
    [
        (6, FORK, False),
        (6, FORK - 1, False),
        (6, FORK + 1, True),
        (1, FORK, True),
        (1, 0x5890D78, False),
        (5, 0, True),  # 7 knows nothing of a timeline 5
    ],
)
def test_who_is_beyond_the_branch_is_left_behind(timeline: int, position: int, behind: bool) -> None:
    found = left_behind(timeline, position, iter([Branch.of(7, HISTORY)]))
    assert (found is not None) is behind


@given(st.lists(st.integers(0, 1 << 40), min_size=1, max_size=5), st.integers(0, 1 << 40))
def test_a_member_has_to_be_an_ancestor_of_every_newer_timeline(ends: list[int], position: int) -> None:
    newer = [Branch(number, {1: end}) for number, end in enumerate(ends, start=2)]
    found = left_behind(1, position, iter(newer))
    assert (found is None) is (position <= min(ends))


def archived(directory: Path, *timelines: int) -> str:
    directory.mkdir()
    for timeline in timelines:
        (directory / f"{timeline:08X}.history").write_text(HISTORY)
    return f"cp '{directory}/%f' %p 2>/dev/null"


def test_histories_are_fetched_as_the_server_fetches_them(tmp_path: Path) -> None:
    fetch = archived(tmp_path / "100% sure", 7, 9, 14).replace("100%", "100%%")
    # 8 is missing: whoever began it died first. 10 to 13 never were.
    assert [branch.timeline for branch in branches(6, fetch)] == [7, 9]
    assert list(branches(14, fetch)) == []


@contextmanager
def member(position: int) -> Iterator[str]:
    """What Patroni says of a follower."""

    class Interface(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            said = {"received_location": None, "replayed_location": position}
            self.wfile.write(json.dumps({"xlog": said}).encode())

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Interface) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def run(data: Path, url: str, fetch: str) -> subprocess.CompletedProcess[str]:
    """As Patroni runs it, without the rest of logstore."""
    return subprocess.run(
        [sys.executable, "-I", divergence.__file__, data, url, fetch],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip


def test_it_runs_by_itself(tmp_path: Path) -> None:
    log = tmp_path / "data" / "pg_wal"
    log.mkdir(parents=True)
    for name in (
        "000000060000000000000006",
        "000000050000000000000005.partial",
        "00000006.history",
        "00000008",
    ):
        (log / name).touch()
    fetch = archived(tmp_path / "histories", 7)
    with member(FORK) as url:
        assert run(log.parent, url, fetch).returncode == 0
    (tmp_path / "promoted").unlink()
    with member(FORK + 1) as url:
        refused = run(log.parent, url, fetch)
        assert refused.returncode == 1
        assert "0/6882621 of timeline 6, which timeline 7 left at 0/6882620" in refused.stderr
        assert not (tmp_path / "promoted").exists()
        # A member that has some of the newer timeline is on it.
        (log / "000000070000000000000006").touch()
        assert run(log.parent, url, fetch).returncode == 0


def test_who_cannot_find_out_is_not_held_up(tmp_path: Path) -> None:
    done = run(tmp_path / "nowhere", "http://127.0.0.1:1", "false")
    assert (tmp_path / "promoted").exists()
    assert done.returncode == 0
    assert "not known" in done.stderr


def test_only_what_patroni_promoted_is_archived(tmp_path: Path) -> None:
    """A member that is promoted past it is no leader: nobody is to take its timeline for a newer one."""
    data, archive = tmp_path / "data", tmp_path / "it's 100%"
    data.mkdir()
    archive.mkdir()
    histories = Histories(archive)

    def server(command: str, file: str) -> int:
        """As PostgreSQL does it: in the data directory."""
        words = {"%f": file, "%p": file, "%%": "%"}
        text = re.sub("%[fp%]", lambda found: words[found[0]], command)
        return subprocess.run(["sh", "-c", text], cwd=data, check=False, timeout=60).returncode

    for name in ("00000002.history", "00000003.history", "000000010000000000000001"):
        (data / name).write_text(name)
    keep, fetch = histories.keep(None), histories.fetch(None)
    assert server(keep, "00000002.history") == 0
    assert list(archive.iterdir()) == []
    (tmp_path / "promoted").touch()
    assert server(keep, "000000010000000000000001") == 0
    assert server(keep, "00000002.history") == 0
    # One promotion, one timeline.
    assert server(keep, "00000003.history") == 0
    assert [each.name for each in archive.iterdir()] == ["00000002.history"]
    # Nobody else's is overwritten.
    (archive / "00000002.history").write_text("the first")
    (tmp_path / "promoted").touch()
    assert server(keep, "00000002.history") == 0
    assert (archive / "00000002.history").read_text() == "the first"
    (data / "00000002.history").unlink()
    assert server(fetch, "00000002.history") == 0
    assert (data / "00000002.history").read_text() == "the first"
    assert server(fetch, "00000009.history") != 0
    assert server(histories.keep("touch then"), "000000010000000000000001") == 0
    assert (data / "then").exists()
    assert server(histories.keep("false"), "000000010000000000000001") != 0
    assert server(histories.fetch("touch %f"), "00000009.history") == 0
    assert (data / "00000009.history").exists()
