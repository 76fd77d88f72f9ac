"""Memory of another process, read and written in place."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import select
import struct
import weakref
from collections.abc import Iterator
from typing import NamedTuple

from vfio_user.foreign import seals_of

from ..interfaces.iommufd import FileMemory, RequestError
from ..interfaces.iommufd.user_memory import Place
from .boxes import ROOM

__all__ = ["DescriptorMemory", "MemoryDeniedError", "RemoteMemory"]

_libc = ctypes.CDLL(None, use_errno=True)
_ADDRESSES = 1 << 63
_READABLE, _WRITEABLE, _SHARED = 1, 2, 8
_MOST_SHARED = 1024
"""Mappings of a process that are remembered for when it has ended."""
_QUERY = struct.Struct("<3Q80x")
_FOUND = struct.Struct("<24x3Q8x2Q2I24x")
_PROCMAP_QUERY = 0xC0686611
_COVERING_OR_NEXT = 0x10
"""``struct procmap_query`` of linux/fs.h: its size, flags and the address; then first address, end, rights, the offset
in the file, inode, and both parts of the device."""


class _Piece(ctypes.Structure):
    _fields_ = (("address", ctypes.c_void_p), ("length", ctypes.c_size_t))


_local, _remote = _Piece(), _Piece()
_local_at, _remote_at = ctypes.addressof(_local), ctypes.addressof(_remote)
for _call in (_libc.process_vm_readv, _libc.process_vm_writev):
    _call.argtypes = (ctypes.c_int, *(ctypes.c_void_p, ctypes.c_ulong) * 2, ctypes.c_ulong)
    _call.restype = ctypes.c_ssize_t

_kept = ctypes.create_string_buffer(64 << 10)
_kept_view = memoryview(_kept).cast("B")


def _buffer(length: int) -> tuple[ctypes.Array[ctypes.c_char], memoryview]:
    """At least so many bytes, until the next call. One that is made costs as much as a whole request."""
    if length <= len(_kept):
        return _kept, _kept_view
    made = ctypes.create_string_buffer(length)
    return made, memoryview(made).cast("B")


class _Mapping(NamedTuple):
    """What a process has mapped."""

    first: int
    end: int
    rights: int
    offset: int
    """Of what is mapped, in the file."""
    device: int
    inode: int


class MemoryDeniedError(RequestError):
    """EFAULT, as the kernel does not let this process at the other's memory, wherever it is."""


_known: weakref.WeakSet[RemoteMemory] = weakref.WeakSet()


