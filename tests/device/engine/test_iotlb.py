import pytest

from pviommu.engine.iotlb import PENDING_LIMIT, Iotlb


def test_a_run_is_found_by_its_context_and_first_page_only():
    iotlb = Iotlb(8)
    iotlb.put(1, 0x100, (0x10, 4, 3))

    assert iotlb.get(1, 0x100) == (0x10, 4, 3)
    assert iotlb.get(1, 0x101) is None
    assert iotlb.get(2, 0x100) is None


@pytest.mark.row("defect", "D4")
def test_invalidating_any_page_of_a_run_forgets_it():
    for page in (0x100, 0x103):
        iotlb = Iotlb(8)
        iotlb.put(1, 0x100, (0x10, 4, 3))

        iotlb.invalidate(1, page, 1)

        assert iotlb.get(1, 0x100) is None
        assert len(iotlb) == 0


def test_invalidating_a_range_leaves_other_domains_and_other_blocks():
    iotlb = Iotlb(8)
    for domain, dfn in ((1, 0x100), (1, 0x300), (1, 0x900), (2, 0x100)):
        iotlb.put(domain, dfn, (dfn, 1, 3))

    iotlb.invalidate(1, 0x1FF, 2)

    assert iotlb.get(1, 0x100) is None
    assert iotlb.get(1, 0x300) is None
    assert iotlb.get(1, 0x900) is not None
    assert iotlb.get(2, 0x100) is not None


@pytest.mark.row("defect", "D4")
def test_a_range_wider_than_the_cache_is_invalidated_exactly():
    iotlb = Iotlb(8)
    for domain, dfn in ((1, 0x100), (1, 0x900), (2, 0x900)):
        iotlb.put(domain, dfn, (dfn, 1, 3))

    iotlb.invalidate(1, 0x200, 1 << 40)

    assert iotlb.get(1, 0x100) is not None
    assert iotlb.get(1, 0x900) is None
    assert iotlb.get(2, 0x900) is not None


def test_invalidating_no_pages_forgets_nothing():
    iotlb = Iotlb(8)
    iotlb.put(1, 0x200, (0, 1, 3))

    iotlb.invalidate(1, 0x200, 0)

    assert len(iotlb) == 1


def test_invalidating_a_context_leaves_the_others():
    iotlb = Iotlb(8)
    iotlb.put(1, 0x100, (0, 1, 3))
    iotlb.put(2, 0x100, (0, 1, 3))

    iotlb.invalidate_domain(1)

    assert iotlb.get(1, 0x100) is None
    assert iotlb.get(2, 0x100) is not None


def test_the_cache_never_holds_more_than_its_capacity():
    iotlb = Iotlb(5)

    for dfn in range(0, 0x4000, 0x81):
        iotlb.put(1, dfn, (dfn, 1, 3))
        assert len(iotlb) <= 5
        assert iotlb.get(1, dfn) == (dfn, 1, 3)


def test_replacing_a_run_does_not_count_it_twice():
    iotlb = Iotlb(5)
    iotlb.put(1, 0x100, (0x10, 1, 3))

    iotlb.put(1, 0x100, (0x10, 4, 3))

    assert len(iotlb) == 1
    assert iotlb.get(1, 0x100) == (0x10, 4, 3)


def test_clear_forgets_everything():
    iotlb = Iotlb(5)
    iotlb.put(1, 0x100, (0x10, 1, 3))

    iotlb.clear()

    assert iotlb.get(1, 0x100) is None
    assert len(iotlb) == 0


def test_a_run_that_leaves_its_block_is_refused():
    with pytest.raises(ValueError, match=r"dfn 0x1ff\+2: a run must stay inside its 2 MiB block"):
        Iotlb(5).put(1, 0x1FF, (0x10, 2, 3))


def test_invalidations_that_are_deferred_are_carried_out_as_one():
    iotlb = Iotlb(8)
    for dfn in (0x100, 0x300, 0x500):
        iotlb.put(1, dfn, (dfn, 1, 3))

    with iotlb.deferred():
        iotlb.invalidate(1, 0x100, 1)
        iotlb.invalidate(1, 0x300, 1)
        assert iotlb.flushes == 0
        assert len(iotlb) == 3

    assert iotlb.flushes == 1
    assert [iotlb.get(1, dfn) for dfn in (0x100, 0x300, 0x500)] == [None, None, (0x500, 1, 3)]


def test_nothing_is_found_or_remembered_while_invalidations_are_deferred():
    iotlb = Iotlb(8)
    iotlb.put(1, 0x100, (1, 1, 3))

    with iotlb.deferred():
        iotlb.put(1, 0x900, (9, 1, 3))
        assert iotlb.get(1, 0x100) is None

    assert iotlb.get(1, 0x900) is None
    assert iotlb.get(1, 0x100) == (1, 1, 3)
    assert iotlb.flushes == 0


def test_an_exception_does_not_keep_deferred_invalidations_back():
    iotlb = Iotlb(8)
    iotlb.put(1, 0x100, (1, 1, 3))

    def invalidate_and_fail():
        with iotlb.deferred():
            iotlb.invalidate(1, 0x100, 1)
            iotlb.put(1, 0x1FF, (1, 2, 3))

    with pytest.raises(ValueError, match="must stay inside"):
        invalidate_and_fail()

    assert iotlb.get(1, 0x100) is None
    assert iotlb.flushes == 1


def test_nested_deferrals_end_with_the_outermost():
    iotlb = Iotlb(8)
    iotlb.put(1, 0x100, (1, 1, 3))

    with iotlb.deferred():
        with iotlb.deferred():
            iotlb.invalidate_domain(1)
        assert (iotlb.flushes, iotlb.get(1, 0x100)) == (0, None)

    assert (iotlb.flushes, iotlb.get(1, 0x100)) == (1, None)


def test_too_many_deferred_invalidations_become_one_of_everything():
    iotlb = Iotlb(8)
    iotlb.put(1, 0x100, (1, 1, 3))
    iotlb.put(2, 0x900, (1, 1, 3))

    with iotlb.deferred():
        for _ in range(PENDING_LIMIT):
            iotlb.invalidate(1, 0x100, 1)
    assert iotlb.get(2, 0x900) == (1, 1, 3)
    with iotlb.deferred():
        for _ in range(PENDING_LIMIT + 1):
            iotlb.invalidate(1, 0x100, 1)

    assert (len(iotlb), iotlb.flushes) == (0, 2)


def test_a_deferred_clear_forgets_everything_at_the_end():
    iotlb = Iotlb(8)
    iotlb.put(1, 0x100, (1, 1, 3))

    with iotlb.deferred():
        iotlb.invalidate(2, 0, 1)
        iotlb.clear()
        assert len(iotlb) == 1

    assert (len(iotlb), iotlb.flushes) == (0, 1)


def test_every_invalidation_outside_a_deferral_counts():
    iotlb = Iotlb(8)

    iotlb.invalidate(1, 0, 1)
    iotlb.invalidate(1, 0, 0)
    iotlb.invalidate_domain(1)
    iotlb.clear()

    assert iotlb.flushes == 3
