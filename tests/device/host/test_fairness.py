"""Who comes first."""

from __future__ import annotations

import random

import pytest

from pviommu.host.fairness import Fairness

pytestmark = pytest.mark.row("server", 36)


def served(fairness: Fairness[str], wanting: dict[str, int], turns: int) -> list[str]:
    """Whom ``turns`` of one each serve; ``wanting``: what a turn of each takes."""
    order = []
    for _ in range(turns):
        first = fairness.order(wanting)[0]
        fairness.charge(first, wanting[first])
        order.append(first)
    return order


def test_time_is_shared_and_not_turns() -> None:
    order = served(Fairness(), {"long": 900, "short": 100}, 1000)
    assert 8 <= order.count("short") / order.count("long") <= 10


def test_one_that_wanted_nothing_comes_before_those_that_are_busy() -> None:
    fairness: Fairness[str] = Fairness()
    busy = {f"busy{number}": 1000 for number in range(20)}
    served(fairness, busy, 333)
    assert fairness.order([*busy, "new"])[0] == "new"


def test_one_that_wanted_nothing_has_no_claim_to_what_it_left() -> None:
    fairness: Fairness[str] = Fairness()
    served(fairness, {"busy": 1000}, 1000)
    order = served(fairness, {"busy": 1000, "new": 1000}, 10)
    assert order.count("busy") >= 4


def test_of_those_that_come_at_once_the_one_that_used_least_lately_is_first() -> None:
    fairness: Fairness[str] = Fairness()
    for _ in range(50):
        for name, used in (("heavy", 500_000), ("light", 10_000)):
            fairness.charge(name, used)
    fairness.charge("other", 1)
    fairness.charge("other", 1)
    assert fairness.order(["light", "heavy"])[0] == "light"


def test_nobody_waits_forever() -> None:
    rng = random.Random(1)
    fairness: Fairness[str] = Fairness()
    names = [f"m{number}" for number in range(10)]
    last = dict.fromkeys(names, 0)
    for turn in range(5000):
        first = fairness.order(names)[0]
        fairness.charge(first, rng.randrange(50, 100))
        last[first] = turn
        assert turn - min(last.values()) < 60


def test_who_is_gone_is_forgotten() -> None:
    fairness: Fairness[str] = Fairness()
    fairness.charge("gone", 10**9)
    fairness.forget("gone")
    fairness.charge("there", 10)
    fairness.charge("there", 10)
    assert fairness.order(["there", "gone"])[0] == "gone"
