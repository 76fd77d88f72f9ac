"""What an engine is built with, checked once."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from .frames import FRAME_LIMIT

MIN_APERTURE_BITS = 32
MAX_APERTURE_BITS = 48
MAX_DOMAIN = 0xFFFF
"""Highest number of a domain that can be allocated, from 1 on: cores look domains up by it."""


DIRECT = "direct"


class ReservedFrames(NamedTuple):
    """DFNs that no guest can map; `last` is inclusive.

    A region of the configuration is reserved in every domain and never reached. One of an endpoint is of kind "direct"
    (IOMMU_RESV_DIRECT of Linux, an RMRR of VT-d): mapped 1:1, readable and writeable, in the paging domain that the
    endpoint is attached to.
    """

    first: int
    last: int
    kind: str


MSI_WINDOW = ReservedFrames(0xFEE00, 0xFEEFF, "msi")
"""The interrupt window of x86, 0xfee00000 to 0xfeefffff: what an engine reserves if it is not told what the guest's
interrupt controller has."""


@dataclass(frozen=True)
class EngineConfig:
    """Limits of an engine. Raises ValueError naming the field, the value and the rule."""

    pool_pages: int = 4096
    """4 KiB page-table pages that all domains share."""
    aperture_bits: int = 39
    """IOVAs of a paging domain are below 1 << aperture_bits; the identity domain is bounded by RAM only."""
    reserved: tuple[ReservedFrames, ...] = (MSI_WINDOW,)
    iotlb_entries: int = 4096
    """Translations cached at most."""

    def __post_init__(self) -> None:
        if self.pool_pages < 1:
            raise ValueError(f"pool_pages {self.pool_pages}: must be at least 1, a domain needs a root table")
        if not MIN_APERTURE_BITS <= self.aperture_bits <= MAX_APERTURE_BITS:
            raise ValueError(
                f"aperture_bits {self.aperture_bits}: must be {MIN_APERTURE_BITS}..{MAX_APERTURE_BITS},"
                " as page tables have 3 or 4 levels"
            )
        if self.iotlb_entries < 1:
            raise ValueError(f"iotlb_entries {self.iotlb_entries}: must be at least 1")
        for region in self.reserved:
            if not 0 <= region.first <= region.last < FRAME_LIMIT:
                raise ValueError(
                    f"reserved region {region.first:#x}..{region.last:#x} ({region.kind}):"
                    f" first must not exceed last, and both must be frames below {FRAME_LIMIT:#x}"
                )

    def check_direct(self, stream: int, regions: Sequence[ReservedFrames]) -> None:
        """Raises ValueError for regions that an endpoint cannot have, naming endpoint, region and rule."""
        taken = list(self.reserved)
        for region in regions:
            name = f"endpoint {stream}, reserved region {region.first:#x}..{region.last:#x}"
            if region.kind != DIRECT:
                raise ValueError(f"{name}: kind {region.kind!r} is not known; an endpoint's regions are {DIRECT!r}")
            if not 0 <= region.first <= region.last < self.aperture_frames:
                raise ValueError(
                    f"{name}: first must not exceed last, and both must be frames below the aperture's end"
                    f" {self.aperture_frames:#x}"
                )
            for other in taken:
                if other.first <= region.last and region.first <= other.last:
                    raise ValueError(f"{name}: overlaps {other.first:#x}..{other.last:#x} ({other.kind})")
            taken.append(region)

    @property
    def aperture_frames(self) -> int:
        """First dfn outside the aperture."""
        return 1 << (self.aperture_bits - 12)
