"""Devices behind the IOMMU: what they are made of, and to whom they belong."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING

from ...engine import LAST_ADDRESS, PAGE_SIZE, Span
from .models import PLAIN, IommuModel

if TYPE_CHECKING:
    from .pagetable import PageTable
    from .pci_device import PciDevice

__all__ = ["MSI_REGION", "Attachment", "Device", "DeviceConfig", "Group", "Region", "RegionKind"]

PAGE_SIZES = 1 << 12 | 1 << 21 | 1 << 30
_PASID_BITS = 20
"""Of a PASID at most."""


class RegionKind(Enum):
    """Kinds of reserved regions, spelled as in reserved_regions of sysfs."""

    DIRECT = "direct"
    DIRECT_RELAXABLE = "direct-relaxable"
    RESERVED = "reserved"
    MSI = "msi"


@dataclass(frozen=True)
class Region:
    """IOVAs that a device cannot use, or uses by itself. Raises ValueError for one that is none."""

    first: int
    last: int
    """Inclusive."""
    kind: RegionKind

    def __post_init__(self) -> None:
        if not 0 <= self.first <= self.last <= LAST_ADDRESS:
            raise ValueError(f"region {self}: first must not exceed last, and both must be 64-bit addresses")

    def __str__(self) -> str:
        """As a line of reserved_regions in sysfs."""
        return f"0x{self.first:016x} 0x{self.last:016x} {self.kind.value}"


MSI_REGION = Region(0xFEE00000, 0xFEEFFFFF, RegionKind.MSI)
"""The interrupt window of x86."""


@dataclass(frozen=True)
class DeviceConfig:
    """What a device and the IOMMU before it can do. Raises ValueError naming device, value and rule."""

    name: str
    aperture: Span = (0, (1 << 48) - 1)
    """First and last IOVA that its page tables translate."""
    regions: tuple[Region, ...] = (MSI_REGION,)
    page_sizes: int = PAGE_SIZES
    """A bit for each, the smallest of 4 KiB."""
    dirty_tracking: bool = True
    enforces_snoop: bool = True
    """Whether the IOMMU can make its DMA coherent; address spaces of the RFC require it."""
    isolated_msi: bool = True
    """Whether it can interrupt nobody but its owner."""
    page_requests: bool = True
    """Whether it can wait for a page, so that a page table may have a fault queue."""
    pasid_bits: int = 0
    """Of PASIDs that its DMA may have; 0: none."""
    group: str | None = None
    """Devices of one group are not isolated from each other; None: it is alone."""
    model: IommuModel = PLAIN
    """What kind of IOMMU it is: what it says of itself, page tables of a guest, virtual IOMMUs."""

    def __post_init__(self) -> None:
        first, last = self.aperture
        if not 0 <= first <= last < 1 << 48 or first % PAGE_SIZE or (last + 1) % PAGE_SIZE:
            raise ValueError(
                f"device {self.name}: aperture {first:#x}..{last:#x}: must be pages of 4 KiB below {1 << 48:#x}"
            )
        if self.page_sizes & -self.page_sizes != self.model.smallest_page:
            smallest = f"{self.model.smallest_page >> 10} KiB"
            raise ValueError(f"device {self.name}: page sizes {self.page_sizes:#x}: the smallest must be of {smallest}")
        if not 0 <= self.pasid_bits <= _PASID_BITS:
            raise ValueError(f"device {self.name}: PASIDs of {self.pasid_bits} bits: must be 0..{_PASID_BITS}")

    @property
    def address_width(self) -> int:
        """Bits of the last IOVA."""
        return self.aperture[1].bit_length()

    def reserved(self) -> list[Span]:
        """The regions that nobody else may map, as spans."""
        return [
            (region.first, region.last) for region in self.regions if region.kind is not RegionKind.DIRECT_RELAXABLE
        ]


@dataclass(eq=False)
class Device:
    """One device, and who has it."""

    config: DeviceConfig
    stream: int
    """Of its requests in the engine."""
    group: Group
    owner: object | None = None
    """Whoever claimed its DMA: while there is one, no other may."""
    bound_as: int = 0
    """Its id as an object of its owner."""
    node: str = ""
    """Path of its character device."""
    pci: PciDevice | None = None
    """What there is besides its DMA, if anything."""

    def __str__(self) -> str:
        return self.config.name


@dataclass(eq=False)
class Attachment:
    """What DMA of a group goes through: that without a PASID, or that with one of them."""

    hwpt: PageTable | None = None
    devices: list[Device] = field(default_factory=list)
    """Those that were attached one by one; the others of the group follow the first."""


@dataclass(eq=False)
class Group:
    """Devices that reach each other's DMA, so that all of them are attached to one page table."""

    number: int
    devices: list[Device] = field(default_factory=list)
    main: Attachment = field(default_factory=Attachment)
    """Of DMA without a PASID."""
    pasids: dict[int, Attachment] = field(default_factory=dict)
    """By PASID, those that something is attached with."""
    file: object | None = None
    """Its open file, by which devices are opened in VFIO's old way; there is at most one."""
    bound: int = 0
    """Devices that are bound by their own files, in the new way: never together with the old one."""

    @property
    def hwpt(self) -> PageTable | None:
        """What DMA without a PASID goes through."""
        return self.main.hwpt

    @property
    def attached(self) -> list[Device]:
        """The devices that were attached without a PASID, one by one."""
        return self.main.devices

    def at(self, pasid: int | None) -> Attachment:
        """What DMA with this PASID, or without one, goes through; perhaps nothing yet."""
        return self.main if pasid is None else self.pasids.setdefault(pasid, Attachment())

    def forget(self, pasid: int | None) -> None:
        """Nothing is attached with this PASID any more."""
        if pasid is not None:
            self.pasids.pop(pasid, None)

    @property
    def node(self) -> str:
        """Path of its character device."""
        return f"/dev/vfio/{self.number}"

    def __str__(self) -> str:
        return f"group {self.number}"

    @property
    def owner(self) -> object | None:
        """Whoever claimed one of its devices."""
        return next((device.owner for device in self.devices if device.owner is not None), None)
