"""The structures of iommufd, as include/uapi/linux/iommufd.h of Linux 7.3 has them, and the flags in their fields.

Each begins with its size, as the caller sees it. `commands.py` says which request each belongs to, and how it is read.
"""

from enum import IntEnum, IntFlag
from typing import Annotated, TypeVar

from wire_layout import S32, U8, U16, U32, U64, Record, run_of_bytes

__all__ = [
    "Destroy",
    "DirtyBitmapFlag",
    "DirtyTrackingFlag",
    "FaultQueueAlloc",
    "GetHwInfo",
    "HwCapability",
    "HwInfoFlag",
    "HwQueueAlloc",
    "HwptAlloc",
    "HwptAllocFlag",
    "HwptGetDirtyBitmap",
    "HwptInvalidate",
    "HwptSetDirtyTracking",
    "IoasAlloc",
    "IoasAllowIovas",
    "IoasChangeProcess",
    "IoasCopy",
    "IoasIovaRanges",
    "IoasMap",
    "IoasMapFile",
    "IoasNoiommuGetPa",
    "IoasUnmap",
    "IovaRange",
    "MapFlag",
    "Option",
    "OptionId",
    "OptionOp",
    "PageResponse",
    "PageResponseCode",
    "Pgfault",
    "PgfaultFlag",
    "PgfaultPermission",
    "VdeviceAlloc",
    "VeventFlag",
    "VeventHeader",
    "VeventqAlloc",
    "VfioIoas",
    "VfioIoasOp",
    "ViommuAlloc",
    "changed",
]

R = TypeVar("R", bound=Record)


def changed(record: R, **fields: int) -> R:
    """The same record with other values in some fields."""
    made = object.__new__(type(record))
    made.__dict__.update(record.__dict__)
    made.__dict__.update(fields)
    return made


class MapFlag(IntFlag):
    """Of IoasMap, IoasMapFile and IoasCopy."""

    FIXED_IOVA = 1
    WRITEABLE = 2
    READABLE = 4


class HwptAllocFlag(IntFlag):
    NEST_PARENT = 1
    DIRTY_TRACKING = 2
    FAULT_ID_VALID = 4
    PASID = 8


class HwInfoFlag(IntFlag):
    INPUT_TYPE = 1


class HwCapability(IntFlag):
    """In `out_capabilities` of GetHwInfo."""

    DIRTY_TRACKING = 1
    PASID_EXEC = 2
    PASID_PRIV = 4
    ATS_NOT_SUPPORTED = 8


class DirtyTrackingFlag(IntFlag):
    ENABLE = 1


class DirtyBitmapFlag(IntFlag):
    NO_CLEAR = 1


class OptionId(IntEnum):
    RLIMIT_MODE = 0
    HUGE_PAGES = 1


class OptionOp(IntEnum):
    SET = 0
    GET = 1


class VfioIoasOp(IntEnum):
    GET = 0
    SET = 1
    CLEAR = 2


class PgfaultFlag(IntFlag):
    PASID_VALID = 1
    LAST_PAGE = 2


class PgfaultPermission(IntFlag):
    READ = 1
    WRITE = 2
    EXEC = 4
    PRIVILEGED = 8


class PageResponseCode(IntEnum):
    SUCCESS = 0
    INVALID = 1


class VeventFlag(IntFlag):
    LOST_EVENTS = 1


class Destroy(Record):
    """Destroy an object."""

    size: Annotated[int, U32, "bytes of this structure"]
    id: Annotated[int, U32, "the object"]


class IoasAlloc(Record):
    """Allocate an I/O address space."""

    size: Annotated[int, U32, "bytes of this structure"]
    flags: Annotated[int, U32, "0"]
    out_ioas_id: Annotated[int, U32, "its id"]


class IovaRange(Record):
    """A range of IOVAs, in arrays of IoasIovaRanges and IoasAllowIovas. VFIO's is the same."""

    start: Annotated[int, U64, "first IOVA"]
    last: Annotated[int, U64, "last IOVA, inclusive"]


class IoasAllowIovas(Record):
    """Replace the ranges in which IOVAs are chosen."""

    size: Annotated[int, U32, "bytes of this structure"]
    ioas_id: Annotated[int, U32, "the IOAS"]
    num_iovas: Annotated[int, U32, "ranges in the array; 0: no limit"]
    reserved: Annotated[int, U32, "0"]
    allowed_iovas: Annotated[int, U64, "address of an array of IovaRange"]


class IoasCopy(Record):
    """Map what is mapped somewhere else already."""

    size: Annotated[int, U32, "bytes of this structure"]
    flags: Annotated[int, U32, "MapFlag"]
    dst_ioas_id: Annotated[int, U32, "the IOAS to map in"]
    src_ioas_id: Annotated[int, U32, "the IOAS that it is mapped in"]
    length: Annotated[int, U64, "bytes"]
    dst_iova: Annotated[int, U64, "where; out, if it is not fixed"]
    src_iova: Annotated[int, U64, "where it is"]


