"""Messages in words: every declared field by its name, whatever was sent."""

from __future__ import annotations

import errno
import json
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vfio_user import Command, Header, HeaderFlags
from vfio_user.describe import fields, text
from vfio_user.messages import (
    CapabilityHeader,
    DeviceFeature,
    DmaMap,
    DmaUnmap,
    GetIrqInfo,
    GetRegionInfo,
    RegionAccess,
    SetIrqs,
    SparseArea,
    SparseMmap,
    Version,
    WriteMulti,
    WriteMultiEntry,
)

pytestmark = pytest.mark.row("server", 80)

REPLY = 1


def said(command: int, payload: bytes = b"", flags: int = 0, descriptors: int = 0, error: int = 0) -> str:
    header = Header(7, command, Header.SIZE + len(payload), flags, error)
    return text(fields(header, payload, descriptors))


@pytest.mark.parametrize(
    ("command", "payload", "flags", "descriptors", "words"),
    [
        (
            Command.VERSION,
            Version(0, 1).pack() + b'{"capabilities":{}}\0',
            0,
            0,
            'request 7 VERSION major 0 minor 1 capabilities {"capabilities":{}}',
        ),
        (
            Command.DMA_MAP,
            DmaMap(32, 3, 0x1000, 0x100000, 0x2000).pack(),
            0,
            1,
            "request 7 DMA_MAP descriptors 1 argsz 32 flags READ|WRITE offset 0x1000 address 0x100000 size 0x2000",
        ),
        (Command.DMA_MAP, b"", REPLY, 0, "reply 7 DMA_MAP"),
        (
            Command.DMA_UNMAP,
            DmaUnmap(24, 6, 0, 0).pack(),
            0,
            0,
            "request 7 DMA_UNMAP argsz 24 flags ALL|0x4 address 0x0 size 0x0",
        ),
        (
            Command.DEVICE_GET_REGION_INFO,
            GetRegionInfo(80, 15, 2, 32, 0x4000, 0).pack()
            + CapabilityHeader(1, 1, 0).pack()
            + SparseMmap(2, 0).pack()
            + SparseArea(0, 0x1000).pack()
            + SparseArea(0x2000, 0x1000).pack(),
            REPLY,
            1,
            "reply 7 DEVICE_GET_REGION_INFO descriptors 1 argsz 80 flags READ|WRITE|MMAP|CAPS index BAR2 "
            "cap_offset 0x20 size 0x4000 offset 0x0 areas ['0x0+0x1000', '0x2000+0x1000']",
        ),
        (
            Command.DEVICE_GET_REGION_INFO,
            GetRegionInfo(48, 11, 2, 32, 0x4000, 0).pack() + CapabilityHeader(9, 1, 0).pack() + bytes(8),
            REPLY,
            0,
            "reply 7 DEVICE_GET_REGION_INFO argsz 48 flags READ|WRITE|CAPS index BAR2 "
            "cap_offset 0x20 size 0x4000 offset 0x0 areas []",
        ),
        (
            Command.DEVICE_GET_REGION_INFO,
            GetRegionInfo(39, 11, 2, 32, 0x4000, 0).pack() + CapabilityHeader(1, 1, 0).pack()[:-1],
            REPLY,
            0,
            "reply 7 DEVICE_GET_REGION_INFO argsz 39 flags READ|WRITE|CAPS index BAR2 "
            "cap_offset 0x20 size 0x4000 offset 0x0 areas []",
        ),
        (
            Command.DEVICE_GET_IRQ_INFO,
            GetIrqInfo(16, 1, 2, 9).pack(),
            REPLY,
            0,
            "reply 7 DEVICE_GET_IRQ_INFO argsz 16 flags EVENTFD index MSIX count 9",
        ),
        (
            Command.DEVICE_SET_IRQS,
            SetIrqs(22, 34, 2, 1, 2).pack() + b"\1\0",
            0,
            0,
            "request 7 DEVICE_SET_IRQS argsz 22 flags DATA_BOOL|ACTION_TRIGGER index MSIX start 1 count 2 data 0100",
        ),
        (
            Command.REGION_WRITE,
            RegionAccess(0x10, 0, 4).pack() + b"\1\2\3\4",
            int(HeaderFlags.NO_REPLY),
            0,
            "request 7 REGION_WRITE no_reply True offset 0x10 region BAR0 count 4 data 01020304",
        ),
        (
            Command.REGION_READ,
            RegionAccess(0, 7, 64).pack() + bytes(64),
            REPLY,
            0,
            f"reply 7 REGION_READ offset 0x0 region CONFIG count 64 data {'00' * 32}...",
        ),
        (
            Command.REGION_WRITE_MULTI,
            WriteMulti(2).pack()
            + WriteMultiEntry(8, 0, 2, b"\1\2".ljust(8, b"\0")).pack()
            + WriteMultiEntry(0, 99, 200, bytes(8)).pack(),
            0,
            0,
            "request 7 REGION_WRITE_MULTI wr_cnt 2 writes ['BAR0 0x8+2 0102', '99 0x0+200 0000000000000000']",
        ),
        (
            Command.DEVICE_FEATURE,
            DeviceFeature(8, 0x10002).pack(),
            0,
            0,
            "request 7 DEVICE_FEATURE argsz 8 flags GET feature 2",
        ),
        (Command.DEVICE_RESET, b"", 0, 0, "request 7 DEVICE_RESET"),
        (999, b"\xff", 0, 0, "request 7 999 data ff"),
        (Command.DMA_MAP, b"\1\2", 0, 0, "request 7 DMA_MAP data 0102"),
    ],
)
def test_fields_have_their_names(command: int, payload: bytes, flags: int, descriptors: int, words: str) -> None:
    assert said(command, payload, flags, descriptors) == words


def test_an_error_is_named() -> None:
    flags = REPLY | int(HeaderFlags.ERROR)
    assert said(Command.DMA_MAP, flags=flags, error=errno.EEXIST) == "reply 7 DMA_MAP error EEXIST"
    assert said(Command.DMA_MAP, flags=flags, error=4000) == "reply 7 DMA_MAP error 4000"


def test_numbers_stay_numbers_for_programs() -> None:
    found = fields(Header(1, Command.REGION_READ, 32, 0, 0), RegionAccess(0x10, 0, 4).pack())
    expected: dict[str, Any] = {"direction": "request", "command": "REGION_READ", "id": 1}
    assert found == expected | {"offset": 16, "region": "BAR0", "count": 4}


@given(
    st.integers(0, 0xFFFF) | st.sampled_from(list(Command)),
    st.integers(0, 0xFF),
    st.binary(max_size=200),
    st.integers(0, 64),
)
def test_whatever_was_sent_is_one_bounded_line_of_ascii(
    command: int, flags: int, payload: bytes, descriptors: int
) -> None:
    found = fields(Header(1, command, 16 + len(payload), flags, 5), payload, descriptors)
    json.dumps(found)
    line = text(found)
    assert line.isascii()
    assert line.isprintable()
    assert len(line) < 2000


def test_text_of_a_peer_begins_no_line() -> None:
    assert said(Command.VERSION, bytes(4) + b"{}\nforged").endswith("capabilities {}\\nforged")


def test_a_long_version_and_many_writes_are_shortened() -> None:
    assert len(said(Command.VERSION, struct.pack("<HH", 0, 1) + b"x" * 5000)) < 400
    entries = WriteMultiEntry(0, 0, 8, bytes(8)).pack() * 200
    assert said(Command.REGION_WRITE_MULTI, WriteMulti(200).pack() + entries).count("BAR0") == 16
