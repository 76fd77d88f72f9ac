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
    "AttachFlag",
    "AttachIommufdPasid",
    "AttachIommufdPt",
    "BindFlag",
    "BindIommufd",
    "CapabilityHeader",
    "CapabilityId",
    "DetachIommufdPasid",
    "DetachIommufdPt",
    "DeviceFeature",
    "DeviceInfo",
    "DirtyBitmap",
    "DirtyPages",
    "DirtyPagesFlag",
    "DirtyRange",
    "DmaAvailCapability",
    "DmaMap",
    "DmaMapFlag",
    "DmaUnmap",
    "DmaUnmapFlag",
    "Extension",
    "FeatureFlag",
    "GroupFlag",
    "GroupStatus",
    "HotResetFlag",
    "HotResetHeader",
    "InfoFlag",
    "IovaRangeCapability",
    "IrqInfo",
    "IrqSetHeader",
    "MigrationCapability",
    "RegionCapabilityId",
    "RegionInfo",
    "SparseArea",
    "SparseMmapCapability",
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
    DEVICE_GET_INFO = 0x3B6B
    DEVICE_GET_REGION_INFO = 0x3B6C
    DEVICE_GET_IRQ_INFO = 0x3B6D
    DEVICE_SET_IRQS = 0x3B6E
    DEVICE_RESET = 0x3B6F
    DEVICE_GET_PCI_HOT_RESET_INFO = 0x3B70
    IOMMU_GET_INFO = 0x3B70
    DEVICE_PCI_HOT_RESET = 0x3B71
    IOMMU_MAP_DMA = 0x3B71
    IOMMU_UNMAP_DMA = 0x3B72
    DEVICE_FEATURE = 0x3B75
    IOMMU_DIRTY_PAGES = 0x3B75
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


class DirtyPagesFlag(IntFlag):
    START = 1
    STOP = 2
    GET_BITMAP = 4


class GroupFlag(IntFlag):
    VIABLE = 1
    CONTAINER_SET = 2


class CapabilityId(IntEnum):
    IOVA_RANGE = 1
    MIGRATION = 2
    DMA_AVAIL = 3


class RegionCapabilityId(IntEnum):
    """Of DEVICE_GET_REGION_INFO."""

    SPARSE_MMAP = 1
    MSIX_MAPPABLE = 3


class HotResetFlag(IntFlag):
    DEV_ID = 1
    DEV_ID_OWNED = 2


class FeatureFlag(IntFlag):
    """Above the number of the feature, which has 16 bits."""

    GET = 1 << 16
    SET = 1 << 17
    PROBE = 1 << 18


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


class DirtyPages(Record):
    """Note from now on which pages DMA writes, or do not, or ask which. DirtyRange follows the last."""

    argsz: Annotated[int, U32, "bytes of this structure with what follows"]
    flags: Annotated[int, U32, "DirtyPagesFlag, one of them"]


class DirtyRange(Record):
    """What follows DirtyPages: whose bits to write, and where."""

    iova: Annotated[int, U64, "where"]
    size: Annotated[int, U64, "bytes"]
    pgsize: Annotated[int, U64, "bytes that a bit stands for"]
    bitmap_size: Annotated[int, U64, "bytes of the bitmap"]
    data: Annotated[int, U64, "address of the bitmap"]


class DirtyBitmap(Record):
    """What follows DmaUnmap with GET_DIRTY_BITMAP: a bitmap that begins with the first page of the range."""

    pgsize: Annotated[int, U64, "bytes that a bit stands for"]
    size: Annotated[int, U64, "bytes of the bitmap"]
    data: Annotated[int, U64, "address of the bitmap"]


class GroupStatus(Record):
    """What a group is ready for."""

    argsz: Annotated[int, U32, "bytes of this structure"]
    flags: Annotated[int, U32, "GroupFlag"]


class BindFlag(IntFlag):
    TOKEN = 1


class BindIommufd(Record):
    """Bind a device to an open /dev/iommu."""

    argsz: Annotated[int, U32, "bytes of this structure"]
    flags: Annotated[int, U32, "BindFlag"]
    iommufd: Annotated[int, S32, "its descriptor"]
    out_devid: Annotated[int, U32, "id of the device there"]
    token_uuid_ptr: Annotated[int, U64, "with TOKEN, address of 16 bytes"]


class AttachIommufdPt(Record):
    """Attach a device to an IOAS or a page table, or to another one than it is attached to."""

    argsz: Annotated[int, U32, "bytes of this structure"]
    flags: Annotated[int, U32, "0"]
    pt_id: Annotated[int, U32, "id of either; out: of the page table"]


class AttachFlag(IntFlag):
    PASID = 1


class AttachIommufdPasid(Record):
    """The same of a device's DMA with a PASID."""

    argsz: Annotated[int, U32, "bytes of this structure"]
    flags: Annotated[int, U32, "AttachFlag"]
    pt_id: Annotated[int, U32, "id of a page table; out: the same"]
    pasid: Annotated[int, U32, "the PASID"]


