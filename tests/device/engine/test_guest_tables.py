"""Domains whose tables the guest owns, over a memory that is a dictionary."""

from array import array

import pytest

from pviommu.engine import (
    BLOCKED,
    PAGE_SIZE,
    Access,
    Area,
    Engine,
    EngineConfig,
    GuestTables,
    Refusal,
    ReservedFrames,
    Run,
    Stop,
    TranslationFault,
)
from pviommu.engine.core import PythonCore
from pviommu.engine.formats import vtd_second_stage, x86_64
from pviommu.engine.results import PackedRuns
from pviommu.engine.state import EngineState
from pviommu.engine.walk import ReadRefusal

R, W, RW = Access.READ, Access.WRITE, Access.READ | Access.WRITE
STREAM, NUMBER = 1, 5
ROOT, L3, L2, L1 = 0x1000, 0x2000, 0x3000, 0x4000
DIRECT = ReservedFrames(0x20, 0x21, "direct")
MIB2, GIB = 1 << 21, 1 << 30


class NoMemory(ReadRefusal):
    __slots__ = ()


class Memory:
    """Words of 64 bits; those below `end` are there."""

    def __init__(self):
        self.words = {ROOT: L3 | 3, L3: L2 | 3, L2: L1 | 3}
        self.end = 1 << 40
        self.reads = []
        self.before_update = None

    def read(self, address):
        self.reads.append(address)
        return self.words.get(address, 0) if address < self.end else NoMemory()

    def update(self, address, before, after):
        if self.before_update:
            self.before_update(address)
        found = self.words.get(address, 0)
        if found == before:
            self.words[address] = after
        return found

    def page(self, dfn, entry):
        self.words[L1 + 8 * dfn] = entry


@pytest.fixture
def memory():
    return Memory()


def tables(memory, frames=1 << 27, *, updates=False, make=vtd_second_stage):
    described = make(4, ROOT, 52, updates=updates)
    return GuestTables(described, frames, memory.read, memory.update if updates else None)


def engine_with(guest, direct=(), **config):
    engine = Engine(EngineConfig(**config))
    engine.set_ram([(0, 0xFFFF)])
    engine.add_endpoint(STREAM, direct, BLOCKED)
    engine.alloc_tables(NUMBER, guest)
    assert engine.attach(STREAM, NUMBER) is None
    return engine


@pytest.fixture
def engine(memory):
    return engine_with(tables(memory))


def refusal(engine, iova, length, access):
    fault = engine.translate(STREAM, iova, length, access)
    assert isinstance(fault, TranslationFault)
    return fault.iova, fault.refusal


def test_a_page_leads_where_its_entry_says(engine, memory):
    memory.page(3, 0x9000 | 3)
    assert list(engine.translate(STREAM, 0x3010, 0x20, RW)) == [Run(0x9010, 0x20)]
    assert engine.lookup(NUMBER, 3) == (9, RW)


def test_adjacent_frames_come_as_one_run_and_others_apart(engine, memory):
    for dfn, gfn in ((3, 9), (4, 10), (5, 20)):
        memory.page(dfn, gfn << 12 | 3)
    assert list(engine.translate(STREAM, 0x3800, 0x2000, R)) == [Run(0x9800, 0x1800), Run(0x14000, 0x800)]


def test_one_missing_page_refuses_all_at_its_first_byte(engine, memory):
    memory.page(3, 0x9000 | 3)
    assert refusal(engine, 0x3800, 0x1000, R) == (0x4000, Refusal.NOT_MAPPED)


def test_an_entry_that_changes_counts_for_the_next_request(engine, memory):
    memory.page(3, 0x9000 | 3)
    assert list(engine.translate(STREAM, 0x3000, 8, R)) == [Run(0x9000, 8)]
    memory.page(3, 0xA000 | 3)
    assert list(engine.translate(STREAM, 0x3000, 8, R)) == [Run(0xA000, 8)]
    memory.page(3, 0)
    assert refusal(engine, 0x3000, 8, R) == (0x3000, Refusal.NOT_MAPPED)


def test_nothing_is_kept_with_a_cache_in_use_either(engine, memory):
    engine.iotlb(is_used=True)
    memory.page(3, 0x9000 | 3)
    engine.translate(STREAM, 0x3000, 8, R)
    memory.page(3, 0)
    assert refusal(engine, 0x3000, 8, R) == (0x3000, Refusal.NOT_MAPPED)


