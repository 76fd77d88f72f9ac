"""Programs that no library can be preloaded into, such as static ones: their system calls wait for the server.

What the preloaded library does in a program is done here for it: paths lead to the model's files, and what is done with
these comes to the server as the messages that the library sends. An open file is a pair of connected sockets, of which
the program has one, so that dup, close and the end of a process are the kernel's here, too. The program's descriptors
are numbered from :data:`.notifications.FIRST_DESCRIPTOR` on: calls with lower ones do not wait.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import logging
import os
import socket
import stat
import struct
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ..hosted import Watch
from ..interfaces.iommufd import EventFile, RequestError
from .files import device_number, files_beside
from .notifications import FIRST_DESCRIPTOR, Call, Listener, Syscall
from .remote import RemoteMemory
from .server import Answer, Connection, Kind, Message, Server

__all__ = ["Supervisor"]

log = logging.getLogger(__name__)

_libc = ctypes.CDLL(None, use_errno=True)
_PIDFD_GETFD = 438
_AT_FDCWD = -100
_AT_SYMLINK_NOFOLLOW, _AT_EMPTY_PATH = 0x100, 0x1000
_MOST_PATH = 4096
_MOST_MOVED = 1 << 20
_FIRST_NUMBER = 1 << 40
"""Of connections: those of the library are below."""
_STAT = struct.Struct("<QQQIIIIQqqq6Q24x")
_STATX = struct.Struct("<IIQIIIHHQQQQ" + "qII" * 4 + "4I112x")
_STATX_BASIC = 0x7FF
_F_DUPFD, _F_DUPFD_CLOEXEC = 0, 1030
_KINDS: dict[int, Kind] = {
    Syscall.READ: Kind.TAKE,
    Syscall.WRITE: Kind.PUT,
    Syscall.PREAD64: Kind.READ,
    Syscall.PWRITE64: Kind.WRITE,
    Syscall.IOCTL: Kind.REQUEST,
}
"""Of messages that the library would send for a call."""


@dataclass
class _Path:
    """A path of ours: where it leads in the folder of the server."""

    real: Path
    node: str
    """The path as the program has it, if it is a file of /dev; else empty."""


class _Connection(Connection):
    """An open file of a supervised program. What is answered is the call that waits."""

    most_data = _MOST_MOVED

    def __init__(self, supervisor: Supervisor, sock: socket.socket, number: int, inode: int) -> None:
        super().__init__(sock, number, None)
        self.inode = inode
        """Of the program's end."""
        self.device = 0
        """Its number, if a path led to it."""
        self.code = -errno.EIO
        """The answer to opening it."""
        self.call: Call | None = None
        self.waiting_calls: deque[Call] = deque()
        self._supervisor = supervisor

    @property
    def is_readable(self) -> bool:
        """See the base class. No reply is in this socket, so that other files than queues need to be told, too."""
        return super().is_readable if isinstance(self.file, EventFile) else self.file is not None

    def reply(self, answer: int, value: int, behind: bytes = b"") -> None:
        """See the base class. The program may ask poll() as soon as it goes on."""
        self.ring()
        self._supervisor.answered(self, answer, value, behind)


