"""The capability area: what the guest may use, as a chain of records like VFIO's."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType

from pviommu_abi.shared import (
    CAPABILITY_MAGIC,
    CAPABILITY_OFFSET,
    CAPABILITY_SIZE,
    GLOBAL_STREAM,
    AddressRange,
    CapabilityArea,
    CapabilityCount,
    CapabilityHeader,
    CapabilityId,
    EndpointEntry,
    Limits,
    RegionKind,
    ReservedRegion,
)
from wire_layout import Record

from ..engine import PAGE_SHIFT, EngineConfig
from ..engine import ReservedRegion as EngineRegion
from ..pci.shared_memory import SharedMemory

__all__ = ["CapabilityPublisher", "chain", "iova_ranges", "reserved_regions"]

_PAGE = 1 << PAGE_SHIFT
_KINDS = {"msi": RegionKind.MSI, "direct": RegionKind.DIRECT}


def iova_ranges(config: EngineConfig) -> list[AddressRange]:
    """The aperture without its reserved regions."""
    ranges: list[AddressRange] = []
    start, end = 0, 1 << config.aperture_bits
    for region in sorted(config.reserved):
        last = min(region.first * _PAGE, end) - 1
        if last > start:
            ranges.append(AddressRange(start, last))
        start = max(start, (region.last + 1) * _PAGE)
    if start < end:
        ranges.append(AddressRange(start, end - 1))
    return ranges


def reserved_regions(
    config: EngineConfig, of_endpoints: Mapping[int, Sequence[EngineRegion]] = MappingProxyType({})
) -> list[ReservedRegion]:
    """Regions that no map may touch: in every context, and (by stream) in the context of an endpoint."""
    owned = [(region, GLOBAL_STREAM) for region in sorted(config.reserved)]
    owned += [(region, stream) for stream, regions in of_endpoints.items() for region in sorted(regions)]
    return [
        ReservedRegion(
            region.first * _PAGE,
            (region.last + 1) * _PAGE - 1,
            _KINDS.get(region.kind, RegionKind.RESERVED),
            stream,
        )
        for region, stream in owned
    ]


def _list(entries: Iterable[Record]) -> bytes:
    packed = [entry.pack() for entry in entries]
    return CapabilityCount(len(packed)).pack() + b"".join(packed)


def chain(
    config: EngineConfig,
    limits: Limits,
    ram: Sequence[tuple[int, int]],
    endpoints: Sequence[EndpointEntry],
    of_endpoints: Mapping[int, Sequence[EngineRegion]] = MappingProxyType({}),
) -> bytes:
    """The area's bytes after its head. ``ram`` are ``(first GPA, last GPA)`` pairs, shortened to what fits the area."""
    bodies = [
        (CapabilityId.IOVA_RANGES, _list(iova_ranges(config))),
        (CapabilityId.RESERVED_REGIONS, _list(reserved_regions(config, of_endpoints))),
        (CapabilityId.LIMITS, limits.pack()),
        (CapabilityId.ENDPOINTS, _list(endpoints)),
    ]
    used = CapabilityArea.SIZE + sum(CapabilityHeader.SIZE + len(body) for _, body in bodies)
    room = (CAPABILITY_SIZE - used - CapabilityHeader.SIZE - CapabilityCount.SIZE) // AddressRange.SIZE
    bodies.append((CapabilityId.RAM_RANGES, _list(AddressRange(*pair) for pair in ram[:room])))
    offset, parts = CapabilityArea.SIZE, []
    for place, (kind, body) in enumerate(bodies):
        offset += CapabilityHeader.SIZE + len(body)
        following = offset if place + 1 < len(bodies) else 0
        parts.append(CapabilityHeader(kind, 1, following).pack() + body)
    return b"".join(parts)


class CapabilityPublisher:
    """Writes the area so that a guest that reads it meanwhile can notice."""

    def __init__(self, shared: SharedMemory) -> None:
        self._shared = shared
        self._generation = 0

    def publish(self, body: bytes) -> None:
        """Replace the chain."""
        self._head(self._generation + 1, len(body))
        start = CAPABILITY_OFFSET + CapabilityArea.SIZE
        self._shared.view[start : start + len(body)] = body
        self._generation += 2
        self._head(self._generation, len(body))

    def _head(self, generation: int, length: int) -> None:
        head = CapabilityArea(
            CAPABILITY_MAGIC, generation & 0xFFFFFFFF, CapabilityArea.SIZE + length, CapabilityArea.SIZE
        )
        self._shared.view[CAPABILITY_OFFSET : CAPABILITY_OFFSET + CapabilityArea.SIZE] = head.pack()
