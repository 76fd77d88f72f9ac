"""Endpoints where no PV-IOMMU is: what translates their DMA is another interface, or one of several machines."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence

import pytest

from pviommu.counters import Counters
from pviommu.dma.fault import DmaPendingError, DmaRefusedError, Fault, FaultKind
from pviommu.dma.plan import DmaPlan, DmaRequest
from pviommu.dma.port import PIECE_BYTES
from pviommu.dma.translator import PENDING, Pending, Translator
from pviommu.endpoints.dma_test import DmaTestEngine
from pviommu.endpoints.endpoint import Endpoint
from pviommu.endpoints.surroundings import Surroundings
from pviommu.endpoints.template import REGISTERS, Template
from pviommu.engine import Access, Run
from pviommu.inputs import LiveInputs
from pviommu.machine import AnyEndpoint
from pviommu.pci.function import Environment
from pviommu_abi import dma_test
from pviommu_abi.dma_test import Control, Descriptor, DescriptorStatus, DmaOp
from pviommu_abi.shared import EventReason
from vfio_user import DmaMapping

from ..conftest import Driver

RAM = 1 << 20
STREAM = 77
AT = 0x4000_0000
END = AT + (2 * RAM)
OFFSET = {register.name: register.offset for register in REGISTERS}


class Shifted(Translator):
    """An interface whose device addresses are guest addresses plus :data:`AT`; it has no engine, ring or event."""

    def __init__(self) -> None:
        self.faults: list[Fault] = []
        self.asked = 0
        self.pending = 0
        """times that it is not known yet"""
        self.said: list[str] = []
        self.lose: Callable[[], None] = lambda: None

    def translate(self, requests: Sequence[DmaRequest]) -> list[DmaPlan] | Fault | Pending:
        self.asked += 1
        if self.pending:
            self.pending -= 1
            return PENDING
        plans = []
        for spans, access in requests:
            for iova, length in spans:
                first = AT if iova < AT else min(iova + length, END)
                if not AT <= iova <= iova + length <= END:
                    return Fault(FaultKind.OUT_OF_APERTURE, STREAM, max(iova, first), access, length)
            plans.append(DmaPlan(spans, access, [[Run(iova - AT, length)] for iova, length in spans]))
        return plans

    def report(self, fault: Fault) -> None:
        self.faults.append(fault)

    def give_up(self) -> None:
        self.said.append("given up")

    def on_lost(self, cancel: Callable[[], None]) -> None:
        self.lose = cancel

    def endpoint_failed(self) -> None:
        self.said.append("failed")

    def endpoint_begins(self) -> None:
        self.said.append("begins")


class Host:
    """One endpoint behind a :class:`Shifted`, with :data:`RAM` bytes of memory."""

    def __init__(self) -> None:
        self.shifted = Shifted()
        self.counters = Counters()
        self.environment = Environment(LiveInputs(), self.counters)
        self.ram = os.memfd_create("ram", os.MFD_CLOEXEC)
        os.ftruncate(self.ram, RAM)
        self.endpoints: list[Endpoint] = []

    def plug(self, kind: Callable[[Surroundings], AnyEndpoint]) -> AnyEndpoint:
        endpoint = kind(Surroundings("toy", STREAM, self.shifted, self.environment))
        endpoint.dma_map(DmaMapping(0, RAM, 0, True, True, os.dup(self.ram)))
        endpoint.region_write(7, 0x04, (0x6).to_bytes(2, "little"))
        self.endpoints.append(endpoint)
        return endpoint


@pytest.fixture
def host() -> Iterator[Host]:
    host = Host()
    yield host
    for endpoint in host.endpoints:
        endpoint.close()
    os.close(host.ram)


def stamp(device: Template, address: int) -> None:
    device.region_write(0, OFFSET["STAMP_AT"], address.to_bytes(4, "little"))


def counts(device: Template) -> tuple[int, int]:
    """STAMPS and REFUSED."""
    return device.registers["STAMPS"], device.registers["REFUSED"]


def test_an_endpoint_works_behind_another_interface(host: Host) -> None:
    device = host.plug(Template)
    stamp(device, AT + 0x10)

    assert [device.step(), device.step()] == [True, False]

    assert os.pread(host.ram, 4, 0x10) == b"\1\0\0\0"
    assert counts(device) == (1, 0)
    assert (host.counters.dma_requests, host.counters.dma_bytes) == (1, 4)


def test_a_refusal_is_told_to_the_interface_as_data(host: Host) -> None:
    device = host.plug(Template)
    stamp(device, END)
    stamp(device, AT + RAM + 8)  # translated, but there is no memory

    assert [device.step(), device.step()] == [True, True]

    assert counts(device) == (0, 2)
    assert host.shifted.faults == [
        Fault(FaultKind.OUT_OF_APERTURE, STREAM, END, Access.WRITE, 4),
        Fault(FaultKind.NOT_RAM, STREAM, AT + RAM + 8, Access.WRITE, 4, gpa=RAM + 8),
    ]


def test_what_is_pending_stays_queued_and_is_asked_again(host: Host) -> None:
    device = host.plug(Template)
    host.shifted.pending = 2
    stamp(device, AT)

    assert [device.step() for _ in range(4)] == [True, True, True, False]

    assert (counts(device), host.shifted.asked) == ((1, 0), 3)
    assert host.counters.dma_requests == 1


def test_a_request_that_is_pending_has_not_begun(host: Host) -> None:
    device = host.plug(Template)
    host.shifted.pending = 1

    with pytest.raises(DmaPendingError):
        device.dma.write([(AT, 4)], b"data")

    assert (os.pread(host.ram, 4, 0), host.shifted.faults) == (bytes(4), [])
    device.dma.write([(AT, 4)], b"data")
    assert os.pread(host.ram, 4, 0) == b"data"


def test_a_request_in_steps_waits_for_each_of_its_pieces(host: Host) -> None:
    device = host.plug(Template)
    os.pwrite(host.ram, bytes(range(256)) * 1024, 0)
    host.shifted.pending = 3
    data = bytearray()

    def steps() -> Iterator[bool]:
        data.extend((yield from device.dma.read_in_steps([(AT, 3 * PIECE_BYTES)])))

    taken = list(steps())

    assert data == bytes(range(256)) * (3 * PIECE_BYTES // 256)
    assert taken == [False] * 3 + [True] * 6, "a look at each piece, and its bytes"
    assert (host.counters.dma_requests, host.counters.dma_bytes) == (1, 3 * PIECE_BYTES)


def test_one_refused_byte_refuses_all_of_a_plan(host: Host) -> None:
    device = host.plug(Template)

    with pytest.raises(DmaRefusedError) as caught:
        device.dma.plan(([(AT, 8)], Access.READ), ([(AT + 8, 8), (END - 4, 8)], Access.WRITE))

    assert caught.value.fault == Fault(FaultKind.OUT_OF_APERTURE, STREAM, END, Access.WRITE, 8)
    assert host.shifted.faults == [caught.value.fault]


def test_without_bus_mastering_the_interface_is_not_asked(host: Host) -> None:
    device = host.plug(Template)
    device.region_write(7, 0x04, bytes(2))

    with pytest.raises(DmaRefusedError, match="READ at 0x40000000: bus mastering is off") as caught:
        device.dma.read([(AT, 4)])

    assert caught.value.fault == Fault(FaultKind.NO_BUS_MASTER, STREAM, AT, Access.READ, 4)
    assert (host.shifted.asked, host.shifted.faults) == (0, [])


def test_what_the_interface_lost_is_cancelled_and_it_hears_of_failures_and_resets(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = host.plug(Template)
    assert host.shifted.said == ["begins"]
    stamp(device, AT)
    host.shifted.lose()
    assert device.step() is False

    monkeypatch.setattr(device, "work", lambda: 1 // 0)
    device.step()
    device.reset()

    assert host.shifted.said == ["begins", "given up", "failed", "given up", "begins"]


def test_the_dma_engine_tells_its_own_driver_of_a_fault(host: Host) -> None:
    engine = host.plug(DmaTestEngine)
    engine.shared.view[: Descriptor.SIZE] = Descriptor(DmaOp.FILL, 0, 0, 16, 0, END - 8, 0).pack()
    for name, value in (("CONTROL", Control.ENABLE), ("PRODUCER", 1)):
        engine.region_write(0, dma_test.REGISTER[name].offset, value.to_bytes(4, "little"))

    engine.step()

    done = Descriptor.unpack(engine.shared.view, 0)
    assert (done.status, done.reason) == (DescriptorStatus.FAULT, EventReason.OUT_OF_APERTURE)
    assert (done.detail, done.access) == (END, Access.WRITE)


def test_two_machines_of_one_process_share_nothing(make_driver: Callable[..., Driver]) -> None:
    one, other = make_driver().start(), make_driver().start()
    for driver in (one, other):
        driver.attached()
    assert one.map(1, 0x100, 0x20, 1) == (0, 1)
    assert other.map(1, 0x200, 0x30, 1) == (0, 1)

    one.dma_write("dma0", 0x100000, b"one")
    other.dma_write("dma0", 0x200000, b"other")
    with pytest.raises(DmaRefusedError):
        one.dma_write("dma0", 0x200000, b"lost")

    assert (one.ram[0x20000:0x20003], other.ram[0x30000:0x30005]) == (b"one", b"other")
    assert (one.ram[0x30000:0x30005], other.ram[0x20000:0x20003]) == (bytes(5), bytes(3))
    assert [event.iova for event in one.events()] == [0x200000]
    assert (other.events(), other.counters.faults, other.counters.dma_requests) == ([], 0, 1)

    one.machine.endpoints["dma0"].disconnected()
    one.iommu.disconnected()
    assert other.dma_read("dma0", 0x200000, 5) == b"other"


def test_a_request_that_waits_is_given_up_when_bus_mastering_is_off_or_it_is_cancelled(host: Host) -> None:
    device = host.plug(Template)
    host.shifted.pending = 100
    stamp(device, AT)
    assert device.step()
    host.shifted.said.clear()
    host.shifted.lose()
    assert host.shifted.said == ["given up"]

    stamp(device, AT)
    assert device.step()
    host.shifted.said.clear()
    device.region_write(7, 0x04, (0x2).to_bytes(2, "little"))
    assert device.step()
    assert host.shifted.said == ["given up"]
    assert counts(device) == (0, 1)
