"""A machine without sockets, and a guest driver that plays on it by hand."""

from __future__ import annotations

import os
import select
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import count
from typing import Any

import pytest

from pviommu.counters import Counters
from pviommu.dma.fault import REASON, DmaRefusedError
from pviommu.guest.events import EventRing
from pviommu.guest.local import LocalFunction
from pviommu.guest.memory import GuestRam, memory_file
from pviommu.guest.ring import Ring
from pviommu.guest.tables import InFlight, PageTables
from pviommu.guest.xen_2024 import Xen2024
from pviommu.host.work import Work
from pviommu.inputs import LiveInputs
from pviommu.machine import Machine
from pviommu.pci.function import Environment
from pviommu.probes import Probes
from pviommu.topology import EndpointSection, IommuSection, ReservedSection, Topology
from pviommu_abi import registers as abi
from pviommu_abi.registers import REGISTER
from pviommu_abi.shared import MAX_RINGS, RING_AREA_OFFSET, Event, EventReason, TableFormat
from pviommu_abi.slots import PAYLOAD_OFFSET, SLOT_SIZE, OpClass, Slot
from vfio_user import DmaMapping, IrqAction, IrqIndex, IrqKind, IrqRequest

RAM_PAGES = 0x1000
ENTRIES = 256
DEVFN = {"dma0": 0x28, "dma1": 0x30}
STREAM = {"dma0": 1, "dma1": 2}


def reason_of(refused: DmaRefusedError) -> EventReason | None:
    """What the guest is told of refused DMA."""
    return REASON.get(refused.fault.kind)


class Inputs(LiveInputs):
    """The real inputs with places to step in between, a clock that ticks when it is read, and waits that do not."""

    def __init__(self) -> None:
        self.time = 0
        self.time_step = 1000
        self.waits: list[float] = []
        self.on_wait: Callable[[float], None] | None = None
        self.after_copy: Callable[[], None] | None = None
        self.before_word: Callable[[int], None] | None = None

    def now_ns(self) -> int:
        self.time += self.time_step
        return self.time

    def copy(self, view: memoryview) -> bytes:
        data = bytes(view)
        if self.after_copy:
            self.after_copy()
        return data

    def word(self, words: memoryview, index: int) -> int:
        if self.before_word:
            self.before_word(index)
        return words[index]

    def wait(self, poller: select.epoll, timeout_ms: float) -> Sequence[tuple[int, int]]:
        self.waits.append(timeout_ms)
        if self.on_wait:
            self.on_wait(timeout_ms)
        return poller.poll(0)


