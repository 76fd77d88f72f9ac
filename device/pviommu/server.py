"""The one loop: sockets in, rings polled while the guest waits again and again, asleep otherwise."""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import select
import signal
import socket
import struct
from collections.abc import Container, Iterator, Mapping
from pathlib import Path
from types import FrameType

from vfio_user import Session, State, transport
from vfio_user.transport import Flush

from .fairness import Fairness
from .inputs import Inputs
from .iommu.function import STOPPED_NS
from .iommu.ring_core import Poll
from .machine import Machine
from .pacing import FOREVER, NAP_MS, Pace
from .pci.function import PciFunction

__all__ = ["Server", "close_all", "listen_all"]

log = logging.getLogger(__name__)

CORE_SPIN_NS = 200_000
"""How long the core polls the rings by itself between two turns. Sockets end that early."""
SOCKET_TURNS = 16
"""Turns of a busy loop between two looks at the sockets, if they are short."""
LOOK_NS = 1_000_000
"""Longest time between two looks at the sockets, to which the turn in progress is added."""
SOCKETS_NS = 1_000_000
"""A look at the sockets ends with the request, or the step of one, that takes it past this."""
AFTER_STOP_NS = 5_000_000
"""The same of the looks that precede all work after the process was stopped."""
_CHUNK, _LARGEST_CHUNK = 4 << 10, 64 << 10
"""Most bytes that are read from a client at a time, whose messages all wait from then on; but of one large message
more."""
_READABLE = select.EPOLLIN | select.EPOLLHUP | select.EPOLLERR
_CREDENTIALS = struct.Struct("3i")


class _Connection:
    """A client of one function."""

    def __init__(self, sock: socket.socket, function: PciFunction) -> None:
        self.sock = sock
        self.function = function
        self.session = Session(function)
        self.events = select.EPOLLIN

    @property
    def has_more(self) -> bool:
        """Whether the session can go on without anything from the client."""
        return self.session.paused and not self.session.outgoing

    @property
    def wanted_events(self) -> int:
        """What the connection waits for: nothing to read while the client does not take its replies."""
        reading = 0 if self.session.paused else select.EPOLLIN
        return reading | (select.EPOLLOUT if self.session.outgoing else 0)


def listen_all(machine: Machine, folder: Path, given: Mapping[str, int]) -> dict[str, socket.socket]:
    """A socket for each function, by name: ``given`` descriptors, otherwise ``folder/NAME.sock``.

    Raises :class:`OSError` for a path that cannot be listened on, after closing and removing what was made.
    """
    sockets: dict[str, socket.socket] = {}
    try:
        for function in machine.functions():
            if function.name in given:
                sock = socket.socket(fileno=given[function.name])
                sock.setblocking(False)
            else:
                sock = transport.listen(folder / f"{function.name}.sock")
            sockets[function.name] = sock
    except OSError:
        close_all(sockets, given)
        raise
    return sockets


def close_all(sockets: Mapping[str, socket.socket], given: Container[str] = ()) -> None:
    """Close sockets and remove their files, but not the files of the ``given`` ones: who made those removes them."""
    for name, sock in sockets.items():
        path = sock.getsockname() if sock.fileno() >= 0 else ""
        sock.close()
        if name not in given and isinstance(path, str) and path:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)


def _is_listening(sock: socket.socket) -> bool:
    return bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))


def _peer_process(sock: socket.socket) -> int:
    """The process id of a socket's other end."""
    credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid: int = _CREDENTIALS.unpack(credentials)[0]
    return pid


