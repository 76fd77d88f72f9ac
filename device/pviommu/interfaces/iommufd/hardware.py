"""The engine as hardware: physical memory is that of all processes, each at a place of its own."""

from __future__ import annotations

import errno

from ...engine import (
    BLOCKED,
    MAX_DOMAIN,
    PAGE_SHIFT,
    Access,
    Engine,
    EngineConfig,
    TranslationFault,
    TranslationPending,
    UnmapMode,
)
from ...engine.core import Core
from .request_error import RequestError
from .user_memory import ADDRESS_LIMIT, UserMemory

__all__ = ["DmaRefusedError", "Hardware"]

_PROCESSES = 1 << 16


class DmaRefusedError(Exception):
    """DMA was refused; nothing of it was done."""

    def __init__(self, fault: TranslationFault | TranslationPending) -> None:
        why = fault.refusal.value if isinstance(fault, TranslationFault) else "a page request must be answered first"
        super().__init__(f"DMA of stream {fault.stream} at {fault.iova:#x}: {why}")
        self.fault = fault


class Hardware:
    """Page tables, and DMA through them."""

    def __init__(self, core: Core | None = None, pool_pages: int = 1 << 20) -> None:
        """``core``: as of an engine. ``pool_pages``: 4 KiB pages for page tables."""
        self.engine = Engine(EngineConfig(pool_pages=pool_pages, aperture_bits=48, reserved=()), core)
        self._memories: list[UserMemory] = []
        self._places: dict[int, int] = {}
        """id() of a memory -> its place; all of them are kept"""

    # Memory

    def place_of(self, memory: UserMemory) -> int:
        """The physical address of a process's address 0. Raises OSError (ENOMEM) when there are too many processes."""
        place = self._places.get(id(memory))
        if place is None:
            if len(self._memories) == _PROCESSES:
                raise RequestError(errno.ENOMEM, f"memory of another process: there are {_PROCESSES} already")
            place = self._places[id(memory)] = len(self._memories) * ADDRESS_LIMIT
            self._memories.append(memory)
        return place

    def memory_at(self, address: int) -> UserMemory:
        """The memory of the process that has a physical address."""
        return self._memories[address // ADDRESS_LIMIT]

    def read(self, stream: int, iova: int, length: int) -> bytes:
        """DMA by a device. Raises :class:`DmaRefusedError`, or OSError (EFAULT) if a process has lost the memory."""
        return b"".join(
            memory.read(address, size) for memory, address, size in self._runs(stream, iova, length, Access.READ)
        )

    def write(self, stream: int, iova: int, data: bytes) -> None:
        """DMA by a device. Raises as :meth:`read` does."""
        position = 0
        for memory, address, size in self._runs(stream, iova, len(data), Access.WRITE):
            memory.write(address, data[position : position + size])
            position += size

    def _runs(self, stream: int, iova: int, length: int, access: Access) -> list[tuple[UserMemory, int, int]]:
        found = self.engine.translate(stream, iova, length, access)
        if isinstance(found, TranslationFault | TranslationPending):
            raise DmaRefusedError(found)
        return [(self.memory_at(gpa), gpa % ADDRESS_LIMIT, size) for gpa, size in found]

    # Page tables

    def add_stream(self, stream: int) -> None:
        """A device, whose DMA goes nowhere yet."""
        self.engine.add_endpoint(stream, domain=BLOCKED)

    def add_table(self) -> int:
        """A new empty page table. Raises OSError (ENOMEM)."""
        taken = set(self.engine.domains())
        number = next((number for number in range(1, MAX_DOMAIN + 1) if number not in taken), None)
        if number is None or self.engine.alloc_paging(number):
            raise RequestError(errno.ENOMEM, "page table: no number, or no page for its root, is left")
        return number

    def remove_table(self, table: int) -> None:
        """Nothing is attached to it."""
        stop = self.engine.free_domain(table)
        if stop:
            raise ValueError(f"remove page table {table}: {stop.value}")

    def map(self, table: int, iova: int, address: int, length: int, access: Access) -> None:
        """Map physical memory, all of it, where nothing is mapped. Raises OSError, and then maps nothing: EINVAL for no
        access, ENOMEM.
        """
        if not access:
            raise RequestError(
                errno.EINVAL, f"map {iova:#x}+{length:#x} in table {table}: neither readable nor writeable"
            )
        dfn, pages = iova >> PAGE_SHIFT, length >> PAGE_SHIFT
        outcome = self.engine.map(table, dfn, address >> PAGE_SHIFT, pages, access, ram_only=False)
        if not outcome.ok:
            self.engine.unmap(table, dfn, outcome.done)
            raise RequestError(errno.ENOMEM, f"map {iova:#x}+{length:#x} in page table {table}: {outcome.stop}")

    def unmap(self, table: int, iova: int, length: int) -> None:
        """Unmap what was mapped."""
        self.engine.unmap(table, iova >> PAGE_SHIFT, length >> PAGE_SHIFT, UnmapMode.UNTIL_HOLE)

    def attach(self, stream: int, table: int | None) -> None:
        """Let a device's DMA go through a page table, or nowhere."""
        stop = self.engine.attach(stream, BLOCKED if table is None else table)
        if stop:
            raise ValueError(f"attach stream {stream} to page table {table}: {stop.value}")
