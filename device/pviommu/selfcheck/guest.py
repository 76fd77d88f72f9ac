"""A guest: as much of its drivers of the PV-IOMMU and of the DMA test engines as a self-check needs.

Its parts are those of :mod:`pviommu.guest`. How it waits for a device (by calls, or by looking at shared memory) is
left to a subclass; what it submits and what it compares is the same.
"""

from __future__ import annotations

import os
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterable

from pviommu_abi import vendor
from pviommu_abi.dma_test import DescriptorStatus, DmaOp
from pviommu_abi.shared import RING_AREA_OFFSET, SBDF_UNBOUND, EventReason
from pviommu_abi.slots import PAYLOAD_SIZE, SLOT_SIZE, OpClass, SlotFlags
from pviommu_abi.vendor import MapOp, VendorOp

from ..guest.dma_test import DescriptorRing
from ..guest.events import EventRing
from ..guest.function import Function
from ..guest.memory import GuestRam
from ..guest.ring import MASK, Ring
from .difference import require
from .operations import Alloc, Attach, Batch, Block, Dma, Free, Operation, Plug, Posted, Reset, Revive, SlotOperation
from .oracle import BatchOutcome, DmaOutcome, Oracle, Verdict
from .profiles import Interface, Seen, Submission
from .settings import LARGE_MODULE, RAM, SHADOWED_BYTES, STREAMS

__all__ = ["BATCH_PAGE", "ENTRIES", "Guest", "ModularRam"]

ENTRIES = 64
RINGS = 2
BATCH_PAGE = 0xFFF
"""Guest frame of the arrays of BATCH operations. It is cleared after each, so that DMA does not meet what is left."""
_NO_STREAM = 0xFFFFFFFF
UNTOUCHED_STATUS = 0x5555
_PAGE = 4096
_ZEROS = bytes(_PAGE)
_REASON = {
    "NOT_MAPPED": EventReason.NOT_MAPPED,
    "NO_PERMISSION": EventReason.PERMISSION,
    "OUT_OF_APERTURE": EventReason.OUT_OF_APERTURE,
    "RESERVED": EventReason.RESERVED,
    "BLOCKED": EventReason.BLOCKED,
}

SeenEvent = tuple[int, int, int, int, int, int, int, int, int]
"""reason, access, stream, sbdf, iova, length, context, result, slot"""


class ModularRam(GuestRam):
    """RAM in one file: at the offset of its GPA what is always there, and behind that the module that comes and
    goes."""

    def __init__(self, more: int = 0) -> None:
        """``more``: bytes of the file behind that."""
        super().__init__(SHADOWED_BYTES + (len(LARGE_MODULE) << 12) + more, SHADOWED_BYTES)

    def parts(self, present: bool) -> list[tuple[int, int, int]]:
        """(GPA, size, offset in the file) of the RAM ranges: of the module if ``present``, else of the other RAM."""
        if present:
            return [(LARGE_MODULE.start << 12, len(LARGE_MODULE) << 12, SHADOWED_BYTES)]
        return [(part.start << 12, len(part) << 12, part.start << 12) for part in RAM]

    def offset(self, gpa: int) -> int:
        """The offset in the file of a GPA."""
        return gpa if gpa < SHADOWED_BYTES else gpa - (LARGE_MODULE.start << 12) + SHADOWED_BYTES


