"""A BAR of declared registers.

The declaration says how a register behaves; the function that owns it adds meaning by methods found by name:
``read_status(index)`` gives the value of STATUS, ``write_profile(index, value)`` is told what was written to
PROFILE. ``index`` counts within a register that is an array. A register without a read method reads what it
holds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from pviommu_abi.registers import Access, Register
from vfio_user import Steps

__all__ = ["RegisterFile"]

WORD = 4


class RegisterFile:
    """The registers of one BAR, 32 bits each. Accesses of another size, or between registers, read 0 and write
    nothing.
    """

    def __init__(self, registers: Sequence[Register], owner: object) -> None:
        self._values = {register.name: [0] * register.count for register in registers}
        self._places: dict[int, tuple[Register, int]] = {}
        self._readers: dict[str, Callable[[int], int]] = {}
        self._writers: dict[str, Callable[[int, int], Steps | None]] = {}
        for register in registers:
            for index in range(register.count):
                self._places[register.offset + WORD * index] = (register, index)
            reader = getattr(owner, f"read_{register.name.lower()}", None)
            if reader is not None:
                self._readers[register.name] = reader
            writer = getattr(owner, f"write_{register.name.lower()}", None)
            if writer is not None:
                self._writers[register.name] = writer

    def __getitem__(self, name: str) -> int:
        """What register ``name`` holds."""
        return self._values[name][0]

    def __setitem__(self, name: str, value: int) -> None:
        self._values[name][0] = value

    def clear(self, registers: Sequence[str]) -> None:
        """Let ``registers`` hold 0."""
        for name in registers:
            self._values[name] = [0] * len(self._values[name])

    def read(self, offset: int, count: int) -> bytes:
        """``count`` bytes at ``offset``."""
        register, index = self._places.get(offset, (None, 0))
        if register is None or count != WORD or register.access is Access.WO:
            return bytes(count)
        reader = self._readers.get(register.name)
        value = reader(index) if reader is not None else self._values[register.name][index]
        return (value & 0xFFFFFFFF).to_bytes(WORD, "little")

    def write(self, offset: int, data: bytes) -> Steps | None:
        """Write the register at ``offset``. One with a write method holds only what that method makes it hold.

        Returns what that method returns: None, or what is left to do in steps.
        """
        register, index = self._places.get(offset, (None, 0))
        if register is None or len(data) != WORD or register.access is Access.RO:
            return None
        value = int.from_bytes(data, "little")
        writer = self._writers.get(register.name)
        if register.access is Access.RW and writer is None:
            self._values[register.name][index] = value
        return None if writer is None else writer(index, value)
