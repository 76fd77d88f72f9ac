"""The saved state of an SMMU."""

from __future__ import annotations

from msgspec import Struct

from ...pci.state import FunctionState

__all__ = ["SmmuState"]


class SmmuState(Struct, frozen=True):
    """The state of an SMMU. Caches are not part of it: an SMMU may forget what it has cached at any time."""

    function: FunctionState
    blocked: tuple[int, ...]
    """streams that wait for a reset of their endpoints"""
