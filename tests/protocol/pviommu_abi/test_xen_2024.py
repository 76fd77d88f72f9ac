"""Layouts of ``pv_iommu_op``, as numbers: the offsets are those of the June 2024 header, compiled."""

from __future__ import annotations

import pytest

from pviommu_abi.xen_2024 import (
    PV_IOMMU_OP_SIZE,
    XEN_2024_RECORDS,
    CreateFlags,
    FreeFlags,
    LookupPage,
    MapFlags,
    MapPages,
    QueryCapabilities,
    ReattachDevice,
    UnmapPages,
    Xen2024Op,
)

from .conftest import offsets


def test_sub_operations_have_the_numbers_of_june_2024() -> None:
    assert {op.name: op.value for op in Xen2024Op} == {
        "NOOP": 0,
        "QUERY_CAPABILITIES": 1,
        "ALLOC_CONTEXT": 2,
        "FREE_CONTEXT": 3,
        "REATTACH_DEVICE": 4,
        "MAP_PAGES": 5,
        "UNMAP_PAGES": 6,
        "LOOKUP_PAGE": 7,
    }


def test_flags_have_the_bits_of_june_2024() -> None:
    assert (CreateFlags.CLONE, FreeFlags.REATTACH_DEFAULT, MapFlags.READABLE, MapFlags.WRITEABLE) == (1, 1, 1, 2)


@pytest.mark.parametrize("op", list(Xen2024Op))
def test_every_layout_begins_with_the_common_head_and_fits(op: Xen2024Op) -> None:
    record = XEN_2024_RECORDS[op]

    assert (record.offset_of("subop_id"), record.offset_of("ctx_no"), record.offset_of("flags")) == (0, 2, 4)
    assert record.SIZE <= PV_IOMMU_OP_SIZE == 32


def test_map_has_gfn_first_and_dfn_at_16() -> None:
    layout = offsets(MapPages)

    assert (layout["gfn"], layout["dfn"], layout["nr_pages"], layout["mapped"]) == (8, 16, 24, 28)
    assert MapPages.SIZE == 32


def test_unmap_has_dfn_at_8() -> None:
    layout = offsets(UnmapPages)

    assert (layout["dfn"], layout["nr_pages"], layout["unmapped"]) == (8, 16, 20)


def test_lookup_has_gfn_first() -> None:
    layout = offsets(LookupPage)

    assert (layout["gfn"], layout["dfn"]) == (8, 16)


def test_reattach_has_the_pci_device_at_8() -> None:
    layout = offsets(ReattachDevice)

    assert (layout["seg"], layout["bus"], layout["devfn"]) == (8, 10, 11)


def test_query_has_the_context_count_at_8_and_the_limit_at_16() -> None:
    layout = offsets(QueryCapabilities)

    assert (layout["max_ctx_no"], layout["max_nr_pages"], layout["max_iova_addr"]) == (8, 12, 16)


def test_a_map_travels_bit_for_bit() -> None:
    packed = MapPages(5, 3, 1, gfn=0x1122334455667788, dfn=0x99AABBCCDDEEFF00, nr_pages=0x100, mapped=2).pack()

    assert packed.hex(" ", 8) == "0500030001000000 8877665544332211 00ffeeddccbbaa99 0001000002000000"
