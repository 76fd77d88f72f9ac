"""A function in the same process, reached by the calls that a session would make."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, Protocol

from pviommu_abi.registers import REGISTER_BAR
from vfio_user import DmaMapping, RegionIndex
from wire_layout.registers import Register

from .function import WORD, Function

__all__ = ["LocalFunction", "Served"]


class Shared(Protocol):
    """The shared BAR of a function."""

    @property
    def view(self) -> memoryview: ...
    @property
    def words(self) -> memoryview: ...


class Served(Protocol):
    """What a function offers to whoever serves it."""

    @property
    def shared(self) -> Shared: ...
    def region_read(self, index: int, offset: int, count: int, /) -> bytes: ...
    def region_write(self, index: int, offset: int, data: bytes, /) -> Any: ...
    def dma_map(self, mapping: DmaMapping, /) -> Any: ...
    def dma_unmap(self, address: int, size: int, /) -> Any: ...


class LocalFunction(Function):
    """A function reached by calls, which its owner keeps. Steps that a write returns are left to the function's own
    work."""

    def __init__(self, served: Served, registers: Mapping[str, Register]) -> None:
        self.registers = registers
        self._served = served

    @property
    def view(self) -> memoryview:
        return self._served.shared.view  # new memory for each client of the function

    @property
    def words(self) -> memoryview:
        return self._served.shared.words

    def read_at(self, offset: int) -> int:
        return int.from_bytes(self._served.region_read(REGISTER_BAR, offset, WORD), "little")

    def write_at(self, offset: int, value: int) -> None:
        self._served.region_write(REGISTER_BAR, offset, value.to_bytes(WORD, "little"))

    def read_config(self, offset: int, size: int) -> int:
        return int.from_bytes(self._served.region_read(RegionIndex.CONFIG, offset, size), "little")

    def write_config(self, offset: int, size: int, value: int) -> None:
        self._served.region_write(RegionIndex.CONFIG, offset, value.to_bytes(size, "little"))

    def plug(self, address: int, size: int, fd: int, offset: int = 0) -> None:
        self._served.dma_map(DmaMapping(address, size, offset, True, True, os.dup(fd)))

    def unplug(self, address: int, size: int) -> None:
        self._served.dma_unmap(address, size)

    def close(self) -> None:
        """Does nothing: the function is its owner's."""
