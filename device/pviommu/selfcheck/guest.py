"""A guest: its drivers of the PV-IOMMU and of the DMA test engines, as far as a self-check needs them.

How the guest reaches a device (calls, or sockets and shared memory) is left to a subclass; what it writes into shared
memory and what it finds there is the same.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import struct
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence

from pviommu_abi import dma_test, own, slots
from pviommu_abi.dma_test import Control, Descriptor, DescriptorStatus, DmaOp
from pviommu_abi.own import MapOp, OwnOp
from pviommu_abi.registers import REGISTER, RingControl
from pviommu_abi.shared import (
    CACHE_LINE,
    EVENT_ENTRIES,
    EVENT_INDEX_OFFSET,
    EVENT_OFFSET,
    RING_AREA_OFFSET,
    RING_INDEX_STRIDE,
    SBDF_UNBOUND,
    DeviceEventLine,
    Event,
    EventReason,
)
from pviommu_abi.slots import PAYLOAD_OFFSET, PAYLOAD_SIZE, SLOT_SIZE, OpClass, SlotFlags

from .difference import require
from .operations import Alloc, Attach, Batch, Block, Dma, Free, Operation, Plug, Posted, Reset, Revive, SlotOperation
from .oracle import BatchOutcome, DmaOutcome, Oracle, Verdict
from .profiles import Seen, Submission
from .settings import LARGE_MODULE, RAM, SHADOWED_BYTES, STREAMS

__all__ = ["BATCH_PAGE", "ENTRIES", "Guest", "GuestRam"]

ENTRIES = 64
RINGS = 2
MASK = 0xFFFFFFFF
BATCH_PAGE = 0xFFF
"""Guest frame of the arrays that batches are made of. It is cleared after each, so no DMA meets what is left."""
_NO_STREAM = 0xFFFFFFFF
UNTOUCHED_STATUS = 0x5555
_HEAD = struct.Struct("<BBHI8x")
_DESCRIPTOR = struct.Struct("<BBHIQQQ")
_TAIL = struct.Struct("<iI")
_RESULT = slots.Slot.offset_of("result")
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


class GuestRam:
    """A sealed file: the RAM that is always there at its own offset, and behind it the module that comes and goes."""

    def __init__(self) -> None:
        self.fd = os.memfd_create("selfcheck-ram", os.MFD_ALLOW_SEALING | os.MFD_CLOEXEC)
        os.truncate(self.fd, SHADOWED_BYTES + (len(LARGE_MODULE) << 12))
        fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
        self.bytes = mmap.mmap(self.fd, SHADOWED_BYTES)
        self.bytes[0] = 1  # a guest without any data looks like one whose memory is elsewhere

    def close(self) -> None:
        self.bytes.close()
        os.close(self.fd)

    @staticmethod
    def parts(present: bool) -> list[tuple[int, int, int]]:
        """(GPA, size, offset in the file) of the RAM ranges; ``present``: only of the module."""
        if present:
            return [(LARGE_MODULE.start << 12, len(LARGE_MODULE) << 12, SHADOWED_BYTES)]
        return [(part.start << 12, len(part) << 12, part.start << 12) for part in RAM]

    def offset(self, gpa: int) -> int:
        """Where in the file a GPA is."""
        return gpa if gpa < SHADOWED_BYTES else gpa - (LARGE_MODULE.start << 12) + SHADOWED_BYTES


class Guest(ABC):
    """Carries out operations as a guest and compares everything that it can see of them."""

    name: str

    def __init__(self, oracle: Oracle) -> None:
        self.oracle = oracle
        self.ram = GuestRam()
        self._interface = oracle.interface
        self._producer = [0] * RINGS
        self._descriptors = dict.fromkeys(STREAMS, 0)
        self._events = 0
        self._module = False

    # -- how the device is reached ----------------------------------------------------------------------------------

    @abstractmethod
    def views(self, stream: int | None) -> tuple[memoryview, memoryview]:
        """Bytes and 32-bit words of the shared BAR of an endpoint, or of the PV-IOMMU."""

    @abstractmethod
    def write_register(self, stream: int | None, offset: int, value: int) -> None:
        """Write a register of BAR 0."""

    @abstractmethod
    def set_bus_master(self, stream: int, on: bool) -> None:
        """Memory accesses, and DMA if it is ``on``."""

    @abstractmethod
    def wait_for_ring(self, ring: int, position: int) -> None:
        """Return when ``position`` slots of a ring are complete."""

    @abstractmethod
    def wait_for_descriptor(self, stream: int, word: int) -> None:
        """Return when a descriptor's status, word ``word`` of the endpoint's shared memory, is not PENDING."""

    @abstractmethod
    def plug(self, parts: Sequence[tuple[int, int, int]]) -> None:
        """Give (GPA, size, offset in the RAM file) ranges to every function."""

    @abstractmethod
    def unplug(self, parts: Sequence[tuple[int, int, int]]) -> None:
        """Take ranges away again."""

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

    # -- setting up -------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Plug RAM, set everything up."""
        self.plug(self.ram.parts(False))
        for stream in STREAMS:
            self.set_bus_master(stream, True)
            self.write_register(stream, dma_test.REGISTER["CONTROL"].offset, Control.ENABLE)
        self._set_up()

    def _set_up(self) -> None:
        _, words = self.views(None)
        self._register("PROFILE", self._interface.number)
        for ring in range(RINGS):
            self._producer[ring] = 0
            words[ring * RING_INDEX_STRIDE // 4] = 0
            for register, value in (
                ("RING_SELECT", ring),
                ("RING_ENTRIES", ENTRIES),
                ("RING_BASE_LO", RING_AREA_OFFSET + ring * ENTRIES * SLOT_SIZE),
                ("RING_CONTROL", RingControl.ENABLE),
            ):
                self._register(register, value)
        self._events = 0
        for submission in self._interface.set_up:
            position = self._put(0, submission)
            require(self.name, f"result of {submission}", 0, self._take(0, position)[0])

    def _register(self, name: str, value: int) -> None:
        self.write_register(None, REGISTER[name].offset, value)

    # -- slots ------------------------------------------------------------------------------------------------------

    def _put(self, ring: int, submission: Submission, posted: bool = False) -> int:
        """Submit a slot, without a doorbell; its position."""
        view, words = self.views(None)
        position = self._producer[ring]
        place = RING_AREA_OFFSET + (ring * ENTRIES + position % ENTRIES) * SLOT_SIZE
        op_class, op, flags, payload = submission
        flags |= SlotFlags.POSTED if posted else 0
        view[place : place + SLOT_SIZE] = _HEAD.pack(op_class, op, flags, position) + payload
        self._producer[ring] = position + 1 & MASK
        words[ring * RING_INDEX_STRIDE // 4] = self._producer[ring]
        return position

    def _take(self, ring: int, position: int) -> tuple[int, bytes]:
        """Wait for a slot: its result and payload."""
        self.ring_doorbell(ring, position)
        self.wait_for_ring(ring, position + 1)
        return self._read(ring, position)

    def _read(self, ring: int, position: int) -> tuple[int, bytes]:
        view, _ = self.views(None)
        place = RING_AREA_OFFSET + (ring * ENTRIES + position % ENTRIES) * SLOT_SIZE
        result, completed = _TAIL.unpack_from(view, place + _RESULT)
        if completed != position:
            require(self.name, "sequence in the completed slot", position, completed)
        return result, bytes(view[place + PAYLOAD_OFFSET : place + SLOT_SIZE])

    def call(self, submission: Submission) -> tuple[int, bytes]:
        """Submit one slot and wait for it: result and payload."""
        return self._take(0, self._put(0, submission))

    def completed(self, ring: int) -> int:
        """What the device says of a ring."""
        return int(self.views(None)[1][(ring * RING_INDEX_STRIDE + CACHE_LINE) // 4])

    # -- operations -------------------------------------------------------------------------------------------------

    def run(self, op: Operation, verdict: Verdict) -> None:
        """Carry out ``op`` and compare what came of it."""
        events: list[SeenEvent] = []
        match op:
            case Dma():
                self._dma(op, verdict.outcome, events)
            case Posted():
                self._posted(op, verdict.outcome, events)
            case Batch():
                self._batch(op, verdict)
            case Revive():
                self.set_bus_master(op.stream, False)
                self.set_bus_master(op.stream, True)
            case Reset():
                self._register("RESET", 1)
                self._set_up()
            case Plug():
                self._plug(op)
            case _:
                submission = self._interface.submission(op)
                self._compare(op, verdict, submission.payload, self.call(submission), self._seen())
        self._compare_events(op, events)

    def _seen(self) -> Seen:
        model = self.oracle.model
        return Seen(model.usage, len(self.oracle.bound), model.pages)

    def _compare(self, op: SlotOperation, verdict: Verdict, given: bytes, found: tuple[int, bytes], seen: Seen) -> None:
        expected = self._interface.expected(op, given, verdict.refused, verdict.outcome, seen)
        if expected != found:
            require(self.name, f"result of {op}", expected[0], found[0])
            require(self.name, f"payload of {op}", expected[1], found[1])

    def _posted(self, op: Posted, verdicts: list[Verdict], events: list[SeenEvent]) -> None:
        """All slots at once. What moves endpoints or contexts goes into the other ring, and waits for the posted."""
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
            self.wait_for_ring(ring, self._producer[ring])
        else:
            last = self._interface.submission(waited)
            position = self._put(other, last)
            if other != ring:
                self.ring_doorbell(ring, first)
            self.ring_doorbell(other, first if other == ring else position)
            self.wait_for_ring(other, position + 1)
            self.wait_for_ring(ring, self._producer[ring])
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
        record = own.Batch(address, len(op.elements), int(op.unmap), op.ctx, 0, UNTOUCHED_STATUS).pack()
        payload = record.ljust(PAYLOAD_SIZE, b"\0")
        found = self.call(Submission(OpClass.OWN, OwnOp.BATCH, 0, payload))
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
            (self.plug if op.present else self.unplug)(self.ram.parts(True))
            self._module = op.present

    # -- DMA and events ---------------------------------------------------------------------------------------------

    def _dma(self, op: Dma, outcome: DmaOutcome, events: list[SeenEvent]) -> None:
        view, _ = self.views(op.stream)
        index = self._descriptors[op.stream]
        place = index % dma_test.ENTRIES * Descriptor.SIZE
        kind = DmaOp.FILL if op.write else DmaOp.CHECKSUM
        view[place : place + Descriptor.SIZE] = _DESCRIPTOR.pack(
            kind, 0, 0, op.length, op.iova, op.iova, op.pattern
        ).ljust(Descriptor.SIZE, b"\0")
        self._descriptors[op.stream] = index + 1 & MASK
        self.write_register(op.stream, dma_test.REGISTER["PRODUCER"].offset, index + 1 & MASK)
        self.wait_for_descriptor(op.stream, (place + Descriptor.offset_of("status")) // 4)
        done = Descriptor.unpack(view, place)
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
        """Take what is in the event ring."""
        view, words = self.views(None)
        line = EVENT_INDEX_OFFSET // 4
        producer = words[line + CACHE_LINE // 4]
        if producer == self._events and not expected:
            return
        found: list[SeenEvent] = []
        while self._events != producer:
            event = Event.unpack(view, EVENT_OFFSET + self._events % EVENT_ENTRIES * Event.SIZE)
            if event.sequence != self._events:
                require(self.name, "sequence of an event", self._events, event.sequence)
            found.append(
                (
                    *(event.reason, event.access, event.stream, event.sbdf, event.iova, event.length),
                    *(event.ctx_no, event.result, event.slot),
                )
            )
            self._events = self._events + 1 & MASK
        words[line] = self._events
        if isinstance(op, Posted):  # a DMA may be refused before or after the slots are looked at
            found, expected = sorted(found), sorted(expected)
        require(self.name, f"events of {op}", expected, found)
        lost = words[line + (CACHE_LINE + DeviceEventLine.offset_of("lost")) // 4]
        require(self.name, "events lost", 0, lost)

    # -- comparing --------------------------------------------------------------------------------------------------

    def compare_all(self) -> None:
        """Compare every page of every context, and all of guest RAM."""
        self.compare_tables()
        expected, found = self.oracle.ram, self.ram.bytes
        for gfn in range(SHADOWED_BYTES >> 12):
            page = found[gfn << 12 : gfn + 1 << 12]
            if page != expected.get(gfn, _ZEROS):
                require(self.name, f"guest memory, gfn {gfn:#x}", bytes(expected.get(gfn, _ZEROS)), page)