class RemoteMemory:
    """A :class:`pviommu.interfaces.iommufd.UserMemory` of a process that this one may trace: a descendant of it.

    When the process has ended, what is there still is what it shared with another one that is known here, even if
    another one has its number.
    """

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.known: tuple[int, bytes] | None = None
        """an address, and what is there: the process has said so with its request, and waits for the reply"""
        self.asks = False
        """whether it is there for sure, as it waits for an answer"""
        self.keeps_back = False
        """whether what is to be written back at the known address goes with the answer, which the process writes"""
        self.back = b""
        """that"""
        self.token = 0
        """what it names itself with where no credentials come; 0: nothing yet"""
        self._maps = -1
        """its open /proc/PID/maps"""
        self._end = select.poll()
        self._descriptor = -1
        self._shared: set[_Mapping] = set()
        """What others may have of what was mapped for DMA."""
        _known.add(self)
        with contextlib.suppress(OSError):  # it has ended, or there are no descriptors left
            self._descriptor = os.pidfd_open(pid)
            self._end.register(self._descriptor, select.POLLIN)

    def __del__(self) -> None:
        self._close()

    def _close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
        self._forget_maps()

    def _forget_maps(self) -> None:
        if self._maps >= 0:
            os.close(self._maps)
            self._maps = -1

    def is_there(self) -> bool:
        """Whether the process has not ended."""
        if self.asks:
            return True
        if self._descriptor >= 0 and self._end.poll(0):
            self._close()
        return self._descriptor >= 0

    def read(self, address: int, length: int) -> bytes:
        """Raises OSError (EFAULT; :class:`MemoryDeniedError` if this process may not)."""
        if self.known is not None:
            start, data = self.known
            if start <= address and address + length <= start + len(data):
                return data[address - start : address - start + length]
        buffer, view = _buffer(length)
        self._transfer(_libc.process_vm_readv, buffer, address, length)
        return bytes(view[:length])

    def write(self, address: int, data: bytes) -> None:
        """Raises OSError as :meth:`read` does."""
        self.known = None
        buffer, view = _buffer(len(data))
        view[: len(data)] = data
        self._transfer(_libc.process_vm_writev, buffer, address, len(data))

    def write_back(self, address: int, data: bytes) -> None:
        """See :func:`pviommu.interfaces.iommufd.user_memory.write_back`."""
        if self.keeps_back and self.known is not None and self.known[0] == address and len(data) <= ROOM:
            self.known, self.back = None, data
        else:
            self.write(address, data)

    def _transfer(
        self, call: ctypes._NamedFuncPointer, buffer: ctypes.Array[ctypes.c_char], at: int, size: int
    ) -> None:
        if not size:
            return
        done, code = -1, errno.EFAULT
        if not self.is_there():
            heir = self._heir(at, size, _READABLE if call is _libc.process_vm_readv else _WRITEABLE)
            if heir:
                heir[0]._transfer(call, buffer, heir[1], size)
                return
            code = errno.ESRCH
        elif at < _ADDRESSES:
            _local.address, _local.length = ctypes.addressof(buffer), size
            _remote.address, _remote.length = at, size
            done = call(self.pid, _local_at, 1, _remote_at, 1, 0)
            code = ctypes.get_errno() if done < 0 else 0
        if done == size:
            return
        if done < 0 and code == errno.EPERM:
            raise MemoryDeniedError(
                errno.EFAULT,
                f"memory of process {self.pid} is denied: with kernel.yama.ptrace_scope=1 it must be a descendant of "
                "this process, with 2 or 3 only root, or nobody, may; it must be of the same user in any case",
            )
        why = os.strerror(code) if done < 0 else f"only {done} bytes"
        raise RequestError(errno.EFAULT, f"memory of process {self.pid} at {at:#x}+{size:#x}: {why}")

    def holds(self, address: int, length: int, *, writeable: bool) -> bool:
        """Whether all of it is mapped, and may be written if it must."""
        position = address
        needed = _READABLE | _WRITEABLE if writeable else _READABLE
        for mapping in self._mappings(address, address + length):
            if mapping.rights & _SHARED and len(self._shared) < _MOST_SHARED:
                self._shared.add(mapping)
            if mapping.first > position or mapping.rights & needed != needed:
                return False
            position = mapping.end
        return position >= address + length

    def located(self, address: int, length: int) -> list[Place]:
        """Where it really is: what several processes share is a part of a file. Raises OSError (EFAULT)."""
        found: list[Place] = []
        position = address
        for first, end, rights, offset, device, inode in self._mappings(address, address + length):
            if first > position:
                break
            size = min(end, address + length) - position
            if rights & _SHARED:
                found.append(Place((device, inode), offset + position - first, size))
            else:
                found.append(Place(self, position, size))
            position += size
        if position < address + length:
            raise RequestError(errno.EFAULT, f"memory of process {self.pid} at {address:#x}+{length:#x}: not there")
        return found

    def _heir(self, address: int, length: int, right: int) -> tuple[RemoteMemory, int] | None:
        """A process that has shared memory of this one, which has ended, and where."""
        for mapping in self._shared:
            if not mapping.first <= address < address + length <= mapping.end:
                continue
            offset = mapping.offset + address - mapping.first
            for other in list(_known):
                for found in other._mappings(0, _ADDRESSES) if other is not self else ():
                    start = offset - found.offset + found.first
                    is_same = (found.device, found.inode) == (mapping.device, mapping.inode)
                    if is_same and found.rights & right and found.first <= start <= found.end - length:
                        return other, start
        return None

    def _mappings(self, address: int, end: int) -> Iterator[_Mapping]:
        """What is mapped there, in order."""
        if not self.is_there():
            return
        try:
            if self._maps < 0:
                self._maps = os.open(f"/proc/{self.pid}/maps", os.O_RDONLY | os.O_CLOEXEC)
            yield from _queried(self._maps, address, end)
        except OSError as error:
            with contextlib.suppress(OSError):
                if error.errno == errno.ESRCH:  # another program has begun in this process, or it has ended
                    self._forget_maps()
                    self._maps = os.open(f"/proc/{self.pid}/maps", os.O_RDONLY | os.O_CLOEXEC)
                    yield from _queried(self._maps, address, end)
                elif error.errno == errno.ENOTTY:
                    yield from _listed(_all_of(self._maps), address, end)


