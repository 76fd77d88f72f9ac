"""The listening sockets of a server, and what happens to clients if no descriptor is left for them."""

from __future__ import annotations

import errno
import logging
import os
import socket
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Protocol

from vfio_user import transport
from vfio_user.foreign import Closer

from ..hosted import Host, Watch
from ..inputs import InputKind, Inputs, Source
from ..pci.function import PciFunction
from .reserve import REST_NS, Reserve, spare

__all__ = ["REST_NS", "Listeners", "close_all", "listen_all"]

log = logging.getLogger(__name__)

LAST_PATIENCE_S = 0.5
"""How long the end of the process waits for its sockets to be closed, in which lies what clients may have sent."""
_NO_DESCRIPTOR = (errno.EMFILE, errno.ENFILE)


class Named(Protocol):
    """What has functions: see :class:`pviommu.machine.Machine`."""

    def functions(self) -> Iterator[PciFunction]: ...


def listen_all(
    machine: Named, folder: Path, given: Mapping[str, int], mode: int = 0o600, group: int | None = None
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


class Listeners:
    """Sockets that clients connect to, one per function."""

    def __init__(
        self,
        host: Host,
        inputs: Inputs,
        on_client: Callable[[int], None],
        close: Callable[[socket.socket, PciFunction], None],
    ) -> None:
        """``on_client`` is called with the descriptor of a socket at which somebody waits. ``close`` closes a client
        that wanted to be one of a function.
        """
        self._host = host
        self._inputs = inputs
        self._on_client = on_client
        self._close_client = close
        self._sockets: dict[int, tuple[socket.socket, PciFunction]] = {}
        self._watches: dict[int, Watch] = {}
        self._complained: set[tuple[int, int]] = set()
        self._reserve = Reserve(
            inputs.of(Source(InputKind.OPENED, "refusing clients"), spare),
            inputs.of(Source(InputKind.CLOSED, "refusing clients"), os.close),
        )

    def add(self, sock: socket.socket, function: PciFunction) -> None:
        """Look at ``sock`` from now on."""
        self._sockets[sock.fileno()] = (sock, function)
        self._look_at(sock.fileno())

    def _look_at(self, fd: int) -> None:
        self._watches[fd] = self._host.watch(fd, lambda *_: self._on_client(fd))

    def function(self, fd: int) -> PciFunction:
        """What clients of the socket with descriptor ``fd`` want."""
        return self._sockets[fd][1]

    def rest(self, fd: int) -> None:
        """Do not look at a socket for :data:`REST_NS`: whoever waits there cannot be served yet."""
        self._watches.pop(fd).close()
        self._host.at(self._inputs.now_ns() + REST_NS, partial(self._look_at, fd))

    def accept(self, fd: int) -> tuple[socket.socket, PciFunction] | None:
        """The client that waits at the socket with descriptor ``fd``, if there is one and the system allows it."""
        sock, function = self._sockets[fd]
        try:
            client = self._accept(sock, function)
        except OSError as error:
            self._failed(fd, error)
            return None
        self._complained = {(complained, number) for complained, number in self._complained if complained != fd}
        return None if client is None else (client, function)

    def _accept(self, sock: socket.socket, function: PciFunction) -> socket.socket | None:
        accept = self._inputs.of(Source(InputKind.CLIENT, function.name), transport.accept)
        return function.probes.probe("socket.accept", accept, function.name)(sock)

    def _failed(self, fd: int, error: OSError) -> None:
        """Accept the client and hang up at once, with a descriptor that was kept for that; or rest."""
        sock, function = self._sockets[fd]
        number = error.errno or 0
        refused = number in _NO_DESCRIPTOR and self._hang_up(sock, function)
        if (fd, number) not in self._complained:
            self._complained.add((fd, number))
            log.error(
                "%s: no client can be accepted: %s%s",
                *(function.name, error.strerror, "; new clients are disconnected" if refused else ""),
                extra={"event": "accept-failed", "fields": {"function": function.name, "errno": number}},
            )
        if not refused:
            self.rest(fd)

    def _hang_up(self, sock: socket.socket, function: PciFunction) -> bool:
        """Accept a client and drop it. False if there was no room even for that."""

        def hang_up(client: socket.socket | None) -> None:
            if client is not None:
                self._close_client(client, function)

        return self._reserve.refuse(lambda: self._accept(sock, function), hang_up)

    def close(self) -> None:
        """Forget the sockets, which stay open."""
        for watch in self._watches.values():
            watch.close()
        self._reserve.close()
