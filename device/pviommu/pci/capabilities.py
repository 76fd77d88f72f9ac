"""Bodies of the PCI capabilities that these functions have (PCI Express Base Specification, chapter 7)."""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

from pviommu_abi.registers import ENDPOINT_SIGNATURE, EndpointCapability
from wire_layout.registers import AccessKind, BitField, BitFields, Register, RegisterMap

__all__ = [
    "ATS",
    "MSIX_ENTRY_SIZE",
    "PASID",
    "PCIE_DEVICE_CONTROL",
    "PCIE_FLR",
    "PRI",
    "PRI_CAPACITY",
    "AtsControl",
    "Capability",
    "ExtendedCapability",
    "PasidControl",
    "PriControl",
    "PriStatus",
    "ats",
    "endpoint",
    "msix",
    "pasid",
    "pcie",
    "pri",
]

CAP_ID_VENDOR = 0x09
MSIX_ENTRY_SIZE = 16
MSIX_MAX_VECTORS = 2048


class PcieCapabilities(BitFields, width=16):
    """PCI Express Capabilities."""

    VERSION = BitField(0, 3, reset=2)
    PORT_TYPE = BitField(4, 7, doc="0: PCI Express endpoint")


class DeviceCapabilities(BitFields):
    """Device Capabilities."""

    ROLE_BASED_ERRORS = BitField(15, reset=1)
    FLR = BitField(28, reset=1, doc="Function Level Reset")


class DeviceControl(BitFields, width=16):
    """Device Control. Only the reset has an effect here, but a guest reads back what it wrote."""

    ERROR_REPORTING = BitField(0, 3)
    RELAXED_ORDERING = BitField(4)
    MAX_PAYLOAD_SIZE = BitField(5, 7)
    EXTENDED_TAG = BitField(8)
    PHANTOM_FUNCTIONS = BitField(9)
    AUX_POWER = BitField(10)
    NO_SNOOP = BitField(11)
    MAX_READ_REQUEST_SIZE = BitField(12, 14)
    INITIATE_FLR = BitField(15, access=AccessKind.WO)


class LinkCapabilities(BitFields):
    """Link Capabilities."""

    MAX_LINK_SPEED = BitField(0, 3, reset=1, doc="1: 2.5 GT/s")
    MAX_LINK_WIDTH = BitField(4, 9, reset=1, doc="lanes")


class LinkStatus(BitFields, width=16):
    """Link Status."""

    CURRENT_LINK_SPEED = BitField(0, 3, reset=1)
    NEGOTIATED_LINK_WIDTH = BitField(4, 9, reset=1)


PCIE = RegisterMap(
    Register("CAP_ID", 0x00, AccessKind.RO, "PCI Express", width=8, reset=0x10),
    Register("NEXT", 0x01, AccessKind.RO, "the next capability", width=8, reset=None),
    Register("CAPABILITIES", 0x02, AccessKind.RO, "version and kind", width=16, holds=PcieCapabilities),
    Register("DEVICE_CAPABILITIES", 0x04, AccessKind.RO, "what the function can", holds=DeviceCapabilities),
    Register("DEVICE_CONTROL", 0x08, AccessKind.RW, "what it shall", width=16, holds=DeviceControl),
    Register("LINK_CAPABILITIES", 0x0C, AccessKind.RO, "what its link can", holds=LinkCapabilities),
    Register("LINK_STATUS", 0x12, AccessKind.RO, "what its link does", width=16, holds=LinkStatus),
    Register("LATER", 0x14, AccessKind.RES0, "slot, root, and second registers: an endpoint has none", 10),
)
PCIE_DEVICE_CONTROL = PCIE.by_name["DEVICE_CONTROL"].offset
"""Offset of Device Control within the PCI Express capability."""
PCIE_FLR = int(DeviceControl.INITIATE_FLR)


class MsixControl(BitFields, width=16):
    """Message Control of MSI-X."""

    TABLE_SIZE = BitField(0, 10, access=AccessKind.RO, doc="vectors less one")
    FUNCTION_MASK = BitField(14)
    ENABLE = BitField(15)


class MsixPlace(BitFields):
    """Where the table, or the pending bits, are."""

    BIR = BitField(0, 2, doc="BAR")
    OFFSET = BitField(3, 31, doc="in units of eight bytes")


MSIX = RegisterMap(
    Register("CAP_ID", 0x00, AccessKind.RO, "MSI-X", width=8, reset=0x11),
    Register("NEXT", 0x01, AccessKind.RO, "the next capability", width=8, reset=None),
    Register("CONTROL", 0x02, AccessKind.RW, "Message Control", width=16, holds=MsixControl),
    Register("TABLE", 0x04, AccessKind.RO, "vectors", holds=MsixPlace, reset=None),
    Register("PBA", 0x08, AccessKind.RO, "pending bits", holds=MsixPlace, reset=None),
)


class ExtendedHeader(BitFields):
    """The first word of an extended capability."""

    CAP_ID = BitField(0, 15)
    VERSION = BitField(16, 19)
    NEXT = BitField(20, 31, doc="offset of the next one; 0: none")


class AtsCapability(BitFields, width=16):
    """ATS Capability."""

    QUEUE_DEPTH = BitField(0, 4, reset=1, doc="invalidations that are taken at a time")
    PAGE_ALIGNED = BitField(5, reset=1, doc="translation requests are of whole pages")
    GLOBAL_INVALIDATE = BitField(6, reset=1, doc="invalidations may be of every PASID")


class AtsControl(BitFields, width=16):
    """ATS Control."""

    STU = BitField(0, 4, doc="least size of a translation, 4096 * 2 ** STU bytes")
    ENABLE = BitField(15)


