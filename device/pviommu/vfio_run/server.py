"""The server that programs reach through the preloaded library: each open file is a connection.

A message is (kind, request, argument, sequence) as in ``struct message`` of src/boxes.h; a reply is (answer, value,
sequence of the message). What follows a message, if anything: the path of a file that is opened; of a request, the
beginning of what its argument points to, so that it need not be fetched; the bytes that are written; how many are
mapped. What follows a reply: the bytes that were read; a file, and an offset there, that are to be mapped.

A request that names a descriptor is answered with NEED_FD: the library says which connection that descriptor is, and
the request begins again. NEED_COPY is the same for one that is none of ours, such as an eventfd: the library sends it.
The kernel gives each connection a name, a number, that both ends know. A request that opens a file is answered with
OPENED and a number, by which a new connection claims the file; in the bits above the lowest eight of that answer is
where in the structure the descriptor belongs, if it is not what the request returns. READY is sent unasked, for poll():
whoever makes the next request throws it away. Files that are no queues can always be read, for poll(), as in Linux: of
these the last reply stays in the socket.

While a program makes one request after the other, messages are put into a box in shared memory, and the replies to them
as well (boxes.py). As no credentials come that way, a process says HELLO by the socket first, and gets a token, which
names it; STRANGER means that there is no such token. RING says that there is something in the box of this connection.
"""

from __future__ import annotations

import array
import contextlib
import errno
import logging
import os
import re
import secrets
import select
import socket
import struct
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from functools import partial
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

from vfio_user import RequestError as FunctionError
from vfio_user import Steps
from vfio_user.framing import close_fds

from ..counters import Counters
from ..host.loop import Loop
from ..host.pacing import Pace
from ..host.work import Machine, Work
from ..hosted import MayGoOn, Watch
from ..inputs import LiveInputs
from ..interfaces.iommufd import EventFile, FileMemory, OpenFile, Process, RequestError, System
from ..interfaces.iommufd.commands import COMMANDS
from ..interfaces.iommufd.context import Iommufd
from ..interfaces.iommufd.device_file import DeviceFile
from ..interfaces.iommufd.holdings import holdings
from ..interfaces.iommufd.pci_device import Piece
from ..interfaces.iommufd.vfio_structures import VfioRequest
from ..transports.reserve import REST_NS, Reserve
from .boxes import BOXES, NOTHING, OTHERS, ROOM, Boxes, Taken, shared_file
from .fail_nth import DEBUG_FILES, FailNth, FailNthFile
from .files import files_beside, make_files
from .machine import DeviceMachine
from .remote import DescriptorMemory, MemoryDeniedError, RemoteMemory

__all__ = ["Answer", "Connection", "Kind", "Message", "Server"]

log = logging.getLogger(__name__)

_MESSAGE = struct.Struct("<IIQQ")
_REPLY = struct.Struct("<IiQ")
_KEPT = 1 << 31
"""With an answer: the library leaves it where it is until the next one, so that poll() says that there is something."""
_WORD = struct.Struct("<Q")
_PIECE = struct.Struct("<QQ")
_CREDENTIALS = struct.Struct("3i")
_MOST_DATA = 4096
"""Bytes that are read or written by one message."""
_MOST_STREAMED = 1 << 20
"""Bytes that read() or write() of a device move at once."""
_MOST_FDS = 8
_MAX_MESSAGE = _MESSAGE.size + _MOST_DATA
_ANCILLARY = socket.CMSG_SPACE(_CREDENTIALS.size) + socket.CMSG_SPACE(4 * _MOST_FDS)
_LONGEST_PATH = 107
"""Of a socket, in bytes."""
_NAME = re.compile(rb"\0pviommu-[0-9a-f]{16}-([0-9a-f]{8})-[0-9a-f]{8}")
"""Of a connection."""
_BUSY_NS = 200_000
"""A program whose next request comes so soon after the last one has its box watched."""
_WATCH = 0x100
"""With the kind of a message: more is to come, and would come by a box."""
_WAIT_NS = 50_000
"""How long a request is waited for at the boxes, while there is nothing else to do."""


