import pytest

from pviommu.engine import (
    BLOCKED,
    IDENTITY,
    MAX_DOMAIN,
    Access,
    Area,
    Engine,
    EngineConfig,
    EngineUsage,
    Outcome,
    Refusal,
    Run,
    Stop,
    TranslationFault,
    UnmapMode,
)

R, W, RW = Access.READ, Access.WRITE, Access.READ | Access.WRITE
LIMIT = 1 << 27
STREAM = 7


def new_engine(**fields):
    """An engine with 256 MiB of RAM (gfn 0..0xffff), context 1 and an endpoint in it."""
    engine = Engine(EngineConfig(**fields))
    engine.set_ram([(0, 0xFFFF)])
    engine.add_endpoint(STREAM)
    engine.alloc_paging(1)
    engine.attach(STREAM, 1)
    return engine


def dma(engine, dfn, access=R, stream=STREAM):
    """The gpa that one byte at the beginning of `dfn` reaches, or the refusal."""
    answer = engine.translate(stream, dfn << 12, 1, access)
    return answer.refusal if isinstance(answer, TranslationFault) else answer[0].gpa


# map


def test_mapped_pages_are_reached_and_counted():
    engine = new_engine()

    assert engine.map(1, 0x100, 0x10, 3, RW) == Outcome(3, None, None)

    assert [dma(engine, dfn) for dfn in (0x100, 0x101, 0x102)] == [0x10000, 0x11000, 0x12000]
    assert dma(engine, 0x103) is Refusal.NOT_MAPPED
    assert engine.usage() == EngineUsage(1, 3, 4096, 3)


@pytest.mark.row("defect", "C6")
@pytest.mark.row("defect", "C12")
def test_map_over_a_live_page_keeps_the_old_target_and_counts_the_prefix():
    engine = new_engine()
    engine.map(1, 0x102, 0x50, 1, RW)

    assert engine.map(1, 0x100, 0x10, 5, RW) == Outcome(2, Stop.MAPPED, 0x102)

    assert dma(engine, 0x101) == 0x11000
    assert dma(engine, 0x102) == 0x50000
    assert dma(engine, 0x103) is Refusal.NOT_MAPPED


def test_mapping_the_same_page_again_is_refused():
    engine = new_engine()
    engine.map(1, 0x100, 0x10, 1, RW)

    assert engine.map(1, 0x100, 0x10, 1, RW) == Outcome(0, Stop.MAPPED, 0x100)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((0, 0x100, 0x10, 1, RW), Outcome(0, Stop.NOT_PAGING, None)),
        ((9, 0x100, 0x10, 0, RW), Outcome(0, Stop.NO_DOMAIN, None)),
        ((1, LIMIT, 0x10, 0, Access(0)), Outcome(0, None, None)),
        ((1, 0x100, 0x10, 1, Access(0)), Outcome(0, Stop.NO_ACCESS, 0x100)),
        ((1, LIMIT - 1, 0x10, 2, RW), Outcome(0, Stop.OUT_OF_APERTURE, LIMIT)),
        ((1, LIMIT + 5, 0x10, 1, RW), Outcome(0, Stop.OUT_OF_APERTURE, LIMIT + 5)),
        ((1, (1 << 64) - 1, 0x10, 2, RW), Outcome(0, Stop.OUT_OF_APERTURE, (1 << 64) - 1)),
        ((1, 0x100, (1 << 64) - 1, 2, RW), Outcome(0, Stop.NOT_RAM, 0x100)),
    ],
)
def test_a_map_that_is_refused_beforehand_changes_nothing(arguments, expected):
    engine = new_engine()

    assert engine.map(*arguments) == expected

    assert engine.usage() == EngineUsage(1, 1, 4096, 0)


def test_the_last_frame_of_the_aperture_can_be_mapped():
    engine = new_engine()

    assert engine.map(1, LIMIT - 1, 0x10, 1, RW).ok

    assert dma(engine, LIMIT - 1) == 0x10000
    assert dma(engine, LIMIT) is Refusal.OUT_OF_APERTURE
    assert engine.unmap(1, LIMIT - 1, 1).ok


def test_the_first_frame_can_be_mapped():
    engine = new_engine()

    assert engine.map(1, 0, 0x10, 1, RW).ok

    assert dma(engine, 0) == 0x10000
    assert engine.lookup(1, 0) == (0x10, RW)
    assert engine.unmap(1, 0, 1).ok


