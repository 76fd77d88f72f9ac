"""Page pool and page tables of the native core: twins of :mod:`pviommu.engine.pool` and :mod:`pviommu.engine.table`."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from ctypes import addressof, c_uint64

from ..engine.table import ACCESS_MASK, LEVEL_BITS, START, Leaf
from . import library
from .library import LEAF_FIELDS, Library

__all__ = ["NativePool", "NativeTable"]

_CHUNK = 256
"""Leaves fetched by one call."""
_FRAMES = 1 << 52


class NativePool:
    """A :class:`pviommu.engine.pool.Pool` that native tables draw on too."""

    def __init__(self, lib: Library, total: int) -> None:
        self._pool = library.Pool(free=total, total=total)
        self.lib = lib
        self.address = addressof(self._pool)
        self._finalizer = weakref.finalize(self, _destroy_pool, lib, self._pool)

    @property
    def free(self) -> int:
        return int(self._pool.free)

    @free.setter
    def free(self, pages: int) -> None:
        self._pool.free = pages

    @property
    def total(self) -> int:
        return int(self._pool.total)

    @total.setter
    def total(self, pages: int) -> None:
        self._pool.total = pages

    @property
    def used(self) -> int:
        return self.total - self.free

    def take(self, pages: int) -> bool:
        """Take ``pages``, all or none; False when so many are not left."""
        if pages > self.free:
            return False
        self._pool.free -= pages
        return True

    def give(self, pages: int) -> None:
        self._pool.free += pages

    def resize(self, total: int) -> None:
        """Have ``total`` pages from now on. Raises ValueError when more are in use."""
        if total < self.used:
            raise ValueError(f"pool of {total} pages: {self.used} are in use; a pool holds at least those")
        self._pool.free += total - self.total
        self._pool.total = total

    def check_memory(self) -> None:
        """Raise MemoryError if the process had none for a node since the last time."""
        if self._pool.out_of_memory:
            self._pool.out_of_memory = 0
            raise MemoryError("no memory for a page-table node")


class NativeTable:
    """A :class:`pviommu.engine.table.PageTable` in C. Raises MemoryError also when the process has no memory left."""

    def __init__(self, pool: NativePool, frames: int) -> None:
        if not pool.take(1):
            raise MemoryError("page pool exhausted: no page is left for a root table")
        levels = max(3, -(-(frames - 1).bit_length() // LEVEL_BITS))
        self.shifts = tuple(LEVEL_BITS * level for level in range(levels - 1, 0, -1))
        self._pool = pool
        self._lib = lib = pool.lib
        self._limit = frames
        self._table = library.Table()
        self.address = addressof(self._table)
        if lib.pv_table_init(self.address, pool.address, frames, levels):
            pool.give(1)
            raise MemoryError("no memory for a root table")
        # the pool is among the arguments because it must live as long as the table
        self._finalizer = weakref.finalize(self, _destroy_table, lib, self._table, pool)

    @property
    def mapped(self) -> int:
        """Pages mapped."""
        return int(self._table.mapped)

    @property
    def reserved(self) -> int:
        """Pool pages that are held at least."""
        return int(self._table.reserve)

    def lookup(self, dfn: int) -> tuple[int, int] | None:
        """(gfn, access bits) of a mapped page; None when it is not mapped."""
        leaf = self._leaf_at(dfn)
        return (leaf[0], leaf[1] & ACCESS_MASK) if leaf else None

    def _leaf_at(self, dfn: int) -> tuple[int, int, int] | None:
        """Frame of the page, flags of its leaf, and its offset inside it."""
        leaf = (c_uint64 * 3)()
        if not 0 <= dfn < self._limit or not self._lib.pv_table_leaf(self.address, dfn, leaf):
            return None
        return leaf[0], leaf[1], leaf[2]

    def map(self, dfn: int, gfn: int, nr: int, kind: int, *, starts: bool = True) -> int:
        """Map pages in order until one is mapped already or the pool is exhausted; returns how many were mapped."""
        if nr < 1:
            return 0
        done: int = self._lib.pv_table_map(self.address, dfn, gfn, nr, kind, starts)
        if done < nr:
            self._pool.check_memory()
        return done

    def joins(self, dfn: int, gfn: int, kind: int) -> bool:
        """Whether the page before ``dfn`` is mapped to the frame before ``gfn``, and of the same kind."""
        return bool(self._lib.pv_table_joins(self.address, dfn, gfn, kind))

    def unmap(self, dfn: int, nr: int, *, past_holes: bool) -> int:
        """Remove pages in order, splitting leaves at both ends; returns how many were removed."""
        if nr < 1:
            return 0
        done: int = self._lib.pv_table_unmap(self.address, dfn, nr, past_holes)
        if done < nr:
            self._pool.check_memory()
        return done

    def cut_point(self, dfn: int, nr: int) -> int | None:
        """First page in the range of the map call that removing the range would cut; None when it cuts none."""
        if self._inside_call(dfn):
            return dfn
        if not self._inside_call(dfn + nr):
            return None
        last = c_uint64()
        self._lib.pv_table_last_start(self.address, dfn, dfn + nr, addressof(last))
        return last.value

    def _inside_call(self, dfn: int) -> bool:
        leaf = self._leaf_at(dfn)
        return leaf is not None and (leaf[2] != 0 or not leaf[1] & START)

    def leaves(self, dfn: int, nr: int) -> Iterator[Leaf]:
        """The leaves in a range, in order, clipped to it."""
        position, end = c_uint64(min(dfn, _FRAMES)), min(dfn + nr, self._limit)
        rows = (c_uint64 * (LEAF_FIELDS * _CHUNK))()
        while True:
            count = self._lib.pv_table_leaves(self.address, addressof(position), end, rows, _CHUNK)
            numbers = rows[: LEAF_FIELDS * count]
            for at in range(0, len(numbers), LEAF_FIELDS):
                first, gfn, pages, kind, starts = numbers[at : at + LEAF_FIELDS]
                yield first, gfn, pages, kind, bool(starts)
            if count < _CHUNK:
                return

    def holes(self, dfn: int, nr: int) -> list[tuple[int, int]]:
        """(first, count) of what is not mapped in a range, in order."""
        holes = []
        position = dfn
        for first, _, pages, _, _ in self.leaves(dfn, nr):
            if first > position:
                holes.append((position, first - position))
            position = first + pages
        if position < dfn + nr:
            holes.append((position, dfn + nr - position))
        return holes

    def run(self, dfn: int, nr: int) -> tuple[int, int, int] | None:
        """(gfn, pages, access bits) of the mapped run at ``dfn``: adjacent frames, one access, at most ``nr`` pages."""
        run = (c_uint64 * 3)()
        if not self._lib.pv_table_run(self.address, dfn, nr, run):
            return None
        return run[0], run[1], run[2]

    def release(self) -> None:
        """Drop every mapping and return all pages, the root's too. The table is not used after that."""
        self._lib.pv_table_release(self.address)
        self._finalizer()

    def reserve(self, pages: int) -> bool:
        """Hold at least ``pages`` pages from now on, the root's included; False and no change when the pool is
        exhausted.
        """
        return bool(self._lib.pv_table_reserve(self.address, pages) == 0)


def _destroy_pool(lib: Library, pool: library.Pool) -> None:
    lib.pv_pool_destroy(addressof(pool))


def _destroy_table(lib: Library, table: library.Table, _pool: NativePool) -> None:
    lib.pv_table_destroy(addressof(table))
