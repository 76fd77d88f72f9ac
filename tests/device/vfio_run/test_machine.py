"""The devices that a topology describes, without a program that uses them."""

from __future__ import annotations

from pviommu.interfaces.iommufd import Region, RegionKind
from pviommu.topology import EndpointSection, MsiSection, ReservedSection, Topology
from pviommu.vfio_run.machine import configurations


def test_a_device_has_the_msi_windows_of_the_topology_and_its_own_regions() -> None:
    own = ReservedSection(0x7D000000, 0x100000)
    windows = MsiSection(0x8080000, 0x20000), MsiSection(0x8020000, 0x1000)

    [device] = configurations(
        Topology(endpoint=(EndpointSection("dma0", "dma-test", 5, reserved=(own,)),), msi=windows)
    )

    assert device.regions == (
        Region(0x8080000, 0x809FFFF, RegionKind.MSI),
        Region(0x8020000, 0x8020FFF, RegionKind.MSI),
        Region(0x7D000000, 0x7D0FFFFF, RegionKind.DIRECT),
    )
