"""An IOMMU whose guests keep page tables of their own, of a kind that is not any vendor's.

A first stage has the page tables of x86-64: four levels of 512 entries with 8 bytes each, whose bit 0 says that there
is something, bit 1 that it may be written, and bit 7, one and two levels up, that it is a page of 2 MiB or 1 GiB.
Entries are addresses of the guest's memory, which the page table beneath maps. What was translated once is remembered,
page by page, until the guest says by HWPT_INVALIDATE that it has changed it.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated
from weakref import WeakSet

from wire_layout import U32, U64, Record

from ...engine import PAGE_MASK, PAGE_SHIFT, PAGE_SIZE, Access, Parent, ParentRefusal, Refusal, Stage1Run
from .models import IommuModel, ReadPhysical
from .request_error import RequestError
from .user_memory import UserArray, UserData

if TYPE_CHECKING:
    from .devices import Device

__all__ = ["KIND", "NESTING", "FirstStageData", "Invalidation", "Nesting", "NestingInfo"]

KIND = 0x70760001
"""What the data of requests is: of HWPT_ALLOC, HWPT_INVALIDATE, GET_HW_INFO, and of VIOMMU_ALLOC, which has none."""
_LEVELS = 4
_INDEX_BITS = 9
_PRESENT, _WRITEABLE, _LARGE = 1, 2, 1 << 7
_FRAME = ((1 << 52) - 1) & ~PAGE_MASK
_REMEMBERED = 4096


class NestingInfo(Record):
    """Data of GET_HW_INFO."""

    levels: Annotated[int, U32, "of a first stage's page tables"]
    reserved: Annotated[int, U32, "0"]
    page_sizes: Annotated[int, U64, "a bit for each, in bytes"]


class FirstStageData(Record):
    """Data of HWPT_ALLOC for a nested page table."""

    root: Annotated[int, U64, "address of the highest table in the guest's memory, of 4 KiB"]


class Invalidation(Record):
    """An entry of HWPT_INVALIDATE, of a nested page table or of a virtual IOMMU, which passes it on to all of its."""

    iova: Annotated[int, U64, "from where on, a multiple of 4 KiB"]
    pages: Annotated[int, U64, "pages of 4 KiB; 0: everything"]


class _Tables:
    """A first stage."""

    def __init__(self, root: int, read: ReadPhysical) -> None:
        self.root = root
        self._read = read
        self._known: dict[int, tuple[int, Access]] = {}
        """page -> address in the guest's memory, access"""

    def walk(self, iova: int, length: int, access: Access, parent: Parent) -> Stage1Run | Refusal | ParentRefusal:
        """See Stage1Walker."""
        if iova >> PAGE_SHIFT + _LEVELS * _INDEX_BITS:
            return Refusal.OUT_OF_APERTURE
        page, offset = iova >> PAGE_SHIFT, iova & PAGE_MASK
        found = self._known.get(page)
        if found is None:
            looked_up = self._look_up(page << PAGE_SHIFT, parent)
            if isinstance(looked_up, Refusal | ParentRefusal):
                return looked_up
            if len(self._known) >= _REMEMBERED:
                self._known.clear()
            found = self._known[page] = looked_up
        return Stage1Run(found[0] + offset, PAGE_SIZE - offset, found[1])

    def _look_up(self, iova: int, parent: Parent) -> tuple[int, Access] | Refusal | ParentRefusal:
        table, allowed = self.root, Access.READ | Access.WRITE
        for level in range(_LEVELS - 1, -1, -1):
            shift = PAGE_SHIFT + level * _INDEX_BITS
            place = table + (iova >> shift & (1 << _INDEX_BITS) - 1) * 8
            runs = parent(place, 8, Access.READ)
            if isinstance(runs, ParentRefusal):
                return runs
            entry = int.from_bytes(b"".join(self._read(*run) for run in runs), "little")
            if not entry & _PRESENT:
                return Refusal.NOT_MAPPED
            if not entry & _WRITEABLE:
                allowed &= ~Access.WRITE
            table = entry & _FRAME
            if not level or (entry & _LARGE and level < _LEVELS - 1):
                inside = (1 << shift) - 1
                return table & ~inside | iova & inside, allowed
        raise AssertionError("the lowest level always ends the walk")

    def invalidate(self, entries: UserArray) -> None:
        """See FirstStage. Raises OSError: EINVAL for another kind, or a range that is not of pages."""
        entries.check_kind(KIND)
        for entry in entries.each(Invalidation, "pages"):
            self.forget(entry)

    def forget(self, entry: Invalidation) -> None:
        """The guest has changed something. Raises OSError (EINVAL)."""
        if entry.iova & PAGE_MASK:
            raise RequestError(errno.EINVAL, f"invalidate {entry.iova:#x}: not a multiple of {PAGE_SIZE:#x}")
        if not entry.pages:
            self._known.clear()
            return
        first = entry.iova >> PAGE_SHIFT
        pages = range(first, first + entry.pages)
        for page in pages if entry.pages < len(self._known) else list(self._known):
            if page in pages:
                self._known.pop(page, None)


class _Viommu:
    """See VirtualIommu. It has no queues of hardware, and no memory that is mapped."""

    queue_kinds: Collection[int] = ()

    def __init__(self, data: UserData) -> None:
        if data.length:
            raise RequestError(errno.EINVAL, f"virtual IOMMU with {data.length} bytes of data: it has none")
        self._stages: WeakSet[_Tables] = WeakSet()
        """Page tables keep them"""

    def first_stage(self, data: UserData, read: ReadPhysical) -> _Tables:
        """See VirtualIommu."""
        stage = _first_stage(data, read)
        self._stages.add(stage)
        return stage

    def invalidate(self, entries: UserArray, devices: Mapping[int, Device]) -> None:
        """See VirtualIommu."""
        entries.check_kind(KIND)
        for entry in entries.each(Invalidation, "pages"):
            for stage in self._stages:
                stage.forget(entry)

    def check_queue(self, kind: int, index: int, taken: Sequence[int]) -> None:
        """See VirtualIommu; it is never asked."""

    def is_mapped(self) -> bool:
        """See VirtualIommu."""
        return False

    def close(self) -> None:
        """See VirtualIommu."""


def _first_stage(data: UserData, read: ReadPhysical) -> _Tables:
    if data.kind != KIND:
        raise RequestError(errno.EOPNOTSUPP, f"nested page table with data of type {data.kind:#x}: must be {KIND:#x}")
    root = data.read(FirstStageData, "root").root
    if root & ~_FRAME:
        raise RequestError(errno.EINVAL, f"nested page table at {root:#x}: must be a page below {1 << 52:#x}")
    return _Tables(root, read)


class Nesting(IommuModel):
    """What :data:`NESTING` is."""

    hw_info_type = KIND
    takes_first_stages = True

    def hw_info(self) -> bytes:
        """See the base class."""
        return NestingInfo(_LEVELS, 0, 1 << 12 | 1 << 21 | 1 << 30).pack()

    def first_stage(self, data: UserData, read: ReadPhysical) -> _Tables:
        """See the base class."""
        return _first_stage(data, read)

    def virtual_iommu(self, kind: int) -> Callable[[UserData], _Viommu] | None:
        """See the base class."""
        return _Viommu if kind == KIND else None


NESTING = Nesting()
"""For DeviceConfig."""
