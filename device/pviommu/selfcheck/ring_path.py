"""Histories through a ring in real shared memory, served by calls instead of sockets."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from pviommu_abi import dma_test
from pviommu_abi.registers import REGISTER

from ..counters import Counters
from ..endpoints.dma_test import DmaTestEngine
from ..guest.function import Function
from ..guest.local import LocalFunction
from ..inputs import LiveInputs
from ..machine import Machine
from ..pci.function import Environment
from ..topology import EndpointSection, IommuSection, Topology
from .difference import Difference
from .engine_path import compare_pages, compare_tables
from .guest import Guest
from .oracle import Oracle
from .settings import STREAMS

__all__ = ["RingPath", "topology"]


def topology(oracle: Oracle) -> Topology:
    """The topology of the oracle's setting, with a DMA test engine for each stream."""
    setting = oracle.setting
    return Topology(
        IommuSection(
            contexts=setting.max_contexts,
            pool_pages=setting.pool_pages,
            max_pages_per_op=setting.max_nr_pages,
            aperture_bits=setting.aperture_bits,
            default_policy="identity" if setting.identity else "blocked",
        ),
        tuple(EndpointSection(f"dma{stream}", "dma-test", stream) for stream in STREAMS),
    )


class RingPath(Guest):
    """A whole machine in this process; the guest turns its loop while it waits."""

    name = "ring"

    def __init__(self, oracle: Oracle, make: Callable[[Topology, Environment], Machine] = Machine.build) -> None:
        """``make`` builds the machine; tests give one that is wrong on purpose."""
        super().__init__(oracle)
        self.machine = make(topology(oracle), Environment(LiveInputs(), Counters()))
        self._iommu = self.machine.iommu
        self._endpoints: dict[int, DmaTestEngine] = {
            endpoint.stream: endpoint
            for endpoint in self.machine.endpoints.values()
            if isinstance(endpoint, DmaTestEngine)
        }
        functions: dict[int | None, Function] = {None: LocalFunction(self._iommu, REGISTER)}
        for stream, endpoint in self._endpoints.items():
            functions[stream] = LocalFunction(endpoint, dma_test.REGISTER)
        self.drive(functions)

    def wait_for_ring(self, ring: int, position: int) -> None:
        driver = self.rings[ring]
        while driver.completed != position:
            if not self._iommu.work():
                raise Difference(self.name, f"slots of ring {ring} that are complete", position, driver.completed)

    def wait_for_descriptor(self, stream: int, place: int) -> None:
        engine = self.engine(stream)
        while not engine.is_done(place):
            if not self._endpoints[stream].work():
                raise Difference(self.name, f"descriptors of stream {stream}", "a completed one", "a pending one")
            if not engine.is_done(place):  # it needs another turn, in which rings come first
                self._iommu.work()

    def ring_doorbell(self, ring: int, first: int) -> None:
        """Nothing to do: the rings are executed whenever the guest waits."""

    def compare_touched(self, ctx: int, dfns: Iterable[int]) -> None:
        compare_pages(self.name, self._iommu.contexts, self.oracle, ctx, dfns, self.usage())

    def compare_tables(self) -> None:
        compare_tables(self.name, self._iommu.contexts, self.oracle, self.usage())

    def close(self) -> None:
        self.machine.close()
        super().close()