class Kind(IntEnum):
    """Of a message."""

    OPEN = 0
    REQUEST = 1
    IS = 2
    CLAIM = 3
    COPY = 4
    READ = 5
    WRITE = 6
    MAP = 7
    TAKE = 8
    """read() of a queue: bytes, and where to."""
    PUT = 9
    """write() to one."""
    HELLO = 10
    RING = 11


_ACCESSES = (Kind.READ, Kind.WRITE, Kind.MAP, Kind.TAKE, Kind.PUT)
"""What is no request, and complete."""
_QUICK = (Kind.REQUEST, Kind.READ, Kind.WRITE)
"""What may come in boxes, besides answers to questions."""


class Answer(IntEnum):
    """Of a reply."""

    DONE = 0
    NEED_FD = 1
    OPENED = 2
    NEED_COPY = 3
    READY = 4
    """No reply: there is something to read, so that poll() says so."""
    STRANGER = 5


class _NeedError(Exception):
    """A request needs to know what a descriptor is, or the descriptor."""

    def __init__(self, answer: Answer, fd: int) -> None:
        super().__init__(answer, fd)
        self.answer = answer
        self.fd = fd


@dataclass
class _Request:
    """What a process asks for, and what it has said about its descriptors."""

    pid: int
    number: int
    argument: int
    known: bytes
    """what is there at the argument"""
    files: dict[int, OpenFile | int] = field(default_factory=dict)
    """By descriptor; an errno where there is none of ours."""
    copies: dict[int, int] = field(default_factory=dict)
    """Descriptors here, by those there; minus an errno where there is none."""
    wanted: _NeedError | None = None
    """What it was asked about."""

    def close(self) -> None:
        """It is over."""
        close_fds([fd for fd in self.copies.values() if fd >= 0])
        self.copies.clear()


@dataclass
class Message:
    """What came."""

    kind: Kind
    request: int
    argument: int
    rest: bytes
    pid: int
    """of the process that sent it"""
    fds: list[int]


