"""The circuit breaker, with a clock that is moved by hand; and how long is waited before another try."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.tasks.chat.circuit_breaker import CircuitBreaker, CircuitState
from server.tasks.chat.router import full_jitter

OPEN_SECONDS, WINDOW = 10.0, 30.0


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def breaker(clock: Clock) -> CircuitBreaker:
    return CircuitBreaker("p", failures=3, window_seconds=WINDOW, open_seconds=OPEN_SECONDS, clock=clock)


def enter(breaker: CircuitBreaker) -> int:
    ticket = breaker.enter()
    assert ticket is not None
    return ticket


def open_it(breaker: CircuitBreaker) -> None:
    for _ in range(3):
        breaker.failed(enter(breaker))
    assert breaker.state is CircuitState.OPEN


def test_it_opens_after_failures_and_says_so(breaker: CircuitBreaker, clock: Clock) -> None:
    seen: list[CircuitState] = []
    breaker.on_change = lambda: seen.append(breaker.state)
    open_it(breaker)
    assert breaker.enter() is None
    assert (breaker.seconds_left, breaker.opened, seen) == (OPEN_SECONDS, 1, [CircuitState.OPEN])


def test_failures_that_are_old_or_few_among_successes_do_not_open_it(breaker: CircuitBreaker, clock: Clock) -> None:
    for _ in range(10):
        breaker.failed(enter(breaker))
        clock.now += WINDOW / 2
    clock.now += WINDOW
    for _ in range(10):
        breaker.succeeded(enter(breaker))
        breaker.succeeded(enter(breaker))
        breaker.failed(enter(breaker))
    assert breaker.state is CircuitState.CLOSED


@pytest.mark.parametrize("succeeds", [True, False])
def test_one_probe_decides(breaker: CircuitBreaker, clock: Clock, succeeds: bool) -> None:
    open_it(breaker)
    clock.now += OPEN_SECONDS
    assert breaker.state is CircuitState.HALF_OPEN
    probe = enter(breaker)
    assert breaker.enter() is None
    (breaker.succeeded if succeeds else breaker.failed)(probe)
    assert breaker.state is (CircuitState.CLOSED if succeeds else CircuitState.OPEN)
    assert (breaker.enter() is not None) is succeeds


def test_a_probe_that_is_given_up_makes_room_for_another(breaker: CircuitBreaker, clock: Clock) -> None:
    open_it(breaker)
    clock.now += OPEN_SECONDS
    breaker.gave_up(enter(breaker))
    breaker.succeeded(enter(breaker))
    assert breaker.state is CircuitState.CLOSED


def test_calls_from_before_decide_nothing(breaker: CircuitBreaker, clock: Clock) -> None:
    old = enter(breaker)
    open_it(breaker)
    breaker.succeeded(old)
    assert breaker.enter() is None
    clock.now += OPEN_SECONDS
    probe = enter(breaker)
    for report in (breaker.succeeded, breaker.failed, breaker.gave_up):
        report(old)
    assert breaker.enter() is None
    breaker.succeeded(probe)
    breaker.failed(old)
    assert breaker.state is CircuitState.CLOSED


@given(st.lists(st.tuples(st.sampled_from(["enter", "succeeded", "failed", "gave_up", "wait"]), st.integers(0, 30))))
def test_whatever_happens_at_most_one_probe_runs_and_it_never_stays_shut(steps: list[tuple[str, int]]) -> None:
    clock = Clock()
    breaker = CircuitBreaker("p", failures=3, window_seconds=WINDOW, open_seconds=OPEN_SECONDS, clock=clock)
    running: list[int] = []
    for what, number in steps:
        if what == "wait":
            clock.now += number
        elif what == "enter":
            state = breaker.state
            ticket = breaker.enter()
            assert ticket is None or state is not CircuitState.OPEN
            if ticket is not None:
                assert state is CircuitState.CLOSED or ticket not in running
                running.append(ticket)
        elif running:
            getattr(breaker, what)(running.pop(number % len(running)))
    for ticket in running:
        breaker.gave_up(ticket)
    clock.now += OPEN_SECONDS
    breaker.succeeded(enter(breaker))
    assert breaker.state is CircuitState.CLOSED


@given(st.integers(0, 10_000))
def test_jitter_is_within_a_bound_that_doubles(attempt: int) -> None:
    assert 0.0 <= full_jitter(attempt) <= min(4.0, 0.25 * 2 ** min(attempt, 30))


def test_jitter_is_full() -> None:
    delays = [full_jitter(10) for _ in range(2000)]
    assert min(delays) < 0.1
    assert max(delays) > 3.9
