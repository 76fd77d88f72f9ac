"""The walker in C: the tests of engine/test_walk.py, and beside Python's, over all formats and over made-up ones."""

from __future__ import annotations

import ctypes
import re
import subprocess
import sys
import textwrap
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pviommu.engine import Engine, EngineConfig, Refusal, ReservedFrames, Run
from pviommu.engine.formats import arm_stage1, arm_stage2, vtd_second_stage, x86_64
from pviommu.engine.results import add_run
from pviommu.engine.stages import Stage
from pviommu.engine.walk import ATTEMPTS, Grants, Leaf, Level, Pattern, Rules, Tables, WalkFault, WalkFaultKind
from pviommu.engine.walk import walk as python_walk
from pviommu.native import library
from pviommu.native.core import NativeCore
from pviommu.native.memory import NativeCopier
from pviommu.native.walk import NativeWalker, Place, Unreadable

from ..engine import test_walk
from ..engine.test_walk import *  # noqa: F403
from ..engine.test_walk import ACCESSES, IOVA, PAGE, RW, Memory, R, arm_cases, four_levels, intel_cases
from .test_page_operation import code, numbers

ORIGINAL = test_walk


class Words:
    """The descriptors of a :class:`Memory` where C sees them, and nothing else."""

    def __init__(self, lib: library.Library, memory: Memory) -> None:
        self.copier = NativeCopier(lib)
        self._memory = memory
        self._words = (ctypes.c_uint64 * len(memory))(*memory.values())
        for number, place in enumerate(memory):
            self.copier.add(place, 8, ctypes.addressof(self._words) + 8 * number)

    def bring_back(self) -> None:
        for place, word in zip(list(self._memory), self._words, strict=True):
            self._memory[place] = word


# -- the tests of Python's ------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def in_c(native_library, monkeypatch):
    """The tests walk in C: their memory is copied to where C reads it, and back."""

    def walk(tables, address, access, read, update=None):
        words = Words(native_library, read.__self__)
        found = NativeWalker(native_library, Place(words.copier), Stage(tables), updates=update is not None).walk(
            address, access
        )
        words.bring_back()
        return found

    def translate(tables, address, length, access, read, update=None):
        words = Words(native_library, read.__self__)
        walker = NativeWalker(native_library, Place(words.copier), Stage(tables), updates=update is not None)
        found = walker.translate(address, length, access)
        words.bring_back()
        return found

    monkeypatch.setattr(ORIGINAL, "walk", walk)
    monkeypatch.setattr(ORIGINAL, "translate", translate)


# These have memory that answers otherwise each time, or a cause of its own: see below for what C has of that.
del test_what_cannot_be_read_is_told_with_its_cause  # noqa: F821
del test_a_descriptor_that_changes_before_its_update_is_judged_again  # noqa: F821
del test_a_descriptor_that_always_changes_ends_the_walk  # noqa: F821
del test_an_update_that_is_refused_is_a_read_that_is_refused  # noqa: F821


@pytest.mark.parametrize("level", range(4))
def test_a_descriptor_without_memory_is_told_with_its_address(native_library, level):
    tables, memory = four_levels(0x50000000 | 1 << 10 | PAGE)
    place = list(memory)[level]
    del memory[place]
    words = Words(native_library, memory)

    fault = NativeWalker(native_library, Place(words.copier), Stage(tables)).walk(IOVA, R)

    assert fault[:3] == (WalkFaultKind.READ, level, place)
    assert (fault.cause.address, fault.cause.refusal, fault.cause.below) == (place, None, None)


def test_no_descriptor_lies_at_the_end_of_what_there_is(native_library):
    tables, memory = four_levels(0x50000000 | 1 << 10 | PAGE)
    words = Words(native_library, memory)

    inside, outside = (
        NativeWalker(native_library, Place(words.copier, end=end), Stage(tables)) for end in (0x4028, 0x4027)
    )
    assert inside.walk(IOVA, R).output == 0x50000567
    fault = outside.walk(IOVA, R)
    assert (fault.kind, fault.cause.address) == (WalkFaultKind.READ, 0x4020)


