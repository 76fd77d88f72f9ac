import pytest

from pviommu.engine.pool import Pool
from pviommu.engine.table import CLONE, PageTable

RW = 3
TWO_MIB = 0x200
ONE_GIB = 0x40000


def new_table(pool_pages=4096, bits=39):
    pool = Pool(pool_pages)
    return PageTable(pool, 1 << (bits - 12)), pool


def leaf_sizes(table):
    return [leaf[2] for leaf in table.leaves(0, 1 << 36)]


def test_a_page_is_found_where_it_was_mapped_and_nowhere_else():
    table, _ = new_table()

    assert table.map(0x1234, 0x77, 1, 1) == 1

    assert table.lookup(0x1234) == (0x77, 1)
    assert table.lookup(0x1233) is None
    assert table.lookup(0x1235) is None


@pytest.mark.row("defect", "C14")
def test_a_dfn_beyond_the_limit_never_aliases_a_low_one():
    table, _ = new_table()
    table.map(5, 0x77, 1, RW)
    table.map(0, 0x72, 1, RW)

    assert table.lookup((1 << 27) + 5) is None
    assert table.lookup(1 << 27) is None
    assert list(table.leaves((1 << 27) + 5, 1)) == []


def test_the_largest_leaves_that_fit_are_chosen():
    table, _ = new_table()

    table.map(ONE_GIB - TWO_MIB - 1, ONE_GIB - TWO_MIB - 1, 1 + TWO_MIB + ONE_GIB + TWO_MIB + 1, RW)

    assert leaf_sizes(table) == [1, TWO_MIB, ONE_GIB, TWO_MIB, 1]


def test_a_misaligned_frame_is_mapped_by_small_leaves():
    table, _ = new_table()

    table.map(0, 1, TWO_MIB, RW)

    assert leaf_sizes(table) == [1] * TWO_MIB
    assert table.lookup(0x1FF) == (0x200, RW)