@pytest.mark.parametrize(("entry", "allowed"), [(1, R), (2, W), (3, RW)])
def test_permissions_of_a_leaf(engine, memory, entry, allowed):
    memory.page(3, 0x9000 | entry)
    for access in (R, W, RW):
        if access & ~allowed:
            assert refusal(engine, 0x3000, 1, access) == (0x3000, Refusal.NO_PERMISSION)
        else:
            assert list(engine.translate(STREAM, 0x3000, 1, access)) == [Run(0x9000, 1)]


def test_permissions_of_every_level_count(engine, memory):
    memory.page(3, 0x9000 | 3)
    for place, table in ((ROOT, L3), (L3, L2), (L2, L1)):
        memory.words[place] = table | 1
        assert refusal(engine, 0x3000, 1, W) == (0x3000, Refusal.NO_PERMISSION)
        memory.words[place] = table | 3


def test_large_leaves(engine, memory):
    memory.words[L2 + 8] = 4 * MIB2 | 1 << 7 | 3
    memory.words[L3 + 8] = 2 * GIB | 1 << 7 | 3
    assert list(engine.translate(STREAM, MIB2 + 0x123456, 0x1000, R)) == [Run(4 * MIB2 + 0x123456, 0x1000)]
    assert list(engine.translate(STREAM, GIB + 0x12345678, 0x1000, R)) == [Run(2 * GIB + 0x12345678, 0x1000)]
    assert engine.lookup(NUMBER, (MIB2 >> 12) + 5) == ((4 * MIB2 >> 12) + 5, RW)


def test_the_other_format(memory):
    engine = engine_with(tables(memory, make=x86_64))
    memory.page(3, 0x9000 | 1)
    assert list(engine.translate(STREAM, 0x3000, 1, R)) == [Run(0x9000, 1)]
    assert refusal(engine, 0x3000, 1, W) == (0x3000, Refusal.NO_PERMISSION)
    memory.page(3, 0x9000 | 3)
    assert list(engine.translate(STREAM, 0x3000, 1, W)) == [Run(0x9000, 1)]


def test_a_table_that_cannot_be_read(engine, memory):
    memory.words[L2] = 1 << 41 | 3
    assert refusal(engine, 0x3000, 1, R) == (0x3000, Refusal.NOT_RAM)
    assert engine.lookup(NUMBER, 3) is None


def test_an_entry_that_the_format_does_not_allow_maps_nothing(engine, memory):
    memory.words[ROOT] = L3 | 1 << 7 | 3
    assert refusal(engine, 0x3000, 1, R) == (0x3000, Refusal.NOT_MAPPED)


def test_tables_that_lead_to_themselves_end(engine, memory):
    memory.words[ROOT] = ROOT | 3
    memory.reads.clear()
    engine.translate(STREAM, 0, 1, R)
    assert len(memory.reads) == 4


def test_the_aperture_ends_where_it_was_said(memory):
    engine = engine_with(tables(memory, frames=4))
    memory.page(3, 0x9000 | 3)
    memory.page(4, 0xA000 | 3)
    assert refusal(engine, 0x3800, 0x1000, R) == (0x4000, Refusal.OUT_OF_APERTURE)
    assert engine.lookup(NUMBER, 4) is None


def test_the_aperture_cuts_a_large_leaf(memory):
    engine = engine_with(tables(memory, frames=0x300))
    memory.words[L2 + 8] = 4 * MIB2 | 1 << 7 | 3
    assert refusal(engine, 0x2FF000, 0x2000, R) == (0x300000, Refusal.OUT_OF_APERTURE)


def test_reserved_regions_come_before_the_tables(memory):
    engine = engine_with(tables(memory), reserved=(ReservedFrames(3, 3, "msi"),))
    for dfn in (2, 3, 4):
        memory.page(dfn, 0x9000 | 3)
    assert refusal(engine, 0x2000, 0x2000, R) == (0x3000, Refusal.RESERVED)
    assert list(engine.translate(STREAM, 0x4000, 1, R)) == [Run(0x9000, 1)]


def test_a_reserved_region_cuts_a_large_leaf(memory):
    engine = engine_with(tables(memory), reserved=(ReservedFrames(0x210, 0x210, "msi"),))
    memory.words[L2 + 8] = 4 * MIB2 | 1 << 7 | 3
    assert refusal(engine, MIB2, 0x20000, R) == (0x210000, Refusal.RESERVED)


