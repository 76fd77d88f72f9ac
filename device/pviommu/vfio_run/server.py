"""The server that programs reach through the preloaded library: each open file is a connection.

A message is (kind, request, argument, sequence) as in ``struct message`` of preload.c, with a path behind it when a
file is opened; a reply is (answer, value, sequence of the message). A request that names a descriptor is answered with
NEED_FD: the library says which connection that descriptor is, and the request begins again. The kernel gives each
connection a name, a number, that both ends know. A request that opens a file is answered with OPENED and a number, by
which a new connection claims the file.
"""

from __future__ import annotations

import contextlib
import errno
import os
import selectors
import socket
import struct
import sys
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from weakref import WeakValueDictionary

from ..interfaces.iommufd import OpenFile, Process, RequestError, System
from .remote import MemoryDeniedError, RemoteMemory

__all__ = ["Server"]

_MESSAGE = struct.Struct("<IIQQ")
_REPLY = struct.Struct("<IiQ")
_CREDENTIALS = struct.Struct("3i")
_MAX_MESSAGE = 256
_LONGEST_PATH = 107
"""Of a socket, in bytes."""


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


class _NeedFdError(Exception):
    """A request needs to know what a descriptor is."""

    def __init__(self, fd: int) -> None:
        super().__init__(fd)
        self.fd = fd


@dataclass
class _Request:
    """What a process asks for, and what it has said about its descriptors."""

    pid: int
    number: int
    argument: int
    files: dict[int, OpenFile | int] = field(default_factory=dict)
    """By descriptor; an errno where there is none of ours."""
    wanted: int = -1
    """The descriptor that it was asked about."""


class _Connection:
    """One open file of programs."""

    def __init__(self, sock: socket.socket, number: int) -> None:
        self.sock = sock
        self.number = number
        self.file: OpenFile | None = None
        self.waiting: _Request | None = None
        """A request that goes on when the process says what a descriptor is."""
        self.claim = 0
        self.opened: OpenFile | None = None
        """What the last request opened, until it is claimed by that number."""
        self._sequence = 0

    def reply(self, answer: Answer, value: int) -> None:
        """Answer the last message. Raises OSError if the program has gone, or does not read."""
        self.sock.send(_REPLY.pack(answer, value, self._sequence), socket.MSG_NOSIGNAL)

    def receive(self) -> tuple[Kind, int, int, bytes, int]:
        """Kind, request, argument, what is behind them, and the process that sent it. Raises EOFError at the end,
        ValueError for what is no message, and OSError.
        """
        data, ancillary, _, _ = self.sock.recvmsg(_MAX_MESSAGE, socket.CMSG_SPACE(_CREDENTIALS.size))
        if not data:
            raise EOFError
        sender = next((part for _, kind, part in ancillary if kind == socket.SCM_CREDENTIALS), b"")
        if len(data) < _MESSAGE.size or len(sender) != _CREDENTIALS.size:
            raise ValueError(f"message of {len(data)} bytes")
        kind, request, argument, self._sequence = _MESSAGE.unpack_from(data)
        return Kind(kind), request, argument, data[_MESSAGE.size :], _CREDENTIALS.unpack(sender)[0]


