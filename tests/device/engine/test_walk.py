"""The walker, by vectors from the architectures' rules, and against a second one that is written out by hand."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pviommu.engine import Access, Run
from pviommu.engine.formats import arm_stage1, arm_stage2, vtd_second_stage, x86_64
from pviommu.engine.walk import (
    ATTEMPTS,
    Halves,
    Leaf,
    ReadRefusal,
    WalkFault,
    WalkFaultKind,
    translate,
    walk,
)

R, W, RW = Access.READ, Access.WRITE, Access.READ | Access.WRITE
AF, RO, USER = 1 << 10, 1 << 7, 1 << 6
DBM, CONTIGUOUS = 1 << 51, 1 << 52
PAGE, TABLE, BLOCK = 3, 3, 1


class Abort(ReadRefusal):
    """There is nothing at the address."""


class Memory(dict[int, int]):
    """Descriptors by address; whatever is not there cannot be read."""

    def read(self, place: int) -> int | ReadRefusal:
        return self.get(place, Abort())

    def update(self, place: int, before: int, after: int) -> int | ReadRefusal:
        found = self[place]
        if found == before:
            self[place] = after
        return found


QOS = Memory(
    {
        0x4E4D0000: 0x800000004E4D1003,
        0x4E4D0008: 0x800000004E4D1003,
        0x4E4D1008: 0x800000004E4D2003,
        0x4E4D1010: 0x800000004E4D2003,
        0x4E4D2018: 0x800000004E4D3003,
        0x4E4D3020: 0x040000004ECBA763,
        0x4E4D2390: 0x800000004E4D3003,
    }
)
"""QEMU's iommu-smmuv3 qtest: 0x8080604567 is at 0x4ecba567."""
IOVA = 0x8080604567


def four_levels(leaf: int, *, middle: int = 0, **how: object):
    """A 4 KiB page of a 48-bit stage 1 at :data:`IOVA`, whose level 2 descriptor has the bits `middle` too."""
    tables = arm_stage1(12, 48, 0x1000, 44, **how)
    return tables, Memory({0x1008: 0x2003, 0x2010: 0x3003, 0x3018: 0x4003 | middle, 0x4020: leaf})


def test_the_table_of_qemus_own_test_leads_where_qemu_says():
    leaf = walk(arm_stage1(12, 48, 0x4E4D0000, 44), IOVA, W, QOS.read)

    assert leaf == Leaf(0x4ECBA567, 12, RW, 12, 3, 0x040000004ECBA763)


@pytest.mark.parametrize(("bits", "access"), [(0x7E3, RW), (0x763, R), (0x7A3, W), (0x723, Access(0))])
def test_stage_2_has_a_bit_for_reading_and_one_for_writing(bits, access):
    memory = Memory({0x1008: 0x2003, 0x2010: 0x3003, 0x3018: 0x4003, 0x4020: 0x50000000 | bits})
    tables = arm_stage2(12, 48, 0, 0x1000, 48)

    for asked in (R, W, RW):
        found = walk(tables, IOVA, asked, memory.read)
        if asked & ~access:
            assert found == WalkFault(WalkFaultKind.PERMISSION, 3, 0x4020)
        else:
            assert (found.output, found.access) == (0x50000567, access)


@pytest.mark.parametrize(
    ("granule", "bits", "start"),
    # the level at which a walk begins, and the entries that its table has there
    [
        (12, 32, (1, 4)),
        (12, 36, (1, 64)),
        (12, 40, (0, 2)),
        (12, 42, (0, 8)),
        (12, 44, (0, 32)),
        (12, 48, (0, 512)),
        (14, 32, (2, 128)),
        (14, 36, (2, 2048)),
        (14, 40, (1, 16)),
        (14, 42, (1, 64)),
        (14, 44, (1, 256)),
        (14, 48, (0, 2)),
        (16, 32, (2, 8)),
        (16, 36, (2, 128)),
        (16, 40, (2, 2048)),
        (16, 42, (2, 8192)),
        (16, 44, (1, 4)),
        (16, 48, (1, 64)),
    ],
)
def test_a_stage_1_begins_at_the_level_that_its_size_needs(granule, bits, start):
    tables = arm_stage1(granule, bits, 0xFFFF_FFFF, 48)
    level, entries = start
    last = (1 << bits) - 8

    refused = walk(tables, last, R, Memory().read)

    assert tables.root == 0x1_0000_0000 - entries * 8
    assert refused == WalkFault(WalkFaultKind.READ, level, 0x1_0000_0000 - 8, refused.cause)
    assert walk(tables, 1 << bits, R, Memory().read) == WalkFault(WalkFaultKind.INPUT, level)


