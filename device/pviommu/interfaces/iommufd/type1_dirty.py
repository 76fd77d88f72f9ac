"""Dirty pages of VFIO's type1: no IOMMU tells it which pages DMA has written, so all that is mapped may be.

As drivers/vfio/vfio_iommu_type1.c of Linux 7.3 answers for devices that an IOMMU maps for.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable
from typing import TypeVar

from ...engine import LAST_ADDRESS, PAGE_SIZE, ByteArea
from . import vfio_arguments as arguments
from . import vfio_structures as v
from .request_error import RequestError
from .user_memory import UserMemory

__all__ = ["bitmap_of_range", "bitmap_of_unmap", "tell", "what_to_do"]

T = TypeVar("T")
_WORD = 64
_USER_LIMIT = (1 << 47) - PAGE_SIZE
"""Where no program of x86-64 has memory any more, as access_ok() looks at it."""


def what_to_do(memory: UserMemory, argument: int) -> tuple[int, v.DirtyPagesFlag]:
    """Bytes that the caller has, and the one flag that it gives. Raises OSError: EFAULT, EINVAL."""
    every = v.DirtyPagesFlag.START | v.DirtyPagesFlag.STOP | v.DirtyPagesFlag.GET_BITMAP
    asked = arguments.read(v.DirtyPages, memory, argument, every)
    if asked.flags not in tuple(v.DirtyPagesFlag):
        raise RequestError(errno.EINVAL, f"dirty pages with flags {asked.flags:#x}: must be one of {every:#x}")
    return asked.argsz, v.DirtyPagesFlag(asked.flags)


def bitmap_of_range(memory: UserMemory, argument: int, argsz: int, page_size: int) -> v.DirtyRange:
    """The range and its bitmap that follow a request for dirty pages. Raises OSError: EFAULT, EOVERFLOW, EINVAL."""
    if argsz - v.DirtyPages.SIZE < v.DirtyRange.SIZE:
        raise RequestError(errno.EINVAL, f"dirty pages: argsz {argsz}: has no range")
    found = v.DirtyRange.unpack(memory.read(argument + v.DirtyPages.SIZE, v.DirtyRange.SIZE))
    where = f"dirty pages of {found.iova:#x}+{found.size:#x}"
    if not found.size:
        raise RequestError(errno.EINVAL, f"{where}: size 0")
    if found.iova + found.size - 1 > LAST_ADDRESS:
        raise RequestError(errno.EOVERFLOW, f"{where}: beyond 64-bit addresses")
    _check(where, found.size, found.pgsize, found.bitmap_size, found.data)
    if found.pgsize != page_size or (found.iova | found.size) & page_size - 1:
        raise RequestError(errno.EINVAL, f"{where}, by {found.pgsize:#x}: must be of pages of {page_size:#x} bytes")
    return found


def bitmap_of_unmap(memory: UserMemory, argument: int, request: v.DmaUnmap) -> v.DirtyBitmap:
    """The bitmap that follows an unmap. Raises OSError: EFAULT, EINVAL."""
    where = f"unmap {request.iova:#x}+{request.size:#x} with a bitmap"
    if request.flags & v.DmaUnmapFlag.ALL or request.argsz < v.DmaUnmap.SIZE + v.DirtyBitmap.SIZE:
        raise RequestError(errno.EINVAL, f"{where}: flags {request.flags:#x}, argsz {request.argsz}")
    found = v.DirtyBitmap.unpack(memory.read(argument + v.DmaUnmap.SIZE, v.DirtyBitmap.SIZE))
    _check(where, request.size, found.pgsize, found.size, found.data)
    return found


def _check(where: str, length: int, page_size: int, size: int, data: int) -> None:
    pages = length // (page_size & -page_size) if page_size else 0
    needed = -(-pages // _WORD) * _WORD // 8
    if data + size > _USER_LIMIT or not pages or not needed <= size <= v.MAX_DIRTY_BITMAP_SIZE or not size:
        raise RequestError(
            errno.EINVAL, f"{where}, by {page_size:#x}: bitmap of {size} bytes at {data:#x}: must be at least {needed}"
        )


def tell(memory: UserMemory, data: int, base: int, page_size: int, areas: Iterable[ByteArea[T]]) -> ByteArea[T] | None:
    """Say that areas are dirty, in a bitmap that begins with the page at ``base``, in words of 64 bits. What is in the
    word in whose middle an area begins stays; all else of its words is 0. Returns the area of which that cannot be
    written.
    """
    for area in areas:
        word, bit = divmod((area.first - base) // page_size, _WORD)
        count, at = area.length // page_size, data + word * 8
        try:
            before = int.from_bytes(memory.read(at, 8), "little") if bit else 0
            bits = before | (1 << count) - 1 << bit
            memory.write(at, bits.to_bytes(-(-(count + bit) // _WORD) * 8, "little"))
        except OSError:
            return area
    return None
