"""Records of a kind are bounded by the first of a window, and summed up at its end."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from pviommu.process.log_limits import MOST, WINDOW_S, Limiter


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def limiter(clock: Clock) -> Limiter:
    return Limiter(clock)


def record(text: str = "%d of them", *args: object, level: int = logging.INFO, **extra: Any) -> logging.LogRecord:
    made = logging.LogRecord("x", level, "", 0, text, args, None)
    made.__dict__.update(extra)
    return made


def fault(stream: int, number: int = 0) -> logging.LogRecord:
    return record("fault at %d", number, event="fault", fields={"stream": stream, "iova": number})


@pytest.mark.row("server", 81)
def test_the_first_of_a_kind_are_written_and_the_others_summed_up_when_the_window_is_over(
    clock: Clock, limiter: Limiter
) -> None:
    admitted = [limiter.admits(fault(1, number)) for number in range(MOST + 5)]
    assert admitted == [True] * MOST + [False] * 5
    assert limiter.due() == []
    assert limiter.seconds_left() == WINDOW_S

    clock.now += WINDOW_S
    (said,) = limiter.due()
    assert said.getMessage() == f"5 more like it in the last {WINDOW_S} s, at last: fault at {MOST + 4}"
    assert (said.event, said.fields) == (  # type: ignore[attr-defined]
        "repeated",
        {"of": "fault", "count": 5, "seconds": WINDOW_S, "stream": 1},
    )
    assert limiter.seconds_left() is None
    assert limiter.admits(fault(1))


@pytest.mark.row("server", 81)
def test_a_flood_takes_a_bounded_number_of_lines_however_long_it_lasts(clock: Clock, limiter: Limiter) -> None:
    written = counted = 0
    for _ in range(10_000):
        clock.now += 0.01
        sums = limiter.due()
        written += limiter.admits(fault(1)) + len(sums)
        counted += sum(said.fields["count"] for said in sums)  # type: ignore[attr-defined]
    counted += sum(said.fields["count"] for said in limiter.due(at_the_end=True))  # type: ignore[attr-defined]
    windows = 10_000 * 0.01 / WINDOW_S
    assert written <= (windows + 1) * (MOST + 1)
    assert counted == 10_000 - round(windows) * MOST


@pytest.mark.row("server", 81)
def test_a_noisy_function_does_not_silence_another_nor_another_kind(limiter: Limiter) -> None:
    for _ in range(MOST + 1):
        limiter.admits(fault(1))
    assert not limiter.admits(fault(1))
    assert limiter.admits(fault(2))
    assert limiter.admits(record("other", event="connected", fields={"function": "dma0"}))


@pytest.mark.row("server", 81)
def test_without_an_event_the_text_before_its_values_are_put_in_is_the_kind(limiter: Limiter) -> None:
    admitted = [limiter.admits(record("%d of them", number, level=logging.WARNING)) for number in range(MOST + 1)]
    assert admitted[-1] is False
    assert limiter.admits(record("something else"))


def test_a_window_with_nothing_left_out_says_nothing(clock: Clock, limiter: Limiter) -> None:
    assert limiter.admits(fault(1))
    clock.now += WINDOW_S
    assert limiter.due() == []


def test_what_ends_the_process_is_always_written(limiter: Limiter) -> None:
    assert all(limiter.admits(record("crash", level=logging.CRITICAL)) for _ in range(3 * MOST))


@pytest.mark.row("server", 81)
def test_kinds_without_number_share_a_window(limiter: Limiter) -> None:
    admitted = sum(limiter.admits(record(f"text {number}")) for number in range(5000))
    assert admitted < 1100
    (said,) = limiter.due(at_the_end=True)
    assert said.fields["count"] == 5000 - admitted  # type: ignore[attr-defined]