@pytest.mark.parametrize(
    ("granule", "level", "size"),
    [(12, 0, 0), (12, 1, 30), (12, 2, 21), (14, 0, 0), (14, 1, 0), (14, 2, 25), (16, 1, 0), (16, 2, 29)],
)
def test_blocks_are_where_the_architecture_has_them(granule, level, size):
    memory = Memory()
    tables = arm_stage1(granule, 48, 0x10_0000, 48)
    for each in tables.levels:
        memory[0x10_0000 * (each.number + 1)] = 0x10_0000 * (each.number + 2) | TABLE
    first = tables.levels[0].number
    tables = replace(tables, root=0x10_0000 * (first + 1))
    place = 0x10_0000 * (level + 1)
    memory[place] = 0x8000_0000_0000 | AF | BLOCK

    found = walk(tables, 0x123, R, memory.read)

    if size:
        assert (found.output, found.shift, found.level) == (0x8000_0000_0123, size, level)
    else:
        assert found == WalkFault(WalkFaultKind.NOT_PRESENT, level, place)


def test_the_block_bits_below_its_size_are_ignored():
    memory = Memory({0x1000: 0x2003, 0x2000: 0x3003, 0x3000: 0x4030_0000 | AF | BLOCK})

    assert walk(arm_stage1(12, 48, 0x1000, 48), 0x1F_FFFF, R, memory.read).output == 0x403F_FFFF


def test_bits_01_are_a_block_above_and_nothing_at_the_last_level():
    tables, memory = four_levels(0x50000000 | AF | BLOCK)

    assert walk(tables, IOVA, R, memory.read) == WalkFault(WalkFaultKind.NOT_PRESENT, 3, 0x4020)


@pytest.mark.parametrize("level", range(4))
def test_an_invalid_descriptor_is_found_at_its_level(level):
    tables, memory = four_levels(0x50000000 | AF | PAGE)
    place = list(memory)[level]
    memory[place] &= ~1

    assert walk(tables, IOVA, R, memory.read) == WalkFault(WalkFaultKind.NOT_PRESENT, level, place)


@pytest.mark.parametrize("level", range(4))
def test_what_cannot_be_read_is_told_with_its_cause(level):
    tables, memory = four_levels(0x50000000 | AF | PAGE)
    place = list(memory)[level]
    why = Abort()

    fault = walk(tables, IOVA, R, lambda at: why if at == place else memory[at])

    assert fault == WalkFault(WalkFaultKind.READ, level, place, why)
    assert fault.cause is why


@pytest.mark.parametrize(
    ("leaf", "access", "kind"),
    [
        (AF, W, None),
        (0, R, WalkFaultKind.ACCESS_FLAG),
        (RO, W, WalkFaultKind.ACCESS_FLAG),
        (AF | RO, W, WalkFaultKind.PERMISSION),
        (AF | RO, R, None),
        (1 << 44, R, WalkFaultKind.OUTPUT),
        (1 << 44 | RO, W, WalkFaultKind.OUTPUT),
    ],
)
def test_output_size_comes_before_access_flag_before_permission(leaf, access, kind):
    tables, memory = four_levels(0x50000000 | PAGE | leaf)

    found = walk(tables, IOVA, access, memory.read)

    assert (found.kind if isinstance(found, WalkFault) else None) is kind


def test_a_table_beyond_the_output_size_is_not_read():
    tables, memory = four_levels(0, middle=1 << 44)

    assert walk(tables, IOVA, R, memory.read) == WalkFault(WalkFaultKind.OUTPUT, 2, 0x3018)


def test_without_a_check_of_the_access_flag_it_need_not_be_set():
    tables, memory = four_levels(0x50000000 | PAGE, checks_access=False)

    assert walk(tables, IOVA, W, memory.read).access == RW


