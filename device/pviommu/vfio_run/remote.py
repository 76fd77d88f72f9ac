"""Memory of another process, read and written in place."""

from __future__ import annotations

import ctypes
import errno
import os
from pathlib import Path

from ..interfaces.iommufd import RequestError
from ..process_status import status_of

__all__ = ["MemoryDeniedError", "RemoteMemory"]

_libc = ctypes.CDLL(None, use_errno=True)
_ADDRESSES = 1 << 63


class _Piece(ctypes.Structure):
    _fields_ = (("address", ctypes.c_void_p), ("length", ctypes.c_size_t))


class MemoryDeniedError(RequestError):
    """EFAULT, as the kernel does not let this process at the other's memory, wherever it is."""


class RemoteMemory:
    """A :class:`pviommu.interfaces.iommufd.UserMemory` of a process that this one may trace: a descendant of it.

    When the process has ended, nothing is there any more, even if another one has its number.
    """

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.started = _start_of(pid)
        """When, in ticks since the machine's start; 0 if there is no such process."""

    def read(self, address: int, length: int) -> bytes:
        """Raises OSError (EFAULT; :class:`MemoryDeniedError` if this process may not)."""
        buffer = ctypes.create_string_buffer(length)
        self._transfer(_libc.process_vm_readv, buffer, address, length)
        return buffer.raw

    def write(self, address: int, data: bytes) -> None:
        """Raises OSError as :meth:`read` does."""
        self._transfer(_libc.process_vm_writev, ctypes.create_string_buffer(data, len(data)), address, len(data))

    def _transfer(
        self, call: ctypes._NamedFuncPointer, buffer: ctypes.Array[ctypes.c_char], at: int, size: int
    ) -> None:
        if not size:
            return
        local = _Piece(ctypes.addressof(buffer), size)
        remote = _Piece(at, size)
        done, code = -1, errno.EFAULT
        if not self._is_there():
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

    def _is_there(self) -> bool:
        return self.started != 0 and _start_of(self.pid) == self.started

    def holds(self, address: int, length: int, *, writeable: bool) -> bool:
        """Whether all of it is mapped, and may be written if it must."""
        position = address
        for line in self._mappings():
            place, rights = line.split(None, 2)[:2]
            first, end = (int(part, 16) for part in place.split("-"))
            if end <= position:
                continue
            if first > position or rights[0] != "r" or (writeable and rights[1] != "w"):
                return False
            position = end
            if position >= address + length:
                return True
        return False

    def _mappings(self) -> list[str]:
        if not self._is_there():
            return []
        try:
            return Path(f"/proc/{self.pid}/maps").read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError:
            return []


def _start_of(pid: int) -> int:
    status = status_of(pid)
    return status.started if status else 0
