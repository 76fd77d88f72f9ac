"""What a guest with two network cards notices of faults: it comes to no harm, and its frames arrive."""

from __future__ import annotations

from typing import Any

import pytest

from pviommu import resources
from pviommu.faults.scenario import Scenario, load, parse
from pviommu.scenarios.examination import examined
from pviommu.scenarios.network import ROUNDS
from pviommu.scenarios.run import Outcome, played


def answers(outcome: Outcome) -> dict[str, int]:
    """What it noticed, beside what the IOMMU answered."""
    return {name: count for name, count in outcome.answers.items() if name != "done"}


@pytest.mark.row("virtio", 46)
def test_without_faults_every_frame_arrives_but_the_one_whose_buffer_was_unmapped() -> None:
    assert answers(played(Scenario(), "network")) == {"frame arrived": ROUNDS, "frame lost in memory": 1}


def noticed(row: int, name: str, *what: str, arrived: str = "all") -> Any:
    return pytest.param(name, set(what), arrived, marks=pytest.mark.row("virtio", row), id=name)


@pytest.mark.parametrize(
    ("name", "what", "arrived"),
    [
        noticed(40, "card-descriptor-corrupted", "card reset", "frame lost"),
        noticed(38, "card-index-out-of-range", "card reset", "frame lost"),
        noticed(41, "card-interrupt-lost", "interrupt missed"),
        noticed(41, "card-interrupt-late"),
        noticed(42, "card-link-flaps", "link down", "frame lost"),
        noticed(43, "card-link-slow"),
        noticed(44, "card-tap-full", "frame lost"),
        noticed(45, "card-tap-deleted", "link down", "frame lost", arrived="some"),
        noticed(46, "card-receive-buffer-unmapped", "frame lost"),
        noticed(44, "card-frames-dropped", "frame lost"),
        noticed(44, "card-frames-damaged-and-repeated", "frame lost", "frame damaged", "frame repeated"),
    ],
)
def test_a_shipped_scenario_is_noticed_as_what_it_is(name: str, what: set[str], arrived: str) -> None:
    found = answers(played(load(resources.scenarios()[name]), "network"))

    assert found.keys() - {"frame arrived", "frame lost in memory"} == what
    assert found["frame arrived"] == ROUNDS if arrived == "all" else 0 < found["frame arrived"] < ROUNDS


RULES = [
    {"on": "dma.write.apply", "where": {"function": "net1"}, "do": {"lie": True}},
    {"on": "dma.translate.post", "where": {"stream": 2, "access": "WRITE"}, "do": {"corrupt": "gpa", "xor": 1 << 13}},
]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: str(rule["on"]))
def test_it_notices_a_device_that_does_what_no_correct_one_does(rule: dict[str, Any]) -> None:
    """Otherwise a run without harm would say nothing."""
    outcome = played(parse({"version": 1, "rule": [{"id": "wrong", **rule}]}), "network")

    assert outcome.came_to_harm


@pytest.mark.parametrize("name", ["card-tap-deleted", "card-link-flaps"])
def test_the_next_guest_has_a_working_card_once_somebody_has_plugged_it_in(name: str) -> None:
    assert examined(load(resources.scenarios()[name]), "network").found == ()
