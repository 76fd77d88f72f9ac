"""``pviommu serve`` as a process of the test, with its control socket, and Python guests that connect to it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgspec

from vfio_user import Client

from ..control.client import Client as Control
from ..control.client import ConnectionLostError
from ..faults.scenario import Scenario
from ..guest.function import Function
from ..guest.memory import GuestRam
from ..guest.waiting import came_true
from ..guest.wire import WireFunction
from ..lab.server import PROGRAM, ServerProcess
from ..scenarios.guest import PlayedGuest
from ..scenarios.stage import RAM_PAGES, StuckError, driven
from ..topology import Topology, load
from .subject import HISTORY, Subject

__all__ = ["Place", "RunningServer", "Watched"]

_LOG_LINES = 40


def _until(condition: Callable[[], Any], patience_s: float, otherwise: str) -> None:
    """Wait until it is so. Raises StuckError, which says ``otherwise``."""
    if not came_true(condition, patience_s):
        raise StuckError(otherwise)


class Watched(Subject):
    """What is asked by a control socket."""

    def __init__(self, name: str, patience_s: float) -> None:
        super().__init__(name)
        self.patience_s = patience_s
        self._control: Control | None = None

    @property
    def control_socket(self) -> Path:
        """For ``pviommu ctl --socket``."""
        raise NotImplementedError

    def call(self, command: str, **arguments: Any) -> dict[str, Any]:
        if self._control is None:
            self._control = Control(self.control_socket, self.patience_s)
        try:
            result: dict[str, Any] = self._control.call(command, arguments)
        except ConnectionLostError:
            self.hang_up()
            raise
        return result

    def hang_up(self) -> None:
        """Close the connection, if there is one."""
        if self._control is not None:
            self._control.close()
            self._control = None


class Place:
    """Where guests of a running server are played, in real time: see :class:`pviommu.scenarios.guest.Place`."""

    def __init__(self, topology: Topology, folder: Path, patience_s: float) -> None:
        self.topology = topology
        self._folder = folder
        self._patience_s = patience_s
        self._stack = contextlib.ExitStack()
        self.ram = self._stack.enter_context(GuestRam(RAM_PAGES << 12))

    def functions(self) -> dict[str, Function]:
        found: dict[str, Function] = {}
        for name, registers in driven(self.topology).items():
            client = Client.connect(self._folder / f"{name}.sock", self._patience_s)
            found[name] = WireFunction(client, registers, [(0, self.ram.size, self.ram.fd, 0)])
            self._stack.callback(found[name].close)
        return found

    def until(self, condition: Callable[[], Any], what: str) -> None:
        """Look until it is so. Raises StuckError."""
        _until(condition, self._patience_s, f"{what} did not come within {self._patience_s:g} s")

    def close(self) -> None:
        """The guest goes away without a word."""
        self._stack.close()


class RunningServer(Watched):
    """A server that listens. A context manager; stops it, and drops its guests."""

    def __init__(self, topology: Path, core: str, folder: Path, scenario: Scenario, patience_s: float) -> None:
        """``folder``: empty, for sockets and logs; ``patience_s``: bound of every wait. Raises
        :class:`pviommu.topology.TopologyError`.
        """
        super().__init__("server", patience_s)
        self.folder = folder
        """with the socket of each function, ``NAME.sock``"""
        self.topology = load(topology)
        self.log_file = folder / "server.jsonl"
        self._is_over = False
        self._places: list[Place] = []
        options = ["--ctl", str(self.control_socket), "--history", str(HISTORY), "--core", core]
        if scenario.rule:
            rules, self._events = folder / "scenario.json", folder / "events.jsonl"
            rules.write_bytes(msgspec.json.encode(scenario))
            options += ["--scenario", str(rules), "--events", str(self._events)]
        self.process = ServerProcess(topology, folder, self.log_file, PROGRAM, options)

    @property
    def control_socket(self) -> Path:
        return self.folder / "ctl"

    def start(self) -> None:
        """Returns once it listens. Raises what :meth:`pviommu.lab.server.ServerProcess.start` raises."""
        self.process.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.hang_up()
        for place in self._places:
            place.close()
        self.process.stop()

    def connected(self) -> PlayedGuest:
        """A guest over vfio-user whose ring and engines are on; one at a time."""
        self._places.append(place := Place(self.topology, self.folder, self.patience_s))
        guest = PlayedGuest(place)
        self.guests.append(guest)
        guest.start()
        return guest

    def disconnect(self) -> None:
        """All guests go away, as killed VMs do; returns once the server has noticed. Raises StuckError."""
        for place in self._places:
            place.close()
        self._places.clear()
        _until(
            lambda: not any(function["client"] for function in self.call("status")["functions"]),
            self.patience_s,
            f"the server has not noticed within {self.patience_s:g} s that its clients are gone",
        )

    def kill(self) -> None:
        """End the server as a crash does. Nothing is asked of it, and no verdict, from then on."""
        self._is_over = True
        self.hang_up()
        self.process.kill()

    def wait_for_end(self) -> int:
        """Wait until the server has ended by itself; its exit status, or minus a signal. No verdict is asked for from
        then on. Raises TimeoutError.
        """
        status = self.process.wait(self.patience_s)
        if status is None:
            raise TimeoutError(f"the server did not end within {self.patience_s:g} s")
        self._is_over = True
        self.hang_up()
        return status

    def stop(self) -> list[str]:
        """End it as ``systemctl stop`` does; what was wrong with its end. Nothing, if the test has ended it."""
        if self._is_over:
            return []
        self._is_over = True
        self.hang_up()
        return self.process.stop()

    def problems(self) -> list[str]:
        if self._is_over:
            return []
        return super().problems()

    def log(self) -> list[str]:
        return self.log_file.read_text(errors="replace").splitlines()[-_LOG_LINES:]

    def events(self) -> list[str]:
        found = self.folder / "events.jsonl"
        return found.read_text().splitlines() if found.is_file() else []
