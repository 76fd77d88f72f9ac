"""The native core of an engine: see :class:`pviommu.engine.core.Core`, whose Python twin says what is right."""

from __future__ import annotations

import weakref
from array import array
from collections.abc import Sequence
from ctypes import addressof, c_uint32, c_uint64
from itertools import chain
from pathlib import Path

from ..engine import EngineConfig, GuestTables, Refusal, Run
from ..engine.core import DomainTable, PagePool
from ..engine.ranges import FrameRanges
from ..engine.results import PackedRuns
from ..engine.stages import Stage
from ..inputs import Inputs
from ..pci.shared_memory import SharedMemory
from . import library
from .build import LibraryError, find_library
from .card import NativeCard
from .library import REFUSALS
from .memory import NativeCopier, NativeGuard, address_of_bytes, new_bytes
from .ring import NativeRings
from .stages import NativeStages
from .table import NativePool, NativeTable
from .walk import NativeWalker, Place

__all__ = ["NativeCore", "native_core"]

_ROOM = 1024
"""Most runs that one call finds."""
_MOST_BYTES = 1 << 20
"""Most bytes of a request that one call carries out."""


def native_core(path: Path | None = None, *, rings: bool = True, copier: bool = True) -> NativeCore:
    """A core from the library at ``path``, or from the one that was built. Raises :class:`LibraryError`."""
    found = path or find_library()
    try:
        return NativeCore(library.load(found), rings=rings, copier=copier)
    except (OSError, AttributeError) as error:  # built for another C library, or no library of ours
        raise LibraryError(f"the native core does not load: {error}") from error


