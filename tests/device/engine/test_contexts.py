import pytest

from pviommu.engine import ReservedRegion, Stop
from pviommu.engine.clone import Clone
from pviommu.engine.contexts import Contexts, Endpoints
from pviommu.engine.core import PythonCore
from pviommu.engine.pool import Pool
from pviommu.engine.ranges import FrameRanges


def new_contexts(max_contexts=3, pool_pages=16):
    pool = Pool(pool_pages)
    return Contexts(max_contexts, PythonCore(), pool, 1 << 27, FrameRanges()), pool


def test_the_lowest_free_number_is_used_from_1_on():
    contexts, _ = new_contexts()
    assert [contexts.alloc().context for _ in range(3)] == [1, 2, 3]

    contexts.free(2)

    assert contexts.alloc() == (2, None)
    assert list(contexts) == [1, 2, 3]


@pytest.mark.row("defect", "C9")
def test_running_out_of_numbers_recovers_when_one_is_freed():
    contexts, _ = new_contexts(max_contexts=1)
    contexts.alloc()

    assert contexts.alloc() == (None, Stop.NO_FREE_CONTEXT)
    contexts.free(1)

    assert contexts.alloc() == (1, None)


def test_a_context_needs_a_pool_page_and_returns_it():
    contexts, pool = new_contexts(pool_pages=1)
    contexts.alloc()

    assert contexts.alloc() == (None, Stop.POOL_EXHAUSTED)
    contexts.free(1)

    assert pool.used == 0
    assert len(contexts) == 0


def test_a_stream_names_one_endpoint():
    endpoints = Endpoints()
    endpoints.add(7)

    with pytest.raises(ValueError, match="stream 7 exists already"):
        endpoints.add(7)


def test_reset_blocks_exactly_what_was_outside_the_default_context():
    endpoints = Endpoints()
    endpoints.add(1)
    endpoints.add(2)
    endpoints.move(2, 9)

    endpoints.reset()

    assert endpoints.view() == {1: 0, 2: 0}
    assert not endpoints.is_blocked(1)
    assert endpoints.is_blocked(2)


def test_what_is_held_is_unblocked_by_letting_it_go_only():
    endpoints = Endpoints()
    endpoints.add(1)
    endpoints.hold(1)

    endpoints.unblock(1)
    assert endpoints.is_blocked(1)

    endpoints.let_go(1)
    assert not endpoints.is_blocked(1)
    endpoints.block(1)
    endpoints.unblock(1)
    assert not endpoints.is_blocked(1)


def test_reset_makes_a_hold_a_block():
    endpoints = Endpoints()
    endpoints.add(1)
    endpoints.hold(1)

    endpoints.reset()

    assert endpoints.is_blocked(1)
    endpoints.unblock(1)
    assert not endpoints.is_blocked(1)


def test_the_view_cannot_be_written_and_follows_moves():
    endpoints = Endpoints()
    endpoints.add(1)
    view = endpoints.view()

    endpoints.move(1, 5)

    assert view[1] == 5
    assert endpoints.inside(5) == [1]
    with pytest.raises(TypeError):
        view[1] = 0


def test_an_endpoint_keeps_the_regions_that_it_came_with():
    endpoints = Endpoints()
    endpoints.add(1, [ReservedRegion(4, 5, "direct")])
    endpoints.add(2)

    assert endpoints.regions(1) == ((4, 5, "direct"),)
    assert endpoints.regions(2) == ()


def test_clones_are_listed_in_the_order_of_their_numbers():
    contexts, _ = new_contexts()
    for _ in range(3):
        contexts.alloc()
    contexts.free(1)
    contexts.alloc()
    clones = {ctx: Clone(contexts.get(ctx).table) for ctx in (1, 3)}
    for ctx, clone in clones.items():
        contexts.get(ctx).clone = clone

    assert contexts.clones() == [(1, clones[1]), (3, clones[3])]
