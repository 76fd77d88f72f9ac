"""What a hostile guest or client can do to a server that others use too."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import ClassVar, Self

from pviommu_abi import dma_test
from pviommu_abi.dma_test import Descriptor, DescriptorFlags, DescriptorStatus, DmaOp, SgEntry
from pviommu_abi.registers import REGISTER, REGISTER_BAR, Profile, Reset, RingControl
from pviommu_abi.shared import CACHE_LINE, MAX_RING_ENTRIES, RING_AREA_OFFSET, RING_INDEX_STRIDE
from pviommu_abi.slots import SLOT_SIZE, OpClass, Slot, SlotFlags
from pviommu_abi.vendor import Batch, BatchFlags, MapOp, VendorOp
from pviommu_abi.xen_2024 import MapPages, PvIommuOp, UnmapPages, Xen2024Op
from vfio_user import Client, transport
from vfio_user.messages import Command, Header, RegionAccess

from ..guest.dma_test import DescriptorRing
from ..guest.memory import GuestRam
from ..guest.wire import WireFunction
from ..lab.problems import RunError
from .wire_guest import Opened, WireGuest

__all__ = ["ABUSES", "NOTHING", "Abuse", "Engine", "Scene"]

_PATIENCE_S = 30.0
_SHARED_BAR = 2
_CONFIG = 7
_RAM_SIZE = 512 << 20
_HOLE_RANGES = 1024
"""RAM ranges of a guest that uses none of its memory, a MiB each and a MiB apart."""
_MIB = 1 << 20
_TARGET = 0x1000
"""Where the honest engine writes."""
_ARRAY = 16 * _MIB
_ELEMENTS = 1 << 15
_LARGEST = 1 << 16
"""Pages of one large map."""
_RESET_ENTRIES = 32
"""Slots of the ring that a reset waits for: they take some tenths of a second."""
_BUSY = 16
"""Sockets, and engines, of the abuse that does everything at once; fewer if there are not so many."""
_NOWHERE = 1 << 38
"""An address without RAM."""
_MASK = 0xFFFFFFFF


class Engine(Opened):
    """The driver of a DMA test engine. A context manager."""

    def __init__(self, folder: Path, name: str, ram: int, size: int) -> None:
        """``ram``: descriptor of a file, whose first ``size`` bytes are mapped at GPA 0."""
        self._submitted = 0
        with ExitStack() as stack:
            self.sock = transport.connect(folder / f"{name}.sock", _PATIENCE_S)
            self.client = stack.enter_context(Client(self.sock))
            self.client.negotiate()
            function = WireFunction(self.client, dma_test.REGISTER, [(0, size, ram, 0)])
            stack.callback(function.close)
            self._memory, self._words = function.view, function.words
            DescriptorRing(function).turn_on()
            self._stack = stack.pop_all()

    def _write(self, register: str, value: int, *, posted: bool = False) -> None:
        offset = dma_test.REGISTER[register].offset
        self.client.region_write(REGISTER_BAR, offset, value.to_bytes(4, "little"), posted=posted)

    def read_register(self) -> None:
        """A trapped read of a register, without further effect."""
        self.client.region_read(REGISTER_BAR, dma_test.REGISTER["VERSION"].offset, 4)

    def list_pages(self, length: int) -> int:
        """Fill the scatter/gather table with entries of ``length`` bytes, a page apart. Returns the reference to it."""
        for number in range(dma_test.SG_ENTRIES):
            at = dma_test.SG_OFFSET + number * SgEntry.SIZE
            self._memory[at : at + SgEntry.SIZE] = SgEntry(number * 4096, length).pack()
        return dma_test.SG_ENTRIES << 32

    def keep_full(self, descriptor: Descriptor) -> None:
        """Queue ``descriptor`` as often as there is room, and ring the doorbell without waiting for an answer."""
        before = self._submitted
        while self._submitted - before < dma_test.ENTRIES and self._is_free(self._submitted):
            self._put(descriptor)
        if self._submitted != before:
            self._write("PRODUCER", self._submitted, posted=True)

    def fill(self) -> None:
        """Write 8 bytes of zeros by DMA and wait for it. Raises RunError."""
        status = self._put(Descriptor(DmaOp.FILL, 0, 0, 8, 0, _TARGET, 0))
        self._write("PRODUCER", self._submitted)
        deadline = time.monotonic() + _PATIENCE_S
        while self._words[status] == DescriptorStatus.PENDING:
            if time.monotonic() > deadline:
                raise RunError(f"DMA was not done within {_PATIENCE_S:g} s")
        if self._words[status] != DescriptorStatus.DONE:
            raise RunError(f"DMA of the measurement has status {self._words[status]}")

    def _status_word(self, number: int) -> int:
        return (number % dma_test.ENTRIES * Descriptor.SIZE + Descriptor.offset_of("status")) // 4

    def _is_free(self, number: int) -> bool:
        return number < dma_test.ENTRIES or self._words[self._status_word(number)] != DescriptorStatus.PENDING

    def _put(self, descriptor: Descriptor) -> int:
        """Put a descriptor; returns the index of the word in which its status appears."""
        at = self._submitted % dma_test.ENTRIES * Descriptor.SIZE
        self._memory[at : at + Descriptor.SIZE] = descriptor.pack()
        self._submitted = (self._submitted + 1) & _MASK
        return self._status_word(self._submitted - 1)


class Scene(Opened):
    """The guest of one server with its engines, the last of which belongs to the honest user. A context manager."""

    def __init__(self, folder: Path, engines: int, *, is_memory_used: bool) -> None:
        """Without memory in use there is no guest with a ring 0, only RAM of many ranges and a client,
        :attr:`iommu`."""
        with ExitStack() as stack:
            self.guest: WireGuest | None = None
            self.iommu: Client | None = None
            size = _MIB
            if is_memory_used:
                self.guest = stack.enter_context(WireGuest(folder, _RAM_SIZE))
                ram, size = self.guest.ram, _RAM_SIZE
            else:
                ram = stack.enter_context(GuestRam(_HOLE_RANGES * _MIB, _MIB)).fd
                self.iommu = stack.enter_context(Client.connect(folder / "iommu.sock", _PATIENCE_S))
                for number in range(_HOLE_RANGES):
                    self.iommu.dma_map(2 * number * _MIB, _MIB, ram, number * _MIB)
                self.iommu.device_info()
            connected = [stack.enter_context(Engine(folder, f"dma{n}", ram, size)) for n in range(engines)]
            self.engines, self.honest = connected[:-1], connected[-1]
            self._stack = stack.pop_all()


class Abuse:
    """No abuse, for comparison. A context manager; the abuses override :meth:`go_on`."""

    name: ClassVar[str] = "nothing"
    leaves_ring_0: ClassVar[bool] = True
    is_memory_used: ClassVar[bool] = True
    is_by_many: ClassVar[bool] = False
    """whether the honest client is one of many that want as much, so that its requests wait for their turn"""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave what was begun unfinished: the server is stopped in the middle of it."""

    @property
    def guest(self) -> WireGuest:
        """Raises RunError if there is none."""
        if self.scene.guest is None:
            raise RunError(f"{self.name}: needs a guest with a ring 0")
        return self.scene.guest

    def go_on(self) -> None:
        """Give the server as much to do as it accepts without an answer, and wait for nothing."""


