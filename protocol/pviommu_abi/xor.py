"""The XOR endpoint, an example of a device: it XORs every byte of a buffer with a key.

BAR 0 (4 KiB) holds trapped registers, BAR 4 the MSI-X table (one vector). ADDRESS and LENGTH say where the buffer is, a
write to START begins. Vector 0 is raised when STATUS is no longer BUSY, before which nothing should be written.
"""

from enum import IntEnum

from wire_layout.registers import AccessKind, Register, RegisterMap

MAX_LENGTH = 64 << 10
"""Most bytes of a buffer."""


class Status(IntEnum):
    """Values of STATUS."""

    IDLE = 0
    BUSY = 1
    DONE = 2
    REFUSED = 3
    """by the IOMMU: the buffer is as it was"""
    CANCELLED = 4
    """the IOMMU was reset first"""


REGISTERS = RegisterMap(
    Register("KEY", 0x00, AccessKind.RO, "what every byte is XORed with; the topology says it", reset=None),
    Register("LENGTH", 0x04, AccessKind.RW, "bytes of the buffer, 1 to PVXOR_MAX_LENGTH"),
    Register("ADDRESS", 0x08, AccessKind.RW, "device address of the buffer", width=64),
    Register("START", 0x10, AccessKind.WO, "any value begins, if LENGTH is right; STATUS is BUSY then"),
    Register("STATUS", 0x14, AccessKind.RO, "PVXOR_STATUS_*", holds=Status),
)
REGISTER = REGISTERS.by_name
