"""The structures of VFIO that are about address spaces, as include/uapi/linux/vfio.h of Linux 7.3 has them.

Each but those of capabilities begins with its size, as the caller sees it.
"""

from enum import IntEnum, IntFlag
from typing import Annotated

from wire_layout import S32, U16, U32, U64, Record

__all__ = [
    "API_VERSION",
    "MAX_DIRTY_BITMAP_SIZE",
    "REQUESTS",
    "AttachIommufdPt",
    "BindIommufd",
    "CapabilityHeader",
    "CapabilityId",
    "DetachIommufdPt",
    "DmaAvailCapability",
    "DmaMap",
    "DmaMapFlag",
    "DmaUnmap",
    "DmaUnmapFlag",
    "Extension",
    "GroupFlag",
    "GroupStatus",
    "InfoFlag",
    "IovaRangeCapability",
    "MigrationCapability",
    "Type1Info",
    "VfioRequest",
]

API_VERSION = 0
MAX_DIRTY_BITMAP_SIZE = 1 << 28
"""Bytes of the bitmap of 2^31 - 1 pages, in words of 64 bits."""


class VfioRequest(IntEnum):
    """What ioctl() takes. Those of files of different kinds share numbers."""

    GET_API_VERSION = 0x3B64
    CHECK_EXTENSION = 0x3B65
    SET_IOMMU = 0x3B66
    GROUP_GET_STATUS = 0x3B67
    GROUP_SET_CONTAINER = 0x3B68
    GROUP_UNSET_CONTAINER = 0x3B69
    GROUP_GET_DEVICE_FD = 0x3B6A
    IOMMU_GET_INFO = 0x3B70
    IOMMU_MAP_DMA = 0x3B71
    IOMMU_UNMAP_DMA = 0x3B72
    DEVICE_BIND_IOMMUFD = 0x3B76
    DEVICE_ATTACH_IOMMUFD_PT = 0x3B77
    DEVICE_DETACH_IOMMUFD_PT = 0x3B78


class Extension(IntEnum):
    """Of CHECK_EXTENSION; the first two also of SET_IOMMU."""

    TYPE1 = 1
    TYPE1V2 = 3
    DMA_CC = 4
    UNMAP_ALL = 9


class InfoFlag(IntFlag):
    PGSIZES = 1
    CAPS = 2


class DmaMapFlag(IntFlag):
    READ = 1
    WRITE = 2


class DmaUnmapFlag(IntFlag):
    GET_DIRTY_BITMAP = 1
    ALL = 2
    VADDR = 4


class GroupFlag(IntFlag):
    VIABLE = 1
    CONTAINER_SET = 2


class CapabilityId(IntEnum):
    IOVA_RANGE = 1
    MIGRATION = 2
    DMA_AVAIL = 3


class Type1Info(Record):
    """What an IOMMU of type1 can do; capabilities follow."""

    argsz: Annotated[int, U32, "bytes from here on that the caller has; out: that are needed"]
    flags: Annotated[int, U32, "InfoFlag"]
    iova_pgsizes: Annotated[int, U64, "page sizes, a bit for each"]
    cap_offset: Annotated[int, U32, "where the first capability is, from here on; 0: they did not fit"]
    pad: Annotated[int, U32, "0"]


class CapabilityHeader(Record):
    """How a capability begins."""

    id: Annotated[int, U16, "CapabilityId"]
    version: Annotated[int, U16, "1"]
    next: Annotated[int, U32, "where the next one is, from the start of the whole structure; 0: this is the last"]


class IovaRangeCapability(Record):
    """IOVAs that can be mapped: pairs of the first and the last one follow."""

    nr_iovas: Annotated[int, U32, "ranges"]
    reserved: Annotated[int, U32, "0"]


class MigrationCapability(Record):
    """How dirty pages are logged."""

    flags: Annotated[int, U32, "0"]
    gap: Annotated[int, U32, "0, for C aligns what follows"]
    pgsize_bitmap: Annotated[int, U64, "page sizes of dirty bitmaps, a bit for each"]
    max_dirty_bitmap_size: Annotated[int, U64, "bytes of a bitmap at most"]


class DmaAvailCapability(Record):
    """How many mappings there can still be."""

    avail: Annotated[int, U32, "mappings"]


class DmaMap(Record):
    """Map memory of the caller."""

    argsz: Annotated[int, U32, "bytes of this structure"]
    flags: Annotated[int, U32, "DmaMapFlag"]
    vaddr: Annotated[int, U64, "address of the memory"]
    iova: Annotated[int, U64, "where"]
    size: Annotated[int, U64, "bytes"]


class DmaUnmap(Record):
    """Unmap what was mapped."""

    argsz: Annotated[int, U32, "bytes of this structure"]
    flags: Annotated[int, U32, "DmaUnmapFlag"]
    iova: Annotated[int, U64, "where"]
    size: Annotated[int, U64, "bytes; out: bytes that were unmapped"]


class GroupStatus(Record):
    """What a group is ready for."""

    argsz: Annotated[int, U32, "bytes of this structure"]
    flags: Annotated[int, U32, "GroupFlag"]


class BindIommufd(Record):
    """Bind a device to an open /dev/iommu."""

    argsz: Annotated[int, U32, "bytes of this structure"]
    flags: Annotated[int, U32, "0"]
    iommufd: Annotated[int, S32, "its descriptor"]
    out_devid: Annotated[int, U32, "id of the device there"]
    token_uuid_ptr: Annotated[int, U64, "not looked at"]


class AttachIommufdPt(Record):
    """Attach a device to an IOAS or a page table, or to another one than it is attached to."""

    argsz: Annotated[int, U32, "bytes of this structure"]
    flags: Annotated[int, U32, "0"]
    pt_id: Annotated[int, U32, "id of either; out: of the page table"]


class DetachIommufdPt(Record):
    """Let no DMA of a device through."""

    argsz: Annotated[int, U32, "bytes of this structure"]
    flags: Annotated[int, U32, "0"]


REQUESTS: dict[type[Record], int] = {
    Type1Info: VfioRequest.IOMMU_GET_INFO,
    DmaMap: VfioRequest.IOMMU_MAP_DMA,
    DmaUnmap: VfioRequest.IOMMU_UNMAP_DMA,
    GroupStatus: VfioRequest.GROUP_GET_STATUS,
    BindIommufd: VfioRequest.DEVICE_BIND_IOMMUFD,
    AttachIommufdPt: VfioRequest.DEVICE_ATTACH_IOMMUFD_PT,
    DetachIommufdPt: VfioRequest.DEVICE_DETACH_IOMMUFD_PT,
}
"""What ioctl() takes, by the structure that its argument points to."""