@pytest.mark.parametrize(
    ("ap_table", "how", "access"),
    [
        (0b00, {}, RW),
        (0b10, {}, R),
        (0b10, {"hierarchical": False}, RW),
        (0b01, {}, RW),
        (0b01, {"unprivileged": True}, Access(0)),
        (0b10, {"unprivileged": True}, R),
        (0b11, {"unprivileged": True, "hierarchical": False}, RW),
    ],
)
def test_tables_limit_what_is_below_them_unless_that_is_turned_off(ap_table, how, access):
    tables, memory = four_levels(0x50000000 | AF | USER | PAGE, middle=ap_table << 61, **how)

    for asked in (R, W):
        found = walk(tables, IOVA, asked, memory.read)
        assert isinstance(found, Leaf) == bool(asked & access)


@pytest.mark.parametrize(
    ("leaf", "access"), [(AF, Access(0)), (AF | RO, Access(0)), (AF | USER, RW), (AF | USER | RO, R)]
)
def test_an_unprivileged_access_needs_the_users_bit(leaf, access):
    tables, memory = four_levels(0x50000000 | PAGE | leaf, unprivileged=True)

    for asked in (R, W):
        found = walk(tables, IOVA, asked, memory.read)
        assert isinstance(found, Leaf) == bool(asked & access)


@pytest.mark.parametrize(
    ("granule", "level", "bits"),
    [(12, 3, 16), (12, 2, 25), (12, 1, 34), (14, 3, 21), (14, 2, 30), (16, 3, 21), (16, 2, 34)],
)
def test_the_contiguous_bit_makes_entries_one_block(granule, level, bits):
    tables = arm_stage1(granule, 48, 0x10_0000, 48)
    memory = Memory()
    for each in tables.levels:
        memory[0x10_0000 * (each.number + 1)] = 0x10_0000 * (each.number + 2) | TABLE
    tables = replace(tables, root=0x10_0000 * (tables.levels[0].number + 1))
    memory[0x10_0000 * (level + 1)] = AF | CONTIGUOUS | (PAGE if level == 3 else BLOCK)

    assert walk(tables, 0, R, memory.read).contiguous == bits


def test_contiguous_entries_do_not_reach_beyond_the_input_addresses():
    tables = arm_stage1(12, 32, 0x1000, 48)

    assert walk(tables, 0, R, Memory({0x1000: AF | CONTIGUOUS | BLOCK}).read).contiguous == 32


def test_sixteen_tables_may_be_the_first_level_of_a_stage_2():
    tables = arm_stage2(12, 43, 1, 0x2_1234, 48)
    memory = Memory({0x2_0000 + 8 * (15 << 9 | 511): 0x4000_0000 | AF | 3 << 6 | BLOCK})

    assert tables.root == 0x2_0000
    assert walk(tables, (1 << 43) - 1, R, memory.read).output == 0x7FFF_FFFF
    assert walk(tables, 1 << 43, R, memory.read) == WalkFault(WalkFaultKind.INPUT, 1)


def test_with_64_kib_pages_the_upper_bits_of_52_are_below_the_page():
    memory = Memory(
        {0x2000 + 8: 0x3_0000 | 0x5000 | TABLE, 0x5_0000_0000_0000 | 0x3_0000: 0x7234_0000 | 0xF000 | AF | 1}
    )
    tables = arm_stage1(16, 48, 0x2000, 52, wide=True)

    found = walk(tables, 1 << 42 | 0x56_0789, R, memory.read)

    assert (found.output, found.shift) == (0xF_0000_6056_0789, 29)
    assert walk(replace(tables, output_bits=48), 1 << 42, R, memory.read).kind is WalkFaultKind.OUTPUT


@pytest.mark.parametrize(("granule", "first", "block"), [(12, -1, 0), (14, 0, 1), (16, 1, 1)])
def test_52_bits_of_input_begin_a_level_earlier_and_have_larger_blocks(granule, first, block):
    tables = arm_stage1(granule, 52, 0, 52, wide=True)

    assert tables.levels[0].number == first
    assert [each.number for each in tables.levels if each.leaf.fits(BLOCK)] == list(range(block, 3))


