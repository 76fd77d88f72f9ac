"""Guest memory as QEMU's memory-backend-memfd makes it."""

from __future__ import annotations

import fcntl
import mmap
import os
from types import TracebackType
from typing import Self

__all__ = ["GuestRam", "memory_file"]

NAME = "guest-ram"
"""Name of the files, as ``/proc/PID/maps`` shows it."""


def memory_file(size: int, name: str = NAME) -> int:
    """The descriptor of a file of ``size`` bytes that cannot shrink. The caller closes it."""
    fd = os.memfd_create(name, os.MFD_ALLOW_SEALING | os.MFD_CLOEXEC)
    os.truncate(fd, size)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
    return fd


class GuestRam:
    """A file, and its beginning as bytes. A context manager; closes both."""

    def __init__(self, size: int, mapped: int | None = None) -> None:
        """``size``: bytes of the file; ``mapped``: how many of them :attr:`bytes` has, if not all."""
        self.size = size
        self.fd = memory_file(size)
        self.bytes = mmap.mmap(self.fd, size if mapped is None else mapped)
        self.bytes[0] = 1  # as after firmware: all zeros would look like a file that has been copied, and is not used

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close both; whoever has a duplicate of the descriptor keeps the memory."""
        self.bytes.close()
        os.close(self.fd)
