"""The tests of the Python table, on native tables; and both side by side."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pviommu.engine.pool import Pool
from pviommu.engine.table import CLONE, PageTable
from pviommu.native.table import NativePool, NativeTable

from ..engine import test_table
from ..engine.test_table import *  # noqa: F403

LIMIT = 1 << 27
RW = 3
ANCHORS = (0, 0x1FE, 0x200, 0x3FF, 0x400, 0x3FE00, 0x40000, 0x401FF, LIMIT - 2)


@pytest.fixture(autouse=True, scope="module")
def _native(native_library):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(test_table, "Pool", lambda pages: NativePool(native_library, pages))
        patch.setattr(test_table, "PageTable", NativeTable)
        yield


def dfns(spread=3):
    return st.builds(lambda anchor, by: max(0, anchor + by), st.sampled_from(ANCHORS), st.integers(-2, spread))


COUNTS = st.one_of(st.integers(1, 6), st.sampled_from([510, 512, 513, 1024, 0x40000, 0x40201]))
OPERATIONS = st.one_of(
    st.tuples(st.just("map"), dfns(), dfns(), COUNTS, st.sampled_from([1, 2, 3, CLONE | 1, CLONE | RW]), st.booleans()),
    st.tuples(st.just("unmap"), dfns(), COUNTS, st.booleans()),
    st.tuples(st.just("reserve"), st.integers(0, 40)),
    st.tuples(st.just("look"), dfns(), COUNTS),
)


class Pair:
    """Two tables of one pool, of either kind."""

    def __init__(self, pool, make):
        self.pool = pool
        self.tables = [make(pool, LIMIT), make(pool, LIMIT)]

    def do(self, which, op):
        table = self.tables[which]
        kind, *rest = op
        if kind == "map":
            dfn, gfn, nr, bits, starts = rest
            nr = min(nr, LIMIT - dfn)
            joins = table.joins(dfn, gfn, bits)
            return joins, table.map(dfn, gfn, nr, bits, starts=starts or not joins)
        if kind == "unmap":
            dfn, nr, past_holes = rest
            return table.cut_point(dfn, nr), table.unmap(dfn, min(nr, LIMIT - dfn), past_holes=past_holes)
        if kind == "reserve":
            return table.reserve(*rest)
        dfn, nr = rest
        return table.lookup(dfn), table.run(dfn, nr), table.cut_point(dfn, nr), table.holes(dfn, nr)

    def state(self, most=3000):
        """Counts, and the leaves of tables with at most so many pages."""
        tables = [(table.mapped, table.mapped <= most and list(table.leaves(0, LIMIT))) for table in self.tables]
        return tables, self.pool.free, self.pool.used


@given(
    pool_pages=st.one_of(st.integers(2, 12), st.just(600), st.just(4096)),
    history=st.lists(st.tuples(st.integers(0, 1), OPERATIONS), max_size=25),
)
def test_both_tables_answer_every_history_alike(native_library, pool_pages, history):
    plain = Pair(Pool(pool_pages), PageTable)
    native = Pair(NativePool(native_library, pool_pages), NativeTable)

    for which, op in history:
        assert native.do(which, op) == plain.do(which, op), op
        assert native.state() == plain.state(), op
    assert native.state(LIMIT) == plain.state(LIMIT)
    for pair in (plain, native):
        for table in pair.tables:
            table.release()
        assert pair.pool.used == 0


def test_more_leaves_than_one_call_fetches_come_all_and_in_order(native_library):
    table = NativeTable(NativePool(native_library, 64), LIMIT)
    for dfn in range(0, 2000, 2):
        table.map(dfn, 2 * dfn, 1, RW)

    assert [leaf[:2] for leaf in table.leaves(0, LIMIT)] == [(dfn, 2 * dfn) for dfn in range(0, 2000, 2)]


def test_a_table_that_was_released_holds_nothing(native_library):
    pool = NativePool(native_library, 8)
    table = NativeTable(pool, LIMIT)
    table.map(5, 5, 1, RW)
    held = table.leaves(0, LIMIT)

    table.release()

    assert list(held) == []
    assert table.lookup(5) is None


def test_a_native_pool_counts_as_the_other_one_does(native_library):
    pool = NativePool(native_library, 5)

    assert pool.take(2)
    assert not pool.take(4)
    pool.resize(3)
    assert (pool.free, pool.used, pool.total) == (1, 2, 3)
    with pytest.raises(ValueError, match="pool of 1 pages: 2 are in use"):
        pool.resize(1)
    pool.give(1)
    assert pool.free == 2
