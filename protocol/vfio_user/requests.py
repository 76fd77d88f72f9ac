"""Payloads of a client's requests become checked values; replies become payloads. No state, no device.

Each function raises :class:`RequestError` with the errno that the protocol, or else libvfio-user, gives.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Callable
from typing import TypeVar

from wire_layout import Record

from .device import DmaMapping, IrqAction, IrqKind, IrqRequest, Region
from .errors import RequestError
from .messages import (
    IRQ_COUNT,
    REGION_COUNT,
    WRITE_MULTI_DATA_BYTES,
    WRITE_MULTI_MAX,
    CapabilityHeader,
    CapabilityId,
    DmaMap,
    DmaMapFlags,
    DmaUnmap,
    DmaUnmapFlags,
    GetInfo,
    GetIrqInfo,
    GetRegionInfo,
    GetRegionIoFds,
    IrqIndex,
    RegionAccess,
    RegionFlags,
    SetIrqs,
    SparseArea,
    SparseMmap,
    WriteMulti,
    WriteMultiEntry,
)

__all__ = [
    "check_range",
    "dma_map",
    "dma_unmap",
    "get_info",
    "get_irq_info",
    "get_region_info",
    "get_region_io_fds",
    "region_info_reply",
    "region_read",
    "region_write",
    "set_irqs",
    "write_multi",
]

_MAX_ARGSZ = 1 << 20
_MAX_MAP = 8 << 40  # libvfio-user's bound
_ADDRESS_SPACE = 1 << 64
_MAX_FILE = (1 << 63) - 1
# Plain numbers: an operation on an enumeration takes longer than all the rest of a check.
_READ, _WRITE = int(DmaMapFlags.READ), int(DmaMapFlags.WRITE)
_MODES = int(DmaMapFlags.MMAP | DmaMapFlags.FILE_IO)

_R = TypeVar("_R", bound=Record)


def _invalid(text: str) -> RequestError:
    return RequestError(errno.EINVAL, text)


def _unpack(kind: type[_R], payload: bytes) -> _R:
    try:
        return kind.unpack(payload)
    except struct.error as error:
        text = f"{kind.__name__} payload of {len(payload)} bytes: {kind.SIZE} are needed"
        raise _invalid(text) from error


def _check_argsz(kind: type[Record], argsz: int, most: int = _ADDRESS_SPACE) -> None:
    if not kind.SIZE <= argsz <= most:
        limit = f"at least {kind.SIZE}" if most == _ADDRESS_SPACE else f"{kind.SIZE} to {most}"
        raise _invalid(f"{kind.__name__} argsz {argsz}: it must be {limit}")


def _check_index(what: str, index: int, count: int) -> None:
    if index >= count:
        raise _invalid(f"{what} {index}: there are {count}")


def dma_map(payload: bytes, fds: list[int]) -> DmaMapping:
    """Check a DMA_MAP. ``fds`` is left as it is; the mapping names its only descriptor."""
    request = _unpack(DmaMap, payload)
    what = f"DMA_MAP {request.address:#x}+{request.size:#x}"
    _check_argsz(DmaMap, request.argsz)
    if request.flags & ~0xF:
        raise _invalid(f"{what} flags {request.flags:#x}: only bits 0 to 3 are known")
    mode = request.flags & _MODES
    if len(fds) > 1:
        raise _invalid(f"{what} with {len(fds)} descriptors: at most one")
    if mode and not fds:
        raise _invalid(f"{what} flags {request.flags:#x}: an access mode needs a descriptor")
    if request.size == 0 or request.address + request.size > _ADDRESS_SPACE:
        raise _invalid(f"{what}: must not be empty and must end within 64 bits")
    if request.size > _MAX_MAP:
        raise RequestError(errno.ENOSPC, f"{what}: a map is at most {_MAX_MAP:#x} bytes")
    if fds and request.offset + request.size > _MAX_FILE:
        raise _invalid(f"{what} at file offset {request.offset:#x}: it must end below {_MAX_FILE:#x}")
    return DmaMapping(
        address=request.address,
        size=request.size,
        offset=request.offset,
        readable=bool(request.flags & _READ),
        writable=bool(request.flags & _WRITE),
        fd=fds[0] if fds else None,
        mode=DmaMapFlags(mode),
    )


def dma_unmap(payload: bytes) -> DmaUnmap:
    """Check a DMA_UNMAP; ``flags`` of the result is 0 or ALL."""
    request = _unpack(DmaUnmap, payload)
    _check_argsz(DmaUnmap, request.argsz, _MAX_ARGSZ)
    if request.flags not in (0, DmaUnmapFlags.ALL):
        raise _invalid(f"DMA_UNMAP flags {request.flags:#x}: 0 or {int(DmaUnmapFlags.ALL)} (all)")
    if request.flags and (request.address or request.size):
        raise _invalid(f"DMA_UNMAP all with {request.address:#x}+{request.size:#x}: both must be 0")
    return request


def get_info(payload: bytes) -> None:
    """Check a DEVICE_GET_INFO."""
    _check_argsz(GetInfo, _unpack(GetInfo, payload).argsz)


def get_region_info(payload: bytes) -> GetRegionInfo:
    """Check a DEVICE_GET_REGION_INFO."""
    request = _unpack(GetRegionInfo, payload)
    _check_argsz(GetRegionInfo, request.argsz)
    _check_index("region", request.index, REGION_COUNT)
    return request


def region_info_reply(request: GetRegionInfo, region: Region, may_pass_fd: bool) -> tuple[bytes, int | None]:
    """The reply payload and the descriptor to send with it, if any.

    A client whose ``argsz`` has no room for the capabilities gets the size it needs, no capabilities and no
    descriptor, and asks again.
    """
    if region.size == 0:
        return GetRegionInfo(GetRegionInfo.SIZE, 0, request.index, 0, 0, 0).pack(), None
    flags = region.flags & ~RegionFlags.CAPS
    fd = region.fd if flags & RegionFlags.MMAP and may_pass_fd else None
    if fd is None:
        # MMAP without a descriptor only makes QEMU complain
        flags &= ~RegionFlags.MMAP
    capability = b"" if fd is None or not region.areas else _sparse_mmap(region.areas)
    size = GetRegionInfo.SIZE + len(capability)
    if size > request.argsz:
        short = GetRegionInfo(size, flags, request.index, 0, region.size, region.file_offset)
        return short.pack(), None
    if capability:
        flags |= RegionFlags.CAPS
    first = GetRegionInfo.SIZE if capability else 0
    full = GetRegionInfo(size, flags, request.index, first, region.size, region.file_offset)
    return full.pack() + capability, fd


def _sparse_mmap(areas: tuple[tuple[int, int], ...]) -> bytes:
    header = CapabilityHeader(CapabilityId.SPARSE_MMAP, 1, 0).pack()
    return header + SparseMmap(len(areas), 0).pack() + b"".join(SparseArea(*area).pack() for area in areas)


def get_region_io_fds(payload: bytes) -> GetRegionIoFds:
    """Check a DEVICE_GET_REGION_IO_FDS."""
    request = _unpack(GetRegionIoFds, payload)
    _check_argsz(GetRegionIoFds, request.argsz, _MAX_ARGSZ)
    _check_index("region", request.index, REGION_COUNT)
    if request.flags or request.count:
        raise _invalid(f"region io fds flags {request.flags:#x} count {request.count}: both must be 0")
    return request


def get_irq_info(payload: bytes) -> GetIrqInfo:
    """Check a DEVICE_GET_IRQ_INFO."""
    request = _unpack(GetIrqInfo, payload)
    _check_argsz(GetIrqInfo, request.argsz)
    _check_index("interrupt index", request.index, IRQ_COUNT)
    return request


def set_irqs(payload: bytes, fds: list[int], vectors: Callable[[int], int]) -> IrqRequest:
    """Check a DEVICE_SET_IRQS; ``vectors`` tells how many an index has. The result names ``fds``."""
    request = _unpack(SetIrqs, payload)
    _check_argsz(SetIrqs, request.argsz)
    _check_index("interrupt index", request.index, IRQ_COUNT)
    what = f"SET_IRQS index {request.index} vectors {request.start}+{request.count}"
    actions = [action for action in IrqAction if request.flags & action]
    kinds = [kind for kind in IrqKind if request.flags & kind]
    if len(actions) != 1 or len(kinds) != 1:
        raise _invalid(f"{what} flags {request.flags:#x}: exactly one data and one action bit")
    action, kind = actions[0], kinds[0]
    bools = payload[SetIrqs.SIZE :] if kind is IrqKind.BOOL else b""
    if kind is IrqKind.BOOL and len(bools) != request.count:
        raise _invalid(f"{what} with {len(bools)} bools: must be one per vector")
    if request.index in (IrqIndex.ERR, IrqIndex.REQ) and (action is not IrqAction.TRIGGER or request.count > 1):
        raise _invalid(f"{what}: this index has one vector that can only be triggered")
    disables = request.start == 0 and action is IrqAction.TRIGGER and kind is IrqKind.NONE
    if request.count == 0 and not disables:
        raise _invalid(f"{what}: 0 vectors are only for disabling an index, from vector 0")
    if fds and (kind is not IrqKind.EVENTFD or len(fds) != request.count):
        raise _invalid(f"{what} with {len(fds)} descriptors: must be one per vector, and only as eventfds")
    # Disabling an index without vectors succeeds: QEMU disables what it never enabled.
    if request.start + request.count > (limit := vectors(request.index)):
        raise _invalid(f"{what}: the index has {limit} vectors")
    flags = tuple(bool(byte) for byte in bools)
    return IrqRequest(request.index, request.start, request.count, action, kind, tuple(fds), flags)


def region_read(payload: bytes, max_count: int) -> RegionAccess:
    """Check what can be checked of a REGION_READ without the region."""
    request = _unpack(RegionAccess, payload)
    _check_access(request, max_count)
    return request


def region_write(payload: bytes, max_count: int) -> tuple[RegionAccess, bytes]:
    """Check what can be checked of a REGION_WRITE without the region; returns the access and its data."""
    request = _unpack(RegionAccess, payload)
    _check_access(request, max_count)
    data = payload[RegionAccess.SIZE :]
    if len(data) != request.count:
        raise _invalid(f"write of {request.count} bytes with {len(data)} bytes of data: they must agree")
    return request, data


def write_multi(payload: bytes) -> list[WriteMultiEntry]:
    """Check what can be checked of a REGION_WRITE_MULTI without the regions."""
    count = _unpack(WriteMulti, payload).wr_cnt
    if not 1 <= count <= WRITE_MULTI_MAX:
        raise _invalid(f"{count} writes at once: 1 to {WRITE_MULTI_MAX}")
    size = WriteMulti.SIZE + count * WriteMultiEntry.SIZE
    if len(payload) != size:
        raise _invalid(f"{count} writes in {len(payload)} bytes: they take {size}")
    offsets = range(WriteMulti.SIZE, size, WriteMultiEntry.SIZE)
    entries = [WriteMultiEntry.unpack(payload, offset) for offset in offsets]
    for entry in entries:
        _check_index("region", entry.region, REGION_COUNT)
        if entry.count > WRITE_MULTI_DATA_BYTES:
            raise _invalid(f"one of several writes has {entry.count} bytes: at most {WRITE_MULTI_DATA_BYTES}")
    return entries


def _check_access(request: RegionAccess, max_count: int) -> None:
    _check_index("region", request.region, REGION_COUNT)
    if request.count > max_count:
        raise _invalid(f"access of {request.count} bytes: at most {max_count} were negotiated")


def check_range(region: Region, index: int, offset: int, count: int) -> None:
    """Refuse an access that does not lie in ``region``; an absent region has no byte at all."""
    if region.size == 0 or offset + count > region.size:
        raise _invalid(f"region {index} {offset:#x}+{count:#x}: it has {region.size:#x} bytes")
