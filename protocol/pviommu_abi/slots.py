"""Command slots: the 64-byte entries of a ring, and the operations they carry.

A slot is a 16-byte header and a 48-byte payload. The guest fills a slot, the device executes it, writes the OUT
fields of the payload and the result back into the same slot, and then advances the ring's ``completed`` index.

The payload of class ``XEN_2024`` is ``struct pv_iommu_op`` of the June 2024 header of the Xen PV-IOMMU series, bit
for bit (32 bytes; the remaining 16 must be zero). The operations of class ``VENDOR`` are this device's own; they never
borrow Xen numbers.
"""

from enum import IntEnum, IntFlag
from typing import Annotated

from wire_layout import S32, U8, U16, U32, Record

SLOT_SIZE = 64
PAYLOAD_OFFSET = 16
PAYLOAD_SIZE = SLOT_SIZE - PAYLOAD_OFFSET

PAGE_SHIFT = 12
"""DFNs, GFNs and all counts are in pages of 4 KiB."""

DEFAULT_CONTEXT = 0
"""The context that always exists; it can be neither edited nor freed."""


class OpClass(IntEnum):
    """Whose numbering the operation of a slot belongs to."""

    XEN_2024 = 1
    """``pv_iommu_op`` of June 2024; the number is in the payload (``subop_id``), ``op`` must be 0"""
    XEN_V7 = 2
    """versions 4 to 7 of the series; the number is in ``op``, the payload is that operation's structure"""
    VENDOR = 0x80
    """vendor operations; the number is in ``op``"""


class SlotFlags(IntFlag):
    """Flags of a slot; other bits are refused with -EINVAL."""

    POSTED = 1 << 0
    """nobody waits for the result: a failure is reported as an event"""


class Errno(IntEnum):
    """Results of operations, returned negative. Xen's values, which are Linux's on x86."""

    EPERM = 1
    ENOENT = 2
    EIO = 5
    E2BIG = 7
    ENOMEM = 12
    EACCES = 13
    EFAULT = 14
    EBUSY = 16
    EEXIST = 17
    ENODEV = 19
    EINVAL = 22
    ENOSPC = 28
    ERANGE = 34
    EOPNOTSUPP = 95
    EADDRINUSE = 98
    EADDRNOTAVAIL = 99


class Slot(Record):
    """Header of a slot."""

    op_class: Annotated[int, U8, "class of the operation (PVIOMMU_CLASS_*)"]
    op: Annotated[int, U8, "operation of classes that number it here, else 0"]
    flags: Annotated[int, U16, "PVIOMMU_SLOT_*"]
    sequence: Annotated[int, U32, "chosen by the guest; echoed in completed"]
    result: Annotated[int, S32, "OUT: 0 or a negative errno"] = 0
    completed: Annotated[int, U32, "OUT: sequence, written once result and payload are in place"] = 0
