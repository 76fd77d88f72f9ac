"""A guest without a VM: what its drivers do, done over vfio-user by a client with shared memory.

``Serve`` is the back end as a process; ``Guest`` connects to its functions, hands over RAM and gives drivers for
the PV-IOMMU and the DMA test engines.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import mmap
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jsonschema

from pviommu import schemas
from pviommu_abi import dma_test
from pviommu_abi.dma_test import Control, Descriptor, DescriptorStatus
from pviommu_abi.own import Binding, OwnOp, Usage
from pviommu_abi.registers import REGISTER, Profile, Register
from pviommu_abi.shared import (
    CACHE_LINE,
    CAPABILITY_OFFSET,
    EVENT_ENTRIES,
    EVENT_INDEX_OFFSET,
    EVENT_OFFSET,
    RING_AREA_OFFSET,
    AddressRange,
    CapabilityArea,
    CapabilityCount,
    CapabilityHeader,
    CapabilityId,
    EndpointEntry,
    Event,
    Limits,
    ReservedRegion,
)
from pviommu_abi.slots import PAYLOAD_OFFSET, SLOT_SIZE, OpClass, Slot, SlotFlags
from pviommu_abi.xen_2024 import MapPages, PvIommuOp, ReattachDevice, UnmapPages, Xen2024Op
from vfio_user import Client
from wire_layout import Record

CHECKOUT = Path(__file__).parents[2]
ENTRIES = 256
RAM_SIZE = 16 << 20
DEVFN = {"dma0": 0x28, "dma1": 0x30}
STREAM = {"dma0": 1, "dma1": 2}
PATIENCE_S = 10.0
"""Bound of every wait; nothing waits that long unless something is broken."""
PIPE_SIZE = 1 << 20

_ENTRY: dict[int, type[Record]] = {
    CapabilityId.IOVA_RANGES: AddressRange,
    CapabilityId.RESERVED_REGIONS: ReservedRegion,
    CapabilityId.RAM_RANGES: AddressRange,
    CapabilityId.ENDPOINTS: EndpointEntry,
}


class Serve:
    """``pviommu serve`` as a process of its own that logs JSON. A context manager; stops it.

    The log waits in a pipe until it is asked for; with ``silent`` there is none, for runs that would fill the pipe.
    """

    def __init__(
        self, folder: Path, topology: Path, *options: str, fds: tuple[int, ...] = (), silent: bool = False
    ) -> None:
        self.folder = folder
        self.pidfile = folder / "pid"
        self.lines: list[dict[str, Any]] = []
        self.process = subprocess.Popen(
            command(topology, "--socket-dir", folder, "--pidfile", self.pidfile, "--log-format", "json", *options),
            env=environment(),
            stderr=subprocess.DEVNULL if silent else subprocess.PIPE,
            pass_fds=fds,
            text=True,
        )
        if silent:
            spin_until(self.pidfile.exists, "the server to listen")
            return
        assert self.process.stderr is not None
        fcntl.fcntl(self.process.stderr, fcntl.F_SETPIPE_SZ, PIPE_SIZE)  # nobody reads while the test runs
        self.wait_for("listening")

    def __enter__(self) -> Serve:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.stop()
        if self.process.stderr is not None:
            self.process.stderr.close()

    def wait_for(self, event: str) -> dict[str, Any]:
        """Read the log until a line of this kind."""
        assert self.process.stderr is not None
        for text in self.process.stderr:
            self.lines.append(_record(text))
            if self.lines[-1]["event"] == event:
                return self.lines[-1]
        raise AssertionError(f"the server ended before {event!r}: {self.lines}")

    def stop(self) -> int:
        """SIGTERM; the exit status, and the whole log in :attr:`lines`."""
        self.process.send_signal(signal.SIGTERM)
        self.lines += [_record(text) for text in self.process.stderr or ()]
        return self.process.wait(PATIENCE_S)

    def descriptors(self) -> int:
        """Open descriptors of the server."""
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    def mapped_memory(self) -> list[int]:
        """Bytes of each mapping of guest RAM in the server."""
        maps = Path(f"/proc/{self.process.pid}/maps").read_text().splitlines()
        ranges = [line.split()[0].split("-") for line in maps if "guest-ram" in line]
        return [int(end, 16) - int(start, 16) for start, end in ranges]

    def resident(self) -> int:
        """Bytes of the server's memory that are resident and its own."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return 1024 * int(next(line.split()[1] for line in status.splitlines() if line.startswith("RssAnon")))


