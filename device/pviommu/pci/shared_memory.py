"""Memory that a function shares with the guest through a BAR that the hypervisor maps."""

from __future__ import annotations

import fcntl
import mmap
import os
from threading import Lock

__all__ = ["SharedMemory", "fence"]

_fence_lock = Lock()


def fence() -> None:
    """Order all earlier stores before all later loads, which x86 does not do by itself.

    CPython has no fence. Taking and giving back a lock that nobody wants is a locked instruction, which is a
    full barrier there.
    """
    with _fence_lock:
        pass


class SharedMemory:
    """``size`` bytes in a sealed memfd. ``view`` are its bytes, ``words`` its 32-bit words."""

    def __init__(self, name: str, size: int) -> None:
        self._name = name
        self.size = size
        self._use(*self._create())

    def _create(self) -> tuple[int, mmap.mmap]:
        fd = os.memfd_create(self._name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.truncate(fd, self.size)
            # F_SEAL_SEAL: a client gets the descriptor too, and must not seal the memory against the device's writes
            seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
            return fd, mmap.mmap(fd, self.size, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
        except OSError:
            os.close(fd)
            raise

    def _use(self, fd: int, mapped: mmap.mmap) -> None:
        self.fd = fd
        self._map = mapped
        self.view = memoryview(mapped)
        self.words = self.view.cast("I")

    def clear(self) -> None:
        """All zeros."""
        self.view[:] = bytes(self.size)

    def renew(self) -> None:
        """Take other memory, all zeros, with a descriptor of another number: who keeps the old one shares nothing.

        Raises :class:`OSError` if there is none to be had; the old one stays then.
        """
        fd, mapped, view, words = self.fd, self._map, self.view, self.words
        self._use(*self._create())
        words.release()
        view.release()
        mapped.close()
        os.close(fd)

    def close(self) -> None:
        """Give the memory back."""
        self.words.release()
        self.view.release()
        self._map.close()
        os.close(self.fd)