class IoasIovaRanges(Record):
    """What can be mapped."""

    size: Annotated[int, U32, "bytes of this structure"]
    ioas_id: Annotated[int, U32, "the IOAS"]
    num_iovas: Annotated[int, U32, "room in the array; out: ranges that there are"]
    reserved: Annotated[int, U32, "0"]
    allowed_iovas: Annotated[int, U64, "address of an array of IovaRange"]
    out_iova_alignment: Annotated[int, U64, "what IOVAs and lengths must be multiples of"]


class IoasMap(Record):
    """Map memory of the caller."""

    size: Annotated[int, U32, "bytes of this structure"]
    flags: Annotated[int, U32, "MapFlag"]
    ioas_id: Annotated[int, U32, "the IOAS"]
    reserved: Annotated[int, U32, "0"]
    user_va: Annotated[int, U64, "address of the memory"]
    length: Annotated[int, U64, "bytes"]
    iova: Annotated[int, U64, "where; out, if it is not fixed"]


class IoasUnmap(Record):
    """Unmap whole areas. IOVA 0 with the longest length is everything."""

    size: Annotated[int, U32, "bytes of this structure"]
    ioas_id: Annotated[int, U32, "the IOAS"]
    iova: Annotated[int, U64, "where"]
    length: Annotated[int, U64, "bytes; out: bytes that were unmapped"]


class Option(Record):
    """Get or set an option."""

    size: Annotated[int, U32, "bytes of this structure"]
    option_id: Annotated[int, U32, "OptionId"]
    op: Annotated[int, U16, "OptionOp"]
    reserved: Annotated[int, U16, "0"]
    object_id: Annotated[int, U32, "of what; 0: of the whole file"]
    val64: Annotated[int, U64, "the value, in or out"]


class VfioIoas(Record):
    """Which IOAS the requests of VFIO's type1 are about."""

    size: Annotated[int, U32, "bytes of this structure"]
    ioas_id: Annotated[int, U32, "the IOAS, in or out"]
    op: Annotated[int, U16, "VfioIoasOp"]
    reserved: Annotated[int, U16, "0"]


class HwptAlloc(Record):
    """Allocate a page table for a device."""

    size: Annotated[int, U32, "bytes of this structure"]
    flags: Annotated[int, U32, "HwptAllocFlag"]
    dev_id: Annotated[int, U32, "the device"]
    pt_id: Annotated[int, U32, "an IOAS that it is filled from, or what it stands on"]
    out_hwpt_id: Annotated[int, U32, "its id"]
    reserved: Annotated[int, U32, "0"]
    data_type: Annotated[int, U32, "what the data is; 0: none"]
    data_len: Annotated[int, U32, "bytes of data"]
    data_uptr: Annotated[int, U64, "address of the data"]
    fault_id: Annotated[int, U32, "a fault queue, with FAULT_ID_VALID"]
    reserved2: Annotated[int, U32, "not looked at"]


class GetHwInfo(Record):
    """What the IOMMU of a device is and can do."""

    size: Annotated[int, U32, "bytes of this structure"]
    flags: Annotated[int, U32, "HwInfoFlag"]
    dev_id: Annotated[int, U32, "the device"]
    data_len: Annotated[int, U32, "room for data; out: bytes of data that there are"]
    data_uptr: Annotated[int, U64, "address for the data"]
    data_type: Annotated[int, U32, "out, and in with INPUT_TYPE: what the data is; 0: none"]
    out_max_pasid_log2: Annotated[int, U8, "bits of a PASID"]
    reserved: Annotated[bytes, run_of_bytes(3), "0"]
    out_capabilities: Annotated[int, U64, "HwCapability"]


class HwptSetDirtyTracking(Record):
    """Begin or end to note what DMA writes."""

    size: Annotated[int, U32, "bytes of this structure"]
    flags: Annotated[int, U32, "DirtyTrackingFlag"]
    hwpt_id: Annotated[int, U32, "the page table"]
    reserved: Annotated[int, U32, "not looked at"]


class HwptGetDirtyBitmap(Record):
    """What DMA wrote, as bits that are set in a bitmap of the caller: bit i is of iova + i * page_size."""

    size: Annotated[int, U32, "bytes of this structure"]
    hwpt_id: Annotated[int, U32, "the page table"]
    flags: Annotated[int, U32, "DirtyBitmapFlag"]
    reserved: Annotated[int, U32, "0"]
    iova: Annotated[int, U64, "from where on"]
    length: Annotated[int, U64, "bytes"]
    page_size: Annotated[int, U64, "bytes that a bit is about"]
    data: Annotated[int, U64, "address of the bitmap, in words of 64 bits"]


class HwptInvalidate(Record):
    """Invalidate what was cached of a first stage."""

    size: Annotated[int, U32, "bytes of this structure"]
    hwpt_id: Annotated[int, U32, "the nested page table"]
    data_uptr: Annotated[int, U64, "address of an array of entries"]
    data_type: Annotated[int, U32, "what an entry is"]
    entry_len: Annotated[int, U32, "bytes of an entry"]
    entry_num: Annotated[int, U32, "entries; out: entries that were handled"]
    reserved: Annotated[int, U32, "0"]


