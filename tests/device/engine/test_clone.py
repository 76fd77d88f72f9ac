"""Clones: 1:1 of guest RAM, following memory as it comes and goes."""

from pviommu.engine import Access, Area, Engine, EngineConfig, Outcome, Refusal, ReservedFrames, Stop, TranslationFault
from pviommu.engine.clone import EDITED_BLOCKS, Clone
from pviommu.engine.pool import Pool
from pviommu.engine.table import PageTable

R, RW = Access.READ, Access.READ | Access.WRITE
LOW = (0, 0xFFF)
HIGH = (0x2000, 0x2FFF)


def new_clone(*ram, **fields):
    """An engine whose domain 1 is a clone of `ram`, with endpoint 1 inside."""
    engine = Engine(EngineConfig(**fields))
    engine.set_ram(ram)
    engine.add_endpoint(1)
    engine.alloc_paging(1, clone=True)
    engine.attach(1, 1)
    return engine


def dma(engine, dfn):
    answer = engine.translate(1, dfn << 12, 1, RW)
    return answer.refusal if isinstance(answer, TranslationFault) else answer[0].gpa


def test_memory_that_comes_is_mapped_and_memory_that_goes_is_not():
    engine = new_clone(LOW)
    assert dma(engine, 5) == 0x5000

    engine.set_ram([LOW, HIGH])
    assert list(engine.areas(1)) == [Area(0, 0, 0x1000, RW, True), Area(0x2000, 0x2000, 0x1000, RW, True)]
    assert dma(engine, 0x2005) == 0x2005000
    engine.set_ram([HIGH])

    assert list(engine.areas(1)) == [Area(0x2000, 0x2000, 0x1000, RW, True)]
    assert dma(engine, 5) is Refusal.NOT_MAPPED


def test_every_clone_follows_and_other_domains_do_not():
    engine = new_clone(LOW)
    engine.alloc_paging(2)
    engine.alloc_paging(3, clone=True)
    engine.map(2, 0x100, 0x100, 1, RW)

    engine.set_ram([HIGH])

    assert list(engine.areas(2)) == [Area(0x100, 0x100, 1, RW, True)]
    assert list(engine.areas(1)) == list(engine.areas(3)) == [Area(0x2000, 0x2000, 0x1000, RW, True)]


def test_a_change_of_memory_is_one_flush_however_many_clones_follow():
    engine = new_clone(LOW)
    engine.alloc_paging(2, clone=True)
    flushes = engine.iotlb_flushes

    engine.set_ram([(0, 0xFF), HIGH])

    assert engine.iotlb_flushes == flushes + 1


def test_pages_of_the_guest_stay_when_memory_goes():
    engine = new_clone(LOW)
    engine.unmap(1, 0x10, 3)
    engine.map(1, 0x10, 0x10, 1, RW)
    engine.map(1, 0x11, 0x800, 1, R)

    engine.set_ram([])

    assert list(engine.areas(1)) == [Area(0x10, 0x10, 1, RW, True), Area(0x11, 0x800, 1, R, True)]


def test_a_page_that_the_guest_unmapped_stays_unmapped_when_its_memory_comes_back():
    engine = new_clone(LOW)
    engine.unmap(1, 0x1FE, 4)
    engine.unmap(1, 0x400, 0x200)

    engine.set_ram([])
    engine.set_ram([LOW])

    assert [(run.dfn, run.nr) for run in engine.areas(1)] == [(0, 0x1FE), (0x202, 0x1FE), (0x600, 0xA00)]


def test_a_page_that_a_refused_unmap_left_alone_still_follows():
    engine = new_clone((0, 11))
    engine.unmap(1, 4, 1)

    assert engine.unmap(1, 2, 8) == Outcome(2, Stop.NOT_MAPPED, 4)
    engine.set_ram([])
    engine.set_ram([(0, 11)])

    assert [(run.dfn, run.nr) for run in engine.areas(1)] == [(0, 2), (5, 7)]


def test_memory_that_comes_where_the_guest_mapped_something_leaves_that_alone():
    engine = new_clone(LOW)
    engine.map(1, 0x2004, 0x10, 2, R)

    engine.set_ram([LOW, (0x2000, 0x2007)])
    assert [tuple(run)[:3] for run in engine.areas(1)] == [
        (0, 0, 0x1000),
        (0x2000, 0x2000, 4),
        (0x2004, 0x10, 2),
        (0x2006, 0x2006, 2),
    ]
    engine.set_ram([LOW])

    assert list(engine.areas(1))[1:] == [Area(0x2004, 0x10, 2, R, True)]


