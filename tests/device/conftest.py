"""A machine without sockets, and a guest driver that plays on it by hand."""

from __future__ import annotations

import fcntl
import mmap
import os
import select
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import pytest

from pviommu.counters import Counters
from pviommu.dma.fault import DmaRefusedError
from pviommu.inputs import LiveInputs
from pviommu.interfaces.pv.reporting import REASON
from pviommu.machine import Machine
from pviommu.pci.function import Environment
from pviommu.topology import EndpointEntry, IommuEntry, ReservedEntry, Topology
from pviommu_abi import registers as abi
from pviommu_abi.own import Binding, OwnOp
from pviommu_abi.registers import REGISTER, RingControl
from pviommu_abi.shared import (
    CACHE_LINE,
    EVENT_INDEX_OFFSET,
    EVENT_OFFSET,
    RING_AREA_OFFSET,
    RING_INDEX_STRIDE,
    Event,
    EventReason,
)
from pviommu_abi.slots import PAYLOAD_OFFSET, SLOT_SIZE, OpClass, Slot
from pviommu_abi.xen_2024 import LookupPage, MapPages, PvIommuOp, ReattachDevice, UnmapPages, Xen2024Op
from vfio_user import DmaMapping, IrqAction, IrqIndex, IrqKind, IrqRequest

RAM_PAGES = 0x1000
ENTRIES = 256
DEVFN = {"dma0": 0x28, "dma1": 0x30}
STREAM = {"dma0": 1, "dma1": 2}
UNTOUCHED = 0xAAAA
"""What OUT fields hold when they are submitted."""


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


