"""The PCI function: BARs, interrupts, memory that comes and goes, resets, and an endpoint behind it."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from pviommu.counters import Counters
from pviommu.dma.fault import DmaRefusedError, FaultKind
from pviommu.dma.path import DmaPath
from pviommu.engine import ReservedFrames
from pviommu.guest.memory import GuestRam
from pviommu.guest.smmuv3 import SmmuV3
from pviommu.hosted import Poll
from pviommu.inputs import LiveInputs
from pviommu.interfaces.smmuv3.config import SmmuConfig
from pviommu.interfaces.smmuv3.function import KEPT, SmmuFunction
from pviommu.interfaces.smmuv3.state import SmmuState
from pviommu.pci.function import Environment
from smmuv3.commands import Completion, Opcode, cfgi, sync
from smmuv3.registers import FRAME_SIZE, MSIX_BAR, REGISTER_BAR, GlobalError, Vector
from vfio_user import DmaMapping, IrqAction, IrqIndex, IrqKind, IrqRequest

SIZE, MORE, MORE_SIZE = 0x80_0000, 0x4000_0000, 0x1_0000
TABLE, COMMANDS, EVENTS, PAGE = 0x10_0000, 0x20_0000, 0x30_0000, 0x40_0000
STREAM, SID = 3, 5
DATA = b"data"


class Bench:
    """An SMMU's function with a client, and the DMA of one endpoint."""

    def __init__(self, **settings) -> None:
        self.ram, self.more = GuestRam(SIZE), GuestRam(MORE_SIZE)
        self.environment = Environment(LiveInputs(), Counters())
        self.function = SmmuFunction("smmu0", SmmuConfig(**settings), self.environment, {STREAM: SID})
        self.plug(0, self.ram)
        self.dma = DmaPath(STREAM, self.function.stream(STREAM), self.function.memory, Counters(), lambda: True)
        self.driver = SmmuV3(self, self.function.work, commands=COMMANDS, events=EVENTS, cmdq_bits=8, evtq_bits=7)
        self.eventfds: list[int] = []

    def plug(self, address: int, ram: GuestRam) -> None:
        self.function.dma_map(DmaMapping(address, ram.size, 0, True, True, os.dup(ram.fd)))

    def close(self) -> None:
        self.function.close()
        for fd in self.eventfds:
            os.close(fd)
        self.ram.close()
        self.more.close()

    def read(self, offset: int, count: int) -> bytes:
        return self.function.region_read(REGISTER_BAR, offset, count)

    def write(self, offset: int, data: bytes) -> None:
        assert self.function.region_write(REGISTER_BAR, offset, data) is None

    def load(self, address: int, count: int) -> bytes:
        return self.ram.bytes[address : address + count]

    def store(self, address: int, data: bytes) -> None:
        self.ram.bytes[address : address + len(data)] = data

    def start(self, config: int = 4) -> Bench:
        """Reset as Linux does, with an STE of this Config."""
        self.store(TABLE + 64 * SID, bytes([config << 1 | 1]) + bytes(63))
        self.driver.reset(TABLE, 4)
        return self

    def msix(self, vector: Vector) -> int:
        fd = os.eventfd(0, os.EFD_NONBLOCK)
        self.eventfds.append(fd)
        request = IrqRequest(IrqIndex.MSIX, vector, 1, IrqAction.TRIGGER, IrqKind.EVENTFD, (os.dup(fd),))
        self.function.set_irqs(request)
        return fd

    def put(self, address: int = PAGE) -> FaultKind | None:
        try:
            self.dma.write([(address, len(DATA))], DATA)
        except DmaRefusedError as refused:
            return refused.fault.kind
        return None


@pytest.fixture
def bench() -> Iterator[Bench]:
    made = Bench()
    yield made
    made.close()


def test_the_frame_is_bar_0_and_there_are_three_vectors(bench):
    function = bench.function

    assert function.region(REGISTER_BAR).size == FRAME_SIZE
    assert function.region(MSIX_BAR).size == 0x1000
    assert function.irq(IrqIndex.MSIX).count == 3
    assert int.from_bytes(function.region_read(7, 0, 4), "little") == 0x505A1234
    assert bench.read(0, 4) == (0x0D44101A).to_bytes(4, "little")
    assert function.capabilities_of(STREAM) == []


def test_a_driver_starts_it_and_dma_goes_through(bench):
    bench.start()

    assert bench.put() is None
    assert bench.load(PAGE, 4) == DATA


def test_ram_in_an_msi_window_is_reached_by_nobody():
    window = ReservedFrames(PAGE >> 12, PAGE >> 12, "msi")
    environment = Environment(LiveInputs(), Counters())
    function = SmmuFunction("smmu0", SmmuConfig(), environment, {STREAM: SID}, windows=[window])
    ram = GuestRam(SIZE)
    function.dma_map(DmaMapping(0, ram.size, 0, True, True, os.dup(ram.fd)))
    dma = DmaPath(STREAM, function.stream(STREAM), function.memory, Counters(), lambda: True)

    dma.write([(PAGE + 0x1000, len(DATA))], DATA)  # the SMMU is off
    with pytest.raises(DmaRefusedError):
        dma.write([(PAGE + 0x40, len(DATA))], DATA)

    assert (ram.bytes[PAGE + 0x40 :][:4], ram.bytes[PAGE + 0x1000 :][:4]) == (bytes(4), DATA)
    [fault] = function.parent_faults
    assert (fault.stream, fault.iova, fault.ipa) == (STREAM, PAGE + 0x40, PAGE + 0x40)
    function.close()
    ram.close()


