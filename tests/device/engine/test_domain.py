"""Direct regions: what an endpoint needs mapped 1:1 wherever it is."""

import pytest

from pviommu.engine import (
    BLOCKED,
    IDENTITY,
    Access,
    Area,
    Engine,
    EngineConfig,
    Outcome,
    Refusal,
    ReservedFrames,
    Run,
    Stop,
    TranslationFault,
    UnmapMode,
)

R, RW = Access.READ, Access.READ | Access.WRITE
REGION = ReservedFrames(0x500, 0x503, "direct")


def new_engine(*regions, **fields):
    """Paging domains 1 and 2; an endpoint in IDENTITY for each tuple of regions, streams from 1 on."""
    engine = Engine(EngineConfig(**fields))
    engine.set_ram([(0, 0xFFFF)])
    for stream, reserved in enumerate(regions or ((REGION,),), 1):
        engine.add_endpoint(stream, reserved)
    engine.alloc_paging(1)
    engine.alloc_paging(2)
    return engine


def dma(engine, dfn, access=RW, stream=1):
    answer = engine.translate(stream, dfn << 12, 1, access)
    return answer.refusal if isinstance(answer, TranslationFault) else answer[0].gpa


@pytest.mark.row("xen", 13)
def test_an_endpoint_in_an_empty_context_reaches_its_regions_and_nothing_else():
    engine = new_engine()

    assert engine.attach(1, 1) is None

    assert engine.translate(1, 0x500800, 0x3000, RW) == [Run(0x500800, 0x3000)]
    assert [dma(engine, dfn) for dfn in (0x4FF, 0x500, 0x503, 0x504)] == [
        Refusal.NOT_MAPPED,
        0x500000,
        0x503000,
        Refusal.NOT_MAPPED,
    ]
    assert engine.direct(1) == ((0x500, 0x503),)
    assert engine.lookup(1, 0x501) == (0x501, RW)
    assert list(engine.areas(1)) == []


def test_fixed_and_unknown_domains_know_no_regions():
    engine = new_engine()

    engine.attach(1, BLOCKED)

    assert dma(engine, 0x500) is Refusal.BLOCKED
    assert (engine.direct(IDENTITY), engine.direct(BLOCKED), engine.direct(9)) == ((), (), ())


def test_a_refused_attachment_leaves_the_old_domain_and_a_block_in_place():
    engine = new_engine()
    engine.attach(1, 1)
    engine.map(2, 0x503, 0x10, 1, RW)
    engine.block(1)

    assert engine.attach(1, 2) is Stop.RESERVED_CONFLICT

    assert engine.is_blocked(1)
    engine.unblock(1)
    assert dma(engine, 0x500) == 0x500000


def test_regions_are_no_matter_of_requests_with_a_pasid():
    engine = new_engine()
    engine.map(1, 0x503, 0x10, 1, RW)

    assert engine.attach(1, 1, pasid=5) is None

    assert engine.direct(1) == ()
    assert engine.translate(1, 0x503000, 1, RW, pasid=5) == [Run(0x10000, 1)]


def test_reset_drops_regions_and_returns_their_pages():
    engine = new_engine()
    engine.attach(1, 1)

    engine.reset()

    assert engine.usage()[:2] == (0, 0)
    engine.alloc_paging(1)
    assert engine.attach(1, 1) is None
    assert dma(engine, 0x500) == 0x500000


def test_a_region_need_not_be_memory():
    engine = new_engine((ReservedFrames(0x20000, 0x20000, "direct"),))

    engine.attach(1, 1)

    assert dma(engine, 0x20000) == 0x20000000


def test_an_endpoint_with_regions_that_it_cannot_have_is_not_added():
    engine = new_engine()

    with pytest.raises(ValueError, match="endpoint 9, reserved region"):
        engine.add_endpoint(9, [ReservedFrames(0xFEE00, 0xFEE00, "direct")])

    assert 9 not in engine.endpoints()


def test_a_region_goes_with_its_endpoint_and_no_translation_stays():
    engine = new_engine((REGION,), ())
    engine.attach(1, 1)
    engine.attach(2, 1)
    assert dma(engine, 0x500, stream=2) == 0x500000

    engine.attach(1, 2)

    assert [dma(engine, dfn, stream=2) for dfn in (0x500, 0x503)] == [Refusal.NOT_MAPPED] * 2
    assert dma(engine, 0x500) == 0x500000
    assert (engine.direct(1), engine.direct(2)) == ((), ((0x500, 0x503),))
    assert engine.map(1, 0x500, 0x10, 4, RW).ok


@pytest.mark.row("xen", "24b")
def test_a_region_that_two_endpoints_share_goes_with_the_last_of_them():
    engine = new_engine((REGION,), (REGION,))
    engine.attach(1, 1)
    engine.attach(2, 1)
    used = engine.usage().pool_pages_used

    engine.attach(1, 0)
    assert dma(engine, 0x500, stream=2) == 0x500000
    assert engine.usage().pool_pages_used == used
    engine.attach(2, 0)

    assert engine.direct(1) == ()
    assert engine.usage().pool_pages_used == used - 2


@pytest.mark.row("xen", 23)
def test_attaching_to_the_same_context_neither_counts_nor_drops_regions():
    engine = new_engine()
    engine.attach(1, 1)
    engine.map(1, 0x100, 0x10, 1, RW)
    before = engine.usage()

    assert engine.attach(1, 1) is None

    assert engine.usage() == before
    assert (dma(engine, 0x500), dma(engine, 0x100)) == (0x500000, 0x10000)
    engine.attach(1, 0)
    assert engine.direct(1) == ()


