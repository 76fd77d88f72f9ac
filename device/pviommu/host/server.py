"""A machine, the loop that serves it, and the transport through which clients reach it."""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Protocol

from ..inputs import Inputs
from ..transports.peers import Peer
from ..transports.vfio_user import VfioUser
from .loop import Loop
from .pacing import Pace
from .signals import stopped_by_signals
from .work import Machine, Work

__all__ = ["Server", "Transport"]


class Transport(Protocol):
    """What clients come by."""

    no_snapshots: str
    """why a machine behind it cannot be saved and restored; empty if it can"""

    def clients(self) -> dict[str, Peer]: ...
    def hang_up(self, name: str) -> None: ...
    def close(self) -> None: ...


class Server:
    """Serves ``machine`` on ``sockets`` (listening ones, or connected ones for a single client each)."""

    def __init__(
        self,
        machine: Machine,
        sockets: Mapping[str, socket.socket],
        inputs: Inputs,
        pace: Pace | None = None,
        transport: Callable[[Loop], Transport] | None = None,
    ) -> None:
        """``pace``: one with the default windows if not given. ``transport`` makes another one, which then serves."""
        self.work = Work(machine)
        self.loop = Loop(self.work, inputs, machine.counters, pace or Pace())
        for function in machine.functions():
            function.on_served(self.loop)
        self.transport: Transport
        if transport is not None:
            self.transport = transport(self.loop)
            return
        self.transport = own = VfioUser(self.loop, inputs)
        functions = {function.name: function for function in machine.functions()}
        for name, sock in sockets.items():
            own.serve(sock, functions[name])

    def stopped_by_signals(
        self, on_hangup: Callable[[], None] | None = None, *, ends_process: bool = False
    ) -> AbstractContextManager[None]:
        """See :func:`.signals.stopped_by_signals`."""
        return stopped_by_signals(self.loop, on_hangup, ends_process=ends_process)

    def stop(self) -> None:
        """Leave :meth:`run` at the next turn."""
        self.loop.stop()

    def run(self) -> None:
        """Serve until :meth:`stop`."""
        self.loop.run()

    def turn(self, *, look_at_sockets: bool = True) -> None:
        """One turn of the loop."""
        self.loop.turn(may_look=look_at_sockets)

    def close(self) -> None:
        """Drop every client."""
        self.transport.close()
        self.loop.close()
