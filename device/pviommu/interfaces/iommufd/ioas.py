"""I/O address spaces: what is mapped, and the page tables that are filled from it."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from ...engine import (
    LAST_ADDRESS,
    PAGE_MASK,
    PAGE_SIZE,
    Access,
    AddressSpace,
    ByteArea,
    Cutting,
    Misfit,
    Removal,
    Span,
)
from ...engine.spans import complement
from .hardware import Hardware
from .objects import Object
from .request_error import RequestError
from .user_memory import ADDRESS_LIMIT, FileMemory, UserMemory

if TYPE_CHECKING:
    from .access import Access as IoasAccess
    from .pagetable import Hwpt

__all__ = ["Backing", "Ioas", "Piece", "pin"]

_ERRNO = {
    Misfit.LENGTH: errno.EINVAL,
    Misfit.MISALIGNED: errno.EINVAL,
    Misfit.OVERFLOW: errno.EOVERFLOW,
    Misfit.RESERVED: errno.EINVAL,
    Misfit.OCCUPIED: errno.EEXIST,
    Misfit.NO_ROOM: errno.ENOSPC,
}


_WRITE = int(Access.WRITE)
"""A plain number: each map looks at it."""


class Backing(NamedTuple):
    """What an area is made of, beside the address in that memory."""

    memory: UserMemory
    access: Access
    writeable: bool
    """Whether the memory was mapped for writing first, so that a copy may be too."""
    pages: object = None
    """The same for copies of one mapping, and nothing else: they are pinned together."""


class Piece(NamedTuple):
    """Memory of a process that is to be mapped."""

    address: int
    length: int
    backing: Backing

    @classmethod
    def of(cls, memory: UserMemory, address: int, length: int, access: Access) -> Piece:
        """What is to be mapped for an access. Raises OSError for what iommufd takes nowhere: EOVERFLOW beyond 64 bits,
        EINVAL for nothing, or all but a page of 64 bits.
        """
        if address + length > LAST_ADDRESS and not isinstance(memory, FileMemory):  # bytes of a file may be the last
            raise RequestError(errno.EOVERFLOW, f"map {address:#x}+{length:#x}: beyond 64-bit addresses")
        if not 0 < length <= LAST_ADDRESS - PAGE_SIZE:
            raise RequestError(errno.EINVAL, f"map {length:#x} bytes: must be at least 1, and a page less than 64 bits")
        return cls(address, length, Backing(memory, access, bool(int(access) & _WRITE), object()))


def pin(hardware: Hardware, area: ByteArea[Backing]) -> int:
    """Physical address of an area. Raises OSError if its memory is not there as it must be: EFAULT, of files EINVAL."""
    hardware.places.pin()
    address, length, memory = area.target, area.length, area.tag.memory
    writeable = bool(int(area.tag.access) & _WRITE)
    if address + length > ADDRESS_LIMIT or not memory.holds(address, length, writeable=writeable):
        number = errno.EINVAL if isinstance(memory, FileMemory) else errno.EFAULT
        raise RequestError(number, f"memory at {address:#x}+{length:#x}: not there, or read-only")
    return hardware.place_of(memory) + address


class Ioas(Object):
    """One I/O address space."""

    what = "IOAS"

    def __init__(self, hardware: Hardware) -> None:
        """Raises OSError (ENOMEM)."""
        super().__init__(hardware.places)
        self.space: AddressSpace[Backing] = AddressSpace()
        self.hwpts: list[Hwpt] = []
        """Page tables that have all that is mapped, in the order in which they came."""
        self.accesses: list[IoasAccess] = []
        """Of drivers that reach what is mapped by themselves."""
        self.huge_pages = True
        """Whether a page table may have leaves above a page; without them a mapping can be cut."""
        self.hardware = hardware

    def destroy(self) -> None:
        self.unmap(0, LAST_ADDRESS, Cutting.STOPS)

    # Mappings

    def map(self, pieces: Sequence[Piece], access: Access, iova: int | None) -> int:
        """Map pieces one behind the other at an IOVA, or where there is room. Returns the IOVA.

        Raises OSError, and then changes nothing: by the errno of a misfit, EPERM for writing to what was mapped
        read-only, EFAULT for memory that is not there when there is a page table, ENOMEM.
        """
        length = pieces[0].length if len(pieces) == 1 else sum(piece.length for piece in pieces)
        if iova is None:
            found = self.space.find(length, pieces[0].address)
            if isinstance(found, Misfit):
                raise RequestError(_ERRNO[found], f"map {length:#x} bytes anywhere in {self}: {found.value}")
            iova = found
        else:
            misfit = self.space.check(iova, length)
            if misfit:
                raise RequestError(_ERRNO[misfit], f"map {iova:#x}+{length:#x} in {self}: {misfit.value}")
        areas: list[ByteArea[Backing]] = []
        position = iova
        for address, size, backing in pieces:
            if int(access) & _WRITE and not backing.writeable:
                raise RequestError(errno.EPERM, f"map {position:#x}+{size:#x} in {self}: a copy of what is read-only")
            if address & PAGE_MASK & (self.space.alignment - 1):
                raise RequestError(errno.EINVAL, f"map {address:#x} in {self}: not of {self.space.alignment:#x} bytes")
            self.hardware.places.area()
            tag = backing if backing.access is access else backing._replace(access=access)
            areas.append(ByteArea(position, position + size - 1, address, tag))
            position += size
        if self.hwpts:
            self._fill([(area, hwpt) for area in areas for hwpt in self.hwpts])
        for area in areas:
            self.space.areas.add(area)
        return iova

    def pieces(self, iova: int, length: int) -> list[Piece]:
        """What a range consists of. Raises OSError (ENOENT) if some of it is not mapped."""
        areas = self.space.areas.cover(iova, iova + length - 1)
        if areas is None:
            raise RequestError(errno.ENOENT, f"{self} {iova:#x}+{length:#x}: some of it is not mapped")
        return [Piece(area.target, area.length, area.tag) for area in areas]

    def unmap(self, first: int, last: int, cutting: Cutting) -> Removal[Backing]:
        """Unmap areas by one of the rules. Raises OSError (EBUSY) at the first area that an access does not give up;
        those before it are gone.
        """
        locked = self._locked(first, last)
        if locked:
            last = locked.first - 1
        removal = self.space.areas.remove(first, last, cutting) if first <= last else Removal([], None)
        for area in removal.gone:
            for access in self.accesses:
                access.area_unmapped(area.first, area.last)
        if len(removal.gone) > 1:
            with self.hardware.engine.deferred_invalidation():
                self._empty(removal.gone)
        else:
            self._empty(removal.gone)
        if locked and not removal.cut:
            raise RequestError(errno.EBUSY, f"unmap in {self}: {locked.first:#x}+{locked.length:#x} is in use")
        return removal

    def _empty(self, areas: Sequence[ByteArea[Backing]]) -> None:
        for hwpt in self.hwpts:
            for area in areas:
                self.hardware.unmap(hwpt.table, area.first, area.length)

    def _locked(self, first: int, last: int) -> ByteArea[Backing] | None:
        """The lowest area of a range that an access keeps."""
        if not self.accesses:
            return None
        keeping = [access for access in self.accesses if access.keeps_areas]
        if not keeping:
            return None
        areas = self.space.areas.overlapping(first, last)
        return next((area for area in areas if any(access.pins(area.first, area.last) for access in keeping)), None)

    def cut_behind(self, last: int) -> None:
        """Let the area around `last`, if there is one, end there, and another one begin behind it.

        Raises OSError (EINVAL): not aligned, or a page table may have leaves that it would cut.
        """
        area = self.space.areas.first_in(last, last)
        if area is None or last in (area.first, area.last):
            return
        mask = self.space.alignment - 1
        if (last + 1 | area.target + last + 1 - area.first) & mask or (self.hwpts and self.huge_pages):
            raise RequestError(errno.EINVAL, f"{self}: an area cannot be cut behind {last:#x}")
        self.hardware.places.area()
        self.space.areas.split(last + 1)

    def _fill(self, jobs: Sequence[tuple[ByteArea[Backing], Hwpt]]) -> None:
        """Map areas in page tables; all of them, or none. Raises OSError (EFAULT, ENOMEM)."""
        for number, (area, hwpt) in enumerate(jobs):
            try:
                self.hardware.map(hwpt.table, area.first, pin(self.hardware, area), area.length, area.tag.access)
            except OSError:
                for done, filled in jobs[:number]:
                    self.hardware.unmap(filled.table, done.first, done.length)
                raise

    # What narrows it

    def reserve(self, owner: object, spans: Sequence[Span]) -> None:
        """Raises OSError (EADDRINUSE), and then changes nothing, if something is mapped there, or allowed."""
        for _ in spans:
            self.hardware.places.span()
        way = self.space.reserve(owner, spans)
        if way:
            raise RequestError(errno.EADDRINUSE, f"{self}: {way[0]:#x}..{way[1]:#x} is in use, and {owner} reserves it")

    def add_table(self, hwpt: Hwpt) -> None:
        """Fill a page table and keep it so. Raises OSError, and then changes nothing: EADDRINUSE if an area is outside
        its aperture or less aligned than its pages, EFAULT and ENOMEM from filling it.
        """
        before = self.space.alignment
        area = self.space.align(max(hwpt.page_size, before))
        if area:
            raise RequestError(errno.EADDRINUSE, f"{self}: {area.first:#x}+{area.length:#x} is less aligned")
        try:
            self.reserve(hwpt, complement([hwpt.aperture]))
            self._fill([(area, hwpt) for area in self.space.areas])
        except OSError:
            self.space.release(hwpt)
            self.space.alignment = before
            raise
        self.hwpts.append(hwpt)

    def remove_table(self, hwpt: Hwpt) -> None:
        """Leave a page table alone, which is about to go."""
        self.hwpts.remove(hwpt)
        self.space.release(hwpt)
        self.space.align(self._alignment())

    def add_access(self, access: IoasAccess) -> None:
        """Raises OSError (EADDRINUSE), and then changes nothing, if an area is less aligned than it needs."""
        area = self.space.align(max(access.alignment, self.space.alignment))
        if area:
            raise RequestError(errno.EADDRINUSE, f"{self}: {area.first:#x}+{area.length:#x} is less aligned")
        self.accesses.append(access)
        self.users += 1

    def remove_access(self, access: IoasAccess) -> None:
        """It has given back all pages."""
        self.accesses.remove(access)
        self.users -= 1
        self.space.align(self._alignment())

    def set_huge_pages(self, enabled: bool) -> None:
        """Raises OSError, and then changes nothing: EINVAL if page tables have leaves already, EADDRINUSE if an area is
        less aligned than a page.
        """
        if enabled == self.huge_pages:
            return
        if not enabled and self.hwpts and len(self.space.areas):
            raise RequestError(errno.EINVAL, f"{self} without huge pages: page tables are filled already")
        self.huge_pages = enabled
        area = self.space.align(self._alignment())
        if area:
            self.huge_pages = True
            raise RequestError(errno.EADDRINUSE, f"{self}: {area.first:#x}+{area.length:#x} is not of {PAGE_SIZE:#x}")

    def _alignment(self) -> int:
        needed = [user.page_size for user in self.hwpts] + [access.alignment for access in self.accesses]
        return max(1 if self.huge_pages else PAGE_SIZE, *needed, 1)
