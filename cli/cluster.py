"""``logstore cluster``: a replicated log on this machine, to develop and test with."""

from __future__ import annotations

import signal
import threading
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import click

from logstore.cli.arguments import assignments, confirm, yes_option
from logstore.cli.failures import UNAVAILABLE, Unavailable
from logstore.cli.output import Column, human_bytes, note, print_json, print_rows
from logstore.cli.replicas import counts, summary_line
from logstore.cli.root import Group, connection_options, output_option, settings

if TYPE_CHECKING:
    from logstore.cluster import ClusterStatus, LocalCluster

__all__ = ["cluster"]


@click.group(
    cls=Group,
    examples=("logstore cluster up --replicas 3", "logstore cluster kill leader", "logstore cluster down"),
)
@connection_options
def cluster() -> None:
    """Run a replicated log on this machine: etcd and a Patroni group.

    Needs the extra: pip install "logstore-pg[cluster]".  Its data is below LOGSTORE_HOME.
    """


def _no_dsn(command: str) -> None:
    if settings().dsn:
        raise click.UsageError(
            f"`cluster {command}` is about a cluster of this machine's own: leave out --dsn.",
            click.get_current_context(),
        )


@cluster.command(examples=("logstore cluster up", "logstore cluster up --replicas 5"))
@click.option(
    "--replicas",
    type=click.IntRange(2, 9),
    metavar="N",
    help="PostgreSQL servers, the leader included.  [default: 3]",
)
@click.option(
    "--setting",
    "server_settings",
    metavar="NAME=VALUE",
    multiple=True,
    callback=assignments,
    help="A PostgreSQL setting, when the cluster is made.  Repeatable.",
)
@click.option("--foreground", is_flag=True, help="Stay until Ctrl-C, and stop the cluster then.")
@output_option("text", "json")
@connection_options
def up(replicas: int | None, server_settings: dict[str, str], foreground: bool) -> None:
    """Start the cluster, or whatever of it does not run.

    Returns when all members keep up and the log is there; prints the DSN to use.  What was killed by `cluster
    kill` is started again.
    """
    from logstore.cluster import LocalCluster

    _no_dsn("up")
    local = LocalCluster()
    quiet = settings().output == "json"
    found = local.up(
        replicas, server_settings, schema=settings().schema, tell=(lambda _: None) if quiet else note
    )
    # Before whoever waits for the answer can know that there is something to interrupt.
    with _staying(foreground) as stop:
        if quiet:
            print_json(_document(found))
        else:
            click.echo(f"export LOGSTORE_DSN='{found.dsn}'")
        if stop is not None:
            note("Ctrl-C stops it.")
            stop.wait()
    if foreground:
        local.down()
        note("stopped")


def _staying(foreground: bool) -> AbstractContextManager[threading.Event | None]:
    """What Ctrl-C and SIGTERM set meanwhile; None: they do what they always do."""
    from logstore.workers.stopping import stopped_by

    return stopped_by(signal.SIGINT, signal.SIGTERM) if foreground else nullcontext()


@cluster.command(examples=("logstore cluster status", "logstore cluster status --output json"))
@output_option()
@connection_options
def status() -> None:
    """Show who leads, who follows, and the DSN to use.

    Starts nothing.  Exits with 5 when the log cannot be written to.
    """
    from logstore.cluster import LocalCluster

    _no_dsn("status")
    found = LocalCluster().status()
    partitions = None if found.leader is None else _partitions(found.dsn)
    if settings().output == "json":
        print_json(_document(found) | {"partitions": partitions})
    else:
        _print_status(found)
        if partitions is not None:
            click.echo(f"      {summary_line(partitions)}")
    if found.leader is None:
        raise click.exceptions.Exit(UNAVAILABLE)


def _running() -> LocalCluster:
    from logstore.cluster import LocalCluster

    local = LocalCluster()
    found = local.status()
    if found.phase in ("absent", "stopped"):
        raise Unavailable(f"No cluster runs in {found.home}. Start it with `logstore cluster up`.")
    return local


