"""Refused DMA, as data: each interface reports it in its own way."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from pviommu_abi.shared import EventReason

from ..engine import Access, Refusal

__all__ = ["KIND", "REASON", "DmaPendingError", "DmaRefusedError", "Fault", "FaultKind"]


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
    """no request left the function, so only the endpoint is told"""


KIND = {
    Refusal.NOT_MAPPED: FaultKind.NOT_MAPPED,
    Refusal.NO_PERMISSION: FaultKind.PERMISSION,
    Refusal.OUT_OF_APERTURE: FaultKind.OUT_OF_APERTURE,
    Refusal.RESERVED: FaultKind.RESERVED,
    Refusal.BLOCKED: FaultKind.BLOCKED,
    Refusal.NO_ENDPOINT: FaultKind.BLOCKED,
    Refusal.NO_PASID: FaultKind.BLOCKED,
    Refusal.NOT_RAM: FaultKind.NOT_RAM,
}
"""What a refusal of the engine is to the endpoint."""
REASON = {
    FaultKind.NOT_MAPPED: EventReason.NOT_MAPPED,
    FaultKind.PERMISSION: EventReason.PERMISSION,
    FaultKind.OUT_OF_APERTURE: EventReason.OUT_OF_APERTURE,
    FaultKind.RESERVED: EventReason.RESERVED,
    FaultKind.BLOCKED: EventReason.BLOCKED,
    FaultKind.NOT_RAM: EventReason.NOT_RAM,
    FaultKind.ABORTED: EventReason.ABORTED,
}
"""What events and the DMA test engine report of a fault; other kinds are not reported."""


@dataclass(frozen=True, slots=True)
class Fault:
    """A refused request."""

    kind: FaultKind
    stream: int
    iova: int
    """device address of the first refused byte"""
    access: Access
    """the access that was requested"""
    length: int
    """bytes of the span that the address is in"""
    gpa: int | None = None
    """where the address leads, if it was refused there"""


class DmaRefusedError(Exception):
    """A DMA request that was refused: as a whole, unless it took several steps and the guest unmapped part of it
    meanwhile."""

    def __init__(self, fault: Fault) -> None:
        why = fault.kind.value if fault.kind is FaultKind.NO_BUS_MASTER else fault.kind.name
        super().__init__(f"{fault.access.name} at {fault.iova:#x}: {why}")
        self.fault = fault


class DmaPendingError(Exception):
    """Whether DMA is refused will be known only in a later step. Nothing has happened."""
