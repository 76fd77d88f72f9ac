"""The declared messages have the sizes and places of the specification."""

from __future__ import annotations

import pytest

from vfio_user import messages
from vfio_user.messages import Header, HeaderFlags


@pytest.mark.parametrize(
    ("record", "size"),
    [
        (messages.Header, 16),
        (messages.Version, 4),
        (messages.DmaMap, 32),
        (messages.DmaUnmap, 24),
        (messages.GetInfo, 16),
        (messages.GetRegionInfo, 32),
        (messages.CapabilityHeader, 8),
        (messages.SparseMmap, 8),
        (messages.SparseArea, 16),
        (messages.GetRegionIoFds, 16),
        (messages.GetIrqInfo, 16),
        (messages.SetIrqs, 20),
        (messages.RegionAccess, 16),
        (messages.WriteMulti, 8),
        (messages.WriteMultiEntry, 24),
        (messages.DmaAccess, 16),
        (messages.DeviceFeature, 8),
        (messages.MigrationData, 8),
    ],
)
def test_record_has_the_size_of_the_specification(record: type[messages.Record], size: int) -> None:
    assert size == record.SIZE


def test_dma_map_bytes_are_argsz_flags_offset_address_size() -> None:
    packed = messages.DmaMap(32, 3, 0x1122, 0x3344, 0x5566).pack()
    assert packed == bytes.fromhex("20000000 03000000 2211000000000000 4433000000000000 6655000000000000")


def test_header_splits_type_and_flags() -> None:
    header = Header(1, 2, 16, 0x1 | HeaderFlags.NO_REPLY, 0)
    assert (header.type, header.no_reply) == (1, True)


def test_write_multi_entry_keeps_its_eight_bytes() -> None:
    entry = messages.WriteMultiEntry(4, 0, 2, b"ab".ljust(8, b"\0"))
    assert messages.WriteMultiEntry.unpack(entry.pack()) == entry


def test_every_name_in_all_exists() -> None:
    assert [name for name in messages.__all__ if not hasattr(messages, name)] == []