def test_a_frame_that_is_not_ram_stops_the_map_there():
    engine = new_engine()

    assert engine.map(1, 0x100, 0xFFFE, 4, RW) == Outcome(2, Stop.NOT_RAM, 0x102)


def test_a_frame_that_is_not_ram_outranks_a_reserved_or_mapped_page():
    engine = new_engine()
    engine.map(1, 0x101, 0, 1, RW)

    assert engine.map(1, 0x100, 0xFFFF, 2, RW) == Outcome(1, Stop.NOT_RAM, 0x101)
    assert engine.map(1, 0xFEDFF, 0xFFFF, 2, RW) == Outcome(1, Stop.NOT_RAM, 0xFEE00)


def test_frames_that_are_not_ram_can_be_mapped_when_asked():
    engine = new_engine()

    assert engine.map(1, 0x100, 0xFEC00, 2, RW, ram_only=False).ok
    assert engine.map(1, 0x200, (1 << 52) - 1, 2, RW, ram_only=False) == Outcome(1, Stop.NOT_RAM, 0x201)
    assert engine.map(1, 0x300, 1 << 52, 1, RW, ram_only=False) == Outcome(0, Stop.NOT_RAM, 0x300)


def test_a_map_stops_at_the_reserved_window():
    engine = new_engine()

    assert engine.map(1, 0xFEDFE, 0, 4, RW) == Outcome(2, Stop.RESERVED, 0xFEE00)
    assert engine.map(1, 0xFEEFF, 0, 1, RW) == Outcome(0, Stop.RESERVED, 0xFEEFF)
    assert engine.map(1, 0xFEF00, 0, 1, RW).ok


@pytest.mark.row("defect", "C6")
@pytest.mark.row("defect", "C8")
@pytest.mark.row("defect", "D8")
@pytest.mark.row("defect", "D9")
def test_pool_exhaustion_stops_at_the_exact_page():
    engine = new_engine(pool_pages=4)

    assert engine.map(1, 0x1F0, 0x10, 0x1000, RW) == Outcome(0x210, Stop.POOL_EXHAUSTED, 0x400)

    assert dma(engine, 0x3FF) == 0x21F000
    assert dma(engine, 0x400) is Refusal.NOT_MAPPED
    assert engine.usage() == EngineUsage(1, 4, 4, 0x210)


@pytest.mark.row("defect", "D18")
def test_pool_pages_come_back_with_the_mappings():
    engine = new_engine(pool_pages=3)
    engine.map(1, 0, 0, 1, RW)
    assert engine.map(1, 0x200, 0, 1, RW).stop is Stop.POOL_EXHAUSTED

    engine.unmap(1, 0, 1)

    assert engine.map(1, 0x200, 0, 1, RW).ok


# unmap


def test_unmap_stops_at_a_hole_and_counts_the_prefix():
    engine = new_engine()
    engine.map(1, 0x100, 0x10, 2, RW)
    engine.map(1, 0x103, 0x13, 2, RW)

    assert engine.unmap(1, 0x100, 5) == Outcome(2, Stop.NOT_MAPPED, 0x102)

    assert [dma(engine, dfn) for dfn in (0x100, 0x101, 0x102)] == [Refusal.NOT_MAPPED] * 3
    assert [dma(engine, dfn) for dfn in (0x103, 0x104)] == [0x13000, 0x14000]


@pytest.mark.row("defect", "C4")
@pytest.mark.row("defect", "C5")
def test_unmap_takes_a_slice_across_two_maps():
    engine = new_engine()
    engine.map(1, 0x100, 0x10, 4, RW)
    engine.map(1, 0x104, 0x20, 4, RW)

    assert engine.unmap(1, 0x102, 4) == Outcome(4, None, None)

    assert list(engine.areas(1)) == [Area(0x100, 0x10, 2, RW, True), Area(0x106, 0x22, 2, RW, True)]


@pytest.mark.row("defect", "D3")
def test_unmap_invalidates_the_iotlb_before_it_returns():
    engine = new_engine()
    engine.map(1, 0x100, 0x10, 4, RW)
    assert dma(engine, 0x100) == 0x10000
    assert len(engine.translate(STREAM, 0x101000, 0x3000, R)) == 1

    engine.unmap(1, 0x100, 1)
    assert dma(engine, 0x100) is Refusal.NOT_MAPPED
    engine.unmap(1, 0x103, 2)

    assert engine.translate(STREAM, 0x101000, 0x3000, R) == TranslationFault(0x103000, Refusal.NOT_MAPPED, R, STREAM, 1)


