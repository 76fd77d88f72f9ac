"""Layouts of the slot and its operations, as numbers.

The offsets of ``pv_iommu_op`` are those of the June 2024 header, compiled.
"""

from __future__ import annotations

import pytest

from pviommu_abi import slots
from pviommu_abi.slots import (
    PV_IOMMU_OP_SIZE,
    XEN_2024_RECORDS,
    XEN_V7_RECORDS,
    Binding,
    CreateFlags,
    Errno,
    FreeFlags,
    LookupPage,
    MapFlags,
    MapPages,
    QueryCapabilities,
    ReattachDevice,
    Slot,
    UnmapPages,
    Usage,
    V7AllocFlags,
    V7Capability,
    V7FreeFlags,
    V7MapFlags,
    Xen2024Op,
    XenV7Op,
)
from wire_layout import Record


def offsets(record: type[Record]) -> dict[str, int]:
    """Field name to offset."""
    return {field.name: field.offset for field in record.FIELDS}


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


def test_a_slot_is_a_header_of_16_and_a_payload_of_48() -> None:
    assert offsets(Slot) == {"op_class": 0, "op": 1, "flags": 2, "sequence": 4, "result": 8, "completed": 12}
    assert (Slot.SIZE, slots.PAYLOAD_OFFSET, slots.PAYLOAD_SIZE, slots.SLOT_SIZE) == (16, 16, 48, 64)


def test_sub_operations_have_the_numbers_of_versions_4_to_7() -> None:
    assert {op.name: op.value for op in XenV7Op} == {
        "NOOP": 0,
        "QUERY_CAPABILITIES": 1,
        "INIT": 2,
        "ALLOC_CONTEXT": 3,
        "FREE_CONTEXT": 4,
        "REATTACH_DEVICE": 5,
        "MAP_PAGES": 6,
        "UNMAP_PAGES": 7,
        "REMOTE_CMD": 8,
        "ALLOC_NESTED": 9,
        "FLUSH_NESTED": 10,
        "ATTACH_PASID": 11,
        "DETACH_PASID": 12,
    }


def test_flags_have_the_bits_of_versions_4_to_7() -> None:
    assert [flag.value for flag in V7Capability] == [1, 2, 4, 8, 16]
    assert (V7AllocFlags.IDENTITY, V7FreeFlags.REATTACH_DEFAULT) == (1, 1)
    assert (V7MapFlags.READABLE, V7MapFlags.WRITEABLE) == (1, 2)


@pytest.mark.parametrize(
    ("record", "size", "layout"),
    [
        (slots.V7Capabilities, 24, {"max_iova_addr": 0, "cap_flags": 8, "pgsize_mask": 12, "max_pasid": 16}),
        (slots.V7Capabilities, 24, {"max_ctx_no": 20, "pad0": 22}),
        (slots.V7Init, 8, {"max_ctx_no": 0, "arena_order": 4}),
        (slots.V7Alloc, 8, {"ctx_no": 0, "alloc_flags": 4}),
        (slots.V7Free, 8, {"ctx_no": 0, "free_flags": 4}),
        (slots.V7MapPages, 40, {"ctx_no": 0, "gfn": 8, "dfn": 16, "map_flags": 24, "pgsize": 28, "nr_pages": 32}),
        (slots.V7MapPages, 40, {"mapped": 36}),
        (slots.V7UnmapPages, 32, {"ctx_no": 0, "dfn": 8, "pgsize": 16, "nr_pages": 20, "unmapped": 24}),
        (slots.V7ReattachDevice, 12, {"ctx_no": 0, "seg": 2, "bus": 4, "devfn": 5, "pasid": 8}),
        (slots.V7RemoteCmd, 16, {"domid": 0, "subop": 2, "arg": 8}),
        (slots.MapOp, 24, {"bfn": 0, "mfn": 8, "flags": 16, "status": 20}),
    ],
)
def test_structures_have_the_compiled_offsets(record: type[Record], size: int, layout: dict[str, int]) -> None:
    assert size == record.SIZE
    assert layout.items() <= offsets(record).items()


def test_every_structure_of_v7_fits_the_payload_and_aligns_what_is_64_bits_wide() -> None:
    for record in filter(None, XEN_V7_RECORDS.values()):
        assert record.SIZE <= slots.PAYLOAD_SIZE
        assert all(field.offset % field.size == 0 for field in record.FIELDS)


def test_own_operations_fit_the_payload_and_are_aligned() -> None:
    assert Binding.SIZE == 16
    assert Usage.SIZE == 32
    assert offsets(Usage)["mapped_pages"] % 8 == 0


def test_a_map_travels_bit_for_bit() -> None:
    packed = MapPages(5, 3, 1, gfn=0x1122334455667788, dfn=0x99AABBCCDDEEFF00, nr_pages=0x100, mapped=2).pack()

    assert packed.hex(" ", 8) == "0500030001000000 8877665544332211 00ffeeddccbbaa99 0001000002000000"


def test_errno_values_are_those_of_xen() -> None:
    assert {error.name: error.value for error in Errno} == {
        "EPERM": 1,
        "ENOENT": 2,
        "EIO": 5,
        "E2BIG": 7,
        "ENOMEM": 12,
        "EACCES": 13,
        "EFAULT": 14,
        "EBUSY": 16,
        "EEXIST": 17,
        "ENODEV": 19,
        "EINVAL": 22,
        "ENOSPC": 28,
        "ERANGE": 34,
        "EOPNOTSUPP": 95,
        "EADDRINUSE": 98,
        "EADDRNOTAVAIL": 99,
    }
