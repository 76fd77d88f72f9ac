"""VFIO's type1: one address space, and the groups whose page tables are filled from it.

As drivers/vfio/vfio_iommu_type1.c of Linux 7.3, in versions 1 and 2 of its interface, which differ in what an unmap
does that would cut a mapping.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from ...engine import LAST_ADDRESS, Access, AddressSpace, ByteArea, Cutting, Misfit, Removal, Span
from ...engine.spans import complement
from . import type1_dirty as dirty
from . import vfio_arguments as arguments
from . import vfio_structures as v
from .devices import DeviceConfig, Group
from .hardware import Hardware
from .ioas import Backing, pin
from .request_error import RequestError
from .user_memory import UserMemory

if TYPE_CHECKING:
    from .process import Process

__all__ = ["MAX_MAPPINGS", "Type1"]

MAX_MAPPINGS = 65535
_MIN_INFO = v.Type1Info.offset_of("cap_offset")
_ALL_FLAGS = (1 << 32) - 1


class _Table:
    """A page table that has everything, and the groups that are attached to it."""

    def __init__(self, number: int, config: DeviceConfig) -> None:
        self.number = number
        self.aperture = config.aperture
        self.page_sizes = config.page_sizes
        self.enforces_snoop = config.enforces_snoop
        self.groups: list[Group] = []

    def suits(self, group: Group) -> bool:
        """Whether devices of a group can share it: in version and coherence they are alike."""
        return all(
            device.config.aperture == self.aperture
            and device.config.page_sizes == self.page_sizes
            and device.config.enforces_snoop == self.enforces_snoop
            for device in group.devices
        )


class Type1:
    """A container with an IOMMU."""

    def __init__(
        self,
        hardware: Hardware,
        *,
        version: int,
        overflow: int = errno.EOVERFLOW,
        allows_unsafe_interrupts: bool = False,
    ) -> None:
        """`version`: 1 or 2. `overflow`: errno of what is beyond 64-bit addresses, EINVAL before Linux 7."""
        self._hardware = hardware
        self._cutting = Cutting.WHOLE if version == 1 else Cutting.REFUSED
        self._overflow = overflow
        self._allows_unsafe_interrupts = allows_unsafe_interrupts
        self.space: AddressSpace[Backing] = AddressSpace()
        self._tables: list[_Table] = []
        self.tracks_dirty = False

    # Groups

    def attach(self, group: Group) -> None:
        """Let a group's DMA go through what is mapped. What its devices reserve, and what is beyond their apertures,
        is taken out of the IOVA ranges.

        Raises OSError, and then changes nothing: EINVAL if something is mapped there or no range is left, EPERM if it
        can interrupt others, ENOMEM.
        """
        configs = [device.config for device in group.devices]
        reserved: list[Span] = []
        for config in configs:
            reserved += [*complement([config.aperture]), *config.reserved()]
        for _ in reserved:
            self._hardware.places.span()
        way = self.space.reserve(group, reserved)
        if way:
            raise RequestError(errno.EINVAL, f"attach {group}: {way[0]:#x}..{way[1]:#x} is mapped")
        try:
            if not self.space.ranges():
                raise RequestError(errno.EINVAL, f"attach {group}: no IOVA is left that all groups can use")
            if not (self._allows_unsafe_interrupts or all(config.isolated_msi for config in configs)):
                raise RequestError(errno.EPERM, f"attach {group}: its interrupts are unsafe, which is not allowed")
            self._hardware.places.attach()
            table = next((table for table in self._tables if table.suits(group)), None) or self._new_table(configs[0])
        except OSError:
            self.space.release(group)
            raise
        table.groups.append(group)
        for device in group.devices:
            self._hardware.attach(device.stream, table.number)

    def _new_table(self, config: DeviceConfig) -> _Table:
        """A page table that has everything. Raises OSError (EFAULT, ENOMEM)."""
        table = _Table(self._hardware.add_table(), config)
        try:
            for area in self.space.areas:
                self._fill(table, area)
        except OSError:
            self._hardware.remove_table(table.number)
            raise
        self._tables.append(table)
        return table

    def detach(self, group: Group) -> None:
        """Let a group's DMA go nowhere. With the last group everything that is mapped goes; the ranges widen."""
        table = next(table for table in self._tables if group in table.groups)
        for device in group.devices:
            self._hardware.attach(device.stream, None)
        table.groups.remove(group)
        if not table.groups:
            self._tables.remove(table)
            self._hardware.remove_table(table.number)
        if not self._tables:
            self.space.areas.remove(0, LAST_ADDRESS, Cutting.STOPS)
        self.space.release(group)

    @property
    def enforces_snoop(self) -> bool:
        """Whether all DMA is coherent."""
        return all(table.enforces_snoop for table in self._tables)

    def ranges(self) -> tuple[Span, ...]:
        """IOVAs that can be mapped."""
        return self.space.ranges()

    # Requests

    def ioctl(self, process: Process, request: int, argument: int) -> None:
        """Raises OSError: ENOTTY for a request that is none of these, and what they say."""
        if request == v.VfioRequest.IOMMU_GET_INFO:
            self._get_info(process.user, argument)
        elif request == v.VfioRequest.IOMMU_MAP_DMA:
            self.map(process, argument)
        elif request == v.VfioRequest.IOMMU_UNMAP_DMA:
            self.unmap(process, argument)
        elif request == v.VfioRequest.IOMMU_DIRTY_PAGES:
            self._dirty_pages(process.user, argument)
        else:
            raise RequestError(errno.ENOTTY, f"request {request:#x}: type1 has none of this number")

    def map(self, process: Process, argument: int) -> None:
        """Map what a DmaMap says. Raises OSError, and then changes nothing; see the code for ranks."""
        request = arguments.read(v.DmaMap, process.user, argument, v.DmaMapFlag.READ | v.DmaMapFlag.WRITE)
        iova, size, address = request.iova, request.size, request.vaddr
        where = f"map {iova:#x}+{size:#x}"
        if not size:
            raise RequestError(errno.EINVAL, f"{where}: size 0")
        last = iova + size - 1
        if last > LAST_ADDRESS or address + size - 1 > LAST_ADDRESS:
            raise RequestError(self._overflow, f"{where} to {address:#x}: beyond 64-bit addresses")
        if not request.flags:
            raise RequestError(errno.EINVAL, f"{where}: neither readable nor writeable")
        if (iova | size | address) & self._page_size() - 1:
            raise RequestError(errno.EINVAL, f"{where} to {address:#x}: not of pages of {self._page_size():#x} bytes")
        misfit = self.space.check(iova, size)
        if misfit is Misfit.OCCUPIED or self.space.areas.first_in(iova, last):
            raise RequestError(errno.EEXIST, f"{where}: {Misfit.OCCUPIED.value}")
        if len(self.space.areas) == MAX_MAPPINGS:
            raise RequestError(errno.ENOSPC, f"{where}: there are {MAX_MAPPINGS} mappings already")
        if misfit:
            raise RequestError(errno.EINVAL, f"{where}: {misfit.value}")
        self._hardware.places.area()
        access = Access(request.flags)
        area = ByteArea(iova, last, address, Backing(process.memory, access, bool(access & Access.WRITE)))
        filled: list[_Table] = []
        try:
            for table in self._tables:
                self._fill(table, area)
                filled.append(table)
            if self.tracks_dirty:
                self._hardware.places.bitmap()
        except OSError:
            for table in filled:
                self._hardware.unmap(table.number, iova, size)
            raise
        self.space.areas.add(area)

    def _fill(self, table: _Table, area: ByteArea[Backing]) -> None:
        self._hardware.map(table.number, area.first, pin(self._hardware, area), area.length, area.tag.access)

    def unmap(self, process: Process, argument: int) -> None:
        """Unmap what a DmaUnmap says, and write back how much it was. Raises OSError, and then changes nothing."""
        flags = v.DmaUnmapFlag.ALL | v.DmaUnmapFlag.GET_DIRTY_BITMAP
        request = arguments.read(v.DmaUnmap, process.user, argument, flags)
        bitmap = None
        if request.flags & v.DmaUnmapFlag.GET_DIRTY_BITMAP:
            bitmap = dirty.bitmap_of_unmap(process.user, argument, request)
        iova, size = request.iova, request.size
        where = f"unmap {iova:#x}+{size:#x}"
        cutting, last = self._cutting, iova + size - 1
        if iova & self._page_size() - 1:
            raise RequestError(errno.EINVAL, f"{where}: not of pages of {self._page_size():#x} bytes")
        if request.flags & v.DmaUnmapFlag.ALL:
            if iova or size:
                raise RequestError(errno.EINVAL, f"{where} with the flag for all: both must be 0")
            last = LAST_ADDRESS
        elif not size or size & self._page_size() - 1:
            raise RequestError(errno.EINVAL, f"{where}: not of pages of {self._page_size():#x} bytes")
        elif last > LAST_ADDRESS:
            raise RequestError(self._overflow, f"{where}: beyond 64-bit addresses")
        if bitmap and not (self.tracks_dirty and bitmap.pgsize == self._page_size()):
            raise RequestError(
                errno.EINVAL, f"{where} with a bitmap: pages of {bitmap.pgsize:#x} bytes are not tracked"
            )
        untold = None
        if bitmap and not self._cut_by(iova, last):
            areas = self.space.areas.overlapping(iova, last)
            untold = dirty.tell(process.user, bitmap.data, iova, bitmap.pgsize, areas)
        if untold:
            last = untold.first - 1  # as in Linux, those before it are gone
        removal = self.space.areas.remove(iova, last, cutting) if iova <= last else Removal([], None)
        if removal.cut and cutting is Cutting.REFUSED:
            raise RequestError(errno.EINVAL, f"{where}: would cut {removal.cut.first:#x}..{removal.cut.last:#x}")
        with self._hardware.engine.deferred_invalidation():
            for table in self._tables:
                for area in removal.gone:
                    self._hardware.unmap(table.number, area.first, area.length)
        if untold:
            raise RequestError(errno.EFAULT, f"{where} with a bitmap: that cannot be written at {untold.first:#x}")
        process.user.write(argument, v.DmaUnmap(request.argsz, request.flags, iova, removal.size).pack())

    def _cut_by(self, first: int, last: int) -> ByteArea[Backing] | None:
        """An area that is partly in a range."""
        ends = (self.space.areas.first_in(first, first), self.space.areas.first_in(last, last))
        return next((area for area in ends if area and (area.first < first or area.last > last)), None)

    def _dirty_pages(self, memory: UserMemory, argument: int) -> None:
        if self._cutting is Cutting.WHOLE:
            raise RequestError(errno.EACCES, "dirty pages of type1: they are known of type1v2 only")
        argsz, flag = dirty.what_to_do(memory, argument)
        if flag is v.DirtyPagesFlag.START and not self.tracks_dirty:
            for _ in self.space.areas:
                self._hardware.places.bitmap()
        if flag is not v.DirtyPagesFlag.GET_BITMAP:
            self.tracks_dirty = flag is v.DirtyPagesFlag.START
            return
        asked = dirty.bitmap_of_range(memory, argument, argsz, self._page_size())
        last = asked.iova + asked.size - 1
        cut = self._cut_by(asked.iova, last)
        if cut or not self.tracks_dirty:
            why = f"would cut {cut.first:#x}..{cut.last:#x}" if cut else "they are not tracked"
            raise RequestError(errno.EINVAL, f"dirty pages of {asked.iova:#x}..{last:#x}: {why}")
        areas = self.space.areas.overlapping(asked.iova, last)
        if dirty.tell(memory, asked.data, asked.iova, asked.pgsize, areas):
            raise RequestError(errno.EFAULT, f"dirty pages: the bitmap at {asked.data:#x} cannot be written")

    def _page_sizes(self) -> int:
        sizes = LAST_ADDRESS
        for table in self._tables:
            sizes &= table.page_sizes
        return arguments.page_sizes(sizes, 1)

    def _page_size(self) -> int:
        sizes = self._page_sizes()
        return sizes & -sizes

    def _get_info(self, memory: UserMemory, argument: int) -> None:
        """What it can do, with a chain of capabilities if the caller has room for all of it."""
        argsz = arguments.read(v.Type1Info, memory, argument, _ALL_FLAGS, _MIN_INFO).argsz
        capabilities = [
            arguments.migration(self._page_size()),
            arguments.dma_avail(MAX_MAPPINGS - len(self.space.areas)),
            arguments.iova_ranges(self.ranges()),
        ]
        flags = v.InfoFlag.PGSIZES | v.InfoFlag.CAPS
        answer = arguments.with_chain(
            argsz,
            capabilities,
            v.Type1Info.SIZE,
            lambda needed, offset: v.Type1Info(needed, flags, self._page_sizes(), offset, 0),
        )
        memory.write(argument, answer)
