"""The same over vfio-user: a client of each function, and the server's loop in the process of the test."""

from __future__ import annotations

import pytest

from pviommu.scenarios.stage import StuckError
from pviommu.testing.local import Device


def test_a_guest_works_over_the_wire(pviommu_wire: Device) -> None:
    guest = pviommu_wire.guest
    ctx = guest.attach("dma1")

    assert guest.map(ctx, 0x10, 0x200, 4) == (0, 4)
    guest.fill("dma1", 0x10005, 0x200005, 0x3000, pattern=7)  # looks at each byte, and at those beside them
    assert guest.unmap(ctx, 0x10, 4) == (0, 4)
    guest.refused("dma1", 0x10000)


@pytest.mark.scenario(
    {"rule": [{"id": "hang", "on": "message.region_read.pre", "where": {"function": "dma0"}, "do": {"hang": True}}]}
)
def test_a_client_gives_up_on_an_answer_that_does_not_come(pviommu_wire: Device) -> None:
    with pytest.raises(StuckError):  # after two seconds of virtual time, which take none
        pviommu_wire.guest.functions["dma0"].read("CONTROL")