_LOG = jsonschema.Draft202012Validator(json.loads(schemas.paths()["log"].read_text()))


def _record(text: str) -> dict[str, Any]:
    """A line of the log, which is what the log's schema says."""
    record: dict[str, Any] = json.loads(text)
    _LOG.validate(record)
    return record


def command(*arguments: str | Path) -> list[str]:
    """The command line of ``pviommu serve``."""
    return [sys.executable, "-m", "pviommu", "serve", *map(str, arguments)]


def run(*arguments: str | Path, fds: tuple[int, ...] = ()) -> subprocess.CompletedProcess[str]:
    """``pviommu serve`` that is expected to end by itself: its exit status and what it said."""
    return subprocess.run(
        command(*arguments),
        env=environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        pass_fds=fds,
        check=False,
    )


def environment() -> dict[str, str]:
    """The environment in which ``pviommu`` is found."""
    return os.environ | {"PYTHONPATH": f"{CHECKOUT / 'protocol'}:{CHECKOUT / 'device'}"}


class Ram:
    """Guest memory that can be given away."""

    def __init__(self, size: int = RAM_SIZE) -> None:
        self.size = size
        self.fd = os.memfd_create("guest-ram", os.MFD_ALLOW_SEALING | os.MFD_CLOEXEC)
        os.truncate(self.fd, size)
        fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
        self.bytes = mmap.mmap(self.fd, size)
        self.bytes[0] = 1  # firmware ran: the memory is in use

    def close(self) -> None:
        self.bytes.close()
        os.close(self.fd)


class Function:
    """A PCI function: its registers in BAR 0 and its shared memory in BAR 2."""

    def __init__(self, path: Path | Client, ram: Ram | None, registers: dict[str, Register]) -> None:
        self.client = path if isinstance(path, Client) else Client.connect(path, PATIENCE_S)
        self._registers = registers
        if ram is not None:
            self.client.dma_map(0, ram.size, ram.fd)
        self.client.device_info()
        (area,) = self.client.map_region(2)
        self._memory = area.memory
        self.view = memoryview(self._memory)
        self.words = self.view.cast("I")
        self.vectors: list[int] = []

    def close(self) -> None:
        """Go away without a word, as a killed VM does."""
        self.client.close()
        self.words.release()
        self.view.release()
        self._memory.close()
        for fd in self.vectors:
            os.close(fd)
        self.vectors = []

    def write(self, register: str, value: int) -> None:
        self.client.region_write(0, self._registers[register].offset, value.to_bytes(4, "little"))

    def read(self, register: str) -> int:
        return int.from_bytes(self.client.region_read(0, self._registers[register].offset, 4), "little")

    def master(self) -> None:
        """Allow memory accesses and DMA."""
        self.client.config_write(4, 2, 6)

    def interrupted(self, vector: int) -> bool:
        """Wait for an interrupt; whether it came."""
        ready, _, _ = select.select([self.vectors[vector]], [], [], PATIENCE_S)
        return bool(ready) and os.eventfd_read(self.vectors[vector]) > 0


