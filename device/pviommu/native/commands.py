"""Commands of an SMMU's queue in C: see :mod:`pviommu.interfaces.smmuv3.command_table`, which declares them."""

from __future__ import annotations

from ctypes import addressof

from smmuv3.commands import Completion, Opcode, Sync0, Sync1, Tlbi0, Tlbi1
from wire_layout.registers import BitField

from ..interfaces.smmuv3.caches import Tag, number_of
from ..interfaces.smmuv3.command_table import LEVELS, SILENT, CommandTable, Scope
from . import library
from .library import Library
from .walk import NativeRemembered, Place

__all__ = ["NativeCommands"]

_LEFT, _FORGET, _FORGET_PAGES, _CLEAR, _SYNC = range(5)
"""``enum pv_effect``."""
_SCOPES = (Scope.ASID, Scope.ASID_AND_GLOBAL, Scope.GLOBAL, Scope.VMID)
"""In the order of ``enum pv_scope``."""
_TELL, _TIRED = 1, 2
"""``enum pv_commands_end``."""
_GUEST_SHIFT = number_of(Tag(1, 0)).bit_length() - 1


class NativeCommands:
    """See :class:`pviommu.engine.stages.Commands`."""

    def __init__(
        self, lib: Library, place: Place, table: CommandTable, first: NativeRemembered, second: NativeRemembered
    ) -> None:
        self._lib = lib
        self._kept = place, first, second
        self._commands = library.Commands(
            place.in_c(),
            opcode=_field(Tlbi0.OPCODE),
            guest=_field(Tlbi0.VMID) if table.has_stage2 else library.Field(),
            space=_field(Tlbi0.ASID),
            number=_field(Tlbi0.NUM),
            scale=_field(Tlbi0.SCALE),
            granule=_field(Tlbi1.TG, 1),
            level=_field(Tlbi1.TTL, 1),
            completion=_field(Sync0.CS),
            signal=_field(Sync0.MSIDATA),
            signal_address=int(Sync1.MSIADDRESS) if table.has_msi else 0,
            address=int(Tlbi1.ADDR),
            levels=sum(1 << (granule << _bits(Tlbi1.TTL) | level) for granule, level in LEVELS),
            silent=sum(1 << completion for completion in SILENT),
            level_bits=_bits(Tlbi1.TTL),
            page_shift=10,  # TG 1 is 4 KiB
            told=Completion.IRQ,
            guest_shift=_GUEST_SHIFT,
            every=number_of(Tag(0, None)),
            most_looked_at=table.most_looked_at,
        )
        self._commands.tlbs[:] = first.address, second.address
        for opcode, (scope, stages, has_address) in table.invalidations.items():
            entry = self._commands.commands[opcode]
            entry.stages = sum(1 << stage - 1 for stage in stages)
            if scope is Scope.ALL:
                entry.effect = _CLEAR
            else:
                entry.effect, entry.scope = _FORGET_PAGES if has_address else _FORGET, _SCOPES.index(scope)
        self._commands.commands[Opcode.SYNC].effect = _SYNC
        self._address = addressof(self._commands)

    def run(self, at: int, count: int) -> tuple[int, bool, bool]:
        found = self._lib.pv_commands_run(self._address, at, count)
        return found >> 2, bool(found & _TELL), bool(found & _TIRED)


def _bits(field: BitField) -> int:
    return field.most.bit_length()


def _field(field: BitField, word: int = 0) -> library.Field:
    return library.Field(field.most, word, field.low)
