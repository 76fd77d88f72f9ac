"""A device in the process of the test: no socket, virtual time, a Python guest."""

from __future__ import annotations

from pviommu.testing.local import Device
from pviommu_abi.dma_test import DescriptorStatus, DmaOp


def test_dma_reaches_what_is_mapped(pviommu_device: Device) -> None:
    guest = pviommu_device.guest
    ctx = guest.attach("dma0")

    assert guest.map(ctx, dfn=0x10, gfn=0x200, nr=2) == (0, 2)  # result and pages
    done = guest.dma("dma0", DmaOp.FILL, 16, dst=0x10FF8, pattern=0x1122334455667788)

    assert done.status == DescriptorStatus.DONE
    assert guest.stage.ram.bytes[0x200FF8:0x201008] == 2 * bytes.fromhex("8877665544332211")


def test_dma_to_what_was_unmapped_is_refused_and_explained(pviommu_device: Device) -> None:
    guest = pviommu_device.guest
    ctx = guest.attach("dma0")
    guest.map(ctx, 0x10, 0x200, 1)
    guest.unmap(ctx, 0x10, 1)

    assert guest.dma("dma0", DmaOp.FILL, 8, dst=0x10000).status == DescriptorStatus.FAULT
    [event] = guest.events.take()
    assert event.iova == 0x10000
    assert "use after unmap" in pviommu_device.explain(0x10000, stream=1)["text"]
