"""Every configuration that we ship is one that works."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest

from pviommu.counters import Counters
from pviommu.inputs import LiveInputs
from pviommu.lab.vm import FIRST_SLOT
from pviommu.machine import Machine
from pviommu.pci.function import Environment
from pviommu.topology import load

CONFIGS = Path(__file__).resolve().parents[2] / "qemu-configs"
TOPOLOGIES = sorted(CONFIGS.glob("*.toml"))


@pytest.mark.parametrize("path", TOPOLOGIES, ids=lambda path: path.stem)
def test_topology_builds_a_machine_with_a_function_for_each_name(path: Path) -> None:
    topology = load(path)

    machine = Machine.build(topology, Environment(LiveInputs(), Counters()))
    names = [function.name for function in machine.functions()]
    machine.close()

    assert names == [topology.iommu.name, *(entry.name for entry in (*topology.smmu, *topology.endpoint))]


def test_libvirt_domain_shares_its_memory_and_attaches_the_functions_of_its_topology() -> None:
    domain = ElementTree.parse(CONFIGS / "libvirt.xml").getroot()
    namespace = "{http://libvirt.org/schemas/domain/qemu/1.0}"
    arguments = [arg.get("value", "") for arg in domain.iter(f"{namespace}arg")]
    names = [function.split("/")[-1] for function in ("iommu.sock", "dma0.sock")]

    assert domain.find("memoryBacking/source[@type='memfd']") is not None
    assert domain.find("memoryBacking/access[@mode='shared']") is not None
    assert arguments[0::2] == ["-device"] * 2
    for slot, (text, name) in enumerate(zip(arguments[1::2], names, strict=True), start=FIRST_SLOT):
        device = json.loads(text)
        assert device["driver"] == "vfio-user-pci"
        assert device["addr"] == f"{slot:#x}"
        assert device["socket"] == {"type": "unix", "path": f"/run/pviommu/{name}"}
