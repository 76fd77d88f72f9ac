"""The set of pages that DMA wrote, against a set."""

import itertools
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pviommu.engine.dirty import DirtyPages, mask_runs


@pytest.mark.parametrize(("mask", "runs"), [(0, []), (1, [(7, 1)]), (0b1011011, [(7, 2), (10, 2), (13, 1)])])
def test_the_runs_of_a_mask(mask, runs):
    assert list(mask_runs(mask, 7)) == runs


PAGE = st.one_of(st.integers(0, 1600), st.sampled_from([0, 511, 512, 1023, 1024]))
STEP = st.tuples(st.booleans(), PAGE, st.one_of(st.integers(1, 4), st.integers(1, 1200)))


@given(steps=st.lists(STEP, max_size=12), first=PAGE, count=st.integers(1, 1700))
def test_what_is_marked_and_forgotten_is_what_a_set_says(steps, first, count):
    pages, plain = DirtyPages(), set()
    for marks, begin, nr in steps:
        (pages.mark if marks else pages.forget)(begin, begin + nr - 1)
        touched = set(range(begin, begin + nr))
        plain = plain | touched if marks else plain - touched

    runs = list(pages.runs(first, first + count - 1))

    assert [page for begin, nr in runs for page in range(begin, begin + nr)] == sorted(
        plain & set(range(first, first + count))
    )
    assert all(begin + nr < following for (begin, nr), (following, _) in itertools.pairwise(runs))


def test_reading_costs_what_is_dirty_and_not_the_range():
    pages = DirtyPages()
    pages.mark(1 << 30, (1 << 30) + 1)

    begun = time.process_time()
    for _ in range(1000):
        assert list(pages.runs(0, (1 << 36) - 1)) == [(1 << 30, 2)]
    assert time.process_time() - begun < 1  # a look at each block of that range would take minutes
