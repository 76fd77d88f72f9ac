"""Profiles in C: no number of one stands in the sources, and one that nobody has heard of works like any other."""

import re
from contextlib import closing
from dataclasses import replace
from enum import IntEnum
from typing import Annotated

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pviommu.engine import Stop
from pviommu.interfaces.pv import xen_2024, xen_v7
from pviommu.interfaces.pv.page_operation import MAP_STOPS, UNMAP_STOPS, PageKinds, PageOperation, PageRules
from pviommu.interfaces.pv.profile import Reply
from pviommu.interfaces.pv.xen import CONTEXT_STOPS, XenOperations
from pviommu.native import build, library
from pviommu.native.page_operation import MOST_PAGES, hand_over
from pviommu_abi.slots import SLOT_SIZE, Errno, Slot, SlotFlags
from wire_layout import U8, U16, U32, U64, Record

from ..conftest import RAM_PAGES
from .conftest import WHOLE
from .test_ring import ROUND, native_driver, python_driver, state

PROFILE = 9
"""Number of the toy in the register."""


@pytest.fixture
def parts():
    return WHOLE


# -- the sources ------------------------------------------------------------------------------------------------------


def code(name):
    """A source without comments and strings."""
    text = (build.SOURCES / name).read_text()
    return re.sub(r'/\*.*?\*/|//[^\n]*|"[^"\n]*"', " ", text, flags=re.DOTALL)


def numbers(text):
    return {int(number, 0) for number in re.findall(r"(?<![\w.])(0[xX][0-9a-fA-F]+|\d+)[uUlL]*\b", text)}


HOST_WORDS = {"virtio.c": {"errno", "EAGAIN", "EPOLLIN"}}
"""What the host's kernel says of taps is named where they are read; what guests are told is not."""


@pytest.mark.parametrize("name", sorted(path.name for path in build.SOURCES.iterdir()))
def test_no_errno_and_no_profile_is_named_in_the_sources(name):
    words = set(re.findall(r"\w+", code(name)))
    negative = re.findall(r"(?:\breturn|[=(,?:{])\s*-\s*(\d+)", code(name))

    own = HOST_WORDS.get(name, set())
    assert not [word for word in words - own if re.fullmatch(r"E[A-Z0-9]{2,}", word)]
    assert not [word for word in words - own if "xen" in word.lower() or "errno" in word.lower()]
    assert set(negative) <= {"1"}


def test_the_numbers_in_the_source_of_the_rings_are_of_slots_and_of_pace():
    defines = dict(re.findall(r"^#define\s+(\w+)\s+(\d+)u?\s*$", code("ring.c"), re.MULTILINE))
    pace = {"CLOCK_SLOTS", "CLOCK_PAGES", "LOOK_NS", "MOST_SLOTS", "AHEAD"}
    rest = re.sub(r"^#.*$", "", code("ring.c"), flags=re.MULTILINE)

    assert {name: int(value) for name, value in defines.items() if name not in pace} == {
        "SLOT_SIZE": SLOT_SIZE,
        "RESULT": Slot.offset_of("result") // 4,
        "COMPLETED": Slot.offset_of("completed") // 4,
        "FLAGS_SHIFT": 8 * Slot.offset_of("flags"),
        "SEQUENCE_SHIFT": 8 * Slot.offset_of("sequence"),
        "POSTED": SlotFlags.POSTED,
    }
    # indices of words of the index lines and of pairs, a vector's size and alignment, nanoseconds of a second
    assert numbers(rest) == {0, 1, 2, 3, 8, 16, 1_000_000_000}
    assert library.SLOT_WORDS * 8 == SLOT_SIZE


# -- a profile of made-up numbers -------------------------------------------------------------------------------------


