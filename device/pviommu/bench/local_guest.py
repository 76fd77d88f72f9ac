"""A machine in this process, with the guest memory and the shared BAR that a guest would have: no sockets, no VM."""

from __future__ import annotations

from itertools import count
from time import perf_counter_ns
from types import TracebackType
from typing import Self, cast

from pviommu_abi import dma_test
from pviommu_abi.registers import REGISTER, Profile
from pviommu_abi.shared import CACHE_LINE, MAX_RING_ENTRIES, RING_AREA_OFFSET, TableFormat
from pviommu_abi.slots import SLOT_SIZE, OpClass, Slot, SlotFlags
from pviommu_abi.vendor import AllocTables, VendorOp
from pviommu_abi.xen_2024 import MapPages, UnmapPages, Xen2024Op

from ..counters import Counters
from ..endpoints.dma_test import DmaTestEngine
from ..engine import Access
from ..guest.local import LocalFunction
from ..guest.memory import GuestRam
from ..guest.ring import MASK, Ring
from ..guest.tables import PageTables
from ..inputs import LiveInputs
from ..lab.problems import RunError
from ..pci.function import Environment
from ..topology import EndpointSection, IommuSection, Topology
from .cores import build_machine

__all__ = ["AT_ONCE", "RAM_PAGES", "LocalGuest", "map_slot", "scattered", "unmap_slot"]

RAM_PAGES = 1 << 14
TABLES_AT = RAM_PAGES - 1024
"""First frame of the guest's own tables."""
AT_ONCE = 256
"""How many slots are submitted together."""
_STREAM, _WALKED = 1, 2
_READ_WRITE = Access.READ | Access.WRITE
_STRIDE = 7919  # a prime, so that frames of neighbouring pages are far apart, and no frame occurs twice
_COMPLETED = CACHE_LINE // 4


def scattered(number: int, frames: int = RAM_PAGES) -> list[int]:
    """So many frames below ``frames`` (a power of two), no two neighbours of the list adjacent."""
    return [(place * _STRIDE) % frames for place in range(number)]


def map_slot(ctx: int, dfn: int, gfn: int, *, posted: bool) -> bytes:
    """A slot that maps one page."""
    return _slot(MapPages(Xen2024Op.MAP_PAGES, ctx, 3, gfn, dfn, 1).pack(), posted)


def unmap_slot(ctx: int, dfn: int, *, posted: bool) -> bytes:
    """A slot that unmaps one page."""
    return _slot(UnmapPages(Xen2024Op.UNMAP_PAGES, ctx, 0, dfn, 1).pack(), posted)


def _slot(payload: bytes, posted: bool) -> bytes:
    head = Slot(OpClass.XEN_2024, 0, SlotFlags.POSTED if posted else 0, 1)
    return (head.pack() + payload).ljust(SLOT_SIZE, b"\0")


class LocalGuest:
    """RAM of :data:`RAM_PAGES` at 0, ring 0 turned on, one context with an endpoint in it, and one with tables of the
    guest and another endpoint. A context manager.
    """

    def __init__(self, core: str) -> None:
        names = {"dma0": _STREAM, "dma1": _WALKED}
        endpoints = tuple(EndpointSection(name, "dma-test", stream) for name, stream in names.items())
        topology = Topology(IommuSection(), endpoints)
        self.machine = build_machine(topology, Environment(LiveInputs(), Counters()), core)
        self._memory = GuestRam(RAM_PAGES << 12)
        self.ram = self._memory.bytes
        self.ram[:] = b"\x5a" * len(self.ram)  # touch every page, so that no page fault is measured
        self.engine = self.machine.iommu.engine
        self.endpoint, self.walked = self.machine.endpoints.values()
        driver = LocalFunction(self.machine.iommu, REGISTER)
        engines = [LocalFunction(cast(DmaTestEngine, each), dma_test.REGISTER) for each in (self.endpoint, self.walked)]
        for function in (driver, *engines):
            function.plug(0, RAM_PAGES << 12, self._memory.fd)
        driver.write("PROFILE", Profile.XEN_2024)
        self._ring = Ring(driver, entries=MAX_RING_ENTRIES)
        self._ring.turn_on()
        for engine in engines:
            engine.set_bus_master(True)
        self.tables = PageTables(memoryview(self.ram), count(TABLES_AT))
        walked = self._alloc_tables()
        contexts = self.machine.iommu.contexts
        context = contexts.alloc().context
        if (
            context is None
            or contexts.attach(_STREAM, context) is not None
            or contexts.attach(_WALKED, walked) is not None
        ):
            raise RunError("a new machine has a free context, and its endpoints can be attached")
        self.context = context

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.machine.close()
        self.tables.close()
        self._memory.close()

    def _alloc_tables(self) -> int:
        slot = Slot(OpClass.VENDOR, VendorOp.ALLOC_TABLES, 0, 1).pack()
        payload = AllocTables(TableFormat.VTD_SS, 0, self.tables.root, 39).pack()
        self.submit((slot + payload).ljust(SLOT_SIZE, b"\0"))
        result, _, answer = self._ring.result(self._ring.producer - 1)
        if result:
            raise RunError(f"a context with tables of the guest: result {result}")
        return AllocTables.unpack(answer).ctx_no

    def map(self, dfn: int, gfn: int, pages: int) -> None:
        """Map without using the ring. Raises RunError."""
        outcome = self.engine.map(self.context, dfn, gfn, pages, _READ_WRITE)
        if outcome.done != pages:
            raise RunError(f"map dfn {dfn:#x}+{pages}: {outcome}")

    def submit(self, slots: bytes) -> int:
        """Put slots, at most as many as the ring has, into the ring and have them executed.

        Returns the nanoseconds from the moment they are visible to the moment all are complete.
        """
        # Not slot by slot with Ring.put(): only the device is to be measured, and nanoseconds count.
        iommu, ring = self.machine.iommu, self._ring
        view, words = iommu.shared.view, iommu.shared.words
        place = ring.producer % MAX_RING_ENTRIES * SLOT_SIZE
        first = slots[: MAX_RING_ENTRIES * SLOT_SIZE - place]
        rest = slots[len(first) :]
        view[RING_AREA_OFFSET + place : RING_AREA_OFFSET + place + len(first)] = first
        view[RING_AREA_OFFSET : RING_AREA_OFFSET + len(rest)] = rest
        ring.producer = target = ring.producer + len(slots) // SLOT_SIZE & MASK
        work = iommu.work
        start = perf_counter_ns()
        words[0] = target
        while words[_COMPLETED] != target:
            work()
        return perf_counter_ns() - start

    def failed(self) -> int:
        """How many operations have failed so far: a benchmark of refusals would be fast and worthless."""
        return self.machine.iommu.counters.ops_failed
