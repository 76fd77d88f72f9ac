"""The machine that a history runs on: limits, RAM and endpoints."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

__all__ = ["DEVFNS", "LARGE_MODULE", "RAM", "SHADOWED_BYTES", "STREAMS", "Setting"]

RAM = [range(0x600), range(0x800, 0x1000)]
"""Guest frames that are RAM: two ranges with a hole between them."""
LARGE_MODULE = range(0x40000, 0x80000)
"""A module of 1 GiB that can be plugged, large enough for the largest leaf."""
SHADOWED_BYTES = 0x1000 << 12
STREAMS = (1, 2)
DEVFNS = {1: 0x28, 2: 0x30}
"""The devfn of each endpoint, by stream."""


@dataclass(frozen=True)
class Setting:
    """Limits, small enough to be reached often. Raises ValueError for a pool that the profile cannot ask for."""

    profile: str = "xen-2024"
    max_contexts: int = 4
    pool_pages: int = 32
    aperture_bits: int = 39
    max_nr_pages: int = 262144
    identity: bool = True
    """what the default context maps: all guest RAM 1:1, or nothing"""

    def __post_init__(self) -> None:
        if self.profile == "xen-v7" and self.pool_pages & (self.pool_pages - 1):
            raise ValueError(
                f"pool_pages {self.pool_pages}: must be a power of two, INIT of xen-v7 names its logarithm"
            )

    @classmethod
    def drawn(cls, random: Random, profile: str) -> Setting:
        """A random setting."""
        return cls(
            profile=profile,
            max_contexts=random.choice((2, 3, 4, 7)),
            pool_pages=random.choice((3, 8, 13, 24, 40, 1200) if profile == "xen-2024" else (4, 8, 16, 32, 1024)),
            aperture_bits=random.choice((32, 39, 39, 40, 48)),
            max_nr_pages=random.choice((256, 1400, 262144)),
            identity=random.random() < 0.7,
        )
