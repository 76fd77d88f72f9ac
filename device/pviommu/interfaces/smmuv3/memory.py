"""What the SMMU reads and writes in guest memory.

All addresses that the guest gives it are addresses of the parent, the domain that the SMMU stands on: an access that
the parent refuses, that does not lead to RAM, or that is beyond the output size, is what a bus calls an external abort.
"""

from __future__ import annotations

from collections.abc import Sequence

from ...dma.access import GuestMemoryError
from ...dma.memory import GuestMemory
from ...engine import Access, Parent, ParentRefusal, Run
from ...engine.walk import ENTRY_SIZE, ReadRefusal

__all__ = ["Abort", "GuestReader"]


class Abort(ReadRefusal):
    """An access to an address that was refused: by the parent, if that is given, or because there is no RAM."""

    __slots__ = ("address", "parent")

    def __init__(self, address: int, parent: ParentRefusal | None = None) -> None:
        self.address = address
        self.parent = parent


class GuestReader:
    """Accesses to guest memory through ``parent``, which translates for whoever asks."""

    def __init__(self, memory: GuestMemory, parent: Parent, address_bits: int) -> None:
        self._memory = memory
        self._parent = parent
        self._end = 1 << address_bits

    def read(self, address: int, size: int) -> bytes | Abort:
        """``size`` bytes, copied at once."""
        runs = self._runs(address, size, Access.READ)
        if isinstance(runs, Abort):
            return runs
        try:
            return self._memory.read(runs)
        except GuestMemoryError:
            return Abort(address)

    def write(self, address: int, data: bytes) -> Abort | None:
        """Write ``data``; None if that was done."""
        runs = self._runs(address, len(data), Access.WRITE)
        if isinstance(runs, Abort):
            return runs
        try:
            self._memory.write(runs, data)
        except GuestMemoryError:
            return Abort(address)
        return None

    def _runs(self, address: int, size: int, access: Access) -> Sequence[Run] | Abort:
        if address + size > self._end:
            return Abort(address)
        runs = self._parent(address, size, access)
        return Abort(address, runs) if isinstance(runs, ParentRefusal) else runs

    def descriptor(self, address: int) -> int | Abort:
        """The 64 bits at ``address``."""
        data = self.read(address, ENTRY_SIZE)
        return data if isinstance(data, Abort) else int.from_bytes(data, "little")
