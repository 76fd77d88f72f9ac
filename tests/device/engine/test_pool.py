from pviommu.engine.pool import Pool


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