@pytest.mark.parametrize("mode", list(UnmapMode))
@pytest.mark.row("defect", "D4")
def test_unmap_invalidates_for_every_endpoint_in_every_mode(mode):
    engine = new_engine()
    engine.add_endpoint(8)
    engine.attach(8, 1)
    engine.map(1, 0x1FF, 0x10, 2, RW)
    assert [dma(engine, 0x200, stream=stream) for stream in (7, 8)] == [0x11000, 0x11000]

    engine.unmap(1, 0x1FF, 2, mode)

    assert [dma(engine, 0x200, stream=stream) for stream in (7, 8)] == [Refusal.NOT_MAPPED] * 2


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((0, 0x100, 1), Outcome(0, Stop.NOT_PAGING, None)),
        ((9, 0x100, 0), Outcome(0, Stop.NO_DOMAIN, None)),
        ((1, LIMIT, 0), Outcome(0, None, None)),
        ((1, 0x100, LIMIT), Outcome(0, Stop.OUT_OF_APERTURE, LIMIT)),
        ((1, 0, LIMIT + 1), Outcome(0, Stop.OUT_OF_APERTURE, LIMIT)),
        ((1, 0x200, 1), Outcome(0, Stop.NOT_MAPPED, 0x200)),
        ((1, 0xFEE00, 1), Outcome(0, Stop.RESERVED, 0xFEE00)),
    ],
)
def test_an_unmap_that_is_refused_changes_nothing(arguments, expected):
    engine = new_engine()
    engine.map(1, 0x100, 0x10, 1, RW)

    assert engine.unmap(*arguments) == expected

    assert dma(engine, 0x100) == 0x10000


@pytest.mark.row("defect", "C4")
def test_check_ends_refuses_a_cut_whole_and_passes_over_holes():
    engine = new_engine()
    engine.map(1, 0x100, 0x10, 2, RW)
    engine.map(1, 0x104, 0x14, 4, RW)

    assert engine.unmap(1, 0x101, 7, UnmapMode.CHECK_ENDS) == Outcome(0, Stop.CUT, 0x101)
    assert engine.unmap(1, 0x100, 6, UnmapMode.CHECK_ENDS) == Outcome(0, Stop.CUT, 0x104)
    assert engine.usage().mapped_pages == 6
    assert engine.unmap(1, 0xF0, 0x20, UnmapMode.CHECK_ENDS) == Outcome(6, None, None)


@pytest.mark.row("defect", "C4")
def test_until_cut_removes_whole_calls_before_the_one_it_would_cut():
    engine = new_engine()
    engine.map(1, 0x100, 0x10, 1, RW)
    engine.map(1, 0x102, 0x10, 1, RW)
    engine.map(1, 0x104, 0x14, 4, RW)

    assert engine.unmap(1, 0x100, 6, UnmapMode.UNTIL_CUT) == Outcome(2, Stop.CUT, 0x104)

    assert list(engine.areas(1)) == [Area(0x104, 0x14, 4, RW, True)]


# domains and endpoints


@pytest.mark.row("defect", "D1")
def test_a_domain_never_translates_by_another_domains_pages():
    engine = new_engine()
    engine.add_endpoint(8)
    engine.alloc_paging(2)
    engine.attach(8, 2)
    engine.map(1, 0x100, 0x10, 2, RW)
    assert dma(engine, 0x100) == 0x10000
    assert dma(engine, 0x101) == 0x11000

    engine.map(2, 0x100, 0x90, 1, RW)

    assert dma(engine, 0x100, stream=8) == 0x90000
    assert dma(engine, 0x101, stream=8) is Refusal.NOT_MAPPED
    assert dma(engine, 0x100) == 0x10000
    engine.attach(STREAM, 2)
    assert dma(engine, 0x100) == 0x90000
    assert dma(engine, 0x101) is Refusal.NOT_MAPPED


