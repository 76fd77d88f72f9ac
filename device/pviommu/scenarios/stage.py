"""A machine, the loop that serves it and a scenario, in one process and in virtual time: the same each time."""

from __future__ import annotations

import contextlib
import errno
import select
import socket
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from pviommu_abi import dma_test
from pviommu_abi.registers import REGISTER
from vfio_user import Client, transport
from vfio_user.framing import Frame
from wire_layout.registers import Register

from ..counters import Counters
from ..endpoints.dma_test import DmaTestEngine
from ..faults.engine import Faults
from ..faults.scenario import Scenario
from ..guest.function import Function
from ..guest.local import LocalFunction
from ..guest.memory import GuestRam
from ..guest.wire import WireFunction
from ..host.pacing import Pace
from ..host.server import Server
from ..inputs import Inputs, LiveInputs
from ..interfaces.pv.ring_core import DeviceCore
from ..machine import Machine
from ..pci.function import Environment
from ..probes import Probes
from ..topology import EndpointSection, IommuSection, Topology
from ..transports.listening import close_all, listen_all

__all__ = [
    "RAM_PAGES",
    "STREAMS",
    "TOPOLOGY",
    "Crashed",
    "PlayedClient",
    "ServerError",
    "Stage",
    "StuckError",
    "VirtualInputs",
    "driven",
    "tried_again",
]

_T = TypeVar("_T")

RAM_PAGES = 0x1000
STREAMS = {"dma0": 1, "dma1": 2}
TOPOLOGY = Topology(
    IommuSection(rings=2), tuple(EndpointSection(name, "dma-test", stream) for name, stream in STREAMS.items())
)
PATIENCE_NS = 2_000_000_000
"""Virtual time after which a guest takes it that nothing will come any more."""
_READ_NS = 100
"""By how much the clock goes on each time that it is read."""
_MANY_TURNS, _TURN_NS = 1000, 100_000
"""After so many turns in one wait each of them takes so much time more: a loop that is busy without end, too, comes to
the end of a guest's patience.
"""
_SHORT_MS, _THREAD_S = 10, 0.002
"""Longer sleeps leave a thread, which closes what clients have sent, a moment of real time."""
_SLEEP_NS = 10_000_000
"""How long the loop sleeps if nothing wakes it."""


class StuckError(Exception):
    """What the guest waited for did not come."""


class ServerError(Exception):
    """The loop ended in an exception, which ends a server."""


class Crashed(BaseException):
    """The server would be gone: a rule ended it. No handler of a device's failures is to take it for one."""


class VirtualInputs(LiveInputs):
    """The real inputs but for the time, which goes on when it is looked at, and at once when the loop sleeps."""

    def __init__(self) -> None:
        self.time_ns = 0

    def now_ns(self) -> int:
        self.time_ns += _READ_NS
        return self.time_ns

    def worked_ns(self) -> int:
        return self.time_ns

    def wait(self, poller: select.epoll, timeout_ms: float) -> Sequence[tuple[int, int]]:  # type: ignore[override]
        is_long = timeout_ms < 0 or timeout_ms > _SHORT_MS
        ready = poller.poll(_THREAD_S if is_long else 0)
        if not ready and timeout_ms:
            self.time_ns += _SLEEP_NS if timeout_ms < 0 else int(timeout_ms * 1e6)
        return ready


class _Patience:
    """A wait of a guest, which ends with StuckError."""

    def __init__(self, stage: Stage, what: str) -> None:
        """``what`` is waited for."""
        self._stage = stage
        self._what = what
        self._end_ns = stage.clock.time_ns + PATIENCE_NS
        self._turns = 0

    def turn(self) -> None:
        """One turn of the loop."""
        clock = self._stage.clock
        if clock.time_ns > self._end_ns:
            raise StuckError(f"{self._what} did not come within {PATIENCE_NS / 1e9:.0f} s")
        self._turns += 1
        if self._turns > _MANY_TURNS:
            clock.time_ns += _TURN_NS
        self._stage.turn()


class PlayedClient(Client):
    """A client that turns the loop while it waits. Raises StuckError instead of waiting for ever."""

    def __init__(self, stage: Stage, sock: socket.socket) -> None:
        super().__init__(sock, idle=lambda: self._patience.turn())
        self._stage = stage
        self._patience = _Patience(stage, "an answer")

    def receive(self) -> Frame:
        self._patience = _Patience(self._stage, "an answer")
        return super().receive()


