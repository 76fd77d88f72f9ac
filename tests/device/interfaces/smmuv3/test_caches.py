"""What is cached, for how long, and how a strict cache tells that an invalidation is missing."""

import pytest

from pviommu.engine import Access
from pviommu.engine.walk import Leaf, WalkFaultKind
from pviommu.interfaces.smmuv3.caches import Cache, Tag, Translations
from smmuv3.commands import Opcode, cfgi, tlbi

from .conftest import CD0, CDS, IOVA, LEAF, PAGE, SID

R, RW = Access.READ, Access.READ | Access.WRITE
OTHER = PAGE + 0x1000
CONTIGUOUS = 1 << 52


def leaf(output, *, shift=12, access=RW, contiguous=0, descriptor=0):
    return Leaf(output, shift, access, contiguous or shift, 3, descriptor)


def test_what_has_been_there_longest_makes_room():
    cache = Cache(2)

    for key in "abac":
        cache.put(key, key.upper())

    assert (len(cache), cache.get("a"), cache.get("b"), cache.get("c")) == (2, "A", None, "C")


def test_a_cache_of_nothing_keeps_nothing():
    cache = Cache(0)
    cache.put("a", 1)

    assert cache.get("a") is None


def test_a_translation_is_found_in_its_block_with_its_tag_and_for_what_it_allows():
    known, tag = Translations(8), Tag(1, 2)
    known.add(tag, 0x1234567, leaf(0x80034567, shift=21, access=R))

    assert known.find(tag, 0x1200000, R) == (0x80000000, 21, R)
    assert known.find(tag, 0x13FFFFF, R) == (0x801FFFFF, 21, R)
    for address, each, access in ((0x1400000, tag, R), (0x11FFFFF, tag, R), (0x1200000, tag, RW)):
        assert known.find(each, address, access) is None
    assert known.find(Tag(1, 3), 0x1200000, R) is None
    assert known.find(Tag(2, 2), 0x1200000, R) is None


def test_a_global_translation_is_of_every_asid_and_goes_with_any_of_them():
    known = Translations(8)
    known.add(Tag(1, None), 0x1000, leaf(0x5000))

    assert known.find(Tag(1, 77), 0x1004, RW) == (0x5004, 12, RW)
    known.drop_asid(1, 77)
    assert known.find(Tag(1, 77), 0x1004, RW)
    known.drop(0x1FFF, 1, 1, 5)
    assert known.find(Tag(1, 77), 0x1004, RW) is None


def test_forgetting_an_address_takes_no_look_at_all_others(started):
    known = started.smmu.caches.stage1
    for page in range(20):
        for asid in range(10):
            known.add(Tag(0, asid), page << 12, leaf(page << 12))
    before, count = known.remembered.looked_at, len(known)

    known.drop(0x5000, 1, 0, 3)
    known.drop(0x6000, 0x4000, 0, 3)

    assert (count, len(known)) == (200, 195)
    assert known.remembered.looked_at - before <= 10


def test_contiguous_leaves_are_one_translation_and_go_together():
    known, tag = Translations(8), Tag(0, 1)
    known.add(tag, 0x13040, leaf(0x83040, contiguous=16))

    assert known.find(tag, 0x1F123, RW) == (0x8F123, 16, RW)
    known.drop(0x10000, 1, 0, 1)
    assert len(known) == 0


def test_contiguous_leaves_whose_outputs_are_not_aligned_alike_are_not_joined():
    known, tag = Translations(8), Tag(0, 1)
    known.add(tag, 0x13040, leaf(0x84040, contiguous=16))

    assert known.find(tag, 0x13FFF, RW) == (0x84FFF, 12, RW)
    assert known.find(tag, 0x14000, RW) is None


def test_the_smmu_uses_a_contiguous_block_without_a_walk(started):
    """As hardware may: the other leaves of the block are not looked at, even if they are not as the bit promises."""
    base = IOVA & ~0xFFFF
    for page in range(16):
        leaf_of = (PAGE + page * 0x1000) | LEAF | CONTIGUOUS if page else PAGE | LEAF | CONTIGUOUS
        started.map(leaf_of, base + page * 0x1000)
    assert started.lands(PAGE, base)

    started.map(0, base + 0x5000)
    assert started.lands(PAGE + 0x5000, base + 0x5000)
    started.issue(tlbi(Opcode.TLBI_NH_VA, base + 0xF000, asid=7))

    assert started.put(base + 0x5000) is not None


