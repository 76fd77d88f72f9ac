"""The one loop: sockets in, rings polled while the guest waits again and again, asleep otherwise."""

from __future__ import annotations

import contextlib
import errno
import gc
import logging
import os
import select
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import FrameType

from vfio_user import RequestError, Session, State, transport
from vfio_user.foreign import Closer
from vfio_user.transport import Flush

from ..inputs import Inputs
from ..interfaces.pv.function import STOPPED_NS
from ..interfaces.pv.ring_core import Poll
from ..machine import Machine
from ..pci.function import PciFunction
from .fairness import Fairness
from .listening import REST_NS, Listeners
from .pacing import FOREVER, NAP_MS, Pace, naps_end_in_time
from .peers import Peer, is_gone, peer_of

__all__ = ["Server", "close_all", "listen_all"]

log = logging.getLogger(__name__)

CORE_SPIN_NS = 200_000
"""How long the core polls the rings by itself between two turns. Sockets end that early."""
SOCKET_TURNS = 16
"""Turns of a busy loop between two looks at the sockets, if they are short."""
LOOK_NS = 1_000_000
"""Longest time between two looks at the sockets, to which the turn in progress is added."""
_HUNG_UP = select.EPOLLHUP | select.EPOLLERR
_READABLE = select.EPOLLIN | _HUNG_UP
_MOST_SIGNALS = 4096
LAST_PATIENCE_S = 0.5
"""How long the end of the process waits for its sockets to be closed, in which lies what clients may have sent."""
MOST_REFUSED = 8
"""Clients that are refused, and have not yet said anything that this could be the answer to."""
SOCKETS_NS = 1_000_000
"""A look at the sockets ends with the request, or the step of one, that takes it past this."""
AFTER_STOP_NS = 5_000_000
"""The same of the looks that precede all work after the process was stopped."""
_CHUNK, _LARGEST_CHUNK = 4 << 10, 64 << 10
"""Most bytes to read from a client at a time: few, since the messages in them wait in the session; of one large message
more."""


class _Connection:
    """A client of one function, or one that is refused as such."""

    def __init__(
        self,
        sock: socket.socket,
        function: PciFunction,
        closer: Closer,
        peer: Peer,
        refusal: RequestError | None = None,
    ) -> None:
        self.sock = sock
        self.peer = peer
        self.function = function
        self.closer = closer
        self.is_refused = refusal is not None
        self.session = Session(function, name=function.name, closer=closer, refusal=refusal)
        self.events = select.EPOLLIN

    @property
    def is_read(self) -> bool:
        """Not while the client does not take its replies, or what was sent before is still being closed."""
        return not self.session.paused and (self.is_refused or not self.closer.busy)

    @property
    def is_abandoned(self) -> bool:
        """Whether its process is gone, and something that it has sent may be what keeps its end open."""
        return self.session.may_keep_descriptors and is_gone(self.sock, self.peer)

    @property
    def has_more(self) -> bool:
        """Whether the session can go on without anything from the client."""
        return self.session.paused and not self.session.outgoing

    @property
    def wanted_events(self) -> int:
        """What the connection waits for."""
        reading = select.EPOLLIN if self.is_read else 0
        return reading | (select.EPOLLOUT if self.session.outgoing else 0)


def listen_all(
    machine: Machine, folder: Path, given: Mapping[str, int], mode: int = 0o600, group: int | None = None
) -> dict[str, socket.socket]:
    """A socket for each function, by name: ``given`` descriptors, otherwise ``folder/NAME.sock``.

    Their files have ``mode`` and the group of number ``group``, if given.
    Raises :class:`OSError` for a path that cannot be listened on, after closing and removing what was made.
    """
    sockets: dict[str, socket.socket] = {}
    try:
        for function in machine.functions():
            if function.name in given:
                sock = socket.socket(fileno=given[function.name])
                sock.setblocking(False)
            else:
                sock = transport.listen(folder / f"{function.name}.sock", mode, group)
            sockets[function.name] = sock
    except OSError:
        close_all(sockets)
        raise
    return sockets


def close_all(sockets: Mapping[str, socket.socket]) -> None:
    """Close sockets and remove the files that :func:`listen_all` made; who made those of given sockets removes them."""
    closer = Closer()
    for sock in sockets.values():
        if sock.fileno() < 0:
            continue
        if isinstance(sock, transport.Listener):
            sock.remove_file()
        closer.close_socket(sock)
    closer.wait(LAST_PATIENCE_S)


