"""The configuration of a PV-IOMMU, checked once."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum

from msgspec import Struct, field

from pviommu_abi import registers as abi
from pviommu_abi.shared import MAX_RINGS

from ...engine import MAX_DOMAIN, EngineConfig, ReservedFrames
from ...pci.identity import Identity

__all__ = [
    "DEFAULT_IDENTITY",
    "MAX_CONTEXT",
    "MAX_ENDPOINTS",
    "MAX_RESERVED",
    "NO_STREAM",
    "PAGE_SIZES",
    "DefaultPolicy",
    "IommuConfig",
]

DEFAULT_IDENTITY = Identity(abi.VENDOR_ID, abi.IOMMU_DEVICE_ID, abi.IOMMU_CLASS)
MAX_CONTEXT = MAX_DOMAIN
MAX_ENDPOINTS = 256
"""Most endpoints of one PV-IOMMU: they take half of the capability area, the rest is for RAM ranges."""

NO_STREAM = 0xFFFFFFFF
"""Stands for no endpoint."""

PAGE_SIZES = 1 << 12 | 1 << 21 | 1 << 30
"""Sizes that a leaf of the page tables may have, one bit each."""

MAX_RESERVED = 64
"""Most reserved regions of all endpoints together, which the capability area lists too."""


class DefaultPolicy(Enum):
    """What the default context translates to."""

    IDENTITY = "identity"  # 1:1 of guest RAM and MMIO
    BLOCKED = "blocked"  # nothing


class IommuConfig(Struct, frozen=True):
    """Limits and names of a PV-IOMMU. Raises ValueError naming the field, the value and the rule."""

    instance: int = 1
    engine: EngineConfig = field(default_factory=EngineConfig)
    max_contexts: int = 255
    """contexts besides the default one; their numbers are 1 to this"""
    default_policy: DefaultPolicy = DefaultPolicy.IDENTITY
    """what the default context translates to"""
    max_nr_pages: int = 262144
    rings: int = 4
    streams: tuple[int, ...] = ()
    fixed_bindings: Mapping[int, int] = field(default_factory=dict)
    """stream -> SBDF"""
    reserved: Mapping[int, tuple[ReservedFrames, ...]] = field(default_factory=dict)
    """stream -> direct regions (IOMMU_RESV_DIRECT, RMRR): mapped 1:1 in the context that the endpoint is in, where the
    guest cannot change them"""
    allowed: bool = True
    """whether the guest may use the IOMMU at all; otherwise every Xen operation is refused"""
    remote_cmd: bool = True
    """whether the guest may use REMOTE_CMD, as a hardware domain may"""
    guest_tables: bool = True
    """whether contexts may have tables that the guest owns"""
    identity: Identity = DEFAULT_IDENTITY

    def __post_init__(self) -> None:
        if not 1 <= self.max_contexts <= MAX_CONTEXT:
            raise ValueError(
                f"max_contexts {self.max_contexts}: must be 1..{MAX_CONTEXT}, a context number has 16 bits"
            )
        if not 1 <= self.rings <= MAX_RINGS:
            raise ValueError(f"rings {self.rings}: must be 1..{MAX_RINGS}, the shared BAR has room for no more")
        if not 1 <= self.max_nr_pages < 1 << 32:
            raise ValueError(f"max_nr_pages {self.max_nr_pages}: must be 1..{(1 << 32) - 1}, it is a 32-bit count")
        if self.engine.pool_pages >= 1 << 32:
            pages = self.engine.pool_pages
            raise ValueError(f"pool_pages {pages}: must be 1..{(1 << 32) - 1}, the guest reads it as 32 bits")
        if len(self.streams) > MAX_ENDPOINTS:
            raise ValueError(f"{len(self.streams)} endpoints: at most {MAX_ENDPOINTS}, the capability area lists them")
        if len(set(self.streams)) != len(self.streams):
            raise ValueError(f"streams {self.streams}: each endpoint needs a stream of its own")
        self._check_reserved()

    def _check_reserved(self) -> None:
        if sum(len(regions) for regions in self.reserved.values()) > MAX_RESERVED:
            raise ValueError(f"reserved regions: at most {MAX_RESERVED} in all, the capability area lists them")
        for stream, regions in self.reserved.items():
            if stream not in self.streams:
                raise ValueError(f"reserved regions of stream {stream}: not one of {self.streams}")
            self.engine.check_direct(stream, regions)
