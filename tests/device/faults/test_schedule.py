"""Which passes a schedule chooses, and which numbers it draws."""

from __future__ import annotations

import pytest

from pviommu.documents import WrongValueError
from pviommu.faults.schedule import Schedule, Turns, stream_of


def chosen(passes: int, seed: int = 1, rule: str = "a", **keys: float) -> list[int]:
    turns = Turns(Schedule(**keys), stream_of(seed, rule))  # type: ignore[arg-type]
    return [number for number in range(1, passes + 1) if turns.next()]


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({}, [1, 2, 3, 4, 5, 6, 7, 8]),
        ({"nth": 3}, [3]),
        ({"after": 5}, [6, 7, 8]),
        ({"every": 3}, [3, 6]),
        ({"after": 2, "every": 3}, [5, 8]),
        ({"times": 2}, [1, 2]),
        ({"after": 1, "times": 2, "every": 2}, [3, 5]),
        ({"until": 4}, [1, 2, 3, 4]),
        ({"after": 2, "until": 4}, [3, 4]),
    ],
)
def test_it_counts(keys: dict[str, int], expected: list[int]) -> None:
    assert chosen(8, **keys) == expected


def test_a_probability_of_one_is_every_pass_and_others_depend_on_seed_and_rule_alone() -> None:
    assert chosen(5, probability=1.0) == [1, 2, 3, 4, 5]
    some = chosen(1000, probability=0.1)
    assert 60 < len(some) < 140
    assert some == chosen(1000, probability=0.1)
    assert some != chosen(1000, seed=2, probability=0.1)
    assert some != chosen(1000, rule="b", probability=0.1)


def test_what_is_drawn_does_not_depend_on_how_often_it_may_fire() -> None:
    assert chosen(1000, probability=0.1, times=3) == chosen(1000, probability=0.1)[:3]


@pytest.mark.parametrize(
    ("keys", "place"),
    [({"nth": 1, "times": 1}, "times"), ({"nth": 2, "after": 1}, "after"), ({"after": 4, "until": 4}, "until")],
)
def test_keys_that_rule_each_other_out_are_told(keys: dict[str, int], place: str) -> None:
    with pytest.raises(WrongValueError) as caught:
        Schedule(**keys).check()
    assert caught.value.place == (place,)
