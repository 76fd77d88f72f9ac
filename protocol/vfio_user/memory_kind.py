"""What a client's descriptor is, and whether it can be guest memory: found out without asking its file system.

A file system in user space answers when it likes, and the server would wait for it. So memory files are recognised by
their seals, which only files in memory have, and others by the file system that they are mounted from.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import stat
import struct
from typing import NamedTuple

from .errors import RequestError
from .foreign import name_of, seals_of

__all__ = ["DescriptorKind", "NotMemoryError", "check_memory", "kind_of"]

_DISK_FILE_SYSTEMS = frozenset(
    {"bcachefs", "btrfs", "devtmpfs", "ext2", "ext3", "ext4", "f2fs", "overlay", "ramfs", "tmpfs", "xfs", "zfs"}
)
_BLKGETSIZE64 = 0x80081272
_NO_WRITES = fcntl.F_SEAL_WRITE | 0x10  # F_SEAL_FUTURE_WRITE, which the module does not have


class NotMemoryError(Exception):
    """A descriptor that cannot be guest memory; the text says what it is."""


class DescriptorKind(NamedTuple):
    """A descriptor that can be guest memory."""

    key: tuple[int, int]
    """device and inode number"""
    size: int
    """bytes at present"""
    writable: bool
    """opened for reading and writing, and not sealed against writing"""
    may_shrink: bool
    is_huge: bool
    """in huge pages: cannot be written by system calls"""
    is_device: bool


def kind_of(fd: int, to_write: bool) -> DescriptorKind:
    """What ``fd`` is, as guest memory that is read and, if ``to_write``, written.

    Raises :class:`NotMemoryError` if it cannot be guest memory, and :class:`OSError`.
    """
    flags = fcntl.fcntl(fd, fcntl.F_GETFL)
    if flags & os.O_PATH:
        raise NotMemoryError("it was opened with O_PATH")
    seals = seals_of(fd)
    if seals is None:
        _check_file_system(fd)
    status = os.fstat(fd)
    if not (stat.S_ISREG(status.st_mode) or stat.S_ISBLK(status.st_mode)):
        raise NotMemoryError(f"{name_of(fd)} is neither a file nor a block device")
    _check_flags(flags, seals or 0, to_write)
    writable = flags & os.O_ACCMODE == os.O_RDWR and not (seals or 0) & _NO_WRITES
    is_device = stat.S_ISBLK(status.st_mode)
    size = _device_size(fd) if is_device else status.st_size
    is_huge = seals is not None and os.fstatvfs(fd).f_bsize > mmap.PAGESIZE  # of tmpfs it is a page
    may_shrink = not (seals or 0) & fcntl.F_SEAL_SHRINK
    return DescriptorKind((status.st_dev, status.st_ino), size, writable, may_shrink, is_huge, is_device)


def check_memory(fd: int, to_write: bool, what: str) -> DescriptorKind:
    """As :func:`kind_of`, for the request that ``what`` names: raises :class:`RequestError`, with EINVAL if it cannot
    be memory, or with the errno for which it could not be examined.
    """
    try:
        return kind_of(fd, to_write)
    except NotMemoryError as error:
        raise RequestError(errno.EINVAL, f"{what}: the file descriptor is not memory: {error}") from error
    except OSError as error:
        text = f"{what}: the file descriptor cannot be examined: {error.strerror}"
        raise RequestError(error.errno or errno.EINVAL, text) from error


def _check_flags(flags: int, seals: int, to_write: bool) -> None:
    mode = flags & os.O_ACCMODE
    if mode == os.O_WRONLY:
        raise NotMemoryError("it was opened for writing only")
    if not to_write:
        return
    if mode != os.O_RDWR:
        raise NotMemoryError("it was opened for reading only, and the range is one to write to")
    if flags & os.O_APPEND:
        raise NotMemoryError("it was opened for appending (O_APPEND), so every write would go to its end")
    if seals & _NO_WRITES:
        raise NotMemoryError("it is sealed against writing, and the range is one to write to")


def _check_file_system(fd: int) -> None:
    name = name_of(fd)
    if not name.startswith("/"):
        raise NotMemoryError(f"it is {name}")
    kind = _file_system(_mount_of(fd))
    if kind is None:
        raise NotMemoryError(f"{name} is on a file system that is not mounted here")
    if kind not in _DISK_FILE_SYSTEMS:
        raise NotMemoryError(f"{name} is on a file system of type {kind}, which holds no memory")


def _mount_of(fd: int) -> bytes:
    with open(f"/proc/self/fdinfo/{fd}", "rb") as lines:
        return next((line.split()[1] for line in lines if line.startswith(b"mnt_id:")), b"")


def _file_system(mount: bytes) -> str | None:
    """The type of what is mounted under this number; None if this process does not see it."""
    with open("/proc/self/mountinfo", "rb") as lines:
        for line in lines:
            if line.split(b" ", 1)[0] == mount:
                return line.partition(b" - ")[2].split(b" ", 1)[0].decode("ascii", "replace")
    return None


def _device_size(fd: int) -> int:
    size: int = struct.unpack("Q", fcntl.ioctl(fd, _BLKGETSIZE64, bytes(8)))[0]
    return size
