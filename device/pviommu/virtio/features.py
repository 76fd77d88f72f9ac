"""Feature bits that belong to no kind of device, and the device's status (sections 6 and 2.1)."""

from __future__ import annotations

from wire_layout.registers import BitField, BitFields

__all__ = [
    "ACCESS_PLATFORM",
    "INDIRECT_DESC",
    "IN_ORDER",
    "REQUIRED",
    "RING_EVENT_IDX",
    "RING_PACKED",
    "RING_RESET",
    "TRANSPORT",
    "VERSION_1",
    "DeviceStatus",
]

INDIRECT_DESC = 1 << 28
"""a descriptor may refer to a table of descriptors"""
RING_EVENT_IDX = 1 << 29
"""both sides say at which entry they want to be notified"""
VERSION_1 = 1 << 32
"""not a legacy device"""
ACCESS_PLATFORM = 1 << 33
"""addresses are what the platform translates: device addresses of the IOMMU"""
RING_PACKED = 1 << 34
"""rings of one part instead of three"""
IN_ORDER = 1 << 35
"""buffers are used in the order in which they were made available"""
RING_RESET = 1 << 40
"""one queue can be reset alone"""

REQUIRED = VERSION_1 | ACCESS_PLATFORM
"""A driver that does not accept these would use guest-physical addresses, past the IOMMU: it gets no FEATURES_OK."""
TRANSPORT = REQUIRED | INDIRECT_DESC | RING_EVENT_IDX | RING_PACKED | IN_ORDER | RING_RESET
"""what rings and registers of this package can do"""


class DeviceStatus(BitFields, width=8):
    """Device status (section 2.1). The driver sets bits one after the other; writing 0 resets the device."""

    ACKNOWLEDGE = BitField(0, doc="the guest has found the device")
    DRIVER = BitField(1, doc="the guest has a driver for it")
    DRIVER_OK = BitField(2, doc="the driver is ready: the device may use the queues")
    FEATURES_OK = BitField(3, doc="the device accepts the driver's features; reads as 0 if it does not")
    DEVICE_NEEDS_RESET = BitField(6, doc="set by the device: it cannot go on")
    FAILED = BitField(7, doc="the driver has given up")
