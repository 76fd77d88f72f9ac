"""What a server session asks of a device, and the values that pass between them."""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from .memory_kind import DescriptorKind
from .messages import (
    IRQ_COUNT,
    REGION_COUNT,
    DeviceFlags,
    DmaMapFlags,
    IrqInfoFlags,
    RegionFlags,
    SetIrqsFlags,
)

__all__ = [
    "Device",
    "DeviceInfo",
    "DmaMapping",
    "Irq",
    "IrqAction",
    "IrqKind",
    "IrqRequest",
    "Region",
    "Steps",
    "Waiting",
]

_NO_ACCESS = RegionFlags(0)
_ANY_MODE = DmaMapFlags(0)

Steps = Iterator[None]
"""The rest of a request: each item is one step of it, and others may have a turn before the next."""


class Waiting(Protocol):
    """Something that a request waits for and that does not depend on its client."""

    @property
    def is_over(self) -> bool: ...
    def then(self, callback: Callable[[], None], /) -> None:
        """Call ``callback`` once it is over."""


@dataclass(frozen=True)
class DeviceInfo:
    """The answer to DEVICE_GET_INFO. QEMU wants PCI set, at least 8 regions and at least 3 interrupt indexes.

    More than the :data:`REGION_COUNT` regions and :data:`IRQ_COUNT` interrupt indexes of a PCI function only a client
    may meet, of another server: a device with regions of its own kind is not served here.
    """

    flags: DeviceFlags = DeviceFlags.RESET | DeviceFlags.PCI
    num_regions: int = REGION_COUNT
    num_irqs: int = IRQ_COUNT


@dataclass(frozen=True)
class Region:
    """One region. ``size`` is in bytes, 0 if the region is absent; QEMU aborts unless the size of a BAR is a power of
    two.

    With RegionFlags.MMAP a client may map ``fd``: the region begins ``file_offset`` bytes into its file, and only
    ``areas`` of (offset into the region, size), page aligned and disjoint, may be mapped; no areas means all of
    it. The device keeps ``fd`` and must leave it open while a client is connected.
    """

    size: int = 0
    flags: RegionFlags = _NO_ACCESS
    areas: tuple[tuple[int, int], ...] = ()
    fd: int | None = None
    file_offset: int = 0


@dataclass(frozen=True)
class Irq:
    """One interrupt index: how many vectors it has."""

    count: int = 0
    flags: IrqInfoFlags = IrqInfoFlags.EVENTFD


class IrqAction(enum.IntEnum):
    """What SET_IRQS wants done."""

    MASK = SetIrqsFlags.ACTION_MASK
    UNMASK = SetIrqsFlags.ACTION_UNMASK
    TRIGGER = SetIrqsFlags.ACTION_TRIGGER


class IrqKind(enum.IntEnum):
    """How SET_IRQS names the vectors that it acts on."""

    NONE = SetIrqsFlags.DATA_NONE
    BOOL = SetIrqsFlags.DATA_BOOL
    EVENTFD = SetIrqsFlags.DATA_EVENTFD


@dataclass(frozen=True)
class IrqRequest:
    """A validated SET_IRQS: vectors ``start`` to ``start + count - 1`` of ``index`` (an IrqIndex).

    ``fds`` is empty or has ``count`` descriptors (EVENTFD only); ``flags`` has ``count`` entries (BOOL only).
    TRIGGER with NONE and ``count`` 0 disables the whole index; TRIGGER with EVENTFD and no ``fds`` takes the
    descriptors of these vectors away.
    """

    index: int
    start: int
    count: int
    action: IrqAction
    kind: IrqKind
    fds: tuple[int, ...] = ()
    flags: tuple[bool, ...] = ()


class DmaMapping(NamedTuple):
    """A validated DMA_MAP: ``size`` bytes at DMA ``address`` are ``offset`` bytes into the file of ``fd``.

    Without ``fd`` the range is reachable by messages only. ``mode`` holds the MMAP and FILE_IO bits. ``kind`` is what
    ``fd`` was found to be, if anybody has looked: a session does.
    """

    address: int
    size: int
    offset: int
    readable: bool
    writable: bool
    fd: int | None = None
    mode: DmaMapFlags = _ANY_MODE
    kind: DescriptorKind | None = None


class Device(Protocol):
    """A device behind a :class:`~vfio_user.server.Session`.

    Any method may raise :class:`~vfio_user.errors.RequestError`; anything else that it raises is answered with
    EIO. Bounds, sizes, indexes and flags were checked before it is called.
    """

    def describe(self) -> DeviceInfo:
        """Answer DEVICE_GET_INFO. QEMU asks after its first DMA maps; a RequestError here refuses the client."""

    def region(self, index: int) -> Region:
        """Region ``index``, 0 to 8. Called at every access."""

    def irq(self, index: int) -> Irq:
        """Interrupt index ``index``, 0 to 4."""

    def region_read(self, index: int, offset: int, count: int) -> bytes:
        """Exactly ``count`` bytes, ``count`` > 0."""

    def region_write(self, index: int, offset: int, data: bytes) -> Steps | None:
        """Write ``data``, which is not empty. A write that takes long is begun and its remaining steps are returned;
        the reply waits for the last one. They are closed early if the client goes.
        """

    def set_irqs(self, request: IrqRequest) -> None:
        """Carry out ``request``. The device owns its descriptors from here on, even if it raises."""

    def dma_map(self, mapping: DmaMapping) -> bool:
        """Make a range reachable. The device owns ``mapping.fd`` from here on, even if it raises. Returns whether the
        map is new: False if the identical one is there already.
        """

    def dma_unmap(self, address: int, size: int) -> int:
        """Undo every map in this range and return how many there were. On return no access uses the range any more. A
        refusal changes nothing: EINVAL if a map would be cut, ENOENT if there is none.
        """

    def dma_unmap_all(self) -> None:
        """Undo every map."""

    def reset(self) -> None:
        """Return to the state after power-on; DMA maps stay."""

    def settle(self) -> None:
        """Called when requests that came together have been carried out and their replies are not sent yet. What is
        derived from DMA maps can be brought up to date here, once for all of them.
        """

    def disconnected(self) -> None:
        """The client is gone. Called exactly once per session."""
