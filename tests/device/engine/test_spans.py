"""Spans of addresses. The cases of complements are those of QEMU's tests/unit/test-resv-mem.c."""

import pytest

from pviommu.engine.spans import LAST_ADDRESS, check_span, complement, intersection, merged

MAX = LAST_ADDRESS
LAST48 = 0xFFFFFFFFFFFF


@pytest.mark.parametrize("span", [(5, 4), (-1, 4), (0, MAX + 1)])
def test_what_is_no_span_is_refused(span):
    with pytest.raises(ValueError, match="64-bit addresses"):
        check_span(*span)
    with pytest.raises(ValueError, match="64-bit addresses"):
        merged([(0, 1), span])
    with pytest.raises(ValueError, match="64-bit addresses"):
        complement([], *span)


def test_spans_that_overlap_or_touch_become_one():
    assert merged([(0x30, 0x3F), (0, 0xF), (0x10, 0x1F), (0x1E, 0x2E), (0x32, 0x33)]) == ((0, 0x2E), (0x30, 0x3F))
    assert merged([(0, MAX), (MAX, MAX)]) == ((0, MAX),)
    assert merged([]) == ()


@pytest.mark.row("space", 42)
@pytest.mark.parametrize(
    ("spans", "window", "holes"),
    [
        ([(0x10000, MAX)], (0, MAX), [(0, 0xFFFF)]),
        ([(0x10000, LAST48)], (0, MAX), [(0, 0xFFFF), (LAST48 + 1, MAX)]),
        ([(0, 0xFFFF), (0x10000, 0x2FFFF)], (0, MAX), [(0x30000, MAX)]),
        ([(0x50000, 0x5FFFF), (0x60000, LAST48)], (0, MAX), [(0, 0x4FFFF), (LAST48 + 1, MAX)]),
        ([(0, MAX)], (0, MAX), []),
        (
            [(0x10000, 0x1FFFF), (0x30000, 0x6FFFF), (0x90000, MAX)],
            (0, MAX),
            [(0, 0xFFFF), (0x20000, 0x2FFFF), (0x70000, 0x8FFFF)],
        ),
        ([(0, MAX)], (0x10000, 0xFFFFFF), []),
        ([(0, 0xFFFF), (0x20000, 0x2FFFF)], (0x40000, LAST48), [(0x40000, LAST48)]),
        ([(0, 0xFFFF), (0x20000, 0x2FFFF), (LAST48 + 1, MAX)], (0x40000, LAST48), [(0x40000, LAST48)]),
        ([(0, 0xFFFF), (0x20000, 0x2FFFF), (LAST48 + 1, MAX)], (0x20000, LAST48), [(0x30000, LAST48)]),
        (
            [(0x2000, 0xFFFF), (0x20000, 0x2FFFF), (0x100000000, 0x1FFFFFFFF)],
            (0x1000, LAST48),
            [(0x1000, 0x1FFF), (0x10000, 0x1FFFF), (0x30000, 0xFFFFFFFF), (0x200000000, LAST48)],
        ),
        ([(0x10000000, 0x1FFFFFFF), (0x100000000, 0x1FFFFFFFF)], (0, 0xFFFF), [(0, 0xFFFF)]),
    ],
)
def test_the_complement_within_a_window(spans, window, holes):
    assert complement(spans, *window) == tuple(holes)
    assert complement(reversed(spans), *window) == tuple(holes)


def test_one_byte_counts():
    assert complement([(5, 9)], 0, 5) == ((0, 4),)
    assert complement([(0, 4)], 0, 5) == ((5, 5),)
    assert list(intersection([(0, 5)], 5, 9)) == [(5, 5)]


def test_the_intersection_is_clipped_to_the_window():
    spans = [(0, 9), (20, 29), (40, 49)]

    assert list(intersection(spans, 5, 40)) == [(5, 9), (20, 29), (40, 40)]
    assert list(intersection(spans, 10, 19)) == []
