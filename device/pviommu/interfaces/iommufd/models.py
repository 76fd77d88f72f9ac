"""Kinds of IOMMUs: what one says of itself, and what of it a guest may be given.

What all have in common is in the other modules. A kind may know data of its own in requests: how a page table is to be
made, first stages of translation that a guest keeps by itself, virtual IOMMUs with their devices, events and queues.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol

from ...engine import PAGE_SIZE, Span, Stage1Walker
from .request_error import RequestError
from .user_memory import UserArray, UserData

if TYPE_CHECKING:
    from .devices import Device, DeviceConfig
    from .pagetable import Hwpt, PageTable

__all__ = ["PLAIN", "FirstStage", "Geometry", "IommuModel", "ReadPhysical", "VirtualIommu"]

ReadPhysical = Callable[[int, int], bytes]
"""Bytes at a physical address, as page tables have it. Raises OSError (EFAULT)."""


class Geometry(NamedTuple):
    """Of page tables."""

    aperture: Span
    """First and last IOVA that they translate."""
    page_sizes: int
    """A bit for each, in bytes."""


class FirstStage(Stage1Walker, Protocol):
    """What a guest keeps by itself, on a page table that maps its memory."""

    def invalidate(self, entries: UserArray) -> None:
        """The guest changed something. Raises OSError; ``entries.done`` says how many were carried out."""


class VirtualIommu(Protocol):
    """What a kind of IOMMU knows of one that a guest sees."""

    queue_kinds: Collection[int]
    """What hardware queues it has."""

    def first_stage(self, data: UserData, read: ReadPhysical) -> FirstStage:
        """A first stage behind it. Raises OSError for data that it cannot be made of."""

    def is_mapped(self) -> bool:
        """Whether a program has memory of it mapped, by mmap() of its open /dev/iommu."""

    def close(self) -> None:
        """It is gone."""

    def invalidate(self, entries: UserArray, devices: Mapping[int, Device]) -> None:
        """The guest changed something about its devices, by their names there. Raises as of a first stage."""

    def check_queue(self, kind: int, index: int, taken: Sequence[int]) -> None:
        """Whether there may be a queue of a kind at this index, beside those. Raises OSError."""


class IommuModel:
    """One without anything of its own: page tables only, as DeviceConfig describes them."""

    smallest_page = PAGE_SIZE
    """Of its page tables, in bytes: 4 KiB or half of it."""
    hw_info_type = 0
    """What the data of GET_HW_INFO is; 0: there is none."""
    takes_first_stages = False
    """Whether a guest may keep page tables by itself, on one that was allocated for that."""
    always_knows_pasids = False
    """Whether page tables may be made for PASIDs even if a device has none."""

    def hw_info(self) -> bytes:
        """Data of GET_HW_INFO."""
        return b""

    def geometry(self, config: DeviceConfig, data: UserData) -> Geometry:
        """What a page table is made with. Raises OSError (EOPNOTSUPP) for data that it does not know."""
        if data.kind:
            why = f"data type {data.kind:#x}: the IOMMU before {config.name} has not all of it"
            raise RequestError(errno.EOPNOTSUPP, f"allocate a page table: {why}")
        return Geometry(config.aperture, config.page_sizes)

    def suits(self, table: Hwpt, config: DeviceConfig) -> bool:
        """Whether it can walk a page table for such a device."""
        return (
            config.aperture[0] <= table.aperture[0]
            and table.aperture[1] <= config.aperture[1]
            and not table.page_sizes & ~config.page_sizes
            and (config.dirty_tracking or not table.tracks_dirty)
            and (config.enforces_snoop or not table.enforces_snoop)
        )

    def entering(self, table: PageTable | None, pasid: int | None) -> None:
        """A device's DMA is about to go through a page table, or nowhere. Raises OSError if that cannot be."""

    def first_stage(self, data: UserData, read: ReadPhysical) -> FirstStage:
        """A first stage of a guest. Raises OSError: EOPNOTSUPP for data that it does not know."""
        raise RequestError(errno.EOPNOTSUPP, f"nested page table with data of type {data.kind}: there is no such type")

    def virtual_iommu(self, kind: int) -> Callable[[UserData], VirtualIommu] | None:
        """What makes a virtual IOMMU of this kind of the data beside the request; None for an unknown kind."""
        return None


PLAIN = IommuModel()