class DetachIommufdPasid(Record):
    """Let no DMA of a device with a PASID through."""

    argsz: Annotated[int, U32, "bytes of this structure"]
    flags: Annotated[int, U32, "AttachFlag"]
    pasid: Annotated[int, U32, "the PASID"]


class DetachIommufdPt(Record):
    """Let no DMA of a device through."""

    argsz: Annotated[int, U32, "bytes of this structure"]
    flags: Annotated[int, U32, "0"]


class DeviceInfo(Record):
    """What a device is."""

    argsz: Annotated[int, U32, "bytes of this structure"]
    flags: Annotated[int, U32, "vfio_user.DeviceFlags"]
    num_regions: Annotated[int, U32, "one more than the highest region"]
    num_irqs: Annotated[int, U32, "one more than the highest interrupt index"]
    cap_offset: Annotated[int, U32, "0: there are no capabilities"]
    pad: Annotated[int, U32, "0"]


class RegionInfo(Record):
    """What a region is; capabilities follow."""

    argsz: Annotated[int, U32, "bytes from here on that the caller has; out: that are needed"]
    flags: Annotated[int, U32, "vfio_user.RegionFlags"]
    index: Annotated[int, U32, "vfio_user.RegionIndex"]
    cap_offset: Annotated[int, U32, "where the first capability is, from here on; 0: they did not fit, or none is"]
    size: Annotated[int, U64, "bytes; 0: the region is absent"]
    offset: Annotated[int, U64, "where it is in the file of the device"]


class SparseMmapCapability(Record):
    """Which parts of a region can be mapped: the areas follow."""

    nr_areas: Annotated[int, U32, "areas"]
    reserved: Annotated[int, U32, "0"]


class SparseArea(Record):
    """A part of a region."""

    offset: Annotated[int, U64, "bytes into the region"]
    size: Annotated[int, U64, "bytes"]


class IrqInfo(Record):
    """What an interrupt index is."""

    argsz: Annotated[int, U32, "bytes of this structure"]
    flags: Annotated[int, U32, "vfio_user.IrqInfoFlags"]
    index: Annotated[int, U32, "vfio_user.IrqIndex"]
    count: Annotated[int, U32, "vectors"]


class IrqSetHeader(Record):
    """Interrupts are set up, taken away or raised; a flag or a descriptor for each may follow."""

    argsz: Annotated[int, U32, "bytes of this structure with what follows"]
    flags: Annotated[int, U32, "vfio_user.SetIrqsFlags: one action, and what follows"]
    index: Annotated[int, U32, "vfio_user.IrqIndex"]
    start: Annotated[int, U32, "the first vector"]
    count: Annotated[int, U32, "vectors"]


class HotResetHeader(Record):
    """Which devices a reset of the bus concerns: an id (of the group, or with DEV_ID of the device), the segment, the
    bus and the function of each follow.
    """

    argsz: Annotated[int, U32, "bytes from here on that the caller has"]
    flags: Annotated[int, U32, "HotResetFlag"]
    count: Annotated[int, U32, "devices"]


class DeviceFeature(Record):
    """Something that only some devices can do; its own structure follows."""

    argsz: Annotated[int, U32, "bytes of this structure with what follows"]
    flags: Annotated[int, U32, "the number of the feature, and FeatureFlag"]


REQUESTS: dict[type[Record], int] = {
    Type1Info: VfioRequest.IOMMU_GET_INFO,
    DmaMap: VfioRequest.IOMMU_MAP_DMA,
    DmaUnmap: VfioRequest.IOMMU_UNMAP_DMA,
    DirtyPages: VfioRequest.IOMMU_DIRTY_PAGES,
    GroupStatus: VfioRequest.GROUP_GET_STATUS,
    BindIommufd: VfioRequest.DEVICE_BIND_IOMMUFD,
    AttachIommufdPasid: VfioRequest.DEVICE_ATTACH_IOMMUFD_PT,
    AttachIommufdPt: VfioRequest.DEVICE_ATTACH_IOMMUFD_PT,
    DetachIommufdPasid: VfioRequest.DEVICE_DETACH_IOMMUFD_PT,
    DetachIommufdPt: VfioRequest.DEVICE_DETACH_IOMMUFD_PT,
    DeviceInfo: VfioRequest.DEVICE_GET_INFO,
    RegionInfo: VfioRequest.DEVICE_GET_REGION_INFO,
    IrqInfo: VfioRequest.DEVICE_GET_IRQ_INFO,
    IrqSetHeader: VfioRequest.DEVICE_SET_IRQS,
    HotResetHeader: VfioRequest.DEVICE_GET_PCI_HOT_RESET_INFO,
    DeviceFeature: VfioRequest.DEVICE_FEATURE,
}
"""What ioctl() takes, by the structure that its argument points to."""
