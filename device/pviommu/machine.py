"""The machine that a topology describes."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from dataclasses import dataclass, field

from . import endpoints
from .endpoints.endpoint import Endpoint
from .engine import PAGE_SHIFT
from .iommu.function import PvIommu
from .iommu.ring_core import DeviceCore
from .pci.function import Environment, PciFunction
from .topology import Topology
from .windows import Window, Windows

__all__ = ["Machine", "endpoint_class"]


def endpoint_class(kind: str) -> type[Endpoint]:
    """The class of one of :data:`pviommu.endpoints.ENDPOINTS`."""
    module, _, name = endpoints.ENDPOINTS[kind].partition(".")
    found: type[Endpoint] = getattr(importlib.import_module(f"{endpoints.__name__}.{module}"), name)
    return found


@dataclass
class Machine:
    """The functions of one virtual machine."""

    iommu: PvIommu
    endpoints: dict[str, Endpoint]
    endpoints_busy: bool = False
    """whether endpoints had something to do in the last :meth:`work`"""
    windows: Windows = field(default_factory=Windows)
    """the endpoints' BARs, for their DMA"""

    def __post_init__(self) -> None:
        for endpoint in self.endpoints.values():
            endpoint.memory.windows = self.windows
            endpoint.on_bars = self._follow_bars

    @classmethod
    def build(cls, topology: Topology, environment: Environment, core: DeviceCore | None = None) -> Machine:
        """Power on everything that ``topology`` names. ``core``: one that no other machine has, else Python's."""
        if core:
            environment.files.guard = core.guard()
        iommu = PvIommu(topology.iommu.name, topology.iommu_config(), environment, core)
        endpoints = {
            entry.name: endpoint_class(entry.kind)(entry.name, entry.stream, iommu, environment)
            for entry in topology.endpoint
        }
        return cls(iommu, endpoints)

    def _follow_bars(self) -> None:
        """BARs came, moved or went. What translates DMA is not reached by DMA: the PV-IOMMU has no windows."""
        windows = [window for endpoint in self.endpoints.values() for window in endpoint.windows()]
        self.windows.replace(window for window in windows if not self._is_reserved(window))
        self.iommu.engine.set_mmio(self.windows.frames())

    def _is_reserved(self, window: Window) -> bool:
        """Whether part of it is where writes are interrupts."""
        first, last = window.first >> PAGE_SHIFT, (window.first + window.size - 1) >> PAGE_SHIFT
        return any(first <= region.last and region.first <= last for region in self.iommu.engine.config.reserved)

    def functions(self) -> Iterator[PciFunction]:
        """All of them, the PV-IOMMU first."""
        yield self.iommu
        yield from self.endpoints.values()

    def work(self) -> bool:
        """One bounded step of everything that has something to do. Whether anything had."""
        done = self.iommu.work()
        busy = False
        for endpoint in self.endpoints.values():
            busy |= endpoint.step()
            self.windows.deliver()
        self.endpoints_busy = busy
        return done or busy

    def close(self) -> None:
        """Give everything back."""
        for function in self.functions():
            function.close()