BEGIN = """
    import ctypes, mmap, os, sys, time
    from pathlib import Path
    from pviommu.engine import Access
    from pviommu.engine.formats import arm_stage1
    from pviommu.engine.stages import Stage
    from pviommu.engine.walk import Leaf, WalkFaultKind
    from pviommu.native import library
    from pviommu.native.memory import NativeCopier
    from pviommu.native.walk import NativeWalker, Place

    lib = library.load(Path(sys.argv[1]))
"""
HAMMER = """
    shared = mmap.mmap(-1, 1 << 16)
    words = (ctypes.c_uint64 * (1 << 13)).from_buffer(shared)
    copier = NativeCopier(lib)
    copier.add(0, 1 << 16, ctypes.addressof(words))
    tables = arm_stage1(12, 48, 0x1000, 48, updates_access=True)
    words[0x200], words[0x400], words[0x600] = 0x2003, 0x3003, 0x4003
    leaves = 0x12345000 | 3, 0x67890000 | 3
    words[0x800] = leaves[0]
    end = time.monotonic() + float(sys.argv[2])
    child = os.fork()
    while not child:
        for leaf in leaves * 1000:
            words[0x800] = leaf
        if time.monotonic() > end:
            os._exit(0)
    walker, kinds = NativeWalker(lib, Place(copier), Stage(tables), updates=True), set()
    while time.monotonic() < end:
        found = walker.walk(0x10, Access.READ)
        if isinstance(found, Leaf):
            assert found.descriptor in [leaf | 1 << 10 for leaf in leaves], found
            assert found.output == found.descriptor & ~0xFFF | 0x10, found
        else:
            assert found.kind is WalkFaultKind.CONTENDED, found
        kinds.add(type(found))
    os.waitpid(child, 0)
    assert Leaf in kinds
"""


def run(native_library, program, *arguments):
    """In a process of its own: what is wrong there would end this one."""
    path = native_library._library._name
    command = [sys.executable, "-c", textwrap.dedent(BEGIN + program), path, *arguments]
    outcome = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert (outcome.returncode, outcome.stderr) == (0, "")


def test_a_leaf_that_somebody_writes_all_the_time_is_one_that_was_there(native_library):
    run(native_library, HAMMER, "0.3")


VANISHING = """
    fd = os.memfd_create("ram")
    os.ftruncate(fd, 8 << 12)
    mapped = mmap.mmap(fd, 8 << 12)
    words = (ctypes.c_uint64 * (4 << 10)).from_buffer(mapped)
    copier = NativeCopier(lib)
    copier.add(0, 8 << 12, ctypes.addressof(words), may_vanish=True)
    words[0x200], words[0x400], words[0x600], words[0x800] = 0x2003, 0x3003, 0x4003, 0x12345003
    walker = NativeWalker(lib, Place(copier), Stage(arm_stage1(12, 48, 0x1000, 48, updates_access=True)), updates=True)
    assert walker.walk(0x10, Access.READ).descriptor == 0x12345403
    assert words[0x800] == 0x12345403
    for pages, level in ((4, 3), (2, 1)):
        os.ftruncate(fd, pages << 12)
        for found in (walker.walk(0x10, Access.READ), walker.translate(0x10, 16, Access.READ)[1]):
            assert (found.kind, found.level) == (WalkFaultKind.READ, level), found
            assert found.cause.address == found.place == pages << 12, found
    copier.remove(0, 8 << 12)
    assert walker.walk(0x10, Access.READ).place == 0x1000
    keep = mmap.mmap(-1, 1 << 15)
    other = (ctypes.c_uint64 * (4 << 10)).from_buffer(keep)
    copier.add(0, 1 << 15, ctypes.addressof(other))
    assert walker.walk(0x10, Access.READ).kind is WalkFaultKind.NOT_PRESENT
"""


def test_a_table_whose_memory_goes_away_cannot_be_read(native_library):
    run(native_library, VANISHING)


# -- beside Python's ------------------------------------------------------------------------------------------------