@cluster.command(examples=("logstore cluster kill leader", "logstore cluster kill pg2"))
@click.argument("target", metavar="leader|follower|etcd|NAME")
@output_option("text", "json")
@connection_options
def kill(target: str) -> None:
    """kill -9 a member, Patroni and PostgreSQL at once, or etcd.

    It stays dead until `logstore cluster up`.  `follower` means one that is in sync.
    """
    _no_dsn("kill")
    name = _running().kill(target)
    if settings().output == "json":
        print_json({"killed": name})
    else:
        click.echo(f"killed {name}; `logstore cluster up` starts it again")


@cluster.command(examples=("logstore cluster switchover", "logstore cluster switchover --to pg2"))
@click.option("--to", metavar="NAME", help="The follower that is to lead.  [default: any that is in sync]")
@output_option("text", "json")
@connection_options
def switchover(to: str | None) -> None:
    """Let a follower lead, losing nothing."""
    _no_dsn("switchover")
    before, after = _running().switchover(to)
    if settings().output == "json":
        print_json({"before": before, "leader": after})
    else:
        click.echo(f"{after} leads; {before} follows")


@cluster.command(examples=("logstore cluster down", "logstore cluster down --remove --yes"))
@click.option("--remove", is_flag=True, help="Remove its data, too.")
@yes_option
@output_option("text", "json")
@connection_options
def down(remove: bool, yes: bool) -> None:
    """Stop the cluster.

    Its data stay, and the next `cluster up` goes on with them.
    """
    from logstore.cluster import LocalCluster

    _no_dsn("down")
    if remove:
        confirm("Remove the cluster and every record in it?", yes=yes)
    stopped = LocalCluster().down(remove=remove)
    if settings().output == "json":
        print_json({"stopped": stopped, "removed": remove})
    else:
        click.echo(("stopped" if stopped else "it was not running") + (", removed" if remove else ""))


def _partitions(dsn: str) -> dict[str, int | None] | None:
    """How many partitions there are, and how many have too few copies; None: nobody says."""
    from logstore import Admin
    from logstore.errors import LogstoreError

    try:
        with Admin(dsn, schema=settings().schema, request_timeout_ms=5000) as admin:
            return counts(admin.describe_partition_replicas())
    except LogstoreError:
        return None


def _document(found: ClusterStatus) -> dict[str, Any]:
    return {
        "phase": found.phase,
        "home": found.home,
        "dsn": found.dsn or None,
        "leader": found.leader.name if found.leader else None,
        "followers_to_wait_for": found.followers_to_wait_for,
        "server_version": found.version or None,
        "etcd": {"state": found.etcd, "port": found.etcd_port or None},
        "members": [
            {
                "name": member.name,
                "role": member.role,
                "state": member.state,
                "in_sync": member.in_sync,
                "host": member.host,
                "port": member.port,
                "timeline": member.timeline,
                "lag_bytes": member.lag_bytes,
                "pid": member.pid or None,
            }
            for member in found.members
        ],
    }


def _print_status(found: ClusterStatus) -> None:
    click.echo(f"{found.phase}  {found.home}")
    if found.phase == "absent":
        note("`logstore cluster up` makes one.")
        return
    click.echo()
    print_rows(
        (
            "MEMBER",
            "ROLE",
            "STATE",
            "IN SYNC",
            "ADDRESS",
            Column("TIMELINE", number=True),
            Column("LAG", number=True),
            Column("PID", number=True),
        ),
        [
            (
                member.name,
                member.role,
                member.state,
                "yes" if member.in_sync else "no",
                f"{member.host}:{member.port}",
                member.timeline,
                None if member.lag_bytes is None else human_bytes(member.lag_bytes),
                member.pid or None,
            )
            for member in found.members
        ],
    )
    click.echo()
    click.echo(f"etcd  {found.etcd}, 127.0.0.1:{found.etcd_port}")
    click.echo(f"DSN   {found.dsn}")