class Supervisor:
    """Answers the calls of a program that was given a filter, and of all that it starts."""

    def __init__(self, server: Server, listener: Listener, path: Path) -> None:
        """``path``: of the server's socket, beside which are the files that programs find."""
        self._server = server
        self._listener = listener
        self._folder = files_beside(path)
        self._has_devices = (self._folder / "sys").exists()
        self._by_inode: dict[int, _Connection] = {}
        self._next = _FIRST_NUMBER
        self._told: set[int] = set()
        """Processes that were told that nothing can be mapped."""
        self._handlers: dict[int, Callable[[Call, Sequence[int]], None]] = {
            Syscall.OPEN: lambda call, a: self._open(call, _AT_FDCWD, a[0], _int(a[1])),
            Syscall.CREAT: lambda call, a: self._open(call, _AT_FDCWD, a[0], os.O_WRONLY),
            Syscall.OPENAT: lambda call, a: self._open(call, a[0], a[1], _int(a[2])),
            Syscall.OPENAT2: lambda call, a: self._open(call, a[0], a[1], None),
            Syscall.STAT: lambda call, a: self._stat(call, _AT_FDCWD, a[0], a[1], 0),
            Syscall.LSTAT: lambda call, a: self._stat(call, _AT_FDCWD, a[0], a[1], _AT_SYMLINK_NOFOLLOW),
            Syscall.NEWFSTATAT: lambda call, a: self._stat(call, a[0], a[1], a[2], a[3]),
            Syscall.FSTAT: lambda call, a: self._stat(call, a[0], 0, a[1], _AT_EMPTY_PATH),
            Syscall.STATX: lambda call, a: self._stat(call, a[0], a[1], a[4], a[2], extended=True),
            Syscall.ACCESS: lambda call, a: self._access(call, _AT_FDCWD, a[0], a[1]),
            Syscall.FACCESSAT: lambda call, a: self._access(call, a[0], a[1], a[2]),
            Syscall.FACCESSAT2: lambda call, a: self._access(call, a[0], a[1], a[2]),
            Syscall.READLINK: lambda call, a: self._read_link(call, _AT_FDCWD, a[0], a[1], a[2]),
            Syscall.READLINKAT: lambda call, a: self._read_link(call, a[0], a[1], a[2], a[3]),
        }
        """What carries a call out with its arguments; others are calls with a descriptor."""
        self._watch: Watch = server.watch(listener.fd, self._serve)

    def close(self) -> None:
        """Answer no more calls."""
        self._watch.close()
        self._listener.close()

    def _serve(self) -> None:
        call = self._listener.receive()
        if call is not None:
            self._guard(call, partial(self._carry_out, call))

    def _guard(self, call: Call, work: Callable[[], None]) -> bool:
        """Work for a call, which fails if that does; then it is False. Others go on."""
        try:
            work()
        except OSError as error:
            self._listener.answer(call, -(error.errno or errno.EIO))
        except Exception:
            log.exception("a system call failed")
            self._listener.answer(call, -errno.EIO)
        else:
            return True
        return False

    def _carry_out(self, call: Call) -> None:
        handler = self._handlers.get(call.number)
        if handler:
            handler(call, call.arguments)
        else:
            self._use(call)

    # -- the program ------------------------------------------------------------------------------------------------

    def _pid(self, call: Call) -> int:
        """The process of the thread that waits. Raises OSError if it has gone."""
        with open(f"/proc/{call.thread}/status", encoding="ascii", errors="replace") as status:
            found = next((int(line.split()[1]) for line in status if line.startswith("Tgid:")), 0)
        if not found:
            raise RequestError(errno.ESRCH, f"thread {call.thread}: it has ended")
        return found

    def _memory(self, call: Call) -> RemoteMemory:
        """That of the process. Raises OSError if the thread has gone."""
        memory = self._server.memory_of(self._pid(call))
        self._listener.check(call)
        return memory

    def _text(self, call: Call, address: int) -> str:
        """A path. Raises OSError: EFAULT, ENAMETOOLONG."""
        memory = self._memory(call)
        text = b""
        while b"\0" not in text:
            if len(text) >= _MOST_PATH:
                raise RequestError(errno.ENAMETOOLONG, f"a path has at most {_MOST_PATH} bytes")
            at = address + len(text)
            text += memory.read(at, min(256, 4096 - at % 4096))
        return os.fsdecode(text.split(b"\0")[0])

    def _find(self, call: Call, folder: int, address: int) -> _Path | None:
        """A path of ours, by its text, as paths.c has it; None for another one, and for what is no path."""
        try:
            text = self._text(call, address)
        except RequestError:
            return None  # the kernel says what is wrong
        if not text:
            return None
        if not text.startswith("/"):
            number = _int(folder)
            with contextlib.suppress(OSError):
                link = "cwd" if number == _AT_FDCWD else f"fd/{number}"
                text = os.path.join(os.readlink(f"/proc/{call.thread}/{link}"), text)
        path = os.path.normpath("/" + text.lstrip("/"))
        path = path.removeprefix(str(self._folder)) or "/"
        is_device = _begins(path, "/dev/iommu") or _begins(path, "/dev/vfio")
        of_sys = ("/sys/bus/pci", "/sys/kernel/iommu_groups", "/sys/class/vfio-dev")
        is_found = is_device or (self._has_devices and any(_begins(path, each) for each in of_sys))
        real = self._folder / path.lstrip("/")
        if is_found or (self._has_devices and _begins(path, "/sys/devices") and os.path.lexists(real)):
            return _Path(real, path if is_device else "")
        return None

    # -- paths ------------------------------------------------------------------------------------------------------

    def _open(self, call: Call, folder: int, address: int, flags: int | None) -> None:
        found = self._find(call, folder, address)
        if found is None:
            self._listener.go_on(call)
            return
        if flags is None:  # openat2(): the first word of a structure
            flags = _int(int.from_bytes(self._memory(call).read(call.arguments[2], 8), "little"))
        closes = bool(flags & os.O_CLOEXEC)
        if found.node and not found.real.is_dir():
            self._give_file(call, Kind.OPEN, 0, os.fsencode(found.node), closes_on_exec=closes)
            return
        opened = os.open(found.real, flags & ~os.O_CREAT | os.O_CLOEXEC)
        try:
            self._listener.give(call, opened, closes_on_exec=closes)
        finally:
            os.close(opened)

    def _stat(self, call: Call, folder: int, path: int, into: int, flags: int, *, extended: bool = False) -> None:
        found = self._find(call, folder, path)
        opened = self._connection_of(call, _int(folder)) if found is None and flags & _AT_EMPTY_PATH else None
        if opened is not None:
            status = os.fstat(opened.sock.fileno())
            mode, device = (stat.S_IFCHR | 0o666, opened.device) if opened.device else (0o600, 0)
        elif found is not None:
            status = os.stat(found.real, follow_symlinks=not flags & _AT_SYMLINK_NOFOLLOW)
            mode, device = status.st_mode, status.st_rdev
            if found.node and stat.S_ISREG(mode):
                mode, device = stat.S_IFCHR | 0o666, device_number(found.node)
        else:
            self._listener.go_on(call)
            return
        self._memory(call).write(into, _status_x(status, mode, device) if extended else _status(status, mode, device))
        self._listener.answer(call, 0)

    def _access(self, call: Call, folder: int, path: int, how: int) -> None:
        found = self._find(call, folder, path)
        if found is None:
            self._listener.go_on(call)
            return
        if _int(how) & ~7:
            raise RequestError(errno.EINVAL, f"access {_int(how):#x}")
        os.stat(found.real)
        self._listener.answer(call, 0 if os.access(found.real, _int(how)) else -errno.EACCES)

    def _read_link(self, call: Call, folder: int, path: int, into: int, size: int) -> None:
        found = self._find(call, folder, path)
        if found is None:
            self._listener.go_on(call)
            return
        if _int(size) <= 0:
            raise RequestError(errno.EINVAL, f"room for {_int(size)} bytes of a link")
        text = os.fsencode(os.readlink(found.real))[: _int(size)]
        self._memory(call).write(into, text)
        self._listener.answer(call, len(text))

    # -- files ------------------------------------------------------------------------------------------------------

    def _connection_of(self, call: Call, fd: int) -> _Connection | None:
        """The open file that a descriptor stands for, if it is of ours."""
        with contextlib.suppress(OSError, ValueError):
            link = os.readlink(f"/proc/{call.thread}/fd/{fd}")
            return self._by_inode.get(int(link.removeprefix("socket:[").removesuffix("]")))
        return None

    @contextlib.contextmanager
    def _opened(self, kind: Kind, argument: int, behind: bytes) -> Iterator[socket.socket]:
        """The program's end of a new connection, on which that is said first. Raises OSError as that is answered."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        connection = _Connection(self, ours, self._next, os.fstat(theirs.fileno()).st_ino)
        self._next += 1
        self._by_inode[connection.inode] = connection
        connection.at_end = partial(self._ended, connection)
        connection.device = device_number(behind.decode(errors="replace"))
        self._server.adopt(connection)
        with theirs:  # once nobody has this end any more, the file is closed
            self._server.told(connection, Message(kind, 0, argument, behind, os.getpid(), []))
            if connection.code:
                raise RequestError(-connection.code, "refused")
            yield theirs

    def _ended(self, connection: _Connection) -> None:
        """The server has given it up: everybody has closed it, or a call on it has failed for a fault of ours."""
        del self._by_inode[connection.inode]
        waiting = [connection.call, *connection.waiting_calls]
        connection.call = None
        connection.waiting_calls.clear()
        for call in waiting:
            if call:
                self._listener.answer(call, -errno.EIO)

    def _give_file(self, call: Call, kind: Kind, argument: int, behind: bytes, *, closes_on_exec: bool) -> None:
        with self._opened(kind, argument, behind) as file:
            self._listener.give(
                call, file.fileno(), closes_on_exec=closes_on_exec, number=self._free_number(call, FIRST_DESCRIPTOR)
            )

    def _free_number(self, call: Call, first: int) -> int:
        """The lowest that is free from there on. Raises OSError: EMFILE, or EINVAL for a first one that cannot be."""
        used = {int(name) for name in os.listdir(f"/proc/{call.thread}/fd")}
        limits = Path(f"/proc/{call.thread}/limits").read_text(encoding="ascii")
        most = next((line.split()[3] for line in limits.splitlines() if line.startswith("Max open files")), "0")
        end = 1 << 30 if most == "unlimited" else int(most)
        found = next((number for number in range(first, end) if number not in used), None)
        if found is None:
            code = errno.EMFILE if first == FIRST_DESCRIPTOR else errno.EINVAL
            raise RequestError(code, f"descriptors from {first} on: the process may have {end}")
        return found

    def _use(self, call: Call) -> None:
        """A call with a descriptor."""
        a = call.arguments
        fd = _int(a[4] if call.number == Syscall.MMAP else a[0])
        connection = self._connection_of(call, fd)
        if connection is None:
            self._listener.go_on(call)
        elif call.number == Syscall.DUP:
            self._duplicate(call, fd, FIRST_DESCRIPTOR, closes_on_exec=False)
        elif call.number == Syscall.FCNTL:
            if _int(a[1]) not in (_F_DUPFD, _F_DUPFD_CLOEXEC):
                self._listener.go_on(call)
                return
            self._duplicate(call, fd, max(a[2], FIRST_DESCRIPTOR), closes_on_exec=_int(a[1]) == _F_DUPFD_CLOEXEC)
        elif call.number == Syscall.MMAP:
            self._refuse_to_map(call)
        else:
            connection.waiting_calls.append(call)
            if not connection.call:
                self._begin_next(connection)

    def _refuse_to_map(self, call: Call) -> None:
        """A call that goes on maps what its descriptor stands for, and that is a socket. Said once for each process."""
        pid = self._pid(call)
        if pid not in self._told:
            self._told.add(pid)
            place = f"{call.arguments[5]:#x}+{call.arguments[1]:#x}"
            print(
                f"pviommu: process {pid}: mmap() of {place} of a device's file is refused (ENODEV): under --by seccomp "
                "nothing of it can be mapped; pread() and pwrite() reach all of it",
                file=sys.stderr,
            )
        self._listener.answer(call, -errno.ENODEV)

    def _duplicate(self, call: Call, fd: int, first: int, *, closes_on_exec: bool) -> None:
        number = self._free_number(call, first)
        copy = self._taken(call, fd)
        try:
            self._listener.give(call, copy, closes_on_exec=closes_on_exec, number=number)
        finally:
            os.close(copy)

    def _taken(self, call: Call, fd: int) -> int:
        """A descriptor here of what one of the program's stands for. Raises OSError."""
        process = os.pidfd_open(self._pid(call))
        try:
            self._listener.check(call)
            taken: int = _libc.syscall(_PIDFD_GETFD, process, fd, 0)
            if taken < 0:
                raise RequestError(ctypes.get_errno(), f"descriptor {fd}")
            return taken
        finally:
            os.close(process)

    def _begin_next(self, connection: _Connection) -> None:
        """Carry out the next call, unless another one has begun."""
        if connection.call or not connection.waiting_calls:
            return
        call = connection.waiting_calls.popleft()
        if not self._guard(call, partial(self._message, connection, call)):
            connection.call = None
            self._begin_next(connection)

    def _message(self, connection: _Connection, call: Call) -> None:
        """What the library would send."""
        a, memory = call.arguments, self._memory(call)
        kind = _KINDS[call.number]
        request, argument, rest = a[1] & 0xFFFFFFFF, a[2], b""
        if kind is not Kind.REQUEST:
            request = min(a[2], _MOST_MOVED)
            argument = a[1] if kind in (Kind.TAKE, Kind.PUT) else a[3]
        if connection.is_rung:
            self._silence(connection, call)
        if kind is Kind.WRITE:
            rest = memory.read(a[1], request)
        connection.call = call
        self._server.told(connection, Message(kind, request, argument, rest, memory.pid, []))

    def _silence(self, connection: _Connection, call: Call) -> None:
        """The program does not take by itself what tells poll() that there is something to read."""
        with contextlib.suppress(OSError), socket.socket(fileno=self._taken(call, _int(call.arguments[0]))) as theirs:
            theirs.recv(64, socket.MSG_DONTWAIT)
        connection.is_rung = False

    def answered(self, connection: _Connection, answer: int, value: int, behind: bytes) -> None:
        """The server's reply to what :meth:`_message` said."""
        call = connection.call
        if call is None:  # it is being opened
            connection.code = value
            return
        if answer in (Answer.NEED_FD, Answer.NEED_COPY):
            self._server.loop.call(partial(self._describe, connection, call, answer, value))
            return
        connection.call = None
        self._guard(call, partial(self._finish, call, answer, value, behind))
        if connection.waiting_calls:
            self._server.loop.call(partial(self._begin_next, connection))

    def _finish(self, call: Call, answer: int, value: int, behind: bytes) -> None:
        if answer & 0xFF == Answer.OPENED:
            self._claim(call, value, answer >> 8)
            return
        if behind:
            self._memory(call).write(call.arguments[1], behind)
        self._listener.answer(call, value)

    def _describe(self, connection: _Connection, call: Call, answer: int, fd: int) -> None:
        """What a descriptor is that a request names. A process that was killed has none."""
        pid = connection.waiting.pid if connection.waiting else 0
        other = self._connection_of(call, fd)
        if answer == Answer.NEED_FD:
            code = 0 if other else errno.EBADFD
            if not os.path.lexists(f"/proc/{pid}/fd/{fd}"):
                code = errno.EBADF
            said = Message(Kind.IS, code, other.number if other else 0, b"", pid, [])
        else:
            try:
                said = Message(Kind.COPY, 0, 0, b"", pid, [self._taken(call, fd)])
            except OSError as error:
                said = Message(Kind.COPY, error.errno or errno.EBADF, 0, b"", pid, [])
        self._server.told(connection, said)

    def _claim(self, call: Call, number: int, field: int) -> None:
        """A request has opened a file. Its descriptor is the result, or belongs into the structure."""
        if not field:
            self._give_file(call, Kind.CLAIM, number, b"", closes_on_exec=True)
            return
        free = self._free_number(call, FIRST_DESCRIPTOR)
        with self._opened(Kind.CLAIM, number, b"") as file:
            self._memory(call).write(call.arguments[2] + field, struct.pack("<i", free))
            self._listener.add(call, file.fileno(), free)
            self._listener.answer(call, 0)


