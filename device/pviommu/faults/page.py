"""The page of the shared BAR where a guest sees what the rules did: see :class:`pviommu_abi.shared.FaultPage`."""

from __future__ import annotations

from collections.abc import Sequence
from struct import Struct
from typing import Protocol

from pviommu_abi.shared import (
    FAULT_PAGE_MAGIC,
    FAULT_RULES_OFFSET,
    FAULT_RULES_SIZE,
    FaultPage,
    FaultRule,
    FaultRules,
    name_hash,
)

__all__ = ["CAPABILITY", "RulePage"]

CAPABILITY = FaultRules(FAULT_RULES_OFFSET, FAULT_RULES_SIZE)
_NUMBER, _GENERATION = Struct("<Q"), Struct("<I")
_PASSED, _FIRED = FaultRule.offset_of("passed"), FaultRule.offset_of("fired")
_STATE = FAULT_RULES_OFFSET + FaultPage.offset_of("state")
_GENERATION_AT = FAULT_RULES_OFFSET + FaultPage.offset_of("generation")


class Shared(Protocol):
    """The shared BAR: see :class:`pviommu.pci.shared_memory.SharedMemory`."""

    @property
    def view(self) -> memoryview: ...


class RulePage:
    """Writes it. The device's own counts are elsewhere: what a guest writes there is believed by nobody."""

    def __init__(self) -> None:
        self._shared: Shared | None = None
        self._generation = 0

    def show(self, shared: Shared, seed: int, state: str, rules: Sequence[FaultRule]) -> None:
        """These are the rules now, and ``shared``, the shared BAR, is where they are seen."""
        self._shared = shared
        self._bump()
        head = FaultPage(FAULT_PAGE_MAGIC, self._generation, len(rules), FaultRule.SIZE, name_hash(state), seed).pack()
        page = b"".join((head, *(rule.pack() for rule in rules))).ljust(FAULT_RULES_SIZE, b"\0")
        shared.view[FAULT_RULES_OFFSET : FAULT_RULES_OFFSET + FAULT_RULES_SIZE] = page
        self._bump()  # by itself: a guest that sees it even sees all the rest

    def _bump(self) -> None:
        if self._shared is not None:
            self._generation = self._generation + 1 & 0xFFFFFFFF
            _GENERATION.pack_into(self._shared.view, _GENERATION_AT, self._generation)

    def count(self, rule: int, passed: int, fired: int) -> None:
        """Of the rule of this number."""
        if self._shared is not None:
            at = FAULT_RULES_OFFSET + FaultPage.SIZE + rule * FaultRule.SIZE
            _NUMBER.pack_into(self._shared.view, at + _PASSED, passed)
            _NUMBER.pack_into(self._shared.view, at + _FIRED, fired)

    def enter(self, state: str) -> None:
        """The scenario is in another state."""
        if self._shared is not None:
            _NUMBER.pack_into(self._shared.view, _STATE, name_hash(state))

    def hide(self) -> None:
        """The shared BAR goes."""
        self._shared = None
