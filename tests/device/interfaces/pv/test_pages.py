import pytest

from pviommu.counters import Counters
from pviommu.engine import Access, Engine, Outcome, Stop
from pviommu.interfaces.pv.pages import PIECE, PageOperations
from pviommu.interfaces.pv.profile import Reply

GIB = 1 << 18
READ_WRITE = Access.READ | Access.WRITE


@pytest.fixture
def engine():
    engine = Engine()
    engine.set_ram([(0, 4 * GIB - 1)])
    assert engine.alloc_paging(1) is None
    return engine


@pytest.fixture
def pages(engine):
    return PageOperations(engine, Counters())


def told(outcome):
    """A reply that carries the outcome."""
    return Reply(outcome.done, str(outcome.stop and outcome.stop.name).encode())


def carried_out(answer, go_on):
    """The reply, and how many times others had a turn."""
    turns = 0
    while not isinstance(answer, Reply):
        answer = go_on(answer.done)
        turns += not isinstance(answer, Reply)
    return answer, turns


def map_all(pages, *operands):
    *what, reply = operands
    return carried_out(pages.map(*operands), lambda done: pages.go_on_mapping(*what, done, reply))


def unmap_all(pages, *operands):
    *what, reply = operands
    return carried_out(pages.unmap(*operands), lambda done: pages.go_on_unmapping(*what, done, reply))


@pytest.mark.parametrize("nr", [0, 1, PIECE])
def test_up_to_a_piece_is_carried_out_at_once(pages, nr):
    assert isinstance(pages.map(1, 5, 0, nr, READ_WRITE, told), Reply)
    assert isinstance(pages.unmap(1, 5, nr, told), Reply)


@pytest.mark.parametrize(("dfn", "gfn"), [(5, 0), (5, 5), (GIB, 2 * GIB), (GIB - 1, 2 * GIB - 1), (0x200, 0x400)])
def test_a_map_in_pieces_is_like_one_map(pages, engine, dfn, gfn):
    nr = 2 * GIB - 3
    (reply, turns) = map_all(pages, 1, dfn, gfn, nr, READ_WRITE, told)
    assert (reply, turns >= 1) == ((nr, b"None"), True)
    [run] = engine.areas(1)
    assert run == (dfn, gfn, nr, READ_WRITE, True)


def test_pieces_end_where_large_leaves_do(pages, engine):
    """A map that large leaves can hold is as good in pieces as it is whole."""
    _, turns = map_all(pages, 1, 7 * GIB, GIB, 2 * GIB, READ_WRITE, told)
    leaves = list(engine._domains.paging[1].table.leaves(7 * GIB, 2 * GIB))
    assert ([count for _, _, count, _, _ in leaves], turns) == ([GIB, GIB], 1)


def test_an_unmap_in_pieces_is_like_one_unmap(pages, engine):
    map_all(pages, 1, 0, 0, 2 * GIB, READ_WRITE, told)
    reply, turns = unmap_all(pages, 1, 3, 2 * GIB - 6, told)
    assert (reply, turns > 1) == ((2 * GIB - 6, b"None"), True)
    assert [(run.dfn, run.nr) for run in engine.areas(1)] == [(0, 3), (2 * GIB - 3, 3)]


@pytest.mark.parametrize("hole", [0, 1, PIECE - 1, PIECE, PIECE + 1, 3 * PIECE])
def test_the_page_that_stops_any_piece_is_told_with_the_total(pages, engine, hole):
    engine.map(1, hole, 9, 1, READ_WRITE)
    assert map_all(pages, 1, 0, 1, 4 * PIECE, READ_WRITE, told)[0] == (hole, b"MAPPED")
    engine.unmap(1, hole, 1)
    assert unmap_all(pages, 1, 0, 4 * PIECE, told)[0] == (hole, b"NOT_MAPPED")


def test_the_outcome_names_the_page(pages):
    seen = []

    def see(outcome):
        seen.append(outcome)
        return Reply(0)

    map_all(pages, 1, 10, 3 * GIB, 2 * GIB, READ_WRITE, see)
    assert seen == [Outcome(GIB, Stop.NOT_RAM, 10 + GIB)]


@pytest.mark.parametrize(("dfn", "nr"), [((1 << 27) - PIECE, PIECE + 1), (1 << 40, 2 * PIECE), (0, 1 << 28)])
def test_a_long_range_past_the_aperture_is_refused_before_anything_changes(pages, engine, dfn, nr):
    assert pages.map(1, dfn, 0, nr, READ_WRITE, told) == (0, b"OUT_OF_APERTURE")
    assert pages.unmap(1, dfn, nr, told) == (0, b"OUT_OF_APERTURE")
    assert engine.usage().mapped_pages == 0


def test_pages_are_counted_however_they_are_carried_out(engine):
    counters = Counters()
    pages = PageOperations(engine, counters)
    map_all(pages, 1, 0, 1, 2 * PIECE, READ_WRITE, told)
    map_all(pages, 1, 4 * PIECE, 1, 3, READ_WRITE, told)
    unmap_all(pages, 1, 0, 2 * PIECE + 1, told)
    assert (counters.pages_mapped, counters.pages_unmapped) == (2 * PIECE + 3, 2 * PIECE)
