"""Samples: how many operations each has, in what order cases have their turns, what is made of the values."""

from __future__ import annotations

import pytest

from pviommu.bench.samples import Case, Effort, Figure, Series, figure, measure


class Worker:
    """Takes ``ns`` for each operation, and notes how many it was asked for."""

    def __init__(self, ns: int) -> None:
        self.ns = ns
        self.asked: list[int] = []

    def __call__(self, count: int) -> int:
        self.asked.append(count)
        return self.ns * count


def test_a_sample_is_as_long_as_asked_for() -> None:
    worker = Worker(10)
    [series] = measure([Case("x", worker)], Effort(repeat=3, sample_ns=100_000))
    assert series.values == [10.0] * 3
    assert worker.asked[-3:] == [worker.asked[-1]] * 3
    assert 50_000 <= 10 * worker.asked[-1] <= 100_000


def test_slow_operations_are_measured_once_a_sample() -> None:
    worker = Worker(10**9)
    measure([Case("x", worker)], Effort(repeat=2, sample_ns=1000))
    assert worker.asked == [1, 1, 1]


@pytest.mark.parametrize("sample_ns", [0, 1000, 123_456])
def test_samples_consist_of_whole_blocks(sample_ns: int) -> None:
    worker = Worker(7)
    measure([Case("x", worker, least_count=12)], Effort(repeat=2, sample_ns=sample_ns))
    assert all(count % 12 == 0 and count > 0 for count in worker.asked)


def test_every_other_turn_is_in_reverse_order() -> None:
    told: list[str] = []
    measure([Case("a", Worker(1000)), Case("b", Worker(1000))], Effort(repeat=3, sample_ns=1), told.append)
    assert told == ["a", "b", "b", "a", "a", "b"]


def test_a_figure_has_median_and_ends() -> None:
    assert figure([3, 1, 2]) == Figure(2, 1, 3)


def test_the_rate_is_in_what_an_operation_consists_of() -> None:
    assert Series("x", 256, "pages", [500.0, 1000.0, 2000.0]).rate == pytest.approx(256e6)
