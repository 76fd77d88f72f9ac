"""This project's client against servers in C: the programs that come with libvfio-user."""

from __future__ import annotations

import errno
import io
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pviommu.lab import libvfio_user as building
from pviommu.lab.progress import Progress
from vfio_user import DeviceFlags, IrqAction, IrqIndex, IrqKind, RegionFlags, RegionIndex, RemoteError
from vfio_user.client import Client

from .conftest import PAGE

Start = Callable[[str], Path]


@pytest.fixture(scope="module")
def samples(library_path: Path) -> Path:
    return building.samples(library_path, Progress(io.StringIO(), building.SAMPLE_STEPS))


@pytest.fixture
def start(samples: Path, tmp_path: Path) -> Iterator[Start]:
    """``start(name)``: the socket of a sample server that runs."""
    running: list[subprocess.Popen[bytes]] = []

    def begin(name: str) -> Path:
        path = tmp_path / "sample.sock"
        running.append(subprocess.Popen([samples / name, path], stderr=subprocess.DEVNULL))
        while not path.exists():
            assert running[-1].poll() is None
            time.sleep(0.005)
        return path

    yield begin
    for process in running:
        process.kill()
        process.wait()


def connect(path: Path) -> Client:
    """The server listens a moment after its file is there."""
    for _ in range(200):
        try:
            return Client.connect(path)
        except ConnectionRefusedError:
            time.sleep(0.005)
    return Client.connect(path)


def test_the_gpio_card_is_described_and_gives_its_lines(start: Start) -> None:
    with connect(start("gpio-pci-idio-16")) as client:
        info = client.device_info()
        assert (info.flags, info.num_regions, info.num_irqs) == (DeviceFlags.PCI | DeviceFlags.RESET, 10, 5)
        assert client.server.max_msg_fds == 8
        ports = client.region_info(RegionIndex.BAR2)
        assert (ports.size, ports.fd) == (0x100, None)
        assert client.config_read(0, 4) == 0x0DC8494F
        assert [len(client.region_read(RegionIndex.BAR2, 0, count)) for count in (1, 2, 4)] == [1, 2, 4]
        client.reset()


def test_the_gpio_card_takes_an_eventfd_and_the_next_client(start: Start) -> None:
    path = start("gpio-pci-idio-16")
    event = os.eventfd(0, os.EFD_CLOEXEC)
    for _ in range(2):
        with connect(path) as client:
            client.set_irqs(IrqIndex.INTX, IrqAction.TRIGGER, IrqKind.EVENTFD, 0, 1, fds=[event])
            client.set_irqs(IrqIndex.INTX, IrqAction.TRIGGER, IrqKind.NONE, 0, 1)
            assert os.eventfd_read(event) == 1
            client.disable_irqs(IrqIndex.INTX)
    os.close(event)


def test_a_range_of_memory_more_than_it_takes_is_refused(start: Start, memory: int) -> None:
    with connect(start("gpio-pci-idio-16")) as client:
        for number in range(16):
            client.dma_map(number * 2 * PAGE, PAGE, memory)
        with pytest.raises(RemoteError) as caught:
            client.dma_map(1 << 30, PAGE, memory)
        assert caught.value.errno == errno.EINVAL
        client.dma_unmap_all()
        client.dma_map(1 << 30, PAGE, memory)


def test_a_region_with_a_descriptor_for_each_area_is_mapped(start: Start) -> None:
    with connect(start("server")) as client:
        info = client.region_info(RegionIndex.BAR1)
        info.close()
        assert (info.size, info.areas) == (3 * PAGE, ((0, PAGE), (2 * PAGE, PAGE)))
        assert info.flags & RegionFlags.MMAP
        first, second = client.map_region(RegionIndex.BAR1)
        first.memory[:4] = b"word"
        assert client.region_read(RegionIndex.BAR1, 0, 4) == b"word"
        client.region_write(RegionIndex.BAR1, 2 * PAGE + 8, b"back")
        assert second.memory[8:12] == b"back"
        for area in (first, second):
            area.memory.close()
