"""Histories through machines that are saved in the middle of whatever they do, and continue in another process."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from pviommu_abi import dma_test
from pviommu_abi.registers import REGISTER

from ..snapshot import BusyError, SnapshotError
from .difference import Difference, require
from .engine_path import compare_pages, compare_tables
from .guest import Guest
from .machine_process import MachineProcess, RemoteFunction, Seen
from .oracle import Oracle
from .ring_path import topology
from .settings import STREAMS

__all__ = ["SNAPSHOT_EVERY", "MachinePath"]

SNAPSHOT_EVERY = 19
"""Steps of a machine between two snapshots: an operation takes one, a long one several,"""
_IN_OPERATION = 20
"""which count as so many."""


class MachinePath(Guest):
    """A guest in this process, and its machine in one of two other processes in turn."""

    name = "machine"

    def __init__(self, oracle: Oracle, library: Path | None = None, every: int = SNAPSHOT_EVERY) -> None:
        """With ``library``, machines with its native core and with Python's core alternate. ``every``: steps between
        two snapshots, 0: no snapshots.
        """
        super().__init__(oracle)
        self._every = every
        self._steps = 0
        self._is_in_operation = False
        self.snapshots = 0
        """how many were taken so far"""
        self.in_operations = 0
        """how many of these in the middle of a long operation"""
        self._kinds: Iterator[bool] = itertools.cycle(self.kinds_of_core(library))
        self._functions: list[RemoteFunction] = []
        with ExitStack() as stack:
            stack.callback(super().close)
            processes = [MachineProcess(library) for _ in range(2 if every else 1)]
            for process in processes:
                stack.callback(process.close)
            self._processes = itertools.cycle(processes)
            self._build()
            stack.callback(self._forget)
            self.drive(self._by_stream())
            self._stack = stack.pop_all()

    def kinds_of_core(self, library: Path | None) -> Sequence[bool]:
        """Which machines have the native core, time and again."""
        return (True, False, False, True) if library else (False,)

    def _build(self) -> None:
        self._process = next(self._processes)
        registers = [REGISTER, *(dma_test.REGISTER for _ in STREAMS)]
        self._functions = self._process.build(topology(self.oracle), registers, native=next(self._kinds))

    def _by_stream(self) -> dict[int | None, Any]:
        return dict(zip((None, *STREAMS), self._functions, strict=True))

    def _forget(self) -> None:
        for function in self._functions:
            function.close()

    # -- snapshots --------------------------------------------------------------------------------------------------

    def take(self) -> bytes:
        """A snapshot of the machine as it is now."""
        file: bytes = self._process("take")[0]
        return file

    def go_on_in_another(self) -> None:
        """Save the machine, restore it in the other process with the same guest memory, and forget it here."""
        before = self._process
        try:
            file, time = before("take")
            self._forget()
            self._build()
            self._meet()
            self._plug_parts(self.ram.parts(False))
            if self._module:
                self._plug_parts(self.ram.parts(True))
            self._process("restore", file, time)
            again, _ = self._process("take")
        except (SnapshotError, BusyError) as error:
            raise Difference(self.name, "a snapshot", "taken and restored", str(error)) from error
        require(self.name, "what is saved again", file, again)
        before("close")
        self.snapshots += 1
        self.in_operations += self._is_in_operation

    def _meet(self) -> None:
        """The drivers go on with the functions of the new machine."""
        functions = self._by_stream()
        self.functions, self.iommu = functions, functions[None]
        for ring in self.rings:
            ring.function = self.iommu
        self._events.function = self.iommu
        for stream in STREAMS:
            self.engine(stream).function = functions[stream]

    def _step(self, stream: int | None) -> bool:
        """Do a step of a function. Before it the machine may be exchanged, more often in the middle of a long
        operation."""
        self._steps += _IN_OPERATION if self._is_in_operation else 1
        if self._every and self._steps >= self._every:
            self._steps = 0
            self.go_on_in_another()
        busy, self._is_in_operation = self._process("work", stream)
        return bool(busy)

    # -- waiting ----------------------------------------------------------------------------------------------------

    def wait_for_ring(self, ring: int, position: int) -> None:
        driver = self.rings[ring]
        while driver.completed != position:
            if not self._step(None):
                raise Difference(self.name, f"slots of ring {ring} that are complete", position, driver.completed)

    def wait_for_descriptor(self, stream: int, place: int) -> None:
        engine = self.engine(stream)
        while not engine.is_done(place):
            if not self._step(stream) and not engine.is_done(
                place
            ):  # taking a snapshot finishes a descriptor that has begun
                raise Difference(self.name, f"descriptors of stream {stream}", "a completed one", "a pending one")
            if not engine.is_done(place):  # it takes another turn, in which rings come first
                self._is_in_operation = self._process("work", None)[1]

    def ring_doorbell(self, ring: int, first: int) -> None:
        """The rings are looked at whenever something waits."""

    # -- comparing --------------------------------------------------------------------------------------------------

    def compare_touched(self, ctx: int, dfns: Iterable[int]) -> None:
        seen = self._process("look", ctx, list(dfns), whole=False)
        compare_pages(self.name, _Contexts(seen), self.oracle, ctx, seen.pages, self.usage())

    def compare_tables(self) -> None:
        seen = self._process("look", 0, [], whole=True)
        compare_tables(self.name, _Contexts(seen), self.oracle, self.usage())

    def close(self) -> None:
        self._stack.close()


class _Contexts:
    """Presents what was seen as contexts and their engine would."""

    def __init__(self, seen: Seen) -> None:
        self._seen = seen
        self.engine = self

    def lookup(self, _ctx: int, dfn: int) -> tuple[int, int] | None:
        return self._seen.pages[dfn]

    def usage(self) -> tuple[int, ...]:
        return self._seen.in_use

    def endpoints(self) -> dict[int, int]:
        return dict(self._seen.contexts)

    def is_blocked(self, stream: int) -> bool:
        return stream in self._seen.blocked

    def domains(self) -> tuple[int, ...]:
        return tuple(self._seen.tables)

    def areas(self, domain: int) -> Sequence[Any]:
        return self._seen.tables[domain]

    def guest_tables(self, _domain: int) -> None:
        """What they map is among the areas."""
