"""How a client keeps to its quota."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from logstore._core.throttle import ASK_EVERY_S, LOG_EVERY_S, Throttle, refused_for_ms


def test_nothing_is_waited_for_before_the_server_says_so() -> None:
    throttle = Throttle()
    assert (throttle.left(5.0), throttle.pause(5.0), throttle.to_ask(5.0)) == (0, 0, False)
    assert throttle.told(0, 5.0) is False
    assert (throttle.left(5.0), throttle.pause(5.0), throttle.to_ask(99.0)) == (0, 0, False)
    assert throttle.by_name("fetch") == {"fetch-throttle-time-avg": 0, "fetch-throttle-time-max": 0}


def test_it_waits_as_long_as_told_and_no_longer() -> None:
    throttle = Throttle()
    assert throttle.told(1500, 10.0) is True
    assert (throttle.left(10.0), throttle.left(11.0), throttle.left(11.5)) == (1.5, 0.5, 0)
    assert throttle.told(100, 11.0) is False, "once a minute is enough for a log"
    assert throttle.left(11.0) == 0.5, "an answer that was on its way does not end it"
    assert throttle.told(100, 10.0 + LOG_EVERY_S) is True
    throttle.told(0, 80.0)
    assert throttle.by_name("produce") == {
        "produce-throttle-time-avg": 425,
        "produce-throttle-time-max": 1500,
    }


def test_a_long_wait_is_asked_about_and_may_only_become_shorter() -> None:
    throttle = Throttle()
    throttle.told(60_000, 0.0)
    assert throttle.pause(0.0) == ASK_EVERY_S
    assert not throttle.to_ask(ASK_EVERY_S - 0.1)
    assert throttle.to_ask(ASK_EVERY_S)
    assert not throttle.to_ask(ASK_EVERY_S), "one asks, not everybody"
    throttle.asked(90_000, ASK_EVERY_S)
    assert throttle.left(ASK_EVERY_S) == 60 - ASK_EVERY_S, "what others used since is theirs to wait for"
    assert throttle.to_ask(2 * ASK_EVERY_S)
    throttle.asked(None, 2 * ASK_EVERY_S)
    assert throttle.to_ask(3 * ASK_EVERY_S), "no answer: it asks again"
    throttle.asked(0, 7.0)
    assert (throttle.left(7.0), throttle.pause(7.0), throttle.to_ask(10.0)) == (0, 0, False)


@given(
    st.lists(
        st.tuples(st.floats(0, 5), st.sampled_from(["told", "asked", "look"]), st.integers(0, 20_000)),
        max_size=40,
    )
)
def test_it_never_waits_longer_than_the_longest_it_was_told(steps: list[tuple[float, str, int]]) -> None:
    throttle, now, end = Throttle(), 0.0, 0.0
    for pause, step, ms in steps:
        now += pause
        if step == "told":
            throttle.told(ms, now)
            end = max(end, now + ms / 1000) if ms else end
        elif step == "asked" and throttle.to_ask(now):
            throttle.asked(ms, now)
            end = min(end, now + ms / 1000)
        assert throttle.left(now) == pytest.approx(max(0.0, end - now))
        assert throttle.pause(now) <= throttle.left(now) + 1e-6
        assert throttle.pause(now) <= ASK_EVERY_S + 1e-6


@pytest.mark.parametrize(
    ("details", "ms"),
    [({"throttle_time_ms": 12_000}, 12_000), ({}, 1000), ({"throttle_time_ms": "x"}, 1000)],
)
def test_a_refusal_says_how_long(details: dict[str, object], ms: int) -> None:
    assert refused_for_ms(details) == ms
