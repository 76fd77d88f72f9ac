"""Hardware update of access flags and dirty state (IHI 0070, 3.13): a walk changes descriptors, atomically."""

from __future__ import annotations

from collections.abc import Callable
from ctypes import c_uint64

import pytest

from pviommu.dma.fault import FaultKind
from pviommu.interfaces.smmuv3.config import SmmuConfig
from smmuv3.commands import Opcode, cfgi, tlbi
from smmuv3.registers import Idr0

from .conftest import CD0, CDS, IOVA, LEAF, PAGE, SID, STTB, TTB, VTCR, Guest

HA, HD, AF, READ_ONLY, DBM = 1 << 43, 1 << 42, 1 << 10, 1 << 7, 1 << 51
CLEAN = PAGE | LEAF | READ_ONLY | DBM
"""Writeable, and not written yet."""
DOWN = 0x1000_0000
S2HA, S2HD, S2W, S2R = 1 << 56, 1 << 55, 1 << 7, 1 << 6
S2LEAF = 0x3F | S2R | 3 << 8


class PlainGuard:
    """Exchanges without anybody beside it; ``meanwhile`` is called before each."""

    def __init__(self) -> None:
        self.count = 0
        self.meanwhile: Callable[[], None] = lambda: None

    def read(self, address: int, length: int) -> tuple[bytes, int]:
        raise NotImplementedError

    def write(self, address: int, data: bytes | bytearray | memoryview) -> int:
        raise NotImplementedError

    def exchange(self, address: int, before: int, after: int) -> int | None:
        self.count += 1
        self.meanwhile()
        word = c_uint64.from_address(address)
        found = word.value
        if found == before:
            word.value = after
        return found


@pytest.fixture
def guard() -> PlainGuard:
    return PlainGuard()


@pytest.fixture
def updating(make_guest: Callable[..., Guest], guard: PlainGuard) -> Guest:
    """A guest whose CD has flags and dirty state updated."""
    guest = make_guest(httu=2, guard=guard).start()
    guest.cd(CD0 | HA | HD)
    return guest


@pytest.mark.row("smmu", 35)
@pytest.mark.parametrize("httu", [0, 1, 2])
def test_the_identification_says_what_is_updated(
    make_guest: Callable[..., Guest], guard: PlainGuard, httu: int
) -> None:
    assert httu == Idr0(make_guest(httu=httu, guard=guard).driver.get("IDR0")).HTTU


def test_without_an_exchange_of_memory_it_is_refused_by_name(make_guest: Callable[..., Guest]) -> None:
    with pytest.raises(ValueError, match=r"httu 1: only the native core can update tables"):
        make_guest(httu=1)
    with pytest.raises(ValueError, match=r"httu 3: must be 0\.\.2"):
        SmmuConfig(httu=3)


@pytest.mark.row("smmu", 35)
def test_a_read_sets_the_access_flag_once(updating: Guest, guard: PlainGuard) -> None:
    updating.store_words(updating.leaf, PAGE | LEAF & ~AF)

    assert updating.get() == bytes(4)
    assert updating.word(updating.leaf) == PAGE | LEAF
    assert (updating.get(), guard.count) == (bytes(4), 1)


@pytest.mark.row("smmu", 35)
def test_a_write_makes_a_clean_page_dirty_and_a_read_does_not(updating: Guest) -> None:
    updating.store_words(updating.leaf, CLEAN)

    assert updating.get() == bytes(4)
    assert updating.word(updating.leaf) == CLEAN
    assert updating.lands(PAGE | 0x560)
    assert updating.word(updating.leaf) == CLEAN & ~READ_ONLY


@pytest.mark.row("smmu", 35)
def test_both_are_one_update(updating: Guest, guard: PlainGuard) -> None:
    updating.store_words(updating.leaf, CLEAN & ~AF)

    assert updating.lands(PAGE | 0x560)
    assert updating.word(updating.leaf) == CLEAN & ~READ_ONLY
    assert guard.count == 1


@pytest.mark.row("smmu", 35)
def test_a_page_that_was_made_clean_again_is_seen_after_its_invalidation(updating: Guest) -> None:
    updating.store_words(updating.leaf, CLEAN)
    assert updating.put() is None
    updating.store_words(updating.leaf, CLEAN)

    updating.issue(tlbi(Opcode.TLBI_NH_VA, IOVA, asid=7, leaf=True))

    assert updating.put() is None
    assert updating.word(updating.leaf) == CLEAN & ~READ_ONLY


