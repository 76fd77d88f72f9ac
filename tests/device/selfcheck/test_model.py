"""The model alone, against histories worked out by hand: it judges everything else."""

from __future__ import annotations

import pytest

from pviommu.selfcheck.model import Model

RAM = [range(0x600), range(0x800, 0x1000)]


@pytest.fixture
def model() -> Model:
    """Context 1 is there, endpoint 7 is in it."""
    model = Model(3, 24, RAM, 39, True)
    model.attached = {7: 0, 8: 0}
    assert model.alloc(False) == (1, None, None)
    assert model.attach(7, 1) == (0, None, None)
    return model


def test_contexts_get_the_lowest_free_number_until_there_is_none(model: Model) -> None:
    assert [model.alloc(False)[0], model.alloc(False)[0]] == [2, 3]
    assert model.alloc(False) == (0, "NO_FREE_CONTEXT", None)

    model.free(2, False)

    assert model.alloc(False) == (2, None, None)


def test_a_map_stops_at_a_live_page_keeps_it_and_counts_those_before_it(model: Model) -> None:
    model.map(1, 0x102, 0x50, 1, 3)

    assert model.map(1, 0x100, 0x10, 5, 1) == (2, "MAPPED", 0x102)

    assert model.pages[1] == {0x100: (0x10, 1), 0x101: (0x11, 1), 0x102: (0x50, 3)}


@pytest.mark.parametrize(
    ("ctx", "dfn", "gfn", "nr", "access", "expected"),
    [
        (0, 1, 1, 1, 3, (0, "NOT_PAGING", None)),
        (2, 1, 1, 1, 3, (0, "NO_DOMAIN", None)),
        (1, 1, 1, 1, 0, (0, "NO_ACCESS", 1)),
        (1, (1 << 27) - 1, 1, 2, 3, (0, "OUT_OF_APERTURE", 1 << 27)),
        (1, 1 << 27, 1, 1, 3, (0, "OUT_OF_APERTURE", 1 << 27)),
        (1, 1, 0x5FE, 3, 3, (2, "NOT_RAM", 3)),
        (1, 0xFEDFF, 1, 2, 3, (1, "RESERVED", 0xFEE00)),
        (1, 0xFEE00, 0x700, 1, 3, (0, "NOT_RAM", 0xFEE00)),
        (1, 1, 1, 0, 0, (0, None, None)),
    ],
)
def test_a_map_is_refused(
    model: Model, ctx: int, dfn: int, gfn: int, nr: int, access: int, expected: tuple[int, str | None, int | None]
) -> None:
    assert model.map(ctx, dfn, gfn, nr, access) == expected


def test_an_unmap_stops_at_a_hole_and_leaves_what_is_behind_it(model: Model) -> None:
    model.map(1, 0x100, 0x10, 2, 3)
    model.map(1, 0x103, 0x10, 2, 3)

    assert model.unmap(1, 0x100, 5) == (2, "NOT_MAPPED", 0x102)

    assert sorted(model.pages[1]) == [0x103, 0x104]


def test_an_unmap_says_which_page_is_reserved(model: Model) -> None:
    assert model.unmap(1, 0xFEE00, 1) == (0, "RESERVED", 0xFEE00)


def test_pages_are_charged_for_a_root_and_the_tables_they_touch(model: Model) -> None:
    assert model.usage() == (1, 1, 24, 0)

    model.map(1, 0x1FF, 0x10, 2, 3)  # two 2 MiB tables below one 1 GiB table

    assert model.usage() == (1, 4, 24, 2)
    model.unmap(1, 0x1FF, 2)
    assert model.usage() == (1, 1, 24, 0)


def test_a_fourth_level_costs_a_table_more() -> None:
    model = Model(1, 24, RAM, 40, True)
    model.alloc(False)

    model.map(1, 0, 0, 1, 3)

    assert model.usage() == (1, 4, 24, 1)


def test_an_exhausted_pool_stops_a_map_at_the_page_that_needs_a_table() -> None:
    model = Model(1, 3, RAM, 39, True)
    model.alloc(False)

    assert model.map(1, 0x1FE, 0x10, 5, 3) == (2, "POOL_EXHAUSTED", 0x200)


def test_a_clone_maps_all_ram_or_is_not_made() -> None:
    model = Model(2, 13, RAM, 39, True)

    assert model.alloc(True) == (1, None, None)

    assert model.pages[1] == {gfn: (gfn, 3) for part in RAM for gfn in part}
    assert model.alloc(True) == (0, "POOL_EXHAUSTED", None)
    assert list(model.pages) == [1]


def test_a_context_with_an_endpoint_is_freed_only_by_moving_it(model: Model) -> None:
    assert model.free(1, False) == (0, "ENDPOINTS_ATTACHED", None)
    assert model.free(0, True) == (0, "DEFAULT_CONTEXT", None)
    assert model.free(9, True) == (0, "NO_DOMAIN", None)

    assert model.free(1, True) == (0, None, None)

    assert model.attached == {7: 0, 8: 0}


def test_an_unknown_endpoint_outranks_an_unknown_context(model: Model) -> None:
    assert model.attach(99, 9) == (0, "NO_ENDPOINT", None)
    assert model.attach(7, 9) == (0, "NO_DOMAIN", None)
    assert model.attached[7] == 1


def test_a_translation_is_one_piece_a_page(model: Model) -> None:
    model.map(1, 0x100, 0x10, 1, 3)
    model.map(1, 0x101, 0x20, 1, 3)

    assert model.translate(7, 0x100FFE, 5, 2) == [(0x10FFE, 2), (0x20000, 3)]


@pytest.mark.parametrize(
    ("stream", "iova", "length", "want", "expected"),
    [
        (7, 0x100FFF, 2, 1, (0x101000, "NOT_MAPPED")),
        (7, 0x102000, 1, 2, (0x102000, "NO_PERMISSION")),
        (7, (1 << 39) - 1, 2, 1, ((1 << 39) - 1, "NOT_MAPPED")),
        (7, 1 << 39, 2, 1, (1 << 39, "OUT_OF_APERTURE")),
        (7, (1 << 64) - 1, 2, 1, ((1 << 64) - 1, "OUT_OF_APERTURE")),
        (8, 0xFEE00000, 4, 2, (0xFEE00000, "RESERVED")),
        (8, 0x5FFFFF, 2, 1, (0x600000, "NOT_MAPPED")),
    ],
)
def test_a_translation_is_refused_at_its_first_bad_byte(
    model: Model, stream: int, iova: int, length: int, want: int, expected: tuple[int, str]
) -> None:
    model.map(1, 0x100, 0x10, 1, 3)
    model.map(1, 0x102, 0x10, 1, 1)

    assert model.translate(stream, iova, length, want) == expected


def test_a_reset_blocks_the_endpoints_that_were_elsewhere_until_they_are_attached(model: Model) -> None:
    model.reset()

    assert model.translate(7, 0x1000, 1, 1) == (0x1000, "BLOCKED")
    assert model.translate(8, 0x1000, 1, 1) == [(0x1000, 1)]
    model.attach(7, 0)
    assert model.translate(7, 0x1000, 1, 1) == [(0x1000, 1)]


def test_a_default_context_that_translates_nothing_blocks() -> None:
    model = Model(1, 24, RAM, 39, False)
    model.attached = {7: 0}

    assert model.translate(7, 0x1000, 1, 1) == (0x1000, "BLOCKED")
