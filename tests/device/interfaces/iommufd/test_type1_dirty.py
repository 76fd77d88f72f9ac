"""Dirty pages of type1: as Linux answers for devices that an IOMMU maps for, all that is mapped may be dirty."""

from __future__ import annotations

import struct

import pytest

from pviommu.interfaces.iommufd import DeviceConfig, System
from pviommu.interfaces.iommufd import vfio_structures as v
from pviommu.interfaces.iommufd.holdings import changes, holdings
from pviommu.interfaces.iommufd.places import refusal

from .conftest import PAGE, fails
from .test_type1 import Client

START, STOP, GET = v.DirtyPagesFlag
IOVA = 1 << 20
BITMAP = int(v.DmaUnmapFlag.GET_DIRTY_BITMAP)


class Dirty(Client):
    """Asks which pages are dirty."""

    def __init__(self, version: int = 2) -> None:
        super().__init__(System([DeviceConfig("dma0")]), 0, version=version)
        self.bits = bytearray(b"\xee" * 32)
        self.place = self.program.memory.add(self.bits)

    def ask(self, flags: int, *behind: int, argsz: int | None = None) -> None:
        data = struct.pack("<II5Q", 48 if argsz is None else argsz, flags, *behind, *[0] * (5 - len(behind)))
        self.program.ioctl(self.container, v.VfioRequest.IOMMU_DIRTY_PAGES, self.program.memory.add(data))

    def get(self, iova: int, pages: int, size: int = 16, page: int = PAGE, data: int | None = None) -> bytes:
        self.ask(GET, iova, pages * PAGE, page, size, self.place if data is None else data)
        return bytes(self.bits)

    def unmap_with(self, iova: int, pages: int, size: int = 16, page: int = PAGE, data: int | None = None) -> int:
        place = self.place if data is None else data
        request = bytearray(struct.pack("<IIQQQQQ", 48, BITMAP, iova, pages * PAGE, page, size, place))
        self.program.ioctl(self.container, v.VfioRequest.IOMMU_UNMAP_DMA, self.program.memory.add(request))
        return v.DmaUnmap.unpack(request).size


@pytest.fixture
def dirty() -> Dirty:
    client = Dirty()
    client.map(IOVA, 3 * PAGE)
    client.map(IOVA + 5 * PAGE, 2 * PAGE)
    client.ask(START)
    return client


def test_all_that_is_mapped_is_dirty_in_words_of_64_bits(dirty: Dirty) -> None:
    first = dirty.get(IOVA, 128)
    assert first == (0b1100111).to_bytes(8, "little") + b"\xee" * 24  # the second word has no mapping
    assert dirty.get(IOVA, 128) == first  # and is so the next time


def test_a_mapping_goes_on_in_the_next_word_and_keeps_what_is_before_it(dirty: Dirty) -> None:
    dirty.map(IOVA + 60 * PAGE, 8 * PAGE)
    words = struct.unpack("<QQ", dirty.get(IOVA, 128)[:16])
    assert words == (0b1100111 | 0xF << 60, 0xF)


def test_the_word_in_whose_middle_a_mapping_begins_keeps_all_of_its_bits(dirty: Dirty) -> None:
    dirty.bits[:8] = bytes(8)
    dirty.bits[7] = 0x80  # behind the mapping
    assert dirty.get(IOVA - PAGE, 64)[:8] == (0b11001110 | 1 << 63).to_bytes(8, "little")
    assert dirty.get(IOVA, 64)[:8] == (0b1100111).to_bytes(8, "little")


def passed(client: Dirty, fails_at: int = 0) -> list[str]:
    """The places that are passed from now on; what comes at one of them fails."""
    names: list[str] = []

    def meet(place: str) -> None:
        names.append(place)
        if place == "bitmap" and names.count(place) == fails_at:
            raise refusal(place, "ENOMEM")

    client.program.system.places.intercept(meet)
    return names


def test_each_mapping_needs_room_for_its_bits(dirty: Dirty) -> None:
    dirty.ask(STOP)
    names = passed(dirty, fails_at=2)
    with fails("ENOMEM", "on purpose"):
        dirty.ask(START)
    with fails("EINVAL", "not tracked"):
        dirty.get(IOVA, 64)
    dirty.ask(START)
    assert names.count("bitmap") == 2 + 2
    dirty.ask(START)  # they have it
    assert names.count("bitmap") == 2 + 2