class Driver(Xen2024):
    """What a guest does with the PV-IOMMU, written down: registers, rings, operations and events."""

    def __init__(
        self,
        reserved: Mapping[str, tuple[ReservedSection, ...]] | None = None,
        fixed: Mapping[str, str] | None = None,
        probes: Probes | Callable[[Inputs], Probes] | None = None,
        **settings: Any,
    ) -> None:
        self.inputs = Inputs()
        self.counters = Counters()
        endpoints = tuple(
            EndpointSection(name, "dma-test", stream, (fixed or {}).get(name), (reserved or {}).get(name, ()))
            for name, stream in STREAM.items()
        )
        topology = Topology(IommuSection(**settings), endpoints)
        probes = probes(self.inputs) if callable(probes) else probes or Probes()
        self.machine = Machine.build(topology, Environment(self.inputs, self.counters, probes))
        self.iommu = self.machine.iommu
        self.work = Work(self.machine).step
        self._function = LocalFunction(self.iommu, REGISTER)
        self._memory = GuestRam(RAM_PAGES << 12)
        self.ram = self._memory.bytes
        self.rings = [Ring(self._function, number, ENTRIES, self.ring_base(number)) for number in range(MAX_RINGS)]
        self._events = EventRing(self._function)

    def close(self) -> None:
        self.machine.close()
        self._memory.close()

    # -- the client's side ------------------------------------------------------------------------------------------

    def plug_ram(self) -> None:
        for function in self.machine.functions():
            function.dma_map(DmaMapping(0, RAM_PAGES << 12, 0, True, True, os.dup(self._memory.fd)))

    def more_ram(self, size: int) -> int:
        """A descriptor of memory that is not plugged yet; whoever maps it closes it."""
        return memory_file(size, "more")

    def msix(self, vector: int) -> int:
        """Set up a vector; the eventfd, a duplicate of which the device has. The caller closes it."""
        fd = os.eventfd(0, os.EFD_NONBLOCK)
        self.iommu.set_irqs(IrqRequest(IrqIndex.MSIX, vector, 1, IrqAction.TRIGGER, IrqKind.EVENTFD, (os.dup(fd),)))
        return fd

    # -- registers and words ----------------------------------------------------------------------------------------

    def write(self, name: str, value: int, index: int = 0) -> Iterator[None] | None:
        """What is left to do in steps, if there is."""
        offset = REGISTER[name].offset + 4 * index
        return self.iommu.region_write(abi.REGISTER_BAR, offset, struct.pack("<I", value))

    def read(self, name: str) -> int:
        return int(struct.unpack("<I", self.iommu.region_read(abi.REGISTER_BAR, REGISTER[name].offset, 4))[0])

    @property
    def words(self) -> memoryview:
        return self.iommu.shared.words

    @property
    def view(self) -> memoryview:
        return self.iommu.shared.view

    def set_up_ring(self, ring: int = 0, entries: int = ENTRIES) -> int:
        """Rewind and enable a ring; the status register afterwards."""
        self.rings[ring].entries = entries
        self.rings[ring].turn_on()
        return self.read("STATUS")

    def start(self, rings: int = 1, profile: int = abi.Profile.XEN_2024) -> Driver:
        self.plug_ram()
        self.write("PROFILE", profile)
        for ring in range(rings):
            self.set_up_ring(ring)
        return self

    # -- rings ------------------------------------------------------------------------------------------------------

    @staticmethod
    def ring_base(ring: int) -> int:
        return RING_AREA_OFFSET + ring * 0x10000

    @property
    def producer(self) -> list[int]:
        """How many slots were submitted, by ring."""
        return [ring.producer for ring in self.rings]

    def slot_at(self, position: int, ring: int = 0) -> int:
        return self.rings[ring].place(position)

    def put(
        self,
        payload: bytes,
        op_class: int = OpClass.XEN_2024,
        op: int = 0,
        flags: int = 0,
        ring: int = 0,
        sequence: int | None = None,
    ) -> int:
        """Submit a slot; its position."""
        position = self.rings[ring].producer
        return self.rings[ring].put(op_class, op, flags, payload, position + 100 if sequence is None else sequence)

    def outcome(self, position: int, ring: int = 0) -> tuple[Slot, bytes]:
        at = self.slot_at(position, ring)
        return Slot.unpack(self.view, at), bytes(self.view[at + PAYLOAD_OFFSET : at + SLOT_SIZE])

    def completed(self, ring: int = 0) -> int:
        return self.rings[ring].completed

    def call(self, payload: bytes, op_class: int = OpClass.XEN_2024, op: int = 0, **how: Any) -> tuple[int, bytes]:
        """Submit and execute one operation: its result and payload."""
        position = self.put(payload, op_class, op, **how)
        self.iommu.work()
        slot, answer = self.outcome(position, how.get("ring", 0))
        return slot.result, answer

    def events(self) -> list[Event]:
        """Take what is in the event ring."""
        return self._events.take()

    def forget_events(self) -> None:
        """After a reset the device begins at 0 again."""
        self._events.consumer = 0

    # -- operations -------------------------------------------------------------------------------------------------

    def alloc(self, flags: int = 0) -> tuple[int, int]:
        """Result and ctx_no."""
        return self.alloc_context(flags)

    def bind(self, name: str) -> int:
        return self.bind_stream(DEVFN[name], STREAM[name])

    def reattach(self, name: str, ctx: int) -> int:
        return self.reattach_device(DEVFN[name], ctx)

    def attached(self, name: str = "dma0", ctx: int | None = None) -> int:
        """Bind an endpoint, let it master the bus, attach it to ``ctx`` or a new context; the context."""
        if ctx is None:
            result, ctx = self.alloc()
            assert result == 0
        assert (self.bind(name), self.reattach(name, ctx)) == (0, 0)
        self.master(name)
        return ctx

    def master(self, name: str) -> None:
        self.machine.endpoints[name].region_write(7, 4, b"\x06\x00")

    def dma_write(self, name: str, iova: int, data: bytes) -> None:
        """Raises DmaRefusedError."""
        self.machine.endpoints[name].dma.write([(iova, len(data))], data)

    def dma_read(self, name: str, iova: int, length: int) -> bytes:
        """Raises DmaRefusedError."""
        return self.machine.endpoints[name].dma.read([(iova, length)])


@pytest.fixture
def make_driver() -> Iterator[Callable[..., Driver]]:
    """Build drivers from settings of ``[iommu]``; they are closed in the end."""
    made: list[Driver] = []

    def make(**settings: Any) -> Driver:
        made.append(Driver(**settings))
        return made[-1]

    yield make
    for driver in made:
        driver.close()


@pytest.fixture
def driver(make_driver: Callable[..., Driver]) -> Driver:
    """A machine with RAM at gfn 0 to 0xfff, whose ring 0 is on."""
    return make_driver().start()


TABLES_AT = 0x800
"""First frame of tables that a guest owns."""


class TableGuest:
    """A context whose tables the guest owns, and ``dma0`` inside."""

    def __init__(self, driver: Driver, format: TableFormat = TableFormat.VTD_SS, **fields: int) -> None:
        self.driver = driver
        self.tables = PageTables(memoryview(driver.ram), count(TABLES_AT), format)
        result, answer = driver.alloc_tables(self.tables.root, format=format, **fields)
        assert result == 0
        self.ctx = answer.ctx_no
        self.line = InFlight(driver._function, answer.line)
        driver.attached("dma0", self.ctx)

    def refused(self, iova: int, length: int, write: bool = False) -> tuple[EventReason | None, int] | None:
        """Reason and first refused address; None if it was not refused."""
        try:
            if write:
                self.driver.dma_write("dma0", iova, bytes(length))
            else:
                self.driver.dma_read("dma0", iova, length)
        except DmaRefusedError as error:
            return reason_of(error), error.fault.iova
        return None


@pytest.fixture
def make_guest(driver: Driver) -> Iterator[Callable[..., TableGuest]]:
    """Build contexts with tables of the guest, of ``driver`` or another one."""
    made: list[TableGuest] = []

    def make(driver: Driver = driver, **fields: Any) -> TableGuest:
        made.append(TableGuest(driver, **fields))
        return made[-1]

    yield make
    for guest in made:
        guest.tables.close()
