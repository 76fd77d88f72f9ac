"""A PCI function as seen by its driver, however it is reached."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

from wire_layout.registers import Register

__all__ = ["COMMAND_MASTER", "COMMAND_MEMORY", "CONFIG_COMMAND", "WORD", "Function"]

WORD = 4
"""Bytes of a register, and of an index in shared memory."""
CONFIG_COMMAND = 4
"""The command register in configuration space, 16 bits (PCI 3.0, 6.2.2)."""
COMMAND_MEMORY, COMMAND_MASTER = 1 << 1, 1 << 2


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
    def set_bus_master(self, on: bool) -> None:
        """Enable memory accesses, and DMA too if ``on``."""

    @abstractmethod
    def plug(self, address: int, size: int, fd: int, offset: int = 0) -> None:
        """Give it guest memory: ``size`` bytes at guest physical ``address``, which are at ``offset`` of a file."""

    @abstractmethod
    def unplug(self, address: int, size: int) -> None:
        """Take guest memory away again."""

    @abstractmethod
    def close(self) -> None:
        """Go away without a word, as a killed VM does."""