class Driver:
    """What a guest does with the PV-IOMMU, written down: registers, rings, operations and events."""

    def __init__(
        self,
        reserved: Mapping[str, tuple[ReservedEntry, ...]] | None = None,
        fixed: Mapping[str, str] | None = None,
        **settings: Any,
    ) -> None:
        self.inputs = Inputs()
        self.counters = Counters()
        endpoints = tuple(
            EndpointEntry(name, "dma-test", stream, (fixed or {}).get(name), (reserved or {}).get(name, ()))
            for name, stream in STREAM.items()
        )
        topology = Topology(IommuEntry(**settings), endpoints)
        self.machine = Machine.build(topology, Environment(self.inputs, self.counters))
        self.iommu = self.machine.iommu
        self._ram_fd = os.memfd_create("ram", os.MFD_ALLOW_SEALING)
        os.truncate(self._ram_fd, RAM_PAGES << 12)
        fcntl.fcntl(self._ram_fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
        self.ram = mmap.mmap(self._ram_fd, RAM_PAGES << 12)
        self.ram[0] = 1
        self.producer = [0] * 8
        self.event = 0

    def close(self) -> None:
        self.machine.close()
        self.ram.close()
        os.close(self._ram_fd)

    # -- the client's side ------------------------------------------------------------------------------------------

    def plug_ram(self) -> None:
        for function in self.machine.functions():
            function.dma_map(DmaMapping(0, RAM_PAGES << 12, 0, True, True, os.dup(self._ram_fd)))

    def more_ram(self, size: int) -> int:
        """A descriptor of memory that is not plugged yet; whoever maps it closes it."""
        fd = os.memfd_create("more", os.MFD_ALLOW_SEALING)
        os.truncate(fd, size)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
        return fd

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
        self.producer[ring] = 0
        self.words[ring * RING_INDEX_STRIDE // 4] = 0
        self.write("RING_SELECT", ring)
        self.write("RING_ENTRIES", entries)
        self.write("RING_BASE_LO", self.ring_base(ring))
        self.write("RING_CONTROL", RingControl.ENABLE)
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

    def slot_at(self, position: int, ring: int = 0, entries: int = ENTRIES) -> int:
        return self.ring_base(ring) + position % entries * SLOT_SIZE

    def put(
        self,
        payload: bytes,
        op_class: int = OpClass.XEN_2024,
        op: int = 0,
        flags: int = 0,
        ring: int = 0,
        sequence: int | None = None,
        entries: int = ENTRIES,
    ) -> int:
        """Submit a slot; its position."""
        position = self.producer[ring]
        head = Slot(op_class, op, flags, position + 100 if sequence is None else sequence)
        at = self.slot_at(position, ring, entries)
        self.view[at : at + SLOT_SIZE] = (head.pack() + payload).ljust(SLOT_SIZE, b"\0")
        self.producer[ring] = (position + 1) & 0xFFFFFFFF
        self.words[ring * RING_INDEX_STRIDE // 4] = self.producer[ring]
        return position

    def outcome(self, position: int, ring: int = 0, entries: int = ENTRIES) -> tuple[Slot, bytes]:
        at = self.slot_at(position, ring, entries)
        return Slot.unpack(self.view, at), bytes(self.view[at + PAYLOAD_OFFSET : at + SLOT_SIZE])

    def completed(self, ring: int = 0) -> int:
        return int(self.words[(ring * RING_INDEX_STRIDE + CACHE_LINE) // 4])

    def call(self, payload: bytes, op_class: int = OpClass.XEN_2024, op: int = 0, **how: Any) -> tuple[int, bytes]:
        """Submit and execute one operation: its result and payload."""
        position = self.put(payload, op_class, op, **how)
        self.iommu.work()
        slot, answer = self.outcome(position, how.get("ring", 0), how.get("entries", ENTRIES))
        return slot.result, answer

    def events(self) -> list[Event]:
        """Take what is in the event ring."""
        producer = self.words[(EVENT_INDEX_OFFSET + CACHE_LINE) // 4]
        found = []
        while self.event != producer:
            found.append(Event.unpack(self.view, EVENT_OFFSET + self.event % 256 * Event.SIZE))
            self.event = (self.event + 1) & 0xFFFFFFFF
        self.words[EVENT_INDEX_OFFSET // 4] = self.event
        return found

    # -- operations -------------------------------------------------------------------------------------------------

    def alloc(self, flags: int = 0, **how: Any) -> tuple[int, int]:
        """Result and ctx_no."""
        result, answer = self.call(PvIommuOp(Xen2024Op.ALLOC_CONTEXT, UNTOUCHED, flags).pack(), **how)
        return result, PvIommuOp.unpack(answer).ctx_no

    def free(self, ctx: int, flags: int = 0) -> int:
        return self.call(PvIommuOp(Xen2024Op.FREE_CONTEXT, ctx, flags).pack())[0]

    def map(self, ctx: int, dfn: int, gfn: int, nr: int, flags: int = 3) -> tuple[int, int]:
        """Result and mapped."""
        op = MapPages(Xen2024Op.MAP_PAGES, ctx, flags, gfn, dfn, nr, UNTOUCHED)
        result, answer = self.call(op.pack())
        return result, MapPages.unpack(answer).mapped

    def unmap(self, ctx: int, dfn: int, nr: int) -> tuple[int, int]:
        """Result and unmapped."""
        result, answer = self.call(UnmapPages(Xen2024Op.UNMAP_PAGES, ctx, 0, dfn, nr, UNTOUCHED).pack())
        return result, UnmapPages.unpack(answer).unmapped

    def lookup(self, ctx: int, dfn: int) -> tuple[int, int]:
        """Result and gfn."""
        result, answer = self.call(LookupPage(Xen2024Op.LOOKUP_PAGE, ctx, 0, UNTOUCHED, dfn).pack())
        return result, LookupPage.unpack(answer).gfn

    def bind(self, name: str) -> int:
        return self.call(Binding(0, 0, DEVFN[name], STREAM[name]).pack(), OpClass.OWN, OwnOp.BIND)[0]

    def reattach(self, name: str, ctx: int) -> int:
        return self.call(ReattachDevice(Xen2024Op.REATTACH_DEVICE, ctx, 0, 0, 0, DEVFN[name]).pack())[0]

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
