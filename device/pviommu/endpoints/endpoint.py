"""What every endpoint behind the PV-IOMMU has: a stream, a way to memory, and its part in resets."""

from __future__ import annotations

from typing import ClassVar

from ..iommu.function import PvIommu
from ..pci.capabilities import endpoint as endpoint_capability
from ..pci.config_space import Identity
from ..pci.function import Environment, PciFunction
from .dma import DmaPort

__all__ = ["Endpoint"]


class Endpoint(PciFunction):
    """A PCI function that does DMA. Subclasses set ``IDENTITY``, describe their BARs and end with ``power_on()``."""

    IDENTITY: ClassVar[Identity]

    def __init__(self, name: str, stream: int, iommu: PvIommu, environment: Environment) -> None:
        super().__init__(name, self.IDENTITY, environment)
        self.stream = stream
        self.memory.copier = iommu.make_copier()
        self._iommu = iommu
        self.dma = DmaPort(stream, iommu, self.memory, self.counters, lambda: self.config.bus_master)
        self.add_capability(endpoint_capability(iommu.settings.instance, stream))
        iommu.add_endpoint(stream, self)
        self.memory.belongs_with(iommu.memory)

    @property
    def is_in_progress(self) -> bool:
        """Whether a request has begun that takes several steps. Those of other endpoints that begin come first then."""
        return False

    def work(self) -> bool:
        """Do one bounded step of what is queued, a tenth of a millisecond or so. Whether there was anything.

        :class:`.dma.DmaPendingError`, which any DMA may raise, may be let through if the request stays queued: nothing
        of it has happened, and this is called again.
        """
        return False

    def cancel_dma(self) -> None:
        """Finish queued requests as cancelled."""

    def reset_device(self) -> None:
        """Registers and queues as at power-on."""

    def on_reset(self) -> None:
        self.dma.give_up()
        self.reset_device()
        self._iommu.unblock(self.stream)

    def on_bus_master(self, enabled: bool) -> None:
        if enabled:
            self._iommu.unblock(self.stream)