def driven(topology: Topology) -> dict[str, Mapping[str, Register]]:
    """The functions that a guest has drivers for, with their registers: the PV-IOMMU and the DMA test engines."""
    engines = [entry.name for entry in topology.endpoint if entry.kind == "dma-test"]
    return {topology.iommu.name: REGISTER, **dict.fromkeys(engines, dma_test.REGISTER)}


def tried_again(call: Callable[[], _T]) -> _T:
    """Three times, while the server has no room right now, or no connection for that reason."""
    for _ in range(2):
        try:
            return call()
        except OSError as error:
            if error.errno not in (errno.ECONNRESET, errno.ENOMEM, errno.ENOSPC):
                raise
    return call()


class Stage:
    """Where a guest is played. A context manager; closes everything."""

    def __init__(
        self,
        scenario: Scenario,
        sink: Callable[[str], None] | None = None,
        core: DeviceCore | None = None,
        record: Callable[[Inputs], Inputs] | None = None,
        topology: Topology = TOPOLOGY,
        clock: VirtualInputs | None = None,
    ) -> None:
        """``sink`` gets the lines of the log of events. ``record`` gives the inputs that the device gets instead."""
        self.topology = topology
        self.clock = clock or VirtualInputs()
        self.turns = 0
        """of the loop"""
        inputs: Inputs = record(self.clock) if record else self.clock
        self.counters = Counters()
        self.faults = Faults(scenario, inputs, sink)
        self.faults.crash = self._crash
        environment = Environment(inputs, self.counters, Probes(interposer=self.faults))
        self.machine = Machine.build(topology, environment, core)
        self.ram = GuestRam(RAM_PAGES << 12)
        self._folder = tempfile.TemporaryDirectory(prefix="pviommu-")
        self._sockets = listen_all(self.machine, Path(self._folder.name), {})
        self.sockets = {name: sock.fileno() for name, sock in self._sockets.items()}
        """their descriptors"""
        self.server = Server(self.machine, self._sockets, inputs, Pace(0))
        self.faults.serve(self.server.loop)
        self.faults.hang_up = self.server.transport.hang_up

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.faults.finish()
        self.server.close()
        close_all(self._sockets)
        self.machine.close()
        self.ram.close()
        self._folder.cleanup()

    @staticmethod
    def _crash() -> None:
        raise Crashed

    def turn(self) -> None:
        """One turn of the loop. Raises ServerError if it raises anything."""
        self.turns += 1
        try:
            self.server.turn()
        except Exception as error:
            raise ServerError(f"{type(error).__name__}: {error}") from error

    def unload(self) -> None:
        """No rules any more."""
        self.faults.load(Scenario())
        self.machine.iommu.probes.rebind()

    def until(self, condition: Callable[[], Any], what: str) -> None:
        """Turn the loop until it is so. Raises StuckError."""
        patience = _Patience(self, what)
        while not condition():
            patience.turn()

    def functions(self) -> dict[str, Function]:
        """Those that a guest drives, by calls, with memory."""
        iommu = self.machine.iommu
        found: dict[str, Function] = {}
        for name, registers in driven(self.topology).items():
            found[name] = LocalFunction(iommu if name == iommu.name else self.endpoint(name), registers)
            found[name].plug(0, self.ram.size, self.ram.fd)
        return found

    def connected(self, stack: contextlib.ExitStack) -> dict[str, WireFunction]:
        """The same over vfio-user, by clients that ``stack`` closes; one for which there is no room comes again."""
        found: dict[str, WireFunction] = {}
        for name, registers in driven(self.topology).items():
            found[name] = tried_again(partial(self._connected, name, registers))
            stack.callback(found[name].close)
        return found

    def _connected(self, name: str, registers: Mapping[str, Register]) -> WireFunction:
        client = self.client(name)
        try:
            client.negotiate()
            return WireFunction(client, registers, [(0, self.ram.size, self.ram.fd, 0)])
        except BaseException:
            client.close()
            raise

    def client(self, name: str) -> PlayedClient:
        """A client of a function."""
        return PlayedClient(self, self.connect(name))

    def connect(self, name: str) -> socket.socket:
        """A connection to a function, which does not block."""
        sock = transport.connect(Path(self._folder.name) / f"{name}.sock", None)
        sock.setblocking(False)
        return sock

    def endpoint(self, name: str) -> DmaTestEngine:
        """A DMA test engine."""
        found = self.machine.endpoints[name]
        assert isinstance(found, DmaTestEngine)
        return found