def test_an_unknown_stream_outranks_an_unknown_context():
    engine = new_engine()

    assert engine.attach(99, 9) is Stop.NO_ENDPOINT
    assert engine.attach(STREAM, 9) is Stop.NO_DOMAIN
    assert engine.endpoints() == {STREAM: 1}


def test_a_clone_maps_all_ram_but_the_reserved_window_and_what_is_past_the_aperture():
    engine = Engine(EngineConfig(aperture_bits=32))
    engine.set_ram([(0, 0x3FFFF), (0xFE000, 0x11FFFF)])

    assert engine.alloc_paging(1, clone=True) is None

    assert list(engine.areas(1)) == [
        Area(0, 0, 0x40000, RW, True),
        Area(0xFE000, 0xFE000, 0xE00, RW, True),
        Area(0xFEF00, 0xFEF00, 0x1100, RW, True),
    ]


def test_a_cloned_page_can_be_unmapped():
    engine = Engine()
    engine.set_ram([(0, 0x3FFFF)])
    engine.alloc_paging(1, clone=True)

    assert engine.unmap(1, 0x1234, 1) == Outcome(1, None, None)

    assert engine.lookup(1, 0x1234) is None
    assert engine.lookup(1, 0x1235) == (0x1235, RW)


def test_a_domain_for_which_the_pool_has_no_page_is_not_there():
    engine = new_engine(pool_pages=1)

    assert engine.alloc_paging(2) is Stop.POOL_EXHAUSTED

    assert engine.domains() == (1,)


def test_a_clone_that_exhausts_the_pool_leaves_nothing_behind():
    engine = new_engine(pool_pages=100)

    assert engine.alloc_paging(2, clone=True) is Stop.POOL_EXHAUSTED

    assert engine.usage() == EngineUsage(1, 1, 100, 0)
    assert engine.alloc_paging(2) is None


def test_a_clone_without_ram_is_empty():
    engine = Engine()

    assert engine.alloc_paging(1, clone=True) is None
    assert list(engine.areas(1)) == []


@pytest.mark.row("defect", "D12")
@pytest.mark.row("defect", "D3")
def test_a_number_that_is_used_again_brings_nothing_back():
    engine = new_engine()
    engine.map(1, 0x100, 0x10, 1, RW)
    assert dma(engine, 0x100) == 0x10000

    engine.attach(STREAM, IDENTITY)
    assert engine.free_domain(1) is None
    assert engine.alloc_paging(1) is None
    engine.attach(STREAM, 1)

    assert dma(engine, 0x100) is Refusal.NOT_MAPPED
    assert engine.usage() == EngineUsage(1, 1, 4096, 0)


def test_a_domain_that_somebody_is_attached_to_is_not_freed():
    engine = new_engine()
    engine.map(1, 0x100, 0x10, 1, RW)

    assert engine.free_domain(1) is Stop.ENDPOINTS_ATTACHED
    assert dma(engine, 0x100) == 0x10000
    engine.attach(STREAM, BLOCKED)
    engine.attach(STREAM, 1, pasid=3)
    assert engine.free_domain(1) is Stop.ENDPOINTS_ATTACHED
    engine.detach(STREAM, 3)
    assert engine.free_domain(1) is None
    assert engine.usage() == EngineUsage(0, 0, 4096, 0)


def test_there_is_always_an_identity_and_a_blocked_domain():
    engine = new_engine()

    assert [engine.has_domain(number) for number in (IDENTITY, BLOCKED, 1, 9)] == [True, True, True, False]
    assert [engine.is_paging(number) for number in (IDENTITY, BLOCKED, 1, 9)] == [False, False, True, False]
    assert [engine.free_domain(number) for number in (IDENTITY, BLOCKED, 9)] == [Stop.NO_DOMAIN] * 3
    assert [engine.map(number, 0, 0, 1, RW).stop for number in (IDENTITY, BLOCKED, 9)] == [
        Stop.NOT_PAGING,
        Stop.NOT_PAGING,
        Stop.NO_DOMAIN,
    ]
    assert engine.domains() == (1,)


@pytest.mark.parametrize("number", [0, -1, MAX_DOMAIN + 1, 1])
def test_a_number_that_no_new_domain_can_have_is_refused(number):
    with pytest.raises(ValueError, match=f"domain {number}: "):
        new_engine().alloc_paging(number)


