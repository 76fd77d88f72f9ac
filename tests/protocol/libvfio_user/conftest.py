"""The library, built once for all, and a device whose client runs beside it."""

from __future__ import annotations

import contextlib
import io
import os
import select
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import pytest

from libvfio_user import Device, DisconnectedError, Irq, Library, Region
from pviommu.lab import libvfio_user as building
from pviommu.lab.progress import Progress
from vfio_user import SessionLimits
from vfio_user.client import Client

T = TypeVar("T")
PAGE = 4096


@pytest.fixture(scope="session")
def library_path() -> Path:
    """As ``pviommu build-libvfio-user`` makes it; later runs take it from the cache."""
    return building.build(Progress(io.StringIO(), building.STEPS))


@pytest.fixture(scope="session")
def samples(library_path: Path) -> Path:
    """The folder of the library's own programs."""
    return building.samples(library_path, Progress(io.StringIO(), building.SAMPLE_STEPS))


@pytest.fixture(scope="session")
def compiler() -> Path:
    """A private root with a C compiler."""
    return building.compiler_root(Progress(io.StringIO(), building.STEPS))


@pytest.fixture(scope="session")
def library(library_path: Path) -> Library:
    return Library(library_path)


@pytest.fixture(autouse=True)
def _no_descriptor_is_left(library: Library) -> Iterator[None]:
    before = set(os.listdir("/proc/self/fd"))
    yield
    assert set(os.listdir("/proc/self/fd")) - before == set()


class Card(Device):
    """BAR2 of 256 bytes of memory, one INTx; notes what it is told."""

    def __init__(self, path: Path, library: Library, **options: int) -> None:
        super().__init__(path, library=library, **options)
        self.memory = bytearray(range(256))
        self.told: list[object] = []

    def setup(self) -> Card:
        """All of it, for tests that are about something else."""
        self.pci(0x494F, 0x0DC8, class_code=0x118000)
        self.region(Region.BAR2, 256)
        self.interrupts(Irq.INTX, 1)
        self.dma()
        self.realize()
        return self

    def read(self, region: Region, offset: int, count: int) -> bytes:
        return bytes(self.memory[offset : offset + count])

    def write(self, region: Region, offset: int, data: bytes) -> None:
        self.memory[offset : offset + len(data)] = data

    def reset(self, kind: object) -> None:
        self.told.append(kind)


class Beside:
    """A client in a thread of its own: the device is only ever used by the test's."""

    def __init__(self, device: Device, limits: SessionLimits | None = None) -> None:
        self.device = device
        self.pool = ThreadPoolExecutor(1)
        self._ended, self._end = os.pipe()
        self.client = self.during(lambda: Client.connect(device.path, limits=limits))

    def during(self, call: Callable[[], T]) -> T:
        """What ``call`` gives, the device serving meanwhile."""
        future = self.pool.submit(call)
        future.add_done_callback(lambda _: os.write(self._end, b"x"))
        while True:
            ready, _, _ = select.select([self.device.poll_fd, self._ended], [], [])
            if self._ended in ready:
                os.read(self._ended, 1)
                return future.result()
            if self.device.is_attached:
                self.device.run()
            else:
                self.device.attach()

    def leave(self) -> None:
        """The client goes, and the device notices."""
        self.client.close()
        with contextlib.suppress(DisconnectedError):
            while True:
                self.device.run()

    def close(self) -> None:
        """May be called again."""
        self.client.close()
        self.pool.shutdown()
        for descriptor in (self._ended, self._end) if self._end >= 0 else ():
            os.close(descriptor)
        self._ended = self._end = -1


@pytest.fixture
def card(library: Library, tmp_path: Path) -> Iterator[Card]:
    with Card(tmp_path / "card.sock", library) as made:
        yield made


@pytest.fixture
def beside() -> Iterator[Callable[..., Beside]]:
    """``beside(device)``: a client of it, attached; its limits may follow."""
    made: list[Beside] = []

    def attach(device: Device, limits: SessionLimits | None = None) -> Beside:
        made.append(Beside(device, limits))
        return made[-1]

    yield attach
    for one in made:
        one.close()


@pytest.fixture
def memory() -> Iterator[int]:
    """A memfd of four pages, page n full of byte n."""
    descriptor = os.memfd_create("guest", os.MFD_CLOEXEC)
    os.write(descriptor, b"".join(bytes([page]) * PAGE for page in range(4)))
    yield descriptor
    os.close(descriptor)
