"""What a virtio device shows on PCI: capabilities, and the registers that they lead to (section 4.1).

All registers are in one BAR, so that each of the four structures is a range of it.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import IntEnum

from wire_layout.registers import AccessKind, BitField, BitFields, Register, RegisterMap

from ..pci.capabilities import CAP_ID_VENDOR, Capability
from .features import DeviceStatus

__all__ = [
    "COMMON",
    "CONFIG_OFFSET",
    "DEVICE_ID_BASE",
    "ISR_OFFSET",
    "NOTIFY_OFFSET",
    "NOTIFY_STRIDE",
    "NO_VECTOR",
    "PCI_CFG_DATA",
    "REGISTER_BAR",
    "REGISTER_BAR_SIZE",
    "VENDOR_ID",
    "CapabilityType",
    "Isr",
    "capabilities",
    "pci_cfg",
    "registers",
]

VENDOR_ID = 0x1AF4
DEVICE_ID_BASE = 0x1040
"""plus the virtio device ID: the PCI device ID of a device that is not transitional"""
NO_VECTOR = 0xFFFF
"""VIRTIO_MSI_NO_VECTOR"""
REGISTER_BAR = 0
REGISTER_BAR_SIZE = 0x2000
ISR_OFFSET, CONFIG_OFFSET, NOTIFY_OFFSET = 0x0100, 0x0200, 0x1000
NOTIFY_STRIDE = 4
"""``notify_off_multiplier``: each queue has a register of its own"""


class CapabilityType(IntEnum):
    """``cfg_type``: what a capability leads to."""

    COMMON_CFG = 1
    NOTIFY_CFG = 2
    ISR_CFG = 3
    DEVICE_CFG = 4
    PCI_CFG = 5


class Isr(BitFields, width=8):
    """ISR status. Reading it clears it."""

    QUEUE = BitField(0, doc="a queue has used buffers")
    CONFIGURATION = BitField(1, doc="the configuration has changed")


COMMON = RegisterMap(
    Register("DEVICE_FEATURE_SELECT", 0x00, AccessKind.RW, "which 32 bits DEVICE_FEATURE shows"),
    Register("DEVICE_FEATURE", 0x04, AccessKind.RO, "features that the device offers", reset=None),
    Register("DRIVER_FEATURE_SELECT", 0x08, AccessKind.RW, "which 32 bits DRIVER_FEATURE is"),
    Register("DRIVER_FEATURE", 0x0C, AccessKind.RW, "features that the driver accepts"),
    Register("CONFIG_MSIX_VECTOR", 0x10, AccessKind.RW, "vector of configuration changes", width=16, reset=NO_VECTOR),
    Register("NUM_QUEUES", 0x12, AccessKind.RO, "how many queues there are", width=16, reset=None),
    Register("DEVICE_STATUS", 0x14, AccessKind.RW, "how far the driver has come", width=8, holds=DeviceStatus),
    Register("CONFIG_GENERATION", 0x15, AccessKind.RO, "changes with the device's configuration", width=8),
    Register("QUEUE_SELECT", 0x16, AccessKind.RW, "which queue the following registers are of", width=16),
    Register("QUEUE_SIZE", 0x18, AccessKind.RW, "entries; 0: there is no such queue", width=16),
    Register("QUEUE_MSIX_VECTOR", 0x1A, AccessKind.RW, "vector of used buffers", width=16, reset=NO_VECTOR),
    Register("QUEUE_ENABLE", 0x1C, AccessKind.RW, "1: it is in use", width=16),
    Register("QUEUE_NOTIFY_OFF", 0x1E, AccessKind.RO, "which notification register it has", width=16),
    Register("QUEUE_DESC", 0x20, AccessKind.RW, "device address of the descriptor area", width=64),
    Register("QUEUE_DRIVER", 0x28, AccessKind.RW, "device address of the driver area", width=64),
    Register("QUEUE_DEVICE", 0x30, AccessKind.RW, "device address of the device area", width=64),
    Register("QUEUE_NOTIFY_DATA", 0x38, AccessKind.RES0, "NOTIF_CONFIG_DATA is not offered", width=16),
    Register("QUEUE_RESET", 0x3A, AccessKind.RW, "1 resets the queue, if RING_RESET is negotiated", width=16),
)
"""The common configuration structure (section 4.1.4.3)."""


def registers(queues: int, config: Iterable[Register]) -> RegisterMap:
    """The registers of a device with so many queues, whose own configuration is ``config``, from offset 0 on."""
    isr = Register("ISR_STATUS", ISR_OFFSET, AccessKind.RO, "why there was an interrupt", width=8, holds=Isr)
    notify = Register("NOTIFY", NOTIFY_OFFSET, AccessKind.WO, "new buffers", queues, width=16, stride=NOTIFY_STRIDE)
    return RegisterMap(*COMMON, isr, *(_moved(register, CONFIG_OFFSET) for register in config), notify)


def _moved(register: Register, by: int) -> Register:
    return Register(
        register.name,
        register.offset + by,
        register.access,
        register.doc,
        register.count,
        width=register.width,
        holds=register.holds,
        reset=None if register.fields else register.reset,
        stride=register.stride,
        prefix=register.prefix,
    )


PCI_CFG_DATA = 16
"""Offset of ``pci_cfg_data`` within its capability."""


def _capability(kind: CapabilityType, offset: int, length: int, more: bytes = b"") -> bytes:
    head = bytes([CAP_ID_VENDOR, 0, 16 + len(more), kind, REGISTER_BAR, 0, 0, 0])
    return head + offset.to_bytes(4, "little") + length.to_bytes(4, "little") + more


def capabilities(queues: int, config_length: int) -> list[Capability]:
    """Capabilities of a device with so many queues and so many bytes of configuration; the last is
    :attr:`CapabilityType.PCI_CFG` (section 4.1.4).
    """
    writable = bytes(4) + b"\xff" + bytes(3) + b"\xff" * 12  # bar, offset, length, pci_cfg_data
    multiplier = NOTIFY_STRIDE.to_bytes(4, "little")
    return [
        Capability(_capability(CapabilityType.COMMON_CFG, 0, COMMON.end), b""),
        Capability(_capability(CapabilityType.NOTIFY_CFG, NOTIFY_OFFSET, queues * NOTIFY_STRIDE, multiplier), b""),
        Capability(_capability(CapabilityType.ISR_CFG, ISR_OFFSET, 1), b""),
        Capability(_capability(CapabilityType.DEVICE_CFG, CONFIG_OFFSET, config_length), b""),
        Capability(_capability(CapabilityType.PCI_CFG, 0, 0, bytes(4)), writable),
    ]


def pci_cfg(body: bytes) -> tuple[int, int, int]:
    """BAR, offset and length of what ``pci_cfg_data`` stands for, from the bytes of the capability by which a guest
    reaches BARs without mapping them (section 4.1.4.9)."""
    return body[4], int.from_bytes(body[8:12], "little"), int.from_bytes(body[12:16], "little")
