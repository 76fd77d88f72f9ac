"""How VFIO reads structures, and the chain of capabilities that it reports IOVA ranges by."""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from typing import TypeVar

from wire_layout import U32, Record

from ...engine import PAGE_SIZE, Span
from . import vfio_structures as v
from .request_error import RequestError
from .user_memory import UserMemory, read_structure

__all__ = [
    "Capability",
    "check_size",
    "dma_avail",
    "iova_ranges",
    "laid_out",
    "migration",
    "page_sizes",
    "read",
    "read_growing",
    "with_chain",
]

R = TypeVar("R", bound=Record)
Capability = tuple[v.CapabilityId | v.RegionCapabilityId, bytes]
"""What it is, and what follows its header."""


def read(record: type[R], memory: UserMemory, argument: int, flags: int, size: int | None = None) -> R:
    """The structure at an address of the caller, who must have ``size`` bytes of it, all if None; the rest is 0.

    Raises OSError: EFAULT, and EINVAL for a smaller one and for flags that are not among ``flags``.
    """
    size = record.SIZE if size is None else size
    found = record.unpack(memory.read(argument, size).ljust(record.SIZE, b"\0"))
    argsz, asked = found.argsz, getattr(found, "flags", 0)  # type: ignore[attr-defined]
    check_size(record, argsz, size)
    if asked & ~int(flags):  # ~ of a flag knows only those that have names
        raise RequestError(errno.EINVAL, f"{record.__name__}: flags {asked:#x}: known are {flags:#x}")
    return found


def read_growing(record: type[R], memory: UserMemory, argument: int, minimum: int) -> R:
    """As iommufd reads structures: what the caller leaves out of one that has ``minimum`` bytes is 0, and what it has
    more must be 0. Raises OSError: EFAULT, EINVAL, E2BIG.
    """
    argsz = int.from_bytes(memory.read(argument, U32.size), "little")
    check_size(record, argsz, minimum)
    return record.unpack(read_structure(memory, argument, argsz, record.SIZE))


def check_size(record: type[Record], argsz: int, size: int | None = None) -> None:
    """Raises OSError (EINVAL) if a caller has less than ``size`` bytes of a structure, all if None."""
    size = record.SIZE if size is None else size
    if argsz < size:
        raise RequestError(errno.EINVAL, f"{record.__name__}: argsz {argsz}: at least {size} bytes are needed")


def page_sizes(sizes: int, alignment: int) -> int:
    """What type1 says of page sizes that all page tables have, ~0 if there is none: none is below that of the CPU."""
    if sizes & PAGE_SIZE - 1:
        sizes = sizes & ~(PAGE_SIZE - 1) | PAGE_SIZE
    return max(sizes, alignment)


def iova_ranges(ranges: Sequence[Span]) -> Capability:
    """What can be mapped. The ends are inclusive."""
    words = b"".join(word.to_bytes(8, "little") for span in ranges for word in span)
    return v.CapabilityId.IOVA_RANGE, v.IovaRangeCapability(len(ranges), 0).pack() + words


def migration(page_size: int) -> Capability:
    """Dirty bitmaps are of pages of this size."""
    return v.CapabilityId.MIGRATION, v.MigrationCapability(0, 0, page_size, v.MAX_DIRTY_BITMAP_SIZE).pack()


def dma_avail(mappings: int) -> Capability:
    """So many mappings there can still be."""
    return v.CapabilityId.DMA_AVAIL, v.DmaAvailCapability(mappings).pack()


def laid_out(capabilities: Sequence[Capability], offset: int) -> tuple[list[tuple[int, bytes]], int]:
    """(offset, bytes) of each capability of a chain that begins ``offset`` bytes into the structure, and where it ends.

    Each begins at a multiple of 8 and points to the next one.
    """
    found = []
    for number, (kind, data) in enumerate(capabilities):
        following = -(-(offset + v.CapabilityHeader.SIZE + len(data)) // 8) * 8
        is_last = number == len(capabilities) - 1
        found.append((offset, v.CapabilityHeader(int(kind), 1, 0 if is_last else following).pack() + data))
        offset = following
    return found, offset


def with_chain(
    argsz: int, capabilities: Sequence[Capability], offset: int, fixed: Callable[[int, int], Record]
) -> bytes:
    """What is written back of a structure with a chain behind it, to a caller that has ``argsz`` bytes.

    ``fixed`` makes the structure, which is ``offset`` bytes long, from the bytes that are needed, or that the caller
    has if those are more, and the offset of the chain. If not all of it fits, the chain is left out, its offset is 0.
    """
    parts, needed = laid_out(capabilities, offset)
    if argsz < needed:
        return fixed(needed, 0).pack()[:argsz]
    chain = bytearray(needed - offset)
    for at, part in parts:
        chain[at - offset : at - offset + len(part)] = part
    return fixed(argsz, offset).pack() + bytes(chain)