def test_with_small_pages_bits_51_and_50_are_in_bits_9_and_8():
    tables = arm_stage1(12, 52, 0x1000, 52, wide=True)
    memory = Memory({0x1000: 0x2003, 0x2000: 0x2_0000_0000_0000 | 0x100 | AF | BLOCK})

    assert walk(tables, 0x9, R, memory.read).output == 0x4_0000_0000_0000 | 0x2_0000_0000_0000 | 0x9


# -- hardware update ------------------------------------------------------------------------------------------------


def test_an_update_sets_the_access_flag_instead_of_a_fault():
    tables, memory = four_levels(0x50000000 | PAGE, updates_access=True)

    assert walk(tables, IOVA, R, memory.read).kind is WalkFaultKind.ACCESS_FLAG
    found = walk(tables, IOVA, R, memory.read, memory.update)

    assert found.descriptor == memory[0x4020] == 0x50000000 | PAGE | AF


@pytest.mark.parametrize("stage", [1, 2])
def test_a_write_makes_a_clean_leaf_dirty_and_a_read_does_not(stage):
    clean = 0x50000000 | AF | PAGE | DBM | (RO | USER if stage == 1 else 1 << 6)
    _, memory = four_levels(clean)
    make = arm_stage1 if stage == 1 else lambda *a, **k: arm_stage2(a[0], a[1], 0, *a[2:], **k)
    tables = make(12, 48, 0x1000, 44, updates_access=True, updates_dirty=True)

    assert walk(tables, IOVA, R, memory.read, memory.update).access == R
    assert memory[0x4020] == clean
    assert walk(tables, IOVA, W, memory.read).kind is WalkFaultKind.PERMISSION
    assert walk(tables, IOVA, W, memory.read, memory.update).access == RW
    assert memory[0x4020] == clean ^ RO
    assert walk(replace(tables, updates_dirty=False), IOVA, R, memory.read).access == RW


def test_a_refused_access_updates_nothing():
    tables, memory = four_levels(0x50000000 | PAGE | RO, updates_access=True, updates_dirty=True)
    before = dict(memory)

    assert walk(tables, IOVA, W, memory.read, memory.update).kind is WalkFaultKind.PERMISSION
    assert memory == before


def test_a_read_only_table_keeps_a_clean_leaf_clean():
    tables, memory = four_levels(
        0x50000000 | PAGE | AF | RO | DBM, middle=1 << 62, updates_access=True, updates_dirty=True
    )

    assert walk(tables, IOVA, W, memory.read, memory.update).kind is WalkFaultKind.PERMISSION
    assert memory[0x4020] & RO


def test_a_descriptor_that_changes_before_its_update_is_judged_again():
    tables, memory = four_levels(0x50000000 | PAGE, updates_access=True)
    others = [0x60000000 | PAGE, 0x60000000]

    def update(place, before, after):
        memory[place] = others.pop(0)
        return memory[place]

    assert walk(tables, IOVA, R, memory.read, update) == WalkFault(WalkFaultKind.NOT_PRESENT, 3, 0x4020)
    assert others == []


def test_a_descriptor_that_always_changes_ends_the_walk():
    tables, memory = four_levels(0x50000000 | PAGE, updates_access=True)
    tries = []

    def update(place, before, after):
        tries.append(place)
        return before + 0x1000

    assert walk(tables, IOVA, R, memory.read, update) == WalkFault(WalkFaultKind.CONTENDED, 3, 0x4020)
    assert len(tries) == ATTEMPTS


def test_an_update_that_is_refused_is_a_read_that_is_refused():
    tables, memory = four_levels(0x50000000 | PAGE, updates_access=True)
    why = Abort()

    assert walk(tables, IOVA, R, memory.read, lambda *_: why) == WalkFault(WalkFaultKind.READ, 3, 0x4020, why)


# -- Intel ----------------------------------------------------------------------------------------------------------


def vtd(leaf, *, middle=0, depth=4, **how):
    tables = vtd_second_stage(depth, 0x1000, 46, **how)
    places = {0x1008: 0x2003, 0x2010: 0x3003, 0x3018: 0x4003 | middle, 0x4020: leaf}
    return tables, Memory(places)


