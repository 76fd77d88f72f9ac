"""Memory of another process, read and written in place."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import select
import struct
from collections.abc import Iterator

from ..interfaces.iommufd import RequestError

__all__ = ["MemoryDeniedError", "RemoteMemory"]

_libc = ctypes.CDLL(None, use_errno=True)
_ADDRESSES = 1 << 63
_READABLE, _WRITEABLE = 1, 2
_QUERY = struct.Struct("<9Q4I2Q")
_PROCMAP_QUERY = 0xC0686611
_COVERING_OR_NEXT = 0x10
"""``struct procmap_query`` of linux/fs.h: its size, flags and the address; then first address, end and rights."""


class _Piece(ctypes.Structure):
    _fields_ = (("address", ctypes.c_void_p), ("length", ctypes.c_size_t))


_kept = ctypes.create_string_buffer(64 << 10)
_kept_view = memoryview(_kept).cast("B")


def _buffer(length: int) -> tuple[ctypes.Array[ctypes.c_char], memoryview]:
    """At least so many bytes, until the next call. One that is made costs as much as a whole request."""
    if length <= len(_kept):
        return _kept, _kept_view
    made = ctypes.create_string_buffer(length)
    return made, memoryview(made).cast("B")


class MemoryDeniedError(RequestError):
    """EFAULT, as the kernel does not let this process at the other's memory, wherever it is."""


class RemoteMemory:
    """A :class:`pviommu.interfaces.iommufd.UserMemory` of a process that this one may trace: a descendant of it.

    When the process has ended, nothing is there any more, even if another one has its number.
    """

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.known: tuple[int, bytes] | None = None
        """an address, and what is there: the process has said so with its request, and waits for the reply"""
        self._end = select.poll()
        self._descriptor = -1
        with contextlib.suppress(OSError):  # it has ended, or there are no descriptors left
            self._descriptor = os.pidfd_open(pid)
            self._end.register(self._descriptor, select.POLLIN)

    def __del__(self) -> None:
        self._close()

    def _close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def is_there(self) -> bool:
        """Whether the process has not ended."""
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

    def _transfer(
        self, call: ctypes._NamedFuncPointer, buffer: ctypes.Array[ctypes.c_char], at: int, size: int
    ) -> None:
        if not size:
            return
        local = _Piece(ctypes.addressof(buffer), size)
        remote = _Piece(at, size)
        done, code = -1, errno.EFAULT
        if not self.is_there():
            code = errno.ESRCH
        elif at < _ADDRESSES:
            done = call(self.pid, ctypes.byref(local), 1, ctypes.byref(remote), 1, 0)
            code = ctypes.get_errno()
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
        for first, end, rights in self._mappings(address, address + length):
            if first > position or not rights & _READABLE or (writeable and not rights & _WRITEABLE):
                return False
            position = end
        return position >= address + length

    def _mappings(self, address: int, end: int) -> Iterator[tuple[int, int, int]]:
        """(first, end, rights) of what is mapped there, in order."""
        if not self.is_there():
            return
        with contextlib.suppress(OSError), _opened(f"/proc/{self.pid}/maps") as maps:
            try:
                yield from _queried(maps, address, end)
            except OSError as error:
                if error.errno != errno.ENOTTY:
                    raise
                yield from _listed(_all_of(maps), address, end)


@contextlib.contextmanager
def _opened(path: str) -> Iterator[int]:
    """A descriptor, at a fifth of what a file object costs."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _all_of(descriptor: int) -> bytes:
    return b"".join(iter(lambda: os.read(descriptor, 1 << 16), b""))


def _queried(maps: int, address: int, end: int) -> Iterator[tuple[int, int, int]]:
    """As Linux 6.11 and later say it of one mapping."""
    while address < end:
        query = bytearray(_QUERY.pack(_QUERY.size, _COVERING_OR_NEXT, address, *[0] * 12))
        fcntl.ioctl(maps, _PROCMAP_QUERY, query)
        _, _, _, first, address, rights, *_ = _QUERY.unpack(query)
        yield first, address, rights


def _listed(text: bytes, address: int, end: int) -> Iterator[tuple[int, int, int]]:
    """As the list of all has it."""
    for line in text.splitlines():
        place, rights = line.split(None, 2)[:2]
        first, behind = (int(part, 16) for part in place.split(b"-"))
        if behind > address and first < end:
            yield first, behind, _READABLE * (rights[:1] == b"r") | _WRITEABLE * (rights[1:2] == b"w")