def test_what_the_guest_had_mapped_before_memory_came_is_not_edited_by_unmapping_it_first():
    engine = new_clone(LOW)
    engine.map(1, 0x2004, 0x10, 1, R)
    engine.unmap(1, 0x2004, 1)

    engine.set_ram([LOW, HIGH])

    assert engine.lookup(1, 0x2004) == (0x2004, RW)


def test_reserved_frames_and_frames_past_the_aperture_do_not_follow():
    engine = new_clone(LOW, aperture_bits=32)

    engine.set_ram([LOW, (0xFEDFF, 0xFEF00), (0xFFFFF, 0x100001)])

    assert [(run.dfn, run.nr) for run in engine.areas(1)][1:] == [(0xFEDFF, 1), (0xFEF00, 1), (0xFFFFF, 1)]


def test_memory_that_the_pool_has_no_room_for_stays_unmapped_until_it_comes_again():
    engine = new_clone((0, 0x1FF), pool_pages=4)

    engine.set_ram([(0, 0x5FF)])
    assert list(engine.areas(1)) == [Area(0, 0, 0x200, RW, True), Area(0x200, 0x200, 0x200, RW, True)]
    assert dma(engine, 0x400) is Refusal.NOT_MAPPED
    engine.set_ram([(0x400, 0x5FF)])
    assert list(engine.areas(1)) == []
    engine.set_ram([])
    engine.set_ram([(0x400, 0x5FF)])

    assert list(engine.areas(1)) == [Area(0x400, 0x400, 0x200, RW, True)]


def test_what_one_clone_returns_to_the_pool_another_may_take():
    engine = new_clone((0, 0), (0x200, 0x200), pool_pages=4 + 4)
    engine.alloc_paging(2, clone=True)
    engine.unmap(2, 0, 1)
    assert engine.usage().pool_pages_used == 7

    engine.set_ram([(0x400, 0x400), (0x600, 0x600)])

    assert engine.usage().pool_pages_used == 8
    assert [run.dfn for ctx in (1, 2) for run in engine.areas(ctx)] == [0x400, 0x600, 0x400, 0x600]


def test_a_clone_follows_beneath_a_direct_region():
    engine = new_clone(LOW)
    engine.add_endpoint(2, [ReservedFrames(0x2000, 0x2001, "direct")])
    engine.attach(2, 1)

    engine.set_ram([LOW, HIGH])
    engine.attach(2, 0)
    assert dma(engine, 0x2001) == 0x2001000
    engine.attach(2, 1)
    engine.set_ram([LOW])

    assert dma(engine, 0x2001) == 0x2001000
    engine.attach(2, 0)
    assert dma(engine, 0x2001) is Refusal.NOT_MAPPED


def new_table():
    return PageTable(Pool(64), 1 << 36)


def test_a_clone_edited_in_too_many_blocks_grows_no_more_but_still_shrinks():
    table = new_table()
    clone = Clone(table)
    clone.add(0, 4)
    clone.edit(0, 512 * EDITED_BLOCKS)
    clone.edit(7, 1)
    assert clone.add(512 * EDITED_BLOCKS, 1)
    assert table.lookup(512 * EDITED_BLOCKS) == (512 * EDITED_BLOCKS, 3)

    clone.edit(512 * EDITED_BLOCKS + 600, 1)

    assert clone.add(512 * EDITED_BLOCKS + 1, 1)
    assert table.lookup(512 * EDITED_BLOCKS + 1) is None
    clone.remove(0, 2)
    assert [leaf[0] for leaf in table.leaves(0, 512)] == [2, 3]


def test_edited_pages_are_left_out_across_blocks_of_every_kind():
    table = new_table()
    clone = Clone(table)
    clone.edit(0x1FF, 1)
    clone.edit(0x400, 0x200)
    clone.edit(0x601, 2)
    clone.edit(0x604, 1)

    assert clone.add(0x1FE, 0x408)

    pages = [leaf[:3] for leaf in table.leaves(0, 0x1000)]
    assert pages[0] == (0x1FE, 0x1FE, 1)
    assert sum(pages for _, _, pages in pages) == 0x408 - 1 - 0x200 - 3
    assert [table.lookup(dfn) is None for dfn in range(0x5FF, 0x607)] == [
        True, False, True, True, False, True, False, True,
    ]  # fmt: skip
    assert [leaf[0] for leaf in table.leaves(0, 0x1000) if leaf[4]] == [0x1FE, 0x200, 0x600, 0x603, 0x605]
