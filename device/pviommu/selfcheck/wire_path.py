"""Histories over vfio-user: ``pviommu serve`` in a process of its own, sockets, and shared memory between the two."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path

from pviommu_abi import dma_test
from pviommu_abi.registers import REGISTER
from vfio_user import Client
from wire_layout.registers import Register

from ..guest.function import Function
from ..guest.ring import MASK
from ..guest.waiting import came_true
from ..guest.wire import WireFunction
from ..pci.shared_memory import fence
from .difference import Difference, require
from .guest import ENTRIES, Guest
from .operations import Lookup, Usage
from .oracle import Oracle, Verdict
from .ring_path import topology
from .settings import STREAMS

__all__ = ["WirePath"]

PATIENCE_S = 10.0
"""Limit of every wait; nothing takes that long unless something is broken."""


class WirePath(Guest):
    """A guest in this process, the device in another."""

    name = "wire"

    def __init__(self, oracle: Oracle, core: str = "python") -> None:
        """``core``: the argument of ``pviommu serve --core``."""
        super().__init__(oracle)
        with ExitStack() as stack:
            stack.callback(super().close)
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pviommu-")))
            stack.callback(self._stop, self._serve(folder, core))
            functions: dict[int | None, Function] = {None: self._connect(stack, folder / "iommu.sock", REGISTER)}
            for stream in STREAMS:
                functions[stream] = self._connect(stack, folder / f"dma{stream}.sock", dma_test.REGISTER)
            self.drive(functions)
            self._stack = stack.pop_all()

    # -- the other process ------------------------------------------------------------------------------------------

    def _serve(self, folder: Path, core: str) -> subprocess.Popen[bytes]:
        file = folder / "topology.toml"
        file.write_text(_toml(self.oracle))
        command = [sys.executable, "-m", "pviommu", "serve", str(file), "--core", core]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}  # the same code as here
        ready = folder / "pid"
        process = subprocess.Popen(
            [*command, "--socket-dir", str(folder), "--pidfile", str(ready), "--log-level", "error"],
            env=environment,
            stdin=subprocess.DEVNULL,
        )
        try:
            _wait(lambda: ready.exists() or process.poll() is not None, "the server")
            if process.poll() is not None:
                raise Difference(self.name, "the server", "listening", f"ended with {process.returncode}")
        except BaseException:
            self._stop(process)
            raise
        return process

    @staticmethod
    def _stop(process: subprocess.Popen[bytes]) -> None:
        process.terminate()
        process.wait(PATIENCE_S)

    def _connect(self, stack: ExitStack, path: Path, registers: Mapping[str, Register]) -> WireFunction:
        client = stack.enter_context(Client.connect(path, PATIENCE_S))
        memory = [(address, size, self.ram.fd, offset) for address, size, offset in self.ram.parts(False)]
        function = WireFunction(client, registers, memory)
        stack.callback(function.close)
        return function

    def close(self) -> None:
        self._stack.close()

    # -- waiting ----------------------------------------------------------------------------------------------------

    def wait_for_ring(self, ring: int, position: int) -> None:
        driver = self.rings[ring]
        _wait(lambda: (driver.completed - position) & MASK <= ENTRIES, f"slot {position - 1} of ring {ring}")

    def wait_for_descriptor(self, stream: int, place: int) -> None:
        engine = self.engine(stream)
        _wait(lambda: engine.is_done(place), f"a descriptor of stream {stream}")

    def ring_doorbell(self, ring: int, first: int) -> None:
        fence()  # the producer index must be visible before the device's request for a doorbell is read
        if self.rings[ring].doorbell_wanted(first):
            self.rings[ring].ring_doorbell()

    # -- comparing --------------------------------------------------------------------------------------------------

    def compare_touched(self, ctx: int, dfns: Iterable[int]) -> None:
        """Look up the first and the last page, if the profile can do that."""
        pages = list(dfns)
        if self._interface.has_lookup and ctx in self.oracle.model.pages:
            self._look_up(ctx, pages[:2] + pages[-2:])

    def compare_tables(self) -> None:
        """Look up every page that must be there, and compare how many there are, so that there are no others."""
        if self._interface.has_lookup:
            for ctx, pages in self.oracle.model.pages.items():
                self._look_up(ctx, list(pages))
        self.run(Usage(), Verdict(0, (0, None, None)))

    def _look_up(self, ctx: int, dfns: list[int]) -> None:
        """Look pages up, half a ring at a time, each time waiting for the last."""
        for start in range(0, len(dfns), ENTRIES // 2):
            submitted = []
            for dfn in dfns[start : start + ENTRIES // 2]:
                submission = self._interface.submission(Lookup(ctx, dfn))
                submitted.append((Lookup(ctx, dfn), submission.payload, self._put(0, submission)))
            self.ring_doorbell(0, submitted[0][2])
            self.wait_for_ring(0, submitted[-1][2] + 1)
            for op, given, position in submitted:
                verdict = Verdict(0, self.oracle.model.find(ctx, op.dfn))
                self._compare(op, verdict, given, self._read(0, position), self._seen())


def _toml(oracle: Oracle) -> str:
    """The oracle's machine as a topology file."""
    made = topology(oracle)
    lines = ["[iommu]"]
    for name in ("contexts", "pool_pages", "max_pages_per_op", "aperture_bits", "default_policy"):
        value = getattr(made.iommu, name)
        lines.append(f"{name.replace('_', '-')} = {value!r}")
    for entry in made.endpoint:
        lines += ["[[endpoint]]", f"name = {entry.name!r}", f"kind = {entry.kind!r}", f"stream = {entry.stream}"]
    return "\n".join(lines) + "\n"


def _wait(condition: Callable[[], bool], what: str) -> None:
    """Until ``condition()`` holds. Raises :class:`Difference`."""
    if not came_true(condition, PATIENCE_S):
        require("wire", what, f"done within {PATIENCE_S:.0f} s", "not done")
