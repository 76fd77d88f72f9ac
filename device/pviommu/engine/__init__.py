"""Contexts, page tables, page pool, translation, IOTLB and reserved regions.

`Engine` is the way in. The package imports nothing but the standard library and touches nothing outside itself, so it
can be model-checked, fuzzed and replayed.
"""

from pviommu.engine.config import DIRECT, MSI_WINDOW, EngineConfig, ReservedRegion
from pviommu.engine.engine import Engine
from pviommu.engine.results import (
    PAGE_MASK,
    PAGE_SHIFT,
    PAGE_SIZE,
    Access,
    AllocResult,
    DefaultPolicy,
    Fault,
    Mapping,
    Outcome,
    Refusal,
    Run,
    Stop,
    UnmapMode,
    Usage,
)

__all__ = [
    "DIRECT",
    "MSI_WINDOW",
    "PAGE_MASK",
    "PAGE_SHIFT",
    "PAGE_SIZE",
    "Access",
    "AllocResult",
    "DefaultPolicy",
    "Engine",
    "EngineConfig",
    "Fault",
    "Mapping",
    "Outcome",
    "Refusal",
    "ReservedRegion",
    "Run",
    "Stop",
    "UnmapMode",
    "Usage",
]
