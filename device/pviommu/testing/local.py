"""A device in the process of the test, in virtual time, and a Python guest on it, by calls or over vfio-user."""

from __future__ import annotations

import contextlib
import time
from types import TracebackType
from typing import Any, Self

from ..control.answers import Answers, Served, finished
from ..control.description import CommandError
from ..control.rules import RuleCommands
from ..faults.scenario import Scenario
from ..history.records import History
from ..interfaces.pv.bindings import format_sbdf
from ..interfaces.pv.ring_core import DeviceCore
from ..scenarios.guest import PlayedGuest
from ..scenarios.stage import Stage, VirtualInputs
from ..topology import Topology
from .subject import HISTORY, Subject

__all__ = ["Device"]


class _RealTime(VirtualInputs):
    """Does not fall behind real time, which the native core writes into the history; sleeps take none still."""

    def now_ns(self) -> int:
        self.time_ns = max(super().now_ns(), time.monotonic_ns())
        return self.time_ns


class Device(Subject):
    """A machine with its loop, and a guest whose ring and engines are on. A context manager; closes everything."""

    def __init__(
        self, topology: Topology, scenario: Scenario, core: DeviceCore | None = None, *, over_the_wire: bool = False
    ) -> None:
        """``over_the_wire``: the guest reaches the device by sockets and vfio-user messages, otherwise by calls."""
        super().__init__("wire" if over_the_wire else "device")
        self._stack = contextlib.ExitStack()
        with self._stack:
            clock = _RealTime() if core else None
            stage = Stage(scenario, None, core, topology=topology, clock=clock)
            self.stage = self._stack.enter_context(stage)
            self.machine = self.stage.machine
            self.faults = self.stage.faults
            """the rules"""
            self.fault_log = self.machine.iommu.keep_history(History(HISTORY))
            """refused DMA"""
            self._answers = Answers(self._served())
            functions = self.stage.connected(self._stack) if over_the_wire else None
            self.guest = PlayedGuest(self.stage, functions)
            """its driver"""
            self.guests.append(self.guest)
            self.guest.start()
            self._stack = self._stack.pop_all()

    def _served(self) -> Served:
        kinds = self.stage.topology.kinds()
        rules = RuleCommands(self.faults, self.machine.iommu.probes.rebind)
        return Served(self.machine, self.fault_log, self._stop, dict, kinds, format_sbdf, rules=rules)

    @staticmethod
    def _stop() -> None:
        raise CommandError("a device in the process of the test ends with the test")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def call(self, command: str, **arguments: Any) -> dict[str, Any]:
        return finished(self._answers.begin(command, arguments))

    def events(self) -> list[str]:
        return self.faults.log.lines
