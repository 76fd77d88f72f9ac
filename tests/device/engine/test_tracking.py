"""Dirty pages of a domain: what DMA wrote, by whatever way it was translated."""

import random
from dataclasses import replace

import pytest

from pviommu.engine import Access, Engine, EngineConfig, Refusal, ReservedFrames, Run, Stage1Run, Stop, UnmapMode
from pviommu.engine.state import DirtyState

R, W, RW = Access.READ, Access.WRITE, Access.READ | Access.WRITE
PAGE = 4096
STREAM = 7


@pytest.fixture
def engine():
    """Domain 1 maps dfns 0x10..0x2f to gfns 0x110..., endpoint 7 is in it, and it is tracked."""
    engine = Engine(EngineConfig(reserved=()))
    engine.set_ram([(0, 0xFFFF)])
    engine.add_endpoint(STREAM)
    engine.alloc_paging(1)
    engine.map(1, 0x10, 0x110, 0x20, RW)
    engine.attach(STREAM, 1)
    assert engine.track_dirty(1) is None
    return engine


def write(engine, iova, length=1):
    assert len(engine.translate(STREAM, iova, length, W)) == 1


def tracked(engine):
    return [state.domain for state in engine.save().dirty]


def taken(engine, **settings):
    return engine.dirty(1, 0, 1 << 27, **settings)


@pytest.mark.row("space", 57)
def test_a_write_of_one_byte_dirties_its_page_only_once_read(engine):
    write(engine, 0x15 * PAGE + 17)

    assert taken(engine, clear=False) == [(0x15, 1)]
    assert taken(engine, clear=False) == [(0x15, 1)]
    assert taken(engine) == [(0x15, 1)]
    assert taken(engine) == []


def test_reads_dirty_nothing_and_refused_writes_neither(engine):
    engine.translate(STREAM, 0x10 * PAGE, PAGE, R)
    assert engine.translate(STREAM, 0x2F * PAGE, 2 * PAGE, W).refusal is Refusal.NOT_MAPPED
    engine.map(1, 0x40, 0x140, 1, R)
    assert engine.translate(STREAM, 0x40 * PAGE, 1, W).refusal is Refusal.NO_PERMISSION

    assert taken(engine) == []


def test_a_write_over_pages_dirties_each_that_it_touches(engine):
    write(engine, 0x10 * PAGE + PAGE - 1, 2 * PAGE)
    assert taken(engine) == [(0x10, 3)]
    assert engine.translate(STREAM, 0x20 * PAGE, 16, RW)
    assert taken(engine) == [(0x20, 1)]


def test_a_write_that_was_translated_before_dirties_again_after_it_was_read(engine):
    """Such a request is not walked again: what remembers it has to forget."""
    for _ in range(3):
        write(engine, 0x12 * PAGE)
        write(engine, 0x12 * PAGE)
        assert taken(engine) == [(0x12, 1)]


def test_a_write_that_was_translated_before_tracking_began_dirties(engine):
    engine.track_dirty(1, enabled=False)
    write(engine, 0x12 * PAGE)

    engine.track_dirty(1)
    write(engine, 0x12 * PAGE)

    assert taken(engine) == [(0x12, 1)]


def test_writes_with_a_pasid_dirty_too(engine):
    engine.alloc_paging(2)
    engine.attach(STREAM, 2)
    engine.attach(STREAM, 1, pasid=5)

    assert engine.translate(STREAM, 0x13 * PAGE, 1, W, 5) == [Run(0x113 * PAGE, 1)]
    assert taken(engine) == [(0x13, 1)]


def test_reading_a_part_leaves_the_rest(engine):
    for page in (0x10, 0x18, 0x20):
        write(engine, page * PAGE)

    assert engine.dirty(1, 0x18, 8) == [(0x18, 1)]
    assert engine.dirty(1, 0x18, 0) == []
    assert taken(engine) == [(0x10, 1), (0x20, 1)]


def test_tracking_begins_with_nothing_and_ends_with_nothing(engine):
    write(engine, 0x10 * PAGE)
    assert tracked(engine) == [1]
    engine.track_dirty(1)
    assert taken(engine) == []

    write(engine, 0x10 * PAGE)
    engine.track_dirty(1, enabled=False)
    assert tracked(engine) == []
    assert taken(engine) == []
    engine.track_dirty(1, enabled=False)
    write(engine, 0x10 * PAGE)
    assert taken(engine) == []


def test_only_paging_domains_are_tracked(engine):
    assert engine.track_dirty(0) is Stop.NOT_PAGING
    assert engine.track_dirty(9) is Stop.NO_DOMAIN
    assert engine.dirty(9, 0, 10) == []


def test_pages_that_are_unmapped_are_not_dirty_any_more(engine):
    write(engine, 0x10 * PAGE, 0x20 * PAGE)

    engine.unmap(1, 0x10, 4)
    engine.unmap(1, 0x2E, 4)
    engine.map(1, 0x10, 0x110, 4, RW)
    assert taken(engine, clear=False) == [(0x14, 0x1A)]
    engine.unmap(1, 0x14, 0x1A, UnmapMode.UNTIL_CUT)

    assert taken(engine) == []


