"""Files of guest memory: each is open once and mapped once, however many functions of a machine share it.

Reading past the end of a file that shrank under a mapping is a SIGBUS, which a process does not survive by itself. So
only a file that is sealed against shrinking is mapped and used as memory. Others are read and written by system calls,
which is slower. Files in huge pages cannot be written so: they are mapped, and copied by a :class:`Guard`.
"""

from __future__ import annotations

import logging
import mmap
import os
from typing import Protocol

from vfio_user.memory_kind import DescriptorKind, NotMemoryError, kind_of

from ..inputs import InputKind, Inputs, LiveInputs, Source

__all__ = ["MOST_FILES", "PER_FILE", "FileArea", "Guard", "MemoryFile", "MemoryFiles"]

log = logging.getLogger(__name__)

MOST_FILES = 1024
"""Most files of guest memory per client."""
PER_FILE = 2
"""Descriptors per file: its mapping keeps a duplicate."""
MAX_AREAS = 8
"""Most mappings of one file: there is one more each time that it has grown."""
_MAP_NORESERVE = 0x4000
_MAX_TOLD = 1024
_NAME = "guest memory"


class Guard(Protocol):
    """Copies, and exchanges, that survive a SIGBUS."""

    def read(self, address: int, length: int) -> tuple[bytes, int]:
        """``length`` bytes from ``address`` of this process on, and how many of them could be read."""

    def write(self, address: int, data: bytes | bytearray | memoryview) -> int:
        """How many bytes of ``data`` come before the first that could not be written."""

    def exchange(self, address: int, before: int, after: int) -> int | None:
        """Replace the 64 bits at ``address`` by ``after`` if they are ``before``, as one atomic step: those that were
        there, None if there are none.
        """


class FileArea:
    """The first ``size`` bytes of a file, mapped. It stays where it is until it is closed."""

    def __init__(self, fd: int, size: int, guard: Guard | None, inputs: Inputs) -> None:
        """``guard``: makes the copies, if the memory may disappear. Raises :class:`OSError`."""
        self.size = size
        self.guard = guard
        flags = mmap.MAP_SHARED | (_MAP_NORESERVE if guard else 0)
        try:
            map_file = inputs.of(Source(InputKind.MAPPED, _NAME), mmap.mmap)
            self._map = map_file(fd, size, flags, mmap.PROT_READ | mmap.PROT_WRITE)
        except ValueError as error:  # it has just shrunk
            raise OSError(str(error)) from error
        self.view = memoryview(self._map)

    @property
    def address(self) -> int:
        """Its address in this process."""
        from ctypes import addressof, c_char  # only what copies in C needs addresses

        return addressof(c_char.from_buffer(self._map))

    def close(self) -> None:
        """Unmap it."""
        self.view.release()
        self._map.close()


class MemoryFile:
    """A file with guest memory. ``users`` counts the ranges in it, of all functions."""

    def __init__(self, fd: int, kind: DescriptorKind, inputs: Inputs) -> None:
        """Takes ownership of ``fd``."""
        self._inputs = inputs
        self.fd = fd
        self.kind = kind
        self.size = kind.size
        self.users = 0
        self._areas: list[FileArea] = []

    @property
    def key(self) -> tuple[int, int]:
        """Device and inode number."""
        return self.kind.key

    @property
    def descriptors(self) -> int:
        """Its own descriptor, and that of each mapping."""
        return 1 + len(self._areas)

    @property
    def has_outgrown(self) -> bool:
        """Whether it is mapped, but has grown since, so that :meth:`area` maps it again."""
        return bool(self._areas) and self._areas[-1].size < self.size

    def area(self, guard: Guard | None) -> FileArea | None:
        """All of it as memory; None if it is to be read and written by system calls. Raises :class:`OSError`, and
        :class:`NotMemoryError` if neither can be done.
        """
        if self._areas and self._areas[-1].size >= self.size:
            return self._areas[-1]
        if self.kind.is_huge:
            if self.kind.may_shrink and guard is None:
                raise NotMemoryError(
                    "it is in huge pages and not sealed against shrinking: only the native core can use it (pviommu "
                    "build-core), or give QEMU memory-backend-memfd with hugetlb=on, which seals it"
                )
        elif self.kind.may_shrink or self.kind.is_device:
            return None
        else:
            guard = None
        if len(self._areas) == MAX_AREAS:
            raise NotMemoryError(f"it has grown {MAX_AREAS} times while it was in use")
        self._areas.append(FileArea(self.fd, self.size, guard, self._inputs))
        return self._areas[-1]

    def close(self) -> None:
        """Unmap and close."""
        for area in self._areas:
            area.close()
        self._areas.clear()
        self._inputs.of(Source(InputKind.CLOSED, _NAME), os.close)(self.fd)


class MemoryFiles:
    """The files of one machine's memory."""

    def __init__(self, inputs: Inputs | None = None) -> None:
        self._inputs: Inputs = inputs or LiveInputs()
        self._close = self._inputs.of(Source(InputKind.CLOSED, _NAME), os.close)
        self.guard: Guard | None = None
        """for files whose memory may disappear; without one such files are refused"""
        self._files: dict[tuple[tuple[int, int], bool], MemoryFile] = {}
        """by key, and whether writable"""
        self._told: set[tuple[int, int]] = set()

    def __len__(self) -> int:
        return len(self._files)

    def open(self, fd: int, to_write: bool, kind: DescriptorKind | None = None) -> MemoryFile:
        """The file of ``fd``. Takes ownership of ``fd``, also when this raises. :meth:`release` it, if it gets no
        users. ``kind``: the result of :func:`kind_of`, if it is known.

        Raises :class:`NotMemoryError` for what cannot be memory to read from and, if ``to_write``, to write to, and
        :class:`OSError`.
        """
        try:
            kind = kind or self._inputs.of(Source(InputKind.DESCRIPTOR), kind_of)(fd, to_write)
        except BaseException:
            self._close(fd)
            raise
        known = self._files.get((kind.key, kind.writable))
        if known is None:
            known = self._files[kind.key, kind.writable] = MemoryFile(fd, kind, self._inputs)
        else:
            self._close(fd)
            known.size = kind.size  # it may have grown
        return known

    def release(self, file: MemoryFile, ranges: int = 0) -> None:
        """So many ranges of ``file`` were removed; it is closed with the last one."""
        file.users -= ranges
        if not file.users:
            del self._files[file.key, file.kind.writable]
            file.close()

    def area(self, file: MemoryFile) -> FileArea | None:
        """As :meth:`MemoryFile.area`; logs once per file that it is slow."""
        area = file.area(self.guard)
        if area is None and file.key not in self._told:
            if len(self._told) >= _MAX_TOLD:
                self._told.clear()
            self._told.add(file.key)
            why = "is a block device" if file.kind.is_device else "is not sealed against shrinking"
            log.warning(
                "guest memory file %d:%d %s: it is read and written by system calls, which is slower "
                "(memory-backend-memfd gives sealed files)",
                *(*file.key, why),
                extra={"event": "memory-not-sealed"},
            )
        return area

    def disconnected(self) -> None:
        """A client has disconnected. After the last one nothing is kept for the next."""
        if not self._files:
            self._told.clear()