class _RemoteProcess(Process):
    """The process that makes a request, during it."""

    def __init__(self, system: System, request: _Request, memory: RemoteMemory) -> None:
        super().__init__(system, memory)
        self._request = request
        self.opened: OpenFile | None = None

    def file(self, fd: int) -> OpenFile:
        """See the base class. Raises RequestError (EBADF, EBADFD) for none of ours, and :class:`_NeedFdError` if the
        program has not said yet: requests find their files before they change anything.
        """
        found = self._request.files.get(fd)
        if found is None:
            raise _NeedFdError(fd)
        if isinstance(found, int):
            raise RequestError(found, f"descriptor {fd} of process {self.pid}: none of ours")
        return found

    def find_file(self, fd: int) -> OpenFile | None:
        """See the base class. Raises :class:`_NeedFdError` as :meth:`file` does."""
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
        """Makes the file of locks beside the socket, too. Raises OSError if nothing can listen at `path`, with
        ENAMETOOLONG for more than 107 bytes.
        """
        if len(os.fsencode(path)) > _LONGEST_PATH:
            raise OSError(errno.ENAMETOOLONG, f"sockets have paths of at most {_LONGEST_PATH} bytes", str(path))
        self.system = system
        self.connections: dict[int, _Connection] = {}
        """By number."""
        self._all: set[_Connection] = set()
        self._next_claim = 1
        self._claims: dict[int, _Connection] = {}
        """The connections whose last request opened something, by what claims it."""
        self._memories: WeakValueDictionary[tuple[int, int], RemoteMemory] = WeakValueDictionary()
        """Those that mappings need, by process: it, and when it was started."""
        self._denied: set[str] = set()
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listener.bind(str(path))
        path.with_name(f"{path.name}.locks").touch(0o600)
        self._listener.listen(128)
        self._listener.setblocking(False)
        self._spare: int | None = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
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
        self._selector.close()
        self._listener.close()
        if self._spare is not None:
            os.close(self._spare)
            self._spare = None

    def _accept(self) -> None:
        try:
            sock, address = self._listener.accept()
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE):
                self._refuse()
            return  # others: it has gone again
        try:
            number = int(address[1:], 16)
        except ValueError:
            sock.close()  # of no library of ours
            return
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        sock.setblocking(False)
        connection = _Connection(sock, number)
        self.connections[connection.number] = connection
        self._all.add(connection)
        self._selector.register(sock, selectors.EVENT_READ, connection)

    def _refuse(self) -> None:
        """Take a connection and close it, as there are no descriptors left: that open() fails, and no other."""
        if self._spare is not None:
            os.close(self._spare)
        with contextlib.suppress(OSError):  # it waits until something is closed
            self._listener.accept()[0].close()
        try:
            self._spare = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            self._spare = None

    def _drop(self, connection: _Connection) -> None:
        if self.connections.get(connection.number) is connection:  # a name may be used again before the end was seen
            del self.connections[connection.number]
        self._all.remove(connection)
        self._selector.unregister(connection.sock)
        connection.sock.close()
        self._forget_opened(connection)
        if connection.file is not None:
            connection.file.close()

    def _forget_opened(self, connection: _Connection) -> None:
        """Nobody has claimed it: the program could not, or was killed before."""
        if connection.opened is not None:
            del self._claims[connection.claim]
            connection.opened.close()
            connection.opened = None

    def _serve(self, connection: _Connection) -> None:
        if connection not in self._all:
            return
        try:
            self._answer(connection)
        except (EOFError, OSError, ValueError):
            # the program has gone, does not read, or says what no library of ours says
            self._drop(connection)

    def _answer(self, connection: _Connection) -> None:
        kind, number, argument, rest, pid = connection.receive()
        self._forget_opened(connection)
        waiting, connection.waiting = connection.waiting, None
        if kind is Kind.REQUEST and connection.file is not None:
            # who left another one waiting was killed
            self._carry_out(connection, connection.file, _Request(pid, number, argument))
        elif waiting is not None and connection.file is not None:
            waiting.files[waiting.wanted] = self._named(kind, number, argument)
            self._carry_out(connection, connection.file, waiting)
        elif kind is Kind.OPEN and connection.file is None:
            try:
                connection.file = self.system.open(rest.decode())
                connection.reply(Answer.DONE, 0)
            except RequestError as error:
                connection.reply(Answer.DONE, -(error.errno or errno.EIO))
        elif kind is Kind.CLAIM and connection.file is None and argument in self._claims:
            giver = self._claims.pop(argument)
            connection.file, giver.opened = giver.opened, None
            connection.reply(Answer.DONE, 0)
        else:
            raise ValueError(f"{kind} out of place")

    def _named(self, kind: Kind, problem: int, number: int) -> OpenFile | int:
        """What a process says that its descriptor is; else an errno."""
        if kind is not Kind.IS:
            return errno.EBADFD
        other = self.connections.get(number)
        return problem or (other and other.file) or errno.EBADFD

    def _carry_out(self, connection: _Connection, file: OpenFile, request: _Request) -> None:
        memory = RemoteMemory(request.pid)
        memory = self._memories.setdefault((memory.pid, memory.started), memory)
        process = _RemoteProcess(self.system, request, memory)
        try:
            value = file.ioctl(process, request.number, request.argument)
        except _NeedFdError as need:
            request.wanted = need.fd
            connection.waiting = request
            connection.reply(Answer.NEED_FD, need.fd)
            return
        except RequestError as error:
            if isinstance(error, MemoryDeniedError) and str(error) not in self._denied:
                self._denied.add(str(error))
                print(f"pviommu: {error.strerror}", file=sys.stderr)
            connection.reply(Answer.DONE, -(error.errno or errno.EIO))
            return
        if process.opened is not None:
            claim, self._next_claim = self._next_claim, self._next_claim % 0x7FFFFFFF + 1
            connection.claim, connection.opened = claim, process.opened
            self._claims[claim] = connection
            connection.reply(Answer.OPENED, claim)
        else:
            connection.reply(Answer.DONE, value)
