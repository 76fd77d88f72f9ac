import pytest

from pviommu.engine.pool import Pool, tables_touched


def test_taking_more_than_is_left_takes_nothing():
    pool = Pool(3)

    assert pool.take(2)
    assert not pool.take(2)
    assert (pool.free, pool.used, pool.total) == (1, 2, 3)


def test_pages_given_back_can_be_taken_again():
    pool = Pool(1)
    pool.take(1)

    pool.give(1)

    assert pool.take(1)


def test_a_resized_pool_keeps_what_is_in_use():
    pool = Pool(5)
    pool.take(2)

    pool.resize(2)
    assert (pool.free, pool.used, pool.total) == (0, 2, 2)
    pool.resize(4)
    assert (pool.free, pool.used, pool.total) == (2, 2, 4)

    with pytest.raises(ValueError, match="pool of 1 pages: 2 are in use"):
        pool.resize(1)
    assert (pool.free, pool.total) == (2, 4)


@pytest.mark.parametrize(
    ("ranges", "tables"),
    [
        ([], 0),
        ([(0, 0)], 2),
        ([(0x1FF, 0x200)], 3),
        ([(0, 1), (0x10, 0x11)], 2),
        ([(0, 1), (0x200, 0x3FF), (0x3FFFF, 0x40000)], 6),
        ([(0, 0x3FFFF)], 513),
    ],
)
def test_tables_are_counted_once_however_many_ranges_touch_them(ranges, tables):
    assert tables_touched(ranges, (18, 9)) == tables
