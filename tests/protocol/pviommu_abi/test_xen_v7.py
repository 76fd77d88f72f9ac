"""Layouts of the operations of versions 4 to 7, as numbers: the offsets are those of the header, compiled."""

from __future__ import annotations

import pytest

from pviommu_abi.slots import PAYLOAD_SIZE
from pviommu_abi.xen_v7 import (
    XEN_V7_RECORDS,
    V7Alloc,
    V7AllocFlags,
    V7Capabilities,
    V7Capability,
    V7Free,
    V7FreeFlags,
    V7Init,
    V7MapFlags,
    V7MapPages,
    V7ReattachDevice,
    V7RemoteCmd,
    V7UnmapPages,
    XenV7Op,
)
from wire_layout import Record

from .conftest import offsets


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
        (V7Capabilities, 24, {"max_iova_addr": 0, "cap_flags": 8, "pgsize_mask": 12, "max_pasid": 16}),
        (V7Capabilities, 24, {"max_ctx_no": 20, "pad0": 22}),
        (V7Init, 8, {"max_ctx_no": 0, "arena_order": 4}),
        (V7Alloc, 8, {"ctx_no": 0, "alloc_flags": 4}),
        (V7Free, 8, {"ctx_no": 0, "free_flags": 4}),
        (V7MapPages, 40, {"ctx_no": 0, "gfn": 8, "dfn": 16, "map_flags": 24, "pgsize": 28, "nr_pages": 32}),
        (V7MapPages, 40, {"mapped": 36}),
        (V7UnmapPages, 32, {"ctx_no": 0, "dfn": 8, "pgsize": 16, "nr_pages": 20, "unmapped": 24}),
        (V7ReattachDevice, 12, {"ctx_no": 0, "seg": 2, "bus": 4, "devfn": 5, "pasid": 8}),
        (V7RemoteCmd, 16, {"domid": 0, "subop": 2, "arg": 8}),
    ],
)
def test_structures_have_the_compiled_offsets(record: type[Record], size: int, layout: dict[str, int]) -> None:
    assert size == record.SIZE
    assert layout.items() <= offsets(record).items()


def test_every_structure_of_v7_fits_the_payload_and_aligns_what_is_64_bits_wide() -> None:
    for record in filter(None, XEN_V7_RECORDS.values()):
        assert record.SIZE <= PAYLOAD_SIZE
        assert all(field.offset % field.size == 0 for field in record.FIELDS)
