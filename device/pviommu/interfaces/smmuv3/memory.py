"""What the SMMU reads and writes in guest memory.

All addresses that the guest gives it are addresses of the parent, the domain that the SMMU stands on: an access that
the parent refuses, that does not lead to RAM, or that is beyond the output size, is what a bus calls an external abort.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum

from ...dma.access import GuestMemoryError
from ...dma.memory import GuestMemory
from ...engine import Access, Parent, ParentRefusal, Run
from ...engine.walk import ENTRY_SIZE, ReadRefusal

__all__ = ["Abort", "GuestReader", "Structure"]


class Structure(Enum):
    """What the SMMU reads to know how to translate."""

    STE = "stream table entry"
    CD = "context descriptor"
    L1STD = "first level of a stream table"
    L1CD = "first level of a table of context descriptors"


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

    def fetch(self, _: Structure, address: int, size: int) -> bytes | Abort:
        """As :meth:`read`, for a structure: looked up for each, as a rule may stand before it."""
        return self.read(address, size)

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

    @property
    def has_exchange(self) -> bool:
        """Whether :meth:`exchange` is possible."""
        return self._memory.has_exchange

    def exchange(self, address: int, before: int, after: int) -> int | Abort:
        """Replace the 64 bits at ``address``, a multiple of 8, by ``after`` if they are ``before``, as one atomic step.
        Returns those that were there.
        """
        runs = self._runs(address, ENTRY_SIZE, Access.WRITE)
        if isinstance(runs, Abort):
            return runs
        try:
            return self._memory.exchange(runs[0].gpa, before, after)
        except GuestMemoryError:
            return Abort(address)

    def _runs(self, address: int, size: int, access: Access) -> Sequence[Run] | Abort:
        if address + size > self._end:
            return Abort(address)
        runs = self._parent(address, size, access)
        return Abort(address, runs) if isinstance(runs, ParentRefusal) else runs

    def descriptor(self, address: int) -> int | Abort:
        """The 64 bits at ``address``."""
        data = self.read(address, ENTRY_SIZE)
        return data if isinstance(data, Abort) else int.from_bytes(data, "little")