class ToyMap(Record):
    """Every field lies elsewhere, and has another size, than in the profiles that there are."""

    nr_pages: Annotated[int, U16, "pages"]
    ctx_no: Annotated[int, U8, "context"]
    pad0: Annotated[int, U8, "0"]
    mapped: Annotated[int, U32, "OUT"]
    dfn: Annotated[int, U64, "first device frame"]
    rights: Annotated[int, U64, "bit 5: write, bit 40: read"]
    gfn: Annotated[int, U64, "first guest frame"]
    magic: Annotated[int, U32, "0xabcd"]


class ToyUnmap(Record):
    """The count is in 16 bits."""

    pad0: Annotated[int, U16, "0"]
    unmapped: Annotated[int, U16, "INOUT"]
    ctx_no: Annotated[int, U32, "context"]
    dfn: Annotated[int, U64, "first device frame"]
    nr_pages: Annotated[int, U64, "pages"]


READ, WRITE = 1 << 40, 1 << 5
MAP_RESULTS = {stop: -1000 - place for place, stop in enumerate(sorted(MAP_STOPS, key=lambda stop: stop.name))}
UNMAP_RESULTS = {stop: -2000 - place for place, stop in enumerate(sorted(UNMAP_STOPS, key=lambda stop: stop.name))}
TOY = PageRules(
    PageOperation(
        op_class=0x55,
        op=0x21,
        record=ToyMap,
        fixed={"magic": 0xABCD},
        flags="rights",
        readable=READ,
        writeable=WRITE,
        most=600,
        too_many=-3000,
        count="mapped",
        uncounted=(Stop.OUT_OF_APERTURE,),
        reserved_first=True,
        results=MAP_RESULTS,
    ),
    PageOperation(op_class=0x55, op=0x99, record=ToyUnmap, count="unmapped", adds=True, results=UNMAP_RESULTS),
)


def toy_profile(rules):
    """A class of profile with these maps and unmaps, and nothing else."""

    class Toy(XenOperations):
        op_class = rules.map.op_class
        numbers = IntEnum("numbers", {"MAP_PAGES": rules.map.op, "UNMAP_PAGES": rules.unmap.op})
        records = operations = {}  # noqa: RUF012
        context_results = dict.fromkeys(CONTEXT_STOPS, -79)
        unknown = Reply(-77)
        not_allowed = -78

    return Toy


def select_toy(driver, rules):
    """A machine whose guest has selected a profile with these rules; context 1 is empty, 2 a clone."""
    iommu = driver.iommu
    iommu._profiles[PROFILE] = toy_profile(rules)(
        iommu.contexts, iommu.bindings, iommu.memory, iommu.counters, iommu.settings, rules
    )
    driver.start(profile=PROFILE)
    assert iommu.contexts.alloc().context == 1
    assert iommu.contexts.alloc(clone=True).context == 2
    return driver


@pytest.fixture
def toy(make_driver):
    return select_toy(make_driver(), TOY)


def toy_map(toy, dfn, gfn, nr, rights=READ | WRITE, mapped=7, ctx=1, magic=0xABCD):
    payload = ToyMap(nr, ctx, 0, mapped, dfn, rights, gfn, magic).pack()
    result, answer = toy.call(payload, 0x55, 0x21)
    return result, ToyMap.unpack(answer).mapped


def toy_unmap(toy, dfn, nr, unmapped=0, ctx=1):
    result, answer = toy.call(ToyUnmap(0, unmapped, ctx, dfn, nr).pack(), 0x55, 0x99)
    return result, ToyUnmap.unpack(answer).unmapped


