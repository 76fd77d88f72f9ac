"""What a hostile guest does with tables of its own: entries that lead anywhere, contexts that come and go, DMA, memory
that changes while the device walks.

Input: u8 settings (bit 0: a small aperture, 7: memory changes after each look), then steps, each a u8 of ``_STEPS`` and
what that step takes. An entry is a place of ``PLACES`` with low bits, or any 64 bits (see ``_entry``), so that few
bytes make tables that lead to each other and to themselves.
"""

from __future__ import annotations

import os
from collections.abc import Callable

from pviommu.dma.fault import DmaRefusedError
from pviommu.engine import Access
from pviommu.guest.local import LocalFunction
from pviommu.guest.ring import Ring
from pviommu.guest.xen_2024 import Xen2024
from pviommu.machine import Machine
from pviommu.topology import IommuSection, ReservedSection
from pviommu_abi.registers import REGISTER, Profile, Reset
from pviommu_abi.shared import IN_FLIGHT_LINES, IN_FLIGHT_OFFSET
from pviommu_abi.slots import OpClass
from vfio_user import DmaMapping

from .feed import Feed
from .machine import RAM_SIZE, STREAM, Meddled, sealed_memory, small_machine

__all__ = ["TOKENS", "target"]

MAX_STEPS = 96
DEVFN = 0x28
PLACES = tuple(0x10000 + 0x1000 * each for each in range(6))
"""Tables, and pages to lead to."""
OUTSIDE = RAM_SIZE + 0x1000
IOVAS = (0, 0x3000, 0x201000, 0x4000_0000, 0xFEE0_0000, 0x20000, (1 << 39) - 0x1000)
DIRECT = ReservedSection(0x20000, 0x1000)
MOST_LOOKS = 4
"""Entries that the walk of one page reads."""
TOKENS = (b"\0", b"\3", b"\x80", b"\xff", PLACES[0].to_bytes(4, "little"))


def _entry(feed: Feed) -> int:
    kind = feed.u8()
    if kind < 0xC0:
        return PLACES[kind % len(PLACES)] | feed.u16() & 0xFFF
    return OUTSIDE | feed.u16() if kind < 0xD0 else feed.u64()


