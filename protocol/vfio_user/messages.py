"""Every message of the vfio-user protocol, declared once.

Source: QEMU 11.1 ``docs/interop/vfio-user.rst``. Structures are packed and in host byte order, which this package
takes to be little-endian. ``argsz`` is the size in bytes of a structure including what follows it: in a request
the most that the sender accepts in the reply, in a reply what the complete answer needs.
"""

import enum
from typing import Annotated

from wire_layout import U16, U32, U64, Record, run_of_bytes

__all__ = [
    "IRQ_COUNT",
    "REGION_COUNT",
    "WRITE_MULTI_DATA_BYTES",
    "WRITE_MULTI_MAX",
    "CapabilityHeader",
    "CapabilityId",
    "Command",
    "DeviceFeature",
    "DeviceFlags",
    "DmaAccess",
    "DmaMap",
    "DmaMapFlags",
    "DmaUnmap",
    "DmaUnmapFlags",
    "FeatureFlags",
    "GetInfo",
    "GetIrqInfo",
    "GetRegionInfo",
    "GetRegionIoFds",
    "Header",
    "HeaderFlags",
    "IrqIndex",
    "IrqInfoFlags",
    "MessageType",
    "MigrationData",
    "RegionAccess",
    "RegionFlags",
    "RegionIndex",
    "SetIrqs",
    "SetIrqsFlags",
    "SparseArea",
    "SparseMmap",
    "Version",
    "WriteMulti",
    "WriteMultiEntry",
]

WRITE_MULTI_MAX = 200
"""most writes in one REGION_WRITE_MULTI; what QEMU's client packs at most"""

WRITE_MULTI_DATA_BYTES = 8
"""most bytes of one write in a REGION_WRITE_MULTI"""


class Command(enum.IntEnum):
    """Command numbers. 13 was VM_INTERRUPT up to draft 0.9; 14 was removed in draft 0.9.2 and is always refused."""

    VERSION = 1
    DMA_MAP = 2
    DMA_UNMAP = 3
    DEVICE_GET_INFO = 4
    DEVICE_GET_REGION_INFO = 5
    DEVICE_GET_REGION_IO_FDS = 6
    DEVICE_GET_IRQ_INFO = 7
    DEVICE_SET_IRQS = 8
    REGION_READ = 9
    REGION_WRITE = 10
    DMA_READ = 11
    DMA_WRITE = 12
    DEVICE_RESET = 13
    DIRTY_PAGES = 14
    REGION_WRITE_MULTI = 15
    DEVICE_FEATURE = 16
    MIG_DATA_READ = 17
    MIG_DATA_WRITE = 18


class MessageType(enum.IntEnum):
    """The low four bits of the header flags."""

    COMMAND = 0
    REPLY = 1


class HeaderFlags(enum.IntFlag):
    """Header flags above the message type. Unknown bits are ignored on receipt."""

    NO_REPLY = 0x10
    ERROR = 0x20


_NO_REPLY = int(HeaderFlags.NO_REPLY)  # IntFlag arithmetic takes a microsecond, and every message needs it


class Header(Record):
    """Begins every message."""

    id: Annotated[int, U16, "chosen by the requester, echoed in the reply; may repeat"]
    command: Annotated[int, U16, "a Command; echoed in the reply"]
    size: Annotated[int, U32, "bytes of the whole message, this header included"]
    flags: Annotated[int, U32, "bits 0-3 MessageType, then HeaderFlags"]
    error: Annotated[int, U32, "positive errno, only in a reply with HeaderFlags.ERROR"]

    @property
    def type(self) -> int:
        """The message type; a :class:`MessageType` if the peer keeps to the protocol."""
        return self.flags & 0xF

    @property
    def no_reply(self) -> bool:
        """Whether the requester forbids any reply, an error reply too."""
        return bool(self.flags & _NO_REPLY)


class Version(Record):
    """VERSION, request and reply; JSON text ending in NUL may follow."""

    major: Annotated[int, U16, "0 in every known implementation"]
    minor: Annotated[int, U16, "0 QEMU, 1 rust-vmm and SPDK, 2 libvfio-user; a reply never exceeds the request"]


