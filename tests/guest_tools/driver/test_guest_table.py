"""The table that the device walks: random histories of the very source against a model of its leaves, and threads.

What is in the table is read by a walk that was written from the specification of the format alone.
"""

from __future__ import annotations

import ctypes
import errno
from collections.abc import Callable, Iterator
from ctypes import POINTER, c_bool, c_int, c_uint, c_uint64, c_void_p
from dataclasses import dataclass, replace

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

PAGE, LARGE, HUGE = (1 << shift for shift in (12, 21, 30))
SIZES = (PAGE, LARGE, HUGE)
READ, WRITE, ACCESSED, DIRTY = 1, 2, 1 << 8, 1 << 9
ROUNDS = 2000

BASES = (0, (1 << 39) - HUGE, (1 << 48) - 2 * HUGE)
"""Where histories happen: two times 1 GiB, also below two tables of the third level, and the last ones."""
SPAN = 2 * HUGE
WINDOWS = ((0, 3 * LARGE), (HUGE - LARGE, 2 * LARGE), (SPAN - LARGE, LARGE))
"""Where all pages are looked at after each step (offset and size)."""

offsets = st.one_of(
    st.sampled_from([0, 0, PAGE, LARGE - PAGE, LARGE, 2 * LARGE, HUGE - PAGE, HUGE - LARGE, HUGE, SPAN - LARGE]),
    st.integers(0, 3 * LARGE // PAGE - 1).map(lambda page: page * PAGE),
)
lengths = st.one_of(
    st.sampled_from([PAGE, PAGE, 2 * PAGE, LARGE - PAGE, LARGE, LARGE + PAGE, 2 * LARGE, HUGE, HUGE + LARGE, SPAN]),
    st.integers(1, 1100).map(lambda pages: pages * PAGE),
)
accesses = st.sampled_from([READ, WRITE, READ | WRITE])
budgets = st.sampled_from([None, None, None, 0, 1, 2])


FUNCTIONS: dict[str, tuple[object, list[object]]] = {
    "table_new": (c_void_p, []),
    "table_delete": (c_int, [c_void_p]),
    "table_nr": (c_int, []),
    "table_quiesced": (c_int, []),
    "table_lose": (None, [c_bool]),
    "table_fail_after": (None, [c_int]),
    "table_read": (None, [c_void_p, c_uint64, c_uint64, POINTER(c_uint64)]),
    "table_write": (c_int, [c_void_p, c_uint64]),
    "table_dirty": (c_uint, [c_void_p, c_uint64, c_uint64, c_bool, POINTER(c_uint64), c_uint]),
    "pviommu_guest_table_map": (
        c_int,
        [c_void_p, c_uint64, c_uint64, c_uint64, c_uint, c_uint64, c_uint, POINTER(c_uint64)],
    ),
    "pviommu_guest_table_unmap": (c_uint64, [c_void_p, c_uint64, c_uint64]),
    "pviommu_guest_table_count": (c_uint64, [c_void_p, c_uint64, c_uint64]),
    "pviommu_guest_table_lookup": (c_bool, [c_void_p, c_uint64, POINTER(c_uint64)]),
}


class NoMemoryError(Exception):
    """The allocations that were to succeed are used up."""


@dataclass
class Budget:
    """Allocations that still succeed; None: all."""

    left: int | None

    def take(self) -> None:
        if self.left == 0:
            raise NoMemoryError
        if self.left is not None:
            self.left -= 1


@dataclass(frozen=True)
class Leaf:
    """Where a leaf leads, and its low bits."""

    paddr: int
    bits: int


class Model:
    """Leaves and tables, each by its level (of the entry that leads there) and its first address."""

    def __init__(self) -> None:
        self.leaves: dict[tuple[int, int], Leaf] = {}
        self.tables: set[tuple[int, int]] = set()
        self.waits = 0

    def leaf_of(self, iova: int) -> tuple[tuple[int, int], Leaf] | None:
        for level, size in enumerate(SIZES):
            key = (level, iova // size * size)
            if key in self.leaves:
                return key, self.leaves[key]
        return None

    def _below(self, level: int, iova: int) -> list[tuple[int, int]]:
        """Tables below the entry of ``level`` at ``iova``, itself included."""
        size = SIZES[level]
        return [key for key in self.tables if key[0] <= level and iova <= key[1] < iova + size]

    def _is_used(self, level: int, iova: int) -> bool:
        return any(iova <= start < iova + SIZES[level] for _, start in self.leaves) or self.leaf_of(iova) is not None

    def map(
        self, iova: int, paddr: int, size: int, level: int, access: int, budget: Budget, lost: bool
    ) -> tuple[int, int]:
        """Errno and bytes; with ``lost``, no walk seems to end."""
        done = 0
        for at in range(iova, iova + size, SIZES[level]):
            for upper in (3, 2, 1):
                if upper <= level:
                    break
                span = 1 << (12 + 9 * upper)
                if any(key[0] == upper and key[1] == at // span * span for key in self.leaves):
                    return -errno.EADDRINUSE, done
                key = (upper, at // span * span)
                if key not in self.tables:
                    try:
                        budget.take()
                    except NoMemoryError:
                        return -errno.ENOMEM, done
                    self.tables.add(key)
            if self._is_used(level, at):
                return -errno.EADDRINUSE, done
            if below := [key for key in self._below(level, at) if level]:
                self.waits += 1
                if lost:
                    return -errno.EIO, done
                self.tables -= set(below)
            self.leaves[level, at] = Leaf(paddr + done, access)
            done += SIZES[level]
        return 0, done

    def unmap(self, iova: int, size: int, budget: Budget) -> int:
        done = 0
        while done < size:
            at = iova + done
            if (found := self.leaf_of(at)) is None:
                break
            (level, start), leaf = found
            if start == at and size - done >= SIZES[level]:
                del self.leaves[level, start]
                done += SIZES[level]
                continue
            try:
                budget.take()
            except NoMemoryError:
                break
            self._split(level, start, leaf)
        return done

    def _split(self, level: int, start: int, leaf: Leaf) -> None:
        del self.leaves[level, start]
        self.tables.add((level, start))
        step = SIZES[level - 1]
        for offset in range(0, SIZES[level], step):
            self.leaves[level - 1, start + offset] = Leaf(leaf.paddr + offset, leaf.bits)

    def page(self, iova: int) -> int:
        if (found := self.leaf_of(iova)) is None:
            return 0
        (_, start), leaf = found
        return (leaf.paddr + iova - start) | leaf.bits

    def dirty(self, iova: int, size: int, clear: bool) -> Iterator[tuple[int, int]]:
        """Address and size of what is dirty of these. Only a leaf that was reported whole may be clean afterwards."""
        for (level, start), leaf in sorted(self.leaves.items(), key=lambda item: item[0][1]):
            first, end = max(start, iova), min(start + SIZES[level], iova + size)
            if first < end and leaf.bits & DIRTY:
                yield first, end - first
                if clear and end - first == SIZES[level]:
                    self.leaves[level, start] = replace(leaf, bits=leaf.bits & ~DIRTY)


class Histories(RuleBasedStateMachine):
    """Any calls, as the driver makes them."""

    library: ctypes.CDLL

    @initialize(base=st.sampled_from(BASES))
    def start(self, base: int) -> None:
        self.library.table_fail_after(-1)
        self.library.table_quiesced()
        self.table = self.library.table_new()
        self.model = Model()
        self.base = base

    def _budget(self, allocations: int | None) -> Budget:
        self.library.table_fail_after(-1 if allocations is None else allocations)
        return Budget(allocations)

    @rule(
        level=st.integers(0, 2),
        offset=offsets,
        length=lengths,
        frame=st.integers(0, 999),
        access=accesses,
        n=budgets,
        lost=st.sampled_from([False, False, True]),
    )
    def map(self, level: int, offset: int, length: int, frame: int, access: int, n: int | None, lost: bool) -> None:
        unit = SIZES[level]
        offset, length = offset // unit * unit, max(length // unit, 1) * unit
        length = min(length, SPAN - offset, 1100 * unit)
        paddr = (1 << 40) + frame * unit
        want = self.model.map(self.base + offset, paddr, length, level, access, self._budget(n), lost)
        mapped = c_uint64()
        self.library.table_lose(lost)
        got = self.library.pviommu_guest_table_map(
            *(self.table, self.base + offset, paddr, length, level, access, 0, ctypes.byref(mapped))
        )
        assert (got, mapped.value) == want
        assert self.library.table_quiesced() == self.model.waits, "waits for walks only where a table goes"
        self.model.waits = 0

    @rule(offset=offsets, length=lengths, n=budgets)
    def unmap(self, offset: int, length: int, n: int | None) -> None:
        length = min(length, SPAN - offset)
        want = self.model.unmap(self.base + offset, length, self._budget(n))
        assert self.library.pviommu_guest_table_unmap(self.table, self.base + offset, length) == want

    @rule(offset=offsets)
    def write(self, offset: int) -> None:
        found = self.model.leaf_of(self.base + offset)
        assert self.library.table_write(self.table, self.base + offset) == (0 if found else -1)
        if found:
            key, leaf = found
            self.model.leaves[key] = replace(leaf, bits=leaf.bits | ACCESSED | DIRTY)

    @rule(offset=offsets, length=lengths, clear=st.booleans())
    def dirty(self, offset: int, length: int, clear: bool) -> None:
        length = min(length, SPAN - offset)
        want = [word for part in self.model.dirty(self.base + offset, length, clear) for word in part]
        ranges = (c_uint64 * 4096)()
        nr = self.library.table_dirty(self.table, self.base + offset, length, clear, ranges, 2048)
        assert list(ranges[: 2 * nr]) == want

    @rule(offset=offsets, length=lengths)
    def count(self, offset: int, length: int) -> None:
        first, last = self.base + offset, self.base + min(offset + length, SPAN) - 1
        want = sum(
            max(0, min(last + 1, start + SIZES[level]) - max(first, start)) // PAGE
            for level, start in self.model.leaves
        )
        assert self.library.pviommu_guest_table_count(self.table, first // PAGE, last // PAGE) == want
        whole = sum(SIZES[level] // PAGE for level, _ in self.model.leaves)
        assert self.library.pviommu_guest_table_count(self.table, 0, (1 << 36) - 1) == whole

    @rule(offset=offsets, inside=st.integers(0, PAGE - 1))
    def lookup(self, offset: int, inside: int) -> None:
        page = self.model.page(self.base + offset)
        paddr = c_uint64(1)
        found = self.library.pviommu_guest_table_lookup(self.table, self.base + offset + inside, ctypes.byref(paddr))
        assert found == bool(page)
        assert paddr.value == ((page & ~(PAGE - 1)) + inside if page else 0)

    @invariant()
    def a_walk_finds_what_is_mapped_and_nothing_else(self) -> None:
        for offset, size in WINDOWS:
            found = (c_uint64 * (size // PAGE))()
            self.library.table_read(self.table, self.base + offset, size // PAGE, found)
            assert list(found) == [self.model.page(self.base + at) for at in range(offset, offset + size, PAGE)]

    @invariant()
    def has_as_many_tables_as_were_made(self) -> None:
        assert self.library.table_nr() == 1 + len(self.model.tables)

    def teardown(self) -> None:
        self.library.table_fail_after(-1)
        assert self.library.table_delete(self.table) == 0, "pages of tables are left"


@pytest.fixture(scope="module")
def library(load_driver: Callable[..., ctypes.CDLL]) -> ctypes.CDLL:
    return load_driver("guest_table.c", FUNCTIONS)


@pytest.mark.row("driver", 85)
def test_table_is_what_a_model_of_its_leaves_is(
    library: ctypes.CDLL, run_histories: Callable[[type[RuleBasedStateMachine], ctypes.CDLL], None]
) -> None:
    run_histories(Histories, library)


@pytest.mark.row("driver", 85)
def test_an_entry_of_each_size_has_the_bits_of_the_specification(library: ctypes.CDLL) -> None:
    """9.8: R is bit 0, W bit 1, PS bit 7, the address from bit 12 on; no other bit is set."""
    for level, size in enumerate(SIZES):
        table = library.table_new()
        entry = c_uint64()
        assert library.pviommu_guest_table_map(table, size, 5 * size, size, level, WRITE, 0, ctypes.byref(entry)) == 0
        library.table_walk.restype = POINTER(c_uint64)
        library.table_walk.argtypes = [c_void_p, c_uint64, POINTER(c_uint)]
        bits = c_uint()
        assert library.table_walk(table, size, ctypes.byref(bits))[0] == 5 * size | WRITE | (0x80 if level else 0)
        assert 1 << bits.value == size
        assert library.table_delete(table) == 0


@pytest.mark.row("driver", 84)
def test_what_was_written_through_a_large_leaf_stays_so_when_it_is_split(library: ctypes.CDLL) -> None:
    table = library.table_new()
    mapped = c_uint64()
    assert library.pviommu_guest_table_map(table, 0, LARGE, LARGE, 1, READ | WRITE, 0, ctypes.byref(mapped)) == 0
    assert library.table_write(table, 5 * PAGE) == 0

    assert library.pviommu_guest_table_unmap(table, PAGE, PAGE) == PAGE

    ranges = (c_uint64 * 1024)()
    assert library.table_dirty(table, 0, 4 * PAGE, True, ranges, 512) == 3
    assert list(ranges[:6]) == [0, PAGE, 2 * PAGE, PAGE, 3 * PAGE, PAGE]
    assert library.table_delete(table) == 0


@pytest.mark.row("driver", 84)
def test_who_asks_for_a_part_of_a_large_leaf_takes_nothing_from_who_asks_for_the_rest(library: ctypes.CDLL) -> None:
    """What is reported is in the range that was asked for: iommufd drops a report that begins before its bitmap."""
    table = library.table_new()
    mapped = c_uint64()
    assert library.pviommu_guest_table_map(table, LARGE, 0, LARGE, 1, READ | WRITE, 0, ctypes.byref(mapped)) == 0
    assert library.table_write(table, LARGE + 300 * PAGE) == 0
    ranges = (c_uint64 * 8)()

    for iova, size, left in ((LARGE + 3 * PAGE, 2 * PAGE, 1), (LARGE, LARGE, 1), (LARGE, LARGE, 0)):
        assert library.table_dirty(table, iova, size, True, ranges, 4) == left
        assert not left or list(ranges[:2]) == [iova, size]
    assert library.table_delete(table) == 0


@pytest.mark.row("driver", 85)
def test_a_table_that_may_still_be_walked_stays_and_is_freed_later(library: ctypes.CDLL) -> None:
    """The device does not answer: it may be in the table whose place a large leaf is to take, and may resume."""
    table = library.table_new()
    mapped = c_uint64()
    assert library.pviommu_guest_table_map(table, 0, LARGE, PAGE, 0, READ, 0, ctypes.byref(mapped)) == 0
    assert library.pviommu_guest_table_unmap(table, 0, PAGE) == PAGE
    before = library.table_nr()
    found = c_uint64(1)

    def map_large() -> tuple[int, int]:
        done = c_uint64()
        return library.pviommu_guest_table_map(table, 0, LARGE, LARGE, 1, READ, 0, ctypes.byref(done)), done.value

    library.table_lose(True)
    try:
        assert map_large() == (-errno.EIO, 0)
    finally:
        library.table_lose(False)
    assert library.table_nr() == before
    library.table_read(table, 0, 1, ctypes.byref(found))
    assert found.value == 0, "what was not mapped cannot be reached"

    assert map_large() == (0, LARGE)
    assert library.table_nr() == before - 1
    assert library.table_delete(table) == 0


@pytest.mark.row("driver", 85)
def test_threads_on_other_pages_of_a_table_and_a_walker_do_not_disturb_each_other(
    run_threads: Callable[[str, int], None],
) -> None:
    run_threads("guest_table_threads.c", ROUNDS)