def test_another_domain_of_that_number_is_not_tracked(engine):
    write(engine, 0x10 * PAGE)
    engine.attach(STREAM, 0)
    engine.free_domain(1)
    engine.alloc_paging(1)

    assert tracked(engine) == []
    engine.track_dirty(1)
    assert taken(engine) == []
    engine.reset()
    assert tracked(engine) == []


def test_direct_regions_stay_dirty_when_the_guest_unmaps_over_them():
    engine = Engine(EngineConfig(reserved=()))
    engine.set_ram([(0, 0xFFFF)])
    engine.add_endpoint(STREAM, [ReservedFrames(0x12, 0x13, "direct")])
    engine.alloc_paging(1)
    engine.map(1, 0x10, 0x10, 8, RW)
    engine.attach(STREAM, 1)
    engine.track_dirty(1)
    write(engine, 0x10 * PAGE, 8 * PAGE)

    engine.unmap(1, 0x10, 8, UnmapMode.CHECK_ENDS)

    assert taken(engine) == [(0x12, 2)]


def test_memory_that_goes_takes_the_dirty_pages_of_a_clone_with_it():
    engine = Engine(EngineConfig(reserved=()))
    engine.set_ram([(0, 0xFF)])
    engine.add_endpoint(STREAM)
    engine.alloc_paging(1, clone=True)
    engine.alloc_paging(2, clone=True)
    engine.attach(STREAM, 1)
    engine.track_dirty(1)
    write(engine, 0x10 * PAGE, 0x20 * PAGE)

    engine.set_ram([(0, 0x17), (0x20, 0xFF)])
    engine.set_ram([(0, 0xFF)])

    assert taken(engine) == [(0x10, 8), (0x20, 0x10)]


class Flat:
    """A first stage that adds 0x10 pages, with a table in the parent's first page."""

    def walk(self, iova, length, access, parent):
        assert parent(0x10 * PAGE, 8, R)
        return Stage1Run(iova + 0x10 * PAGE, length, RW)


def test_the_parent_of_a_nested_domain_notes_what_goes_through_it(engine):
    engine.alloc_nested(2, 1, Flat())
    engine.attach(STREAM, 2)

    assert engine.translate(STREAM, 5 * PAGE, PAGE, W) == (Run(0x115 * PAGE, PAGE),)

    assert taken(engine) == [(0x15, 1)]
    assert engine.track_dirty(2) is Stop.NOT_PAGING


def test_dirty_pages_are_part_of_the_state(engine):
    write(engine, 0x10 * PAGE)
    write(engine, 0x12 * PAGE, 2 * PAGE)
    state = engine.save()

    engine.track_dirty(1, enabled=False)
    engine.load(state)

    assert engine.save() == state
    assert taken(engine) == [(0x10, 1), (0x12, 2)]


@pytest.mark.parametrize(("domain", "run", "why"), [(5, (0, 1), "no such domain"), (1, (1 << 27, 1), "no range")])
def test_a_state_with_dirty_pages_that_cannot_be_is_refused(engine, domain, run, why):
    state = replace(engine.save(), dirty=(DirtyState(domain, (run,)),))
    with pytest.raises(ValueError, match=why):
        engine.load(state)
    assert engine.domains() == ()


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("uses_iotlb", [False, True])
def test_histories_are_those_of_a_set(seed, uses_iotlb):
    chance = random.Random(seed)
    engine = Engine(EngineConfig(reserved=(), iotlb_entries=4))
    engine.set_ram([(0, 0xFFFF)])
    engine.add_endpoint(STREAM)
    engine.alloc_paging(1)
    engine.attach(STREAM, 1)
    engine.track_dirty(1)
    engine.iotlb(is_used=uses_iotlb)
    mapped, dirty = set(), set()
    for _ in range(300):
        what = chance.choice(("write", "write", "write", "read", "map", "map", "unmap", "take"))
        first, nr = chance.randrange(40), chance.choice((1, 1, 2, chance.randrange(1, 12)))
        pages = set(range(first, first + nr))
        if what == "map" and not pages & mapped:
            engine.map(1, first, 0x100 + first, nr, RW)
            mapped |= pages
        elif what == "unmap":
            engine.unmap(1, first, nr, UnmapMode.UNTIL_HOLE)
            gone = {page for page in pages if set(range(first, page + 1)) <= mapped}
            mapped -= gone
            dirty -= gone
        elif what == "take":
            runs = engine.dirty(1, first, nr)
            assert {page for begin, count in runs for page in range(begin, begin + count)} == dirty & pages
            dirty -= pages
        elif what in ("read", "write"):
            engine.translate(STREAM, first * PAGE + 1, nr * PAGE - 1, W if what == "write" else R)
            if what == "write" and pages <= mapped:
                dirty |= pages
    assert [page for begin, count in engine.dirty(1, 0, 100) for page in range(begin, begin + count)] == sorted(dirty)


def test_whether_pages_are_noted_can_be_asked() -> None:
    engine = Engine(EngineConfig())
    engine.alloc_paging(1)

    assert not engine.tracks_dirty(1)
    engine.track_dirty(1)
    assert engine.tracks_dirty(1)
    engine.track_dirty(1, enabled=False)
    assert not engine.tracks_dirty(1)
