"""The capability area, read as a driver reads it."""

from __future__ import annotations

from typing import Any

from pviommu_abi.shared import (
    CAPABILITY_MAGIC,
    CAPABILITY_OFFSET,
    AddressRange,
    CapabilityArea,
    CapabilityCount,
    CapabilityHeader,
    CapabilityId,
    EndpointEntry,
    FaultRules,
    GuestTables,
    Limits,
    ReservedRegion,
)
from wire_layout import Record

__all__ = ["capabilities"]

_ENTRY: dict[int, type[Record]] = {
    CapabilityId.IOVA_RANGES: AddressRange,
    CapabilityId.RESERVED_REGIONS: ReservedRegion,
    CapabilityId.RAM_RANGES: AddressRange,
    CapabilityId.ENDPOINTS: EndpointEntry,
}
_RECORD: dict[int, type[Record]] = {
    CapabilityId.LIMITS: Limits,
    CapabilityId.FAULT_RULES: FaultRules,
    CapabilityId.GUEST_TABLES: GuestTables,
}


def capabilities(shared: memoryview) -> dict[int, Any]:
    """The chain in a shared BAR: id -> entries, or the record of one that is no list.

    Raises ValueError for an area without the magic or one that is being written (an odd generation).
    """
    area = shared[CAPABILITY_OFFSET:]
    head = CapabilityArea.unpack(area)
    if head.magic != CAPABILITY_MAGIC or head.generation % 2:
        raise ValueError(f"no capability area, or one that is being written: {head}")
    found: dict[int, Any] = {}
    offset = head.first
    while offset:
        header = CapabilityHeader.unpack(area, offset)
        at = offset + CapabilityHeader.SIZE
        if header.cap_id in _RECORD:
            found[header.cap_id] = _RECORD[header.cap_id].unpack(area, at)
        else:
            count, kind = CapabilityCount.unpack(area, at).count, _ENTRY[header.cap_id]
            at += CapabilityCount.SIZE
            found[header.cap_id] = [kind.unpack(area, at + place * kind.SIZE) for place in range(count)]
        offset = header.next
    return found
