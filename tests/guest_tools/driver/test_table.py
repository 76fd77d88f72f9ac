"""The driver's own table of a domain: random histories of the very source against a dictionary of pages."""

from __future__ import annotations

import ctypes
import errno
from collections.abc import Callable
from ctypes import POINTER, c_bool, c_int, c_uint, c_uint64, c_void_p
from dataclasses import dataclass

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

ENTRIES = 512
LEVELS = 3
APERTURE_BITS = 39
END = 1 << (9 * LEVELS)
MAPPED = 1 << 63
CLAIMED = 1 << 62
KINDS = (MAPPED, CLAIMED)
ROUNDS = 3000

BLOCKS = (0, 1, ENTRIES - 2, ENTRIES - 1, END // ENTRIES - 1)
"""Where histories happen: 2 MiB whose neighbours are below the same table and below another, and the last ones."""

places = st.one_of(st.sampled_from([0, 0, 0, 1, 255, 511, 512]), st.integers(0, 2 * ENTRIES))
counts = st.one_of(st.sampled_from([1, 2, 511, 512, 512, 513, 1024]), st.integers(1, 1100))
frames = st.integers(0, 1 << 40)
kinds = st.sampled_from(KINDS)


FUNCTIONS: dict[str, tuple[object, list[object]]] = {
    "table_new": (c_void_p, [c_uint]),
    "table_delete": (c_int, [c_void_p]),
    "table_nr": (c_int, [c_void_p]),
    "table_fail_after": (None, [c_int]),
    "table_read": (None, [c_void_p, c_uint64, c_uint64, POINTER(c_uint64)]),
    "pviommu_table_prepare": (c_int, [c_void_p, c_uint64, c_uint64, c_uint]),
    "pviommu_table_fill": (c_int, [c_void_p, c_uint64, c_uint64, c_uint64, c_uint]),
    "pviommu_table_set": (None, [c_void_p, c_uint64, c_uint64, c_uint64]),
    "pviommu_table_clear": (None, [c_void_p, c_uint64, c_uint64]),
    "pviommu_table_clear_run": (c_uint64, [c_void_p, c_uint64, c_uint64, POINTER(c_uint64)]),
    "pviommu_table_lookup": (c_bool, [c_void_p, c_uint64, POINTER(c_uint64)]),
}


@dataclass
class Budget:
    """Allocations that still succeed; None: all."""

    left: int | None

    def take(self) -> bool:
        if self.left == 0:
            return False
        if self.left is not None:
            self.left -= 1
        return True


class Model:
    """What is there: pages, and the tables that have been made for them."""

    def __init__(self) -> None:
        self.pages: dict[int, int] = {}
        self.tables = {(LEVELS - 1, 0)}

    def grow(self, dfn: int, budget: Budget) -> bool:
        for level in range(LEVELS - 2, -1, -1):
            table = (level, dfn >> (9 * (level + 1)))
            if table not in self.tables:
                if not budget.take():
                    return False
                self.tables.add(table)
        return True

    def prepare(self, dfn: int, nr: int, budget: Budget) -> int:
        if dfn + nr > END:
            return -errno.ERANGE
        blocks = range(dfn // ENTRIES, (dfn + nr - 1) // ENTRIES + 1)
        return 0 if all(self.grow(block * ENTRIES, budget) for block in blocks) else -errno.ENOMEM

    def fill(self, dfn: int, nr: int, value: int, budget: Budget) -> int:
        if dfn + nr > END:
            return -errno.ERANGE
        for block in range(dfn // ENTRIES, (dfn + nr - 1) // ENTRIES + 1):
            if not self.grow(block * ENTRIES, budget):
                return -errno.ENOMEM
            piece = range(max(dfn, block * ENTRIES), min(dfn + nr, (block + 1) * ENTRIES))
            if any(page in self.pages for page in piece):
                return -errno.EAGAIN
        self.set(dfn, nr, value)
        return 0

    def set(self, dfn: int, nr: int, value: int) -> None:
        self.pages.update((dfn + i, value + i) for i in range(nr))

    def clear(self, dfn: int, nr: int) -> None:
        for page in range(dfn, dfn + nr):
            self.pages.pop(page, None)

    def clear_run(self, dfn: int, nr: int) -> tuple[int, int]:
        kind = self.pages.get(dfn, 0) & (MAPPED | CLAIMED)
        run = 0
        while kind and run < nr and self.pages.get(dfn + run, 0) & kind:
            del self.pages[dfn + run]
            run += 1
        return run, kind


class Histories(RuleBasedStateMachine):
    """Any calls, as the driver makes them: ``set`` and ``clear`` only where tables have been made."""

    library: ctypes.CDLL

    @initialize(block=st.sampled_from(BLOCKS))
    def start(self, block: int) -> None:
        self.library.table_fail_after(-1)
        self.table = self.library.table_new(APERTURE_BITS)
        self.model = Model()
        self.first = block * ENTRIES

    def _budget(self, allocations: int | None) -> Budget:
        self.library.table_fail_after(-1 if allocations is None else allocations)
        return Budget(allocations)

    @rule(place=places, nr=counts, gfn=frames, kind=kinds, allocations=st.sampled_from([None, None, None, 0, 1, 2]))
    def fill(self, place: int, nr: int, gfn: int, kind: int, allocations: int | None) -> None:
        dfn = self.first + place
        want = self.model.fill(dfn, nr, kind | gfn, self._budget(allocations))
        assert self.library.pviommu_table_fill(self.table, dfn, nr, kind | gfn, 0) == want

    @rule(place=places, nr=counts, allocations=st.sampled_from([None, 0, 1]))
    def prepare(self, place: int, nr: int, allocations: int | None) -> None:
        dfn = self.first + place
        want = self.model.prepare(dfn, nr, self._budget(allocations))
        assert self.library.pviommu_table_prepare(self.table, dfn, nr, 0) == want

    @rule(place=places, nr=counts, gfn=frames, kind=kinds)
    def set(self, place: int, nr: int, gfn: int, kind: int) -> None:
        self.prepare(place, nr, None)
        if self.first + place + nr <= END:
            self.model.set(self.first + place, nr, kind | gfn)
            self.library.pviommu_table_set(self.table, self.first + place, nr, kind | gfn)

    @rule(place=places, nr=counts)
    def clear(self, place: int, nr: int) -> None:
        self.prepare(place, nr, None)
        if self.first + place + nr <= END:
            self.model.clear(self.first + place, nr)
            self.library.pviommu_table_clear(self.table, self.first + place, nr)

    @rule(place=places, nr=counts)
    def clear_run(self, place: int, nr: int) -> None:
        kind = c_uint64(1)
        got = self.library.pviommu_table_clear_run(self.table, self.first + place, nr, ctypes.byref(kind))
        assert (got, kind.value) == self.model.clear_run(self.first + place, nr)

    @rule(gfn=frames, kind=kinds, over=st.booleans())
    def a_whole_table(self, gfn: int, kind: int, over: bool) -> None:
        if over:
            self.set(0, ENTRIES, gfn, kind)
        else:
            self.fill(0, ENTRIES, gfn, kind, None)

    @rule(by_run=st.booleans())
    def a_whole_table_goes(self, by_run: bool) -> None:
        if by_run:
            self.clear_run(0, ENTRIES)
        else:
            self.clear(0, ENTRIES)

    @rule(nr=st.sampled_from([0, 1, END, (1 << 64) - 1]))
    def impossible_ranges_are_refused(self, nr: int) -> None:
        dfn = 0 if nr == 0 else END
        assert self.library.pviommu_table_fill(self.table, dfn, nr, MAPPED, 0) == -errno.ERANGE
        assert self.library.pviommu_table_prepare(self.table, dfn, nr, 0) == -errno.ERANGE

    @invariant()
    def shows_what_is_there_and_nothing_else(self) -> None:
        self._shows(self.first, 4 * ENTRIES)
        assert not self.library.pviommu_table_lookup(self.table, END, ctypes.byref(c_uint64()))

    def _shows(self, dfn: int, nr: int) -> None:
        found = (c_uint64 * nr)()
        self.library.table_read(self.table, dfn, nr, found)
        want = [self.model.pages.get(dfn + i, 0) & ~CLAIMED for i in range(nr)]
        want = [(page | MAPPED) if dfn + i in self.model.pages else 0 for i, page in enumerate(want)]
        assert list(found) == want

    @invariant()
    def has_as_many_tables_as_were_made(self) -> None:
        assert self.library.table_nr(self.table) == len(self.model.tables)

    def teardown(self) -> None:
        self.library.table_fail_after(-1)
        assert self.library.table_delete(self.table) == 0, "pages of tables are left"


@pytest.fixture(scope="module")
def library(load_driver: Callable[..., ctypes.CDLL]) -> ctypes.CDLL:
    return load_driver("table.c", FUNCTIONS)


@pytest.mark.row("driver", 50)
def test_table_is_what_a_dictionary_of_its_pages_is(
    library: ctypes.CDLL, run_histories: Callable[[type[RuleBasedStateMachine], ctypes.CDLL], None]
) -> None:
    run_histories(Histories, library)


@pytest.mark.row("driver", 50)
def test_small_pages_after_a_large_one_in_the_same_place_are_alone(library: ctypes.CDLL) -> None:
    """Small, then large over it, then small: once the large one is gone nothing of either may show."""
    table = library.table_new(APERTURE_BITS)
    assert library.pviommu_table_fill(table, 5, 3, CLAIMED | 0x100, 0) == 0
    library.pviommu_table_set(table, 0, ENTRIES, MAPPED | 0x1000)
    kind = c_uint64()
    assert library.pviommu_table_clear_run(table, 0, ENTRIES, ctypes.byref(kind)) == ENTRIES

    assert library.pviommu_table_fill(table, 0, 1, MAPPED | 0x42, 0) == 0

    found = (c_uint64 * ENTRIES)()
    library.table_read(table, 0, ENTRIES, found)
    assert list(found) == [MAPPED | 0x42] + [0] * (ENTRIES - 1)
    assert library.pviommu_table_clear_run(table, 0, ENTRIES, ctypes.byref(kind)) == 1
    assert library.table_delete(table) == 0


@pytest.mark.row("driver", 51)
def test_threads_on_other_pages_of_a_table_do_not_disturb_each_other(run_threads: Callable[[str, int], None]) -> None:
    run_threads("table_threads.c", ROUNDS)
