"""The DMA test engine: registers, descriptors and scatter/gather entries.

BAR 0 (4 KiB) holds trapped registers, BAR 2 (64 KiB, shared memory) the descriptors and the scatter/gather entries,
BAR 4 the MSI-X table (one vector). Descriptors lie in the device and not in guest memory on purpose: what became of
a request can be read even when the IOMMU lets the device reach nothing.

A descriptor is a request of its own: it is translated over its whole span before a byte moves, and refused whole.
"""

from enum import IntEnum, IntFlag
from typing import Annotated

from wire_layout import U8, U16, U32, U64, Record
from wire_layout.registers import AccessKind, BitField, BitFields, Register, RegisterMap

MAGIC = 0x54445650
"""``PVDT`` in memory order."""
VERSION = 1
ENTRIES = 256
SG_ENTRIES = 2048
SG_OFFSET = 0x8000
"""First scatter/gather entry in BAR 2; the descriptors begin at 0."""
SHARED_BAR_SIZE = 0x10000
MAX_LENGTH = 4 << 20
"""Most bytes of one descriptor."""
MSIX_VECTORS = 1


class Control(BitFields):
    """Bits of CONTROL."""

    ENABLE = BitField(0)
    RESET = BitField(1, access=AccessKind.WO, doc="cancels what is queued and clears PRODUCER and CONSUMER; reads as 0")


RO, RW = AccessKind.RO, AccessKind.RW

REGISTERS = RegisterMap(
    Register("MAGIC", 0x00, RO, "``PVDT`` in memory order", reset=MAGIC),
    Register("VERSION", 0x04, RO, "version of this interface", reset=VERSION),
    Register("ENTRIES", 0x08, RO, "descriptors of the queue", reset=ENTRIES),
    Register("SG_ENTRIES", 0x0C, RO, "scatter/gather entries", reset=SG_ENTRIES),
    Register("MAX_LENGTH", 0x10, RO, "most bytes of one descriptor, 4 MiB", reset=MAX_LENGTH),
    Register("CONTROL", 0x14, RW, "PVDT_CONTROL_*", holds=Control),
    Register("PRODUCER", 0x18, RW, "descriptors submitted, running freely; writing it starts the engine"),
    Register("CONSUMER", 0x1C, RO, "descriptors finished, running freely"),
)
REGISTER = REGISTERS.by_name


class DmaOp(IntEnum):
    """What a descriptor asks for."""

    COPY = 1
    """move ``length`` bytes from ``src`` to ``dst``"""
    FILL = 2
    """write ``pattern`` over and over to ``dst``"""
    CHECKSUM = 3
    """CRC-32 (IEEE 802.3, as zlib has it) of ``src`` into ``checksum``"""
    VERIFY = 4
    """compare ``src`` with ``pattern`` over and over"""


class DescriptorFlags(IntFlag):
    """Flags of a descriptor."""

    SRC_SG = 1 << 0
    """``src`` names scatter/gather entries: index | count << 32"""
    DST_SG = 1 << 1
    """``dst`` names scatter/gather entries: index | count << 32"""
    INTERRUPT = 1 << 2
    """raise vector 0 when it is finished"""
    PASID = 1 << 3
    """its DMA has ``pasid``; invalid unless the guest has turned PASIDs on"""


class DescriptorStatus(IntEnum):
    """What became of a descriptor."""

    PENDING = 0
    DONE = 1
    FAULT = 2
    """refused by the IOMMU, nothing moved; ``detail`` is the first refused address"""
    INVALID = 3
    """unknown operation or flags, or a length, index or count past its limit; nothing moved"""
    MISMATCH = 4
    """VERIFY found a difference; ``detail`` is its offset in bytes"""
    CANCELLED = 5
    """a reset came first"""


class Descriptor(Record):
    """One request."""

    op: Annotated[int, U8, "DmaOp"]
    flags: Annotated[int, U8, "DescriptorFlags"]
    pad0: Annotated[int, U16, "0"]
    length: Annotated[int, U32, "bytes, 1 to MAX_LENGTH"]
    src: Annotated[int, U64, "device address or scatter/gather entries"]
    dst: Annotated[int, U64, "device address or scatter/gather entries"]
    pattern: Annotated[int, U64, "eight bytes, in memory order"]
    detail: Annotated[int, U64, "OUT: refused address or offset of the difference"] = 0
    checksum: Annotated[int, U32, "OUT: CRC-32"] = 0
    reason: Annotated[int, U16, "OUT: EventReason of a fault"] = 0
    access: Annotated[int, U16, "OUT: EventAccess of a fault"] = 0
    pad1: Annotated[int, U64, "0"] = 0
    pasid: Annotated[int, U32, "PASID of its DMA, with the flag"] = 0
    status: Annotated[int, U32, "OUT: DescriptorStatus, written last"] = 0


class SgEntry(Record):
    """One scatter/gather entry. The lengths of a list must add up to the descriptor's length."""

    address: Annotated[int, U64, "device address"]
    length: Annotated[int, U32, "bytes, not 0"]
    pad0: Annotated[int, U32, "0"] = 0
