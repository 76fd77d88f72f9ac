"""Each scenario that is shipped does what it says, on the workload that it names."""

from __future__ import annotations

import re

import pytest

from pviommu import resources
from pviommu.exit_status import ExitStatus
from pviommu.faults.catalogue import Nature
from pviommu.faults.scenario import load
from pviommu.scenarios.run import known_workload, played

SHIPPED = resources.scenarios()
ALONE = sorted(set(SHIPPED) - {"lab"})
"""Those that are for a guest that is played; what the lab's own expects only a real one does."""


def test_there_are_enough_of_either_class_and_for_every_workload_but_one() -> None:
    natures = [load(path).nature for path in SHIPPED.values()]
    assert natures.count(Nature.CONFORMING) >= 24
    assert natures.count(Nature.ADVERSARIAL) >= 24
    assert {load(path).workload for path in SHIPPED.values()} == {
        "maps",
        "network",
        "operations",
        "recovery",
        "rings",
        "smmu",
        "smmu-ats",
        "tables",
        "wire",
    }


def test_each_stands_for_another_failure() -> None:
    texts = [load(path).text for path in SHIPPED.values()]
    assert all(len(text.split()) >= 6 for text in texts)
    assert len(set(texts)) == len(texts)


@pytest.mark.parametrize("name", ALONE)
def test_its_rules_do_what_they_are_to_do_and_the_guest_comes_to_no_harm_that_it_does_not_announce(name: str) -> None:
    path = SHIPPED[name]
    scenario = load(path)
    events: list[str] = []
    outcome = played(scenario, known_workload(path, scenario), events.append)
    assert outcome.status is ExitStatus.PASSED, "\n".join(outcome.lines())
    if scenario.nature is Nature.CONFORMING:
        assert (outcome.end, outcome.harm) == ("done", ())
    again: list[str] = []
    played(scenario, scenario.workload, again.append)
    assert events == again
    assert events


@pytest.mark.parametrize("name", ALONE)
def test_its_first_lines_say_its_class_and_the_guest_that_it_was_played_against(name: str) -> None:
    text = SHIPPED[name].read_text(encoding="utf-8")
    said = re.match(r"# (Conforming|Adversarial): .*\n# Guest: \S.*\n\nversion = 1\n", text)
    assert said
    assert said[1].lower() == load(SHIPPED[name]).nature.value