class _Stream:
    """Sends the same request to one socket over and over, as often as it accepts it."""

    def __init__(self, sock: socket.socket, request: bytes) -> None:
        self._sock = sock
        self._stream = request * (_MIB // len(request))
        self._position = 0

    def go_on(self) -> None:
        self._sock.setblocking(False)
        try:
            while self._sock.recv(_MIB):
                pass
        except BlockingIOError:
            pass
        try:
            while True:
                self._position += self._sock.send(self._stream[self._position :])
                self._position %= len(self._stream)
        except BlockingIOError:
            pass


class _Flood(Abuse):
    """One client that floods its socket."""

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        self._stream = _Stream(scene.engines[0].sock, self.request())

    def request(self) -> bytes:
        raise NotImplementedError

    def go_on(self) -> None:
        self._stream.go_on()


class _ReadFlood(_Flood):
    name = "pipelined register reads"

    def request(self) -> bytes:
        return _message(Command.REGION_READ, RegionAccess(0, REGISTER_BAR, 4).pack())


class _ConfigFlood(_Flood):
    name = "pipelined writes of configuration space"

    def request(self) -> bytes:
        data = bytes(4096)
        return _message(Command.REGION_WRITE, RegionAccess(0, _CONFIG, len(data)).pack() + data)


class _BarFlood(_Flood):
    name = "pipelined reads of 64 KiB of a BAR"

    def request(self) -> bytes:
        return _message(Command.REGION_READ, RegionAccess(0, _SHARED_BAR, dma_test.SHARED_BAR_SIZE).pack())


class _ResetFlood(_Flood):
    name = "pipelined resets"

    def request(self) -> bytes:
        return _message(Command.DEVICE_RESET, b"")


def _message(command: Command, payload: bytes) -> bytes:
    return Header(1, command, Header.SIZE + len(payload), 0, 0).pack() + payload


class _Engines(Abuse):
    """Keeps the queues of all engines but the honest one full of the same descriptor."""

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        for engine in scene.engines:
            pages = engine.list_pages(2048)
        self._descriptor = self.descriptor(pages)

    def descriptor(self, pages: int) -> Descriptor:
        """``pages``: reference to a table of 2048 entries, 4 MiB in all."""
        raise NotImplementedError

    def go_on(self) -> None:
        for engine in self.scene.engines:
            engine.keep_full(self._descriptor)


class _Verifies(_Engines):
    name = "4 MiB verifies of 2048 entries, all engines"

    def descriptor(self, pages: int) -> Descriptor:
        return Descriptor(DmaOp.VERIFY, DescriptorFlags.SRC_SG, 0, dma_test.MAX_LENGTH, pages, 0, 0)


class _Copies(_Engines):
    name = "4 MiB copies of 2048 entries, all engines"

    def descriptor(self, pages: int) -> Descriptor:
        flags = DescriptorFlags.SRC_SG | DescriptorFlags.DST_SG
        return Descriptor(DmaOp.COPY, flags, 0, dma_test.MAX_LENGTH, pages, pages, 0)


class _Rings(Abuse):
    """Keeps rings from 1 up full of the same two slots in turn."""

    numbers: ClassVar[range] = range(1, 4)

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        self._submitted = dict.fromkeys(self.numbers, 0)
        for number in self.numbers:
            _turn_on(self.guest, number)

    def slots(self, ring: int) -> Sequence[bytes]:
        raise NotImplementedError

    def go_on(self) -> None:
        for number in self.numbers:
            self._submitted[number] = _fill_ring(self.guest, number, self.slots(number), self._submitted[number])
        self.guest.ring_doorbell(trapped=False)


def _turn_on(guest: WireGuest, ring: int, entries: int = MAX_RING_ENTRIES) -> None:
    """Ring 0 is selected afterwards."""
    guest.words[ring * RING_INDEX_STRIDE // 4] = 0
    for register, value in (
        ("RING_SELECT", ring),
        ("RING_ENTRIES", entries),
        ("RING_BASE_LO", _ring_base(ring)),
        ("RING_CONTROL", RingControl.ENABLE),
        ("RING_SELECT", 0),
    ):
        guest.write(register, value)


def _ring_base(ring: int) -> int:
    return RING_AREA_OFFSET + ring * MAX_RING_ENTRIES * SLOT_SIZE


def _fill_ring(
    guest: WireGuest, ring: int, slots: Sequence[bytes], submitted: int, entries: int = MAX_RING_ENTRIES
) -> int:
    """Fill a ring with ``slots`` in turn, after ``submitted`` ones; returns how many are submitted now."""
    producer = ring * RING_INDEX_STRIDE // 4
    completed = guest.words[producer + CACHE_LINE // 4]
    for position in range(submitted, completed + entries):
        at = _ring_base(ring) + position % entries * SLOT_SIZE
        guest.memory[at : at + SLOT_SIZE] = slots[position % len(slots)]
    guest.words[producer] = completed + entries & _MASK
    return int(completed) + entries


def _slot(op_class: int, op: int, payload: bytes) -> bytes:
    return (Slot(op_class, op, SlotFlags.POSTED, 1).pack() + payload).ljust(SLOT_SIZE, b"\0")


def _large_maps(ctx: int, ring: int) -> tuple[bytes, bytes]:
    """A map of as many pages as possible, none of which can be part of a large leaf, and its unmap."""
    dfn = 2 * ring * _LARGEST
    return (
        _slot(OpClass.XEN_2024, 0, MapPages(Xen2024Op.MAP_PAGES, ctx, 3, 1, dfn, _LARGEST).pack()),
        _slot(OpClass.XEN_2024, 0, UnmapPages(Xen2024Op.UNMAP_PAGES, ctx, 0, dfn, _LARGEST).pack()),
    )


class _LargeMaps(_Rings):
    name = "maps and unmaps of 65536 pages, all other rings"

    def slots(self, ring: int) -> Sequence[bytes]:
        return _large_maps(self.guest.context, ring)


class _Batches(_Rings):
    name = "BATCH of 32768 elements"
    numbers = range(1, 2)

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        elements = b"".join(MapOp((1 << 20) + number, number % 4096, 3).pack() for number in range(_ELEMENTS))
        os.pwrite(self.guest.ram, elements, _ARRAY)

    def slots(self, ring: int) -> Sequence[bytes]:
        return [
            _slot(OpClass.VENDOR, VendorOp.BATCH, Batch(_ARRAY, _ELEMENTS, flags, self.guest.context).pack())
            for flags in (0, int(BatchFlags.UNMAP))
        ]


class _RefusedDma(_LargeMaps):
    name = "refused DMA of all engines behind full rings"

    def go_on(self) -> None:
        super().go_on()
        for engine in self.scene.engines:
            engine.keep_full(Descriptor(DmaOp.FILL, 0, 0, 8, 0, _NOWHERE, 0))


class _ResetBehindRings(Abuse):
    name = "RESET behind a full ring"
    leaves_ring_0 = False

    def go_on(self) -> None:
        guest = self.guest
        guest.write("PROFILE", Profile.XEN_2024)  # this is answered when the last reset is over
        _turn_on(guest, 1, _RESET_ENTRIES)
        alloc = _slot(OpClass.XEN_2024, 0, PvIommuOp(Xen2024Op.ALLOC_CONTEXT, 0, 0).pack())
        _fill_ring(guest, 1, [alloc, *_large_maps(1, 1) * _RESET_ENTRIES], 0, _RESET_ENTRIES)
        guest.write("RESET", Reset.POWER_ON, posted=True)


class _TurningOn(Abuse):
    name = "turning a ring on, GiB of holes"
    leaves_ring_0 = False
    is_memory_used = False

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        for register, value in (
            ("PROFILE", Profile.XEN_2024),
            ("RING_ENTRIES", MAX_RING_ENTRIES),
            ("RING_BASE_LO", RING_AREA_OFFSET),
        ):
            self._write(register, value)

    def _write(self, register: str, value: int, *, posted: bool = False) -> None:
        if self.scene.iommu is not None:
            offset = REGISTER[register].offset
            self.scene.iommu.region_write(REGISTER_BAR, offset, value.to_bytes(4, "little"), posted=posted)

    def go_on(self) -> None:
        self._write("RING_CONTROL", RingControl.ENABLE, posted=True)


class _Everything(_LargeMaps):
    name = "rings 1 to 3, 16 sockets and 16 engines busy"
    is_by_many = True

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        half = min(len(scene.engines) // 2, _BUSY)
        self._busy = scene.engines[half : half + _BUSY]
        request = _message(Command.REGION_READ, RegionAccess(0, REGISTER_BAR, 4).pack())
        self._streams = [_Stream(engine.sock, request) for engine in scene.engines[:half]]
        for engine in self._busy:
            pages = engine.list_pages(2048)
        self._verify = Descriptor(DmaOp.VERIFY, DescriptorFlags.SRC_SG, 0, dma_test.MAX_LENGTH, pages, 0, 0)

    def go_on(self) -> None:
        super().go_on()
        for engine in self._busy:
            engine.keep_full(self._verify)
        for stream in self._streams:
            stream.go_on()


NOTHING = Abuse.name
ABUSES: dict[str, type[Abuse]] = {
    abuse.name: abuse
    for abuse in (
        Abuse,
        _ReadFlood,
        _ConfigFlood,
        _BarFlood,
        _ResetFlood,
        _Verifies,
        _Copies,
        _Batches,
        _LargeMaps,
        _RefusedDma,
        _Everything,
        _ResetBehindRings,
        _TurningOn,
    )
}
"""All abuses by name."""
