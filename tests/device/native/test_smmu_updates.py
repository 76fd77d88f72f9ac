"""A virtual SMMUv3 that updates the guest's tables, by exchanges of the native core."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pviommu.native.core import NativeCore
from pviommu.native.library import Library
from pviommu.topology import SmmuSection, Topology
from pviommu_abi.dma_test import DescriptorStatus

from ..interfaces.smmuv3.test_machine import CD0, CDS, IOVA, LEAF, PAGE, TABLE, TOPOLOGY, TTB, Vm

LEAF_AT = TTB + 3 * 0x1000 + (IOVA >> 12 & 511) * 8
HA, HD, AF, READ_ONLY, DBM = 1 << 43, 1 << 42, 1 << 10, 1 << 7, 1 << 51


@pytest.fixture
def vm(native_library: Library) -> Iterator[Vm]:
    topology = Topology(TOPOLOGY.iommu, TOPOLOGY.endpoint, (SmmuSection("smmu0", httu="dirty"),))
    made = Vm(topology, NativeCore(native_library))
    made.engines["dma1"].turn_on()
    made.map()
    made.words(CDS, CD0 | HA | HD, TTB)
    made.driver.reset(TABLE, 4)
    yield made
    made.close()


@pytest.mark.row("smmu", 35)
def test_a_write_of_an_engine_makes_its_page_dirty(vm: Vm) -> None:
    vm.words(LEAF_AT, PAGE | LEAF & ~AF | READ_ONLY | DBM)

    assert vm.fill("dma1", IOVA) is DescriptorStatus.DONE
    assert int.from_bytes(vm.load(LEAF_AT, 8), "little") == PAGE | LEAF | DBM
    assert vm.load(PAGE, 64) == b"\x5a" * 64
