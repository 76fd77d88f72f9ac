"""The engine as hardware: physical memory is that of all processes, each at a place of its own."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from weakref import WeakKeyDictionary, WeakValueDictionary

from ...engine import (
    BLOCKED,
    MAX_DOMAIN,
    PAGE_SHIFT,
    PAGE_SIZE,
    Access,
    Engine,
    EngineConfig,
    Stage1Walker,
    TranslationFault,
    TranslationPending,
    UnmapMode,
)
from ...engine.core import Core
from .places import Places
from .request_error import RequestError
from .user_memory import ADDRESS_LIMIT, LocalMemory, UserMemory

__all__ = ["DmaRefusedError", "Hardware"]

_PROCESSES = 1 << 15
"""Memories at one time. A page table of pages of 2 KiB has twice the addresses."""


_NOTHING = LocalMemory()


class DmaRefusedError(Exception):
    """DMA was refused; nothing of it was done."""

    def __init__(self, fault: TranslationFault | TranslationPending) -> None:
        why = fault.refusal.value if isinstance(fault, TranslationFault) else "a page request must be answered first"
        super().__init__(f"DMA of stream {fault.stream} at {fault.iova:#x}: {why}")
        self.fault = fault


class Hardware:
    """Page tables, and DMA through them.

    The engine's pages are of 4 KiB. For page tables with smaller ones it is given all addresses multiplied, so that its
    page stands for the smaller one.
    """

    def __init__(self, core: Core | None = None, pool_pages: int = 1 << 20, places: Places | None = None) -> None:
        """``core``: as of an engine. ``pool_pages``: 4 KiB pages for page tables. ``places``: where requests fail."""
        self.places = places or Places()
        self.engine = Engine(EngineConfig(pool_pages=pool_pages, aperture_bits=48, reserved=()), core)
        self._memories: WeakValueDictionary[int, UserMemory] = WeakValueDictionary()
        """By number: mappings keep them"""
        self._numbers: WeakKeyDictionary[UserMemory, int] = WeakKeyDictionary()
        self._next = 0
        self._scales: dict[int, int] = {}
        """page table -> what addresses are multiplied by, where that is not 1"""
        self._streams: dict[int, int] = {}
        """the same by stream: all page tables of a device have pages of one size"""
        self._free_streams: list[int] = []
        self.asks: Callable[[TranslationFault], bool] | None = None
        """See :meth:`waits`."""

    # Memory

    def place_of(self, memory: UserMemory) -> int:
        """The physical address of a process's address 0. Raises OSError (ENOMEM) when there are too many processes."""
        number = self._numbers.get(memory)
        if number is None:
            if len(self._memories) == _PROCESSES:
                raise RequestError(errno.ENOMEM, f"memory of another process: there are {_PROCESSES} already")
            while self._next in self._memories:
                self._next = (self._next + 1) % _PROCESSES
            number, self._next = self._next, (self._next + 1) % _PROCESSES
            self._numbers[memory], self._memories[number] = number, memory
        return number * ADDRESS_LIMIT

    def memory_at(self, address: int) -> UserMemory:
        """The memory of the process that has a physical address; if nothing of it is mapped any more, one that has
        nothing.
        """
        return self._memories.get(address // ADDRESS_LIMIT, _NOTHING)

    def read_physical(self, address: int, length: int) -> bytes:
        """Raises OSError (EFAULT) if a process has lost the memory."""
        return self.memory_at(address).read(address % ADDRESS_LIMIT, length)

    def read(self, stream: int, iova: int, length: int, pasid: int | None = None) -> bytes:
        """DMA by a device. Raises :class:`DmaRefusedError`, or OSError (EFAULT) if a process has lost the memory."""
        return b"".join(
            memory.read(address, size) for memory, address, size in self.runs(stream, iova, length, Access.READ, pasid)
        )

    def write(self, stream: int, iova: int, data: bytes, pasid: int | None = None) -> None:
        """DMA by a device. Raises as :meth:`read` does."""
        position = 0
        for memory, address, size in self.runs(stream, iova, len(data), Access.WRITE, pasid):
            memory.write(address, data[position : position + size])
            position += size

    def runs(
        self, stream: int, iova: int, length: int, access: Access, pasid: int | None = None
    ) -> list[tuple[UserMemory, int, int]]:
        """(memory, address, bytes) of what DMA of a device reaches, in order. Raises :class:`DmaRefusedError`."""
        scale = self._streams.get(stream, 1)
        found = self.engine.translate(stream, iova * scale, length * scale, access, pasid)
        if isinstance(found, TranslationFault | TranslationPending):
            if isinstance(found, TranslationFault) and self.waits(found):
                found = TranslationPending(found.iova, access, stream, found.domain, pasid)
            raise DmaRefusedError(replace(found, iova=found.iova // scale))
        return [(self.memory_at(gpa // scale), gpa // scale % ADDRESS_LIMIT, size // scale) for gpa, size in found]

    def waits(self, fault: TranslationFault) -> bool:
        """Whether the device asks for the page that it was refused, and waits for the answer: then it tries again."""
        return self.asks is not None and self.asks(fault)

    # Devices

    def add_stream(self, page_size: int = PAGE_SIZE) -> int:
        """A device, whose DMA goes nowhere yet, and whose page tables have such pages. Returns the number of it."""
        if self._free_streams:
            stream = self._free_streams.pop()
        else:
            stream = len(self._streams)
            self.engine.add_endpoint(stream, domain=BLOCKED)
        self._streams[stream] = PAGE_SIZE // page_size
        return stream

    def remove_stream(self, stream: int) -> None:
        """A device is gone. Nothing of it is attached."""
        self._free_streams.append(stream)

    def attach(self, stream: int, table: int | None, pasid: int | None = None) -> None:
        """Let a device's DMA, with a PASID or without, go through a page table, or nowhere."""
        if table is None and pasid is not None:
            self.engine.detach(stream, pasid)
            return
        stop = self.engine.attach(stream, BLOCKED if table is None else table, pasid)
        if stop:
            raise ValueError(f"attach stream {stream} to page table {table}: {stop.value}")

    @contextmanager
    def probing(self, table: int) -> Iterator[int]:
        """A device that does not exist otherwise, attached to a page table: to look where its DMA would go."""
        stream = self.add_stream(PAGE_SIZE // self._scales.get(table, 1))
        self.attach(stream, table)
        try:
            yield stream
        finally:
            self.attach(stream, None)
            self.remove_stream(stream)

    # Page tables

    def add_table(self, page_size: int = PAGE_SIZE) -> int:
        """A new empty page table, whose smallest pages are of that size. Raises OSError (ENOMEM)."""
        self.places.table()
        number = self._number()
        if self.engine.alloc_paging(number):
            raise RequestError(errno.ENOMEM, "page table: no page for its root is left")
        if page_size != PAGE_SIZE:
            self._scales[number] = PAGE_SIZE // page_size
        return number

    def add_nested(self, parent: int, walker: Stage1Walker) -> int:
        """A first stage on a page table. Raises OSError (ENOMEM)."""
        self.places.table()
        number = self._number()
        stop = self.engine.alloc_nested(number, parent, walker)
        if stop:
            raise ValueError(f"first stage on page table {parent}: {stop.value}")
        return number

    def _number(self) -> int:
        taken = set(self.engine.domains())
        number = next((number for number in range(1, MAX_DOMAIN + 1) if number not in taken), None)
        if number is None:
            raise RequestError(errno.ENOMEM, "page table: no number is left")
        return number

    def remove_table(self, table: int) -> None:
        """Nothing is attached to it."""
        stop = self.engine.free_domain(table)
        if stop:
            raise ValueError(f"remove page table {table}: {stop.value}")
        self._scales.pop(table, None)

    def map(self, table: int, iova: int, address: int, length: int, access: Access) -> None:
        """Map physical memory, all of it, where nothing is mapped. Raises OSError, and then maps nothing: EINVAL for no
        access, ENOMEM.
        """
        if not access:
            raise RequestError(
                errno.EINVAL, f"map {iova:#x}+{length:#x} in table {table}: neither readable nor writeable"
            )
        self.places.leaves()
        dfn, pages = self._pages(table, iova, length)
        outcome = self.engine.map(table, dfn, self._pages(table, address, length)[0], pages, access, ram_only=False)
        if not outcome.ok:
            self.engine.unmap(table, dfn, outcome.done)
            raise RequestError(errno.ENOMEM, f"map {iova:#x}+{length:#x} in page table {table}: {outcome.stop}")

    def unmap(self, table: int, iova: int, length: int) -> None:
        """Unmap what was mapped."""
        self.engine.unmap(table, *self._pages(table, iova, length), UnmapMode.UNTIL_HOLE)

    def _pages(self, table: int, address: int, length: int) -> tuple[int, int]:
        scale = self._scales.get(table, 1)
        return address * scale >> PAGE_SHIFT, length * scale >> PAGE_SHIFT

    # Pages that DMA wrote

    def track_dirty(self, table: int, *, enabled: bool) -> None:
        """Note from now on which pages DMA writes, none so far, or do not."""
        self.engine.track_dirty(table, enabled=enabled)

    def tracks_dirty(self, table: int) -> bool:
        """Whether they are noted."""
        return self.engine.tracks_dirty(table)

    def dirty(self, table: int, iova: int, length: int, *, clear: bool) -> list[tuple[int, int]]:
        """(IOVA, bytes) of what was written, in order."""
        scale = self._scales.get(table, 1)
        runs = self.engine.dirty(table, *self._pages(table, iova, length), clear=clear)
        return [((first << PAGE_SHIFT) // scale, (count << PAGE_SHIFT) // scale) for first, count in runs]
