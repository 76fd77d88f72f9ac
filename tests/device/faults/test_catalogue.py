"""The declared probes are those that the device has, and each can do what is said of it."""

from __future__ import annotations

import json

import pytest

from pviommu.faults.actions import ACTIONS
from pviommu.faults.catalogue import ANYWHERE, ARGUMENTS, BITS, PROBES, Place, places
from pviommu.faults.points import POINTS
from pviommu.interfaces.iommufd import System
from pviommu.interfaces.iommufd.places import Places
from pviommu.interfaces.pv import xen, xen_2024, xen_v7
from pviommu.probes import Probes
from pviommu.scenarios.run import played
from pviommu.scenarios.stage import Stage
from pviommu.scenarios.workloads import WORKLOADS
from pviommu_abi.slots import Errno

from .conftest import scenario

WAITS = ("delay", "bandwidth", "suspend", "wait", "reorder", "hang")


class Asked:
    """Notes the names of all probes that a machine has."""

    def __init__(self) -> None:
        self.names: set[str] = set()

    def watches(self, name: str) -> bool:
        self.names.add(name)
        return False


def test_the_code_has_the_probes_that_are_declared_and_no_others(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = Asked()
    monkeypatch.setattr(Probes, "_decides", lambda _self, name: asked.watches(name))
    monkeypatch.setattr("pviommu.faults.engine.Faults.watches", lambda _self, name: asked.watches(name))
    with Stage(scenario()) as stage:
        stage.connect("dma0").close()
        stage.turn()
        stage.machine.iommu.reset()
    for workload in ("network", "smmu-ats"):
        with Stage(scenario(), topology=WORKLOADS[workload].topology()):
            pass
    System(places=Places(Probes()))

    assert asked.names == set(PROBES)


def test_there_are_at_least_45_places_and_each_name_says_one() -> None:
    names = [place.name for place in places("*")]
    assert len(PROBES) >= 40
    assert len(names) == len(set(names)) >= 100
    assert [place.name for place in places("op.map_pages.pre")] == ["op.map_pages.pre"]


def test_each_probe_is_passed_by_some_workload() -> None:
    rules = [{"id": name, "on": f"{name}.*", "expect": {"fired": "0.."}} for name in PROBES]
    missing = set(PROBES)
    for workload in WORKLOADS:
        outcome = played(scenario(*rules), workload)
        assert (outcome.end, outcome.harm) == ("done", ())
        missing -= {rule.id for rule in outcome.verdict.rules if rule.fired}

    assert missing == set()


@pytest.mark.parametrize("workload", WORKLOADS)
def test_what_a_probe_tells_are_arguments_that_it_declares(workload: str) -> None:
    told: dict[str, set[str]] = {}

    def sink(line: str) -> None:
        event = json.loads(line)
        told.setdefault(event["on"], set()).update(event["before"])

    played(scenario({"on": "*"}), workload, sink)
    assert len(told) > 20
    for name, arguments in told.items():
        assert arguments <= set(PROBES[name.rpartition(".")[0]].arguments), name


@pytest.mark.parametrize("place", list(places("*")), ids=lambda place: place.name)
def test_what_is_possible_at_a_place_is_there_in_the_code(place: Place) -> None:
    point = POINTS[place.probe.name]
    prefix = "post_" if place.side == "post" else "do_"
    for action in place.actions:
        assert action in ACTIONS
        if action not in ANYWHERE and action not in WAITS:
            assert hasattr(point, prefix + action), action
    assert set(place.probe.arguments) <= set(ARGUMENTS)
    if "corrupt" in place.actions and place.probe.fields:
        assert set(place.probe.fields) <= set(place.probe.arguments) | {"gpa", "gfn"}
        assert place.probe.name.startswith("op.") or set(place.probe.fields) <= set(BITS)
    if {"fail", "partial"} & set(place.actions):
        assert place.probe.errors or place.probe.refusals


def test_every_probe_has_its_point() -> None:
    assert POINTS.keys() == PROBES.keys()


def errors(name: str) -> set[str]:
    return {*PROBES[name].errors, *PROBES[name].refusals}


def test_the_declared_errors_are_those_that_the_profiles_answer() -> None:
    rules = (xen_2024.page_rules(1), xen_v7.PAGE_RULES)
    for name, which in (("op.map_pages", 0), ("op.unmap_pages", 1)):
        answered = {Errno(-result).name for each in rules for result in each[which].results.values()}
        assert errors(name) == answered | {"E2BIG", "EIO"}
    of_contexts = {Errno(-result).name for result in xen.CONTEXT_RESULTS.values()}
    declared = errors("op.alloc_context") | errors("op.free_context") | errors("op.reattach_device")
    assert of_contexts <= declared