def test_no_leaf_spans_two_map_calls():
    table, _ = new_table()

    table.map(0, 0, TWO_MIB // 2, RW)
    table.map(TWO_MIB // 2, TWO_MIB // 2, TWO_MIB // 2, RW)

    assert [leaf[0] for leaf in table.leaves(0, ONE_GIB) if leaf[4]] == [0, TWO_MIB // 2]


def test_large_leaves_are_charged_what_small_ones_would_be():
    for gfn in (0, 1):
        table, pool = new_table()

        table.map(0, gfn, ONE_GIB, RW)

        assert pool.used == 1 + 1 + 512


def test_splitting_the_largest_leaf_takes_no_page_from_an_empty_pool():
    table, pool = new_table(pool_pages=514)
    table.map(0, 0, ONE_GIB, RW)
    assert pool.free == 0

    assert table.unmap(0x12345, 1, past_holes=False) == 1

    assert table.lookup(0x12345) is None
    assert table.lookup(0x12344) == (0x12344, RW)
    assert table.lookup(ONE_GIB - 1) == (ONE_GIB - 1, RW)
    assert (table.mapped, pool.free) == (ONE_GIB - 1, 0)


def test_removing_a_slice_across_leaves_of_every_size_leaves_both_sides():
    table, _ = new_table()
    table.map(0, 0, 2 * ONE_GIB + TWO_MIB + 7, RW)

    assert table.unmap(1, 2 * ONE_GIB + TWO_MIB + 5, past_holes=False) == 2 * ONE_GIB + TWO_MIB + 5

    assert [leaf[:3] for leaf in table.leaves(0, 1 << 27)] == [
        (0, 0, 1),
        (2 * ONE_GIB + TWO_MIB + 6, 2 * ONE_GIB + TWO_MIB + 6, 1),
    ]


def test_the_last_page_of_a_region_returns_its_tables():
    table, pool = new_table()
    table.map(0x1FF, 0, 2, RW)
    assert pool.used == 4

    table.unmap(0x1FF, 1, past_holes=False)
    assert pool.used == 3
    table.unmap(0x200, 1, past_holes=False)

    assert pool.used == 1


def test_release_returns_every_page():
    table, pool = new_table()
    table.map(0, 0, ONE_GIB + TWO_MIB + 3, RW)
    table.unmap(5, 1, past_holes=False)

    table.release()

    assert pool.used == 0


def test_a_pool_too_small_for_a_large_leaf_gives_the_same_prefix_as_page_by_page():
    table, pool = new_table(pool_pages=1 + 1 + 3)

    assert table.map(0, 0, ONE_GIB, RW) == 3 * TWO_MIB
    assert pool.free == 0


@pytest.mark.row("defect", "D8")
@pytest.mark.row("defect", "D18")
def test_a_pool_too_small_for_every_table_on_the_way_is_left_alone():
    table, pool = new_table(pool_pages=2)

    assert table.map(0, 0, ONE_GIB, RW) == 0
    assert pool.used == 1


def test_a_root_needs_a_page():
    with pytest.raises(MemoryError, match="no page is left for a root table"):
        new_table(pool_pages=0)


@pytest.mark.row("defect", "D7")
def test_a_48_bit_table_has_one_level_more_and_charges_it():
    table, pool = new_table(bits=48)

    assert table.map((1 << 36) - ONE_GIB - 1, ONE_GIB - 1, ONE_GIB + 1, RW) == ONE_GIB + 1

    assert table.lookup((1 << 36) - 1) == (2 * ONE_GIB - 1, RW)
    assert table.lookup((1 << 36) - ONE_GIB - 1) == (ONE_GIB - 1, RW)
    assert leaf_sizes(table) == [1, ONE_GIB]
    assert pool.used == 1 + 1 + (1 + 1) + (1 + 512)


def test_a_run_joins_leaves_of_adjacent_frames_and_one_access():
    table, _ = new_table()
    table.map(0x1FE, 0x1FE, 4, RW)
    table.map(0x202, 0x202, 2, 1)

    assert table.run(0x1FE, 100) == (0x1FE, 4, RW)
    assert table.run(0x1FF, 2) == (0x1FF, 2, RW)
    assert table.run(0x203, 100) == (0x203, 1, 1)
    assert table.run(0x204, 1) is None


def test_a_cut_point_is_named_only_where_a_call_goes_on_past_the_range():
    table, _ = new_table()
    table.map(0x1FC, 0x1FC, 8, RW)
    table.map(0x204, 0x204, 4, RW)

    assert table.cut_point(0x1FC, 12) is None
    assert table.cut_point(0x1FC, 8) is None
    assert table.cut_point(0x1FD, 7) == 0x1FD
    assert table.cut_point(0x1FC, 9) == 0x204


def test_a_page_inside_a_large_leaf_is_inside_its_call():
    table, _ = new_table()
    table.map(0, 0, TWO_MIB, RW)

    assert table.cut_point(1, TWO_MIB - 1) == 1
    assert table.cut_point(0, TWO_MIB - 1) == 0
    assert table.cut_point(0, TWO_MIB) is None


def test_what_a_cut_leaves_is_a_call_of_its_own_even_when_the_gap_is_mapped_again():
    table, _ = new_table()
    table.map(0, 0, 4, RW)
    table.unmap(1, 1, past_holes=False)
    table.map(1, 1, 1, RW)

    assert [leaf[0] for leaf in table.leaves(0, 4) if leaf[4]] == [0, 1, 2]


def test_splitting_a_leaf_keeps_where_its_call_begins():
    table, _ = new_table()
    table.map(TWO_MIB - 1, TWO_MIB - 1, 1, RW)
    table.map(TWO_MIB, TWO_MIB, TWO_MIB, RW)

    table.unmap(TWO_MIB + 7, 1, past_holes=False)

    assert table.cut_point(TWO_MIB, 7) is None
    assert table.cut_point(TWO_MIB + 1, 6) == TWO_MIB + 1


def test_holes_of_every_size_are_passed_over_when_asked():
    table, pool = new_table()
    for dfn in (0, 3, 5 * TWO_MIB, 7 * ONE_GIB + 1):
        table.map(dfn, dfn, 1, RW)

    assert table.unmap(0, 1 << 27, past_holes=True) == 4
    assert (table.mapped, pool.used) == (0, 1)


def test_a_piece_joins_the_call_before_it_only_as_its_direct_continuation():
    table, _ = new_table()
    table.map(0x100, 0x50, 4, RW)

    assert table.joins(0x104, 0x54, RW)
    assert table.joins(0x102, 0x52, RW)
    assert not table.joins(0x104, 0x55, RW)
    assert not table.joins(0x104, 0x54, 1)
    assert not table.joins(0x104, 0x54, RW | CLONE)
    assert not table.joins(0x105, 0x55, RW)
    assert not table.joins(0, 0, RW)


def test_a_piece_joins_the_call_before_it_in_the_middle_of_a_large_leaf():
    table, _ = new_table()
    table.map(0x200, 0x400, 0x200, RW)

    assert table.joins(0x400, 0x600, RW)
    assert table.joins(0x301, 0x501, RW)
    assert not table.joins(0x301, 0x301, RW)


def test_a_first_page_joins_nothing_even_when_the_last_slot_is_full():
    table, _ = new_table()
    table.map((1 << 27) - 1, 0, 1, RW)

    assert not table.joins(0, 1, RW)
    assert not table.joins(0, 1, 1)


def test_pieces_without_a_start_are_one_call():
    table, _ = new_table()
    table.map(0x1FE, 0x1FE, 2, RW)

    table.map(0x200, 0x200, TWO_MIB, RW, starts=False)

    assert [leaf[0] for leaf in table.leaves(0, ONE_GIB) if leaf[4]] == [0x1FE]
    assert table.cut_point(0x200, TWO_MIB) == 0x200


def test_holes_are_what_the_leaves_leave_out():
    table, _ = new_table()
    table.map(0, 0, 2, RW)
    table.map(4, 4, 1, RW)
    table.map(TWO_MIB, TWO_MIB, TWO_MIB, RW)

    assert table.holes(1, 3) == [(2, 2)]
    assert table.holes(0, 3 * TWO_MIB) == [(2, 2), (5, TWO_MIB - 5), (2 * TWO_MIB, TWO_MIB)]
    assert table.holes(TWO_MIB + 3, 5) == []
    assert table.holes(8, 2) == [(8, 2)]


def test_a_clones_mark_survives_a_split_and_is_no_access_bit():
    table, _ = new_table()
    table.map(0, 0, TWO_MIB, CLONE | 1)

    table.unmap(7, 1, past_holes=False)

    assert table.lookup(8) == (8, 1)
    assert table.run(8, 4) == (8, 4, 1)
    assert {leaf[3] for leaf in table.leaves(0, TWO_MIB)} == {CLONE | 1}


def test_a_range_that_begins_inside_a_leaf_and_goes_on_past_it_leaves_the_pages_before():
    table, _ = new_table()
    table.map(0, 0, 3 * TWO_MIB, RW)

    assert table.unmap(2, 3 * TWO_MIB - 2, past_holes=False) == 3 * TWO_MIB - 2

    assert [leaf[:3] for leaf in table.leaves(0, ONE_GIB)] == [(0, 0, 1), (1, 1, 1)]


def test_leaves_and_tables_side_by_side_are_removed_with_all_that_they_were_charged():
    table, pool = new_table()
    table.map(0, 0, 2 * ONE_GIB, RW)
    table.map(2 * ONE_GIB, 2 * ONE_GIB, TWO_MIB, RW)
    table.map(2 * ONE_GIB + TWO_MIB, 1, TWO_MIB, RW)
    pages = 2 * ONE_GIB + 2 * TWO_MIB

    assert table.unmap(0, pages, past_holes=False) == pages

    assert (table.mapped, pool.used) == (0, 1)
    assert list(table.leaves(0, 1 << 27)) == []


def test_a_large_leaf_that_comes_again_is_charged_again():
    table, pool = new_table()

    for _ in range(2):
        table.map(0, 0, TWO_MIB, RW)
        assert pool.used == 3
        table.unmap(0, TWO_MIB, past_holes=False)
        assert pool.used == 1


def test_a_table_between_two_leaves_is_not_taken_for_one():
    table, pool = new_table()
    table.map(0, 0, TWO_MIB, RW)
    table.map(TWO_MIB, 1, 3, RW)
    table.map(2 * TWO_MIB, 2 * TWO_MIB, TWO_MIB, RW)

    assert table.unmap(0, 3 * TWO_MIB, past_holes=True) == 2 * TWO_MIB + 3

    assert (table.mapped, pool.used) == (0, 1)


def test_reserve_holds_pages_that_maps_then_take():
    table, pool = new_table(8)
    other = PageTable(pool, 1 << 27)

    assert table.reserve(5)
    assert (pool.used, pool.free) == (6, 2)
    other.map(0, 0, 1, RW)

    assert pool.free == 0
    assert other.map(1 << 18, 0, 1, RW) == 0
    assert table.map(0, 0, 1, RW) == 1
    assert table.map(1 << 18, 0, 1, RW) == 1
    assert pool.used == 8
    assert table.map(2 << 18, 0, 1, RW) == 0


def test_reserve_beyond_the_pool_changes_nothing():
    table, pool = new_table(8)

    assert table.reserve(4)
    assert not table.reserve(9)
    assert pool.used == 4


def test_reserve_is_given_back_when_lowered_and_on_release():
    table, pool = new_table(8)
    table.reserve(8)
    table.map(0, 0, 1, RW)

    assert table.reserve(0)
    assert pool.used == 3
    table.reserve(8)
    table.unmap(0, 1, past_holes=False)
    assert pool.used == 8
    table.release()
    assert pool.used == 0
