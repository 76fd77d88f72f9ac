import pytest

from pviommu.engine import BLOCKED, Area, Refusal, Run, TranslationFault

from .test_engine import LIMIT, RW, STREAM, R, W, dma, new_engine


@pytest.mark.row("defect", "C3")
def test_adjacent_frames_come_as_one_run_and_others_apart():
    engine = new_engine()
    engine.map(1, 0x1FF, 0x10, 2, RW)
    engine.map(1, 0x201, 0x12, 1, RW)
    engine.map(1, 0x202, 0x40, 1, RW)

    assert engine.translate(STREAM, 0x1FF123, 0x3000, RW) == [Run(0x10123, 0x2EDD), Run(0x40000, 0x123)]


def test_no_bytes_are_always_allowed():
    engine = new_engine()

    assert engine.translate(STREAM, 0x1000, 0, RW) == []


@pytest.mark.row("defect", "C2")
def test_permission_is_checked_for_every_page_of_the_span():
    engine = new_engine()
    engine.map(1, 0x100, 0x10, 1, RW)
    engine.map(1, 0x101, 0x11, 1, R)
    engine.map(1, 0x102, 0x12, 1, W)
    span = (STREAM, 0x100800, 0x2000)

    assert engine.translate(*span, W) == TranslationFault(0x101000, Refusal.NO_PERMISSION, W, STREAM, 1)
    assert engine.translate(*span, R) == TranslationFault(0x102000, Refusal.NO_PERMISSION, R, STREAM, 1)
    assert engine.translate(*span, RW) == TranslationFault(0x101000, Refusal.NO_PERMISSION, RW, STREAM, 1)
    assert engine.translate(STREAM, 0x100800, 0x1000, R) == [Run(0x10800, 0x1000)]


@pytest.mark.row("defect", "C2")
def test_one_missing_page_in_the_middle_refuses_the_span_at_its_first_byte():
    engine = new_engine()
    engine.map(1, 0x100, 0x10, 2, RW)
    engine.map(1, 0x103, 0x13, 2, RW)

    assert engine.translate(STREAM, 0x100ABC, 0x4000, R) == TranslationFault(0x102000, Refusal.NOT_MAPPED, R, STREAM, 1)


def test_an_iotlb_that_is_used_is_empty_at_first_and_filled_by_what_follows():
    engine = new_engine()
    engine.map(1, 0x100, 0x10, 1, RW)
    assert dma(engine, 0x100) == 0x10000
    iotlb = engine.iotlb(is_used=True)

    assert len(iotlb) == 0
    assert dma(engine, 0x100) == 0x10000
    assert iotlb.get(1, 0x100) == (0x10, 1, RW)


def test_a_refusal_is_not_remembered():
    engine = new_engine()
    assert dma(engine, 0x100) is Refusal.NOT_MAPPED

    engine.map(1, 0x100, 0x10, 1, RW)

    assert dma(engine, 0x100) == 0x10000


@pytest.mark.parametrize("ctx", [0, 1])
def test_a_span_that_wraps_is_refused_at_its_first_byte(ctx):
    engine = new_engine()
    engine.attach(STREAM, ctx)
    iova = (1 << 64) - 1

    assert engine.translate(STREAM, iova, 2, R) == TranslationFault(iova, Refusal.OUT_OF_APERTURE, R, STREAM, ctx)


def test_a_span_past_the_aperture_is_refused_where_it_leaves():
    engine = new_engine()
    engine.map(1, LIMIT - 1, 0x10, 1, RW)

    fault = engine.translate(STREAM, (LIMIT << 12) - 8, 16, R)

    assert fault == TranslationFault(LIMIT << 12, Refusal.OUT_OF_APERTURE, R, STREAM, 1)


def test_the_last_byte_of_64_bits_is_looked_up_like_any_other():
    engine = new_engine()
    engine.attach(STREAM, 0)
    iova = (1 << 64) - 1

    assert engine.translate(STREAM, iova, 1, R) == TranslationFault(iova, Refusal.NOT_MAPPED, R, STREAM, 0)


def test_an_unknown_stream_reaches_nothing():
    assert new_engine().translate(99, 0, 1, R) == TranslationFault(0, Refusal.NO_ENDPOINT, R, 99, BLOCKED)


# the identity domain


