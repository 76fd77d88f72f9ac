"""What every endpoint behind the PV-IOMMU has: a stream, a way to memory, and its part in resets."""

from __future__ import annotations

import errno
import logging
from typing import ClassVar

from vfio_user import DmaMapping, RequestError

from ..iommu.function import PvIommu
from ..memory import Mapping
from ..pci.capabilities import endpoint as endpoint_capability
from ..pci.config_space import Identity
from ..pci.function import Environment, PciFunction
from .dma import DmaPort

__all__ = ["Endpoint"]

log = logging.getLogger(__name__)


def _backing(mapping: Mapping) -> tuple[tuple[int, int] | None, int]:
    """The file behind a range and where in it GPA 0 would be: equal for overlapping ranges of one guest's memory."""
    return mapping.file.key if mapping.file else None, mapping.offset - mapping.address


class Endpoint(PciFunction):
    """A PCI function that does DMA. Subclasses set ``IDENTITY``, describe their BARs and end with ``power_on()``."""

    IDENTITY: ClassVar[Identity]

    def __init__(self, name: str, stream: int, iommu: PvIommu, environment: Environment) -> None:
        super().__init__(name, self.IDENTITY, environment)
        self.stream = stream
        self._iommu = iommu
        self.dma = DmaPort(stream, iommu, self.memory, self.counters, lambda: self.config.bus_master)
        self.add_capability(endpoint_capability(iommu.settings.instance, stream))
        iommu.add_endpoint(stream, self)

    def work(self) -> bool:
        """Do one bounded step of what is queued. Whether there was anything."""
        return False

    def dma_map(self, mapping: DmaMapping) -> None:
        """DMA_MAP. What backs a guest frame is the PV-IOMMU's client's to say; one that disagrees is another VM's."""
        super().dma_map(mapping)
        for mine in self.memory.overlapping(mapping.address, mapping.size):
            for other in self._iommu.memory.overlapping(mine.address, mine.size):
                if mine.file and other.file and _backing(mine) != _backing(other):
                    self.memory.unmap(mine.address, mine.size)
                    text = f"map [{mine.address:#x}, +{mine.size:#x}): the PV-IOMMU's client has other memory there"
                    log.error(
                        "%s: client refused: %s, and one topology is one machine",
                        *(self.name, text),
                        extra={"event": "client-refused"},
                    )
                    raise RequestError(errno.EINVAL, text)

    def cancel_dma(self) -> None:
        """Finish queued requests as cancelled."""

    def reset_device(self) -> None:
        """Registers and queues as at power-on."""

    def on_reset(self) -> None:
        self.reset_device()
        self._iommu.unblock(self.stream)

    def on_bus_master(self, enabled: bool) -> None:
        if enabled:
            self._iommu.unblock(self.stream)
