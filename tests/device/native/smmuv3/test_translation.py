"""An SMMU that the native core walks for, beside one that Python walks for."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pviommu.dma.fault import DmaRefusedError
from pviommu.engine import Access
from pviommu.engine.walk import Leaf, WalkFault
from pviommu.interfaces.smmuv3 import translation
from pviommu.interfaces.smmuv3.caches import PythonRemembered
from pviommu.interfaces.smmuv3.configuration import Refused
from pviommu.native.core import NativeCore
from pviommu.native.walk import NativeRemembered
from smmuv3.commands import Opcode, cfgi, tlbi
from smmuv3.events import EventType

from ...interfaces.smmuv3.conftest import CD0, CDS, EVENTS, IOVA, LEAF, PAGE, RAM, TTB, Guest
from ...interfaces.smmuv3.test_smmu import STEPS, act

LEAF2 = 0x7C3
"""Of stage 2: AF, inner shareable, read and write, a page."""
VTCR = 5 << 48 | 1 << 51 | 1 << 58 | 1 << 38 | 25 << 32
"""STE dword 2: S2R, AA64, 44 bits, 4 KiB, from level 1, S2T0SZ 25."""
S2TTB = 0x4800_0000


def scatter(guest: Guest, pages: int, *, base: int = IOVA & ~0xFFF) -> list[int]:
    """Map so many pages from ``base`` on; where they lead."""
    targets = [PAGE + (page * 7 % pages << 13) for page in range(pages)]
    for page, target in enumerate(targets):
        guest.map(target | LEAF, base + page * 0x1000)
    return targets


def nest(guest: Guest) -> None:
    """A stage 2 of 1 GiB blocks, that maps 1:1, on which stage 1 stands."""
    for block in range(4):
        guest.store_words(S2TTB + 8 * block, block << 30 | 0x7C1)
    guest.ste(CDS | 7 << 1 | 1, 0xD6, VTCR, S2TTB)


def no_walk(*_: object) -> None:
    raise AssertionError("Python walks")


@pytest.mark.parametrize("settings", [{}, {"strict": True}, {"cache_entries": 0}, {"stage2": True}], ids=str)
def test_a_request_of_many_pages_is_walked_by_one_call_and_not_by_python(make_guest, monkeypatch, settings):
    guest = make_guest(**settings).start()
    if settings.get("stage2"):
        nest(guest)
        assert guest.lands(PAGE | 0x560)  # the CD is found by way of stage 2
    monkeypatch.setattr(translation, "walk", no_walk)
    targets, base, calls = scatter(guest, 64), IOVA & ~0xFFF, []
    guest.issue(tlbi(Opcode.TLBI_NSNH_ALL))
    span = translation.StreamWalker.span
    monkeypatch.setattr(translation.StreamWalker, "span", lambda *args: calls.append(args) or span(*args))
    data = b"".join(bytes([page]) * 0x1000 for page in range(64))

    guest.dma.write([(base, 64 * 0x1000)], data)

    assert len(calls) == 1
    for page, target in enumerate(targets):
        assert guest.load(target, 0x1000) == data[page * 0x1000 : page * 0x1000 + 0x1000]
    assert guest.dma.read([(base, 64 * 0x1000)]) == data
    assert (guest.records(), guest.stale, guest.parent_faults) == ([], [], [])


def test_both_halves_of_the_addresses_are_walked_in_c_in_turn(make_guest, monkeypatch):
    guest, high = make_guest().start(), (1 << 64) - (1 << 48) + (IOVA & ~0xFFF)
    guest.cd(CD0 & ~(1 << 30) | 16 << 16 | 2 << 22, ttb1=S2TTB)
    guest.map(PAGE + 0x2000 | LEAF, high, root=S2TTB)
    guest.issue(cfgi(Opcode.CFGI_CD_ALL, 8), tlbi(Opcode.TLBI_NSNH_ALL))
    monkeypatch.setattr(translation, "walk", no_walk)

    for _ in range(3):
        assert guest.lands(PAGE | 0x560)
        assert guest.lands(PAGE + 0x2000, high)


def test_a_translation_that_was_turned_off_is_not_used_any_more(started):
    assert started.lands(PAGE | 0x560)
    started.driver.set("CR0", 0xC)

    assert started.put() is not None
    assert [fault.ipa for fault in started.parent_faults] == [IOVA]


def test_what_comes_before_a_page_that_is_refused_is_walked_once(started, monkeypatch):
    scatter(started, 8)
    base = IOVA & ~0xFFF
    started.map(0, base + 5 * 0x1000)
    walks, walk = [], translation.walk
    monkeypatch.setattr(
        translation, "walk", lambda tables, address, *rest: walks.append(address) or walk(tables, address, *rest)
    )

    with pytest.raises(DmaRefusedError) as refused:
        started.dma.read([(base, 8 * 0x1000)])

    assert refused.value.fault.iova == base + 5 * 0x1000
    assert walks == [base + 5 * 0x1000]
    [record] = started.records()
    assert (record[0] & 0xFF, record[2]) == (0x10, base + 5 * 0x1000)


def test_a_page_that_was_read_is_not_written_if_it_may_not_be(started):
    started.store_words(started.leaf, PAGE | LEAF | 0x80)
    assert isinstance(started.get(), bytes)

    assert not started.lands(PAGE | 0x560)
    [record] = started.records()
    assert record[0] & 0xFF == EventType.F_PERMISSION


def test_a_context_that_is_another_one_is_walked_anew(started):
    assert started.lands(PAGE | 0x560)
    other = TTB + 0x400_0000
    started.map(PAGE + 0x5000 | LEAF, root=other)
    started.cd(CD0 + (1 << 48), other)

    assert started.lands(PAGE | 0x560)
    started.smmu.caches.contexts.clear()
    assert started.lands(PAGE + 0x5000 | 0x560)


def test_each_half_of_the_addresses_has_its_own_tables(started):
    high = TTB + 0x400_0000
    started.cd(CD0 & ~(1 << 30 | 0xFF << 16) | 16 << 16 | 2 << 22, TTB, high)
    started.map(PAGE + 0x5000 | LEAF, IOVA, root=high)
    started.smmu.caches.clear()

    for _ in range(2):
        assert started.lands(PAGE | 0x560)
        assert started.lands(PAGE + 0x5000 | 0x560, 0xFFFF << 48 | IOVA)


# -- two cores ------------------------------------------------------------------------------------------------------


class Pair:
    """Two guests that do the same on SMMUs of either kind."""

    def __init__(self, library, **settings):
        class NativeGuest(Guest):
            make_core = staticmethod(lambda: NativeCore(library))

        class PythonGuest(Guest):
            make_core = staticmethod(lambda: None)

        self.guests = [kind(**settings) for kind in (NativeGuest, PythonGuest)]

    def same(self, what):
        native, python = (what(guest) for guest in self.guests)
        assert native == python
        return native

    def close(self):
        for guest in self.guests:
            guest.close()


def read(guest, iova, length, ssid):
    try:
        return guest.dma.read([(iova, length)]) if ssid is None else guest.path(ssid).read([(iova, length)])
    except DmaRefusedError as refused:
        return refused.fault


def told(guest):
    caches = guest.smmu.caches
    sizes = [len(each) for each in (caches.streams, caches.contexts, caches.stage1, caches.stage2)]
    events = guest.driver.get("EVENTQ_PROD"), guest.load(EVENTS, 32 << guest.evtq_bits)
    return events, guest.interrupts, guest.parent_faults, [plain(each) for each in guest.stale], sizes


def plain(stale):
    """A report without the objects that say why a descriptor cannot be read."""
    now = stale.now[:3] if isinstance(stale.now, WalkFault) else stale.now
    return stale._replace(now=now.event if isinstance(now, Refused) else now)


TABLES_AT = [TTB + 0x10_0000 * level for level in range(4)]
ENTRIES = st.tuples(
    st.sampled_from([*TABLES_AT, PAGE, PAGE + 0x3000, 0x8000_0000, RAM]),
    st.sampled_from([3, 3, LEAF, LEAF, LEAF, 0x743, 0x7C3, LEAF & ~0x800, LEAF | 0x80, 0x745, 0]),
).map(sum)
POKES = st.tuples(st.just("poke"), st.sampled_from([*TABLES_AT[1:], TABLES_AT[3], S2TTB]), st.integers(0, 3), ENTRIES)
READS = st.tuples(
    st.just("read"),
    st.integers(-0x3000, 0x3000),
    st.sampled_from([1, 8, 0x1000, 0x2800]),
    st.sampled_from([None, None, 1]),
)
MOVES = st.one_of(POKES, READS, READS, STEPS, st.tuples(st.just("unmap"), st.integers(0, 0x2FF), st.integers(1, 8)))


def move(guest, kind, *how):
    if kind == "poke":
        table, entry, value = how
        index = IOVA >> 12 & 0x1FF if table == TABLES_AT[3] else 0
        guest.store_words(table + 8 * (index + entry), value)
    elif kind == "read":
        offset, length, ssid = how
        return read(guest, (IOVA & ~0xFFF) + offset, length, ssid)
    elif kind == "unmap":
        first, pages = how
        guest.engine.unmap(1, (TTB >> 12) + first, pages)
    else:
        act(guest, kind, *how)
    return None


@settings(deadline=None, max_examples=150)
@given(
    is_strict=st.booleans(),
    limit=st.sampled_from([0, 8, 64]),
    is_nested=st.booleans(),
    steps=st.lists(MOVES, max_size=25),
)
def test_both_cores_tell_a_guest_the_same(native_library, is_strict, limit, is_nested, steps):
    pair = Pair(native_library, stage2=True, ssid_bits=2, strict=is_strict, cache_entries=limit)
    try:
        for guest in pair.guests:
            guest.start()
            scatter(guest, 4)
            if is_nested:
                nest(guest)
        for step in steps:
            pair.same(lambda guest, step=step: move(guest, *step))
        pair.same(lambda guest: [guest.smmu.work() for _ in range(400)])
        pair.same(told)
    finally:
        pair.close()


LEAVES = st.builds(
    lambda output, shift, access, more: Leaf(output, shift, Access(access), shift + more, 3, 0),
    st.integers(0, 1 << 44),
    st.sampled_from([12, 12, 16, 21]),
    st.integers(0, 3),
    st.sampled_from([0, 0, 4]),
)
ADDRESSES = st.one_of(
    st.builds(lambda page, low: page << 12 | low, st.integers(0, 40), st.integers(0, 4095)),
    st.integers((1 << 64) - (1 << 14), (1 << 64) - 1),
)
TAGS_USED = (0x20007, 0x30000, 0x20003, 0x40007)
TAGS = st.sampled_from(TAGS_USED)
REMEMBERED_STEPS = st.one_of(
    st.tuples(st.just("add"), TAGS, ADDRESSES, LEAVES),
    st.tuples(st.just("find"), TAGS, TAGS, ADDRESSES, st.integers(0, 3).map(Access)),
    st.builds(
        lambda ends, mask, tags: ("drop", min(ends), max(ends), mask, tuple(tag & mask for tag in tags)),
        st.tuples(ADDRESSES, st.one_of(ADDRESSES, st.just((1 << 64) - 1))),
        st.sampled_from([(1 << 64) - 1, ~0x1FFFF & (1 << 64) - 1]),
        st.tuples(TAGS, TAGS),
    ),
    st.tuples(st.just("clear")),
)


@settings(deadline=None, max_examples=150)
@given(limit=st.sampled_from([0, 1, 2, 5, 64]), steps=st.lists(REMEMBERED_STEPS, max_size=60))
def test_both_remember_the_same_translations_and_as_long(native_library, limit, steps):
    here, there = NativeRemembered(native_library, limit), PythonRemembered(limit)
    for name, *how in steps:
        count, looked_at = len(here), here.looked_at
        assert getattr(here, name)(*how) == getattr(there, name)(*how)
        assert len(here) == len(there) <= limit
        assert here.looked_at - looked_at <= count + len(TAGS_USED)