class NativeCore:
    """Tables and translation in C, and, on top, rings and copies of guest memory. The latter two read what comes from
    outside, and Python may do either of them instead. A :class:`pviommu.interfaces.pv.ring_core.DeviceCore`.
    """

    name = "native"
    walks = True

    def __init__(self, lib: library.Library, *, rings: bool = True, copier: bool = True) -> None:
        self._has_rings = rings
        self._has_copier = copier
        self.hits: dict[tuple[int, int, int], tuple[int, int]] = {}
        self.lib = lib
        self.address = 0
        self._position = c_uint64()
        self._done = c_uint32()
        self._runs = (c_uint64 * (2 * _ROOM))()
        self._run_bytes = memoryview(self._runs).cast("B")
        self._places = addressof(self._position), addressof(self._runs), addressof(self._done)
        self._shown: dict[int, DomainTable | NativeWalker] = {}
        """by domain: kept alive because C has their addresses"""

    def start(self, config: EngineConfig) -> PagePool:
        """Raises MemoryError."""
        if self.address:
            raise ValueError("a native core serves one engine, and this one has one already")
        self.address = self.lib.pv_core_create(config.aperture_frames) or 0
        if not self.address:
            raise MemoryError("no memory for the native core")
        self._finalizer = weakref.finalize(self, self.lib.pv_core_destroy, self.address)
        reserved = FrameRanges((region.first, region.last) for region in config.reserved)
        self._check(self.lib.pv_core_set_reserved(self.address, *_place(reserved.bounds)))
        return NativePool(self.lib, config.pool_pages)

    def table(self, pool: PagePool, frames: int) -> DomainTable:
        if not isinstance(pool, NativePool):
            raise TypeError("a native table draws on a native pool")
        return NativeTable(pool, frames)

    def change_backed(self, first: int, nr: int, backed: array[int]) -> None:
        self._check(self.lib.pv_core_change_backed(self.address, first, first + nr, *_place(backed)))

    def show(self, domain: int, table: DomainTable, direct: FrameRanges, closed: FrameRanges, is_clone: bool) -> None:
        if not isinstance(table, NativeTable):
            raise TypeError("a native core has native tables")
        self._shown[domain] = table
        regions = (*_place(direct.bounds), *_place(closed.bounds))
        self._check(self.lib.pv_core_show(self.address, domain, table.address, *regions, is_clone))

    def show_tables(self, domain: int, guest: GuestTables, direct: FrameRanges, closed: FrameRanges) -> bool:
        if not isinstance(guest.memory, NativeCopier):
            return False
        updates = guest.update is not None
        walker = NativeWalker(self.lib, Place(guest.memory), Stage(guest.tables), updates=updates)
        self._shown[domain] = walker
        regions = (*_place(direct.bounds), *_place(closed.bounds))
        self._check(self.lib.pv_core_show_tables(self.address, domain, walker.address, guest.frames, *regions))
        return True

    def hide(self, domain: int) -> None:
        self.lib.pv_core_hide(self.address, domain)
        del self._shown[domain]

    def walk(self, domain: int, iova: int, end: int, wanted: int) -> Sequence[Run] | tuple[int, Refusal]:
        self._position.value = iova
        at, room, done = self._places
        found = array("Q")
        while True:
            count = self.lib.pv_core_walk(self.address, domain, at, end - 1, wanted, room, _ROOM, done)
            if count < 0:
                return self._position.value, REFUSALS[-count]
            found.frombytes(self._run_bytes[: 16 * count])
            if self._done.value:
                break
        return [Run(*found)] if len(found) == 2 else PackedRuns(found)

    def walk_spans(self, domain: int, spans: Sequence[tuple[int, int]], wanted: int) -> PackedRuns | None:
        try:
            asked = array("Q", chain.from_iterable(spans))
        except OverflowError:  # an address that does not exist
            return None
        found = array("Q", asked)
        (at, _), (there, _) = _place(asked), _place(found)
        is_found = self.lib.pv_core_walk_spans(self.address, domain, at, len(spans), wanted, there)
        return PackedRuns(found) if is_found else None

    def transfer(
        self,
        domain: int,
        spans: Sequence[tuple[int, int]],
        copier: object,
        data: bytes | memoryview | None,
        word: int,
        step: int,
    ) -> bytes | None:
        if not isinstance(copier, NativeCopier):
            raise TypeError("a native core copies by a native copier")
        try:
            asked = array("Q", chain.from_iterable(spans))
        except OverflowError:  # an address that does not exist
            asked = array("Q", (0, 0))  # nothing, which is refused; the line has its step all the same
        size = sum(asked[1::2]) if data is None else len(data)
        if size > _MOST_BYTES:
            asked, size, data = array("Q", (0, 0)), 0, None
        moved = new_bytes(size) if data is None else bytes(data)
        is_done = self.lib.pv_core_transfer(
            *(self.address, domain, copier.address, word, step),
            *(*_place(asked)[:1], len(asked) // 2, self._places[1], _ROOM),
            *(address_of_bytes(moved), size, data is not None),
        )
        return moved if is_done else None

    def rings(self, count: int, shared: SharedMemory, inputs: Inputs) -> NativeRings | None:
        if not (self._has_rings and inputs.may_be_bypassed):
            return None
        return NativeRings(self.lib, self.address, count, shared, inputs, self.hits.clear)

    def copier(self) -> NativeCopier | None:
        return NativeCopier(self.lib) if self._has_copier else None

    def card(self, copier: object) -> NativeCard | None:
        return NativeCard(self.lib, copier) if isinstance(copier, NativeCopier) else None

    def guard(self) -> NativeGuard:
        return NativeGuard(self.lib)

    def stages(self, memory: object, domain: int, end: int) -> NativeStages | None:
        return NativeStages(self.lib, Place(memory, self, domain, end)) if isinstance(memory, NativeCopier) else None

    def another(self) -> NativeCore:
        """One with the same parts, for another engine."""
        return NativeCore(self.lib, rings=self._has_rings, copier=self._has_copier)

    @staticmethod
    def _check(result: int) -> None:
        if result:
            raise MemoryError("no memory for the native core")


def _place(bounds: array[int]) -> tuple[int, int]:
    """Bounds as C takes them: address and number. The array must live until the call returns."""
    return bounds.buffer_info()
