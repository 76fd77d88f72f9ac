"""The page on which a device that follows a scenario counts what its rules did."""

from __future__ import annotations

from pviommu_abi.shared import (
    FAULT_PAGE_MAGIC,
    FAULT_RULES_OFFSET,
    FaultPage,
    FaultRule,
    FaultRuleFlags,
    name_hash,
)

from .function import Function

__all__ = ["FaultRules"]


class FaultRules:
    """Reads it. A device without rules has no such page, which its capabilities tell."""

    def __init__(self, function: Function) -> None:
        self._function = function

    def head(self) -> FaultPage:
        """Raises ValueError for a page without the magic, or one that is being written (an odd generation)."""
        head = FaultPage.unpack(self._function.view, FAULT_RULES_OFFSET)
        if head.magic != FAULT_PAGE_MAGIC or head.generation % 2:
            raise ValueError(f"no page of fault rules, or one that is being written: {head}")
        return head

    def count(self, rule: str) -> tuple[int, int]:
        """How many times the conditions of a rule held, and how many times it acted. Raises KeyError for its id."""
        found = self._record(rule)
        return found.passed, found.fired

    def is_adversarial(self, rule: str) -> bool:
        """Whether no correct IOMMU does what the rule does. Raises KeyError for its id."""
        return bool(self._record(rule).flags & FaultRuleFlags.ADVERSARIAL)

    def _record(self, rule: str) -> FaultRule:
        head, wanted = self.head(), name_hash(rule)
        for number in range(head.rules):
            place = FAULT_RULES_OFFSET + FaultPage.SIZE + number * head.record_size
            record = FaultRule.unpack(self._function.view, place)
            if record.id_hash == wanted:
                return record
        raise KeyError(rule)
