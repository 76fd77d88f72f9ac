"""Machines in a process of their own, driven step by step: see :mod:`.machine_path`."""

from __future__ import annotations

import mmap
import multiprocessing
import os
from collections.abc import Mapping, Sequence
from multiprocessing import reduction
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

from pviommu_abi.registers import REGISTER_BAR
from vfio_user import DmaMapping, RegionIndex
from wire_layout.registers import Register

from .. import snapshot
from ..counters import Counters
from ..dma.windows import WORD
from ..endpoints.endpoint import Endpoint
from ..guest.function import Function
from ..inputs import LiveInputs
from ..interfaces.pv import batch, pages
from ..interfaces.pv.order import STEP_NS
from ..interfaces.pv.ring_core import DeviceCore
from ..machine import Machine
from ..pci.function import Environment, PciFunction
from ..topology import Topology
from .engine_path import areas_of

__all__ = ["MachineProcess", "RemoteFunction", "Seen"]

PIECE = 64
"""Pages, or elements of a BATCH, after which an operation counts as long in such a process. Otherwise most of the
operations that are tried could not be interrupted in their middle."""
ELEMENTS = 2
TICK_NS = 2 * STEP_NS
"""How far the clock advances each time it is read, so that a step ends after each slot or piece."""
PATIENCE_S = 60.0


class Clock(LiveInputs):
    """The real inputs, except for the time."""

    time = 0

    def now_ns(self) -> int:
        self.time += TICK_NS
        return self.time


class Seen(NamedTuple):
    """As much of the state of a machine's engine as is compared."""

    pages: Mapping[int, tuple[int, int] | None]
    in_use: tuple[int, ...]
    contexts: Mapping[int, int]
    blocked: frozenset[int]
    tables: Mapping[int, Sequence[Any]]


class Answers:
    """The calls that drive a machine. Functions are named by their stream, the PV-IOMMU by None."""

    def __init__(self, connection: Connection, library: Path | None) -> None:
        self._connection = connection
        self._library = library
        self._machine: Machine | None = None
        self._clock = Clock()

    @property
    def machine(self) -> Machine:
        assert self._machine is not None
        return self._machine

    def _function(self, stream: int | None) -> PciFunction:
        if stream is None:
            return self.machine.iommu
        return self._endpoint(stream)

    def _endpoint(self, stream: int) -> Endpoint:
        return next(each for each in self.machine.endpoints.values() if each.stream == stream)

    def build(self, topology: Topology, native: bool) -> list[int]:
        """Build a machine in place of the last one. Returns descriptors and sizes of the shared BARs, the PV-IOMMU's
        first."""
        self.close()
        self._clock = Clock()
        self._machine = Machine.build(topology, Environment(self._clock, Counters()), self._core() if native else None)
        shared = [function.region(RegionIndex.BAR2) for function in self.machine.functions()]
        for region in shared:
            assert region.fd is not None
            reduction.send_handle(self._connection, region.fd, os.getppid())
        return [region.size for region in shared]

    def _core(self) -> DeviceCore:
        from ..native.core import native_core  # imported late: not every process has a native core

        return native_core(self._library)

    def close(self) -> None:
        """Forget the machine."""
        if self._machine:
            self._machine.close()
        self._machine = None

    def plug(self, stream: int | None, address: int, size: int, offset: int) -> None:
        """Give a function memory, whose descriptor comes next on the connection."""
        fd = reduction.recv_handle(self._connection)
        self._function(stream).dma_map(DmaMapping(address, size, offset, True, True, fd))

    def unplug(self, stream: int | None, address: int, size: int) -> None:
        self._function(stream).dma_unmap(address, size)

    def read(self, stream: int | None, index: int, offset: int, count: int) -> bytes:
        return self._function(stream).region_read(index, offset, count)

    def write(self, stream: int | None, index: int, offset: int, data: bytes) -> None:
        for _ in self._function(stream).region_write(index, offset, data) or ():
            pass

    def work(self, stream: int | None) -> tuple[bool, bool]:
        """Do a step of a function. Returns whether there was anything to do, and whether a ring is in the middle of an
        operation."""
        iommu = self.machine.iommu
        busy = iommu.work() if stream is None else self._endpoint(stream).step()
        return busy, any(ring.operation for ring in iommu.rings)

    def take(self) -> tuple[bytes, int]:
        """Take a snapshot; returns it with the time, which stands still meanwhile."""
        time = self._clock.time
        file = snapshot.take(self.machine)
        self._clock.time = time
        return file, time

    def restore(self, file: bytes, time: int) -> None:
        """Restore a snapshot, and the time. Raises SnapshotError."""
        self._clock.time = time
        snapshot.restore(self.machine, file)
        self._clock.time = time

    def look(self, ctx: int, dfns: Sequence[int], *, whole: bool) -> Seen:
        """Look at pages of a context and, with ``whole``, at all pages of every context."""
        contexts = self.machine.iommu.contexts
        engine = contexts.engine
        there = ctx in engine.domains()
        return Seen(
            {dfn: engine.lookup(ctx, dfn) if there else None for dfn in dfns},
            tuple(engine.usage()),
            contexts.endpoints(),
            frozenset(stream for stream in contexts.endpoints() if engine.is_blocked(stream)),
            {domain: list(areas_of(engine, domain)) if whole else () for domain in engine.domains()},
        )