def _is_listening(sock: socket.socket) -> bool:
    return bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))


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
        self._connections: dict[int, _Connection] = {}
        self._refused: dict[int, _Connection] = {}
        self._closed_something = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._end = threading.Lock()
        self._poller.register(self._closed_something, select.EPOLLIN)
        self._closers = {name: Closer(self._look_again) for name in self._functions}
        self._listeners = Listeners(
            self._poller, inputs.now_ns, lambda sock, function: self._closers[function.name].close_socket(sock)
        )
        self._fairness: Fairness[int] = Fairness()
        self._unfinished: set[int] = set()
        """connections whose requests had to wait for a turn of others"""
        self._closed: set[int] = set()
        """numbers of connections that were closed in this look at the sockets: they may be others' already"""
        self._stopping = False
        self._armed = False
        self._looked_at = self._turned_at = inputs.now_ns()
        self._peer: Peer | None = None
        self._signals: socket.socket | None = None
        for name, sock in sockets.items():
            function = self._functions[name]
            if _is_listening(sock):
                self._listeners.add(sock, function)
            else:
                self._connect(sock, function)

    # -- running ----------------------------------------------------------------------------------------------------

    def stop(self) -> None:
        """Leave :meth:`run` at the next turn."""
        self._stopping = True

    @contextlib.contextmanager
    def stopped_by_signals(self, on_hangup: Callable[[], None] | None = None) -> Iterator[None]:
        """Within this, SIGTERM and SIGINT stop the server, even while it sleeps. It may be closed within.

        SIGHUP calls ``on_hangup``; without one it stops the server too, unless it was ignored (nohup).
        """
        reader, writer = socket.socketpair()
        reader.setblocking(False)
        writer.setblocking(False)

        def on_signal(number: int, _frame: FrameType | None) -> None:
            if number == signal.SIGHUP and on_hangup:
                on_hangup()
            else:
                self.stop()

        numbers = [signal.SIGTERM, signal.SIGINT]
        if on_hangup or signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
            numbers.append(signal.SIGHUP)
        before = {number: signal.signal(number, on_signal) for number in numbers}
        wakeup = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
        self._poller.register(reader, select.EPOLLIN)
        self._signals = reader
        try:
            yield
        finally:
            self._signals = None
            if not self._poller.closed:
                self._poller.unregister(reader)
            signal.set_wakeup_fd(wakeup)
            for number, handler in before.items():
                signal.signal(number, handler)
            reader.close()
            writer.close()

    def run(self) -> None:
        """Serve until :meth:`stop`."""
        naps_end_in_time()
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
        ready.update(self._inputs.wait(self._poller, 0 if ready else self._limited_ms(timeout_ms)))
        if timeout_ms:
            self._machine.iommu.rested()
        if not ready:
            return
        self._armed = False  # a ring may have been turned on, or its doorbell rung
        self._closed.clear()
        deadline = self._inputs.now_ns() + SOCKETS_NS
        worked = self._inputs.worked_ns()
        for fd in self._fairness.order(ready) if len(ready) > 1 else ready:
            if fd not in self._closed:
                self._serve_one(fd, ready[fd], deadline)
            before, worked = worked, self._inputs.worked_ns()
            if fd not in self._closed:
                self._fairness.charge(fd, worked - before)
            if self._inputs.now_ns() > deadline or self._stopping:
                break

    def _limited_ms(self, timeout_ms: float) -> float:
        """How long to sleep if there is something to look at before ``timeout_ms``, which may be FOREVER, are over."""
        limits = [timeout_ms] if timeout_ms != FOREVER else []
        wake_ms = self._listeners.wake_ms()
        if wake_ms is not None:
            limits.append(wake_ms)
        if timeout_ms and any(closer.is_stuck for closer in self._closers.values()):
            limits.append(REST_NS / 1e6)
        return min(limits, default=FOREVER)

    def _serve_one(self, fd: int, events: int, deadline_ns: int) -> None:
        connection = self._connections.get(fd) or self._refused.get(fd)
        if connection is not None:
            self._serve(connection, events, deadline_ns)
        elif fd in self._listeners:
            self._accept(fd)
        elif self._signals and fd == self._signals.fileno():
            self._signals.recv(_MOST_SIGNALS)  # or it would be ready for ever
        elif fd == self._closed_something:
            os.eventfd_read(fd)
            for waiting in [*self._connections.values(), *self._refused.values()]:
                self._wait_for(waiting)

    def _look_again(self) -> None:
        """From another thread: a client's descriptors are closed, so that it may send more."""
        with self._end:
            if self._closed_something >= 0:
                os.eventfd_write(self._closed_something, 1)

    # -- clients come -----------------------------------------------------------------------------------------------

    def _accept(self, fd: int) -> None:
        if self._closers[self._listeners.function(fd).name].full:
            self._listeners.rest(fd)
            return
        accepted = self._listeners.accept(fd)
        if accepted is None:
            return
        sock, function = accepted
        try:
            self._connect(sock, function)
        except Exception:
            log.exception("%s: a client cannot be served", function.name)
            self._connections.pop(sock.fileno(), None)
            self._refused.pop(sock.fileno(), None)
            self._closers[function.name].close_socket(sock)

    def _connect(self, sock: socket.socket, function: PciFunction) -> None:
        peer = peer_of(sock)
        refusal = self._why_not(function, peer)
        if refusal and self._close_gone():
            refusal = self._why_not(function, peer)
        if refusal:
            self._refuse(sock, function, refusal, peer)
            return
        self._peer = peer
        connection = _Connection(sock, function, self._closers[function.name], peer)
        self._connections[sock.fileno()] = connection
        log.info(
            "%s: client connected",
            function.name,
            extra={"event": "connected", "fields": {"function": function.name, "process": peer.pid}},
        )
        self._poller.register(sock, connection.events)  # last: whoever cannot be served is not waited for

    def _why_not(self, function: PciFunction, peer: Peer) -> RequestError | None:
        """Why a client of ``function`` is to be refused, if it is."""
        if self._connections and self._peer and not peer.may_be(self._peer):
            return RequestError(
                errno.EBUSY,
                f"it is {peer}, but this machine is {self._peer}, and one topology is one machine: start a server "
                "for each QEMU, also for one that goes on where a saved one stopped",
            )
        if any(connection.function is function for connection in self._connections.values()):
            return RequestError(errno.EBUSY, f"it is {peer}, and the function has a client already")
        if not function.is_ready():
            return RequestError(errno.ENOMEM, "there is no memory to share with it, or no descriptor left for it")
        return None

    def _refuse(self, sock: socket.socket, function: PciFunction, refusal: RequestError, peer: Peer) -> None:
        """Answer the client's first request with the reason: QEMU tells its user then, and waits for nothing."""
        log.error(
            "%s: client refused: %s",
            *(function.name, refusal.text),
            extra={
                "event": "client-refused",
                "fields": {"function": function.name, "process": peer.pid, "user": peer.user, "errno": refusal.errno},
            },
        )
        if len(self._refused) == MOST_REFUSED:
            self._close(next(iter(self._refused.values())))
        connection = _Connection(sock, function, self._closers[function.name], peer, refusal)
        self._refused[sock.fileno()] = connection
        self._poller.register(sock, connection.events)

    def _close_gone(self) -> bool:
        """End the sessions of clients that are gone, without waiting for what they have sent. Whether any was.

        The next client may be seen before the end of the last one: its socket may be looked at first.
        """
        hung_up = {fd for fd, events in self._inputs.wait(self._poller, 0) if events & _HUNG_UP}
        gone = [
            connection
            for fd, connection in (self._connections | self._refused).items()
            if fd in hung_up or connection.is_abandoned
        ]
        for connection in gone:
            connection.session.eof()
            self._close(connection)
        return bool(gone)

    # -- clients are served, and go ---------------------------------------------------------------------------------

    def _serve(self, connection: _Connection, events: int, deadline_ns: int) -> None:
        try:
            self._exchange(connection, events, deadline_ns)
        except Exception:
            log.exception(
                "%s: the session failed, its client is hung up on",
                connection.function.name,
                extra={"event": "session-failed", "fields": {"function": connection.function.name}},
            )
            connection.session.eof()
        if connection.session.state is State.CLOSED:
            self._close(connection)
        else:
            self._wait_for(connection)

    def _exchange(self, connection: _Connection, events: int, deadline_ns: int) -> None:
        session = connection.session

        def may_go_on() -> bool:
            return self._inputs.now_ns() <= deadline_ns and not self._stopping

        if connection.has_more:
            session.resume(may_go_on)
        elif events & _READABLE and connection.is_read:
            received = self._inputs.receive(connection.sock, min(max(session.wanted, _CHUNK), _LARGEST_CHUNK))
            if received is None:
                session.eof()
            else:
                session.receive(*received, may_go_on)
        elif events & _HUNG_UP and not session.paused:  # nothing to be read, and told again and again
            session.eof()
        if session.outgoing and transport.flush(connection.sock, session.outgoing) is Flush.CLOSED:
            session.eof()
        while connection.has_more and may_go_on():
            session.resume(may_go_on)
            if transport.flush(connection.sock, session.outgoing) is Flush.CLOSED:
                session.eof()

    def _wait_for(self, connection: _Connection) -> None:
        if connection.has_more:
            self._unfinished.add(connection.sock.fileno())
        else:
            self._unfinished.discard(connection.sock.fileno())
        if connection.events != connection.wanted_events:
            connection.events = connection.wanted_events
            self._poller.modify(connection.sock, connection.events)

    def _close(self, connection: _Connection) -> None:
        among = self._refused if connection.is_refused else self._connections
        del among[connection.sock.fileno()]
        self._closed.add(connection.sock.fileno())
        self._unfinished.discard(connection.sock.fileno())
        self._fairness.forget(connection.sock.fileno())
        self._poller.unregister(connection.sock)
        connection.closer.close_socket(connection.sock)
        if not connection.is_refused:
            log.info(
                "%s: client gone",
                connection.function.name,
                extra={"event": "disconnected", "fields": {"function": connection.function.name}},
            )

    def close(self) -> None:
        """Drop every client."""
        for connection in [*self._connections.values(), *self._refused.values()]:
            connection.session.eof()
            self._close(connection)
        self._listeners.close()
        self._poller.close()
        with self._end:  # nobody may write to what has its number next
            if self._closed_something >= 0:
                os.close(self._closed_something)
                self._closed_something = -1