ATS = RegisterMap(
    Register("HEADER", 0x00, AccessKind.RO, "Address Translation Services", holds=ExtendedHeader, reset=None),
    Register("CAPABILITY", 0x04, AccessKind.RO, "what the function can", width=16, holds=AtsCapability),
    Register("CONTROL", 0x06, AccessKind.RW, "what it shall", width=16, holds=AtsControl),
)


class PriControl(BitFields, width=16):
    """Page Request Control."""

    ENABLE = BitField(0)
    RESET = BitField(1, access=AccessKind.WO, doc="no effect: turned off, the function has nothing outstanding")


class PriStatus(BitFields, width=16):
    """Page Request Status."""

    RESPONSE_FAILURE = BitField(0, access=AccessKind.RW1C, doc="an answer was a failure; no more is asked for")
    UNEXPECTED_GROUP = BitField(1, access=AccessKind.RW1C, doc="a group was answered that there is not")
    STOPPED = BitField(8, access=AccessKind.RW1C, reset=1, doc="turned off, and nothing is outstanding")
    """read only, as the function sets it again at once; but no constant, by which a saved state would be known"""


PRI_CAPACITY = 64
PRI = RegisterMap(
    Register("HEADER", 0x00, AccessKind.RO, "Page Request Interface", holds=ExtendedHeader, reset=None),
    Register("CONTROL", 0x04, AccessKind.RW, "what the function shall", width=16, holds=PriControl),
    Register("STATUS", 0x06, AccessKind.RW1C, "what became of it", width=16, holds=PriStatus),
    Register("CAPACITY", 0x08, AccessKind.RO, "pages that it can ask for at a time", reset=PRI_CAPACITY),
    Register("ALLOCATION", 0x0C, AccessKind.RW, "pages that it may ask for at a time"),
)


class PasidCapability(BitFields, width=16):
    """PASID Capability: neither execution nor privileged mode."""

    MAX_WIDTH = BitField(8, 12, doc="bits of a PASID")


class PasidControl(BitFields, width=16):
    """PASID Control."""

    ENABLE = BitField(0)


PASID = RegisterMap(
    Register("HEADER", 0x00, AccessKind.RO, "Process Address Space ID", holds=ExtendedHeader, reset=None),
    Register("CAPABILITY", 0x04, AccessKind.RO, "what the function can", width=16, holds=PasidCapability, reset=None),
    Register("CONTROL", 0x06, AccessKind.RW, "what it shall", width=16, holds=PasidControl),
)


class Capability(NamedTuple):
    """A capability's bytes and which of their bits the guest may write."""

    body: bytes
    writable: bytes


class ExtendedCapability(NamedTuple):
    """The same of an extended capability, and which bits the guest clears by writing 1."""

    body: bytes
    writable: bytes
    clears: bytes


def _capability(registers: RegisterMap, **values: int) -> Capability:
    """See :func:`_extended`."""
    body, writable, _ = _extended(registers, **values)
    return Capability(body, writable)


def _extended(registers: RegisterMap, **values: int) -> ExtendedCapability:
    """A capability after a reset, with other ``values`` of some registers."""
    body, writable, clears = (bytearray(registers.end) for _ in range(3))
    for register in registers:
        place = slice(register.offset, register.offset + register.size)
        value = values.get(register.name, register.reset or 0)
        if register.count == 1:
            body[place] = value.to_bytes(register.size, "little")
            writable[place] = register.mask(AccessKind.RW).to_bytes(register.size, "little")
            clears[place] = register.mask(AccessKind.RW1C).to_bytes(register.size, "little")
    return ExtendedCapability(bytes(body), bytes(writable), bytes(clears))


@cache
def pcie() -> Capability:
    """PCI Express capability, version 2, of an endpoint with function-level reset."""
    return _capability(PCIE)


@cache
def ats() -> ExtendedCapability:
    """ATS extended capability, of a function whose ATC takes one invalidation at a time."""
    return _extended(ATS, HEADER=ExtendedHeader(CAP_ID=0x0F, VERSION=1))


@cache
def pasid(bits: int) -> ExtendedCapability:
    """PASID extended capability, of PASIDs of so many bits."""
    return _extended(PASID, HEADER=ExtendedHeader(CAP_ID=0x1B, VERSION=1), CAPABILITY=PasidCapability(MAX_WIDTH=bits))


@cache
def pri() -> ExtendedCapability:
    """PRI extended capability, turned off."""
    return _extended(PRI, HEADER=ExtendedHeader(CAP_ID=0x13, VERSION=1))


@cache
def msix(vectors: int, bar: int, pba_offset: int) -> Capability:
    """MSI-X capability: the table at offset 0 of ``bar``, the pending bits at ``pba_offset`` of it."""
    if not 1 <= vectors <= MSIX_MAX_VECTORS:
        raise ValueError(f"{vectors} MSI-X vectors: 1 to {MSIX_MAX_VECTORS} are possible")
    control = MsixControl(TABLE_SIZE=vectors - 1)
    table, pending = MsixPlace(BIR=bar), MsixPlace(BIR=bar, OFFSET=pba_offset >> 3)
    return _capability(MSIX, CONTROL=control, TABLE=table, PBA=pending)


def endpoint(instance: int, stream: int) -> Capability:
    """The vendor-specific capability by which a guest driver knows what it is and which PV-IOMMU translates for it."""
    record = EndpointCapability(
        CAP_ID_VENDOR, 0, EndpointCapability.SIZE, 1, ENDPOINT_SIGNATURE, instance & 0xFFFFFFFF, stream & 0xFFFFFFFF
    )
    return Capability(record.pack(), b"")