@pytest.mark.parametrize(("leaf", "access"), [(3, RW), (1, R), (2, W)])
def test_vtds_second_stage_reads_and_writes_by_bit(leaf, access):
    tables, memory = vtd(0x50000000 | leaf)

    for asked in (R, W):
        found = walk(tables, IOVA, asked, memory.read)
        if asked & access:
            assert found == Leaf(0x50000567, 12, access, 12, 1, 0x50000000 | leaf)
        else:
            assert found == WalkFault(WalkFaultKind.PERMISSION, 1, 0x4020)


def test_vtds_tables_limit_what_is_below():
    tables, memory = vtd(0x50000003)
    memory[0x2010] &= ~2

    assert walk(tables, IOVA, W, memory.read) == WalkFault(WalkFaultKind.PERMISSION, 1, 0x4020)
    assert walk(tables, IOVA, R, memory.read).access == R


def test_without_reading_and_writing_nothing_is_present():
    tables, memory = vtd(0x50000000)

    assert walk(tables, IOVA, R, memory.read) == WalkFault(WalkFaultKind.NOT_PRESENT, 1, 0x4020)


@pytest.mark.parametrize("make", [vtd_second_stage, x86_64])
@pytest.mark.parametrize(("level", "shift"), [(3, 30), (2, 21)])
def test_intels_large_leaves(make, level, shift):
    memory = Memory({0x1000: 0x2007, 0x2000: 0x3007})
    place = {3: 0x2000, 2: 0x3000}[level]
    memory[place] = 0x1_0000_0000 | 0x87
    tables = make(4, 0x1000, 46, updates=False)

    assert (found := walk(tables, 0x12_3456, R, memory.read)).output == 0x1_0012_3456
    assert (found.shift, found.level) == (shift, level)
    memory[place] |= 1 << 20
    assert walk(tables, 0, R, memory.read) == WalkFault(WalkFaultKind.MALFORMED, level, place)


@pytest.mark.parametrize("make", [vtd_second_stage, x86_64])
def test_reserved_bits_of_intels_descriptors(make):
    tables = make(4, 0x1000, 46, updates=False)

    for place, bad in ((0x1008, 1 << 7), (0x1008, 1 << 46), (0x2010, 1 << 51), (0x4020, 1 << 46)):
        memory = Memory({0x1008: 0x2007, 0x2010: 0x3007, 0x3018: 0x4007, 0x4020: 0x50000007})
        assert walk(tables, IOVA, R, memory.read).output == 0x50000567
        memory[place] |= bad
        assert walk(tables, IOVA, R, memory.read).kind is WalkFaultKind.MALFORMED


@pytest.mark.parametrize("depth", [3, 4, 5])
def test_the_depth_of_a_second_stage_says_how_many_bits_it_translates(depth):
    tables = vtd_second_stage(depth, 0x1FFF, 46)

    assert (tables.root, tables.input_bits) == (0x1000, {3: 39, 4: 48, 5: 57}[depth])
    assert walk(tables, 1 << tables.input_bits, R, Memory().read) == WalkFault(WalkFaultKind.INPUT, depth)


@pytest.mark.parametrize("depth", [4, 5])
def test_addresses_of_processors_are_canonical(depth):
    tables = x86_64(depth, 0x1000, 46)
    half = 1 << tables.input_bits - 1

    for address, entry in ((half - 8, 0xFF), ((1 << 64) - half, 0x100), ((1 << 64) - 8, 0x1FF)):
        assert walk(tables, address, R, Memory().read).place == 0x1000 + 8 * entry
    for address in (half, (1 << 64) - half - 1, 1 << 63):
        assert walk(tables, address, R, Memory().read) == WalkFault(WalkFaultKind.INPUT, depth)


@pytest.mark.parametrize(("leaf", "privileged", "user"), [(7, RW, RW), (5, R, R), (3, RW, 0), (1, R, 0)])
def test_processors_pages_of_users(leaf, privileged, user):
    memory = Memory({0x1008: 0x2007, 0x2010: 0x3007, 0x3018: 0x4007, 0x4020: 0x50000000 | leaf})

    for unprivileged, access in ((False, privileged), (True, user)):
        tables = x86_64(4, 0x1000, 46, unprivileged=unprivileged, updates=False)
        for asked in (R, W):
            assert isinstance(walk(tables, IOVA, asked, memory.read), Leaf) == bool(asked & access)


