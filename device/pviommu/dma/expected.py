"""Which guest memory a saved state was made with: memory is the client's, who brings it anew."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from .mappings import Mapping

__all__ = ["MemoryRange", "check_memory", "memory_ranges"]


class MemoryRange(NamedTuple):
    """Guest memory that can be reached. Bytes."""

    address: int
    size: int
    readable: bool
    writable: bool

    def overlaps(self, other: MemoryRange) -> bool:
        """Whether both have an address."""
        return self.address < other.address + other.size and other.address < self.address + self.size

    def __str__(self) -> str:
        access = " and ".join(("readable",) * self.readable + ("writable",) * self.writable)
        return f"{self.size:#x} bytes at {self.address:#x}, {access or 'neither readable nor writable'}"


def memory_ranges(mappings: Iterable[Mapping]) -> tuple[MemoryRange, ...]:
    """What ``mappings``, which are in order, make reachable: however a client has divided it."""
    found: list[MemoryRange] = []
    for mapping in mappings:
        if mapping.file is None:
            continue
        new = MemoryRange(mapping.address, mapping.size, mapping.readable, mapping.writable)
        last = found[-1] if found else None
        if last and last.address + last.size == new.address and last[2:] == new[2:]:
            found[-1] = last._replace(size=last.size + new.size)
        else:
            found.append(new)
    return tuple(found)


def check_memory(expected: Iterable[MemoryRange], mappings: Iterable[Mapping]) -> None:
    """Raise ValueError unless ``mappings`` make reachable what is ``expected``, and nothing else."""
    wanted, there = set(expected), set(memory_ranges(mappings))
    for missing in sorted(wanted - there):
        instead = "; ".join(str(each) for each in sorted(there) if each.overlaps(missing)) or "nothing"
        raise ValueError(f"guest memory of {missing} is expected, and there is {instead}")
    for more in sorted(there - wanted):
        raise ValueError(f"guest memory of {more} is there, and none is expected")
