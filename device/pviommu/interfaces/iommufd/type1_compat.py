"""VFIO's type1 on an open /dev/iommu: its requests are about one IOAS that was chosen, or that came with a device.

As drivers/iommu/iommufd/vfio_compat.c of Linux 7.3: errno values are those of iommufd, not those of type1.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from ...engine import LAST_ADDRESS, Access, Cutting
from . import vfio_arguments as arguments
from . import vfio_structures as v
from .hardware import Hardware
from .ioas import Ioas, Piece
from .objects import Objects
from .request_error import RequestError
from .user_memory import UserMemory

if TYPE_CHECKING:
    from .process import Process

__all__ = ["Type1Compat"]

_NO_LIMIT = (1 << 32) - 1
_RANGES_AT = v.CapabilityHeader.SIZE + v.IovaRangeCapability.SIZE
_RANGE_BYTES = 16


class Type1Compat:
    """The requests that iommufd has beside its own."""

    def __init__(self, objects: Objects) -> None:
        self._objects = objects
        self._chosen: Ioas | None = None

    def choose(self, ioas: Ioas | None) -> None:
        """What requests are about from now on."""
        self._chosen = ioas

    def ioas(self) -> Ioas:
        """What they are about. Raises OSError (ENODEV) if nothing was chosen, or it is gone."""
        chosen = self._chosen
        if chosen is None or self._objects.find(chosen.id) is not chosen:
            raise RequestError(errno.ENODEV, "no IOAS is chosen for the requests of VFIO")
        return chosen

    def ensure(self, hardware: Hardware) -> Ioas:
        """What they are about; a new IOAS if there is nothing."""
        try:
            return self.ioas()
        except RequestError:
            self._chosen = Ioas(hardware)
            self._objects.add(self._chosen)
            return self._chosen

    def ioctl(self, process: Process, request: int, argument: int) -> int:
        """Raises OSError: ENOTTY for a request that is none of these, and what they say."""
        if request == v.VfioRequest.GET_API_VERSION:
            return v.API_VERSION
        if request == v.VfioRequest.CHECK_EXTENSION:
            return self._check_extension(argument)
        if request == v.VfioRequest.SET_IOMMU:
            self._set_iommu(argument)
        elif request == v.VfioRequest.IOMMU_GET_INFO:
            self._get_info(process.user, argument)
        elif request == v.VfioRequest.IOMMU_MAP_DMA:
            self._map(process, argument)
        elif request == v.VfioRequest.IOMMU_UNMAP_DMA:
            self._unmap(process.user, argument)
        else:
            raise RequestError(errno.ENOTTY, f"request {request:#x}: neither iommufd nor its VFIO has it")
        return 0

    def _check_extension(self, extension: int) -> int:
        if extension == v.Extension.DMA_CC:
            return int(all(hwpt.enforces_snoop for hwpt in self.ioas().hwpts))
        return int(extension in (v.Extension.TYPE1, v.Extension.TYPE1V2, v.Extension.UNMAP_ALL))

    def _set_iommu(self, kind: int) -> None:
        if kind not in (v.Extension.TYPE1, v.Extension.TYPE1V2):
            raise RequestError(errno.EINVAL, f"set IOMMU {kind}: must be type1 (1) or type1v2 (3)")
        ioas = self.ioas()
        if kind == v.Extension.TYPE1:
            ioas.set_huge_pages(False)  # so that a mapping can be cut

    def _map(self, process: Process, argument: int) -> None:
        request = arguments.read(v.DmaMap, process.user, argument, v.DmaMapFlag.READ | v.DmaMapFlag.WRITE)
        access = Access(request.flags)
        ioas = self.ioas()
        ioas.map([Piece.of(process.memory, request.vaddr, request.size, access)], access, request.iova)

    def _unmap(self, memory: UserMemory, argument: int) -> None:
        request = arguments.read(v.DmaUnmap, memory, argument, v.DmaUnmapFlag.ALL)
        ioas = self.ioas()
        iova, size = request.iova, request.size
        if request.flags & v.DmaUnmapFlag.ALL:
            if iova or size:
                raise RequestError(errno.EINVAL, f"unmap all with range {iova:#x}+{size:#x}: both must be 0")
            removal = ioas.unmap(0, LAST_ADDRESS, Cutting.STOPS)
        else:
            if not ioas.huge_pages:
                ioas.cut_behind(iova + size - 1 & LAST_ADDRESS)
                if iova:
                    ioas.cut_behind(iova - 1)
            failure = None
            if not size:
                failure = RequestError(errno.EINVAL, f"unmap at {iova:#x}: size 0")
            elif iova + size - 1 > LAST_ADDRESS:
                failure = RequestError(errno.EOVERFLOW, f"unmap {iova:#x}+{size:#x}: beyond 64-bit addresses")
            if failure:
                self._write_unmapped(memory, argument, request, 0)
                raise failure
            removal = ioas.unmap(iova, iova + size - 1, Cutting.STOPS)
        self._write_unmapped(memory, argument, request, removal.size)
        if removal.cut:
            raise RequestError(errno.ENOENT, f"unmap {iova:#x}+{size:#x} of {ioas}: would cut {removal.cut.first:#x}")

    @staticmethod
    def _write_unmapped(memory: UserMemory, argument: int, request: v.DmaUnmap, size: int) -> None:
        answer = v.DmaUnmap(request.argsz, request.flags, request.iova, size & LAST_ADDRESS)  # as IOAS_UNMAP
        memory.write(argument, answer.pack())

    def _get_info(self, memory: UserMemory, argument: int) -> None:
        """Unlike type1, it writes what of the chain fits, though nothing points to it unless all of it does."""
        minimum = v.Type1Info.offset_of("cap_offset")
        argsz = arguments.read(v.Type1Info, memory, argument, _NO_LIMIT, minimum).argsz
        ioas = self.ioas()
        sizes = LAST_ADDRESS
        for hwpt in ioas.hwpts:
            sizes &= hwpt.page_sizes
        capabilities = [arguments.dma_avail(_NO_LIMIT), arguments.iova_ranges(ioas.space.ranges())]
        parts, needed = arguments.laid_out(capabilities, v.Type1Info.SIZE)
        for (offset, part), (following, _) in zip(parts, [*parts[1:], (0, b"")], strict=True):
            if argsz >= offset + len(part):
                points = argsz >= following
                memory.write(argument + offset, part if points else part[:4] + bytes(4) + part[8:])
            elif following == 0:  # the last one, of which each range is written that fits
                whole = max(argsz - offset - _RANGES_AT, 0) // _RANGE_BYTES
                ranges = part[_RANGES_AT : _RANGES_AT + whole * _RANGE_BYTES]
                if ranges:
                    memory.write(argument + offset + _RANGES_AT, ranges)
        info = v.Type1Info(
            needed,
            v.InfoFlag.PGSIZES | v.InfoFlag.CAPS,
            arguments.page_sizes(sizes, ioas.space.alignment),
            v.Type1Info.SIZE if argsz >= needed else 0,
            0,
        )
        memory.write(argument, info.pack()[:argsz])
