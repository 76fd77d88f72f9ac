"""Fails on purpose, to show what is said then: `pytest fails.py`."""

from __future__ import annotations

import pytest

from pviommu.testing.local import Device
from pviommu_abi.dma_test import DescriptorStatus, DmaOp


def test_a_driver_that_does_not_look_at_what_it_is_answered(pviommu_device: Device) -> None:
    guest = pviommu_device.guest
    ctx = guest.attach("dma0")
    guest.map(ctx, 0x10, 0x200, 4)
    guest.unmap(ctx, 0x12, 2)

    done = guest.dma("dma0", DmaOp.FILL, 0x3000, dst=0x10000)

    assert done.status == DescriptorStatus.DONE


@pytest.mark.scenario("second-map.toml")
def test_a_rule_that_is_never_met(pviommu_device: Device) -> None:
    guest = pviommu_device.guest
    assert guest.map(guest.attach("dma0"), 0x10, 0x200, 2) == (0, 2)
