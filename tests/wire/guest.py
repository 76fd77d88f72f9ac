"""A guest without a VM: what its drivers do, done over vfio-user by a client with shared memory.

``Serve`` is the back end as a process; ``Guest`` connects to its functions, hands over RAM and gives drivers for
the PV-IOMMU and the DMA test engines.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema

from pviommu import schemas
from pviommu.guest.capabilities import capabilities
from pviommu.guest.dma_test import DescriptorRing
from pviommu.guest.events import EventRing
from pviommu.guest.memory import GuestRam
from pviommu.guest.ring import Ring
from pviommu.guest.waiting import came_true
from pviommu.guest.wire import WireFunction
from pviommu.guest.xen_2024 import Xen2024
from pviommu_abi import dma_test
from pviommu_abi.dma_test import Descriptor
from pviommu_abi.registers import REGISTER, Profile, Register
from pviommu_abi.shared import Event
from pviommu_abi.slots import OpClass, SlotFlags
from vfio_user import Client

from ..forking import Forked, fork

CHECKOUT = Path(__file__).parents[2]
ENTRIES = 256
RAM_SIZE = 16 << 20
DEVFN = {"dma0": 0x28, "dma1": 0x30}
STREAM = {"dma0": 1, "dma1": 2}
PATIENCE_S = 30.0
"""Bound of every wait; nothing waits that long unless something is broken."""
PIPE_SIZE = 1 << 20


class Serve:
    """``pviommu serve`` as a process of its own that logs JSON. A context manager; stops it.

    The log waits in a pipe until it is asked for; with ``silent`` there is none, for runs that would fill the pipe.
    The process is forked from one that has imported the server; with ``whole`` it is a new interpreter's, for tests of
    how a server starts and ends.
    """

    def __init__(
        self,
        folder: Path,
        topology: Path,
        *options: str,
        fds: tuple[int, ...] = (),
        silent: bool = False,
        whole: bool = False,
    ) -> None:
        self.folder = folder
        self.pidfile = folder / "pid"
        self.lines: list[dict[str, Any]] = []
        words = command(topology, "--socket-dir", folder, "--pidfile", self.pidfile, "--log-format", "json", *options)
        self.process: subprocess.Popen[str] | Forked
        if whole:
            self.process = subprocess.Popen(
                words,
                env=environment(),
                stderr=subprocess.DEVNULL if silent else subprocess.PIPE,
                pass_fds=fds,
                text=True,
            )
        else:
            self.process = fork(words[words.index("serve") :], environment(), stderr=not silent, fds=fds)
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

    def sleeps(self) -> int:
        """How often the server's main thread has given up its processor to wait."""
        status = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in status if line.startswith("voluntary_ctxt_switches"))

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


class Ram(GuestRam):
    """Guest memory that can be given away."""

    def __init__(self, size: int = RAM_SIZE) -> None:
        super().__init__(size)


class Function(WireFunction):
    """A PCI function with its interrupts."""

    def __init__(self, path: Path | Client, ram: Ram | None, registers: dict[str, Register]) -> None:
        client = path if isinstance(path, Client) else Client.connect(path, PATIENCE_S)
        super().__init__(client, registers, () if ram is None else [(0, ram.size, ram.fd, 0)])
        self.vectors: list[int] = []

    def close(self) -> None:
        super().close()
        for fd in self.vectors:
            os.close(fd)
        self.vectors = []

    def master(self) -> None:
        """Allow memory accesses and DMA."""
        self.set_bus_master(True)

    def interrupted(self, vector: int) -> bool:
        """Wait for an interrupt; whether it came."""
        ready, _, _ = select.select([self.vectors[vector]], [], [], PATIENCE_S)
        return bool(ready) and os.eventfd_read(self.vectors[vector]) > 0


class Iommu(Function, Xen2024):
    """The guest driver of the PV-IOMMU, ring 0."""

    def __init__(self, path: Path | Client, ram: Ram | None) -> None:
        super().__init__(path, ram, REGISTER)
        self.ring = Ring(self, entries=ENTRIES)
        self.event_ring = EventRing(self)
        self.doorbells = 0

    def start(self) -> Iommu:
        """Select the profile and turn ring 0 on."""
        self.write("PROFILE", Profile.XEN_2024)
        self.ring.turn_on()
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
        position = self.ring.put(op_class, op, SlotFlags.POSTED if posted else 0, payload)
        if ring and self.doorbell_wanted():
            self.ring_doorbell()
        return position

    def doorbell_wanted(self) -> bool:
        """Whether the device asked to be told of the slot put last."""
        return self.ring.doorbell_wanted(self.ring.producer - 1)

    def ring_doorbell(self) -> None:
        self.doorbells += 1
        self.ring.ring_doorbell()

    @property
    def producer(self) -> int:
        return self.ring.producer

    @producer.setter
    def producer(self, value: int) -> None:
        self.ring.producer = value

    @property
    def completed(self) -> int:
        return self.ring.completed

    def wait(self, position: int) -> tuple[int, bytes]:
        """Wait for a slot: its result and payload."""
        spin_until(lambda: self.ring.is_complete(position), f"slot {position}")
        result, sequence, payload = self.ring.result(position)
        assert sequence == position
        return result, payload

    def call(self, payload: bytes, op_class: int = OpClass.XEN_2024, op: int = 0) -> tuple[int, bytes]:
        return self.wait(self.submit(payload, op_class, op))

    # -- operations -------------------------------------------------------------------------------------------------

    def alloc(self) -> int:
        """A new context."""
        result, ctx = self.alloc_context()
        assert result == 0
        return ctx

    def bind(self, name: str) -> int:
        return self.bind_stream(DEVFN[name], STREAM[name])

    def reattach(self, name: str, ctx: int) -> int:
        return self.reattach_device(DEVFN[name], ctx)

    # -- events and capabilities ------------------------------------------------------------------------------------

    def events(self) -> list[Event]:
        """Take what is in the event ring."""
        return self.event_ring.take()

    def capabilities(self) -> dict[int, Any]:
        """The capability chain: id -> entries, or the record of LIMITS."""
        return capabilities(self.view)


class DmaEngine(Function):
    """The guest driver of a DMA test engine."""

    def __init__(self, path: Path | Client, ram: Ram | None) -> None:
        super().__init__(path, ram, dma_test.REGISTER)
        self.descriptors = DescriptorRing(self)

    def start(self) -> DmaEngine:
        self.descriptors.turn_on()
        return self

    def put(
        self, op: int, length: int, src: int = 0, dst: int = 0, pattern: int = 0, flags: int = 0, start: bool = True
    ) -> int:
        """Queue a descriptor and start it, and all that were put before; its place."""
        place = self.descriptors.put(op, length, src, dst, pattern, flags)
        if start:
            self.descriptors.start()
        return place

    def run(self, op: int, length: int, **fields: int) -> Descriptor:
        """Queue a descriptor and wait for it."""
        place = self.put(op, length, **fields)
        spin_until(lambda: self.descriptors.is_done(place), "descriptor")
        return self.descriptors.descriptor(place)


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
    """Wait until ``condition()`` holds."""
    assert came_true(condition, PATIENCE_S), f"waited {PATIENCE_S} s for {what}"