def test_direct_regions_of_who_is_inside_come_before_the_tables(memory):
    engine = engine_with(tables(memory), direct=(DIRECT,))
    memory.page(0x20, 0x9000 | 1)
    assert list(engine.translate(STREAM, 0x20800, 0x1000, W)) == [Run(0x20800, 0x1000)]
    assert refusal(engine, 0x21800, 0x1000, W) == (0x22000, Refusal.NOT_MAPPED)
    assert engine.lookup(NUMBER, 0x20) == (0x20, RW)
    assert engine.direct(NUMBER) == ((0x20, 0x21),)
    engine.attach(STREAM, BLOCKED)
    assert engine.lookup(NUMBER, 0x20) == (9, R)
    assert engine.usage().pool_pages_used == 0


def test_direct_regions_that_overlap_do_not_both_get_in(memory):
    engine = engine_with(tables(memory), direct=(DIRECT,))
    engine.add_endpoint(2, (ReservedFrames(0x21, 0x22, "direct"),), BLOCKED)
    assert engine.attach(2, NUMBER) is Stop.RESERVED_CONFLICT


def test_nothing_can_be_mapped_in_it(engine):
    assert engine.map(NUMBER, 1, 1, 1, RW).stop is Stop.GUEST_TABLES
    assert engine.unmap(NUMBER, 1, 1).stop is Stop.GUEST_TABLES
    assert engine.reserve_pool(NUMBER, 1) is Stop.GUEST_TABLES
    assert engine.track_dirty(NUMBER) is Stop.GUEST_TABLES
    assert engine.alloc_nested(6, NUMBER, None) is Stop.GUEST_TABLES
    assert not engine.is_paging(NUMBER)
    assert list(engine.areas(NUMBER)) == []


def test_it_counts_and_goes_as_any_other(engine):
    assert (engine.domains(), engine.usage().domains) == ((NUMBER,), 1)
    assert engine.free_domain(NUMBER) is Stop.ENDPOINTS_ATTACHED
    engine.attach(STREAM, BLOCKED)
    assert engine.free_domain(NUMBER) is None
    assert (engine.domains(), engine.has_guest_tables(NUMBER)) == ((), False)
    assert engine.alloc_paging(NUMBER) is None


def test_what_it_cannot_be(engine, memory):
    with pytest.raises(ValueError, match="domain 5: exists already"):
        engine.alloc_tables(NUMBER, tables(memory))
    for frames in (0, (1 << 27) + 1):
        with pytest.raises(ValueError, match="frames: must be 1"):
            engine.alloc_tables(6, tables(memory, frames))


def test_a_write_sets_accessed_and_dirty_bits(memory):
    engine = engine_with(tables(memory, updates=True))
    memory.page(3, 0x9000 | 3)
    engine.translate(STREAM, 0x3000, 1, R)
    assert memory.words[L1 + 8 * 3] == 0x9000 | 3 | 1 << 8
    engine.translate(STREAM, 0x3000, 1, W)
    assert memory.words[L1 + 8 * 3] == 0x9000 | 3 | 1 << 8 | 1 << 9


def test_who_only_looks_changes_no_bit(memory):
    engine = engine_with(tables(memory, updates=True))
    memory.page(3, 0x9000 | 3)
    assert engine.lookup(NUMBER, 3) == (9, RW), "a page that was not written yet may be"
    assert engine.guest_tables(NUMBER).scan(3, 1)[0] == [Area(3, 9, 1, RW, True)]
    assert memory.words[L1 + 8 * 3] == 0x9000 | 3


def test_an_entry_that_is_cleared_under_the_update_is_not_brought_back(memory):
    engine = engine_with(tables(memory, updates=True))
    memory.page(3, 0x9000 | 3)

    def clear(address):
        if address == L1 + 8 * 3:
            memory.words[address] = 0

    memory.before_update = clear
    assert refusal(engine, 0x3000, 1, W) == (0x3000, Refusal.NOT_MAPPED)
    assert memory.words[L1 + 8 * 3] == 0


def test_an_entry_that_changes_at_each_update_ends_the_walk(memory):
    engine = engine_with(tables(memory, updates=True))
    memory.page(3, 0x9000 | 3)

    def change(address):
        memory.words[address] ^= 1 << 11

    memory.before_update = change
    assert refusal(engine, 0x3000, 1, W) == (0x3000, Refusal.NOT_MAPPED)


