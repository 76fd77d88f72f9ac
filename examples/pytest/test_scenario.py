"""Rules that say what goes wrong. A test fails at its end if they did not do what they are expected to."""

from __future__ import annotations

import pytest

from pviommu.scenarios.guest import PlayedGuest
from pviommu.testing.local import Device
from pviommu.testing.server import RunningServer
from pviommu_abi.dma_test import DescriptorStatus, DmaOp
from pviommu_abi.slots import Errno


def map_twice(guest: PlayedGuest) -> None:
    ctx = guest.attach("dma0")
    assert guest.map(ctx, 0x10, 0x200, 2) == (0, 2)
    assert guest.map(ctx, 0x20, 0x210, 2) == (-Errno.ENOMEM, 0)


@pytest.mark.scenario("second-map.toml")  # beside this file
def test_the_second_map_finds_no_memory(pviommu_device: Device) -> None:
    map_twice(pviommu_device.guest)


@pytest.mark.scenario("second-map.toml")
def test_a_server_does_the_same(pviommu_server: RunningServer) -> None:
    map_twice(pviommu_server.connected())
    assert pviommu_server.verdict().rules[0].fired == 1


@pytest.mark.scenario("""
text = "an invalidation is lost"

[[rule]]
id = "stale"
on = "dma.translate.post"
do = { stale = true }
""")
def test_dma_goes_to_where_it_went_before(pviommu_device: Device) -> None:
    guest = pviommu_device.guest
    ctx = guest.attach("dma0")
    guest.map(ctx, 0x10, 0x200, 1)
    assert guest.dma("dma0", DmaOp.FILL, 8, dst=0x10000, pattern=1).status == DescriptorStatus.DONE
    guest.unmap(ctx, 0x10, 1)
    assert guest.dma("dma0", DmaOp.FILL, 8, dst=0x10000, pattern=2).status == DescriptorStatus.DONE
    assert guest.stage.ram.bytes[0x200000] == 2
