"""Guest memory that came without file descriptors, so that no DMA reaches it: who is told about that, and when."""

from __future__ import annotations

import errno
import logging

from vfio_user import DmaMapping, RequestError

from ...dma.memory import GuestMemory
from ...engine import PAGE_SHIFT, Engine
from ...pci.bars import Bars

__all__ = ["UnsharedMemory"]

log = logging.getLogger(__name__)

LEAST_DIMM, ABOVE_LOW_BARS = 16 << 20, 1 << 32
MAX_TOLD = 64


class UnsharedMemory:
    """Such memory of the client of the function ``name``, whose own BARs are ``bars``."""

    def __init__(self, name: str, memory: GuestMemory, bars: Bars, engine: Engine) -> None:
        self._name = name
        self._memory = memory
        self._bars = bars
        self._engine = engine
        self._told: set[tuple[int, int]] = set()
        """ranges of which the log has said that they are not shared"""

    def forget(self) -> None:
        """The client is gone."""
        self._told.clear()

    def check_client(self) -> None:
        """Refuse a client none of whose memory can be reached. Raises :class:`vfio_user.RequestError`."""
        mappings = list(self._memory)
        if mappings and not any(mapping.file for mapping in mappings):
            text = (
                "guest memory came without file descriptors: give QEMU "
                "-object memory-backend-memfd,id=ram,size=SIZE,share=on -machine memory-backend=ram"
            )
            log.error("%s: client refused: %s", self._name, text, extra={"event": "memory-not-shared"})
            raise RequestError(errno.EINVAL, text)

    def look_at(self, mapping: DmaMapping) -> None:
        """Log once, for memory that came besides shared memory (a DIMM that was plugged in), that DMA will not reach
        it. BARs of this machine are announced without descriptors too, and small or low ranges belong to other devices.
        """
        place = (mapping.address, mapping.size)
        if mapping.size < LEAST_DIMM or mapping.address < ABOVE_LOW_BARS or not self._memory.ram or place in self._told:
            return
        end = mapping.address + mapping.size
        own = ((window.first, window.first + window.size) for window in self._bars.windows())
        others = ((first << PAGE_SHIFT, last + 1 << PAGE_SHIFT) for first, last in self._engine.mmio)
        if len(self._told) >= MAX_TOLD or any(
            first < end and mapping.address < after for first, after in (*own, *others)
        ):
            return
        self._told.add(place)
        log.warning(
            "%s: %#x bytes at %#x came without a file descriptor, so no DMA reaches them: if this is a DIMM, its "
            "memory backend needs share=on (a BAR of another device needs nothing)",
            *(self._name, mapping.size, mapping.address),
            extra={"event": "memory-not-shared"},
        )