def answer_all(connection: Connection, library: Path | None) -> None:
    """The main function of the process: answer until the other end is closed."""
    pages.PIECE, batch.ELEMENTS = PIECE, ELEMENTS
    answers = Answers(connection, library)
    while True:
        try:
            name, arguments, named = connection.recv()
        except EOFError:
            break
        try:
            outcome: Any = getattr(answers, name)(*arguments, **named)
        except Exception as error:
            outcome = error
        connection.send(outcome)
    answers.close()


class MachineProcess:
    """The controlling side of a process that has one machine after the other."""

    def __init__(self, library: Path | None = None) -> None:
        """``library``: the file of the native core, if there is to be one."""
        fresh = multiprocessing.get_context("spawn")  # it inherits nothing from this process
        self._connection, other = fresh.Pipe()
        self._process = fresh.Process(target=answer_all, args=(other, library), daemon=True)
        self._process.start()
        other.close()

    def __call__(self, name: str, *arguments: Any, **named: Any) -> Any:
        """Have a method of :class:`Answers` called. Raises what it raises."""
        self._connection.send((name, arguments, named))
        return self._answer()

    def _answer(self) -> Any:
        if not self._connection.poll(PATIENCE_S):
            raise TimeoutError(f"a machine in another process does nothing for {PATIENCE_S:.0f} s")
        outcome = self._connection.recv()
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def build(
        self, topology: Topology, registers: Sequence[Mapping[str, Register]], *, native: bool
    ) -> list[RemoteFunction]:
        """Build a machine; ``registers`` are those of its functions."""
        self._connection.send(("build", (topology, native), {}))
        streams = [None, *(entry.stream for entry in topology.endpoint)]
        fds = [reduction.recv_handle(self._connection) for _ in streams]
        sizes = self._answer()
        return [RemoteFunction(self, *each) for each in zip(streams, registers, fds, sizes, strict=True)]

    def plug(self, stream: int | None, address: int, size: int, fd: int, offset: int) -> None:
        """Give a function memory."""
        self._connection.send(("plug", (stream, address, size, offset), {}))
        reduction.send_handle(self._connection, fd, self._process.pid)
        self._answer()

    def close(self) -> None:
        """End the process."""
        self._connection.close()
        self._process.join(PATIENCE_S)
        self._process.close()


class RemoteFunction(Function):
    """A function of the machine in another process."""

    def __init__(
        self, process: MachineProcess, stream: int | None, registers: Mapping[str, Register], fd: int, size: int
    ) -> None:
        """``fd``, which passes to it, has the ``size`` bytes of the shared BAR."""
        self.registers = registers
        self._process = process
        self._stream = stream
        with os.fdopen(fd, "r+b") as file:
            self._map = mmap.mmap(file.fileno(), size)
        self._view = memoryview(self._map)
        self._words = self._view.cast("I")

    @property
    def view(self) -> memoryview:
        return self._view

    @property
    def words(self) -> memoryview:
        return self._words

    def read_at(self, offset: int) -> int:
        return int.from_bytes(self._process("read", self._stream, REGISTER_BAR, offset, WORD), "little")

    def write_at(self, offset: int, value: int) -> None:
        self._process("write", self._stream, REGISTER_BAR, offset, value.to_bytes(WORD, "little"))

    def read_config(self, offset: int, size: int) -> int:
        return int.from_bytes(self._process("read", self._stream, int(RegionIndex.CONFIG), offset, size), "little")

    def write_config(self, offset: int, size: int, value: int) -> None:
        self._process("write", self._stream, int(RegionIndex.CONFIG), offset, value.to_bytes(size, "little"))

    def plug(self, address: int, size: int, fd: int, offset: int = 0) -> None:
        self._process.plug(self._stream, address, size, fd, offset)

    def unplug(self, address: int, size: int) -> None:
        self._process("unplug", self._stream, address, size)

    def close(self) -> None:
        """Forget the shared BAR."""
        self._words.release()
        self._view.release()
        self._map.close()