class FaultQueueAlloc(Record):
    """Allocate a queue of page requests."""

    size: Annotated[int, U32, "bytes of this structure"]
    flags: Annotated[int, U32, "0"]
    out_fault_id: Annotated[int, U32, "its id"]
    out_fault_fd: Annotated[int, U32, "a descriptor that it is read from"]


class IoasMapFile(Record):
    """Map memory of a file."""

    size: Annotated[int, U32, "bytes of this structure"]
    flags: Annotated[int, U32, "MapFlag"]
    ioas_id: Annotated[int, U32, "the IOAS"]
    fd: Annotated[int, S32, "the file"]
    start: Annotated[int, U64, "byte of the file that is mapped first"]
    length: Annotated[int, U64, "bytes"]
    iova: Annotated[int, U64, "where; out, if it is not fixed"]


class ViommuAlloc(Record):
    """Allocate a virtual IOMMU."""

    size: Annotated[int, U32, "bytes of this structure"]
    flags: Annotated[int, U32, "0"]
    type: Annotated[int, U32, "what kind"]
    dev_id: Annotated[int, U32, "a device behind the IOMMU"]
    hwpt_id: Annotated[int, U32, "the nest parent"]
    out_viommu_id: Annotated[int, U32, "its id"]
    data_len: Annotated[int, U32, "bytes of data"]
    reserved: Annotated[int, U32, "not looked at"]
    data_uptr: Annotated[int, U64, "address of the data"]


class VdeviceAlloc(Record):
    """Allocate a device of a virtual IOMMU."""

    size: Annotated[int, U32, "bytes of this structure"]
    viommu_id: Annotated[int, U32, "the virtual IOMMU"]
    dev_id: Annotated[int, U32, "the device"]
    out_vdevice_id: Annotated[int, U32, "its id"]
    virt_id: Annotated[int, U64, "what the guest calls the device"]


class IoasChangeProcess(Record):
    """Account what is pinned to the caller's process."""

    size: Annotated[int, U32, "bytes of this structure"]
    reserved: Annotated[int, U32, "0"]


class VeventqAlloc(Record):
    """Allocate a queue of events of a virtual IOMMU."""

    size: Annotated[int, U32, "bytes of this structure"]
    flags: Annotated[int, U32, "0"]
    viommu_id: Annotated[int, U32, "the virtual IOMMU"]
    type: Annotated[int, U32, "what an event is"]
    veventq_depth: Annotated[int, U32, "events at most"]
    out_veventq_id: Annotated[int, U32, "its id"]
    out_veventq_fd: Annotated[int, U32, "a descriptor that it is read from"]
    reserved: Annotated[int, U32, "0"]


class HwQueueAlloc(Record):
    """Allocate a queue of a virtual IOMMU that its hardware reads."""

    size: Annotated[int, U32, "bytes of this structure"]
    flags: Annotated[int, U32, "0"]
    viommu_id: Annotated[int, U32, "the virtual IOMMU"]
    type: Annotated[int, U32, "what kind"]
    index: Annotated[int, U32, "which one"]
    out_hw_queue_id: Annotated[int, U32, "its id"]
    nesting_parent_iova: Annotated[int, U64, "where it lies"]
    length: Annotated[int, U64, "bytes"]


class IoasNoiommuGetPa(Record):
    """Where memory is, for devices without an IOMMU."""

    size: Annotated[int, U32, "bytes of this structure"]
    flags: Annotated[int, U32, "0"]
    ioas_id: Annotated[int, U32, "the IOAS"]
    reserved: Annotated[int, U32, "0"]
    iova: Annotated[int, U64, "from where on"]
    length: Annotated[int, U64, "bytes, in and out"]
    out_phys: Annotated[int, U64, "its physical address"]


class Pgfault(Record):
    """A page request, as it is read from a fault queue."""

    flags: Annotated[int, U32, "PgfaultFlag"]
    dev_id: Annotated[int, U32, "the device"]
    pasid: Annotated[int, U32, "with PASID_VALID, that of its DMA"]
    grpid: Annotated[int, U32, "what the device asked for at once has one number"]
    perm: Annotated[int, U32, "PgfaultPermission"]
    reserved: Annotated[int, U32, "0"]
    addr: Annotated[int, U64, "the IOVA"]
    length: Annotated[int, U32, "bytes that are asked for; 0: a page"]
    cookie: Annotated[int, U32, "what the answer must have"]


class PageResponse(Record):
    """The answer, as it is written to a fault queue."""

    cookie: Annotated[int, U32, "that of the request"]
    code: Annotated[int, U32, "PageResponseCode"]


class VeventHeader(Record):
    """What stands before each event that is read from the queue of a virtual IOMMU."""

    flags: Annotated[int, U32, "VeventFlag; with LOST_EVENTS no event follows"]
    sequence: Annotated[int, U32, "how many events there were before it, modulo 2^31"]
