"""A PCI function as seen by its driver, however it is reached."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

from wire_layout.registers import Register

__all__ = ["WORD", "Function"]

WORD = 4
"""Bytes of a register, and of an index in shared memory."""
CONFIG_COMMAND = 4
"""The command register in configuration space, 16 bits (PCI 3.0, 6.2.2)."""
COMMAND_MEMORY, COMMAND_MASTER = 1 << 1, 1 << 2
_CAPABILITIES = 0x34
"""Where the first capability is (PCI 3.0, 6.7); each begins with its id and the place of the next one."""
_EXTENDED_CAPABILITIES = 0x100
"""The first extended capability (PCI Express base 4.0, 7.6); each begins with its id and where the next one is."""
_EXPRESS, _DEVICE_CONTROL, _INITIATE_RESET = 0x10, 8, 1 << 15
"""The PCI Express capability and the function-level reset in it (PCI Express base 4.0, 7.5.3.4)."""


class Function(ABC):
    """Registers of BAR 0, shared memory of BAR 2, and whether memory accesses and DMA are enabled."""

    registers: Mapping[str, Register]
    """those of BAR 0 by name"""

    @property
    @abstractmethod
    def view(self) -> memoryview:
        """The shared BAR, as bytes."""

    @property
    @abstractmethod
    def words(self) -> memoryview:
        """The same in 32-bit words."""

    def read(self, register: str) -> int:
        """A register of 32 bits by its name."""
        return self.read_at(self.registers[register].offset)

    def write(self, register: str, value: int) -> None:
        """Write a register of 32 bits by its name."""
        self.write_at(self.registers[register].offset, value)

    @abstractmethod
    def read_at(self, offset: int) -> int:
        """The 32 bits at ``offset`` of BAR 0."""

    @abstractmethod
    def write_at(self, offset: int, value: int) -> None:
        """Write the 32 bits at ``offset`` of BAR 0."""

    @abstractmethod
    def read_config(self, offset: int, size: int) -> int:
        """The number of ``size`` bytes at ``offset`` of configuration space."""

    @abstractmethod
    def write_config(self, offset: int, size: int, value: int) -> None:
        """Write the number of ``size`` bytes at ``offset`` of configuration space."""

    def set_bus_master(self, on: bool) -> None:
        """Enable memory accesses, and DMA too if ``on``."""
        self.write_config(CONFIG_COMMAND, 2, COMMAND_MEMORY | (COMMAND_MASTER if on else 0))

    def reset(self) -> None:
        """Reset it alone, by its PCI Express capability. Raises LookupError if it has none."""
        place = self.read_config(_CAPABILITIES, 1)
        while place and self.read_config(place, 1) != _EXPRESS:
            place = self.read_config(place + 1, 1)
        if not place:
            raise LookupError("the function has no PCI Express capability, and so no reset of its own")
        self.write_config(place + _DEVICE_CONTROL, 2, _INITIATE_RESET)

    def extended_capability(self, cap_id: int) -> int:
        """The place of an extended capability in configuration space. Raises LookupError if it has none of this id."""
        place = _EXTENDED_CAPABILITIES
        while place:
            header = self.read_config(place, 4)
            if header & 0xFFFF == cap_id:
                return place
            place = header >> 20
        raise LookupError(f"the function has no extended capability {cap_id:#x}")

    @abstractmethod
    def plug(self, address: int, size: int, fd: int, offset: int = 0) -> None:
        """Give it guest memory: ``size`` bytes at guest physical ``address``, which are at ``offset`` of a file."""

    @abstractmethod
    def unplug(self, address: int, size: int) -> None:
        """Take guest memory away again."""

    @abstractmethod
    def close(self) -> None:
        """Go away without a word, as a killed VM does."""
