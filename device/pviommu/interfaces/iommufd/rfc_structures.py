"""The structures of /dev/iommu as it was first proposed, in "[RFC 00/20] Introduce /dev/iommu for userspace I/O address
space management" (Yi Liu, September 2021), and of the devices that it is used with.

What is mapped and unmapped is a structure of VFIO's type1 behind an IoasidDmaOp; the two together are MapDma and
UnmapDma here.
"""

from enum import IntEnum, IntFlag
from typing import Annotated

from wire_layout import S32, U32, U64, Record

__all__ = [
    "REQUESTS",
    "AttachIoasid",
    "BindIommufd",
    "DeviceInfo",
    "DeviceInfoFlag",
    "DmaOp",
    "Extension",
    "IoasidAlloc",
    "IoasidFlag",
    "IoasidType",
    "MapDma",
    "RfcRequest",
    "UnmapDma",
]


class RfcRequest(IntEnum):
    """What ioctl() takes: of /dev/iommu, and the last three of a device."""

    CHECK_EXTENSION = 0x3B64
    DEVICE_GET_INFO = 0x3B65
    IOASID_ALLOC = 0x3B66
    IOASID_FREE = 0x3B67
    MAP_DMA = 0x3B68
    UNMAP_DMA = 0x3B69
    DEVICE_BIND_IOMMUFD = 0x3B77
    DEVICE_ATTACH_IOASID = 0x3B78
    DEVICE_DETACH_IOASID = 0x3B79


class Extension(IntEnum):
    """Of CHECK_EXTENSION."""

    MAP_TYPE1V2 = 1
    DMA_NO_SNOOP = 2


class DeviceInfoFlag(IntFlag):
    ENFORCE_SNOOP = 1
    PGSIZES = 2
    ADDR_WIDTH = 4
    CAPS = 8


class IoasidFlag(IntFlag):
    ENFORCE_SNOOP = 1


class IoasidType(IntEnum):
    KERNEL_TYPE1V2 = 1


class DeviceInfo(Record):
    """What the IOMMU before a device can do; capabilities follow, as VFIO's do."""

    argsz: Annotated[int, U32, "bytes from here on that the caller has; out: that are needed"]
    flags: Annotated[int, U32, "out: DeviceInfoFlag"]
    dev_cookie: Annotated[int, U64, "the device, by what it was bound with"]
    pgsize_bitmap: Annotated[int, U64, "page sizes, a bit for each"]
    addr_width: Annotated[int, U32, "bits of an IOVA"]
    cap_offset: Annotated[int, U32, "where the first capability is, from here on; 0: they did not fit"]


class IoasidAlloc(Record):
    """Allocate an I/O address space; what the request returns is its number."""

    argsz: Annotated[int, U32, "bytes of this structure"]
    flags: Annotated[int, U32, "IoasidFlag: ENFORCE_SNOOP"]
    type: Annotated[int, U32, "IoasidType"]
    addr_width: Annotated[int, U32, "bits of an IOVA that devices must have"]


class DmaOp(Record):
    """How a map or an unmap begins."""

    argsz: Annotated[int, U32, "bytes of this structure"]
    flags: Annotated[int, U32, "0"]
    ioasid: Annotated[int, S32, "the I/O address space"]
    padding: Annotated[int, U32, "not looked at"]


class MapDma(Record):
    """Map memory of the caller."""

    argsz: Annotated[int, U32, "bytes of the first four fields at least"]
    flags: Annotated[int, U32, "0"]
    ioasid: Annotated[int, S32, "the I/O address space"]
    padding: Annotated[int, U32, "not looked at"]
    map_argsz: Annotated[int, U32, "bytes from here on: 32"]
    map_flags: Annotated[int, U32, "DmaMapFlag"]
    vaddr: Annotated[int, U64, "address of the memory"]
    iova: Annotated[int, U64, "where"]
    length: Annotated[int, U64, "bytes"]


class UnmapDma(Record):
    """Unmap what was mapped."""

    argsz: Annotated[int, U32, "bytes of the first four fields at least"]
    flags: Annotated[int, U32, "0"]
    ioasid: Annotated[int, S32, "the I/O address space"]
    padding: Annotated[int, U32, "not looked at"]
    unmap_argsz: Annotated[int, U32, "bytes from here on: 24"]
    unmap_flags: Annotated[int, U32, "DmaUnmapFlag"]
    iova: Annotated[int, U64, "where"]
    length: Annotated[int, U64, "bytes; out: bytes that were unmapped"]


class BindIommufd(Record):
    """Bind a device to an open /dev/iommu."""

    argsz: Annotated[int, U32, "bytes of this structure"]
    flags: Annotated[int, U32, "0"]
    iommu_fd: Annotated[int, S32, "its descriptor"]
    gap: Annotated[int, U32, "not looked at, for C aligns what follows"]
    dev_cookie: Annotated[int, U64, "what the device is called there"]


class AttachIoasid(Record):
    """Attach a device to an I/O address space, or detach it from there."""

    argsz: Annotated[int, U32, "bytes of this structure"]
    flags: Annotated[int, U32, "0"]
    iommu_fd: Annotated[int, S32, "descriptor that the device was bound with"]
    ioasid: Annotated[int, S32, "the I/O address space"]


REQUESTS: dict[type[Record], int] = {
    DeviceInfo: RfcRequest.DEVICE_GET_INFO,
    IoasidAlloc: RfcRequest.IOASID_ALLOC,
    MapDma: RfcRequest.MAP_DMA,
    UnmapDma: RfcRequest.UNMAP_DMA,
    BindIommufd: RfcRequest.DEVICE_BIND_IOMMUFD,
}
"""What ioctl() takes, by the structure that its argument points to; two requests take an AttachIoasid."""