class Twin:
    """Two stages as Python walks them."""

    def __init__(self, memory, tables, below, updates):
        self.memory, self.tables, self.below, self.updates = memory, tables, below, updates

    def _place(self, place, access):
        if self.below is None:
            return place
        update = self._update_directly if self.updates else None
        leaf = python_walk(self.below, place, access, self._read_directly, update)
        return leaf.output if isinstance(leaf, Leaf) else Unreadable(place, None, leaf)

    def _read_directly(self, place):
        return self.memory[place] if place in self.memory else Unreadable(place)

    def _update_directly(self, place, before, after):
        return self.memory.update(place, before, after)

    def _read(self, place):
        place = self._place(place, R)
        return place if isinstance(place, Unreadable) else self._read_directly(place)

    def _update(self, place, before, after):
        place = self._place(place, RW)
        if isinstance(place, Unreadable) or place not in self.memory:
            return place if isinstance(place, Unreadable) else Unreadable(place)
        return self._update_directly(place, before, after)

    def walk(self, address, access):
        return python_walk(self.tables, address, access, self._read, self._update if self.updates else None)

    def translate(self, address, length, access):
        runs, position, end = [], address, address + length
        while position < end:
            leaf = self.walk(position, access)
            if isinstance(leaf, WalkFault):
                return position, leaf
            output, shift = leaf.output, leaf.shift
            if self.below is not None:
                update = self._update_directly if self.updates else None
                second = python_walk(self.below, output, access, self._read_directly, update)
                if isinstance(second, WalkFault):
                    return position, second
                output, shift = second.output, min(shift, second.shift)
            size = min(end, (position >> shift) + 1 << shift) - position
            add_run(runs, output, size)
            position += size
        return runs


def plain(found):
    """Results that can be compared."""
    if isinstance(found, WalkFault):
        return found.kind, found.level, found.place, plain(found.cause)
    if isinstance(found, Unreadable):
        return found.address, found.refusal, plain(found.below)
    return (found[0], plain(found[1])) if isinstance(found, tuple) and not isinstance(found, Leaf) else found


def agree(lib, case):
    """Python's walker and the one in C find the same, and leave the same memory behind."""
    memory, tables, below, updates, address, length, access = case
    twin, here = Twin(Memory(memory), tables, below, updates), Memory(memory)
    words = Words(lib, here)
    walker = NativeWalker(lib, Place(words.copier), Stage(tables), below and Stage(below), updates=updates)

    assert plain(walker.walk(address, access)) == plain(twin.walk(address, access))
    assert plain(walker.translate(address, length, access)) == plain(twin.translate(address, length, access))
    words.bring_back()
    assert here == twin.memory
    return twin


LENGTHS = st.sampled_from([0, 1, 8, 0x1000, 0x2345, 0x10000, 0x21_0000])
WORDS = st.integers(0, (1 << 64) - 1)


def updating(tables, access, dirty):
    return replace(tables, updates_access=access, updates_dirty=dirty)


@st.composite
def known_formats(draw):
    """One of the formats that there are, with entries that mostly lead on, some of which are garbage."""
    if draw(st.booleans()):
        _, _, _, tables, _, address, memory, access = draw(arm_cases())
    else:
        first, depth, width, user, address, memory, access = draw(intel_cases())
        processors = x86_64(depth, 0, width, unprivileged=user) if first else None
        tables = processors or vtd_second_stage(depth, 0, width)
    for place in draw(st.lists(st.sampled_from([*memory, 0x30000]), max_size=2)):
        memory[place] = draw(WORDS)
    tables = updating(tables, draw(st.booleans()), draw(st.booleans()))
    return memory, tables, None, draw(st.booleans()), address, draw(LENGTHS), access


@settings(deadline=None, max_examples=200)
@given(case=known_formats())
def test_all_formats_are_walked_alike(native_library, case):
    agree(native_library, case)


@st.composite
def patterns(draw):
    mask = draw(st.one_of(st.just(0), st.integers(0, 15), WORDS))
    return Pattern(mask, draw(st.sampled_from([0, mask, mask, mask & 0x55, 1])))


