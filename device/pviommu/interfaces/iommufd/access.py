"""Drivers that reach what is mapped in an IOAS by themselves, without DMA."""

from __future__ import annotations

import errno
from collections.abc import Iterator

from ...engine import LAST_ADDRESS, PAGE_MASK, PAGE_SIZE, ByteArea
from ...engine import Access as Rights
from .ioas import Backing, Ioas, pin
from .objects import Object
from .request_error import RequestError

__all__ = ["Access"]


class Access(Object):
    """Of one driver to one IOAS. As drivers/iommu/iommufd/device.c of Linux 7.3."""

    what = "access"

    def __init__(self, ioas: Ioas, *, pins: bool, keeps_areas: bool = False) -> None:
        """``pins``: it pins whole pages, not only reads and writes; ``keeps_areas``: and does not give them up when
        user space unmaps them. Raises OSError: EADDRINUSE, ENOMEM.
        """
        super().__init__(ioas.hardware.places)
        self.ioas = ioas
        self.can_pin = pins
        self.keeps_areas = keeps_areas
        self.alignment = PAGE_SIZE if pins else 1
        """Of all areas of the IOAS, in bytes."""
        self.pinned: dict[int, tuple[int, int]] = {}
        """First and last IOVA, by number."""
        self._next = 0
        self.users = 1
        ioas.add_access(self)

    def destroy(self) -> None:
        self.pinned.clear()
        self.ioas.remove_access(self)

    def replace(self, ioas: Ioas) -> None:
        """Reach into another one from now on; nothing is pinned then. Raises OSError (EADDRINUSE)."""
        if ioas is not self.ioas:
            ioas.add_access(self)
            self.pinned.clear()
            self.ioas.remove_access(self)
            self.ioas = ioas

    def pin(self, iova: int, length: int, rights: Rights) -> int:
        """Pin what is mapped, and return the number by which :meth:`unpin` ends that.

        Raises OSError: EINVAL for nothing, or what is not of whole pages; EOVERFLOW; EPERM for a right that a mapping
        does not have; ENOENT for what is not mapped; EFAULT for memory that is not there.
        """
        last = _last(iova, length)
        for part in self._parts(iova, last, rights):
            end = part.target + part.length
            if part.target & PAGE_MASK or (part.last < last and end & PAGE_MASK):
                raise RequestError(errno.EINVAL, f"pin {iova:#x}+{length:#x}: memory {part.target:#x} is not of pages")
            pin(self.ioas.hardware, part)
        number, self._next = self._next, self._next + 1
        self.pinned[number] = iova, last
        return number

    def unpin(self, number: int) -> None:
        """Raises OSError (ENOENT) for what is not pinned, or not any more."""
        if self.pinned.pop(number, None) is None:
            raise RequestError(errno.ENOENT, f"unpin {number} of {self}: nothing is pinned by this number")

    def pins(self, first: int, last: int) -> bool:
        """Whether something of a range is pinned."""
        return any(begin <= last and first <= end for begin, end in self.pinned.values())

    def area_unmapped(self, first: int, last: int) -> None:
        """What was pinned of an area is given back, as the area goes."""
        self.pinned = {
            number: (begin, end) for number, (begin, end) in self.pinned.items() if begin > last or end < first
        }

    def read(self, iova: int, length: int) -> bytes:
        """Raises OSError as :meth:`pin` does, but for alignment."""
        parts = self._parts(iova, _last(iova, length), Rights.READ)
        return b"".join(part.tag.memory.read(part.target, part.length) for part in parts)

    def write(self, iova: int, data: bytes) -> None:
        """Raises OSError as :meth:`pin` does, but for alignment. What is before the place that fails is written."""
        position = 0
        for part in self._parts(iova, _last(iova, len(data)), Rights.WRITE):
            part.tag.memory.write(part.target, data[position : position + part.length])
            position += part.length

    def _parts(self, first: int, last: int, rights: Rights) -> Iterator[ByteArea[Backing]]:
        reached = first
        for area in self.ioas.space.areas.overlapping(first, last):
            if area.first > reached:
                break
            if rights & ~area.tag.access:
                raise RequestError(errno.EPERM, f"{self} at {reached:#x}: mapped as {area.tag.access!r}")
            part = area.clipped(first, last)
            yield part
            reached = part.last + 1
        if reached <= last:
            raise RequestError(errno.ENOENT, f"{self} at {reached:#x}: nothing is mapped there")


def _last(iova: int, length: int) -> int:
    if not length:
        raise RequestError(errno.EINVAL, f"access at {iova:#x}: length 0")
    if iova + length - 1 > LAST_ADDRESS:
        raise RequestError(errno.EOVERFLOW, f"access at {iova:#x}+{length:#x}: beyond 64-bit addresses")
    return iova + length - 1