@pytest.mark.row("smmu", 35)
@pytest.mark.parametrize(
    ("cd0", "leaf", "kind"),
    [
        (CD0 | HA, CLEAN, 0x13),
        (CD0, PAGE | LEAF & ~AF, 0x12),
        (CD0 | HA | HD, PAGE | LEAF | READ_ONLY, 0x13),
        (CD0 | HD, CLEAN, 0x13),
    ],
    ids=["HA alone", "neither", "without DBM", "HD alone"],
)
def test_what_is_not_to_be_updated_is_refused_and_stays(updating: Guest, cd0: int, leaf: int, kind: int) -> None:
    updating.cd(cd0)
    updating.store_words(updating.leaf, leaf)

    assert updating.refused([(SID << 32 | kind, 2 << 40, IOVA, 0)])
    assert updating.word(updating.leaf) == leaf


@pytest.mark.row("smmu", 35)
@pytest.mark.parametrize(("httu", "bits"), [(0, HA), (0, HD), (1, HA | HD)])
def test_a_cd_that_asks_for_what_there_is_not_is_illegal(
    make_guest: Callable[..., Guest], guard: PlainGuard, httu: int, bits: int
) -> None:
    guest = make_guest(httu=httu, guard=guard).start()
    guest.cd(CD0 | bits)

    assert guest.refused([(SID << 32 | 0x0A, 0, 0, 0)])


@pytest.mark.row("smmu", 35)
def test_a_descriptor_that_changes_meanwhile_is_judged_anew(updating: Guest, guard: PlainGuard) -> None:
    updating.store_words(updating.leaf, CLEAN & ~AF)
    guard.meanwhile = lambda: updating.store_words(updating.leaf, 0)

    assert updating.refused([(SID << 32 | 0x10, 2 << 40, IOVA, 0)])
    assert updating.word(updating.leaf) == 0


def test_one_that_changes_each_time_is_refused_in_the_end(updating: Guest, guard: PlainGuard) -> None:
    updating.store_words(updating.leaf, PAGE | LEAF & ~AF)
    guard.meanwhile = lambda: updating.store_words(updating.leaf, (PAGE + (guard.count << 12)) | LEAF & ~AF)

    assert updating.refused([(SID << 32 | 0x12, 2 << 40, IOVA, 0)])
    assert guard.count == 8


@pytest.mark.row("smmu", 35)
def test_what_is_cached_of_a_clean_page_lets_no_write_through(updating: Guest) -> None:
    updating.store_words(updating.leaf, CLEAN)
    assert updating.get() == bytes(4)
    updating.store_words(updating.leaf, CLEAN & ~DBM)

    assert updating.put().kind is FaultKind.PERMISSION  # type: ignore[union-attr]


@pytest.mark.row("smmu", 35)
def test_strict_caches_look_without_an_update(make_guest: Callable[..., Guest], guard: PlainGuard) -> None:
    guest = make_guest(httu=2, strict=True, guard=guard).start()
    guest.cd(CD0 | HA | HD)
    guest.issue(cfgi(Opcode.CFGI_STE, SID))
    guest.store_words(guest.leaf, CLEAN)
    assert guest.put() is None
    guest.store_words(guest.leaf, CLEAN & ~AF)

    assert guest.put() is None
    assert guest.word(guest.leaf) == CLEAN & ~AF


@pytest.mark.row("smmu", 35)
def test_stage_2_is_updated_too(make_guest: Callable[..., Guest], guard: PlainGuard) -> None:
    guest = make_guest(httu=2, stage2=True, guard=guard).start()
    guest.ste(6 << 1 | 1, 0, VTCR | S2HA | S2HD, STTB)
    leaf = guest.map(PAGE | S2LEAF & ~AF | DBM, root=STTB, bits=44)[-1]

    assert guest.lands(PAGE | 0x560)
    assert guest.word(leaf) == PAGE | S2LEAF | AF | DBM | S2W


@pytest.mark.row("smmu", 35)
def test_an_update_of_stage_1_is_a_write_to_stage_2(make_guest: Callable[..., Guest], guard: PlainGuard) -> None:
    """A table that stage 2 lets be read only: class TT, and what was refused is no read."""
    guest = make_guest(httu=2, stage2=True, guard=guard)
    guest.start()
    guest.ste(CDS - DOWN | 7 << 1 | 1, 0xD6, VTCR, STTB)
    guest.cd(CD0 | HA, ttb0=TTB - DOWN)
    *places, leaf = guest.map(PAGE - DOWN | LEAF & ~AF)
    for place in places:
        guest.store_words(place, guest.word(place) - DOWN)
    for place in (CDS, PAGE):
        guest.map(place & ~0x1F_FFFF | 0x7F1, place - DOWN, root=STTB, bits=44, stop=2)
    for place in (*places, leaf):
        guest.map(place & ~0x1F_FFFF | 0x7F1 & ~S2W, place - DOWN, root=STTB, bits=44, stop=2)

    assert guest.refused([(SID << 32 | 0x13, 1 << 40 | 1 << 39, IOVA, leaf - DOWN & ~0xFFF)])
    assert guest.word(leaf) == PAGE - DOWN | LEAF & ~AF
