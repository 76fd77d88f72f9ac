"""Virtual IOMMUs: what a guest sees of the IOMMU before a device, with its devices, events and queues.

As drivers/iommu/iommufd/viommu.c of Linux 7.3.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from itertools import pairwise
from typing import TYPE_CHECKING

from ...engine import PAGE_MASK, PAGE_SIZE
from ...engine import Access as Rights
from .access import Access
from .models import IommuModel, VirtualIommu
from .objects import Object
from .pagetable import DeviceObject, Hwpt
from .request_error import RequestError

if TYPE_CHECKING:
    from .events import EventQueue

__all__ = ["HwQueue", "Vdevice", "Viommu"]


class Viommu(Object):
    """A virtual IOMMU, on the page table that maps its guest's memory."""

    what = "virtual IOMMU"

    def __init__(self, hwpt: Hwpt, model: IommuModel, begin: Callable[[], VirtualIommu]) -> None:
        """``begin`` makes what the kind of IOMMU knows of it. Raises OSError: ENOMEM, and as that does."""
        super().__init__(hwpt.ioas.hardware.places)
        self.hwpt = hwpt
        self.model = model
        """Of the IOMMU that it stands for."""
        self.is_like = begin()
        self.devices: dict[int, Vdevice] = {}
        """By the guest's name of them."""
        self.event_queues: dict[int, EventQueue] = {}
        """By what is in them."""
        self.queues: dict[int, HwQueue] = {}
        """By index."""
        hwpt.users += 1

    @property
    def is_used(self) -> bool:
        """See the base class. Memory of it that a program has mapped keeps it, too."""
        return bool(self.users) or self.is_like.is_mapped()

    def destroy(self) -> None:
        self.is_like.close()
        self.hwpt.users -= 1

    def check(self, bound: DeviceObject) -> None:
        """Raises OSError (EINVAL) for a device behind another IOMMU."""
        if type(bound.device.config.model) is not type(self.model):
            raise RequestError(errno.EINVAL, f"{self} for {bound.device}: that is behind another IOMMU")

    def name_of(self, bound: DeviceObject) -> int | None:
        """What the guest calls a device."""
        return next((name for name, vdevice in self.devices.items() if vdevice.of is bound), None)


class Vdevice(Object):
    """A device as a guest's virtual IOMMU has it."""

    what = "virtual device"

    def __init__(self, viommu: Viommu, of: DeviceObject, name: int) -> None:
        """Raises OSError: EINVAL for a device behind another IOMMU, EEXIST if it has one, or another has the name;
        ENOMEM.
        """
        super().__init__(viommu.hwpt.ioas.hardware.places)
        viommu.check(of)
        if of.vdevice is not None:
            raise RequestError(errno.EEXIST, f"virtual device of {of.device}: it has one")
        if name in viommu.devices:
            raise RequestError(errno.EEXIST, f"virtual device {name:#x} of {viommu}: there is one of this name")
        self.viommu = viommu
        self.of = of
        self.name = name
        viommu.devices[name] = of.vdevice = self
        viommu.users += 1

    def destroy(self) -> None:
        del self.viommu.devices[self.name]
        self.of.vdevice = None
        self.viommu.users -= 1


class HwQueue(Object):
    """A queue in the guest's memory that hardware reads by itself: the memory stays mapped meanwhile."""

    what = "hardware queue"

    def __init__(self, viommu: Viommu, kind: int, index: int, iova: int, length: int) -> None:
        """Raises OSError: ENOENT for memory that is not mapped, EFAULT if it is not in one piece, and what the kind of
        virtual IOMMU says.
        """
        super().__init__(viommu.hwpt.ioas.hardware.places)
        begin = iova & ~PAGE_MASK
        size = (iova - begin + length + PAGE_SIZE - 1) & ~PAGE_MASK
        access = Access(viommu.hwpt.ioas, pins=True, keeps_areas=True)
        try:
            access.pin(begin, size, Rights.READ)
            pieces = viommu.hwpt.ioas.pieces(begin, size)
            for before, piece in pairwise(pieces):
                if (piece.backing.memory, piece.address) != (before.backing.memory, before.address + before.length):
                    raise RequestError(errno.EFAULT, f"queue at {iova:#x}+{length:#x}: its memory is in pieces")
            viommu.is_like.check_queue(kind, index, list(viommu.queues))
        except OSError:
            access.destroy()
            raise
        self.viommu = viommu
        self.index = index
        self._access = access
        self._before = viommu.queues.get(index - 1)
        if self._before:
            self._before.users += 1
        viommu.queues[index] = self
        viommu.users += 1

    def destroy(self) -> None:
        if self._before:
            self._before.users -= 1
        del self.viommu.queues[self.index]
        self._access.destroy()
        self.viommu.users -= 1