@pytest.mark.parametrize(("make", "accessed", "dirty"), [(x86_64, 1 << 5, 1 << 6), (vtd_second_stage, 1 << 8, 1 << 9)])
def test_intels_accessed_bits_are_set_on_the_way_and_the_dirty_bit_by_a_write(make, accessed, dirty):
    before = {0x1008: 0x2007, 0x2010: 0x3007, 0x3018: 0x4007, 0x4020: 0x50000007}
    memory = Memory(before)
    tables = make(4, 0x1000, 46, updates=True)

    assert walk(tables, IOVA, R, memory.read, memory.update).access == R
    assert memory == {place: entry | accessed for place, entry in before.items()}
    assert walk(tables, IOVA, W, memory.read, memory.update).access == RW
    assert memory[0x4020] == 0x50000007 | accessed | dirty
    assert walk(replace(tables, updates_dirty=False), IOVA, R, Memory(before).read).access == RW


# -- spans, halves --------------------------------------------------------------------------------------------------


def test_a_span_is_runs_of_which_adjacent_ones_are_joined():
    tables = vtd_second_stage(3, 0x1000, 46)
    memory = Memory({0x1000: 0x2003, 0x2000: 0x3003, 0x3000: 0x9003, 0x3008: 0xA003, 0x3010: 0xF003, 0x3018: 0xF001})

    assert translate(tables, 0xF00, 0x1200, R, memory.read) == [Run(0x9F00, 0x1100), Run(0xF000, 0x100)]
    assert translate(tables, 0xF00, 0x2101, W, memory.read) == (0x3000, WalkFault(WalkFaultKind.PERMISSION, 1, 0x3018))
    assert translate(tables, 0, 0, R, memory.read) == []


LOW, HIGH = arm_stage1(12, 39, 0x1000, 48), arm_stage1(14, 36, 0x2000, 48)


@pytest.mark.parametrize(
    ("address", "halves", "chosen"),
    [
        (0x7F_FFFF_FFFF, Halves(LOW, HIGH), (LOW, 0x7F_FFFF_FFFF)),
        (0x80_0000_0000, Halves(LOW, HIGH), None),
        (0xFFFF_FFF0_0000_0123, Halves(LOW, HIGH), (HIGH, 0x123)),
        (0xFFFF_FFEF_FFFF_FFFF, Halves(LOW, HIGH), None),
        (0x7FFF_FFF0_0000_0123, Halves(LOW, HIGH), None),
        (0x123, Halves(None, HIGH), None),
        (0xFFFF_FFF0_0000_0123, Halves(LOW, None), None),
        (0xAB00_0000_0000_0123, Halves(LOW, HIGH), None),
        (0xAB00_0000_0000_0123, Halves(LOW, HIGH, (True, False)), (LOW, 0x123)),
        (0x00FF_FFF0_0000_0123, Halves(LOW, HIGH, (True, False)), None),
        (0x00FF_FFF0_0000_0123, Halves(LOW, HIGH, (False, True)), (HIGH, 0x123)),
        (0x00FF_FFE0_0000_0123, Halves(LOW, HIGH, (False, True)), None),
        (0x0080_0000_0000_0123, Halves(LOW, HIGH, (True, True)), None),
    ],
)
def test_bit_55_chooses_the_half_and_the_bits_above_the_tables_must_agree(address, halves, chosen):
    assert halves.choose(address) == chosen


# -- against a second walker ----------------------------------------------------------------------------------------


