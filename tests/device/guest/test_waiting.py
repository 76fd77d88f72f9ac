"""Waiting for another process: it ends in time, and does not keep the processor from it."""

from __future__ import annotations

import time

import pytest

from pviommu.guest import waiting
from pviommu.guest.waiting import NAP_S, POLLED_S, came_true


class Clock:
    """Looks take a tenth of the time that is polled."""

    def __init__(self) -> None:
        self.now = 0.0
        self.yields = 0
        self.naps: list[float] = []

    def monotonic(self) -> float:
        return self.now

    def sched_yield(self) -> None:
        self.yields += 1
        self.now += POLLED_S / 10

    def sleep(self, seconds: float) -> None:
        self.naps.append(seconds)
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(waiting, "time", made)
    monkeypatch.setattr(waiting, "os", made)
    return made


def test_what_holds_already_is_not_waited_for(clock: Clock) -> None:
    assert came_true(lambda: True, 1)
    assert (clock.yields, clock.naps) == (0, [])


def test_what_comes_soon_is_polled_for(clock: Clock) -> None:
    assert came_true(lambda: clock.now > POLLED_S / 2, 1)
    assert (clock.yields > 0, clock.naps) == (True, [])


def test_what_takes_longer_is_looked_at_now_and_then(clock: Clock) -> None:
    assert came_true(lambda: clock.now > 0.1, 1)
    assert clock.yields <= 11
    assert len(clock.naps) == pytest.approx((0.1 - POLLED_S) / NAP_S, rel=0.1)


def test_what_does_not_come_is_given_up(clock: Clock) -> None:
    assert not came_true(lambda: False, 1)
    assert 1 < clock.now < 1.1


def test_a_wait_takes_hardly_any_processor_time() -> None:
    begin, used = time.monotonic(), time.process_time()
    came_true(lambda: time.monotonic() - begin > 0.2, 1)
    assert time.process_time() - used < 0.1
