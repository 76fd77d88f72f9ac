"""The commands that a core may carry out by itself, as data: invalidations of translations, and CMD_SYNC.

:class:`.commands.Commands` says what they do. Whatever is not declared here, and what turns out to be illegal, is left
to it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

from smmuv3.commands import Completion, Opcode

__all__ = ["LEVELS", "SILENT", "CommandTable", "Invalidation", "Scope"]


class Scope(Enum):
    """Whose translations are forgotten."""

    ASID = "those of the ASID, not the global ones"
    ASID_AND_GLOBAL = "those of the ASID, and global ones of the VMID"
    GLOBAL = "those without an ASID: of stage 2"
    VMID = "all of the VMID"
    ALL = "all"


class Invalidation(NamedTuple):
    """One kind of TLBI."""

    scope: Scope
    stages: tuple[int, ...] = (1,)
    has_address: bool = False


_STAGE_1: Mapping[Opcode, Invalidation] = {
    Opcode.TLBI_NH_ALL: Invalidation(Scope.VMID),
    Opcode.TLBI_NH_ASID: Invalidation(Scope.ASID),
    Opcode.TLBI_NH_VA: Invalidation(Scope.ASID_AND_GLOBAL, has_address=True),
    Opcode.TLBI_NH_VAA: Invalidation(Scope.VMID, has_address=True),
    Opcode.TLBI_NSNH_ALL: Invalidation(Scope.ALL, (1, 2)),
}
_STAGE_2: Mapping[Opcode, Invalidation] = {
    Opcode.TLBI_S12_VMALL: Invalidation(Scope.VMID, (1, 2)),
    Opcode.TLBI_S2_IPA: Invalidation(Scope.GLOBAL, (2,), has_address=True),
}
LEVELS = frozenset((granule, level) for granule in (1, 2, 3) for level in (1, 2, 3)) - {(2, 1)}
"""TG and TTL of a range of one page that are not reserved (IHI 0070, 4.4.1.1): pages of 16 KiB have no blocks at level
1."""
SILENT = (Completion.NONE, Completion.SEV)
"""Completions that nobody is told of: there is no wire for SEV."""


@dataclass(frozen=True)
class CommandTable:
    """Those of an SMMU."""

    has_stage2: bool
    """whether VMIDs count"""
    has_msi: bool
    """whether CMD_SYNC may be told by an MSI of the SMMU's own"""
    most_looked_at: int
    """cached entries, before commands are left for later"""

    @property
    def invalidations(self) -> Mapping[Opcode, Invalidation]:
        return {**_STAGE_1, **_STAGE_2} if self.has_stage2 else _STAGE_1