def _all_of(descriptor: int) -> bytes:
    os.lseek(descriptor, 0, os.SEEK_SET)
    return b"".join(iter(lambda: os.read(descriptor, 1 << 16), b""))


class DescriptorMemory(FileMemory):
    """A file in memory of a program, open here as well."""

    def __init__(self, fd: int) -> None:
        """Takes over the descriptor. Raises OSError."""
        super().__init__(bytearray())
        self._fd = fd
        weakref.finalize(self, os.close, fd)
        status = os.fstat(fd)
        self._of = status.st_dev, status.st_ino
        self._is_memory = seals_of(fd) is not None
        self._is_writeable = fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDWR

    def read(self, address: int, length: int) -> bytes:
        """See the base class."""
        if not self._is_memory:
            raise RequestError(errno.EINVAL, "file of a program: it is not in memory")
        data = os.pread(self._fd, length, address)
        if len(data) != length:
            raise RequestError(errno.EFAULT, f"file in memory: {address:#x}+{length:#x} is beyond its end")
        return data

    def write(self, address: int, data: bytes) -> None:
        """See the base class."""
        if not self.holds(address, len(data), writeable=True):
            raise RequestError(errno.EFAULT, f"file in memory: {address:#x}+{len(data):#x} is beyond its end")
        os.pwrite(self._fd, data, address)

    def holds(self, address: int, length: int, *, writeable: bool) -> bool:
        """See the base class. Only of files that can be sealed, as those are in memory."""
        fits = address + length <= os.fstat(self._fd).st_size
        return self._is_memory and fits and (self._is_writeable or not writeable)

    def located(self, address: int, length: int) -> list[Place]:
        """See RemoteMemory."""
        return [Place(self._of, address, length)]


def _queried(maps: int, address: int, end: int) -> Iterator[_Mapping]:
    """As Linux 6.11 and later say it of one mapping."""
    while address < end:
        found = fcntl.ioctl(maps, _PROCMAP_QUERY, _QUERY.pack(_QUERY.size, _COVERING_OR_NEXT, address))
        first, address, rights, offset, inode, major, minor = _FOUND.unpack(found)
        yield _Mapping(first, address, rights, offset, os.makedev(major, minor), inode)


def _listed(text: bytes, address: int, end: int) -> Iterator[_Mapping]:
    """As the list of all has it."""
    for line in text.splitlines():
        place, rights, offset, device, inode = line.split(None, 5)[:5]
        first, behind = (int(part, 16) for part in place.split(b"-"))
        if behind > address and first < end:
            flags = _READABLE * (rights[:1] == b"r") | _WRITEABLE * (rights[1:2] == b"w")
            flags |= _SHARED * (rights[3:4] == b"s")
            number = os.makedev(*(int(part, 16) for part in device.split(b":")))
            yield _Mapping(first, behind, flags, int(offset, 16), number, int(inode))