@pytest.mark.row("xen", 42)
def test_the_guest_can_neither_map_nor_unmap_in_a_region():
    engine = new_engine()
    engine.attach(1, 1)

    assert engine.map(1, 0x4FE, 0x10, 8, RW) == Outcome(2, Stop.RESERVED, 0x500)
    assert engine.map(1, 0x503, 0x503, 1, RW) == Outcome(0, Stop.RESERVED, 0x503)
    assert engine.unmap(1, 0x4FE, 8) == Outcome(2, Stop.RESERVED, 0x500)
    assert engine.unmap(1, 0x503, 1) == Outcome(0, Stop.RESERVED, 0x503)
    assert engine.unmap(1, 0x504, 1) == Outcome(0, Stop.NOT_MAPPED, 0x504)

    assert engine.translate(1, 0x500000, 0x4000, RW) == [Run(0x500000, 0x4000)]


@pytest.mark.row("xen", 24)
@pytest.mark.parametrize(
    ("mapping", "conflict"),
    [
        ((0x500, 0x501, 1, RW), True),
        ((0x503, 0x10, 1, RW), True),
        ((0x502, 0x502, 1, R), True),
        ((0x502, 0x502, 1, Access.WRITE), True),
        ((0x4FF, 0x10, 1, RW), False),
        ((0x504, 0x10, 1, RW), False),
        ((0x4FE, 0x4FE, 8, RW), False),
    ],
)
def test_a_guest_mapping_that_differs_from_the_region_refuses_the_attachment(mapping, conflict):
    engine = new_engine()
    engine.map(1, *mapping)
    before, mappings = engine.usage(), list(engine.areas(1))

    assert engine.attach(1, 1) is (Stop.RESERVED_CONFLICT if conflict else None)

    assert engine.endpoints() == {1: 0 if conflict else 1}
    assert engine.direct(1) == (() if conflict else ((0x500, 0x503),))
    assert list(engine.areas(1)) == mappings
    assert engine.usage() == (before if conflict else before._replace(pool_pages_used=before.pool_pages_used + 2))


@pytest.mark.parametrize(
    ("first", "last", "conflict"), [(0x503, 0x504, True), (0x4FE, 0x500, True), (0x504, 0x504, False)]
)
def test_a_region_that_overlaps_a_different_one_refuses_the_attachment(first, last, conflict):
    engine = new_engine((REGION,), (ReservedFrames(0x10, 0x10, "direct"), ReservedFrames(first, last, "direct")))
    engine.attach(1, 1)

    assert engine.attach(2, 1) is (Stop.RESERVED_CONFLICT if conflict else None)

    assert engine.endpoints() == {1: 1, 2: 0 if conflict else 1}
    assert (0x10, 0x10) not in engine.direct(1) if conflict else (0x10, 0x10) in engine.direct(1)


def test_a_pool_too_small_for_the_regions_refuses_the_attachment_and_changes_nothing():
    engine = new_engine((REGION, ReservedFrames(0x700, 0x700, "direct")), pool_pages=2 + 3)
    engine.map(2, 0, 0, 1, RW)
    assert engine.attach(1, 1) is Stop.POOL_EXHAUSTED
    assert (engine.endpoints(), engine.direct(1), engine.usage().pool_pages_used) == ({1: 0}, (), 4)

    engine.unmap(2, 0, 1)

    assert engine.attach(1, 1) is None
    assert engine.usage().pool_pages_used == 5


def test_a_region_is_charged_in_the_new_context_before_the_old_one_returns_it():
    engine = new_engine(pool_pages=2 + 2 + 1)
    engine.attach(1, 1)

    assert engine.attach(1, 2) is Stop.POOL_EXHAUSTED
    assert engine.endpoints() == {1: 1}

    engine.attach(1, 0)
    assert engine.attach(1, 2) is None


def test_pages_mapped_identically_beneath_a_region_are_there_again_after_it():
    engine = new_engine()
    engine.map(1, 0x4FE, 0x4FE, 4, RW)

    engine.attach(1, 1)
    assert engine.unmap(1, 0x4FE, 4) == Outcome(2, Stop.RESERVED, 0x500)
    engine.attach(1, 0)

    assert list(engine.areas(1)) == [Area(0x500, 0x500, 2, RW, True)]


@pytest.mark.parametrize("mode", [UnmapMode.CHECK_ENDS, UnmapMode.UNTIL_CUT])
def test_whole_calls_beneath_a_region_can_go_and_the_region_stays(mode):
    engine = new_engine()
    engine.map(1, 0x4FE, 0x4FE, 8, RW)
    engine.attach(1, 1)

    assert engine.unmap(1, 0x4FE, 8, mode) == Outcome(8, None, None)

    assert engine.translate(1, 0x500000, 0x4000, RW) == [Run(0x500000, 0x4000)]
    assert dma(engine, 0x504) is Refusal.NOT_MAPPED


def test_a_translation_goes_on_from_a_mapping_into_a_region():
    engine = new_engine()
    engine.attach(1, 1)
    engine.map(1, 0x4FF, 0x4FF, 1, R)

    assert engine.translate(1, 0x4FF800, 0x1000, R) == [Run(0x4FF800, 0x1000)]
    assert engine.translate(1, 0x4FF800, 0x1000, RW) == TranslationFault(0x4FF800, Refusal.NO_PERMISSION, RW, 1, 1)