class Connection:
    """One open file of programs."""

    most_data = _MOST_DATA
    """Bytes that one message reads at most."""

    def __init__(self, sock: socket.socket, number: int, boxes: Boxes | None) -> None:
        self.sock = sock
        self.number = number
        self.position = 0
        """Where read() and write() go on."""
        self.at_end: Callable[[], object] = lambda: None
        """Called when it is closed."""
        self.asked_ns = 0
        """When the last request came by the socket."""
        self.held: Taken | None = None
        """What came while there were steps left of what a process had asked for that was killed."""
        self._boxes = boxes
        self.may_use_box = False
        """Whether the program says so."""
        self._box = -1
        """Where the last message came from; -1: the socket."""
        self.file: OpenFile | None = None
        self.watch: Watch | None = None
        self.memory: RemoteMemory | None = None
        """of the process that made the last request"""
        self.waiting: _Request | None = None
        """A request that goes on when the process says what a descriptor is."""
        self.steps: Steps | None = None
        """The rest of a write, whose reply waits for its end."""
        self.written = 0
        """Bytes of it."""
        self.claim = 0
        self.opened: OpenFile | None = None
        """What the last request opened, until it is claimed by that number."""
        self.is_rung = False
        """Whether the program was told that there is something to read, and has not asked for anything since."""
        self._sequence = 0

    def is_over(self) -> bool:
        """Whether the programs have closed it, and everything that they said before was read."""
        try:
            return not self.sock.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except OSError:
            return True

    @property
    def is_by_box(self) -> bool:
        """Whether the last message came in one."""
        return self._box >= 0

    @property
    def is_readable(self) -> bool:
        """Whether poll() must be told that there is something to read."""
        return isinstance(self.file, EventFile) and self.file.is_readable

    def ring(self) -> None:
        """Let poll() say that there is something to read, if there is."""
        if not self.is_rung and self.is_readable:
            self.is_rung = True
            with contextlib.suppress(OSError):  # the program has gone, or does not read: its next message shows that
                self.sock.send(_REPLY.pack(Answer.READY, 0, 0), socket.MSG_NOSIGNAL)

    def reply(self, answer: int, value: int, behind: bytes = b"") -> None:
        """Answer the last message. Raises OSError if the program has gone, or does not read."""
        if self._box >= 0 and self._boxes and not self._boxes.answer(self._box, answer, value, self._sequence, behind):
            return
        self._send(answer, value, behind)

    def give(self, piece: Piece) -> None:
        """Answer the last message with what is to be mapped. Raises OSError as :meth:`reply` does."""
        rights = [] if piece.fd is None else [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [piece.fd]))]
        self._send(Answer.DONE, 0, _PIECE.pack(piece.place, piece.size), rights)

    def _send(
        self, answer: int, value: int, behind: bytes, rights: Sequence[tuple[int, int, array.array[int]]] = ()
    ) -> None:
        """By the socket. Of a file that is no queue it stays there until the next one."""
        is_kept = self.file is not None and not isinstance(self.file, EventFile)
        data = _REPLY.pack(answer | _KEPT if is_kept else answer, value, self._sequence) + behind
        if rights:
            self.sock.sendmsg([data], rights, socket.MSG_NOSIGNAL)
        else:
            self.sock.send(data, socket.MSG_NOSIGNAL)

    def refuse(self, taken: Taken, answer: int, value: int) -> None:
        """Answer a message from a box, perhaps while another one waits for its answer. Raises OSError as above."""
        before = self._box, self._sequence
        self._box, self._sequence = taken.box, taken.sequence
        try:
            self.reply(answer, value)
        finally:
            self._box, self._sequence = before

    def received(self, taken: Taken, pid: int) -> Message:
        """A message from a box. Raises ValueError for what is none."""
        self._box, self._sequence = taken.box, taken.sequence
        return Message(Kind(taken.kind), taken.request, taken.argument, taken.rest, pid, [])

    def receive(self) -> Message:
        """The next message. Raises EOFError at the end, ValueError for what is no message, and OSError."""
        data, ancillary, _, _ = self.sock.recvmsg(_MAX_MESSAGE, _ANCILLARY, socket.MSG_CMSG_CLOEXEC)
        fds: list[int] = []
        sender = b""
        for _, kind, part in ancillary:
            if kind == socket.SCM_CREDENTIALS:
                sender = part
            else:
                fds += struct.unpack(f"{len(part) // 4}i", part[: len(part) // 4 * 4])
        try:
            if not data:
                raise EOFError
            if len(data) < _MESSAGE.size or len(sender) != _CREDENTIALS.size:
                raise ValueError(f"message of {len(data)} bytes")
            self.is_rung = False
            self._box = -1
            kind, request, argument, self._sequence = _MESSAGE.unpack_from(data)
            self.may_use_box = bool(kind & _WATCH)
            kind &= ~_WATCH
            if fds and kind != Kind.COPY:
                raise ValueError(f"message of kind {kind} with descriptors")
            return Message(Kind(kind), request, argument, data[_MESSAGE.size :], _CREDENTIALS.unpack(sender)[0], fds)
        except (EOFError, ValueError):
            close_fds(fds)
            raise


class _RemoteProcess(Process):
    """The process that makes a request, during it."""

    def __init__(self, system: System, request: _Request, memory: RemoteMemory) -> None:
        super().__init__(system, memory)
        self._request = request
        self.opened: OpenFile | None = None
        self.field = 0
        """Where in the structure of the request its descriptor belongs; 0: the request returns it."""

    def file(self, fd: int) -> OpenFile:
        """See the base class. Raises RequestError (EBADF, EBADFD) for none of ours, and :class:`_NeedError` if the
        program has not said yet: requests find their files before they change anything.
        """
        found = self._request.files.get(fd)
        if found is None:
            raise _NeedError(Answer.NEED_FD, fd)
        if isinstance(found, int):
            raise RequestError(found, f"descriptor {fd} of process {self.pid}: none of ours")
        return found

    def find_file(self, fd: int) -> OpenFile | None:
        """See the base class. Raises :class:`_NeedError` as :meth:`file` does."""
        try:
            return self.file(fd)
        except RequestError:
            return None

    def duplicate(self, fd: int) -> int:
        """See the base class. Raises :class:`_NeedError` if the program has not sent it yet."""
        found = self._request.copies.get(fd)
        if found is None:
            raise _NeedError(Answer.NEED_COPY, fd)
        if found < 0:
            raise RequestError(-found, f"descriptor {fd} of process {self.pid}: not open")
        return os.dup(found)

    def install(self, file: OpenFile, field: int = 0) -> int:
        """See the base class. The program gets its descriptor when it claims it."""
        try:
            self.system.places.file()
        except OSError:
            file.close()
            raise
        self.opened, self.field = file, field
        return 0

    def uninstall(self, fd: int) -> None:
        """See the base class."""
        if self.opened is not None:
            self.opened.close()
            self.opened = None

    def memory_file(self, fd: int) -> FileMemory:
        """See the base class. A file of the program that is none of ours is sent, and is open here as well."""
        found = self.find_file(fd)
        if isinstance(found, FileMemory):
            return found
        if found is not None:
            raise RequestError(errno.EINVAL, f"descriptor {fd} of process {self.pid}: no file in memory")
        return DescriptorMemory(self.duplicate(fd))

    @property
    def pid(self) -> int:
        """Of the program."""
        return self._request.pid


def _words(said: Message, file: OpenFile | None) -> str:
    """What a process asks for."""
    if said.kind is Kind.OPEN:
        return f"open {os.fsdecode(said.rest)}"
    if said.kind is not Kind.REQUEST:
        return said.kind.name.lower()
    command = COMMANDS.get(said.request & 0xFF) if isinstance(file, Iommufd) else None
    if command and command.request == said.request:
        return command.name.upper()
    names = [name for name, number in VfioRequest.__members__.items() if number == said.request]
    of_devices = [name for name in names if name.startswith("DEVICE_") == isinstance(file, DeviceFile)]
    return next(iter(of_devices or names), f"request {said.request:#x}")


class Server:
    """Files of a system at a socket, and the machine of its devices, both served by one loop."""

    def __init__(
        self,
        system: System,
        path: Path,
        machine: Machine | None = None,
        library: Path | None = None,
        fail_nth: FailNth | None = None,
    ) -> None:
        """``machine``: what the devices of the system are, if they are more than DMA. ``library``: the one that
        programs are given; without it nothing comes in boxes. ``fail_nth``: what programs may let fail. The file that
        all share, and what :func:`.files.make_files` makes, come beside the socket. Raises OSError if nothing can
        listen at `path`, with ENAMETOOLONG for more than 107 bytes.
        """
        if len(os.fsencode(path)) > _LONGEST_PATH:
            raise OSError(errno.ENAMETOOLONG, f"sockets have paths of at most {_LONGEST_PATH} bytes", str(path))
        self.system = system
        self.connections: dict[int, Connection] = {}
        """By number."""
        self._all: set[Connection] = set()
        self._closed = select.epoll()
        """Says which connections are closed at the other end."""
        self._by_socket: dict[int, Connection] = {}
        """By number of the descriptor."""
        self._next_claim = 1
        self._claims: dict[int, Connection] = {}
        """The connections whose last request opened something, by what claims it."""
        self._memories: WeakValueDictionary[int, RemoteMemory] = WeakValueDictionary()
        """Those that connections and mappings need, by process."""
        self._denied: set[str] = set()
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listener.bind(str(path))
        shared_file(path).touch(0o600)
        self._boxes = Boxes(library, path) if library and len(os.sched_getaffinity(0)) > 1 else None
        self._tokens: dict[int, RemoteMemory] = {}
        """The memory of processes, by what they name themselves with."""
        self._fail_nth = fail_nth
        if fail_nth:
            fail_nth.watch(system.places, self._holdings)
        make_files(system, files_beside(path), DEBUG_FILES if fail_nth else {})
        self._listener.listen(128)
        self._listener.setblocking(False)
        self._reserve = Reserve()
        served = machine or DeviceMachine({}, LiveInputs(), Counters())
        self._inputs = served.inputs
        self.loop = Loop(Work(served), served.inputs, served.counters, Pace())
        for function in served.functions():
            function.on_served(self.loop)
        self._bell = os.eventfd(0, os.EFD_CLOEXEC)  # nobody rings: its watch has more as long as boxes are watched
        self._boxes_watch = self.loop.watch(self._bell, lambda _, may_go_on: self._serve_boxes(may_go_on))
        self._look()

    def watch(self, descriptor: int, callback: Callable[[], None]) -> Watch:
        """Call ``callback`` when this descriptor can be read, too."""
        return self.loop.watch(descriptor, lambda *_: callback())

    def after(self, seconds: float, call: Callable[[], None]) -> None:
        """Call ``call`` so much later."""
        self.loop.at(self._inputs.now_ns() + int(seconds * 1e9), call)

    def run(self) -> None:
        """Serve until :meth:`stop`. In the main thread only."""
        self.loop.run()

    def stop(self) -> None:
        """Leave :meth:`run`."""
        self.loop.stop()

    def step(self, timeout_s: float) -> None:
        """Do what there is to do, after waiting for it so long."""
        timer = self.loop.at(self._inputs.now_ns() + int(timeout_s * 1e9), lambda: self.loop.call(lambda: None))
        self.loop.turn()  # which does not sleep if something was called
        timer.cancel()

    def close(self) -> None:
        """Close everything. Programs that are still there get EIO."""
        for connection in list(self._all):
            self._drop(connection)
        if self._boxes:
            self._boxes.close()
        self._boxes_watch.close()
        os.close(self._bell)
        self.loop.close()
        self._closed.close()
        self._listener.close()
        self._reserve.close()
        if self._fail_nth:
            self._fail_nth.over()

    # -- connections ------------------------------------------------------------------------------------------------

    def _look(self) -> None:
        self._waiting = self.loop.watch(self._listener.fileno(), lambda *_: self._accept())

    def _accept(self) -> None:
        try:
            sock, address = self._listener.accept()
        except OSError as error:
            # there are no descriptors left: this open() fails, and no other; else it has gone again
            if error.errno in (errno.EMFILE, errno.ENFILE) and not self._reserve.refuse(
                self._listener.accept, lambda client: client[0].close()
            ):
                self._waiting.close()
                self.loop.at(self._inputs.now_ns() + REST_NS, self._look)
            return
        name = _NAME.fullmatch(address) if isinstance(address, bytes) else None
        if name is None:
            sock.close()  # of no library of ours
            return
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        self.adopt(Connection(sock, int(name[1], 16), self._boxes))

    def adopt(self, connection: Connection) -> None:
        """Serve a connection."""
        sock = connection.sock
        sock.setblocking(False)
        self.connections[connection.number] = connection
        self._all.add(connection)
        self._by_socket[sock.fileno()] = connection
        self._closed.register(sock.fileno(), select.EPOLLRDHUP)
        connection.watch = self.loop.watch(sock.fileno(), partial(self._serve, connection))

    def _drop(self, connection: Connection) -> None:
        if self.connections.get(connection.number) is connection:  # a name may be used again before the end was seen
            del self.connections[connection.number]
        self._all.remove(connection)
        self._closed.unregister(connection.sock.fileno())
        del self._by_socket[connection.sock.fileno()]
        if connection.watch:
            connection.watch.close()
        connection.sock.close()
        connection.steps = None
        self._forget_opened(connection)
        if connection.waiting:
            connection.waiting.close()
        if connection.file is not None:
            connection.file.close()
        connection.at_end()

    def told(self, connection: Connection, said: Message) -> None:
        """A message that comes neither by a socket nor in a box. Without effect on a connection that has ended."""
        if connection not in self._all:
            close_fds(said.fds)
            return
        self._guard(connection, partial(self._serve_message, connection, said, lambda: False))
        if connection in self._all:
            connection.ring()

    def memory_of(self, pid: int) -> RemoteMemory:
        """The memory of a process."""
        memory = self._memories.get(pid)
        if memory is None or not memory.is_there():
            for other in list(self._memories.values()):
                other.is_there()  # which gives back what it needs no more
            memory = self._memories[pid] = RemoteMemory(pid)
        return memory

    def _forget_opened(self, connection: Connection) -> None:
        """Nobody has claimed it: the program could not, or was killed before."""
        if connection.opened is not None:
            del self._claims[connection.claim]
            connection.opened.close()
            connection.opened = None

    # -- messages ---------------------------------------------------------------------------------------------------

    def _serve(self, connection: Connection, events: int, may_go_on: MayGoOn) -> None:
        if connection in self._all:
            self._guard(connection, partial(self._serve_socket, connection, events, may_go_on))
            if connection in self._all:
                connection.ring()

    def _serve_socket(self, connection: Connection, events: int, may_go_on: MayGoOn) -> None:
        if connection.steps is None and events:
            said = connection.receive()
            if said.kind is Kind.RING:
                taken = self._boxes.look(connection.number % BOXES) if self._boxes else None
                if taken:
                    self._answer_taken(taken, may_go_on)
            elif said.kind is Kind.HELLO and self._boxes:
                self._say_hello(connection, said)
            else:
                self._answer(connection, said)
                self._watch_box(connection, said.kind)
        if connection.steps is not None:
            self._go_on(connection, connection.steps, may_go_on)

    def _guard(self, connection: Connection, work: Callable[[], None]) -> None:
        """Work for a program, which ends its connection if it fails."""
        try:
            work()
        except BlockingIOError:
            pass
        except (EOFError, OSError, ValueError):
            # the program has gone, does not read, or says what no library of ours says
            self._drop(connection)
        except Exception:
            self._failed(connection)

    def _failed(self, connection: Connection) -> None:
        """A fault of ours: the open file is lost, and its program is told EIO. Others go on."""
        log.exception("a request failed, its file is closed")
        try:
            self._drop(connection)
        except Exception:
            log.exception("the file could not be closed")

    # -- boxes ------------------------------------------------------------------------------------------------------

    def _watch_box(self, connection: Connection, kind: Kind) -> None:
        """Watch the box of a program that makes one request after the other."""
        if (
            self._boxes is None
            or not connection.may_use_box
            or kind not in _QUICK
            or isinstance(connection.file, EventFile)
        ):
            return
        before, connection.asked_ns = connection.asked_ns, time.monotonic_ns()
        if connection.asked_ns - before < _BUSY_NS:
            left = self._boxes.watch(connection.number % BOXES)
            self._boxes_watch.has_more = True
            if left:
                self._answer_taken(left, lambda: False)

    def _serve_boxes(self, may_go_on: MayGoOn) -> None:
        """Take what comes in the boxes that are watched, until nothing comes for a moment; others have their turn."""
        boxes = self._boxes
        assert boxes
        others = self.loop.watches.poller.fileno()
        while may_go_on():
            taken = boxes.take(others, _WAIT_NS)
            if taken == OTHERS:
                return
            if taken == NOTHING:
                self._boxes_watch.has_more = False
                for last in boxes.rest():
                    self._answer_taken(last, may_go_on)
                return
            assert isinstance(taken, Taken)
            self._answer_taken(taken, may_go_on)

    def _answer_taken(self, taken: Taken, may_go_on: MayGoOn) -> None:
        """A message from a box, by the same rules as one that came by the socket."""
        connection, memory = self.connections.get(taken.connection), self._tokens.get(taken.token)
        if connection is None or connection.file is None or taken.connection % BOXES != taken.box:
            self._refuse(taken, Answer.DONE, -errno.EIO)
        elif memory is None or not memory.is_there():
            self._refuse(taken, Answer.STRANGER, 0)
        elif connection.steps is not None:
            connection.held = taken
        else:
            connection.memory = memory
            self._guard(
                connection,
                lambda: self._serve_message(connection, connection.received(taken, memory.pid), may_go_on),
            )

    def _serve_message(self, connection: Connection, said: Message, may_go_on: MayGoOn) -> None:
        self._answer(connection, said)
        if connection.steps is not None:
            self._go_on(connection, connection.steps, may_go_on)

    def _refuse(self, taken: Taken, answer: Answer, value: int) -> None:
        connection = self.connections.get(taken.connection)
        assert self._boxes
        if connection is None:
            self._boxes.answer(taken.box, answer, value, taken.sequence, b"")
            return
        with contextlib.suppress(OSError):  # the program has gone, or does not read: its next message shows that
            connection.refuse(taken, answer, value)

    def _say_hello(self, connection: Connection, said: Message) -> None:
        """A process is given the token that names it in boxes. It may just have been asked about a descriptor."""
        for token in [token for token, memory in self._tokens.items() if not memory.is_there()]:
            del self._tokens[token]
        memory = self._memory_of(connection, said.pid)
        if not memory.token:
            memory.token = secrets.randbits(63) | 1
        self._tokens[memory.token] = memory
        connection.reply(Answer.DONE, 0, _WORD.pack(memory.token))

    # -- answers ----------------------------------------------------------------------------------------------------

    def _answer(self, connection: Connection, said: Message) -> None:
        self._drop_closed(connection)
        self._forget_opened(connection)
        if self._fail_nth is None:
            self._carry_message_out(connection, said)
            return
        self._fail_nth.begin(said.pid, _words(said, connection.file))
        try:
            self._carry_message_out(connection, said)
        finally:
            self._fail_nth.end()

    def _holdings(self) -> dict[str, Any]:
        return holdings(self.system, (connection.file for connection in self.connections.values()))

    def _open(self, path: str, pid: int) -> OpenFile:
        return (self._fail_nth and self._fail_nth.file(path, pid)) or self.system.open(path)

    def _carry_message_out(self, connection: Connection, said: Message) -> None:
        waiting, connection.waiting = connection.waiting, None
        kind, file = said.kind, connection.file
        if waiting is not None and kind in (Kind.REQUEST, *_ACCESSES):
            waiting.close()  # who left it waiting was killed
            waiting = None
        if kind is Kind.REQUEST and file is not None:
            request = _Request(said.pid, said.request, said.argument, said.rest)
            self._carry_out(connection, file, request, keeps_back=connection.is_by_box)
        elif waiting is not None and file is not None:
            self._hear(waiting, said)
            self._carry_out(connection, file, waiting)
        elif kind in _ACCESSES and file is not None:
            self._access(connection, file, said)
        elif kind is Kind.OPEN and file is None:
            try:
                connection.file = self._open(os.fsdecode(said.rest), said.pid)
                connection.reply(Answer.DONE, 0)
            except RequestError as error:
                connection.reply(Answer.DONE, -(error.errno or errno.EIO))
        elif kind is Kind.CLAIM and file is None and said.argument in self._claims:
            giver = self._claims.pop(said.argument)
            connection.file, giver.opened = giver.opened, None
            if isinstance(connection.file, EventFile):
                connection.file.watcher = connection.ring
            connection.reply(Answer.DONE, 0)
        else:
            close_fds(said.fds)
            raise ValueError(f"{kind.name} out of place")

    def _drop_closed(self, asking: Connection) -> None:
        """What a program has closed is closed before its next request."""
        for number, _ in self._closed.poll(0):
            closed = self._by_socket.get(number)
            if closed and closed is not asking and closed.is_over():
                self._drop(closed)

    def _hear(self, request: _Request, said: Message) -> None:
        """What a process says of the descriptor that it was asked about, if it answers that."""
        assert request.wanted
        fd, wants = request.wanted.fd, request.wanted.answer
        if wants is Answer.NEED_COPY:
            found = said.fds[0] if said.kind is Kind.COPY and said.fds else -(said.request or errno.EBADF)
            close_fds(said.fds[1:])
            request.copies[fd] = found
            return
        close_fds(said.fds)
        other = self.connections.get(said.argument) if said.kind is Kind.IS else None
        request.files[fd] = said.request or (other and other.file) or errno.EBADFD

    def _memory_of(self, connection: Connection, pid: int) -> RemoteMemory:
        memory = connection.memory
        if connection.is_by_box and memory and memory.pid == pid:
            return memory  # it was there when the message was taken
        if memory is None or memory.pid != pid or not memory.is_there():
            memory = connection.memory = self.memory_of(pid)
        return memory

    def _carry_out(
        self, connection: Connection, file: OpenFile, request: _Request, *, keeps_back: bool = False
    ) -> None:
        """``keeps_back``: what is written back goes with the answer; the library knows where to."""
        memory = self._memory_of(connection, request.pid)
        memory.asks, memory.keeps_back, memory.back = True, keeps_back, b""
        process = _RemoteProcess(self.system, request, memory)
        memory.known = (request.argument, request.known) if request.known else None
        value = 0
        try:
            value = file.ioctl(process, request.number, request.argument)
        except _NeedError as need:
            request.wanted = need
            if self._fail_nth:
                self._fail_nth.rewind()
            connection.waiting = request
            connection.reply(need.answer, need.fd)
            return
        except (OSError, FunctionError) as error:  # OSError of this process's own: no descriptor is left, for one
            if isinstance(error, MemoryDeniedError) and str(error) not in self._denied:
                self._denied.add(str(error))
                print(f"pviommu: {error.strerror}", file=sys.stderr)
            value = -(error.errno or errno.EIO)
            memory.back = b""
            process.uninstall(0)
        finally:
            memory.known, memory.asks = None, False
            if request.copies and connection.waiting is not request:
                request.close()
        if process.opened is None:
            connection.reply(Answer.DONE, value, memory.back)
            return
        claim, self._next_claim = self._next_claim, self._next_claim % 0x7FFFFFFF + 1
        connection.claim, connection.opened = claim, process.opened
        self._claims[claim] = connection
        connection.reply(Answer.OPENED | process.field << 8, claim)

    # -- regions ----------------------------------------------------------------------------------------------------

    def _access(self, connection: Connection, file: OpenFile, said: Message) -> None:
        """pread(), pwrite() or mmap() of the file of a device; others have none of these."""
        refused = errno.ENODEV if said.kind is Kind.MAP else errno.EINVAL
        try:
            if said.kind in (Kind.TAKE, Kind.PUT) and isinstance(file, DeviceFile | FailNthFile):
                self._stream(connection, file, said)
                return
            if said.kind in (Kind.TAKE, Kind.PUT):
                connection.reply(Answer.DONE, self._use_queue(connection, file, said))
                return
            if said.kind is Kind.MAP and isinstance(file, Iommufd):
                (length,) = _WORD.unpack(said.rest)
                connection.give(Piece(*file.mapped(said.argument, length), length))
                return
            if not isinstance(file, DeviceFile | FailNthFile):
                raise RequestError(refused, "it is no device")
            if said.kind is Kind.READ:
                most = ROOM if connection.is_by_box else connection.most_data
                data = file.read(said.argument, min(said.request, most))
                connection.reply(Answer.DONE, len(data), data)
            elif said.kind is Kind.WRITE:
                connection.written, connection.steps = file.write(said.argument, said.rest)
            else:
                connection.give(file.mapped(said.argument, *_WORD.unpack(said.rest)))
        except (RequestError, FunctionError) as error:
            connection.reply(Answer.DONE, -(error.errno or errno.EIO))
        except struct.error as error:
            raise ValueError(f"MAP with {len(said.rest)} bytes") from error

    def _stream(self, connection: Connection, file: DeviceFile | FailNthFile, said: Message) -> None:
        """read() or write() of a device, where the last one of this file has ended."""
        memory, count = self._memory_of(connection, said.pid), min(said.request, _MOST_STREAMED)
        if said.kind is Kind.TAKE:
            data = file.read(connection.position, count)
            memory.write(said.argument, data)
            connection.position += len(data)
            connection.reply(Answer.DONE, len(data))
        else:
            data = memory.read(said.argument, count)
            connection.written, connection.steps = file.write(connection.position, data)
            connection.position += connection.written

    def _use_queue(self, connection: Connection, file: OpenFile, said: Message) -> int:
        """read() or write(); only queues have them."""
        if not isinstance(file, EventFile):
            raise RequestError(errno.EINVAL, "it is no queue")
        memory = self._memory_of(connection, said.pid)
        transfer = file.read_to if said.kind is Kind.TAKE else file.write_from
        return transfer(self.system.places.arguments(memory), said.argument, said.request)

    def _go_on(self, connection: Connection, steps: Steps, may_go_on: MayGoOn) -> None:
        """Steps of a write. Others have their turn between two of them."""
        assert connection.watch
        value = connection.written
        try:
            for _ in steps:
                if not may_go_on():
                    connection.watch.has_more = True
                    return
        except FunctionError as error:
            value = -(error.errno or errno.EIO)
        connection.watch.has_more = False
        connection.steps = None
        if isinstance(connection.file, DeviceFile):
            connection.file.settle()
        connection.reply(Answer.DONE, value)
        held, connection.held = connection.held, None
        if held:
            self.loop.call(lambda: self._answer_taken(held, lambda: True))
