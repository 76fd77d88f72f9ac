"""Memory that a function shares with the guest through a BAR that the hypervisor maps."""

from __future__ import annotations

import fcntl
import mmap
import os
from threading import Lock

from ..inputs import InputKind, Inputs, LiveInputs, Source

__all__ = ["SharedMemory", "SharedPages", "fence", "pages_of"]

SharedPages = tuple[tuple[int, bytes], ...]
"""(offset, bytes) of the pages that are not zeros."""
_PAGE = 4096
_ZEROS = bytes(_PAGE)

_fence_lock = Lock()


def fence() -> None:
    """Order all earlier stores before all later loads, which x86 does not do by itself.

    CPython has no fence. Taking and giving back a lock that nobody wants is a locked instruction, which is a
    full barrier there.
    """
    with _fence_lock:
        pass


class SharedMemory:
    """``size`` bytes in a sealed memfd. ``view`` is the memory in bytes, ``words`` in 32-bit words."""

    def __init__(self, name: str, size: int, inputs: Inputs | None = None) -> None:
        inputs = inputs or LiveInputs()
        self._name = name
        self._open = inputs.of(Source(InputKind.OPENED, name), _memory_file)
        self._map_file = inputs.of(Source(InputKind.MAPPED, name), mmap.mmap)
        self._close = inputs.of(Source(InputKind.CLOSED, name), os.close)
        self.size = size
        self._use(*self._create())

    def _create(self) -> tuple[int, mmap.mmap]:
        fd = self._open(self._name, self.size)
        try:
            return fd, self._map_file(fd, self.size, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
        except OSError:
            self._close(fd)
            raise

    def _use(self, fd: int, mapped: mmap.mmap) -> None:
        self.fd = fd
        self._map = mapped
        self.view = memoryview(mapped)
        self.words = self.view.cast("I")

    def clear(self) -> None:
        """All zeros."""
        self.view[:] = bytes(self.size)

    def load(self, state: SharedPages) -> None:
        """Take over ``state``. Raises ValueError, and then changes nothing, for pages that lie outside."""
        for offset, data in state:
            if not 0 <= offset <= offset + len(data) <= self.size:
                raise ValueError(f"{self._name}: {len(data)} bytes at {offset:#x}, and it has {self.size:#x}")
        self.clear()
        for offset, data in state:
            self.view[offset : offset + len(data)] = data

    def renew(self) -> None:
        """Take new memory, all zeros, with a descriptor of another number: whoever keeps the old one shares nothing any
        more.

        Raises :class:`OSError` if the system has none; the old memory stays then.
        """
        fd, mapped, view, words = self.fd, self._map, self.view, self.words
        self._use(*self._create())
        words.release()
        view.release()
        mapped.close()
        self._close(fd)

    def close(self) -> None:
        """Give the memory back."""
        self.words.release()
        self.view.release()
        self._map.close()
        self._close(self.fd)


def pages_of(data: bytes) -> SharedPages:
    """``data``, the contents of shared memory, as it is saved."""
    pages = ((offset, data[offset : offset + _PAGE]) for offset in range(0, len(data), _PAGE))
    return tuple((offset, page) for offset, page in pages if page != _ZEROS)


def _memory_file(name: str, size: int) -> int:
    """The descriptor of a memory file that can neither shrink nor grow."""
    fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.truncate(fd, size)
        # F_SEAL_SEAL: a client gets the descriptor too, and must not seal the memory against the device's writes
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
    except OSError:
        os.close(fd)
        raise
    return fd
