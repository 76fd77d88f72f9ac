"""Where two players of histories differ, and which of that is known: the table of docs/vfio-user-space.md."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from pviommu.interfaces.iommufd import vfio_structures as v
from pviommu.interfaces.iommufd.vfio_structures import VfioRequest
from pviommu_abi.dma_test import Descriptor, DescriptorStatus

from .generator import BITMAP

__all__ = ["KNOWN", "Difference", "compare", "known"]

_UPDATE_VADDR = 10


@dataclass(frozen=True)
class Difference:
    """A line of a history whose answers are not the same."""

    history: str
    number: int
    """of the line, from that of the history's name on"""
    line: str
    model: str
    kernel: str

    def __str__(self) -> str:
        return f"{self.history}, line {self.number}: {self.line}\n  model:  {self.model}\n  kernel: {self.kernel}"

    @property
    def results(self) -> tuple[str, str]:
        """What both returned, the model first."""
        return self.model.split()[0], self.kernel.split()[0]

    def asks(self, request: int) -> bool:
        """Whether it is this request."""
        words = self.line.split()
        return words[0] in ("call", "value") and int(words[2], 16) == request

    def field(self, offset: int) -> int:
        """Four bytes of the structure, as both have them afterwards."""
        data = bytes.fromhex(self.kernel.split()[1])
        return int.from_bytes(data[offset : offset + 4], "little")


def compare(lines: Sequence[str], model: Sequence[str], kernel: Sequence[str]) -> Iterator[Difference]:
    """The differences of each history, up to the first one that others may follow from: that is not known, or in which
    one side has done something that the other one has refused.
    """
    name, begin, is_over = "", 0, True
    for number, (line, ours, theirs) in enumerate(zip(lines, model, kernel, strict=True)):
        if line.startswith("history "):
            name, begin, is_over = line.split()[1], number, False
        if ours != theirs and not is_over:
            found = Difference(name, number - begin, line, ours, theirs)
            refused = [result.startswith("E") for result in found.results]
            is_over = known(found) is None or refused[0] != refused[1]
            yield found


def _has_vaddr(found: Difference) -> bool:
    requests = (VfioRequest.IOMMU_MAP_DMA, VfioRequest.IOMMU_UNMAP_DMA)
    return any(map(found.asks, requests)) and bool(found.field(4) & v.DmaUnmapFlag.VADDR)


def _is_foreign(found: Difference) -> bool:
    words = found.line.split()
    return words[0] in ("call", "value") and int(words[2], 16) >> 8 & 0xFF != ord(";")


def _is_update_vaddr(found: Difference) -> bool:
    return found.asks(VfioRequest.CHECK_EXTENSION) and int(found.line.split()[3], 16) == _UPDATE_VADDR


def _is_reason(found: Difference) -> bool:
    """Of a fault, in a descriptor of the engine, which is the same otherwise."""
    place = Descriptor.offset_of("reason")
    if not found.line.startswith("read ") or found.results != (f"{Descriptor.SIZE:x}",) * 2:
        return False
    model, kernel = (bytearray.fromhex(answer.split()[1]) for answer in (found.model, found.kernel))
    model[place : place + 2] = kernel[place : place + 2]
    return model == kernel and Descriptor.unpack(bytes(model)).status == DescriptorStatus.FAULT


def _is_dirty_behind(found: Difference) -> bool:
    """More bits of a bitmap of type1, and none less."""
    if found.line.split()[:2] != ["peek", f"{BITMAP:x}"]:
        return False
    model, kernel = (int(answer.split()[1], 16) for answer in (found.model, found.kernel))
    return not model & ~kernel


KNOWN: dict[str, Callable[[Difference], bool]] = {
    "type1's `VADDR`": lambda found: _has_vaddr(found) or _is_update_vaddr(found),
    "requests of another type": _is_foreign,
    "dirty pages of type1": _is_dirty_behind,
    "the reason of a fault": _is_reason,
}
"""By the first cell of the table's row."""


def known(difference: Difference) -> str | None:
    """The row of the table that a difference belongs to."""
    return next((row for row, matches in KNOWN.items() if matches(difference)), None)