def test_a_state_has_its_number_and_whoever_loads_it_the_tables(engine, memory):
    memory.page(3, 0x9000 | 3)
    state = engine.save()
    assert state.domains.tables == (NUMBER,)
    other = Engine()
    other.add_endpoint(STREAM, (), BLOCKED)
    other.load(state, tables={NUMBER: tables(memory)})
    assert list(other.translate(STREAM, 0x3000, 1, R)) == [Run(0x9000, 1)]
    with pytest.raises(ValueError, match="domain 5: nobody says which tables"):
        other.load(state)
    assert isinstance(state, EngineState)
    assert other.domains() == ()


def test_the_trace_of_a_walk_has_each_entry(engine, memory):
    memory.page(3, 0x9000 | 3)
    found = engine.guest_tables(NUMBER).trace(3)
    assert found == [(ROOT, L3 | 3), (L3, L2 | 3), (L2, L1 | 3), (L1 + 24, 0x9000 | 3)]
    memory.end = L2
    assert engine.guest_tables(NUMBER).trace(3) == found[:2]


def test_a_scan_finds_all_leaves_and_skips_what_is_empty(memory):
    engine = engine_with(tables(memory, frames=1 << 19))
    memory.page(3, 0x9000 | 1)
    memory.words[L2 + 16] = 4 * MIB2 | 1 << 7 | 3
    memory.words[L3 + 8] = 2 * GIB | 1 << 7 | 3
    areas, position = [], 0
    while position is not None:
        found, position = engine.guest_tables(NUMBER).scan(position, 100)
        areas += found
    assert areas == [
        Area(3, 9, 1, R, True),
        Area(2 * MIB2 // PAGE_SIZE, 4 * MIB2 // PAGE_SIZE, 512, RW, True),
        Area(GIB // PAGE_SIZE, 2 * GIB // PAGE_SIZE, GIB // PAGE_SIZE, RW, True),
    ]
    assert engine.guest_tables(NUMBER + 1) is None


class Walking(PythonCore):
    """A core that walks by itself: every page is another one."""

    walks = True

    def __init__(self):
        super().__init__()
        self.shown = []

    def show_tables(self, domain, guest, direct, closed):
        self.shown.append((domain, list(direct)))
        return True

    def hide(self, domain):
        self.shown.append(domain)

    def walk(self, domain, iova, end, wanted):
        return (iova, Refusal.NOT_MAPPED) if wanted & W else [Run(iova ^ 0x1000, end - iova)]

    def walk_spans(self, domain, spans, wanted):
        return PackedRuns(array("Q", [number for iova, length in spans for number in (iova ^ 0x1000, length)]))


def test_a_core_that_walks_by_itself_is_asked_and_told_of_regions(memory):
    core = Walking()
    engine = Engine(EngineConfig(), core)
    engine.add_endpoint(STREAM, (DIRECT,), BLOCKED)
    assert engine.walked_by_core(STREAM) is None
    engine.alloc_tables(NUMBER, tables(memory))
    engine.attach(STREAM, NUMBER)
    assert engine.walked_by_core(STREAM) == NUMBER
    for _ in range(2):
        assert engine.translate(STREAM, 0x3000, 8, R) == (Run(0x2000, 8),)
    assert refusal(engine, 0x3000, 8, W) == (0x3000, Refusal.NOT_MAPPED)
    assert list(engine.translate_spans(STREAM, [(0, 8), (0x1000, 8)], R)) == [Run(0x1000, 8), Run(0, 8)]
    assert memory.reads == []
    engine.block(STREAM)
    assert engine.walked_by_core(STREAM) is None
    engine.attach(STREAM, BLOCKED)
    engine.free_domain(NUMBER)
    assert core.shown == [(NUMBER, []), (NUMBER, [(0x20, 0x21)]), (NUMBER, []), NUMBER]


def test_with_a_cache_in_use_python_walks(memory):
    engine = Engine(EngineConfig(), Walking())
    engine.add_endpoint(STREAM, (), BLOCKED)
    engine.alloc_tables(NUMBER, tables(memory))
    engine.attach(STREAM, NUMBER)
    memory.page(3, 0x9000 | 3)
    engine.iotlb(is_used=True)
    assert engine.walked_by_core(STREAM) is None
    assert list(engine.translate(STREAM, 0x3000, 8, R)) == [Run(0x9000, 8)]
    assert engine.translate_spans(STREAM, [(0x3000, 8)], R) is None
