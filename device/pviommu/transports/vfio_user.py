"""Clients of the vfio-user protocol: which are served, which are refused, and when a session ends."""

from __future__ import annotations

import errno
import logging
import socket
from functools import partial

from vfio_user import RequestError, State
from vfio_user.foreign import Closer

from ..hosted import Host, MayGoOn
from ..inputs import InputKind, Inputs, Source
from ..pci.function import PciFunction
from .closing import Closers
from .connection import Connection
from .listening import REST_NS, Listeners
from .peers import Peer, peer_of

__all__ = ["MOST_REFUSED", "VfioUser"]

log = logging.getLogger(__name__)

MOST_REFUSED = 8
"""Clients that are refused, and have not yet said anything that this could be the answer to."""


def _is_listening(sock: socket.socket) -> bool:
    return bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))


class VfioUser:
    """The sockets of one machine, and its clients: at most one per function, all of one process."""

    no_snapshots = ""

    def __init__(self, host: Host, inputs: Inputs) -> None:
        self._host = host
        self._inputs = inputs
        self._connections: dict[int, Connection] = {}
        self._refused: dict[int, Connection] = {}
        self._closers = Closers(inputs, partial(host.call, self._look_again))
        """by name of function"""
        self._stuck: set[Closer] = set()
        self._listeners = Listeners(host, inputs, self._accept, self._close_client)
        self._peer: Peer | None = None

    def serve(self, sock: socket.socket, function: PciFunction) -> None:
        """Serve clients of ``function`` from now on: those of a listening socket, or the one that is connected."""
        if self._inputs.of(Source(InputKind.CLIENT, function.name), _is_listening)(sock):
            self._listeners.add(sock, function)
        else:
            self._connect(sock, function)

    def clients(self) -> dict[str, Peer]:
        """Who is connected, by function."""
        return {connection.function.name: connection.peer for connection in self._connections.values()}

    # -- clients come -----------------------------------------------------------------------------------------------

    def _accept(self, fd: int) -> None:
        """Somebody waits at the listening socket of descriptor ``fd``."""
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
            self._close_client(sock, function)

    def _close_client(self, sock: socket.socket, function: PciFunction) -> None:
        """End the connection of one that never was a client of ``function``."""
        self._closers[function.name].close_socket(sock)
        self._see_to(self._closers[function.name])

    def _connect(self, sock: socket.socket, function: PciFunction) -> None:
        peer = self._inputs.of(Source(InputKind.PEER, function.name), peer_of)(sock)
        refusal = self._why_not(function, peer)
        if refusal and self._close_gone():
            refusal = self._why_not(function, peer)
        if refusal:
            self._refuse(sock, function, refusal, peer)
            return
        self._peer = peer
        connection = Connection(sock, function, self._inputs, self._closers[function.name], peer)
        self._connections[sock.fileno()] = connection
        log.info(
            "%s: client connected",
            function.name,
            extra={"event": "connected", "fields": {"function": function.name, "process": peer.pid}},
        )
        self._look_at(connection)  # last: a client that cannot be served is not waited for

    def _look_at(self, connection: Connection) -> None:
        connection.watch = self._host.watch(connection.sock.fileno(), partial(self._serve, connection))

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
        connection = Connection(sock, function, self._inputs, self._closers[function.name], peer, refusal)
        self._refused[sock.fileno()] = connection
        self._look_at(connection)

    def _close_gone(self) -> bool:
        """End the sessions of clients that are gone, without waiting for what they have sent. Whether any was.

        The next client may be seen before the end of the last one: its socket may be looked at first.
        """
        hung_up = self._host.hung_up()
        gone = [
            connection
            for connection in [*self._connections.values(), *self._refused.values()]
            if connection.watch in hung_up or connection.is_abandoned
        ]
        for connection in gone:
            connection.session.eof()
            self._close(connection)
        return bool(gone)

    # -- clients are served, and go ---------------------------------------------------------------------------------

    def _serve(self, connection: Connection, events: int, may_go_on: MayGoOn) -> None:
        try:
            connection.exchange(events, may_go_on)
        except Exception:
            log.exception(
                "%s: the session failed, its client is disconnected",
                connection.function.name,
                extra={"event": "session-failed", "fields": {"function": connection.function.name}},
            )
            connection.session.eof()
        if connection.session.state is State.CLOSED:
            self._close(connection)
        else:
            connection.wait()
            if connection.closer.is_stuck:
                self._see_to(connection.closer)

    def _close(self, connection: Connection) -> None:
        among = self._refused if connection.is_refused else self._connections
        del among[connection.sock.fileno()]
        connection.close()
        self._see_to(connection.closer)
        if not connection.is_refused:
            log.info(
                "%s: client gone",
                connection.function.name,
                extra={"event": "disconnected", "fields": {"function": connection.function.name}},
            )

    def hang_up(self, name: str) -> None:
        """End the session of the client of a function, if it has one."""
        for connection in [each for each in self._connections.values() if each.function.name == name]:
            connection.session.eof()
            self._close(connection)

    # -- what clients have sent is being closed ---------------------------------------------------------------------

    def _look_again(self) -> None:
        """A client's descriptors are closed, so that it may send more."""
        for connection in [*self._connections.values(), *self._refused.values()]:
            connection.wait()

    def _see_to(self, closer: Closer) -> None:
        """If nothing can be closed for want of a thread, try again after a rest."""
        if closer not in self._stuck and closer.is_stuck:
            self._stuck.add(closer)
            self._host.at(self._inputs.now_ns() + REST_NS, partial(self._try_again, closer))

    def _try_again(self, closer: Closer) -> None:
        self._stuck.discard(closer)
        self._see_to(closer)

    def close(self) -> None:
        """Drop every client."""
        for connection in [*self._connections.values(), *self._refused.values()]:
            connection.session.eof()
            self._close(connection)
        self._listeners.close()
