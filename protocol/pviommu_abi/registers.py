"""Trapped registers and PCI identity of the PV-IOMMU function.

BAR 0 (4 KiB, 32-bit) holds the registers: 32-bit words at multiples of four, other accesses read 0 and write
nothing. BAR 2 (64-bit, prefetchable) is the shared memory of :mod:`pviommu_abi.shared`. BAR 4 (32-bit) holds the
MSI-X table and its pending bits: vector 0 for events, vector 1 + n for ring n.

The order of setting up: select a profile while all rings are off, place and enable ring 0, go. Selecting a profile
resets the device.
"""

from dataclasses import dataclass
from enum import Enum, IntEnum, IntFlag
from typing import Annotated

from wire_layout import U8, U32, Record

from .shared import MAX_RINGS

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


class Access(Enum):
    """How a register behaves."""

    RO = "read only; writes are ignored"
    RW = "reads back what was written"
    WO = "reads as 0"


@dataclass(frozen=True)
class Register:
    """One 32-bit register, or ``count`` of them in a row: byte offset in BAR 0, access kind, meaning."""

    name: str
    offset: int
    access: Access
    doc: str
    count: int = 1


REGISTERS = (
    Register("MAGIC", 0x000, Access.RO, "0x4d495650"),
    Register("VERSION", 0x004, Access.RO, "ABI version, 1"),
    Register("FEATURES", 0x008, Access.RO, "PVIOMMU_FEATURE_*"),
    Register("INSTANCE", 0x00C, Access.RO, "which PV-IOMMU this is; endpoints carry the same number"),
    Register("STATUS", 0x010, Access.RO, "PVIOMMU_STATUS_*"),
    Register(
        "PROFILE",
        0x014,
        Access.RW,
        "PVIOMMU_PROFILE_*; writable while all rings are off, and resets; 0 after reset",
    ),
    Register("RESET", 0x018, Access.WO, "PVIOMMU_RESET_*: brings the device to its power-on state"),
    Register("MAX_RINGS", 0x01C, Access.RO, "rings of this device"),
    Register("MAX_RING_ENTRIES", 0x020, Access.RO, "largest RING_ENTRIES"),
    Register("RING_AREA", 0x024, Access.RO, "first byte of BAR 2 at which a ring may lie"),
    Register("RING_AREA_SIZE", 0x028, Access.RO, "bytes of BAR 2 in which rings may lie"),
    Register("DOORBELLS", 0x02C, Access.RO, "doorbells rung since the device was started, modulo 2**32"),
    Register("RING_SELECT", 0x080, Access.RW, "the ring that the registers below belong to"),
    Register("RING_TYPE", 0x084, Access.RW, "PVIOMMU_RING_TYPE_*: what RING_BASE counts from"),
    Register("RING_ENTRIES", 0x088, Access.RW, "slots, a power of two from 16 to MAX_RING_ENTRIES"),
    Register("RING_BASE_LO", 0x08C, Access.RW, "place of slot 0, low half; a multiple of 4096"),
    Register("RING_BASE_HI", 0x090, Access.RW, "place of slot 0, high half"),
    Register("RING_CONTROL", 0x094, Access.RW, "bit 0 turns the ring on; its index words must be 0 then"),
    Register("RING_STATUS", 0x098, Access.RO, "PVIOMMU_RING_STATUS_*"),
    Register("DOORBELL", 0x100, Access.WO, "doorbell of ring n at 0x100 + 4 * n; the value is ignored", MAX_RINGS),
)
REGISTER = {register.name: register for register in REGISTERS}
DOORBELL_STRIDE = 4


class Feature(IntFlag):
    """Bits of FEATURES."""

    PROFILE_XEN_2024 = 1 << 0
    POSTED = 1 << 1
    PROFILE_XEN_V7 = 1 << 2
    BATCH_2014 = 1 << 3
    """operations BATCH and CALL"""


class Status(IntFlag):
    """Bits of STATUS."""

    REFUSED = 1 << 0
    """the last write to a writable register was refused; the next accepted one clears this"""
    RINGS_ON = 1 << 1
    MEMORY_NOT_SHARED = 1 << 2
    """the memory that the hypervisor handed over is not what the guest uses (``share=on`` is missing)"""


class Reset(IntEnum):
    """Values for RESET. Functions outside context 0 are blocked by either."""

    POWER_ON = 1
    """a function's own reset, or its bus mastering turned on anew, unblocks it"""
    BLOCKED = 2
    """only attaching unblocks them: whoever owns them may reset them, and nobody translates for them any more"""


class Profile(IntEnum):
    """Values of PROFILE."""

    NONE = 0
    XEN_2024 = 1
    XEN_V7 = 2


class RingType(IntEnum):
    """Values of RING_TYPE."""

    SHARED_BAR = 0


class RingControl(IntFlag):
    """Bits of RING_CONTROL."""

    ENABLE = 1 << 0


class RingStatus(IntFlag):
    """Bits of RING_STATUS."""

    ENABLED = 1 << 0
    BROKEN = 1 << 1
    """the producer index was impossible; off and on again repairs it"""


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