def test_the_identity_domain_is_identity_of_ram_only():
    engine = new_engine()
    engine.set_ram([(0, 0x9F), (0x100, 0x10FF)])
    engine.attach(STREAM, 0)

    assert engine.translate(STREAM, 0x1FF800, 0x1000, RW) == [Run(0x1FF800, 0x1000)]
    assert engine.translate(STREAM, 0x9F800, 0x1000, RW) == TranslationFault(0xA0000, Refusal.NOT_MAPPED, RW, STREAM, 0)
    assert engine.lookup(0, 0x100) == (0x100, RW)
    assert engine.lookup(0, 0xA0) is None
    assert engine.lookup(0, 1 << 60) is None
    assert list(engine.areas(0)) == [Area(0, 0, 0xA0, RW, True), Area(0x100, 0x100, 0x1000, RW, True)]


def test_the_identity_domain_reaches_ram_beyond_the_aperture_of_others():
    engine = new_engine()
    engine.set_ram([(LIMIT, LIMIT)])
    engine.attach(STREAM, 0)

    assert dma(engine, LIMIT) == LIMIT << 12


def test_the_reserved_window_is_never_ram():
    engine = new_engine()
    engine.set_ram([(0, 0xFFFFF)])
    engine.attach(STREAM, 0)

    assert dma(engine, 0xFEDFF) == 0xFEDFF000
    assert engine.translate(STREAM, 0xFEDFF000, 0x2000, W) == TranslationFault(
        0xFEE00000, Refusal.RESERVED, W, STREAM, 0
    )
    engine.attach(STREAM, 1)
    assert dma(engine, 0xFEE00) is Refusal.RESERVED


def test_the_identity_domain_follows_a_change_of_ram_at_once():
    engine = new_engine()
    engine.attach(STREAM, 0)
    assert dma(engine, 0x100) == 0x100000

    engine.set_ram([(0x8000, 0x8FFF)])

    assert dma(engine, 0x100) is Refusal.NOT_MAPPED
    assert dma(engine, 0x8000) == 0x8000000
    assert engine.ram == ((0x8000, 0x8FFF),)
    assert (engine.is_ram(0x8FFE, 2), engine.is_ram(0x8FFE, 3)) == (True, False)
    assert (engine.is_ram(0x8FFF), engine.is_ram(0x9000)) == (True, False)


def test_the_blocked_domain_reaches_nothing():
    engine = new_engine()
    engine.attach(STREAM, BLOCKED)

    assert dma(engine, 0x100) is Refusal.BLOCKED
    assert engine.lookup(BLOCKED, 0x100) is None
    assert list(engine.areas(BLOCKED)) == []


def test_pieces_begin_where_they_are_asked_for_and_make_up_the_areas():
    engine = new_engine()
    engine.map(1, 0x1FF, 0x10, 3, RW)  # a leaf each
    engine.map(1, 0x400, 0x40, 1, R)

    assert list(engine.pieces(1)) == [
        Area(0x1FF, 0x10, 1, RW, True),
        Area(0x200, 0x11, 1, RW, False),
        Area(0x201, 0x12, 1, RW, False),
        Area(0x400, 0x40, 1, R, True),
    ]
    assert [piece.dfn for piece in engine.pieces(1, 0x201)] == [0x201, 0x400]
    assert list(engine.pieces(1, 0x401)) == list(engine.pieces(99)) == list(engine.pieces(BLOCKED)) == []


def test_pieces_of_the_identity_domain_are_what_is_left_of_ram():
    engine = new_engine()
    engine.set_ram([(0x10, 0x1F), (0x100, 0x1FF)])

    assert list(engine.pieces(0, 0x18)) == [Area(0x18, 0x18, 8, RW, True), Area(0x100, 0x100, 0x100, RW, True)]
    assert list(engine.pieces(0)) == list(engine.areas(0))


def test_areas_of_the_identity_domain_begin_with_frame_0_and_none_is_past_the_last():
    engine = new_engine()
    engine.set_ram([(0, 0x1F)])

    assert list(engine.areas(0)) == list(engine.pieces(0)) == [Area(0, 0, 0x20, RW, True)]
    assert list(engine.pieces(0, (1 << 52) - 1)) == list(engine.pieces(0, 1 << 52)) == []


def test_a_domain_tells_its_pages_and_whether_it_is_a_clone():
    engine = new_engine()
    engine.map(1, 0x100, 0x10, 3, RW)
    engine.alloc_paging(5, clone=True)

    assert [engine.mapped_pages(domain) for domain in (1, 0, 99)] == [3, 0, 0]
    assert [engine.is_clone(domain) for domain in (1, 5, 0)] == [False, True, False]
    usage = engine.usage()
    assert engine.pool_pages() == (usage.pool_pages_used, usage.pool_pages_total)