@pytest.mark.parametrize(("not_global", "is_new"), [(0, False), (1 << 11, True)])
def test_a_global_leaf_stays_when_an_asid_goes(started, not_global, is_new):
    started.store_words(started.leaf, (PAGE | LEAF) & ~(1 << 11) | not_global)
    assert started.lands(PAGE | 0x560)
    started.store_words(started.leaf, OTHER | LEAF)

    started.issue(tlbi(Opcode.TLBI_NH_ASID, asid=7))

    assert started.lands((OTHER if is_new else PAGE) | 0x560)


def test_an_entry_that_forbids_what_is_asked_is_no_fault_until_memory_has_been_looked_at(started):
    started.store_words(started.leaf, PAGE | LEAF | 0x80)
    assert isinstance(started.get(), bytes)
    started.store_words(started.leaf, PAGE | LEAF)

    assert started.lands(PAGE | 0x560)


def test_without_caches_every_change_is_seen(make_guest):
    guest = make_guest(cache_entries=0).start()
    assert guest.lands(PAGE | 0x560)
    guest.store_words(guest.leaf, OTHER | LEAF)
    assert guest.lands(OTHER | 0x560)

    guest.cd(0)

    assert guest.put() is not None


def test_a_reset_forgets_everything(started):
    assert started.lands(PAGE | 0x560)
    started.store_words(started.leaf, OTHER | LEAF)

    started.smmu.reset()
    assert started.driver.get("CR0") == 0
    started.driver.reset(0x4100_0000, 5)

    assert started.lands(OTHER | 0x560)


def test_an_address_with_a_tag_is_cached_as_the_one_without(started):
    started.cd(CD0 | 1 << 38)
    tagged = 0xAB << 56 | IOVA
    assert started.lands(PAGE | 0x560, tagged)
    started.store_words(started.leaf, OTHER | LEAF)
    assert started.lands(PAGE | 0x560)

    started.issue(tlbi(Opcode.TLBI_NH_VA, IOVA, asid=7))

    assert started.lands(OTHER | 0x560, tagged)


# -- a strict cache -------------------------------------------------------------------------------------------------


@pytest.fixture
def strict(make_guest):
    guest = make_guest(strict=True, cache_entries=1).start()
    assert guest.lands(PAGE | 0x560)
    assert guest.stale == []
    return guest


def test_a_strict_cache_tells_a_translation_that_is_used_after_its_leaf_changed(strict):
    strict.store_words(strict.leaf, OTHER | LEAF)

    assert strict.lands(PAGE | 0x560)

    [stale] = strict.stale
    assert stale[:4] == ("stage 1", SID, None, IOVA)
    assert (stale.cached, stale.now) == ((PAGE | 0x560, RW), (OTHER | 0x560, RW))


def test_a_strict_cache_tells_a_translation_that_is_used_after_its_leaf_went(strict):
    strict.store_words(strict.leaf, 0)

    assert strict.lands(PAGE | 0x560)
    assert strict.stale[0].now.kind is WalkFaultKind.NOT_PRESENT
    assert strict.records() == []


def test_a_strict_cache_tells_configurations_that_have_changed(strict):
    strict.cd(CD0 & ~(1 << 45) | 1 << 35, had=1)
    assert strict.lands(PAGE | 0x560)
    [stale] = strict.stale
    assert stale.what == "CD"
    tables = "low=Tables(root=0x43000000, start=0, page=0x1000, input_bits=48, output_bits=44"
    assert f"{tables}, needs_accessed=True, limits=0x4000000000000000)" in str(stale.cached)
    assert f"{tables}, needs_accessed=False, limits=0x0)" in str(stale.now)

    strict.ste(1)
    assert strict.lands(PAGE | 0x560)

    assert [stale.what for stale in strict.stale] == ["CD", "STE", "CD"]


def test_a_driver_that_invalidates_is_not_told_of(strict):
    strict.store_words(strict.leaf, OTHER | LEAF)
    strict.issue(tlbi(Opcode.TLBI_NH_VA, IOVA, asid=7, leaf=True))
    assert strict.lands(OTHER | 0x560)
    strict.cd(CD0 & ~(1 << 45))
    strict.issue(cfgi(Opcode.CFGI_CD, SID))
    assert strict.lands(OTHER | 0x560)

    strict.stage1(CDS + 0x1000)
    strict.cd(place=CDS + 0x1000)
    strict.issue(cfgi(Opcode.CFGI_STE, SID))

    assert strict.lands(OTHER | 0x560)
    assert strict.stale == []


def test_a_strict_cache_keeps_what_a_small_one_would_have_forgotten(strict):
    for page in range(1, 20):
        strict.map(PAGE + page * 0x1000 | LEAF, IOVA + page * 0x1000)
        assert strict.lands(PAGE + page * 0x1000 | 0x560, IOVA + page * 0x1000)
    strict.store_words(strict.leaf, 0)

    assert strict.lands(PAGE | 0x560)
    assert len(strict.stale) == 1