def test_an_endpoint_begins_where_it_is_told_to_in_a_fixed_domain():
    engine = new_engine()
    engine.add_endpoint(8, (), BLOCKED)

    with pytest.raises(ValueError, match="domain 1: an endpoint begins in IDENTITY or BLOCKED"):
        engine.add_endpoint(9, (), 1)

    assert engine.endpoints() == {STREAM: 1, 8: BLOCKED}
    assert dma(engine, 0x100, stream=8) is Refusal.BLOCKED
    engine.attach(8, IDENTITY)
    engine.reset()
    assert dma(engine, 0x100, stream=8) is Refusal.BLOCKED


# PASIDs


def test_requests_with_a_pasid_go_through_a_domain_of_their_own():
    engine = new_engine()
    engine.alloc_paging(2)
    engine.map(1, 0x100, 0x10, 1, RW)
    engine.map(2, 0x100, 0x20, 1, R)

    assert engine.attach(STREAM, 2, pasid=5) is None

    for _ in range(2):
        assert engine.translate(STREAM, 0x100000, 4, R) == [Run(0x10000, 4)]
        assert engine.translate(STREAM, 0x100000, 4, R, pasid=5) == [Run(0x20000, 4)]
    assert engine.translate(STREAM, 0x100000, 4, W, 5) == TranslationFault(
        0x100000, Refusal.NO_PERMISSION, W, STREAM, 2, 5
    )
    assert engine.translate(STREAM, 0x100000, 4, R, 6) == TranslationFault(
        0x100000, Refusal.NO_PASID, R, STREAM, BLOCKED, 6
    )
    assert engine.translate(99, 0x100000, 4, R, 5) == TranslationFault(0x100000, Refusal.NO_ENDPOINT, R, 99, BLOCKED, 5)


@pytest.mark.parametrize("pasid", [0, (1 << 20) - 1])
def test_the_first_and_the_last_pasid_can_be_had(pasid):
    engine = new_engine()

    assert engine.attach(STREAM, 1, pasid=pasid) is None


def test_a_pasid_that_is_detached_reaches_nothing_and_others_go_on():
    engine = new_engine()
    engine.map(1, 0x100, 0x10, 1, RW)
    engine.attach(STREAM, 1, pasid=5)
    engine.attach(STREAM, 1, pasid=6)

    engine.detach(STREAM, 5)
    engine.detach(STREAM, 5)

    assert engine.translate(STREAM, 0x100000, 4, R, 5).refusal is Refusal.NO_PASID
    assert engine.translate(STREAM, 0x100000, 4, R, 6) == engine.translate(STREAM, 0x100000, 4, R) == [Run(0x10000, 4)]


def test_a_pasid_of_an_unknown_endpoint_or_to_an_unknown_domain_is_not_attached():
    engine = new_engine()

    assert engine.attach(99, 1, pasid=5) is Stop.NO_ENDPOINT
    assert engine.attach(STREAM, 9, pasid=5) is Stop.NO_DOMAIN
    with pytest.raises(ValueError, match="pasid 1048576: must be"):
        engine.attach(STREAM, 1, pasid=1 << 20)

    assert engine.translate(STREAM, 0, 4, R, 5).refusal is Refusal.NO_PASID


def test_a_block_and_a_reset_are_of_all_pasids():
    engine = new_engine()
    engine.map(1, 0x100, 0x10, 1, RW)
    engine.attach(STREAM, 1, pasid=5)

    engine.block(STREAM)
    assert engine.translate(STREAM, 0x100000, 4, R, 5) == TranslationFault(0x100000, Refusal.BLOCKED, R, STREAM, 1, 5)
    engine.reset()

    assert engine.translate(STREAM, 0x100000, 4, R, 5).refusal is Refusal.NO_PASID


# RAM


def test_bad_ram_is_refused_and_changes_nothing():
    engine = new_engine()

    with pytest.raises(ValueError, match="first must not exceed last"):
        engine.set_ram([(0, 5), (9, 8)])

    assert engine.ram == ((0, 0xFFFF),)


def test_mappings_of_an_unknown_context_are_none():
    assert list(new_engine().areas(9)) == []


def test_one_map_call_is_one_run_whatever_leaves_hold_it_and_two_calls_are_two():
    engine = new_engine()
    engine.map(1, 0x1FF, 0x1FF, 0x202, R)
    engine.map(1, 0x401, 0x401, 1, R)

    assert list(engine.areas(1)) == [Area(0x1FF, 0x1FF, 0x202, R, True), Area(0x401, 0x401, 1, R, True)]


