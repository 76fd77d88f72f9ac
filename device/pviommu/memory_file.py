"""Files that hold guest memory.

Only a file that is sealed against shrinking is mapped. Reading past the end of a file that shrank under a
mapping is a SIGBUS, which a Python process does not survive; other files are read and written by system calls,
which is slower.
"""

from __future__ import annotations

import fcntl
import logging
import mmap
import os

__all__ = ["MemoryFile", "is_writable"]

log = logging.getLogger(__name__)


class MemoryFile:
    """A file with guest memory, however many ranges of it are mapped.

    ``key`` is its device and inode number, ``size`` its bytes when it was opened, ``view`` its bytes if they could
    be mapped safely. A file that was not opened for writing is remembered, but is no RAM.
    """

    def __init__(self, fd: int) -> None:
        """Takes ownership of ``fd``, unless it raises :class:`OSError` because that cannot be used as memory."""
        status = os.fstat(fd)
        self.key = (status.st_dev, status.st_ino)
        self.fd = fd
        self.size = status.st_size
        self.users = 0
        self.view: memoryview | None = None
        self.writable = is_writable(fd)
        if self.writable and self.size and _sealed_against_shrinking(fd):
            self._map = mmap.mmap(fd, self.size, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
            self.view = memoryview(self._map)
        else:
            os.pread(fd, 1, 0)  # fails for pipes and the like
            if self.writable:
                log.warning(
                    "guest memory file %d:%d is not sealed against shrinking: it is read and written by system calls, "
                    "which is slower (memory-backend-memfd gives sealed files)",
                    *self.key,
                    extra={"event": "memory-not-sealed"},
                )

    def close(self) -> None:
        """Unmap and close."""
        if self.view is not None:
            self.view.release()
            self._map.close()
            self.view = None
        os.close(self.fd)


def is_writable(fd: int) -> bool:
    """Whether ``fd`` was opened for reading and writing."""
    return fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDWR


def _sealed_against_shrinking(fd: int) -> bool:
    try:
        return bool(fcntl.fcntl(fd, fcntl.F_GET_SEALS) & fcntl.F_SEAL_SHRINK)
    except OSError:  # not a memfd
        return False