def test_a_profile_of_made_up_numbers_is_carried_out_in_c(toy, monkeypatch):
    monkeypatch.setattr(toy.iommu._executor.operations, "begin", lambda *_: 1 // 0)
    engine = toy.iommu.engine

    assert toy_map(toy, 0x100, 0x10, 3) == (0, 3)
    assert toy_map(toy, 0x200, 0x20, 2, rights=WRITE) == (0, 2)
    assert toy_map(toy, 0x102, 0x30, 2) == (MAP_RESULTS[Stop.MAPPED], 0)
    assert toy_map(toy, 0x110, RAM_PAGES - 1, 2) == (MAP_RESULTS[Stop.NOT_RAM], 1)
    assert toy_map(toy, 0xFEE00, 0x30, 1) == (MAP_RESULTS[Stop.RESERVED], 0)
    assert toy_map(toy, 0xFEDFF, RAM_PAGES - 1, 2) == (MAP_RESULTS[Stop.RESERVED], 1)
    assert toy_map(toy, 0x120, 0x10, 2, rights=0) == (MAP_RESULTS[Stop.NO_ACCESS], 0)
    assert toy_map(toy, 1 << 40, 0x10, 2) == (MAP_RESULTS[Stop.OUT_OF_APERTURE], 7)
    assert toy_unmap(toy, 0x100, 2, unmapped=0xFFFF) == (0, 1)
    assert toy_unmap(toy, 0x102, 2, unmapped=5) == (UNMAP_RESULTS[Stop.NOT_MAPPED], 6)
    assert toy_unmap(toy, 0xFEE00, 1) == (UNMAP_RESULTS[Stop.RESERVED], 0)
    assert toy_unmap(toy, 1 << 40, 1) == (UNMAP_RESULTS[Stop.OUT_OF_APERTURE], 0)
    assert [(run.dfn, run.gfn, run.nr, int(run.access)) for run in engine.areas(1)][1:] == [
        (0x200, 0x20, 2, 2),
        (0xFEDFF, RAM_PAGES - 1, 1, 3),
    ]


@pytest.mark.parametrize("uncounted", [Stop.RESERVED, Stop.NOT_RAM])
def test_the_stop_that_is_reported_decides_whether_pages_are_counted_in_c_and_in_python(native_library, uncounted):
    declared = TOY._replace(map=replace(TOY.map, reserved_first=True, uncounted=(uncounted,)))
    for made in (python_driver, lambda: native_driver(native_library)):
        with closing(made()) as driver:
            toy = select_toy(driver, declared)
            count = 7 if uncounted is Stop.RESERVED else 0
            assert toy_map(toy, 0xFEE00, RAM_PAGES, 1) == (MAP_RESULTS[Stop.RESERVED], count)


@pytest.mark.parametrize(("reserved_first", "stop"), [(True, Stop.RESERVED), (False, Stop.NOT_RAM)])
def test_a_profile_says_whether_a_reserved_page_outranks_a_frame_that_is_not_ram(make_driver, reserved_first, stop):
    toy = select_toy(make_driver(), TOY._replace(map=replace(TOY.map, reserved_first=reserved_first)))

    assert toy_map(toy, 0xFEDFF, RAM_PAGES - 1, 2) == (MAP_RESULTS[stop], 1)


def test_what_c_leaves_to_python_has_the_results_of_the_same_declaration(toy):
    assert toy_map(toy, 0x100, 0x10, 601) == (-3000, 7)
    assert toy_map(toy, 0x100, 0x10, 1, magic=0xABCE) == (-Errno.EINVAL, 7)
    assert toy_map(toy, 0x100, 0x10, 1, rights=READ | 1) == (-Errno.EINVAL, 7)
    assert toy_map(toy, 0x100, 0x10, 1, ctx=200) == (MAP_RESULTS[Stop.NO_DOMAIN], 0)
    assert toy_unmap(toy, 0x100, 1, ctx=0x10001) == (UNMAP_RESULTS[Stop.NO_DOMAIN], 0)
    assert toy_unmap(toy, 0x10, 4, ctx=2) == (0, 4)  # of a clone
    assert toy.call(bytes(48), 0x55, 0x22)[0] == -77
    assert toy.iommu.engine.usage().mapped_pages == RAM_PAGES - 4


# -- any profile ------------------------------------------------------------------------------------------------------

SIZES = {
    "ctx_no": (U8, U16, U32, U64),
    "dfn": (U32, U64),
    "gfn": (U32, U64),
    "nr_pages": (U16, U32, U64),
    "flags": (U8, U16, U32, U64),
    "count": (U16, U32, U64),
    "fixed": (U8, U16, U32),
}
RESULTS = st.integers(-4095, -1)


@st.composite
def layouts(draw, names):
    """A structure with these fields in any order and of any sizes, each aligned to its size."""
    hints, offset = {}, 0
    for name in draw(st.permutations(names)):
        kind = draw(st.sampled_from(SIZES[name]))
        while offset % kind.size:
            hints[f"pad{offset}"] = Annotated[int, U8, "0"]
            offset += 1
        hints[name] = Annotated[int, kind, ""]
        offset += kind.size
    record = type("Toy", (Record,), {"__annotations__": hints})
    return record if record.SIZE <= 48 else draw(layouts(names))


@st.composite
def operations(draw, names, stops, **numbers):
    record = draw(layouts(names))
    sizes = {field.name: 8 * field.size for field in record.FIELDS}
    bits = draw(st.permutations(range(sizes["flags"]))) if "flags" in sizes else None
    return PageOperation(
        record=record,
        fixed={"fixed": draw(st.integers(0, (1 << sizes["fixed"]) - 1))},
        flags="flags" if bits else "",
        readable=1 << bits[0] if bits else 0,
        writeable=1 << bits[1] if bits else 0,
        most=draw(st.sampled_from([3, 600, MOST_PAGES, MOST_PAGES + 1, (1 << 64) - 1])),
        too_many=draw(RESULTS),
        count="count",
        adds=draw(st.booleans()),
        uncounted=tuple(draw(st.sets(st.sampled_from(sorted(stops, key=str)), max_size=2))),
        reserved_first=draw(st.booleans()),
        results={stop: draw(RESULTS) for stop in sorted(stops, key=str)},
        **numbers,
    )


@st.composite
def rules(draw):
    op_class, *ops = draw(st.lists(st.integers(1, 0x7F), min_size=3, max_size=3, unique=True))
    common = ("ctx_no", "dfn", "nr_pages", "count", "fixed")
    return PageRules(
        draw(operations((*common, "gfn", "flags"), MAP_STOPS, op_class=op_class, op=ops[0])),
        draw(operations(common, UNMAP_STOPS, op_class=op_class, op=ops[1])),
    )


FRAMES = st.one_of(
    st.integers(0, 12),
    st.sampled_from([0x1FE, 0x200, RAM_PAGES - 2, RAM_PAGES, 0xFEDFE, 0xFEE00, (1 << 27) - 1, 1 << 27, (1 << 64) - 1]),
)
RARELY = st.sampled_from([False] * 9 + [True])


@st.composite
def slots(draw, rules):
    """(class, op, flags, payload) of a slot that mostly makes sense."""
    operation = draw(st.sampled_from(rules))
    values = {}
    for field in operation.record.FIELDS:
        if field.name in ("dfn", "gfn"):
            value = draw(FRAMES)
        elif field.name == "ctx_no":
            value = draw(st.sampled_from([1, 1, 1, 2, 0, 3, 1 << 16 | 1]))
        elif field.name == "nr_pages":
            value = draw(st.sampled_from([0, 1, 1, 2, 3, 4, 512, 1500, 0xFFFF, 65536, 65537, (1 << 64) - 1]))
        elif field.name == "flags":
            read, write = operation.readable, operation.writeable
            value = draw(st.sampled_from([read | write, read, write, 0])) | (draw(RARELY) and 1)
        elif field.name == "count":
            value = draw(st.sampled_from([0, 1, (1 << 64) - 1, (1 << 64) - 2]))
        elif field.name == "fixed":
            value = operation.fixed["fixed"] ^ draw(RARELY)
        else:
            value = draw(RARELY)
        values[field.name] = value & (1 << 8 * field.size) - 1
    tail = b"" if not draw(RARELY) else b"\1"
    flags = draw(st.sampled_from([0, SlotFlags.POSTED, SlotFlags.POSTED, SlotFlags.POSTED, 2]))
    payload = (operation.record(**values).pack() + tail)[:48]
    return operation.op_class, operation.op ^ draw(RARELY), flags, payload


@given(data=st.data())
def test_any_profile_leaves_the_same_behind_in_c_and_in_python(native_library, data):
    declared = data.draw(rules())
    given_slots = data.draw(st.lists(slots(declared), min_size=1, max_size=20))
    with closing(python_driver()) as plain, closing(native_driver(native_library)) as native:
        for driver in (plain, native):
            select_toy(driver, declared)
        for number, (op_class, op, flags, payload) in enumerate(given_slots):
            for driver in (plain, native):
                driver.put(payload, op_class, op, flags)
                while (number % 2 and driver.iommu.spin(ROUND)) or driver.iommu.work():
                    pass
            assert state(native) == state(plain)


# -- handing over -----------------------------------------------------------------------------------------------------


def test_a_map_that_could_be_an_unmap_too_is_refused():
    results = MAP_RESULTS | UNMAP_RESULTS
    unmap = PageOperation(op_class=0x55, op=0x21, record=ToyMap, count="mapped", results=results)

    with pytest.raises(ValueError, match="ToyMap and ToyMap: one slot could be both"):
        hand_over(PageRules(TOY.map, unmap), PageKinds.BOTH, library.Rings())


def test_longer_operations_are_left_to_python():
    rings = library.Rings()
    for rules, most in ((xen_2024.page_rules(100), 100), (xen_v7.PAGE_RULES, MOST_PAGES)):
        hand_over(rules, PageKinds.BOTH, rings)

        assert [operation.most for operation in rings.operations] == [most, most]


def test_without_a_profile_nothing_is_carried_out():
    rings = library.Rings()
    hand_over(TOY, PageKinds.BOTH, rings)
    assert [operation.carried_out for operation in rings.operations] == [1, 1]

    hand_over(None, PageKinds.BOTH, rings)

    assert [operation.carried_out for operation in rings.operations] == [0, 0]


# -- operations that Python wants to see ------------------------------------------------------------------------------


@pytest.fixture
def seen(toy, monkeypatch):
    """Numbers of the operations that Python carried out."""
    numbers = []
    execute = toy.iommu._executor.operations.begin
    monkeypatch.setattr(
        toy.iommu._executor.operations,
        "begin",
        lambda op_class, op, *rest: numbers.append(op) or execute(op_class, op, *rest),
    )
    return numbers


@pytest.mark.parametrize(
    ("watched", "ops"),
    [
        (PageKinds(0), []),
        (PageKinds.UNMAP, [0x99]),
        (PageKinds.MAP, [0x21]),
        (PageKinds.BOTH, [0x21, 0x99]),
    ],
)
def test_python_sees_the_operations_that_it_watches_and_no_others(toy, seen, watched, ops):
    toy.iommu._executor.watch(watched)

    assert toy_map(toy, 0x100, 0x10, 3) == (0, 3)
    assert toy_unmap(toy, 0x100, 3) == (0, 3)
    assert seen == ops
    assert (toy.counters.ops["map_pages"], toy.counters.ops["unmap_pages"]) == (1, 1)


def test_python_sees_what_is_unmapped_of_a_clone(toy, seen):
    assert toy_unmap(toy, 0x10, 4, ctx=2) == (0, 4)

    assert seen == [0x99]


def test_what_is_watched_outlives_a_reset_and_can_end(toy, seen):
    toy.iommu._executor.watch(PageKinds.UNMAP)
    toy.iommu.reset()
    toy.start(profile=PROFILE)
    assert toy.iommu.contexts.alloc().context == 1

    assert (toy_map(toy, 0x100, 0x10, 3), toy_unmap(toy, 0x100, 1)) == ((0, 3), (0, 1))
    assert seen == [0x99]

    toy.iommu._executor.watch(PageKinds(0))
    assert toy_unmap(toy, 0x101, 1) == (0, 1)
    assert seen == [0x99]