# pieces of one call


def test_a_later_piece_of_a_map_goes_on_with_its_call():
    engine = new_engine()
    engine.map(1, 0x1FF, 0x1FF, 3, RW)

    assert engine.map(1, 0x202, 0x202, 2, RW, continues=True) == Outcome(2, None, None)

    assert list(engine.areas(1)) == [Area(0x1FF, 0x1FF, 5, RW, True)]
    assert engine.unmap(1, 0x202, 2, UnmapMode.CHECK_ENDS) == Outcome(0, Stop.CUT, 0x202)


def test_a_later_piece_begins_a_call_when_the_earlier_one_is_gone():
    engine = new_engine()
    engine.map(1, 0x100, 0x100, 2, RW)
    engine.unmap(1, 0x101, 1)

    engine.map(1, 0x102, 0x102, 2, RW, continues=True)
    assert engine.unmap(1, 0x102, 2, UnmapMode.CHECK_ENDS) == Outcome(2, None, None)
    engine.map(1, 0x101, 0x101, 1, R)
    engine.map(1, 0x102, 0x102, 1, RW, continues=True)

    assert [run.dfn for run in engine.areas(1) if run.starts_call] == [0x100, 0x101, 0x102]


# RAM, block, reset


def test_a_blocked_endpoint_reaches_nothing_until_it_is_unblocked():
    engine = new_engine()
    engine.map(1, 0x100, 0x10, 1, RW)
    assert dma(engine, 0x100) == 0x10000

    assert engine.block(STREAM) is None

    assert engine.is_blocked(STREAM)
    assert dma(engine, 0x100) is Refusal.BLOCKED
    engine.attach(STREAM, 1)
    assert dma(engine, 0x100) is Refusal.BLOCKED
    assert engine.unblock(STREAM) is None
    assert not engine.is_blocked(STREAM)
    assert dma(engine, 0x100) == 0x10000


def test_an_unknown_endpoint_is_neither_blocked_nor_unblocked():
    engine = new_engine()

    assert (engine.block(99), engine.unblock(99)) == (Stop.NO_ENDPOINT, Stop.NO_ENDPOINT)
    assert not engine.is_blocked(99)


def test_reset_returns_to_power_on_and_keeps_memory():
    engine = new_engine()
    engine.map(1, 0x100, 0x10, 1, RW)
    assert dma(engine, 0x100) == 0x10000
    engine.resize_pool(100)
    engine.block(STREAM)

    engine.reset()

    assert engine.usage() == EngineUsage(0, 0, 4096, 0)
    assert engine.endpoints() == {STREAM: IDENTITY}
    assert dma(engine, 0x100) == 0x100000
    engine.alloc_paging(1)
    engine.attach(STREAM, 1)
    assert dma(engine, 0x100) is Refusal.NOT_MAPPED


# deferred invalidation


def test_one_batch_of_unmaps_is_one_flush_and_leaves_nothing_stale():
    engine = new_engine()
    engine.map(1, 0x100, 0x10, 4, RW)
    engine.translate(STREAM, 0x100000, 0x4000, RW)
    flushes = engine.iotlb_flushes

    with engine.deferred_invalidation():
        for dfn in (0x100, 0x102):
            engine.unmap(1, dfn, 1)
            assert dma(engine, dfn) is Refusal.NOT_MAPPED
        assert dma(engine, 0x101) == 0x11000
        assert engine.iotlb_flushes == flushes

    assert engine.iotlb_flushes == flushes + 1
    assert [dma(engine, dfn) for dfn in range(0x100, 0x104)] == [
        Refusal.NOT_MAPPED,
        0x11000,
        Refusal.NOT_MAPPED,
        0x13000,
    ]


def test_a_batch_without_unmaps_flushes_nothing():
    engine = new_engine()
    flushes = engine.iotlb_flushes

    with engine.deferred_invalidation():
        engine.map(1, 0x100, 0x10, 4, RW)

    assert engine.iotlb_flushes == flushes


def test_each_unmap_outside_a_batch_is_a_flush():
    engine = new_engine()
    engine.map(1, 0x100, 0x10, 2, RW)
    flushes = engine.iotlb_flushes

    engine.unmap(1, 0x100, 1)
    engine.unmap(1, 0x101, 1)

    assert engine.iotlb_flushes == flushes + 2


