"""DMA of emulated devices through the page tables of /dev/iommu, into the memory of programs.

What a device does DMA by (:class:`pviommu.dma.port.DmaPort`) takes both: a translator, and the memory behind it.
"""

from __future__ import annotations

from collections.abc import Sequence

from ...dma.access import GuestMemoryError
from ...dma.fault import Fault, FaultKind
from ...dma.plan import DmaPlan, DmaRequest, translate_each
from ...dma.translator import PENDING, Pending, Translator
from ...engine import Refusal, TranslationPending
from .hardware import Hardware
from .user_memory import ADDRESS_LIMIT

__all__ = ["PageTables", "ProgramMemory"]

_KINDS = {
    Refusal.NOT_MAPPED: FaultKind.NOT_MAPPED,
    Refusal.NO_PERMISSION: FaultKind.PERMISSION,
    Refusal.OUT_OF_APERTURE: FaultKind.OUT_OF_APERTURE,
    Refusal.RESERVED: FaultKind.RESERVED,
}


class PageTables(Translator):
    """The translation of one device. Programs learn of faults from the device only: iommufd has no other way."""

    def __init__(self, hardware: Hardware, stream: int) -> None:
        self._hardware = hardware
        self._stream = stream

    def translate(self, requests: Sequence[DmaRequest]) -> list[DmaPlan] | Fault | Pending:
        """See the base class."""
        found = translate_each(self._stream, requests, self._hardware.engine.translate)
        if isinstance(found, list):
            return found
        refused, length = found
        if isinstance(refused, TranslationPending) or self._hardware.waits(refused):
            return PENDING
        return Fault(_KINDS.get(refused.refusal, FaultKind.BLOCKED), self._stream, refused.iova, refused.access, length)

    def report(self, fault: Fault) -> None:
        """There is nobody to be told."""


class ProgramMemory:
    """What page tables lead to: see :class:`pviommu.dma.path.Memory`. An address is one of :meth:`Hardware.memory_at`.

    What a program has given back since it was mapped is refused, as memory that is not there.
    """

    copier = None
    """nothing translates and copies at once here"""

    def __init__(self, hardware: Hardware) -> None:
        self._hardware = hardware

    def read(self, runs: Sequence[tuple[int, int]]) -> bytes:
        """The bytes of runs, (address, length) each. Raises :class:`GuestMemoryError`."""
        return b"".join([self._read(address, length) for address, length in runs])

    def _read(self, address: int, length: int) -> bytes:
        memory = self._hardware.memory_at(address)
        try:
            return memory.read(address % ADDRESS_LIMIT, length)
        except OSError as error:
            raise GuestMemoryError(address, str(error)) from error

    def write(self, runs: Sequence[tuple[int, int]], data: bytes | bytearray | memoryview) -> None:
        """Spread data over runs. Raises :class:`GuestMemoryError`, perhaps when part of it is written."""
        source, position = memoryview(data), 0
        for address, length in runs:
            memory = self._hardware.memory_at(address)
            try:
                memory.write(address % ADDRESS_LIMIT, bytes(source[position : position + length]))
            except OSError as error:
                raise GuestMemoryError(address, str(error)) from error
            position += length

    def check(self, runs: Sequence[tuple[int, int]]) -> None:
        """Whether it is still there shows when it is read or written."""

    def find_registers(self, _runs: Sequence[tuple[int, int]]) -> tuple[int, int]:
        """There are none."""
        return 0, 0
