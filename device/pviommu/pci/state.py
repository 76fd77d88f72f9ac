"""The saved state that all PCI functions have."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec import Struct

from vfio_user.interrupts import Vector

from ..dma.expected import MemoryRange, check_memory, memory_ranges
from .registers import RegisterValues
from .shared_memory import SharedPages, pages_of

if TYPE_CHECKING:
    from .function import PciFunction

__all__ = ["BusyError", "FunctionState", "check_function", "load_function", "save_function"]


class BusyError(Exception):
    """Something is in progress that no saved state holds. It will be over after some turns of the loop."""


class FunctionState(Struct, frozen=True):
    """The state of one function, without what only its class knows. BARs are by index."""

    config: bytes
    """configuration space, up to the last byte that is not 0"""
    registers: dict[int, RegisterValues]
    shared: dict[int, SharedPages]
    vectors: tuple[Vector, ...]
    """those that the client has set up; the next client brings new eventfds"""
    memory: tuple[MemoryRange, ...]
    """the guest memory, which the next client must bring again"""


def save_function(function: PciFunction) -> FunctionState:
    """The state of a function."""
    bars = function.bars
    return FunctionState(
        function.config.save(),
        {index: file.save() for index, file in bars.registers.items()},
        {index: pages_of(function.copy_shared(bar.memory.view)) for index, bar in bars.shared.items()},
        function.interrupts.save(),
        memory_ranges(function.memory),
    )


def check_function(function: PciFunction, state: FunctionState) -> None:
    """Raise ValueError unless the client has brought the guest memory that the state was made with, and no other."""
    check_memory(state.memory, function.memory)


def load_function(function: PciFunction, state: FunctionState) -> None:
    """Take over a state, addresses of BARs included. Raises ValueError, perhaps half-way, for a state that is another
    function's or contradicts itself.
    """
    files, shared = function.bars.registers, function.bars.shared
    if state.registers.keys() != files.keys() or state.shared.keys() != shared.keys():
        raise ValueError(f"BARs {sorted((*state.registers, *state.shared))}, and here {sorted((*files, *shared))}")
    function.config.load(state.config)
    for index, file in files.items():
        file.load(state.registers[index])
    for index, bar in shared.items():
        bar.memory.load(state.shared[index])
    function.interrupts.load(state.vectors)
    function.bars.decode()
