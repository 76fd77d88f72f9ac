"""Refusals say what was asked, the limit and the rule; the values that pass are complete."""

from __future__ import annotations

import errno
import struct

import pytest

from vfio_user import DmaMapping, IrqAction, IrqKind, IrqRequest, Region, RegionFlags, RequestError, requests
from vfio_user.messages import DmaMapFlags, GetRegionInfo


def test_map_keeps_its_access_mode() -> None:
    payload = struct.pack("<IIQQQ", 32, 1 | 8, 0x10, 0x2000, 0x3000)
    assert requests.dma_map(payload, [5]) == DmaMapping(0x2000, 0x3000, 0x10, True, False, 5, DmaMapFlags.FILE_IO)


def test_map_may_end_at_the_end_of_the_address_space() -> None:
    payload = struct.pack("<IIQQQ", 32, 3, 0, (1 << 64) - 0x1000, 0x1000)
    assert requests.dma_map(payload, []).size == 0x1000


def test_bool_irqs_become_flags() -> None:
    payload = struct.pack("<IIIII", 23, 2 | 32, 2, 1, 3) + b"\1\0\1"
    expected = IrqRequest(2, 1, 3, IrqAction.TRIGGER, IrqKind.BOOL, (), (True, False, True))
    assert requests.set_irqs(payload, [], lambda index: 4) == expected


def test_eventfd_irqs_name_their_descriptors() -> None:
    payload = struct.pack("<IIIII", 20, 4 | 32, 2, 0, 2)
    assert requests.set_irqs(payload, [8, 9], lambda index: 2).fds == (8, 9)


@pytest.mark.parametrize(
    ("region", "may_pass_fd", "flags", "fd"),
    [
        (Region(4096, RegionFlags.READ | RegionFlags.MMAP, (), 7), True, 5, 7),
        (Region(4096, RegionFlags.READ | RegionFlags.MMAP, (), 7), False, 1, None),
        (Region(4096, RegionFlags.READ | RegionFlags.MMAP, ((0, 4096),), None), True, 1, None),
        (Region(4096, RegionFlags.READ, ((0, 4096),), 7), True, 1, None),
        (Region(4096, RegionFlags.READ | RegionFlags.CAPS, (), 7), True, 1, None),
    ],
)
def test_mmap_is_told_only_with_a_descriptor(region: Region, may_pass_fd: bool, flags: int, fd: int | None) -> None:
    payload, passed = requests.region_info_reply(GetRegionInfo(4096, 0, 2, 0, 0, 0), region, may_pass_fd)
    assert GetRegionInfo.unpack(payload) == GetRegionInfo(32, flags, 2, 0, 4096, 0)
    assert (len(payload), passed) == (32, fd)


@pytest.mark.parametrize(("offset", "count", "fits"), [(0, 16, True), (16, 0, True), (15, 2, False), (17, 0, False)])
def test_range_must_lie_in_the_region(offset: int, count: int, fits: bool) -> None:
    if fits:
        requests.check_range(Region(16), 0, offset, count)
    else:
        with pytest.raises(RequestError, match="it has 0x10 bytes") as refused:
            requests.check_range(Region(16), 0, offset, count)
        assert refused.value.errno == errno.EINVAL


def test_refusal_names_request_limit_and_rule() -> None:
    with pytest.raises(RequestError, match=r"SET_IRQS index 2 vectors 1\+4: the index has 4 vectors"):
        requests.set_irqs(struct.pack("<IIIII", 20, 1 | 32, 2, 1, 4), [], lambda index: 4)
    with pytest.raises(RequestError, match="access of 9 bytes: at most 8 were negotiated"):
        requests.region_read(struct.pack("<QII", 0, 0, 9), 8)
    with pytest.raises(RequestError, match="DmaMap payload of 3 bytes: 32 are needed"):
        requests.dma_map(b"abc", [])
