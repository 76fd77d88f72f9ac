"""The capability area: what the guest may use, as a chain of records like VFIO's."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from types import MappingProxyType
from typing import TYPE_CHECKING

from pviommu_abi.shared import (
    CAPABILITY_MAGIC,
    CAPABILITY_OFFSET,
    CAPABILITY_SIZE,
    GLOBAL_STREAM,
    SBDF_UNBOUND,
    AddressRange,
    CapabilityArea,
    CapabilityCount,
    CapabilityHeader,
    CapabilityId,
    EndpointEntry,
    FaultRules,
    GuestTables,
    Limits,
    RegionKind,
    ReservedRegion,
)
from wire_layout import Record

from ...engine import PAGE_SHIFT, EngineConfig, ReservedFrames
from ...engine.ranges import BOUND, FrameRanges
from .config import PAGE_SIZES, DefaultPolicy, IommuConfig

if TYPE_CHECKING:  # only types: serve --print-capabilities has no shared memory
    from ...pci.shared_memory import SharedMemory

__all__ = ["CapabilityPublisher", "Chain", "endpoint_entries", "iova_ranges", "limits", "reserved_regions"]

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
    config: EngineConfig, of_endpoints: Mapping[int, Sequence[ReservedFrames]] = MappingProxyType({})
) -> list[ReservedRegion]:
    """Regions that no map may touch: in every context, and (by stream) in the context that an endpoint is in."""
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


def limits(config: IommuConfig) -> Limits:
    """The LIMITS capability."""
    return Limits(
        page_sizes=PAGE_SIZES,
        max_nr_pages=config.max_nr_pages,
        max_contexts=config.max_contexts,
        pool_pages=config.engine.pool_pages,
        rings=config.rings,
        aperture_bits=config.engine.aperture_bits,
        default_policy=int(config.default_policy is DefaultPolicy.IDENTITY),
    )


def endpoint_entries(config: IommuConfig) -> list[EndpointEntry]:
    """Endpoints by stream, with the PCI address that they are bound to for good, if any."""
    fixed = config.fixed_bindings
    return [EndpointEntry(stream, int(stream in fixed), fixed.get(stream, SBDF_UNBOUND)) for stream in config.streams]


def _list(entries: Iterable[Record]) -> bytes:
    packed = [entry.pack() for entry in entries]
    return CapabilityCount(len(packed)).pack() + b"".join(packed)


class Chain:
    """The area's bytes after its head: records that never change, and at the end that of guest RAM, which does."""

    def __init__(
        self,
        config: EngineConfig,
        limits: Limits,
        endpoints: Sequence[EndpointEntry],
        of_endpoints: Mapping[int, Sequence[ReservedFrames]] = MappingProxyType({}),
        faults: FaultRules | None = None,
        tables: GuestTables | None = None,
    ) -> None:
        bodies = [
            (CapabilityId.IOVA_RANGES, _list(iova_ranges(config))),
            (CapabilityId.RESERVED_REGIONS, _list(reserved_regions(config, of_endpoints))),
            (CapabilityId.LIMITS, limits.pack()),
            (CapabilityId.ENDPOINTS, _list(endpoints)),
        ]
        if faults is not None:
            bodies.append((CapabilityId.FAULT_RULES, faults.pack()))
        if tables is not None:
            bodies.append((CapabilityId.GUEST_TABLES, tables.pack()))
        offset, parts = CapabilityArea.SIZE, []
        for kind, body in bodies:
            offset += CapabilityHeader.SIZE + len(body)
            parts.append(CapabilityHeader(kind, 1, offset).pack() + body)
        parts.append(CapabilityHeader(CapabilityId.RAM_RANGES, 1, 0).pack())
        self._fixed = b"".join(parts)
        used = CapabilityArea.SIZE + len(self._fixed) + CapabilityCount.SIZE
        self._room = (CAPABILITY_SIZE - used) // AddressRange.SIZE
        self._last: tuple[array[int], bytes] = (array(BOUND), b"")

    def reaches(self, first: int) -> bool:
        """Whether a change of RAM from frame ``first`` on may change it."""
        bounds = self._last[0]
        return len(bounds) < 2 * self._room or first <= bounds[-1]

    def with_ram(self, ram: FrameRanges) -> bytes:
        """The whole chain, with the first ranges of ``ram``, as many as fit. If nothing has changed, the same object as
        before."""
        bounds = ram.bounds[: 2 * self._room]
        if bounds != self._last[0] or not self._last[1]:
            body = self._fixed + CapabilityCount(len(bounds) // 2).pack() + _address_ranges(bounds)
            self._last = bounds, body
        return self._last[1]


def _address_ranges(bounds: array[int]) -> bytes:
    """Records of :class:`AddressRange`: first and last byte of each range of frames.

    This happens at each change of RAM, so it is done at once, as one number whose 64-bit digits are the bounds.
    """
    digits = int.from_bytes(bounds.tobytes(), "little") << PAGE_SHIFT
    return (digits - _ends_to_lasts(len(bounds))).to_bytes(AddressRange.SIZE * len(bounds) // 2, "little")


@lru_cache(maxsize=8)
def _ends_to_lasts(bounds: int) -> int:
    return int.from_bytes(array(BOUND, (0, 1) * (bounds // 2)).tobytes(), "little")


class CapabilityPublisher:
    """Writes the area so that a guest that reads it at the same time can notice."""

    def __init__(self, shared: SharedMemory) -> None:
        self._shared = shared
        self.generation = 0
        """the generation that was published last; it is part of a saved state"""

    def publish(self, body: bytes) -> None:
        """Replace the chain."""
        self._head(self.generation + 1, len(body))
        start = CAPABILITY_OFFSET + CapabilityArea.SIZE
        self._shared.view[start : start + len(body)] = body
        self.generation += 2
        self._head(self.generation, len(body))

    def _head(self, generation: int, length: int) -> None:
        head = CapabilityArea(
            CAPABILITY_MAGIC, generation & 0xFFFFFFFF, CapabilityArea.SIZE + length, CapabilityArea.SIZE
        )
        self._shared.view[CAPABILITY_OFFSET : CAPABILITY_OFFSET + CapabilityArea.SIZE] = head.pack()