class Guest(ABC):
    """Carries out operations as a guest and compares everything that a guest can see of them."""

    name: str

    def __init__(self, oracle: Oracle) -> None:
        self.oracle = oracle
        self.ram = self.make_ram()
        self._interface = self.make_interface()
        self._module = False

    def make_ram(self) -> ModularRam:
        """The guest's memory."""
        return ModularRam()

    def make_interface(self) -> Interface:
        """What the guest submits, and what it must see."""
        return self.oracle.interface

    def usage(self) -> tuple[int, int, int, int]:
        """What must be in use: contexts, pool pages, all pool pages, pages mapped."""
        return self.oracle.model.usage()

    def drive(self, functions: dict[int | None, Function]) -> None:
        """Begin to drive a machine's functions: the endpoints by stream, the PV-IOMMU by None."""
        self.functions = functions
        self.iommu = functions[None]
        slots = ENTRIES * SLOT_SIZE
        self.rings = [Ring(self.iommu, number, ENTRIES, RING_AREA_OFFSET + number * slots) for number in range(RINGS)]
        self._engines = {stream: DescriptorRing(functions[stream]) for stream in STREAMS}
        self._set_up_all()

    # -- what depends on how the device is reached ------------------------------------------------------------------

    @abstractmethod
    def wait_for_ring(self, ring: int, position: int) -> None:
        """Return when ``position`` slots of a ring are complete."""

    @abstractmethod
    def wait_for_descriptor(self, stream: int, place: int) -> None:
        """Return when the descriptor at ``place`` is not PENDING."""

    @abstractmethod
    def ring_doorbell(self, ring: int, first: int) -> None:
        """Slots from ``first`` on were submitted: tell the device if it asked for that."""

    @abstractmethod
    def compare_touched(self, ctx: int, dfns: Iterable[int]) -> None:
        """Compare single pages, as far as this path can see them."""

    @abstractmethod
    def compare_tables(self) -> None:
        """Compare every page of every context, as far as this path can see them."""

    def close(self) -> None:
        """Give everything back."""
        self.ram.close()

    def engine(self, stream: int) -> DescriptorRing:
        """The driver of an endpoint."""
        return self._engines[stream]

    # -- setting up -------------------------------------------------------------------------------------------------

    def _set_up_all(self) -> None:
        self._plug_parts(self.ram.parts(False))
        for engine in self._engines.values():
            engine.turn_on()
        self._set_up()

    def _set_up(self) -> None:
        self.iommu.write("PROFILE", self._interface.number)
        for ring in self.rings:
            ring.turn_on()
        self._events = EventRing(self.iommu)
        for submission in self._interface.set_up:
            position = self._put(0, submission)
            require(self.name, f"result of {submission}", 0, self._take(0, position)[0])

    # -- slots ------------------------------------------------------------------------------------------------------

    def _put(self, ring: int, submission: Submission, posted: bool = False) -> int:
        """Submit a slot, without a doorbell; returns its position."""
        op_class, op, flags, payload = submission
        return self.rings[ring].put(op_class, op, flags | SlotFlags.POSTED if posted else flags, payload)

    def _take(self, ring: int, position: int) -> tuple[int, bytes]:
        """Wait for a slot; returns its result and payload."""
        self.ring_doorbell(ring, position)
        self.wait_for_ring(ring, position + 1)
        return self._read(ring, position)

    def _read(self, ring: int, position: int) -> tuple[int, bytes]:
        result, completed, payload = self.rings[ring].result(position)
        if completed != position:
            require(self.name, "sequence in the completed slot", position, completed)
        return result, payload

    def call(self, submission: Submission) -> tuple[int, bytes]:
        """Submit one slot and wait for it; returns result and payload."""
        return self._take(0, self._put(0, submission))

    # -- operations -------------------------------------------------------------------------------------------------

    def run(self, op: Operation, verdict: Verdict) -> None:
        """Carry out ``op`` and compare the outcome."""
        events: list[SeenEvent] = []
        match op:
            case Dma():
                self._dma(op, verdict.outcome, events)
            case Posted():
                self._posted(op, verdict.outcome, events)
            case Batch():
                self._batch(op, verdict)
            case Revive():
                self.functions[op.stream].set_bus_master(False)
                self.functions[op.stream].set_bus_master(True)
            case Reset():
                self.iommu.write("RESET", 1)
                self._set_up()
            case Plug():
                self._plug(op)
            case _:
                submission = self._interface.submission(op)
                self._compare(op, verdict, submission.payload, self.call(submission), self._seen())
        self._compare_events(op, events)

    def _seen(self) -> Seen:
        return Seen(self.usage, len(self.oracle.bound), self.oracle.model.pages)

    def _compare(self, op: SlotOperation, verdict: Verdict, given: bytes, found: tuple[int, bytes], seen: Seen) -> None:
        expected = self._interface.expected(op, given, verdict.refused, verdict.outcome, seen)
        if expected != found:
            require(self.name, f"result of {op}", expected[0], found[0])
            require(self.name, f"payload of {op}", expected[1], found[1])

    def _posted(self, op: Posted, verdicts: list[Verdict], events: list[SeenEvent]) -> None:
        """Submit all slots at once. Operations that move endpoints or change contexts go into the other ring, and wait
        there for the posted ones."""
        waited = None if isinstance(op.then, Dma) else op.then
        ring = 1
        other = 0 if isinstance(waited, Alloc | Free | Attach | Block) else 1
        submitted = []
        for each in op.operations:
            submission = self._interface.submission(each)
            submitted.append((each, submission.payload, self._put(ring, submission, posted=True)))
        first = submitted[0][2]
        if waited is None:
            self.ring_doorbell(ring, first)
            fault: list[SeenEvent] = []
            self._dma(op.then, verdicts[-1].outcome, fault)  # type: ignore[arg-type]
            self.wait_for_ring(ring, self.rings[ring].producer)
        else:
            last = self._interface.submission(waited)
            position = self._put(other, last)
            if other != ring:
                self.ring_doorbell(ring, first)
            self.ring_doorbell(other, first if other == ring else position)
            self.wait_for_ring(other, position + 1)
            self.wait_for_ring(ring, self.rings[ring].producer)
            self._compare(waited, verdicts[-1], last.payload, self._read(other, position), self._seen())
        for (each, given, position), verdict in zip(submitted, verdicts, strict=False):
            result, payload = self._read(ring, position)
            self._compare(each, verdict, given, (result, payload), self._seen())
            if result < 0:
                reason = int(EventReason.POSTED_FAILED)
                events.append((reason, 0, _NO_STREAM, SBDF_UNBOUND, 0, 0, 0, result, position))
        if waited is None:
            events += fault

    def _batch(self, op: Batch, verdict: Verdict) -> None:
        array = b"".join(MapOp(bfn, mfn, access, UNTOUCHED_STATUS).pack() for bfn, mfn, access in op.elements)
        address = BATCH_PAGE << 12
        self.ram.bytes[address : address + len(array)] = array
        record = vendor.Batch(address, len(op.elements), int(op.unmap), op.ctx, 0, UNTOUCHED_STATUS).pack()
        payload = record.ljust(PAYLOAD_SIZE, b"\0")
        found = self.call(Submission(OpClass.VENDOR, VendorOp.BATCH, 0, payload))
        self._compare(op, verdict, payload, found, self._seen())
        written = self.ram.bytes[address : address + len(array)]
        statuses = [status for *_, status in MapOp.STRUCT.iter_unpack(written)]
        expected = [] if verdict.refused else self._statuses(op, verdict.outcome)
        expected += [UNTOUCHED_STATUS] * (len(op.elements) - len(expected))
        require(self.name, f"statuses of {op}", expected, statuses)
        self.ram.bytes[address : address + _PAGE] = bytes(_PAGE)
        self.oracle.ram.pop(BATCH_PAGE, None)

    def _statuses(self, op: Batch, outcome: BatchOutcome) -> list[int]:
        kind = "unmap" if op.unmap else "map"
        return [self._interface.errno(kind, answer) for answer in outcome.answers]

    def _plug(self, op: Plug) -> None:
        if op.present != self._module:
            (self._plug_parts if op.present else self._unplug_parts)(self.ram.parts(True))
            self._module = op.present

    def _plug_parts(self, parts: Iterable[tuple[int, int, int]]) -> None:
        for address, size, offset in parts:
            for function in self.functions.values():
                function.plug(address, size, self.ram.fd, offset)

    def _unplug_parts(self, parts: Iterable[tuple[int, int, int]]) -> None:
        for address, size, _ in parts:
            for function in self.functions.values():
                function.unplug(address, size)

    # -- DMA and events ---------------------------------------------------------------------------------------------

    def _dma(self, op: Dma, outcome: DmaOutcome, events: list[SeenEvent]) -> None:
        engine = self._engines[op.stream]
        kind = DmaOp.FILL if op.write else DmaOp.CHECKSUM
        place = engine.put(kind, op.length, op.iova, op.iova, op.pattern)
        engine.start()
        self.wait_for_descriptor(op.stream, place)
        done = engine.descriptor(place)
        access = 2 if op.write else 1
        if isinstance(outcome.translation, list) and outcome.lost is None:
            require(self.name, f"status of {op}", DescriptorStatus.DONE, done.status)
            if op.write:
                found = b"".join(self._memory(gpa, length) for gpa, length in outcome.translation)
                require(self.name, f"bytes in guest memory after {op}", outcome.data, found)
            else:
                require(self.name, f"checksum of {op}", zlib.crc32(outcome.data), done.checksum)
            return
        if isinstance(outcome.translation, tuple):
            address, why = outcome.translation
            reason = int(_REASON[why])
        else:
            address, reason = outcome.lost or 0, int(EventReason.NOT_RAM)
        found_fault = done.status, done.detail, done.reason, done.access
        require(self.name, f"status of {op}", (int(DescriptorStatus.FAULT), address, reason, access), found_fault)
        sbdf = SBDF_UNBOUND if outcome.devfn is None else outcome.devfn
        events.append((reason, access, op.stream, sbdf, address, op.length, outcome.ctx, 0, 0))

    def _memory(self, gpa: int, length: int) -> bytes:
        if gpa < SHADOWED_BYTES:
            return self.ram.bytes[gpa : gpa + length]
        return os.pread(self.ram.fd, length, self.ram.offset(gpa))

    def _compare_events(self, op: Operation, expected: list[SeenEvent]) -> None:
        """Compare the events in the event ring, and take them out."""
        if self._events.is_empty and not expected:
            return
        found: list[SeenEvent] = []
        sequence = self._events.consumer
        for event in self._events.take():
            if event.sequence != sequence:
                require(self.name, "sequence of an event", sequence, event.sequence)
            found.append(
                (
                    *(event.reason, event.access, event.stream, event.sbdf, event.iova, event.length),
                    *(event.ctx_no, event.result, event.slot),
                )
            )
            sequence = sequence + 1 & MASK
        if isinstance(op, Posted):  # DMA may be refused before or after the slots are executed
            found, expected = sorted(found), sorted(expected)
        require(self.name, f"events of {op}", expected, found)
        require(self.name, "events lost", 0, self._events.lost)

    # -- comparing --------------------------------------------------------------------------------------------------

    def compare_all(self) -> None:
        """Compare every page of every context, and all of guest RAM."""
        self.compare_tables()
        expected, found = self.oracle.ram, self.ram.bytes
        for gfn in range(SHADOWED_BYTES >> 12):
            page = found[gfn << 12 : gfn + 1 << 12]
            if page != expected.get(gfn, _ZEROS):
                require(self.name, f"guest memory, gfn {gfn:#x}", bytes(expected.get(gfn, _ZEROS)), page)
