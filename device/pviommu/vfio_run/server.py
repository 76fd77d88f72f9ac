"""The server that programs reach through the preloaded library: each open file is a connection.

A message is (kind, request, argument) as in ``struct message`` of preload.c, with a path behind it when a file is
opened; a reply is (answer, value). A request that names a descriptor is answered with NEED_FD: the library says which
connection that descriptor is. The kernel gives each a name, a number, that both ends know.
"""

from __future__ import annotations

import errno
import selectors
import socket
import struct
from enum import IntEnum
from pathlib import Path

from ..interfaces.iommufd import OpenFile, Process, RequestError, System
from .remote import RemoteMemory

__all__ = ["Server"]

_MESSAGE = struct.Struct("<IIQ")
_REPLY = struct.Struct("<Ii")
_CREDENTIALS = struct.Struct("3i")
_MAX_MESSAGE = 256
_PATIENCE_S = 5.0
"""How long a program may take to say which descriptor it means."""


class Kind(IntEnum):
    """Of a message."""

    OPEN = 0
    REQUEST = 1
    IS = 2
    CLAIM = 3


class Answer(IntEnum):
    """Of a reply."""

    DONE = 0
    NEED_FD = 1
    OPENED = 2


class _Connection:
    """One open file of programs."""

    def __init__(self, sock: socket.socket, number: int) -> None:
        self.sock = sock
        self.number = number
        self.file: OpenFile | None = None

    def reply(self, answer: Answer, value: int) -> None:
        self.sock.send(_REPLY.pack(answer, value), socket.MSG_NOSIGNAL)

    def receive(self) -> tuple[Kind, int, int, bytes, int]:
        """Kind, request, argument, what is behind them, and the process that sent it. Raises EOFError at the end, and
        ValueError for what is no message.
        """
        data, ancillary, _, _ = self.sock.recvmsg(_MAX_MESSAGE, socket.CMSG_SPACE(_CREDENTIALS.size))
        if not data:
            raise EOFError
        sender = next((part for _, kind, part in ancillary if kind == socket.SCM_CREDENTIALS), b"")
        if len(data) < _MESSAGE.size or len(sender) != _CREDENTIALS.size:
            raise ValueError(f"message of {len(data)} bytes")
        kind, request, argument = _MESSAGE.unpack_from(data)
        return Kind(kind), request, argument, data[_MESSAGE.size :], _CREDENTIALS.unpack(sender)[0]


class _RemoteProcess(Process):
    """The process that makes a request, during it."""

    def __init__(self, server: Server, connection: _Connection, memory: RemoteMemory) -> None:
        super().__init__(server.system, memory)
        self._server = server
        self._connection = connection
        self.opened: OpenFile | None = None

    def file(self, fd: int) -> OpenFile:
        """See the base class. The program is asked. Raises OSError (EBADF, EBADFD)."""
        self._connection.reply(Answer.NEED_FD, fd)
        kind, problem, number, _, _ = self._connection.receive()
        other = self._server.connections.get(number)
        if kind is not Kind.IS or problem or other is None or other.file is None:
            raise RequestError(problem or errno.EBADFD, f"descriptor {fd} of process {self.pid}: none of ours")
        return other.file

    def find_file(self, fd: int) -> OpenFile | None:
        """See the base class."""
        try:
            return self.file(fd)
        except RequestError:
            return None

    def install(self, file: OpenFile) -> int:
        """See the base class. The program gets its descriptor when it claims it."""
        self.opened = file
        return 0

    @property
    def pid(self) -> int:
        """Of the program."""
        assert isinstance(self.memory, RemoteMemory)
        return self.memory.pid


class Server:
    """Files of a system at a socket. Single-threaded: :meth:`step` does what there is to do."""

    def __init__(self, system: System, path: Path) -> None:
        """Raises OSError if nothing can listen at `path`."""
        self.system = system
        self.connections: dict[int, _Connection] = {}
        """By number."""
        self._all: set[_Connection] = set()
        self._next_claim = 1
        self._claims: dict[int, OpenFile] = {}
        self._memories: dict[int, RemoteMemory] = {}
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listener.bind(str(path))
        self._listener.listen(128)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)

    def watch(self, descriptor: int) -> None:
        """Let :meth:`step` return when this descriptor can be read, too."""
        self._selector.register(descriptor, selectors.EVENT_READ, descriptor)

    def step(self, timeout_s: float | None = None) -> bool:
        """Do what there is to do, after waiting for it. Returns whether a watched descriptor can be read."""
        is_watched = False
        for key, _ in self._selector.select(timeout_s):
            if isinstance(key.data, _Connection):
                self._serve(key.data)
            elif key.data is None:
                self._accept()
            else:
                is_watched = True
        return is_watched

    def close(self) -> None:
        """Close everything. Programs that are still there get EIO."""
        for connection in list(self._all):
            self._drop(connection)
        for file in self._claims.values():
            file.close()
        self._claims.clear()
        self._selector.close()
        self._listener.close()

    def _accept(self) -> None:
        sock, address = self._listener.accept()
        try:
            number = int(address[1:], 16)
        except ValueError:
            sock.close()  # of no library of ours
            return
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        sock.settimeout(_PATIENCE_S)
        connection = _Connection(sock, number)
        self.connections[connection.number] = connection
        self._all.add(connection)
        self._selector.register(sock, selectors.EVENT_READ, connection)

    def _drop(self, connection: _Connection) -> None:
        if self.connections.get(connection.number) is connection:  # a name may be used again before the end was seen
            del self.connections[connection.number]
        self._all.remove(connection)
        self._selector.unregister(connection.sock)
        connection.sock.close()
        if connection.file is not None:
            connection.file.close()

    def _serve(self, connection: _Connection) -> None:
        if connection not in self._all:
            return
        try:
            self._answer(connection)
        except (EOFError, OSError, ValueError):
            # the program has gone, does not read, or says what no library of ours says
            self._drop(connection)

    def _answer(self, connection: _Connection) -> None:
        kind, request, argument, rest, pid = connection.receive()
        if kind is Kind.REQUEST and connection.file is not None:
            self._carry_out(connection, connection.file, pid, request, argument)
        elif kind is Kind.OPEN and connection.file is None:
            try:
                connection.file = self.system.open(rest.decode())
                connection.reply(Answer.DONE, 0)
            except RequestError as error:
                connection.reply(Answer.DONE, -(error.errno or errno.EIO))
        elif kind is Kind.CLAIM and connection.file is None and argument in self._claims:
            connection.file = self._claims.pop(argument)
            connection.reply(Answer.DONE, 0)
        else:
            raise ValueError(f"{kind} out of place")

    def _carry_out(self, connection: _Connection, file: OpenFile, pid: int, request: int, argument: int) -> None:
        memory = self._memories.setdefault(pid, RemoteMemory(pid))
        process = _RemoteProcess(self, connection, memory)
        try:
            value = file.ioctl(process, request, argument)
        except RequestError as error:
            connection.reply(Answer.DONE, -(error.errno or errno.EIO))
            return
        if process.opened is not None:
            claim, self._next_claim = self._next_claim, self._next_claim % 0x7FFFFFFF + 1
            self._claims[claim] = process.opened
            connection.reply(Answer.OPENED, claim)
        else:
            connection.reply(Answer.DONE, value)
