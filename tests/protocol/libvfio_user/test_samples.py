"""This project's client against servers in C: the programs that come with libvfio-user.

``gpio-pci-idio-16``, ``server`` and ``null`` are servers; ``lspci`` prints a configuration space and listens to nobody.
"""

from __future__ import annotations

import errno
import os
import select
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from vfio_user import (
    DeviceFlags,
    DmaMapFlags,
    IrqAction,
    IrqIndex,
    IrqKind,
    RegionFlags,
    RegionIndex,
    RemoteError,
    SessionLimits,
    transport,
)
from vfio_user.client import Client

from .conftest import PAGE

PATIENCE_S = 10
MIGRATION = 9
STATE_SAVING_RUNNING = 3
"""of the first version of migration"""

Start = Callable[[str], Path]


@pytest.fixture
def start(samples: Path, tmp_path: Path) -> Iterator[Start]:
    """``start(name)``: the socket of a sample server that runs."""
    running: list[subprocess.Popen[bytes]] = []

    def begin(name: str) -> Path:
        path = tmp_path / "sample.sock"
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        # null ends when its input does
        running.append(subprocess.Popen([samples / name, path], stdin=subprocess.PIPE, **quiet))
        while not path.exists():
            assert running[-1].poll() is None
            time.sleep(0.005)
        return path

    yield begin
    for process in running:
        process.kill()
        process.communicate()


def connect(path: Path, limits: SessionLimits | None = None) -> Client:
    """The server listens a moment after its file is there."""
    for _ in range(200):
        try:
            return Client.connect(path, limits=limits)
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


@pytest.mark.parametrize(("proposed", "agreed"), [(0, 0), (1, 1), (2, 1)])
def test_the_smaller_minor_version_is_agreed_on(start: Start, proposed: int, agreed: int) -> None:
    connect(path := start("gpio-pci-idio-16")).close()
    with Client(transport.connect(path, PATIENCE_S)) as client:
        client.negotiate(proposed)
        assert (client.minor, client.server.max_data_xfer_size) == (agreed, 1 << 20)


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("gpio-pci-idio-16", {RegionIndex.BAR2: 0x100, RegionIndex.CONFIG: 0x100, MIGRATION: 2 * PAGE}),
        (
            "server",
            {RegionIndex.BAR0: 8, RegionIndex.BAR1: 3 * PAGE, RegionIndex.CONFIG: 0x100, MIGRATION: 5 * PAGE},
        ),
        ("null", {RegionIndex.CONFIG: 0x100}),
    ],
)
def test_ten_regions_are_asked_for_one_by_one(start: Start, name: str, sizes: dict[int, int]) -> None:
    with connect(start(name)) as client:
        found = [client.region_info(index) for index in range(client.device_info().num_regions)]
        assert [info.index for info in found] == list(range(10))
        assert {info.index: info.size for info in found if info.size} == sizes
        for info in found:
            info.close()


def test_the_region_for_migration_is_mapped_but_for_its_registers(start: Start) -> None:
    with connect(start("server")) as client:
        (data,) = client.map_region(MIGRATION)
        assert (data.offset, len(data.memory)) == (PAGE, 4 * PAGE)
        client.region_write(RegionIndex.BAR1, 0, b"state")
        client.region_write(MIGRATION, 0, struct.pack("<I", STATE_SAVING_RUNNING))
        pending = client.region_read(MIGRATION, 8, 8)
        assert int.from_bytes(pending, "little") == 3 * PAGE
        data.memory.close()


def test_an_interrupt_is_followed_by_dma_messages_that_are_served(start: Start, memory: int) -> None:
    event = os.eventfd(0, os.EFD_CLOEXEC)
    with connect(start("server"), SessionLimits(max_data_xfer_size=PAGE)) as client:
        client.dma_map(0x10000, PAGE, memory, 2 * PAGE)
        client.set_irqs(IrqIndex.INTX, IrqAction.TRIGGER, IrqKind.EVENTFD, 0, 1, fds=[event])
        while time.time() % 1 > 0.8:  # it counts in whole seconds, and 0 of them means never
            time.sleep(0.02)
        client.region_write(RegionIndex.BAR0, 0, struct.pack("<q", int(time.time()) + 1))
        assert select.select([event], [], [], PATIENCE_S)[0]
        served = 0
        while served < 2:  # it writes the page, and reads it back
            served += client.serve(PATIENCE_S)
        assert os.pread(memory, PAGE, 2 * PAGE) == b"A" * PAGE
        client.reset()
    os.close(event)


def test_the_null_device_takes_any_number_of_ranges_and_forgets_them(start: Start, memory: int) -> None:
    with connect(start("null")) as client:
        assert [client.irq_info(index).count for index in range(5)] == [0, 0, 0, 1, 1]
        for number in range(20):
            client.dma_map(number * PAGE, PAGE, memory, flags=DmaMapFlags.READ)
        client.dma_unmap(0, PAGE)
        client.dma_unmap(1 << 40, PAGE)
        client.dma_unmap_all()
        with pytest.raises(RemoteError) as caught:
            client.region_read(RegionIndex.BAR0, 0, 4)
        assert caught.value.errno == errno.EINVAL
        client.reset()
        assert client.config_read(0, 4) == 0


def test_what_lspci_prints_is_a_configuration_space(samples: Path) -> None:
    printed = subprocess.run([samples / "lspci"], capture_output=True, text=True, check=True).stdout
    head, *rows = printed.splitlines()
    assert head == "00:00.0 bogus PCI device"
    space = bytes.fromhex("".join(row.partition(":")[2] for row in rows))
    assert (len(space), space[0x34], space[0x40]) == (PAGE, 0x40, 1)