@st.composite
def formats(draw, roots):
    """A format of made-up numbers."""
    shifts = sorted(draw(st.lists(st.integers(8, 40), min_size=1, max_size=6, unique=True)), reverse=True)
    levels = tuple(
        Level(
            draw(st.integers(-3, 9)),
            shift,
            (1 << draw(st.integers(0, 3))) - 1,
            Pattern(0, 0) if place + 1 == len(shifts) else draw(patterns()),
            draw(patterns()),
            draw(st.sampled_from([0xFFFF_FFFF_F000, 0xFFFF_0000, (1 << 52) - (1 << shift)])),
            draw(st.sampled_from([0, 0, 1 << 62, 0xF0])),
            draw(st.integers(0, 9)),
        )
        for place, shift in enumerate(shifts)
    )
    bit = st.sampled_from([0, 1, 2, 4, 0x20, 1 << 60])
    rules = Rules(
        draw(st.sampled_from([1, 3, 0xFF, (1 << 64) - 1])),
        draw(st.sampled_from([0x3_F000, 0xFFFF_F000, 0x3_0000])),
        draw(st.sampled_from([0, 0, 1 << 63])),
        draw(st.sampled_from([0, 0, 0xF00])),
        draw(st.integers(0, 40)),
        Grants(draw(patterns()), draw(patterns())),
        Grants(draw(patterns()), draw(patterns())),
        draw(bit),
        draw(bit),
        draw(st.booleans()),
        draw(patterns()),
        draw(bit),
        draw(bit),
        draw(st.sampled_from([WalkFaultKind.NOT_PRESENT, WalkFaultKind.MALFORMED])),
    )
    bits = draw(st.integers(max(1, shifts[0]), 63))
    flags = (draw(st.booleans()) for _ in range(3))
    return Tables(draw(roots), levels, rules, bits, draw(st.integers(12, 52)), *flags)


PAGES = (0x1000, 0x2000, 0x1_0000, 0x2_0000, 0x3_0000)
PLACES = [page + 8 * each for page in PAGES for each in range(3)]


@st.composite
def unknown_formats(draw):
    roots = st.sampled_from(PAGES)
    tables = draw(formats(roots))
    below = draw(st.one_of(st.none(), formats(roots)))
    entry = st.one_of(st.builds(lambda page, low: page | low, st.sampled_from(PAGES), st.integers(0, 0xFFF)), WORDS)
    memory = Memory({place: draw(entry) for place in PLACES if draw(st.integers(0, 7))})
    address = sum(draw(st.integers(0, 3)) << level.shift for level in tables.levels) + draw(st.integers(0, 300))
    address = draw(st.sampled_from([address, address, address, (1 << 64) - 0x1234])) & (1 << 64) - 1
    length = min(draw(st.integers(0, 1 << tables.levels[-1].shift)), 4000)
    return memory, tables, below, draw(st.booleans()), address, length, draw(ACCESSES)


@settings(deadline=None, max_examples=150)
@given(case=unknown_formats())
def test_a_format_that_nobody_has_heard_of_is_walked_alike(native_library, case):
    agree(native_library, case)


def test_a_format_whose_last_level_leads_on_is_an_error_in_c_too(native_library):
    tables = vtd_second_stage(3, 0x1000, 46)
    tables = replace(tables, levels=tables.levels[:2])
    words = Words(native_library, Memory({0x1000: 0x2003, 0x2000: 0x3003}))
    for stages in ([Stage(tables)], [Stage(arm_stage1(12, 48, 0, 48)), Stage(tables)]):
        walker = NativeWalker(native_library, Place(words.copier), *stages)
        with pytest.raises(ValueError, match="the lowest level of a format has leaves only"):
            walker.translate(0, 1, R)


SECOND_PAGES = (0x0, 0x1_0000, 0x2_0000, 0x4_0000, 0x5_0000)


@st.composite
def nested(draw):
    """A stage 1 whose tables are where a stage 2 says, which maps some pages elsewhere."""
    below = draw(
        st.sampled_from(
            [
                arm_stage2(12, 30, 2, 0x100_0000, 44),
                arm_stage2(12, 39, 1, 0x100_0000, 44),
                vtd_second_stage(3, 0x100_0000, 46),
            ]
        )
    )
    below = updating(below, draw(st.booleans()), draw(st.booleans()))
    is_arm = below.rules.needs_accessed
    memory = Memory()
    table = 0x100_0000
    for _ in below.levels[:-1]:
        memory[table] = table + 0x1000 | 3
        table += 0x1000
    bits = st.sampled_from([0x7C3, 0x7C3, 0x7C3, 0x743, 0x3C3, 0] if is_arm else [3, 3, 3, 1, 0x103, 0])
    dirty = st.sampled_from([0, 0, 1 << 51])
    homes = {}
    for page in {each >> 12 for each in SECOND_PAGES} | {0x4000_0000 >> 12 & 0x1FF}:
        homes[page] = draw(st.sampled_from([page, page + 0x60, 0x70]))
        memory[table + page * 8] = homes[page] << 12 | draw(bits) | draw(dirty)
    tables = updating(arm_stage1(12, draw(st.integers(25, 48)), 0, 44), draw(st.booleans()), draw(st.booleans()))
    for page in (each >> 12 for each in SECOND_PAGES):
        for index in (0, 1):
            target = draw(st.sampled_from([*SECOND_PAGES, 0x4_0000, 0x4000_0000]))
            low = draw(st.sampled_from([0x403, 0x403, 0x403, 0x3, 0x483, 0x401]))
            memory[(homes[page] << 12) + index * 8] = target | low | draw(dirty)
    address = sum(draw(st.integers(0, 1)) << level.shift for level in tables.levels) | draw(st.integers(0, 4095))
    address &= (1 << tables.input_bits) - 1
    return memory, tables, below, draw(st.booleans()), address, draw(LENGTHS), draw(ACCESSES)


