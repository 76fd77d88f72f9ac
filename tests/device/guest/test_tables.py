"""Tables of the guest as their writer leaves them."""

from __future__ import annotations

from contextlib import closing
from itertools import count

from pviommu.guest.tables import READ, WRITE, PageTables

PAGE, LARGE, HUGE = 1 << 12, 1 << 21, 1 << 30
BASE = 1 << 33


def test_a_leaf_that_is_in_the_way_becomes_leaves_that_map_the_same() -> None:
    """As VT-d has it: bit 7 is that of a leaf above the lowest level, and bits 8 and 9 say that it was used."""
    ram = memoryview(bytearray(16 * PAGE))
    with closing(PageTables(ram, count(BASE >> 12), base=BASE)) as tables:
        assert tables.leaf(HUGE) is None
        tables.map(HUGE, 5 * HUGE, READ | WRITE, 30)
        tables.put(HUGE, tables.entry(HUGE, 30) | 3 << 8, 30)

        tables.unmap(HUGE + 3 * LARGE + 7 * PAGE)

        assert tables.leaf(HUGE + 3 * LARGE + 7 * PAGE) is None
        assert tables.leaf(HUGE + 3 * LARGE) == (5 * HUGE + 3 * LARGE | 0x303, 12)
        assert tables.leaf(HUGE + 4 * LARGE - 1) == (5 * HUGE + 4 * LARGE - PAGE | 0x303, 12)
        assert tables.leaf(HUGE) == (5 * HUGE | 0x383, 21)
        assert tables.leaf(2 * HUGE - 1) == (6 * HUGE - LARGE | 0x383, 21)
        assert tables.leaf(2 * HUGE) is None
        leaves = list(tables.leaves())
        assert sum(1 << shift for _, _, shift in leaves) == HUGE - PAGE
        assert leaves[-1] == (2 * HUGE - LARGE, 6 * HUGE - LARGE | 0x383, 21)


def test_tables_are_where_their_memory_begins() -> None:
    ram = memoryview(bytearray(4 * PAGE))
    with closing(PageTables(ram, count(BASE >> 12), base=BASE)) as tables:
        assert tables.root == BASE
        tables.map(0, 9 * PAGE)
        assert ram.cast("Q")[0] == BASE + PAGE | 3