class Server:
    """Serves ``machine`` on ``sockets`` (listening ones, or connected ones for a single client each)."""

    def __init__(
        self,
        machine: Machine,
        sockets: Mapping[str, socket.socket],
        inputs: Inputs,
        pace: Pace | None = None,
    ) -> None:
        """``pace``: one with the default windows if not given."""
        self._machine = machine
        self._inputs = inputs
        self._pace = pace or Pace()
        self._poller = select.epoll()
        self._functions = {function.name: function for function in machine.functions()}
        self._listeners: dict[int, tuple[socket.socket, PciFunction]] = {}
        self._connections: dict[int, _Connection] = {}
        self._fairness: Fairness[int] = Fairness()
        self._unfinished: set[int] = set()
        """connections whose requests had to wait for a turn of others"""
        self._stopping = False
        self._armed = False
        self._looked_at = self._turned_at = inputs.now_ns()
        self._peer: int | None = None
        for name, sock in sockets.items():
            function = self._functions[name]
            if _is_listening(sock):
                self._listeners[sock.fileno()] = (sock, function)
                self._poller.register(sock, select.EPOLLIN)
            else:
                self._connect(sock, function)

    # -- running ----------------------------------------------------------------------------------------------------

    def stop(self) -> None:
        """Leave :meth:`run` at the next turn."""
        self._stopping = True

    @contextlib.contextmanager
    def stopped_by_signals(self) -> Iterator[None]:
        """Within this, SIGTERM and SIGINT stop the server, even while it sleeps."""
        reader, writer = socket.socketpair()
        reader.setblocking(False)
        writer.setblocking(False)

        def on_signal(_number: int, _frame: FrameType | None) -> None:
            self.stop()

        before = {number: signal.signal(number, on_signal) for number in (signal.SIGTERM, signal.SIGINT)}
        wakeup = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
        self._poller.register(reader, select.EPOLLIN)
        try:
            yield
        finally:
            self._poller.unregister(reader)
            signal.set_wakeup_fd(wakeup)
            for number, handler in before.items():
                signal.signal(number, handler)
            reader.close()
            writer.close()

    def run(self) -> None:
        """Serve until :meth:`stop`."""
        gc.collect()
        gc.freeze()
        gc.disable()  # collected when idle, never while a guest waits
        try:
            turns = 0
            while not self._stopping:
                turns = (turns + 1) % SOCKET_TURNS
                self.turn(look_at_sockets=turns == 0)
        finally:
            gc.enable()
            gc.unfreeze()

    def turn(self, *, look_at_sockets: bool = True) -> None:
        """One turn: work; look at sockets or sleep."""
        look_at_sockets |= self._machine.iommu.has_core or bool(self._unfinished)  # turns with a core are long
        now = self._inputs.now_ns()
        if now - self._turned_at > STOPPED_NS:
            self._catch_up(now + AFTER_STOP_NS)
        self._turn(look_at_sockets)
        self._turned_at = self._inputs.now_ns()

    def _catch_up(self, deadline_ns: int) -> None:
        """Serve the sockets before there is any DMA: a guest that gave the IOMMU up has reset it."""
        self._serve_sockets(0)
        while self._unfinished and self._inputs.now_ns() < deadline_ns:
            self._serve_sockets(0)

    def _turn(self, look_at_sockets: bool) -> None:
        iommu = self._machine.iommu
        worked = self._machine.work()
        now = self._inputs.now_ns()
        self._learn(now, worked)
        left = self._pace.left_ns(now)
        if left and iommu.has_core and not (self._armed or self._machine.endpoints_busy or self._unfinished):
            worked |= iommu.spin(Poll(CORE_SPIN_NS, left, self._pace.window_ns, self._poller.fileno()))
            now = self._inputs.now_ns()
            self._learn(now, worked)
        if self._is_nap_due(now):
            iommu.counters.naps += 1
            self._serve_sockets(NAP_MS)
        elif worked:
            if look_at_sockets or now - self._looked_at >= LOOK_NS:
                self._serve_sockets(0)
                self._looked_at = now
        elif self._pace.left_ns(now):
            if look_at_sockets:
                self._serve_sockets(0)
        elif self._may_sleep():
            self._sleep()

    def _is_nap_due(self, now_ns: int) -> bool:
        """Whether to let posted work gather for a moment. Doorbells are not asked for, so none can get lost."""
        iommu = self._machine.iommu
        if self._armed or not iommu.is_told_of_waits or self._machine.endpoints_busy or self._pace.left_ns(now_ns):
            return False
        return not iommu.is_pressed() and self._pace.takes_nap()

    def _learn(self, now_ns: int, worked: bool) -> None:
        """There was work until ``now_ns``, or none."""
        if not worked:
            return
        waits = self._machine.iommu.waits()
        if waits:
            self._pace.waited(now_ns, waits)
        self._pace.worked()
        if self._armed:
            self._machine.iommu.disarm()
            self._armed = False

    def _may_sleep(self) -> bool:
        """Ask for doorbells and look once more. Whether there is still nothing to do."""
        if not self._armed:
            self._armed = True
            self._pace.armed()
            if not self._machine.iommu.arm():
                self._machine.iommu.disarm()  # at once: a guest may be looking at what is asked for
                self._armed = False
        return self._armed

    def _sleep(self) -> None:
        self._machine.iommu.counters.sleeps += 1
        timeout_ms = self._pace.sleep_ms() if self._machine.iommu.is_polled else FOREVER
        if timeout_ms == FOREVER:
            gc.collect(0)
        self._serve_sockets(timeout_ms)

    # -- sockets ----------------------------------------------------------------------------------------------------

    def _serve_sockets(self, timeout_ms: float) -> None:
        """Serve whoever is ready, until :data:`SOCKETS_NS` are over. The next look finds those that are left."""
        ready = dict.fromkeys(self._unfinished, 0)
        ready.update(self._inputs.wait(self._poller, 0 if ready else timeout_ms))
        if timeout_ms:
            self._machine.iommu.rested()
        if not ready:
            return
        self._armed = False  # a ring may have been turned on, or its doorbell rung
        deadline = self._inputs.now_ns() + SOCKETS_NS
        worked = self._inputs.worked_ns()
        for fd in self._fairness.order(ready) if len(ready) > 1 else ready:
            if fd in self._connections:
                self._serve(self._connections[fd], ready[fd], deadline)
            elif fd in self._listeners:
                self._accept(*self._listeners[fd])
            before, worked = worked, self._inputs.worked_ns()
            self._fairness.charge(fd, worked - before)
            if self._inputs.now_ns() > deadline or self._stopping:
                break

    def _accept(self, listener: socket.socket, function: PciFunction) -> None:
        sock = transport.accept(listener)
        if sock is None:
            return
        self._poller.unregister(listener)  # the next client waits until this one is gone
        self._connect(sock, function)

    def _connect(self, sock: socket.socket, function: PciFunction) -> None:
        pid = _peer_process(sock)
        if self._peer not in (None, pid):
            self._close_hung_up()
        if self._peer not in (None, pid) and self._connections:
            log.error(
                "%s: client refused: process %d, but this machine is process %d, and one topology is one machine",
                *(function.name, pid, self._peer),
                extra={"event": "client-refused"},
            )
            sock.close()
            self._listen_again(function)
            return
        self._peer = pid
        connection = _Connection(sock, function)
        self._connections[sock.fileno()] = connection
        self._poller.register(sock, connection.events)
        log.info(
            "%s: client connected",
            function.name,
            extra={"event": "connected", "fields": {"function": function.name, "process": pid}},
        )

    def _close_hung_up(self) -> None:
        """End the sessions of clients that are gone, without waiting for what they have sent.

        The next client may be seen before the end of the last one: its socket may be looked at first.
        """
        with select.epoll() as poller:
            for connection in self._connections.values():
                poller.register(connection.sock, 0)  # that it hung up is told in any case
            hung_up = self._inputs.wait(poller, 0)
        for fd, _ in hung_up:
            connection = self._connections[fd]
            connection.session.eof()
            self._close(connection)

    def _serve(self, connection: _Connection, events: int, deadline_ns: int) -> None:
        session = connection.session

        def may_go_on() -> bool:
            return self._inputs.now_ns() <= deadline_ns and not self._stopping

        if connection.has_more:
            session.resume(may_go_on)
        elif events & _READABLE and not session.paused:
            received = self._inputs.receive(connection.sock, min(max(session.wanted, _CHUNK), _LARGEST_CHUNK))
            if received is None:
                session.eof()
            else:
                session.receive(*received, may_go_on)
        if session.outgoing and transport.flush(connection.sock, session.outgoing) is Flush.CLOSED:
            session.eof()
        while connection.has_more and may_go_on():
            session.resume(may_go_on)
            if transport.flush(connection.sock, session.outgoing) is Flush.CLOSED:
                session.eof()
        if session.state is State.CLOSED:
            self._close(connection)
            return
        if connection.has_more:
            self._unfinished.add(connection.sock.fileno())
        else:
            self._unfinished.discard(connection.sock.fileno())
        if connection.events != connection.wanted_events:
            connection.events = connection.wanted_events
            self._poller.modify(connection.sock, connection.events)

    def _close(self, connection: _Connection) -> None:
        del self._connections[connection.sock.fileno()]
        self._unfinished.discard(connection.sock.fileno())
        self._fairness.forget(connection.sock.fileno())
        self._poller.unregister(connection.sock)
        connection.sock.close()
        log.info(
            "%s: client gone",
            connection.function.name,
            extra={"event": "disconnected", "fields": {"function": connection.function.name}},
        )
        self._listen_again(connection.function)

    def _listen_again(self, function: PciFunction) -> None:
        for listener, served in self._listeners.values():
            if served is function:
                self._poller.register(listener, select.EPOLLIN)

    def close(self) -> None:
        """Drop every client."""
        for connection in list(self._connections.values()):
            connection.session.eof()
            self._close(connection)
        self._poller.close()
