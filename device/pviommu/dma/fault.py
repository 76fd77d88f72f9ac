"""Refused DMA, as data: whoever translates for a stream reports it in its own way."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from pviommu_abi.shared import EventReason

from ..engine import Access

__all__ = ["REASON", "DmaPendingError", "DmaRefusedError", "Fault", "FaultKind"]


class FaultKind(Enum):
    """Why DMA was refused."""

    NOT_MAPPED = "the address is not mapped"
    PERMISSION = "the mapping does not allow this access"
    OUT_OF_APERTURE = "the address is outside the aperture"
    RESERVED = "the address is reserved"
    BLOCKED = "the stream, or where it is attached, is blocked"
    NOT_RAM = "the address translates to neither guest RAM nor a BAR of this machine"
    ABORTED = "the address translates to a BAR that does not allow this access"
    NO_BUS_MASTER = "bus mastering is off"
    """no request left the function, so nobody is told but the endpoint"""


REASON = {
    FaultKind.NOT_MAPPED: EventReason.NOT_MAPPED,
    FaultKind.PERMISSION: EventReason.PERMISSION,
    FaultKind.OUT_OF_APERTURE: EventReason.OUT_OF_APERTURE,
    FaultKind.RESERVED: EventReason.RESERVED,
    FaultKind.BLOCKED: EventReason.BLOCKED,
    FaultKind.NOT_RAM: EventReason.NOT_RAM,
    FaultKind.ABORTED: EventReason.ABORTED,
}
"""What a guest is told of a fault, by events and by the DMA test engine; of the other kinds nothing."""


@dataclass(frozen=True, slots=True)
class Fault:
    """A refused request."""

    kind: FaultKind
    stream: int
    iova: int
    """device address of the first byte refused"""
    access: Access
    """what was asked for"""
    length: int
    """bytes of the span that the address is in"""
    gpa: int | None = None
    """where the address leads, if that is what refused it"""


class DmaRefusedError(Exception):
    """A DMA request that was refused: whole, unless it was in steps and the guest unmapped part of it meanwhile."""

    def __init__(self, fault: Fault) -> None:
        why = fault.kind.value if fault.kind is FaultKind.NO_BUS_MASTER else fault.kind.name
        super().__init__(f"{fault.access.name} at {fault.iova:#x}: {why}")
        self.fault = fault


class DmaPendingError(Exception):
    """Whether DMA is refused will be known in a later step. Nothing has happened."""