def test_a_mapping_without_room_for_its_bits_is_undone(dirty: Dirty) -> None:
    passed(dirty, fails_at=1)
    system = dirty.program.system
    files = [dirty.program.find_file(fd) for fd in dirty.program.descriptors()]
    before = holdings(system, files)
    with fails("ENOMEM", "on purpose"):
        dirty.map(0, PAGE)
    assert changes(before, holdings(system, files)) == []
    dirty.map(0, PAGE)


def test_an_unmap_tells_of_what_goes(dirty: Dirty) -> None:
    assert dirty.unmap_with(IOVA, 64) == 5 * PAGE
    assert dirty.bits[:8] == (0b1100111).to_bytes(8, "little")
    assert dirty.unmap(IOVA, 64 * PAGE) == 0


def test_an_unmap_that_cannot_tell_of_an_area_stops_before_it(dirty: Dirty) -> None:
    dirty.map(IOVA + 128 * PAGE, PAGE)
    behind = dirty.place + 32 - 16  # 16 bytes are there, and the area is in the third word
    with fails("EFAULT", "cannot be written"):
        dirty.unmap_with(IOVA, 192, 24, data=behind)
    assert dirty.unmap(IOVA, 192 * PAGE) == PAGE  # the others are gone


def test_only_while_it_is_asked_for(dirty: Dirty) -> None:
    dirty.ask(START)  # again
    dirty.ask(STOP)
    with fails("EINVAL", "not tracked"):
        dirty.get(IOVA, 64)
    with fails("EINVAL", "not tracked"):
        dirty.unmap_with(IOVA, 64)
    dirty.ask(STOP)


def test_ranges_that_would_cut_a_mapping(dirty: Dirty) -> None:
    for iova, pages in ((IOVA + PAGE, 64), (IOVA, 2), (IOVA, 6)):
        with fails("EINVAL", "would cut"):
            dirty.get(iova, pages)
        with fails("EINVAL", "would cut"):
            dirty.unmap_with(iova, pages)
    assert dirty.bits == b"\xee" * 32


def test_requests_that_are_refused(dirty: Dirty) -> None:
    for flags in (0, START | STOP, 8):
        with fails("EINVAL"):
            dirty.ask(flags)
    with fails("EINVAL"):
        dirty.ask(GET, argsz=47)
    with fails("EINVAL", "size 0"):
        dirty.get(IOVA, 0)
    with fails("EOVERFLOW"):
        dirty.get((1 << 64) - PAGE, 2)
    for size in (0, 7, (1 << 28) + 8):
        with fails("EINVAL", "bitmap of"):
            dirty.get(IOVA, 64, size)
    for data in (1 << 60, (1 << 47) - PAGE - 8):  # bitmaps have 16 bytes
        with fails("EINVAL", "bitmap of"):
            dirty.get(IOVA, 64, data=data)
    with fails("EFAULT"):
        dirty.get(IOVA, 64, data=(1 << 47) - PAGE - 16)
    for page in (0, 2 * PAGE, PAGE // 2):
        with fails("EINVAL"):
            dirty.get(IOVA, 64, page=page)
        with fails("EINVAL"):
            dirty.unmap_with(IOVA, 64, page=page)
    with fails("EINVAL", "must be of pages"):
        dirty.get(IOVA + 1, 64)
    with fails("EFAULT"):
        dirty.get(IOVA, 64, data=PAGE)
    with fails("EINVAL"):
        dirty.unmap(0, 0, flags=int(v.DmaUnmapFlag.ALL) | BITMAP, argsz=48)
    with fails("EINVAL", "argsz 24"):
        dirty.unmap(IOVA, 64 * PAGE, flags=BITMAP)
    assert dirty.unmap(IOVA, 64 * PAGE) == 5 * PAGE  # all of it is still there


def test_version_1_does_not_know_them() -> None:
    client = Dirty(version=1)
    with fails("EACCES"):
        client.ask(START)