def naive_arm(
    stage, granule, bits, start, root, output_bits, wide, hierarchical, user, checks, address, access, memory
):
    """As the architecture's pseudocode goes, level by level: ("ok", output, size) or a kind and a level."""
    if address >= 2**bits:
        return "INPUT", start
    size_of = {12: {3: 12, 2: 21, 1: 30, 0: 39, -1: 48}, 14: {3: 14, 2: 25, 1: 36, 0: 47}, 16: {3: 16, 2: 29, 1: 42}}
    blocks = {12: [1, 2], 14: [2], 16: [2]}[granule] + ({12: [0], 14: [1], 16: [1]}[granule] if wide else [])
    table, may_write, may_user = root, True, True
    for level in range(start, 4):
        size = size_of[granule][level]
        index = (address % 2 ** (size_of[granule].get(level - 1, 64) if level > start else 64)) // 2**size
        entry = memory.get(table + index * 8)
        if entry is None:
            return "READ", level
        kind = entry % 4
        if kind in (0, 2) or (level == 3 and kind == 1) or (kind == 1 and level not in blocks):
            return "NOT_PRESENT", level
        is_leaf = level == 3 or kind == 1
        unit = size if is_leaf else granule
        out = entry // 2**unit * 2**unit % 2**48
        if wide and granule == 16:
            out += entry // 2**12 % 16 * 2**48
        elif wide:
            out += (entry // 2**48 % 4) * 2**48 + (entry // 2**8 % 4) * 2**50
        if out >= 2**output_bits:
            return "OUTPUT", level
        if not is_leaf:
            if stage == 1 and hierarchical:
                may_write = may_write and not entry >> 62 & 1
                may_user = may_user and not entry >> 61 & 1
            table = out
            continue
        if checks and not entry >> 10 & 1:
            return "ACCESS_FLAG", level
        if stage == 1:
            readable = not user or (bool(entry >> 6 & 1) and may_user)
            writable = readable and may_write and not entry >> 7 & 1
        else:
            readable, writable = bool(entry >> 6 & 1), bool(entry >> 7 & 1)
        if (access & R and not readable) or (access & W and not writable):
            return "PERMISSION", level
        return "ok", out + address % 2**size, size
    raise AssertionError("a last level has leaves only")


def outcome(found):
    if isinstance(found, WalkFault):
        return found.kind.name, found.level
    return "ok", found.output, found.shift


TABLES_AT = (0, 0x10000, 0x20000)
ACCESSES = st.sampled_from([R, W, RW])


@st.composite
def memories(draw, granule):
    """Entries 0 and 1 of few tables, which lead mostly to each other."""
    bits = st.sampled_from([0, AF, AF, AF | USER, AF | USER, AF | RO, AF | RO | USER, USER, RO])
    tops = st.sampled_from([0, 0, 0, 1 << 61, 1 << 62, 1 << 45, 1 << 49, 0x300, 0x5000, 1 << 52, 1 << 51])
    memory = Memory()
    for table in TABLES_AT:
        for index in (0, 1):
            if draw(st.integers(0, 15)):
                kind = draw(st.sampled_from([3, 3, 3, 3, 1, 0, 2]))
                target = draw(st.sampled_from([*TABLES_AT, 0x4000_0000, 0x12_3456_0000, 1 << 47]))
                memory[table + index * 8] = target | draw(bits) | draw(tops) | kind
    return memory


@st.composite
def arm_cases(draw):
    granule = draw(st.sampled_from([12, 14, 16]))
    stage, wide = draw(st.sampled_from([1, 2])), draw(st.booleans())
    output_bits = draw(st.sampled_from([32, 40, 44, 48, 52] if wide else [32, 40, 44, 48]))
    if stage == 1:
        bits = draw(st.integers(25, 52 if wide else 48))
        how = {key: draw(st.booleans()) for key in ("hierarchical", "unprivileged", "checks_access")}
        tables = arm_stage1(granule, bits, 0, output_bits, wide=wide, **how)
    else:
        start = draw(st.integers({12: 0, 14: 1, 16: 1}[granule], 2))
        least = (3 - start) * (granule - 3) + granule + 1
        bits = draw(st.integers(max(least, 25), min(least + granule, 48)))
        how = {"checks_access": draw(st.booleans())}
        tables = arm_stage2(granule, bits, start, 0, output_bits, wide=wide, **how)
    indices = [draw(st.integers(0, 1)) << level.shift for level in tables.levels]
    address = sum(indices) | draw(st.integers(0, 4095))
    address |= draw(st.sampled_from([0, 0, 0, 0, 1 << bits]))
    return granule, stage, wide, tables, how, address, draw(memories(granule)), draw(ACCESSES)


@settings(deadline=None, max_examples=400)
@given(arm_cases())
def test_arms_tables_as_a_second_walker_sees_them(case):
    granule, stage, wide, tables, how, address, memory, access = case

    expected = naive_arm(
        stage,
        granule,
        tables.input_bits,
        tables.levels[0].number,
        0,
        tables.output_bits,
        wide,
        how.get("hierarchical", False),
        how.get("unprivileged", False),
        how["checks_access"],
        address,
        access,
        memory,
    )

    assert outcome(walk(tables, address, access, memory.read)) == expected


def naive_intel(first, depth, width, user, address, access, memory):
    """``first``: processors' tables; otherwise the second stage of VT-d."""
    bits = 12 + 9 * depth
    if first:
        low = address % 2**bits
        if address != (low if low < 2 ** (bits - 1) else low + 2**64 - 2**bits):
            return "INPUT", depth
    elif address >= 2**bits:
        return "INPUT", depth
    table, readable, writable = 0, True, True
    for level in range(depth, 0, -1):
        entry = memory.get(table + (address >> 12 + 9 * (level - 1)) % 512 * 8)
        if entry is None:
            return "READ", level
        if not entry & (1 if first else 3):
            return "NOT_PRESENT", level
        large = entry >> 7 & 1 and level > 1
        if large and level > 3:
            return "MALFORMED", level
        is_leaf = large or level == 1
        size = 12 + 9 * (level - 1)
        if (entry % 2**52) >> width or (large and entry % 2**size >> (13 if first else 12)):
            return "MALFORMED", level
        readable = readable and (not user or bool(entry & 4) if first else bool(entry & 1))
        writable = writable and bool(entry & 2) and (not user or bool(entry & 4))
        if is_leaf:
            if (access & R and not readable) or (access & W and not writable):
                return "PERMISSION", level
            return "ok", entry % 2**52 >> size << size | address % 2**size, size
        table = entry % 2**52 >> 12 << 12
    raise AssertionError("a last level has leaves only")


@st.composite
def intel_cases(draw):
    first = draw(st.booleans())
    depth = draw(st.integers(4 if first else 3, 5))
    width, user = draw(st.sampled_from([36, 39, 46, 52])), first and draw(st.booleans())
    memory = Memory()
    for table in TABLES_AT:
        for index in (0, 1, 510, 511):
            if draw(st.integers(0, 15)):
                low = draw(st.sampled_from([7, 7, 7, 7, 3, 1, 2, 5, 0, 0x87, 0x83, 0x1087, 0x2087]))
                target = draw(st.sampled_from([*TABLES_AT, 0x4000_0000, 0x80_0000_0000, 1 << 38, 1 << 63]))
                memory[table + index * 8] = target | low
    address = sum(draw(st.sampled_from([0, 1, 510, 511])) << 12 + 9 * level for level in range(depth))
    if draw(st.booleans()) and address >> 11 + 9 * depth:
        address += (1 << 64) - (1 << 12 + 9 * depth)
    address |= draw(st.integers(0, 4095))
    return first, depth, width, user, address, memory, draw(ACCESSES)


@settings(deadline=None, max_examples=400)
@given(intel_cases())
def test_intels_tables_as_a_second_walker_sees_them(case):
    first, depth, width, user, address, memory, access = case
    processors = x86_64(depth, 0, width, unprivileged=user, updates=False) if first else None
    tables = processors or vtd_second_stage(depth, 0, width)

    expected = naive_intel(first, depth, width, user, address, access, memory)

    assert outcome(walk(tables, address, access, memory.read)) == expected


def test_a_format_whose_last_level_leads_on_is_an_error_of_its_declaration():
    tables = vtd_second_stage(3, 0x1000, 46)
    memory = Memory({0x1000: 0x2003, 0x2000: 0x3003})

    with pytest.raises(ValueError, match="the lowest level of a format has leaves only"):
        walk(replace(tables, levels=tables.levels[:2]), 0, R, memory.read)


def test_tables_are_shown_by_what_differs_from_one_to_the_next() -> None:
    text = repr(arm_stage1(14, 36, 0x1234000, 40))
    assert text.startswith("Tables(root=0x1234000, start=2, page=0x4000, input_bits=36, output_bits=40, ")
    assert len(text) < 200
