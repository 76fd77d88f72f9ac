"""Domains, page tables, page pool, translation, IOTLB and reserved regions.

`Engine` is the way in. The package imports nothing but the standard library and touches nothing outside itself, so it
can be model-checked, fuzzed and replayed.
"""

from pviommu.engine.config import DIRECT, MSI_WINDOW, EngineConfig, ReservedRegion
from pviommu.engine.domain import BLOCKED, IDENTITY, MAX_DOMAIN
from pviommu.engine.engine import Engine
from pviommu.engine.nested import NestedDomain, Parent, ParentRefusal, Stage1Run, Stage1Walker, Wait
from pviommu.engine.results import (
    PAGE_MASK,
    PAGE_SHIFT,
    PAGE_SIZE,
    Access,
    Area,
    Fault,
    NoRuns,
    Outcome,
    Pending,
    Refusal,
    Run,
    Stop,
    UnmapMode,
    Usage,
)
from pviommu.engine.state import EngineState

__all__ = [
    "BLOCKED",
    "DIRECT",
    "IDENTITY",
    "MAX_DOMAIN",
    "MSI_WINDOW",
    "PAGE_MASK",
    "PAGE_SHIFT",
    "PAGE_SIZE",
    "Access",
    "Area",
    "Engine",
    "EngineConfig",
    "EngineState",
    "Fault",
    "NestedDomain",
    "NoRuns",
    "Outcome",
    "Parent",
    "ParentRefusal",
    "Pending",
    "Refusal",
    "ReservedRegion",
    "Run",
    "Stage1Run",
    "Stage1Walker",
    "Stop",
    "UnmapMode",
    "Usage",
    "Wait",
]