class Iommu(Function):
    """The guest driver of the PV-IOMMU, ring 0."""

    def __init__(self, path: Path | Client, ram: Ram | None) -> None:
        super().__init__(path, ram, REGISTER)
        self.producer = 0
        self.doorbells = 0
        self.consumer = 0

    def start(self) -> Iommu:
        """Select the profile and turn ring 0 on."""
        self.write("PROFILE", Profile.XEN_2024)
        self.write("RING_ENTRIES", ENTRIES)
        self.write("RING_BASE_LO", RING_AREA_OFFSET)
        self.write("RING_CONTROL", 1)
        assert self.read("RING_STATUS") == 1
        return self

    # -- ring -------------------------------------------------------------------------------------------------------

    def submit(
        self,
        payload: bytes,
        op_class: int = OpClass.XEN_2024,
        op: int = 0,
        *,
        posted: bool = False,
        ring: bool = True,
    ) -> int:
        """Put a slot into the ring and, if asked for, ring the doorbell; the position of the slot."""
        position = self.producer
        at = RING_AREA_OFFSET + position % ENTRIES * SLOT_SIZE
        head = Slot(op_class, op, SlotFlags.POSTED if posted else 0, position)
        self.view[at : at + SLOT_SIZE] = (head.pack() + payload).ljust(SLOT_SIZE, b"\0")
        self.producer = (position + 1) & 0xFFFFFFFF
        self.words[0] = self.producer
        if ring and self.doorbell_wanted():
            self.ring_doorbell()
        return position

    def doorbell_wanted(self) -> bool:
        """Whether the device asked to be told of the slot put last."""
        return self.words[CACHE_LINE // 4 + 1] == (self.producer - 1) & 0xFFFFFFFF

    def ring_doorbell(self) -> None:
        self.doorbells += 1
        self.write("DOORBELL", 0)

    @property
    def completed(self) -> int:
        return int(self.words[CACHE_LINE // 4])

    def wait(self, position: int) -> tuple[int, bytes]:
        """Wait for a slot: its result and payload."""
        spin_until(lambda: (self.completed - position - 1) & 0xFFFFFFFF < ENTRIES, f"slot {position}")
        at = RING_AREA_OFFSET + position % ENTRIES * SLOT_SIZE
        slot = Slot.unpack(self.view, at)
        assert slot.completed == position
        return slot.result, bytes(self.view[at + PAYLOAD_OFFSET : at + SLOT_SIZE])

    def call(self, payload: bytes, op_class: int = OpClass.XEN_2024, op: int = 0) -> tuple[int, bytes]:
        return self.wait(self.submit(payload, op_class, op))

    # -- operations -------------------------------------------------------------------------------------------------

    def alloc(self) -> int:
        """A new context."""
        result, answer = self.call(PvIommuOp(Xen2024Op.ALLOC_CONTEXT, 0, 0).pack())
        assert result == 0
        return PvIommuOp.unpack(answer).ctx_no

    def free(self, ctx: int, flags: int = 0) -> int:
        return self.call(PvIommuOp(Xen2024Op.FREE_CONTEXT, ctx, flags).pack())[0]

    @staticmethod
    def map_payload(ctx: int, dfn: int, gfn: int, nr: int, flags: int = 3) -> bytes:
        return MapPages(Xen2024Op.MAP_PAGES, ctx, flags, gfn, dfn, nr).pack()

    def map(self, ctx: int, dfn: int, gfn: int, nr: int, flags: int = 3) -> tuple[int, int]:
        """Result and pages mapped."""
        result, answer = self.call(self.map_payload(ctx, dfn, gfn, nr, flags))
        return result, MapPages.unpack(answer).mapped

    def unmap(self, ctx: int, dfn: int, nr: int) -> tuple[int, int]:
        """Result and pages unmapped."""
        result, answer = self.call(UnmapPages(Xen2024Op.UNMAP_PAGES, ctx, 0, dfn, nr).pack())
        return result, UnmapPages.unpack(answer).unmapped

    def bind(self, name: str) -> int:
        return self.call(Binding(0, 0, DEVFN[name], STREAM[name]).pack(), OpClass.OWN, OwnOp.BIND)[0]

    def reattach(self, name: str, ctx: int) -> int:
        return self.call(ReattachDevice(Xen2024Op.REATTACH_DEVICE, ctx, 0, 0, 0, DEVFN[name]).pack())[0]

    def usage(self) -> Usage:
        return Usage.unpack(self.call(b"", OpClass.OWN, OwnOp.QUERY_USAGE)[1])

    # -- events and capabilities ------------------------------------------------------------------------------------

    def events(self) -> list[Event]:
        """Take what is in the event ring."""
        line = EVENT_INDEX_OFFSET // 4
        found = []
        while self.consumer != self.words[line + CACHE_LINE // 4]:
            found.append(Event.unpack(self.view, EVENT_OFFSET + self.consumer % EVENT_ENTRIES * Event.SIZE))
            self.consumer = (self.consumer + 1) & 0xFFFFFFFF
        self.words[line] = self.consumer
        return found

    def capabilities(self) -> dict[int, Any]:
        """The capability chain: id -> entries, or the record of LIMITS."""
        area = self.view[CAPABILITY_OFFSET:]
        head = CapabilityArea.unpack(area)
        assert head.generation % 2 == 0
        found: dict[int, Any] = {}
        offset = head.first
        while offset:
            header = CapabilityHeader.unpack(area, offset)
            at = offset + CapabilityHeader.SIZE
            if header.cap_id == CapabilityId.LIMITS:
                found[header.cap_id] = Limits.unpack(area, at)
            else:
                count, kind = CapabilityCount.unpack(area, at).count, _ENTRY[header.cap_id]
                at += CapabilityCount.SIZE
                found[header.cap_id] = [kind.unpack(area, at + place * kind.SIZE) for place in range(count)]
            offset = header.next
        return found


class DmaEngine(Function):
    """The guest driver of a DMA test engine."""

    def __init__(self, path: Path | Client, ram: Ram | None) -> None:
        super().__init__(path, ram, dma_test.REGISTER)
        self.producer = 0

    def start(self) -> DmaEngine:
        self.master()
        self.write("CONTROL", Control.ENABLE)
        return self

    def put(
        self, op: int, length: int, src: int = 0, dst: int = 0, pattern: int = 0, flags: int = 0, start: bool = True
    ) -> int:
        """Queue a descriptor and start it, and all that were put before; its place."""
        place = self.producer % dma_test.ENTRIES * Descriptor.SIZE
        self.view[place : place + Descriptor.SIZE] = Descriptor(op, flags, 0, length, src, dst, pattern).pack()
        self.producer += 1
        if start:
            self.write("PRODUCER", self.producer)
        return place

    def run(self, op: int, length: int, **fields: int) -> Descriptor:
        """Queue a descriptor and wait for it."""
        place = self.put(op, length, **fields)
        status = (place + Descriptor.offset_of("status")) // 4
        spin_until(lambda: self.words[status] != DescriptorStatus.PENDING, "descriptor")
        return Descriptor.unpack(self.view, place)


class Guest:
    """A guest with RAM and drivers for the functions that ``folder`` has sockets of. A context manager.

    ``ram`` that is given stays its owner's.
    """

    def __init__(self, folder: Path, *engines: str, ram: Ram | None = None) -> None:
        self._stack = contextlib.ExitStack()
        self.engines: dict[str, DmaEngine] = {}
        with self._stack:
            self.ram = ram or Ram()
            if ram is None:
                self._stack.callback(self.ram.close)
            self.iommu = Iommu(folder / "iommu.sock", self.ram)
            self._stack.callback(self.iommu.close)
            for name in engines:
                self.engines[name] = DmaEngine(folder / f"{name}.sock", self.ram)
                self._stack.callback(self.engines[name].close)
            self._stack = self._stack.pop_all()

    def __enter__(self) -> Guest:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def start(self) -> Guest:
        """Turn on the ring and the engines."""
        self.iommu.start()
        for engine in self.engines.values():
            engine.start()
        return self

    def attach(self, name: str) -> int:
        """Bind an engine and attach it to a new context; the context."""
        ctx = self.iommu.alloc()
        assert (self.iommu.bind(name), self.iommu.reattach(name, ctx)) == (0, 0)
        return ctx


def spin_until(condition: Any, what: str) -> None:
    """Look until ``condition()`` holds, as a polling driver does."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {PATIENCE_S} s for {what}")
        os.sched_yield()
