import pytest
from hypothesis import given
from hypothesis import strategies as st

from pviommu.engine.ranges import FrameRanges
from pviommu.engine.results import FRAME_LIMIT


def test_touching_and_overlapping_ranges_are_merged_in_any_order():
    ranges = FrameRanges([(0x20, 0x2F), (0, 9), (10, 12), (0x28, 0x3F)])

    assert list(ranges) == [(0, 12), (0x20, 0x3F)]
    assert list(FrameRanges([(0, 1), (0x10, 0x3F), (0x12, 0x13)])) == [(0, 1), (0x10, 0x3F)]


def test_a_frame_is_inside_or_outside_up_to_the_next_boundary():
    ranges = FrameRanges([(4, 7), (10, 10)])

    assert [ranges.inside(frame) for frame in (3, 4, 7, 8, 10, 11)] == [0, 4, 1, 0, 1, 0]
    assert [ranges.outside(frame) for frame in (0, 4, 8, 10, 11)] == [4, 0, 2, 0, FRAME_LIMIT - 11]


def test_no_ranges_hold_nothing():
    ranges = FrameRanges()

    assert ranges.inside(0) == 0
    assert ranges.outside(0) == FRAME_LIMIT
    assert not ranges


def test_ranges_are_true_as_long_as_they_hold_a_frame():
    ranges = FrameRanges([(0, 0)])
    assert ranges

    ranges.remove(0, 1)
    assert not ranges


def test_a_range_may_end_with_the_last_frame():
    ranges = FrameRanges([(FRAME_LIMIT - 2, FRAME_LIMIT - 1)])

    assert (ranges.inside(FRAME_LIMIT - 1), list(ranges)) == (1, [(FRAME_LIMIT - 2, FRAME_LIMIT - 1)])


@pytest.mark.parametrize("bad", [(5, 4), (-1, 4), (0, FRAME_LIMIT)])
def test_a_backwards_or_unaddressable_range_is_refused(bad):
    with pytest.raises(ValueError, match="first must not exceed last"):
        FrameRanges([bad])


def test_without_leaves_out_the_other_set_and_what_is_past_the_limit():
    ram, reserved = FrameRanges([(0, 9), (20, 40)]), FrameRanges([(0, 1), (5, 6), (9, 22)])

    assert list(ram.without(30, reserved)) == [(2, 3), (7, 2), (23, 7)]


def test_without_several_sets_leaves_out_what_any_of_them_holds():
    ram = FrameRanges([(0, 20)])

    assert list(ram.without(FRAME_LIMIT, FrameRanges([(3, 5)]), FrameRanges([(5, 8), (10, 10)]))) == [
        (0, 3),
        (9, 1),
        (11, 10),
    ]


def test_the_overlap_of_a_span_is_what_the_set_holds_of_it():
    ranges = FrameRanges([(4, 7), (10, 10), (20, 30)])

    assert list(ranges.overlap(5, 17)) == [(5, 3), (10, 1), (20, 2)]
    assert list(ranges.overlap(8, 2)) == []
    assert list(ranges.overlap(10, 1)) == [(10, 1)]
    assert list(ranges.spans()) == [(4, 4), (10, 1), (20, 11)]


@pytest.mark.row("server", 50)
@given(
    st.lists(
        st.tuples(st.sampled_from(["add", "remove", "replace"]), st.integers(0, 60), st.integers(1, 20)), max_size=40
    ),
    st.sets(st.integers(0, 80)),
)
def test_changes_leave_what_a_set_of_numbers_would_hold(changes, others):
    ranges, model = FrameRanges(), set()
    other = FrameRanges((frame, frame) for frame in others)
    for what, first, nr in changes:
        span = set(range(first, first + nr))
        if what == "replace":
            ranges.replace(first, nr, other.within(first, nr))
            model = model - span | others & span
        elif what == "add":
            ranges.add(first, nr)
            model |= span
        else:
            ranges.remove(first, nr)
            model -= span
        assert {frame for low, high in ranges for frame in range(low, high + 1)} == model
        assert list(ranges) == list(FrameRanges((frame, frame) for frame in model))
        assert {frame for low, count in ranges.overlap(first, nr) for frame in range(low, low + count)} == model & span


@pytest.mark.parametrize("method", ["add", "remove"])
def test_a_change_that_is_no_range_is_refused(method):
    with pytest.raises(ValueError, match="first must not exceed last"):
        getattr(FrameRanges(), method)(5, 0)
    with pytest.raises(ValueError, match="both must be frames below"):
        getattr(FrameRanges(), method)(FRAME_LIMIT - 1, 2)
