"""How far a follower is behind, by seals and one clock."""

from __future__ import annotations

from logstore._core.replica_lag import ReplicaLag


def looked_at(longest_s: float = 5.0) -> ReplicaLag:
    lag = ReplicaLag(longest_s)
    lag.begin(0.0)
    return lag


def test_nothing_is_known_before_the_leader_was_asked() -> None:
    lag = looked_at()
    lag.follower_has(7, 1.0)
    assert (lag.caught_up, lag.too_far) == (False, False)
    lag.leader_has(7, 1.5)
    assert (lag.caught_up, lag.too_far) == (True, False)


def test_a_follower_is_behind_since_the_leader_had_what_it_lacks() -> None:
    lag = looked_at()
    lag.leader_has(7, 1.0)
    lag.leader_has(8, 3.0)
    lag.follower_has(6, 4.0)
    assert lag.behind_s == 3.0
    lag.follower_has(7, 4.5)
    assert (lag.behind_s, lag.too_far) == (1.5, False)
    lag.follower_has(7, 8.5)
    assert (lag.behind_s, lag.too_far) == (5.5, True)
    lag.follower_has(8, 9.0)
    assert lag.behind_s == 0
    assert lag.caught_up


def test_time_alone_is_no_lag() -> None:
    """What the leader had is not missing before the follower was asked for it."""
    lag = looked_at()
    lag.follower_has(7, 0.0)
    lag.leader_has(8, 0.1)
    lag.leader_has(8, 100.0)
    assert lag.behind_s == 0
    lag.follower_has(8, 100.0)
    assert lag.behind_s == 0


def test_a_leader_without_seals_is_not_ahead() -> None:
    lag = looked_at()
    lag.leader_has(None, 1.0)
    lag.follower_has(None, 10.0)
    assert lag.caught_up


def test_another_follower_is_asked_anew() -> None:
    lag = looked_at()
    lag.leader_has(7, 1.0)
    lag.follower_has(7, 2.0)
    lag.begin(3.0)
    assert not lag.caught_up
    lag.leader_has(7, 3.5)
    lag.follower_has(6, 4.0)
    assert lag.behind_s == 1.0
    assert not lag.caught_up


def test_what_a_lost_history_had_is_not_waited_for() -> None:
    lag = looked_at(1.0)
    lag.leader_has(9, 1.0)
    lag.follower_has(7, 1.5)
    lag.leader_has(7, 2.0)  # another one leads, who never had it
    lag.follower_has(7, 9.0)
    assert lag.caught_up


def test_looks_are_often_enough_and_not_more() -> None:
    assert ReplicaLag(5.0).look_every_s() == 1.0
    assert ReplicaLag(0.1).look_every_s() == 0.05
