"""A guest's driver of the PV-IOMMU in this process, over vfio-user, and the server that it talks to."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import time
from collections.abc import Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from time import perf_counter_ns
from types import TracebackType
from typing import Self

from pviommu_abi.registers import REGISTER, REGISTER_BAR, Profile
from pviommu_abi.shared import CACHE_LINE, MAX_RING_ENTRIES, RING_AREA_OFFSET
from pviommu_abi.slots import SLOT_SIZE, OpClass, Slot
from pviommu_abi.xen_2024 import PvIommuOp, Xen2024Op
from vfio_user import Client

from ..guest.memory import GuestRam
from ..guest.ring import Ring
from ..guest.wire import WireFunction
from ..lab.problems import RunError
from ..lab.processes import Child
from ..lab.run import short_folder
from .local_guest import map_slot, unmap_slot
from .mechanisms import Mechanism, PythonMechanism, RingPlace, RingUse

__all__ = ["BenchServer", "Opened", "WireGuest", "capabilities_ns", "processor_time_ns", "start_ns"]

_START_SECONDS = 20.0
_POLL_SECONDS = 0.0005
_ASLEEP_SECONDS = 5.0
_SETTLED_SECONDS = 0.004  # past the first bounded sleep after arming; a doorbell ends the later ones at once
RAM_SIZE = 16 << 20
_TOUCHED = 4096
_PRODUCER = 0
_COMPLETED = CACHE_LINE // 4
_DOORBELL_EVENT = _COMPLETED + 1
_DFN, _GFN = 0x100, 0x80


class BenchServer:
    """``pviommu serve`` in a process of its own. A context manager."""

    def __init__(self, program: Sequence[str], topology: Path, folder: Path, options: Sequence[str] = ()) -> None:
        self.folder = folder
        self._log = folder / "server.jsonl"
        self._pidfile = folder / "server.pid"
        self._command = [
            *(*program, "serve", str(topology), "--socket-dir", str(folder), "--log-format", "json"),
            *("--pidfile", str(self._pidfile), *options),
        ]
        self._child = Child()
        self.start_ns = 0
        """the time from starting the program until it listened"""

    def __enter__(self) -> Self:
        """Start it; returns once it listens. Raises RunError."""
        begun = time.perf_counter_ns()
        with self._log.open("wb") as log:
            self._child.start(self._command, output=log)
        while not self._pidfile.exists() or not self._pidfile.stat().st_size:
            if self._child.poll() is not None or time.perf_counter_ns() - begun > _START_SECONDS * 1e9:
                self._child.stop()
                said = self._log.read_text(errors="replace").strip()
                raise RunError("the server did not listen", said)
            time.sleep(_POLL_SECONDS)
        self.start_ns = time.perf_counter_ns() - begun
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._child.stop()

    @property
    def pid(self) -> int:
        """The number of its process."""
        return int(self._pidfile.read_text())

    def stop_ns(self, seconds: float) -> int:
        """End it by SIGTERM; returns how long that took. Raises RunError after ``seconds``."""
        process = os.pidfd_open(self.pid)
        try:
            begun = time.perf_counter_ns()
            signal.pidfd_send_signal(process, signal.SIGTERM)
            if not select.select([process], [], [], seconds)[0]:
                raise RunError(f"the server did not end within {seconds:g} s of SIGTERM")
            return time.perf_counter_ns() - begun
        finally:
            os.close(process)


def start_ns(program: Sequence[str], topology: Path, options: Sequence[str]) -> float:
    """How long a server takes from its start until it listens. Raises RunError."""
    with short_folder() as folder, BenchServer(program, topology, folder, options) as server:
        return float(server.start_ns)


def capabilities_ns(program: Sequence[str], topology: Path) -> int:
    """How long ``serve --print-capabilities`` takes, from start to end. Raises RunError."""
    begun = time.perf_counter_ns()
    finished = subprocess.run(
        [*program, "serve", "--print-capabilities", str(topology)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
    )
    if finished.returncode:
        raise RunError("the server does not print its capabilities", finished.stderr.decode(errors="replace"))
    return time.perf_counter_ns() - begun


def processor_time_ns(pid: int) -> int:
    """Processor time that a process has used, all its threads together."""
    # this is what clock_getcpuclockid() computes on Linux; 2 asks for the scheduler's own, exact count
    return time.clock_gettime_ns(~pid << 3 | 2)


class Opened:
    """A context manager that closes what its constructor has opened on :attr:`_stack`."""

    _stack: ExitStack

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()


class WireGuest(Opened):
    """The driver of ring 0, with one context. A context manager."""

    def __init__(self, folder: Path, ram_size: int = RAM_SIZE) -> None:
        """``ram_size``: bytes of guest memory, of which almost nothing is touched."""
        self.doorbells = 0
        self._is_mapped = False
        with ExitStack() as stack:
            self.ram = stack.enter_context(GuestRam(ram_size, _TOUCHED)).fd
            """file of the guest memory"""
            self._client = stack.enter_context(Client.connect(folder / "iommu.sock", _START_SECONDS))
            self._function = WireFunction(self._client, REGISTER, [(0, ram_size, self.ram, 0)])
            stack.callback(self._function.close)
            self.memory, self.words = self._function.view, self._function.words
            """the shared BAR"""
            self._ring = Ring(self._function, entries=MAX_RING_ENTRIES)
            self.write("PROFILE", Profile.XEN_2024)
            self.context = self._alloc()
            self._stack = stack.pop_all()

    def use(self, mechanism: Mechanism, *, posted: bool = False) -> RingUse:
        """Turn the ring off and on again; ``mechanism`` will fill it with maps and unmaps of one page in turn."""
        unmap = unmap_slot(self.context, _DFN, posted=posted)
        if self._is_mapped:  # the last user stopped after a map
            with closing(PythonMechanism().ring(self._renewed(unmap * 2))) as ring:
                self.run(ring, 1)
            self._is_mapped = False
        return mechanism.ring(self._renewed(map_slot(self.context, _DFN, _GFN, posted=posted) + unmap))

    def run(
        self, ring: RingUse, target: int, *, posted: bool = False, complete: bool = True, trapped: bool = False
    ) -> int:
        """Submit up to index ``target``, ringing the doorbell where asked to, and wait for all of it if ``complete``.

        Returns nanoseconds, without those of waits that are not part of the measurement. With ``trapped`` it waits for
        the answer to the doorbell's write, as a hypervisor does. Otherwise it does not, because this process is slower
        at that than a guest: the server might be asleep again when the next slot comes.
        """
        submit = ring.posted if posted else ring.waited
        start = perf_counter_ns()
        while not submit(target):
            self.ring_doorbell(trapped=trapped)
        taken = perf_counter_ns() - start
        while not ring.complete():
            self.ring_doorbell(trapped=trapped)
        self._check(target)
        self._is_mapped = target % 2 == 1
        return perf_counter_ns() - start if complete else taken

    def ring_doorbell(self, *, trapped: bool) -> None:
        """Write the doorbell over the socket, and wait for the answer if ``trapped``."""
        self.doorbells += 1
        self._client.region_write(REGISTER_BAR, REGISTER["DOORBELL"].offset, bytes(4), posted=not trapped)

    def read_register(self) -> None:
        """A trapped read of a register, without further effect."""
        self._client.region_read(REGISTER_BAR, REGISTER["VERSION"].offset, 4)

    def wait_until_asleep(self, ring: RingUse) -> None:
        """Return when the server sleeps until somebody wakes it. Raises RunError."""
        deadline = time.monotonic() + _ASLEEP_SECONDS
        while self.words[_DOORBELL_EVENT] != ring.submitted:
            if time.monotonic() > deadline:
                raise RunError(f"the server did not go to sleep within {_ASLEEP_SECONDS:g} s")
            time.sleep(_POLL_SECONDS)
        time.sleep(_SETTLED_SECONDS)

    def _renewed(self, templates: bytes) -> RingPlace:
        """Ring 0, turned off and on again at index 0."""
        self.write("RING_CONTROL", 0)
        self._ring.turn_on()
        return RingPlace(
            memory=self.memory,
            slots=RING_AREA_OFFSET,
            entries=MAX_RING_ENTRIES,
            producer=_PRODUCER,
            completed=_COMPLETED,
            doorbell_event=_DOORBELL_EVENT,
            templates=templates,
        )

    def _alloc(self) -> int:
        """A new context. Raises RunError."""
        operation = PvIommuOp(Xen2024Op.ALLOC_CONTEXT, 0, 0).pack()
        slot = (Slot(OpClass.XEN_2024, 0, 0, 0).pack() + operation).ljust(SLOT_SIZE, b"\0")
        with closing(PythonMechanism().ring(self._renewed(slot * 2))) as ring:
            self.run(ring, 1)
        self._is_mapped = False
        return PvIommuOp.unpack(self._ring.result(0)[2]).ctx_no

    def _check(self, target: int) -> None:
        """Raise RunError unless the two slots before ``target`` have succeeded."""
        for position in range(max(target - 2, 0), target):
            result, _, _ = self._ring.result(position)
            if result:
                raise RunError(f"slot {position} of the measurement has result {result}")

    def write(self, register: str, value: int, *, posted: bool = False) -> None:
        """Write a register of the PV-IOMMU, without waiting for the answer if ``posted``."""
        self._client.region_write(REGISTER_BAR, REGISTER[register].offset, value.to_bytes(4, "little"), posted=posted)