class DmaMapFlags(enum.IntFlag):
    """Flags of DMA_MAP. The two access modes need a descriptor."""

    READ = 1
    WRITE = 2
    MMAP = 4
    FILE_IO = 8


class DmaMap(Record):
    """DMA_MAP: a range of guest memory becomes reachable; at most one descriptor comes along. Empty reply."""

    argsz: Annotated[int, U32, "32"]
    flags: Annotated[int, U32, "DmaMapFlags"]
    offset: Annotated[int, U64, "bytes into the descriptor's file; 0 without descriptor"]
    address: Annotated[int, U64, "first DMA address"]
    size: Annotated[int, U64, "bytes"]


class DmaUnmapFlags(enum.IntFlag):
    """Flags of DMA_UNMAP."""

    GET_DIRTY_BITMAP = 1
    ALL = 2


class DmaUnmap(Record):
    """DMA_UNMAP: request and reply, which echoes it."""

    argsz: Annotated[int, U32, "24"]
    flags: Annotated[int, U32, "DmaUnmapFlags"]
    address: Annotated[int, U64, "as in the DMA_MAP to undo; 0 with ALL"]
    size: Annotated[int, U64, "as in the DMA_MAP to undo; 0 with ALL"]


class DeviceFlags(enum.IntFlag):
    """Flags of DEVICE_GET_INFO."""

    RESET = 1
    PCI = 2


class GetInfo(Record):
    """DEVICE_GET_INFO, request and reply."""

    argsz: Annotated[int, U32, "16"]
    flags: Annotated[int, U32, "DeviceFlags; 0 in a request"]
    num_regions: Annotated[int, U32, "9 for a PCI function; 0 in a request"]
    num_irqs: Annotated[int, U32, "interrupt indexes, 5 for a PCI function; 0 in a request"]


class RegionIndex(enum.IntEnum):
    """Regions of a PCI function, as in linux/vfio.h."""

    BAR0 = 0
    BAR1 = 1
    BAR2 = 2
    BAR3 = 3
    BAR4 = 4
    BAR5 = 5
    ROM = 6
    CONFIG = 7
    VGA = 8


REGION_COUNT = len(RegionIndex)


class RegionFlags(enum.IntFlag):
    """Flags of a region."""

    READ = 1
    WRITE = 2
    MMAP = 4
    CAPS = 8


class GetRegionInfo(Record):
    """DEVICE_GET_REGION_INFO, request and reply; capabilities may follow the reply."""

    argsz: Annotated[int, U32, "bytes of this structure and of all its capabilities"]
    flags: Annotated[int, U32, "RegionFlags; 0 in a request"]
    index: Annotated[int, U32, "RegionIndex"]
    cap_offset: Annotated[int, U32, "bytes from here to the first capability; 0 none"]
    size: Annotated[int, U64, "bytes of the region; 0 absent"]
    offset: Annotated[int, U64, "where the region begins in the file of the descriptor that comes along"]


class CapabilityId(enum.IntEnum):
    """Capabilities of a region, as in linux/vfio.h."""

    SPARSE_MMAP = 1
    TYPE = 2
    MSIX_MAPPABLE = 3


class CapabilityHeader(Record):
    """Begins each capability of a region."""

    id: Annotated[int, U16, "CapabilityId"]
    version: Annotated[int, U16, "1"]
    next: Annotated[int, U32, "bytes from the start of the region info to the next capability; 0 last"]


class SparseMmap(Record):
    """Follows the header of a SPARSE_MMAP capability; ``nr_areas`` areas follow it."""

    nr_areas: Annotated[int, U32, "number of SparseArea"]
    reserved: Annotated[int, U32, "0"]


class SparseArea(Record):
    """A part of a region that may be mmapped. Page aligned; areas do not overlap."""

    offset: Annotated[int, U64, "bytes into the region"]
    size: Annotated[int, U64, "bytes"]