def test_interrupts_arrive_at_their_eventfds(bench):
    events, errors, syncs = (bench.msix(vector) for vector in (Vector.EVENTQ, Vector.GERROR, Vector.CMD_SYNC))
    bench.start()
    bench.driver.sync(Completion.IRQ)
    assert os.eventfd_read(syncs) == 1

    bench.store(TABLE + 64 * SID, bytes(64))
    assert bench.put() is FaultKind.BLOCKED
    assert os.eventfd_read(events) == 1
    bench.driver.issue(b"\xff" * 16)
    bench.function.work()

    assert os.eventfd_read(errors) == 1
    assert bench.environment.counters.interrupts == 3


def test_commands_are_left_to_the_loop_which_is_told_while_there_are_any(bench):
    function = bench.start().function
    assert (function.arm(), function.is_pressed(), function.work()) == (True, False, False)

    for _ in range(200):
        bench.driver.issue(sync())

    assert (function.arm(), function.is_pressed()) == (False, True)
    assert function.work()
    assert (function.arm(), function.is_pressed(), function.work()) == (True, False, False)
    assert (function.is_polled, function.spin(Poll(0, 0, 0)), function.waits()) == (False, False, 0)
    function.disarm()
    function.rested()


def test_memory_that_comes_and_goes_is_reached_and_not_any_more(bench):
    bench.start()
    assert bench.put(MORE) is FaultKind.NOT_MAPPED
    [fault] = bench.function.parent_faults
    assert (fault.stream, fault.ipa, fault.during_walk) == (STREAM, MORE, False)

    bench.plug(MORE, bench.more)
    assert bench.put(MORE) is None
    assert bench.more.bytes[:4] == DATA
    bench.function.dma_unmap(MORE, MORE_SIZE)

    assert bench.put(MORE) is FaultKind.NOT_MAPPED


def test_reports_are_kept_up_to_a_limit(bench):
    bench.start()
    for _ in range(KEPT + 3):
        bench.put(MORE)

    assert len(bench.function.parent_faults) == KEPT


def test_a_strict_cache_reports_what_is_stale(caplog):
    bench = Bench(strict=True)
    try:
        bench.start()
        bench.put()
        bench.store(TABLE + 64 * SID, bytes(64))

        assert bench.put() is None
        assert [stale.what for stale in bench.function.stale] == ["STE"]
        assert "smmu0: StreamID 0x5: STE is used at 0x400000 as it is cached" in caplog.text
        bench.driver.issue(cfgi(Opcode.CFGI_STE, SID))
        bench.driver.sync()
        assert bench.put() is FaultKind.BLOCKED
    finally:
        bench.close()


@pytest.mark.parametrize("reset", ["device", "client"])
def test_a_reset_while_it_translates_blocks_its_endpoints_until_theirs(bench, reset):
    cancelled = []
    bench.start()
    bench.function.stream(STREAM).on_lost(lambda: cancelled.append(1))

    if reset == "device":
        bench.function.reset()
    else:
        bench.function.disconnected()
        bench.plug(0, bench.ram)

    assert cancelled == [1]
    assert bench.put() is FaultKind.BLOCKED
    bench.function.stream(STREAM).endpoint_begins()
    assert bench.put() is None


def test_a_reset_while_it_is_off_changes_nothing_for_endpoints(bench):
    bench.function.reset()

    assert bench.put() is None


def test_an_endpoint_that_failed_is_refused_until_its_reset(bench):
    bench.function.stream(STREAM).endpoint_failed()
    assert bench.put() is FaultKind.BLOCKED

    bench.function.stream(STREAM).endpoint_begins()

    assert bench.put() is None


def test_a_state_goes_on_in_another_function(bench):
    other = Bench()
    try:
        bench.start()
        bench.put()
        other.ram.bytes[:] = bench.ram.bytes[:]
        state = bench.function.save()
        other.function.load(state)

        assert other.driver.get("CR0") == 0xD
        assert other.put() is None
        other.store(TABLE + 64 * SID, bytes(64))
        other.driver.issue(cfgi(Opcode.CFGI_STE, SID))
        other.driver.sync()
        assert other.put() is FaultKind.BLOCKED
        with pytest.raises(ValueError, match="stream 77: not behind smmu0"):
            other.function.load(SmmuState(state.function, (77,)))
    finally:
        other.close()


def test_commands_and_an_error_that_wait_do_so_in_another_function(bench):
    other = Bench()
    try:
        bench.start()
        bench.driver.issue(sync(), b"\xff" * 16, sync())
        waiting = bench.function.save()
        bench.function.work()
        stopped = bench.function.save()
        other.ram.bytes[:] = bench.ram.bytes[:]

        for state in (stopped, waiting):
            other.function.load(state)
            assert other.function.is_pressed() == (state is waiting)
            other.function.work()
            assert other.driver.is_active(GlobalError.CMDQ_ERR)
            assert other.driver.get("CMDQ_CONS") == bench.driver.get("CMDQ_CONS")

        other.driver.on_gerror()
        assert other.function.work()
        assert other.driver.get("CMDQ_CONS") & 0xFF == other.driver.get("CMDQ_PROD")
    finally:
        other.close()


def test_a_block_is_part_of_the_state(bench):
    bench.start()
    bench.function.reset()
    state = bench.function.save()
    bench.function.stream(STREAM).endpoint_begins()
    assert bench.put() is None

    bench.function.load(state)

    assert bench.put() is FaultKind.BLOCKED


def test_streamids_are_checked():
    with pytest.raises(ValueError, match="StreamID 0x10000: must be below 0x10000"):
        SmmuFunction("smmu0", SmmuConfig(), Environment(LiveInputs(), Counters()), {1: 0x10000})
