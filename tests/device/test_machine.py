"""Machines: what a topology becomes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from pviommu.counters import Counters
from pviommu.endpoints import ENDPOINTS, WITH_OPTIONS, endpoint_class
from pviommu.endpoints.dma_test import DmaTestEngine
from pviommu.endpoints.endpoint import Endpoint
from pviommu.endpoints.template import Template
from pviommu.inputs import LiveInputs
from pviommu.machine import Machine
from pviommu.pci.function import Environment
from pviommu.topology import EndpointSection, IommuSection, Topology, load

CONFIGURATIONS = sorted((Path(__file__).parents[2] / "qemu-configs").glob("*.toml"))


@pytest.fixture
def environment() -> Environment:
    return Environment(LiveInputs(), Counters())


@pytest.fixture
def machine(environment: Environment) -> Iterator[Machine]:
    topology = Topology(
        endpoint=(EndpointSection("dma0", "dma-test", 1, "0000:00:05.0"), EndpointSection("stamp", "template", 2))
    )
    machine = Machine.build(topology, environment)
    yield machine
    machine.close()


def test_there_are_configurations_to_load() -> None:
    assert "lab.toml" in {path.name for path in CONFIGURATIONS}


@pytest.mark.parametrize("path", CONFIGURATIONS, ids=lambda path: path.stem)
def test_every_configuration_of_the_project_powers_on(path: Path, environment: Environment) -> None:
    topology = load(path)

    machine = Machine.build(topology, environment)

    assert [function.name for function in machine.functions()] == [
        topology.iommu.name,
        *(entry.name for entry in (*topology.smmu, *topology.endpoint)),
    ]
    machine.close()


def test_a_machine_has_the_kinds_that_were_asked_for(machine: Machine) -> None:
    assert isinstance(machine.endpoints["dma0"], DmaTestEngine)
    assert isinstance(machine.endpoints["stamp"], Template)
    assert [function.name for function in machine.functions()] == ["iommu", "dma0", "stamp"]
    assert dict(machine.iommu.engine.endpoints()) == {1: 0, 2: 0}
    assert machine.iommu.bindings.stream(0x28) == 1


def test_the_name_of_the_iommu_may_be_chosen(environment: Environment) -> None:
    machine = Machine.build(Topology(iommu=IommuSection(name="smmu")), environment)

    assert [function.name for function in machine.functions()] == ["smmu"]
    machine.close()


@pytest.mark.parametrize("kind", ENDPOINTS)
def test_every_kind_of_endpoint_has_a_class(kind: str) -> None:
    assert issubclass(endpoint_class(kind), Endpoint)


def test_kinds_with_options_are_listed() -> None:
    assert {kind for kind in ENDPOINTS if endpoint_class(kind).OPTIONS is not Endpoint.OPTIONS} == WITH_OPTIONS
