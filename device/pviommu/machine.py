"""The machine that a topology describes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TypeVar

from .dma.windows import Window, Windows
from .endpoints import endpoint_class
from .endpoints.endpoint import Endpoint
from .endpoints.surroundings import Surroundings
from .engine import PAGE_SHIFT
from .host.fairness import Fairness
from .interfaces.pv.function import PvIommu
from .interfaces.pv.ring_core import DeviceCore
from .pci.capabilities import endpoint as endpoint_capability
from .pci.function import Environment, PciFunction
from .topology import EndpointEntry, Topology

__all__ = ["ENDPOINTS_NS", "Machine", "build_endpoint"]

AnyEndpoint = TypeVar("AnyEndpoint", bound=Endpoint)

ENDPOINTS_NS = 3_000_000
"""The endpoints' part of a turn ends with the step that takes it past this: one of each of many, if they are short. The
next turn goes on with others.
"""
GOING_ON_NS = 1_000_000
"""The same for what comes after it: steps of requests that are in progress."""
_UNKNOWN_NS = 100_000
"""What the first step after an idle turn is charged: a look at the clock before it would cost all idle turns time."""


def build_endpoint(
    kind: type[AnyEndpoint],
    entry: EndpointEntry,
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
        core.copier() if core else None,
    )
    endpoint = kind(surroundings)
    endpoint.memory.belongs_with(iommu.memory)
    return endpoint


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
        self._inputs = self.iommu.inputs
        self._fairness: Fairness[Endpoint] = Fairness()
        self._turns = list(self.endpoints.values())
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
            entry.name: build_endpoint(endpoint_class(entry.kind), entry, iommu, environment, core)
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
        """One bounded step of the rings, and of the endpoints that have something to do as far as there is time; those
        that used least come first. Whether there was anything to do.
        """
        done = self.iommu.work()
        self.endpoints_busy = self._work_endpoints() or self.windows.is_waiting
        return done or self.endpoints_busy

    def _work_endpoints(self) -> bool:
        """Requests that begin come before those that are in progress, which have time of their own."""
        if not self.endpoints_busy and not self.windows.is_waiting:  # so there is nothing in progress
            return self._work_in_turn(self._turns)
        begun = self._inputs.now_ns()
        if not self._deliver(begun + ENDPOINTS_NS):
            return True
        going_on = [endpoint for endpoint in self._turns if endpoint.goes_on()]
        if not going_on:
            return self._work_in_turn(self._turns)
        self._work_in_turn([endpoint for endpoint in self._turns if endpoint not in going_on])
        deadline = self._inputs.now_ns() + GOING_ON_NS
        if self._deliver(deadline):
            self._work_in_turn(going_on, deadline)
        return True

    def _work_in_turn(self, endpoints: list[Endpoint], deadline_ns: int | None = None) -> bool:
        """A step of each, until the deadline, or for :data:`ENDPOINTS_NS`. Whether there was anything to do; those that
        used least come first.
        """
        busy = False
        worked = self._inputs.worked_ns() if self.endpoints_busy else None
        for endpoint in endpoints:
            if not endpoint.step():
                continue
            busy = True
            if deadline_ns is None:
                deadline_ns = self._inputs.now_ns() + ENDPOINTS_NS
            is_delivered = self._deliver(deadline_ns)
            before, worked = worked, self._inputs.worked_ns()
            self._fairness.charge(endpoint, _UNKNOWN_NS if before is None else worked - before)
            if not is_delivered or self._inputs.now_ns() > deadline_ns:
                break
        if busy:
            self._turns = self._fairness.order(self._turns)
        return busy

    def _deliver(self, deadline_ns: int) -> bool:
        """Write registers that DMA has written to. Whether all are written: before that no endpoint does anything."""
        return self.windows.deliver(lambda: self._inputs.now_ns() <= deadline_ns)

    def close(self) -> None:
        """Give everything back."""
        for function in self.functions():
            function.close()