class _Guest(Xen2024):
    """The steps."""

    def __init__(self, machine: Machine, ram: int, feed: Feed, inputs: Meddled) -> None:
        self.machine, self.iommu, self.ram, self.feed, self.inputs = machine, machine.iommu, ram, feed, inputs
        self.endpoint = machine.endpoints["dma0"]
        self.function = LocalFunction(self.iommu, REGISTER)
        self.ring = Ring(self.function)
        self.is_plugged = True
        self.looks = 0
        self.plain: set[int] = set()
        """contexts of the other kind that map page 3"""
        self.set_up()

    def set_up(self) -> None:
        self.function.write("PROFILE", Profile.XEN_2024)
        self.ring.turn_on()
        self.bind_stream(DEVFN, STREAM)
        self.function.set_bus_master(True)
        self.endpoint.region_write(7, 4, b"\x06\x00")

    def call(self, payload: bytes, op_class: int = OpClass.XEN_2024, op: int = 0) -> tuple[int, bytes]:
        position = self.ring.put(op_class, op, 0, payload)
        for _ in range(64):
            self.iommu.work()
            if self.ring.is_complete(position):
                result, _, answer = self.ring.result(position)
                return result, answer
        raise AssertionError(f"operation {op} of class {op_class} does not come to an end")

    # -- steps ------------------------------------------------------------------------------------------------------

    def poke(self) -> None:
        place = PLACES[self.feed.u8() % len(PLACES)] + 8 * (self.feed.u8() & 0x1F)
        os.pwrite(self.ram, _entry(self.feed).to_bytes(8, "little"), place)

    def chain(self) -> None:
        """Tables of four levels by which the first page is one of the places."""
        for level in range(4):
            os.pwrite(self.ram, (PLACES[level + 1] | 3).to_bytes(8, "little"), PLACES[level])

    def alloc(self) -> None:
        root = PLACES[0] if self.feed.u8() & 1 else _entry(self.feed)
        result, answer = self.alloc_tables(root, self.feed.u8() % 50, self.feed.u8() % 3, self.feed.u8() & 3)
        assert (result == 0) == (answer.ctx_no > 0)

    def alloc_plain(self) -> None:
        """A context of the other kind, with something in it."""
        result, ctx = self.alloc_context()
        if result == 0:
            self.plain.discard(ctx)
            if self.map(ctx, 3, 9, 2) == (0, 2):
                self.plain.add(ctx)

    def enter(self) -> None:
        self.reattach_device(DEVFN, self.feed.u8() % 5)

    def leave(self) -> None:
        self.free(self.feed.u8() % 5, self.feed.u8() & 1)

    def operate(self) -> None:
        """What is not for such contexts."""
        ctx, what = self.feed.u8() % 5, self.feed.u8() % 3
        is_of_guest = self.iommu.engine.has_guest_tables(ctx)
        result = (
            lambda: self.map(ctx, 80, 9, 1)[0],
            lambda: self.unmap(ctx, 80, 1)[0],
            lambda: self.lookup(ctx, 3)[0],
        )[what]()
        assert result == -95 if is_of_guest else result != -95

    def flush_one(self) -> None:
        ctx = self.feed.u8() % 5
        is_of_guest = self.iommu.engine.has_guest_tables(ctx)
        assert self.flush(ctx) == (0 if is_of_guest else -22)

    def dma(self) -> None:
        spans = []
        for _ in range(1 + self.feed.u8() % 6):
            iova = self.feed.pick(IOVAS) + (self.feed.u16() & 0x1FFF)
            spans.append((iova, 1 + self.feed.u16() % 0x2800))
        size, is_write = sum(length for _, length in spans), self.feed.u8() & 1
        self.looks = 0
        try:
            if is_write:
                self.endpoint.dma.write(spans, bytes(size))
            else:
                assert len(self.endpoint.dma.read(spans)) == size
        except DmaRefusedError as error:
            refused = error.fault.iova
            assert any(iova <= refused < iova + length for iova, length in spans)
        pages = sum((iova + length - 1 >> 12) - (iova >> 12) + 1 for iova, length in spans)
        assert self.looks <= 2 * MOST_LOOKS * pages + 2 * len(spans) + 4, "a walk reads too much"

    def plan(self) -> None:
        """Plans that nobody uses: they end with the step."""
        try:
            self.endpoint.dma.plan(([(self.feed.pick(IOVAS), 8)], Access.READ))
        except DmaRefusedError:
            pass
        finally:
            self.endpoint.dma.end_step()

    def look(self) -> None:
        """What a control socket asks for."""
        for ctx in self.iommu.engine.domains():
            tables = self.iommu.engine.guest_tables(ctx)
            if tables is not None:
                areas, following = tables.scan(0, 16)
                assert len(areas) <= 16
                assert following is None or following > 0
                assert len(tables.trace(self.feed.u16())) <= MOST_LOOKS

    def plug(self) -> None:
        """The IOMMU's memory goes, or comes again."""
        if self.is_plugged:
            self.iommu.dma_unmap(0, RAM_SIZE)
        else:
            self.iommu.dma_map(DmaMapping(0, RAM_SIZE, 0, True, True, os.dup(self.ram)))
        self.is_plugged = not self.is_plugged

    def reset(self) -> None:
        self.function.write("RESET", Reset.POWER_ON)
        self.endpoint.reset()
        self.set_up()

    def save(self) -> None:
        saved = self.iommu.save()
        self.iommu.load(saved)
        assert self.iommu.save() == saved


_STEPS: tuple[Callable[[_Guest], None], ...] = (
    _Guest.poke,
    _Guest.chain,
    _Guest.alloc,
    _Guest.alloc_plain,
    _Guest.enter,
    _Guest.leave,
    _Guest.operate,
    _Guest.flush_one,
    _Guest.dma,
    _Guest.plan,
    _Guest.look,
    _Guest.plug,
    _Guest.reset,
    _Guest.save,
)
STEP = {step.__name__: number for number, step in enumerate(_STEPS)}


def target(data: bytes) -> None:
    """Nothing raises, walks end, the step is even after each, and other contexts are as they were."""
    feed = Feed(data)
    chosen = feed.u8()
    inputs, ram = Meddled(), sealed_memory()
    section = IommuSection(rings=1, contexts=4, aperture_bits=32 if chosen & 1 else 39)
    try:
        with small_machine(section, inputs, ram, (DIRECT,)) as machine:
            guest = _Guest(machine, ram, feed, inputs)

            def meddle() -> None:
                guest.looks += 1
                if chosen & 0x80 and feed:
                    guest.poke()

            inputs.meddle = meddle
            for _ in range(MAX_STEPS):
                if not feed:
                    break
                feed.pick(_STEPS)(guest)
                _check(guest)
            inputs.meddle = None
    finally:
        os.close(ram)


def _check(guest: _Guest) -> None:
    words = guest.iommu.shared.words
    for line in range(IN_FLIGHT_LINES):
        at = (IN_FLIGHT_OFFSET + 64 * line) // 4
        assert words[at] % 2 == 0, f"line {line} is odd between two steps"
        assert words[at + 1] == 0
    engine = guest.iommu.engine
    guest.plain = {ctx for ctx in guest.plain if engine.is_paging(ctx)}
    for ctx in guest.plain:
        assert engine.lookup(ctx, 3) == (9, Access.READ | Access.WRITE)