class GetRegionIoFds(Record):
    """DEVICE_GET_REGION_IO_FDS, request and reply. QEMU 11.1 never sends it."""

    argsz: Annotated[int, U32, "16 and the array"]
    flags: Annotated[int, U32, "0"]
    index: Annotated[int, U32, "RegionIndex"]
    count: Annotated[int, U32, "entries of the array; 0 in a request"]


class IrqIndex(enum.IntEnum):
    """Interrupt indexes of a PCI function, as in linux/vfio.h."""

    INTX = 0
    MSI = 1
    MSIX = 2
    ERR = 3
    REQ = 4


IRQ_COUNT = len(IrqIndex)


class IrqInfoFlags(enum.IntFlag):
    """What an interrupt index can do."""

    EVENTFD = 1
    MASKABLE = 2
    AUTOMASKED = 4
    NORESIZE = 8


class GetIrqInfo(Record):
    """DEVICE_GET_IRQ_INFO, request and reply."""

    argsz: Annotated[int, U32, "16"]
    flags: Annotated[int, U32, "IrqInfoFlags; 0 in a request"]
    index: Annotated[int, U32, "IrqIndex"]
    count: Annotated[int, U32, "vectors of this index; 0 in a request"]


class SetIrqsFlags(enum.IntFlag):
    """Exactly one DATA and one ACTION bit; other bits are ignored."""

    DATA_NONE = 1
    DATA_BOOL = 2
    DATA_EVENTFD = 4
    ACTION_MASK = 8
    ACTION_UNMASK = 16
    ACTION_TRIGGER = 32


class SetIrqs(Record):
    """DEVICE_SET_IRQS; ``count`` bytes follow with DATA_BOOL, descriptors come along with DATA_EVENTFD."""

    argsz: Annotated[int, U32, "20 and the bytes of DATA_BOOL; descriptors are not counted"]
    flags: Annotated[int, U32, "SetIrqsFlags"]
    index: Annotated[int, U32, "IrqIndex"]
    start: Annotated[int, U32, "first vector"]
    count: Annotated[int, U32, "vectors"]


class RegionAccess(Record):
    """REGION_READ and REGION_WRITE, request and reply; data follows a read reply and a write request."""

    offset: Annotated[int, U64, "bytes into the region"]
    region: Annotated[int, U32, "RegionIndex"]
    count: Annotated[int, U32, "bytes, at most the peer's max_data_xfer_size"]


class WriteMulti(Record):
    """REGION_WRITE_MULTI: begins a request of ``wr_cnt`` entries and is the reply."""

    wr_cnt: Annotated[int, U64, "1 to WRITE_MULTI_MAX"]


class WriteMultiEntry(Record):
    """One write of a REGION_WRITE_MULTI."""

    offset: Annotated[int, U64, "bytes into the region"]
    region: Annotated[int, U32, "RegionIndex"]
    count: Annotated[int, U32, "bytes of data, at most 8"]
    data: Annotated[bytes, run_of_bytes(WRITE_MULTI_DATA_BYTES), "the first count bytes are written"]


class DmaAccess(Record):
    """DMA_READ and DMA_WRITE, server to client; data follows a read reply and a write request."""

    address: Annotated[int, U64, "DMA address"]
    count: Annotated[int, U64, "bytes, at most the peer's max_data_xfer_size"]


class FeatureFlags(enum.IntFlag):
    """Operation bits of DEVICE_FEATURE above the 16-bit feature number."""

    GET = 1 << 16
    SET = 1 << 17
    PROBE = 1 << 18


class DeviceFeature(Record):
    """DEVICE_FEATURE, request and reply; feature data follows."""

    argsz: Annotated[int, U32, "8 and the feature data"]
    flags: Annotated[int, U32, "bits 0-15 feature, then FeatureFlags"]


class MigrationData(Record):
    """MIG_DATA_READ and MIG_DATA_WRITE; data follows a read reply and a write request."""

    argsz: Annotated[int, U32, "8 and the data"]
    size: Annotated[int, U32, "bytes of data"]
