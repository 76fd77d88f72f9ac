"""What a core has for tables in guest memory, and for what is remembered of them: see :mod:`pviommu.engine.stages`."""

from __future__ import annotations

from ..engine.stages import Remembered, Stage
from ..interfaces.smmuv3.command_table import CommandTable
from .commands import NativeCommands
from .library import Library
from .walk import NativeRemembered, NativeWalker, Place

__all__ = ["NativeStages"]


class NativeStages:
    """See :class:`pviommu.engine.stages.Stages`."""

    def __init__(self, lib: Library, place: Place) -> None:
        self._lib = lib
        self._place = place

    def remembered(self, limit: int) -> NativeRemembered:
        return NativeRemembered(self._lib, limit)

    def walker(self, first: Stage | None, second: Stage | None, pass_bits: int, *, compares: bool) -> NativeWalker:
        return NativeWalker(self._lib, self._place, first, second, pass_bits=pass_bits, compares=compares)

    def commands(self, table: object, first: Remembered, second: Remembered) -> NativeCommands:
        if not isinstance(table, CommandTable):
            raise TypeError(f"{table}: C has the commands of an SMMU only")
        if not (isinstance(first, NativeRemembered) and isinstance(second, NativeRemembered)):
            raise TypeError("native commands forget what C remembers")
        return NativeCommands(self._lib, self._place, table, first, second)