def _begins(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder + "/")


def _status(status: os.stat_result, mode: int, device: int) -> bytes:
    """As ``struct stat`` of x86-64."""
    return _STAT.pack(
        *(status.st_dev, status.st_ino, status.st_nlink, mode, status.st_uid, status.st_gid, 0, device),
        *(status.st_size, status.st_blksize, status.st_blocks),
        *(part for at in (status.st_atime_ns, status.st_mtime_ns, status.st_ctime_ns) for part in divmod(at, 10**9)),
    )


def _status_x(status: os.stat_result, mode: int, device: int) -> bytes:
    """As ``struct statx``, but for what is not among the basic fields."""
    times = (status.st_atime_ns, 0, status.st_ctime_ns, status.st_mtime_ns)
    numbers = (os.major(device), os.minor(device), os.major(status.st_dev), os.minor(status.st_dev))
    return _STATX.pack(
        *(_STATX_BASIC, status.st_blksize, 0, status.st_nlink, status.st_uid, status.st_gid, mode, 0),
        *(status.st_ino, status.st_size, status.st_blocks, 0),
        *(part for at in times for part in (*divmod(at, 10**9), 0)),
        *numbers,
    )


def _int(value: int) -> int:
    """An argument of a system call as an int of C."""
    return (value & 0xFFFFFFFF ^ 1 << 31) - (1 << 31)
