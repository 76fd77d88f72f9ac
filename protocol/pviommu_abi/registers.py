"""Trapped registers and PCI identity of the PV-IOMMU function.

BAR 0 (4 KiB, 32-bit) holds the registers: 32-bit words at multiples of four, other accesses read 0 and write
nothing. BAR 2 (64-bit, prefetchable) is the shared memory of :mod:`pviommu_abi.shared`. BAR 4 (32-bit) holds the
MSI-X table and its pending bits: vector 0 for events, vector 1 + n for ring n.

The order of setting up: select a profile while all rings are off, place and enable ring 0, go. Selecting a profile
resets the device.
"""

from enum import IntEnum
from typing import Annotated

from wire_layout import U8, U32, Record
from wire_layout.registers import AccessKind, BitField, BitFields, Register, RegisterMap

from .shared import MAX_RING_ENTRIES, MAX_RINGS, RING_AREA_OFFSET, RING_AREA_SIZE

VENDOR_ID = 0x1234
"""Default PCI vendor id: the unregistered one that QEMU's teaching and test devices use."""
IOMMU_DEVICE_ID = 0x5056
DMA_TEST_DEVICE_ID = 0x5057
TEMPLATE_DEVICE_ID = 0x5058
XOR_DEVICE_ID = 0x5059
IOMMU_CLASS = 0x080600
"""PCI class code: base system peripheral, IOMMU."""
OTHER_SYSTEM_CLASS = 0x088000
"""PCI class code of the test endpoints: base system peripheral, other."""

REGISTER_BAR, SHARED_BAR, MSIX_BAR = 0, 2, 4
REGISTER_BAR_SIZE = 0x1000
MSIX_BAR_SIZE = 0x1000
MSIX_PBA_OFFSET = 0x800
MSIX_VECTORS = 1 + MAX_RINGS

MAGIC = 0x4D495650
"""``PVIM`` in memory order."""
ABI_VERSION = 1


class Feature(BitFields):
    """Bits of FEATURES."""

    PROFILE_XEN_2024 = BitField(0)
    POSTED = BitField(1)
    PROFILE_XEN_V7 = BitField(2)
    BATCH_2014 = BitField(3, doc="operations BATCH and CALL")
    GUEST_TABLES = BitField(4, doc="operations ALLOC_TABLES and FLUSH, capability GUEST_TABLES")


class Status(BitFields):
    """Bits of STATUS."""

    REFUSED = BitField(0, doc="the last write to a writable register was refused; the next accepted one clears this")
    RINGS_ON = BitField(1)
    MEMORY_NOT_SHARED = BitField(
        2, doc="the memory that the hypervisor handed over is not what the guest uses (``share=on`` is missing)"
    )


class Profile(IntEnum):
    """Values of PROFILE."""

    NONE = 0
    XEN_2024 = 1
    XEN_V7 = 2


class Reset(IntEnum):
    """Values for RESET. Functions outside context 0 are blocked by either."""

    POWER_ON = 1
    """a function's own reset, or its bus mastering turned on anew, unblocks it"""
    BLOCKED = 2
    """only attaching unblocks them: whoever owns them may reset them, and nobody translates for them any more"""


class RingType(IntEnum):
    """Values of RING_TYPE."""

    SHARED_BAR = 0


class RingControl(BitFields):
    """Bits of RING_CONTROL."""

    ENABLE = BitField(0)


class RingStatus(BitFields):
    """Bits of RING_STATUS."""

    ENABLED = BitField(0)
    BROKEN = BitField(1, doc="the producer index was impossible; off and on again repairs it")


RO, RW, WO = AccessKind.RO, AccessKind.RW, AccessKind.WO

REGISTERS = RegisterMap(
    Register("MAGIC", 0x000, RO, "``PVIM`` in memory order", reset=MAGIC),
    Register("VERSION", 0x004, RO, "ABI version", reset=ABI_VERSION),
    Register("FEATURES", 0x008, RO, "PVIOMMU_FEATURE_*", holds=Feature, reset=None, prefix="FEATURE"),
    Register("INSTANCE", 0x00C, RO, "which PV-IOMMU this is; endpoints carry the same number", reset=None),
    Register("STATUS", 0x010, RO, "PVIOMMU_STATUS_*", holds=Status),
    Register(
        "PROFILE",
        0x014,
        RW,
        "PVIOMMU_PROFILE_*; writable while all rings are off, and resets",
        holds=Profile,
    ),
    Register("RESET", 0x018, WO, "PVIOMMU_RESET_*: brings the device to its power-on state", holds=Reset),
    Register("MAX_RINGS", 0x01C, RO, "rings of this device", reset=None),
    Register("MAX_RING_ENTRIES", 0x020, RO, "largest RING_ENTRIES", reset=MAX_RING_ENTRIES),
    Register("RING_AREA", 0x024, RO, "first byte of BAR 2 at which a ring may lie", reset=RING_AREA_OFFSET),
    Register("RING_AREA_SIZE", 0x028, RO, "bytes of BAR 2 in which rings may lie", reset=RING_AREA_SIZE),
    Register("DOORBELLS", 0x02C, RO, "doorbells rung since the device was started, modulo 2**32", reset=None),
    Register("RING_SELECT", 0x080, RW, "the ring that the registers below belong to"),
    Register("RING_TYPE", 0x084, RW, "PVIOMMU_RING_TYPE_*: what RING_BASE counts from", holds=RingType),
    Register("RING_ENTRIES", 0x088, RW, "slots, a power of two from 16 to MAX_RING_ENTRIES"),
    Register("RING_BASE_LO", 0x08C, RW, "place of slot 0, low half; a multiple of 4096"),
    Register("RING_BASE_HI", 0x090, RW, "place of slot 0, high half"),
    Register(
        "RING_CONTROL",
        0x094,
        RW,
        "bit 0 turns the ring on; its index words must be 0 then; a write with another bit is refused",
        holds=RingControl,
    ),
    Register("RING_STATUS", 0x098, RO, "PVIOMMU_RING_STATUS_*", holds=RingStatus),
    Register("DOORBELL", 0x100, WO, "doorbell of ring n at 0x100 + 4 * n; the value is ignored", MAX_RINGS),
)
REGISTER = REGISTERS.by_name
DOORBELL_STRIDE = REGISTER["DOORBELL"].stride


ENDPOINT_SIGNATURE = 0x55495650
"""``PVIU`` in memory order."""


class EndpointCapability(Record):
    """Vendor-specific PCI capability (id 0x09) of the PV-IOMMU function and of every endpoint behind it."""

    cap_id: Annotated[int, U8, "0x09"]
    next: Annotated[int, U8, "offset of the next capability"]
    length: Annotated[int, U8, "16"]
    version: Annotated[int, U8, "1"]
    signature: Annotated[int, U32, "ENDPOINT_SIGNATURE"]
    instance: Annotated[int, U32, "INSTANCE of the PV-IOMMU that translates for it"]
    stream: Annotated[int, U32, "stream id; all ones in the PV-IOMMU's own"]
