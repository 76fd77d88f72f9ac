"""How profiles declare maps and unmaps: what is derived, and what is refused."""

from typing import Annotated

import pytest

from pviommu.engine import Access, Stop
from pviommu.interfaces.pv import xen_2024, xen_v7
from pviommu.interfaces.pv.page_operation import MAP_STOPS, UNMAP_STOPS, PageOperation, PageRules, must_be_zero
from pviommu_abi.xen_2024 import MapPages, UnmapPages
from pviommu_abi.xen_v7 import V7Capabilities, V7MapPages
from wire_layout import U8, U16, U32, U64, Record

ALL = (1 << 384) - 1
RESULTS = dict.fromkeys(MAP_STOPS | UNMAP_STOPS, -1)


def behind(size):
    """All bits of a payload after so many bytes."""
    return ALL & ~((1 << 8 * size) - 1)


class Crooked(Record):
    ctx_no: Annotated[int, U16, ""]
    nr_pages: Annotated[int, U32, ""]
    dfn: Annotated[int, U64, "at byte 6"]
    done: Annotated[int, U16, ""]


class Countless(Record):
    ctx_no: Annotated[int, U16, ""]
    pad0: Annotated[int, U8, ""]
    dfn: Annotated[int, U32, ""]


def declared(record=MapPages, **others):
    settings = {"op_class": 1, "op": 2, "flags": "flags", "readable": 1, "writeable": 2, "count": "mapped"}
    settings |= {"results": RESULTS} | others
    return PageOperation(record=record, **settings)


def test_padding_flags_without_a_meaning_and_what_lies_behind_must_be_zero():
    flags = V7MapPages.offset_of("map_flags") * 8

    assert must_be_zero(V7MapPages, "map_flags", 5) == behind(40) | 0xFFFFFFFFFFFF << 16 | 0xFFFFFFFA << flags
    assert must_be_zero(V7MapPages) == behind(40) | 0xFFFFFFFFFFFF << 16
    assert must_be_zero(V7Capabilities, is_answer=True) == behind(24)
    assert must_be_zero(UnmapPages, "flags") == behind(24) | 0xFFFFFFFF << 32


def test_fixed_fields_are_told_with_their_values():
    mask, value = declared(fixed={"subop_id": 0x105}, readable=2, writeable=8).must_read

    assert (mask, value) == (behind(32) | 0xFFFFFFF5 << 32 | 0xFFFF, 0x105)


def test_each_bit_of_the_flags_is_the_access_that_was_declared():
    assert declared(readable=2, writeable=8).access == {
        0: Access(0),
        2: Access.READ,
        8: Access.WRITE,
        10: Access.READ | Access.WRITE,
    }


def test_operands_come_in_one_order_wherever_they_lie():
    payload = MapPages(5, 6, 7, 8, 9, 10, 11).pack().ljust(48, b"\0")
    of_a_map, of_an_unmap = declared(), xen_2024.page_rules(1).unmap

    assert of_a_map.operands(of_a_map.unpack(payload)) == (6, 9, 10, 11, 8, 7)
    assert of_an_unmap.operands(of_an_unmap.unpack(payload)) == (6, 8, 9, 0)


@pytest.mark.parametrize(("adds", "added"), [(True, 0xFFFFFFFF), (False, 0)])
def test_the_count_is_added_to_what_was_there_only_where_that_is_declared(adds, added):
    assert declared(adds=adds).place == (28, 4, 0xFFFFFFFF, added)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"count": "nothing"}, "MapPages has no field 'nothing', which a map or an unmap needs"),
        ({"fixed": {"pgsize": 1}}, "MapPages has no field 'pgsize'"),
        ({"record": UnmapPages, "count": "unmapped"}, "UnmapPages has no field 'gfn'"),
        ({"record": Countless, "flags": "", "count": "done"}, "Countless has no field 'nr_pages'"),
        ({"record": Crooked, "flags": "", "count": "done"}, r"Crooked\.dfn: at byte 6 it would be read in two parts"),
        ({"results": dict.fromkeys(MAP_STOPS - {Stop.MAPPED}, -1)}, "MapPages: no result for MAPPED"),
        ({"results": RESULTS | {Stop.MAPPED: 5}}, "MapPages: MAPPED is 5, a result is a negative errno"),
        ({"writeable": 0}, r"MapPages\.flags: 0x1 to read, 0x0 to write: not a bit each"),
        ({"readable": 0}, "0x0 to read, 0x2 to write"),
        ({"readable": 2}, "0x2 to read, 0x2 to write"),
        ({"writeable": 6}, "0x1 to read, 0x6 to write"),
        ({"readable": 1 << 32}, "0x100000000 to read"),
        ({"writeable": -2}, "-0x2 to write"),
    ],
)
def test_a_declaration_that_could_not_be_carried_out_is_refused(settings, text):
    with pytest.raises(ValueError, match=text):
        declared(**settings)


def test_a_map_and_an_unmap_are_told_apart_by_the_slot():
    of_a_map = declared(fixed={"subop_id": 1})
    settings = {"flags": "", "readable": 0, "writeable": 0, "count": "unmapped"}

    assert PageRules(of_a_map, declared(UnmapPages, **settings, fixed={"subop_id": 2})).map is of_a_map
    assert PageRules(of_a_map, declared(UnmapPages, **settings, op=3)).map is of_a_map
    with pytest.raises(ValueError, match="MapPages and UnmapPages: one slot could be both"):
        PageRules(of_a_map, declared(UnmapPages, **settings))


def test_an_unmap_needs_no_results_of_a_map():
    results = dict.fromkeys(UNMAP_STOPS, -1)

    assert not declared(UnmapPages, flags="", count="unmapped", results=results).is_map
    assert declared().is_map


@pytest.mark.parametrize("rules", [xen_2024.page_rules(5), xen_v7.PAGE_RULES])
def test_the_profiles_declare_a_map_and_an_unmap(rules):
    assert (rules.map.is_map, rules.unmap.is_map) == (True, False)
    assert set(rules.map.results) == MAP_STOPS
    assert set(rules.unmap.results) == UNMAP_STOPS
