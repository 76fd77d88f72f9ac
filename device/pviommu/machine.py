"""The machine that a topology describes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TypeVar

from .counters import Counters
from .dma.windows import Window, Windows
from .endpoints import endpoint_class
from .endpoints.endpoint import Endpoint
from .endpoints.surroundings import Surroundings
from .engine import PAGE_SHIFT
from .hosted import Pollable
from .inputs import Inputs
from .interfaces.pv.function import PvIommu
from .interfaces.pv.ring_core import DeviceCore
from .pci.capabilities import endpoint as endpoint_capability
from .pci.function import Environment, PciFunction
from .topology import EndpointSection, Topology

__all__ = ["Machine", "build_endpoint"]

AnyEndpoint = TypeVar("AnyEndpoint", bound=Endpoint)


def build_endpoint(
    kind: type[AnyEndpoint],
    entry: EndpointSection,
    iommu: PvIommu,
    environment: Environment,
    core: DeviceCore | None = None,
) -> AnyEndpoint:
    """Put an endpoint behind a PV-IOMMU. Raises ValueError if that has no such stream."""
    surroundings = Surroundings(
        entry.name,
        entry.stream,
        iommu.stream(entry.stream),
        environment,
        entry.options or kind.OPTIONS(),
        [endpoint_capability(iommu.settings.instance, entry.stream)],
        core.copier() if core and environment.inputs.may_be_bypassed else None,
    )
    endpoint = kind(surroundings)
    endpoint.memory.belongs_with(iommu.memory)
    return endpoint


@dataclass
class Machine:
    """The functions of one virtual machine."""

    iommu: PvIommu
    endpoints: dict[str, Endpoint]
    windows: Windows = field(default_factory=Windows)
    """the endpoints' BARs, for their DMA"""

    def __post_init__(self) -> None:
        for endpoint in self.endpoints.values():
            endpoint.memory.windows = self.windows
            endpoint.bars.on_change = self._follow_bars

    @classmethod
    def build(cls, topology: Topology, environment: Environment, core: DeviceCore | None = None) -> Machine:
        """Power on everything that ``topology`` names. ``core``: one that no other machine has, else Python's."""
        if core:
            environment.files.guard = core.guard()
        iommu = PvIommu(topology.iommu.name, topology.iommu_config(), environment, core)
        endpoints = {
            entry.name: build_endpoint(endpoint_class(entry.kind), entry, iommu, environment, core)
            for entry in topology.endpoint
        }
        return cls(iommu, endpoints)

    def _follow_bars(self) -> None:
        """BARs were added, moved or removed. DMA does not reach the IOMMU: the PV-IOMMU has no windows."""
        windows = [window for endpoint in self.endpoints.values() for window in endpoint.bars.windows()]
        self.windows.replace(window for window in windows if not self._is_reserved(window))
        self.iommu.engine.set_mmio(self.windows.frames())

    def _is_reserved(self, window: Window) -> bool:
        """Whether part of it is in the MSI window."""
        first, last = window.first >> PAGE_SHIFT, (window.first + window.size - 1) >> PAGE_SHIFT
        return any(first <= region.last and region.first <= last for region in self.iommu.engine.config.reserved)

    @property
    def inputs(self) -> Inputs:
        """The inputs of all its functions."""
        return self.iommu.inputs

    @property
    def counters(self) -> Counters:
        """The counters of all its functions."""
        return self.iommu.counters

    @property
    def pollables(self) -> list[Pollable]:
        """What has to be polled for work: the rings."""
        return [self.iommu]

    def functions(self) -> Iterator[PciFunction]:
        """All of them, the PV-IOMMU first."""
        yield self.iommu
        yield from self.endpoints.values()

    def close(self) -> None:
        """Give everything back."""
        for function in self.functions():
            function.close()
