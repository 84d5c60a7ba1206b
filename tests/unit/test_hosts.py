"""The hosts of a DSN: order, fitness, and what is said when none will do."""

from __future__ import annotations

import pytest

from logstore._core.hosts import Access, Group, Roster, Standing, none_will_do, not_wanted
from logstore.errors import (
    AuthenticationFailedError,
    ConfigurationError,
    ConnectionFailedError,
    NotLeaderError,
    SchemaMissingError,
)

LEADER = Access(follower=False, read_only=False)
FOLLOWER = Access(follower=True, read_only=True)
CLOSED = Access(follower=False, read_only=True)


def three(**more: str) -> Roster:
    return Roster({"host": "a,b,c", "port": "1,2,3", "dbname": "log", "user": "u", **more})


def places(roster: Roster) -> list[str]:
    return [host.place for host in roster.hosts]


def test_each_host_has_its_own_port_and_everything_else_in_common() -> None:
    roster = three(passfile="/p", target_session_attrs="any")
    assert places(roster) == ["a:1", "b:2", "c:3"]
    assert roster.hosts[1].parameters == {
        "host": "b", "port": "2", "dbname": "log", "user": "u", "passfile": "/p"
    }  # fmt: skip
    assert roster.hosts[1].where == "b:2/log as u"


def test_one_port_serves_all_hosts_and_an_empty_one_is_the_default() -> None:
    assert places(Roster({"host": "a,b", "port": "7"})) == ["a:7", "b:7"]
    assert places(Roster({"host": "a,b", "port": "7,"})) == ["a:7", "b:5432"]


def test_a_single_host_is_left_as_it_is() -> None:
    given = {"host": "a", "target_session_attrs": "read-write", "service": "s"}
    roster = Roster(given)
    assert not roster.several
    assert roster.hosts[0].parameters == given


@pytest.mark.parametrize(
    "wrong",
    [
        {"host": "a,b,c", "port": "1,2"},
        {"host": "a", "port": "1,2"},
        {"host": "a,b", "hostaddr": "127.0.0.1"},
        {"host": "a,b", "target_session_attrs": "writable"},
    ],
)
def test_lists_that_do_not_fit_are_refused(wrong: dict[str, str]) -> None:
    with pytest.raises(ConfigurationError):
        Roster(wrong)


def test_several_hosts_mean_their_leader_unless_told_otherwise() -> None:
    assert three().wanted == "read-write"
    assert three(target_session_attrs="standby").wanted == "standby"
    assert Roster({"host": "a"}).wanted == "any"


@pytest.mark.parametrize(
    ("wanted", "fit"),
    [
        ("any", [LEADER, FOLLOWER, CLOSED]),
        ("read-write", [LEADER]),
        ("read-only", [FOLLOWER, CLOSED]),
        ("primary", [LEADER, CLOSED]),
        ("standby", [FOLLOWER]),
    ],
)
def test_what_will_do(wanted: str, fit: list[Access]) -> None:
    assert [access for access in (LEADER, FOLLOWER, CLOSED) if access.will_do(wanted)] == fit


def test_why_a_server_takes_no_writes() -> None:
    assert LEADER.refusal() == ""
    assert LEADER.refusal(in_recovery=True) == "is a follower"
    assert FOLLOWER.refusal() == "is a follower"
    assert "default_transaction_read_only" in CLOSED.refusal()


def test_the_last_choice_is_tried_first_and_the_silent_last() -> None:
    roster = three()
    a, b, _ = roster.hosts
    roster.chosen(b)
    assert places(roster) == ["b:2", "a:1", "c:3"]
    roster.silent(b)
    roster.silent(a)
    assert places(roster) == ["c:3", "b:2", "a:1"]


def test_when_none_will_do_every_host_is_named_with_its_cause() -> None:
    a, b, c = three().hosts
    down = ConnectionFailedError("No connection to a:1/log: refused.")
    follower = not_wanted("b:2/log", FOLLOWER)
    wrong = AuthenticationFailedError("No connection to c:3/log: password authentication failed.")
    refused = none_will_do("read-write", [(a, down), (b, follower), (c, wrong)])
    assert isinstance(refused, AuthenticationFailedError)
    for place in ("a:1", "b:2", "c:3"):
        assert place in refused.message
    nobody_leads = none_will_do("read-write", [(a, down), (b, follower)])
    assert isinstance(nobody_leads, NotLeaderError)
    assert "b:2/log is a follower" in nobody_leads.message
    assert isinstance(none_will_do("read-write", [(a, down)]), ConnectionFailedError)
    no_log = SchemaMissingError("c:3 holds no log.")
    assert none_will_do("read-write", [(a, down), (c, no_log)]) is no_log


def test_hosts_of_two_clusters_are_told_apart() -> None:
    a, b, c = three().hosts
    group = Group()
    group.admit(a, Standing("77", None))
    group.admit(b, Standing("77", 3))
    group.admit(c, Standing())
    with pytest.raises(ConfigurationError, match=r"a:1 is 77, that of c:3 is 78"):
        group.admit(c, Standing("78", None))


def test_a_leader_of_the_past_is_not_admitted() -> None:
    a, b, _ = three().hosts
    group = Group()
    group.admit(a, Standing("77", 3))
    group.admit(b, Standing("77", 4))
    with pytest.raises(NotLeaderError, match="a:1/log as u has been replaced: it is on timeline 3"):
        group.admit(a, Standing("77", 3))
    group.admit(a, Standing("77", None))


def test_a_timeline_is_read_from_the_name_of_a_segment() -> None:
    assert Standing.decode([("77", "0000001A")]) == Standing("77", 26)
    assert Standing.decode([("77", None)]) == Standing("77", None)