@settings(deadline=None, max_examples=200)
@given(case=nested())
def test_two_stages_are_walked_alike(native_library, case):
    agree(native_library, case)


# -- what is below: a domain of the engine ----------------------------------------------------------------------------


@pytest.fixture
def engine(native_library):
    """RAM of 0x200 pages, of which the pages 0x80 to 0x8f are reserved, and a domain that maps some of it."""
    core = NativeCore(native_library)
    engine = Engine(EngineConfig(reserved=(ReservedFrames(0x80, 0x8F, "msi"),)), core)
    engine.set_ram([(0, 0x1FF)])
    assert engine.alloc_paging(1) is None
    for page, gfn, access in ((1, 0x11, RW), (2, 0x12, RW), (3, 0x13, R), (4, 0x14, RW), (5, 0x100, RW), (6, 0x180, R)):
        assert engine.map(1, page, gfn, 1, access).ok
    return engine


def below(native_library, engine, tables, memory, domain, **how):
    words = Words(native_library, memory)
    walker = NativeWalker(native_library, Place(words.copier, engine._core, domain), Stage(tables), **how)
    return walker, words


TWO_PAGES = {0x11008: 0x2003, 0x12010: 0x3003, 0x13018: 0x4003, 0x14020: 0x5403, 0x14028: 0x6403, 0x14030: 0x7403}


def test_tables_and_what_they_lead_to_are_where_a_domain_has_them(native_library, engine):
    tables = arm_stage1(12, 48, 0x1000, 48)
    walker, _words = below(native_library, engine, tables, Memory(TWO_PAGES), 1)

    assert walker.translate(IOVA, 0x100, RW) == [Run(0x100567, 0x100)]
    assert walker.translate(IOVA, 0x1000, R) == [Run(0x100567, 0xA99), Run(0x180000, 0x567)]
    at, why = walker.translate(IOVA, 0x1000, RW)
    assert (at, why.address, why.refusal) == (IOVA - 0x567 + 0x1000, 0x6000, Refusal.NO_PERMISSION)
    at, why = walker.translate(IOVA, 0x2000, R)
    assert (at, why.address, why.refusal) == (IOVA - 0x567 + 0x2000, 0x7000, Refusal.NOT_MAPPED)
    assert engine.unmap(1, 3, 1).ok
    at, why = walker.translate(IOVA, 0x100, R)
    assert (at, why.kind, why.level, why.place) == (IOVA, WalkFaultKind.READ, 2, 0x3018)
    assert (why.cause.address, why.cause.refusal) == (0x3018, Refusal.NOT_MAPPED)


def test_a_table_that_the_domain_only_lets_read_cannot_be_updated(native_library, engine):
    tables = arm_stage1(12, 48, 0x1000, 48, updates_access=True)
    memory = Memory(TWO_PAGES)
    walker, _words = below(native_library, engine, tables, memory, 1, updates=True)
    assert walker.walk(IOVA, R).output == 0x5567

    assert engine.unmap(1, 4, 1).ok
    assert engine.map(1, 4, 0x14, 1, R).ok
    memory[0x14020] = 0x5003
    walker, _words = below(native_library, engine, tables, memory, 1, updates=True)
    fault = walker.walk(IOVA, R)

    assert fault[:3] == (WalkFaultKind.READ, 3, 0x4020)
    assert fault.cause.refusal is Refusal.NO_PERMISSION


