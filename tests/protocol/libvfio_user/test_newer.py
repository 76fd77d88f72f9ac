"""The arguments that a library of the current generation gets, by one that stands in for it (``newer.c``).

No such library can be built from Debian's packages: that the real one takes these, this does not prove.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from libvfio_user import ArgumentError, Device, Generation, Library, MigrationState, Region, RegionFlag, raw
from pviommu.lab.libvfio_user import compile_in


class Saving(Device):
    def __init__(self, path: Path, library: Library) -> None:
        super().__init__(path, library=library)
        self.told: list[object] = []

    def migration_state(self, state: MigrationState) -> None:
        self.told.append(state)

    def save(self, count: int) -> bytes:
        return b"state"[:count]

    def load(self, data: bytes) -> None:
        self.told.append(data)


@pytest.fixture(scope="module")
def newer(compiler: Path, tmp_path_factory: pytest.TempPathFactory) -> Library:
    folder = tmp_path_factory.mktemp("newer")
    (folder / "newer.c").write_bytes(Path(__file__).with_name("newer.c").read_bytes())
    path = folder / "newer.so"
    path.write_bytes(compile_in(compiler, folder, ["-std=gnu11", "-shared", "-fPIC", "newer.c"]))
    return Library(path)


@pytest.fixture
def device(newer: Library, tmp_path: Path) -> Iterator[Saving]:
    with Saving(tmp_path / "device", newer) as made:
        yield made


def called(library: Library) -> list[str]:
    """What the stand-in has noted."""
    function = ctypes.CDLL(library.path).standin_said
    function.restype = ctypes.c_char_p
    return str(function().decode()).split(";")[:-1]


def test_it_is_told_from_the_older_one(newer: Library) -> None:
    assert newer.generation is Generation.CURRENT


def test_dma_has_as_many_ranges_as_asked_for(device: Saving, newer: Library) -> None:
    device.dma(1000)
    assert called(newer) == ["dma 1000"]


def test_messages_reach_any_address_and_have_flags(device: Saving, newer: Library) -> None:
    device.dma()
    ctypes.CDLL(newer.path).standin_map(ctypes.c_uint64(0x5000), ctypes.c_uint64(0x1000))
    assert device.read_memory(0x5004, 1) == b"r"
    device.write_memory(0x5FFF, b"w")
    assert called(newer)[1:] == ["read 1 flags 0", "write 1 w flags 0"]
    ctypes.CDLL(newer.path).standin_unmap(ctypes.c_uint64(0x5000), ctypes.c_uint64(0x1000))
    assert device.ranges == {}


def test_regions_are_as_large_as_they_are_and_may_be_of_64_bits(device: Saving, newer: Library) -> None:
    device.region(Region.BAR0, 8 << 30, flags=RegionFlag.RW | RegionFlag.MEM | RegionFlag.BITS_64)
    assert called(newer) == [f"region 0 {8 << 30} 23"]
    with pytest.raises(ArgumentError, match="a 64-bit BAR needs the next one too"):
        device.region(Region.BAR5, 16, flags=RegionFlag.RW | RegionFlag.MEM | RegionFlag.BITS_64)


def test_there_is_no_region_for_migration(device: Saving) -> None:
    with pytest.raises(ArgumentError, match="this library migrates without a region"):
        device.region(Region.MIGR, 8192)


def test_migration_is_by_three_callbacks(device: Saving, newer: Library) -> None:
    device.pci(1, 2)
    device.migration()
    assert called(newer) == ["migration 2"]
    assert ctypes.CDLL(newer.path).standin_migrate() == 5
    assert device.told == [MigrationState.STOP_AND_COPY, MigrationState.RESUME, b"state"]


@pytest.mark.parametrize("with_shadow", [False, True])
def test_ioeventfds_may_have_a_shadow(device: Saving, newer: Library, with_shadow: bool) -> None:
    device.region(Region.BAR2, 256)
    event = os.eventfd(0, os.EFD_CLOEXEC)
    device.ioeventfd(Region.BAR2, event, 8, 4, flags=1, datamatch=7, shadow=(event, 16) if with_shadow else None)
    os.close(event)
    assert called(newer)[1:] == ["ioeventfd 8 4 1 7 shadow 16" if with_shadow else "ioeventfd 8 4 1 7 none 0"]


def test_it_is_said_once_that_nobody_has_tried_it(newer: Library, caplog: pytest.LogCaptureFixture) -> None:
    raw._say_untried.cache_clear()
    for _ in range(2):
        Library(newer.path)
    (record,) = caplog.records
    assert record.getMessage().startswith(f"libvfio-user {newer.path}: its interface is newer than that of 2022")