# the pool


@pytest.mark.parametrize(("pages", "least"), [(10, 3), (2, 3)])
def test_a_pool_is_never_larger_than_configured_nor_smaller_than_what_is_in_use(pages, least):
    engine = new_engine(pool_pages=9)
    engine.map(1, 0, 0, 1, RW)

    with pytest.raises(ValueError, match=rf"limit of {pages} pool pages: must be {least}\.\.9"):
        engine.resize_pool(pages)

    assert engine.usage() == EngineUsage(1, 3, 9, 1)
    engine.resize_pool(3)
    assert engine.map(1, 0x200, 0, 1, RW).stop is Stop.POOL_EXHAUSTED
    engine.resize_pool(9)
    assert engine.map(1, 0x200, 0, 1, RW).ok


def test_a_domain_holds_what_was_reserved_for_it_and_a_fixed_domain_nothing():
    engine = new_engine(pool_pages=16)

    assert not engine.has_reservation(1)
    assert engine.reserve_pool(1, 10) is None
    assert [engine.has_reservation(domain) for domain in (0, 1, 9)] == [False, True, False]
    assert engine.usage().pool_pages_used == 10
    assert engine.reserve_pool(1, 17) is Stop.POOL_EXHAUSTED
    assert engine.reserve_pool(0, 1) is Stop.NOT_PAGING
    assert engine.reserve_pool(9, 1) is Stop.NO_DOMAIN
    assert engine.usage().pool_pages_used == 10


def test_mmio_can_be_mapped_as_ram_can_and_is_in_no_clone():
    engine = new_engine()
    engine.set_mmio([(0x20000, 0x20003)])
    assert engine.mmio == ((0x20000, 0x20003),)
    assert engine.map(1, 0x100, 0x20000, 5, RW) == Outcome(4, Stop.NOT_RAM, 0x104)
    engine.alloc_paging(2, clone=True)
    assert engine.lookup(2, 0x20000) is None
    assert not engine.is_ram(0x20000)


def test_what_is_mapped_stays_mapped_when_mmio_goes_and_the_identity_domain_follows():
    engine = new_engine()
    engine.set_mmio([(0x20000, 0x20003)])
    engine.map(1, 0x100, 0x20000, 1, RW)
    assert engine.lookup(0, 0x20000) == (0x20000, RW)
    engine.set_mmio([])
    assert engine.lookup(1, 0x100) == (0x20000, RW)
    assert engine.lookup(0, 0x20000) is None


def test_no_translation_to_mmio_stays_in_the_identity_domain_when_it_goes():
    engine = new_engine()
    engine.set_mmio([(0x20000, 0x20003)])
    engine.attach(STREAM, IDENTITY)
    assert dma(engine, 0x20000) == 0x20000000

    engine.set_mmio([])

    assert dma(engine, 0x20000) is Refusal.NOT_MAPPED


def test_mmio_beside_ram_is_one_run_with_it():
    engine = new_engine()
    engine.set_ram([(0, 0xFFF)])
    engine.set_mmio([(0x1000, 0x1003), (0xFF0, 0xFF1)])
    assert engine.map(1, 0x100, 0xFFE, 4, RW).done == 4
    assert [tuple(run[:3]) for run in engine.areas(0)] == [(0, 0, 0x1004)]


def test_ram_that_changes_while_there_is_mmio_and_once_it_is_gone_may_be_mapped_at_once():
    engine = new_engine()
    engine.set_mmio([(0x20000, 0x20003)])
    engine.set_ram([(0, 9)])
    assert (engine.lookup(0, 9), engine.lookup(0, 0x20000)) == ((9, RW), (0x20000, RW))
    engine.set_mmio([])
    assert (engine.lookup(0, 9), engine.lookup(0, 0x20000)) == ((9, RW), None)
    engine.set_ram([(5, 19)])
    assert (engine.lookup(0, 4), engine.lookup(0, 19)) == (None, (19, RW))


def test_a_name_that_the_package_does_not_have_is_an_attribute_error():
    import pviommu.engine

    with pytest.raises(AttributeError, match=r"module 'pviommu\.engine' has no attribute 'Enigne'"):
        _ = pviommu.engine.Enigne