def test_with_the_identity_domain_tables_and_outputs_are_ram_that_is_not_reserved(native_library, engine):
    tables = vtd_second_stage(3, 0x1000, 46)
    memory = Memory({0x1000: 0x2003, 0x2000: 0x3003, 0x2008: 0x8_0003})
    memory |= {0x3000: 0x8_0003, 0x3008: 0x40_0003, 0x3010: 0x5003}
    walker, _words = below(native_library, engine, tables, memory, 0)

    assert walker.translate(0x2000, 0x1000, RW) == [Run(0x5000, 0x1000)]
    for iova, refusal, address in ((0, Refusal.RESERVED, 0x8_0000), (0x1000, Refusal.NOT_MAPPED, 0x40_0000)):
        at, why = walker.translate(iova, 1, R)
        assert (at, why.address, why.refusal) == (iova, address, refusal)
    fault = walker.walk(0x20_0000, R)
    assert (fault.kind, fault.place, fault.cause.refusal) == (WalkFaultKind.READ, 0x8_0000, Refusal.RESERVED)


def test_a_megabyte_of_scattered_pages_is_one_call(native_library, engine, monkeypatch):
    tables = vtd_second_stage(3, 0x1000, 46)
    memory = Memory({0x1000: 0x2003, 0x2000: 0x3003})
    memory |= {0x3000 + 8 * page: (page * 2 % 0x7F) << 12 | 3 for page in range(256)}
    walker, _words = below(native_library, engine, tables, memory, 0)
    calls = []

    class Counting:
        def pv_walker_span(self, *arguments):
            calls.append(arguments)
            return native_library.pv_walker_span(*arguments)

    monkeypatch.setattr(walker, "_lib", Counting())
    found = walker.translate(0, 1 << 20, RW)

    assert [run.gpa >> 12 for run in found] == [page * 2 % 0x7F for page in range(256)]
    assert len(calls) == 1


def test_more_runs_than_one_call_finds_come_all(native_library):
    tables = vtd_second_stage(3, 0x1000, 46)
    memory = Memory({0x1000: 0x2003} | {0x2000 + 8 * each: 0x10_0000 * (each + 1) | 3 for each in range(5)})
    for page in range(5 * 512):
        memory[0x10_0000 * (page // 512 + 1) + 8 * (page % 512)] = page << 13 | 3
    words = Words(native_library, Memory(memory))

    found = NativeWalker(native_library, Place(words.copier), Stage(tables)).translate(0x10, 0x9F_FFE0, R)

    assert list(found) == Twin(memory, tables, None, False).translate(0x10, 0x9F_FFE0, R)
    assert len(found) == 2560


# -- formats are data -------------------------------------------------------------------------------------------------


FORMATS = {"arm", "smmu", "intel", "vtd", "x86", "aarch64", "af", "ap", "dbm", "ng", "asid", "vmid"}


@pytest.mark.parametrize(
    ("name", "own"),
    [("walk.c", set()), ("walk.h", {6, 8}), ("tlb.c", {3, 21, 64}), ("commands.c", {64}), ("commands.h", {256})],
)
def test_no_format_is_in_the_sources_of_the_walker(name, own):
    """0 to 2 stand for none, one and a pair; 6 and 8 are the most levels and attempts; 3, 21 and 64 are of a hash; a
    word has 64 bits, a byte 256 values.
    """
    words = {word.lower() for word in re.findall(r"[A-Za-z0-9]+", code(name).replace("_", " "))}

    assert numbers(code(name)) - {0, 1, 2} == own
    assert not words & FORMATS


def test_python_and_c_try_a_descriptor_alike_often():
    assert library.WALK_ATTEMPTS == ATTEMPTS
    defines = dict(re.findall(r"#define\s+(\w+)\s+(\d+)", code("walk.h")))
    assert (defines["PV_WALK_LEVELS"], defines["PV_WALK_ATTEMPTS"]) == (str(library.WALK_LEVELS), str(ATTEMPTS))


@pytest.mark.parametrize(
    ("tables", "rule"),
    [
        (replace(arm_stage1(12, 48, 0, 48), levels=()), "tables of 0 levels: must be 1..6"),
        (replace(arm_stage1(12, 48, 0, 48), levels=arm_stage1(12, 48, 0, 48).levels * 2), "of 8 levels: must be 1..6"),
        (replace(arm_stage1(12, 48, 0, 48), input_bits=64), "a shift or a width of 64 bits: must be 0..63"),
    ],
)
def test_a_format_that_c_has_no_room_for_is_refused(native_library, tables, rule):
    with pytest.raises(ValueError, match=rule):
        NativeWalker(native_library, Place(NativeCopier(native_library)), Stage(tables))
