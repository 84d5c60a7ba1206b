"""Ctrl-C and SIGTERM for the commands that go on until then, at moments that are hard to hit."""

from __future__ import annotations

import signal
from typing import Any

import click
import pytest

from logstore.cli.failures import guarded
from logstore.cli.mirror import _told_to_stop
from logstore.cli.root import root
from logstore.cluster import ClusterStatus
from tests.support.programs import line_of, program


def test_a_signal_while_the_main_thread_begins_to_wait() -> None:
    """The handler runs in the main thread, which has the event's lock in hand."""
    with _told_to_stop() as stop:
        with stop._cond:  # type: ignore[attr-defined]
            signal.raise_signal(signal.SIGTERM)
        assert stop.wait(20)


def test_a_second_ctrl_c_ends_a_mirror() -> None:
    text = """
        import sys
        from logstore.cli.mirror import _told_to_stop
        with _told_to_stop() as stop:
            print("on", flush=True)
            stop.wait()
            print("told", flush=True)
            sys.stdin.read()
    """
    with program(text) as process:
        assert line_of(process.stdout) == "on"
        process.send_signal(signal.SIGINT)
        assert line_of(process.stdout) == "told"
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 130


def test_a_cluster_in_the_foreground_is_stopped_as_soon_as_its_dsn_can_be_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    said: list[str] = []

    class Cluster:
        def up(self, *_: Any, **__: Any) -> ClusterStatus:
            return ClusterStatus("ready", "home", dsn="postgresql://there")

        def down(self) -> bool:
            said.append("down")
            return True

    def echo(text: str = "", **_: Any) -> None:
        said.append(text)
        if "LOGSTORE_DSN" in text:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr("logstore.cluster.LocalCluster", Cluster)
    monkeypatch.setattr(click, "echo", echo)
    assert guarded(root, ["cluster", "up", "--foreground"]) == 0
    assert said == ["export LOGSTORE_DSN='postgresql://there'", "Ctrl-C stops it.", "down", "stopped"]
