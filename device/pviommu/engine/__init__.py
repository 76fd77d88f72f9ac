"""Domains, page tables, page pool, translation, IOTLB, reserved regions and address spaces.

`Engine` is the way in. The package imports nothing but the standard library and touches nothing outside itself, so it
can be model-checked, fuzzed and replayed.
"""

import importlib
from typing import TYPE_CHECKING

from .config import DIRECT, MAX_DOMAIN, MSI_WINDOW, EngineConfig, ReservedFrames
from .frames import PAGE_MASK, PAGE_SHIFT, PAGE_SIZE

if TYPE_CHECKING:
    from .address_space import AddressSpace, Misfit
    from .areas import Areas, ByteArea, Cutting, Removal
    from .domain import BLOCKED, IDENTITY
    from .engine import Engine
    from .guest_tables import GuestTables
    from .nested import NestedDomain, Parent, ParentRefusal, Stage1Run, Stage1Walker, Wait
    from .results import (
        Access,
        Area,
        EngineUsage,
        NoRuns,
        Outcome,
        Refusal,
        Run,
        Stop,
        TranslationFault,
        TranslationPending,
        UnmapMode,
    )
    from .spans import LAST_ADDRESS, Span
    from .state import EngineState

__all__ = [
    "BLOCKED",
    "DIRECT",
    "IDENTITY",
    "LAST_ADDRESS",
    "MAX_DOMAIN",
    "MSI_WINDOW",
    "PAGE_MASK",
    "PAGE_SHIFT",
    "PAGE_SIZE",
    "Access",
    "AddressSpace",
    "Area",
    "Areas",
    "ByteArea",
    "Cutting",
    "Engine",
    "EngineConfig",
    "EngineState",
    "EngineUsage",
    "GuestTables",
    "Misfit",
    "NestedDomain",
    "NoRuns",
    "Outcome",
    "Parent",
    "ParentRefusal",
    "Refusal",
    "Removal",
    "ReservedFrames",
    "Run",
    "Span",
    "Stage1Run",
    "Stage1Walker",
    "Stop",
    "TranslationFault",
    "TranslationPending",
    "UnmapMode",
    "Wait",
]

if not TYPE_CHECKING:

    def __getattr__(name):
        """What a configuration does without: its module is imported when it is asked for."""
        if name in __all__:
            modules = (
                "results",
                "state",
                "nested",
                "domain",
                "guest_tables",
                "engine",
                "spans",
                "areas",
                "address_space",
            )
            for module in modules:
                names = vars(importlib.import_module(f"{__name__}.{module}"))
                if name in names:
                    return globals().setdefault(name, names[name])
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
