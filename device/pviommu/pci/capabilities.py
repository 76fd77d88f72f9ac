"""Bodies of the PCI capabilities that these functions have (PCI Express Base Specification, chapter 7)."""

from __future__ import annotations

import struct
from typing import NamedTuple

from pviommu_abi.registers import ENDPOINT_SIGNATURE, EndpointCapability

__all__ = ["MSIX_ENTRY_SIZE", "PCIE_DEVICE_CONTROL", "PCIE_FLR", "Capability", "endpoint", "msix", "pcie"]

CAP_ID_VENDOR = 0x09
CAP_ID_PCIE = 0x10
CAP_ID_MSIX = 0x11

PCIE_DEVICE_CONTROL = 0x08
"""Offset of Device Control within the PCI Express capability."""
PCIE_FLR = 1 << 15
"""Initiate Function Level Reset, in Device Control; reads as 0."""
_PCIE_SIZE = 0x3C
_PCIE_VERSION_2 = 2
_PORT_TYPE_ENDPOINT = 0
_DEVCAP_ROLE_BASED_ERRORS = 1 << 15
_DEVCAP_FLR = 1 << 28
_DEVICE_CONTROL_WRITABLE = 0x7FFF
_LINK_GEN1_X1 = 0x11

MSIX_ENTRY_SIZE = 16
_MSIX_CONTROL_WRITABLE = 0xC000
"""Enable and function mask."""
MSIX_MAX_VECTORS = 2048


class Capability(NamedTuple):
    """A capability's bytes and which of their bits the guest may write."""

    body: bytes
    writable: bytes


def pcie() -> Capability:
    """PCI Express capability, version 2, of an endpoint with function-level reset."""
    body = bytearray(_PCIE_SIZE)
    struct.pack_into("<BBH", body, 0, CAP_ID_PCIE, 0, _PCIE_VERSION_2 | _PORT_TYPE_ENDPOINT << 4)
    struct.pack_into("<I", body, 4, _DEVCAP_ROLE_BASED_ERRORS | _DEVCAP_FLR)
    struct.pack_into("<I", body, 0x0C, _LINK_GEN1_X1)
    struct.pack_into("<H", body, 0x12, _LINK_GEN1_X1)
    writable = bytearray(_PCIE_SIZE)
    struct.pack_into("<H", writable, PCIE_DEVICE_CONTROL, _DEVICE_CONTROL_WRITABLE)
    return Capability(bytes(body), bytes(writable))


def msix(vectors: int, bar: int, pba_offset: int) -> Capability:
    """MSI-X capability: the table at offset 0 of ``bar``, the pending bits at ``pba_offset`` of it."""
    if not 1 <= vectors <= MSIX_MAX_VECTORS:
        raise ValueError(f"{vectors} MSI-X vectors: 1 to {MSIX_MAX_VECTORS} are possible")
    body = struct.pack("<BBHII", CAP_ID_MSIX, 0, vectors - 1, bar, pba_offset | bar)
    return Capability(body, struct.pack("<BBHII", 0, 0, _MSIX_CONTROL_WRITABLE, 0, 0))


def endpoint(instance: int, stream: int) -> Capability:
    """The vendor-specific capability by which a guest driver knows what it is and which PV-IOMMU translates for it."""
    record = EndpointCapability(
        CAP_ID_VENDOR, 0, EndpointCapability.SIZE, 1, ENDPOINT_SIGNATURE, instance & 0xFFFFFFFF, stream & 0xFFFFFFFF
    )
    return Capability(record.pack(), b"")
