"""A program with an open /dev/iommu, and devices to bind to it."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

import pytest

from pviommu.interfaces.iommufd import DeviceConfig, LocalProcess, System
from pviommu.interfaces.iommufd import structures as s
from pviommu.interfaces.iommufd import vfio_structures as v
from wire_layout import Record

PAGE = 4096
LAST = (1 << 64) - 1
R = TypeVar("R", bound=Record)
FIXED, WRITEABLE, READABLE = s.MapFlag.FIXED_IOVA, s.MapFlag.WRITEABLE, s.MapFlag.READABLE
BOTH = WRITEABLE | READABLE


@contextlib.contextmanager
def fails(name: str, match: str | None = None) -> Iterator[None]:
    """The request inside fails with this errno."""
    with pytest.raises(OSError, match=match) as caught:
        yield
    assert caught.value.errno == getattr(errno, name), caught.value


class Program(LocalProcess):
    """A program with /dev/iommu as ``fd``, 16 MiB of memory as ``data`` at ``va``, and short ways to make requests."""

    def __init__(self, system: System) -> None:
        super().__init__(system)
        self.fd = self.open("/dev/iommu")
        self.data = bytearray(4096 * PAGE)
        self.va = self.memory.add(self.data)

    def iommu(self, record: type[R], /, **fields: Any) -> R:
        return self.call(self.fd, record, **fields)

    def ioas(self) -> int:
        return self.iommu(s.IoasAlloc).out_ioas_id

    def map(self, ioas: int, length: int, iova: int | None = None, va: int | None = None, flags: int = BOTH) -> int:
        fixed = 0 if iova is None else FIXED
        address = self.va if va is None else va
        fields = {"user_va": address, "length": length, "iova": iova or 0}
        return self.iommu(s.IoasMap, ioas_id=ioas, flags=flags | fixed, **fields).iova

    def unmap(self, ioas: int, iova: int, length: int) -> int:
        return self.iommu(s.IoasUnmap, ioas_id=ioas, iova=iova, length=length).length

    def ranges(self, ioas: int) -> list[tuple[int, int]]:
        return self.ranges_and_alignment(ioas)[0]

    def ranges_and_alignment(self, ioas: int) -> tuple[list[tuple[int, int]], int]:
        buffer = bytearray(64 * 16)
        place = self.memory.add(buffer)
        answer = self.iommu(s.IoasIovaRanges, ioas_id=ioas, num_iovas=64, allowed_iovas=place)
        self.memory.remove(place)
        found = list(s.IovaRange.STRUCT.iter_unpack(buffer))[: answer.num_iovas]
        return found, answer.out_iova_alignment

    def allow(self, ioas: int, spans: Sequence[tuple[int, int]]) -> None:
        data = b"".join(s.IovaRange(*span).pack() for span in spans)
        place = self.memory.add(data) if data else 0
        self.iommu(s.IoasAllowIovas, ioas_id=ioas, num_iovas=len(spans), allowed_iovas=place)

    def device(self, name: str) -> Handle:
        return Handle(self, name)


class Handle:
    """A device that the program opened and bound."""

    def __init__(self, program: Program, name: str) -> None:
        self.program = program
        self.name = name
        self.fd = program.open(program.system.devices[name].node)
        self.id = program.call(self.fd, v.BindIommufd, iommufd=program.fd).out_devid

    def attach(self, number: int) -> int:
        """The id of the page table."""
        return self.program.call(self.fd, v.AttachIommufdPt, pt_id=number).pt_id

    def detach(self) -> None:
        self.program.call(self.fd, v.DetachIommufdPt)

    def table(self, ioas: int, flags: int = 0) -> int:
        return self.program.iommu(s.HwptAlloc, dev_id=self.id, pt_id=ioas, flags=flags).out_hwpt_id

    def read(self, iova: int, length: int = 4) -> bytes:
        return self.program.system.read(self.name, iova, length)

    def write(self, iova: int, data: bytes) -> None:
        self.program.system.write(self.name, iova, data)

    def close(self) -> None:
        self.program.close(self.fd)


CONFIGS = (
    DeviceConfig("dma0"),
    DeviceConfig("dma1"),
    DeviceConfig("plain", dirty_tracking=False),
    DeviceConfig("narrow", aperture=(0, (1 << 32) - 1)),
    DeviceConfig("twin0", group="twins"),
    DeviceConfig("twin1", group="twins"),
    DeviceConfig("unsafe", isolated_msi=False),
    DeviceConfig("patient", page_requests=False),
)


@pytest.fixture
def system() -> System:
    return System(CONFIGS)


@pytest.fixture
def program(system: System) -> Program:
    return Program(system)


@pytest.fixture
def dma0(program: Program) -> Handle:
    return program.device("dma0")
