"""Histories through a ring in real shared memory, served by calls instead of sockets."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterable, Sequence

from pviommu_abi.registers import REGISTER_BAR
from vfio_user import DmaMapping, RegionIndex

from ..counters import Counters
from ..endpoints.dma_test import DmaTestEngine
from ..inputs import LiveInputs
from ..machine import Machine
from ..pci.function import Environment, PciFunction
from ..topology import EndpointEntry, IommuEntry, Topology
from .difference import Difference
from .engine_path import compare_pages, compare_tables
from .guest import Guest
from .oracle import Oracle
from .settings import STREAMS

__all__ = ["RingPath", "topology"]

_WORD = struct.Struct("<I")
_COMMAND = 4
_MEMORY, _MASTER = 2, 4


def topology(oracle: Oracle) -> Topology:
    """The machine of the oracle's setting, with a DMA test engine for each stream."""
    setting = oracle.setting
    return Topology(
        IommuEntry(
            contexts=setting.max_contexts,
            pool_pages=setting.pool_pages,
            max_pages_per_op=setting.max_nr_pages,
            aperture_bits=setting.aperture_bits,
            default_policy="identity" if setting.identity else "blocked",
        ),
        tuple(EndpointEntry(f"dma{stream}", "dma-test", stream) for stream in STREAMS),
    )


class RingPath(Guest):
    """A whole machine whose loop is turned by the guest that waits."""

    name = "ring"

    def __init__(self, oracle: Oracle, make: Callable[[Topology, Environment], Machine] = Machine.build) -> None:
        """``make`` builds the machine, or one that is wrong on purpose."""
        super().__init__(oracle)
        self.machine = make(topology(oracle), Environment(LiveInputs(), Counters()))
        self._iommu = self.machine.iommu
        self._endpoints: dict[int, DmaTestEngine] = {
            endpoint.stream: endpoint
            for endpoint in self.machine.endpoints.values()
            if isinstance(endpoint, DmaTestEngine)
        }
        self._functions: dict[int | None, PciFunction] = {None: self._iommu}
        self._functions.update((endpoint.stream, endpoint) for endpoint in self._endpoints.values())
        self._views: dict[int | None, tuple[memoryview, memoryview]] = {
            None: (self._iommu.shared.view, self._iommu.shared.words)
        }
        for stream, endpoint in self._endpoints.items():
            self._views[stream] = endpoint.shared.view, endpoint.shared.words
        self.start()

    def views(self, stream: int | None) -> tuple[memoryview, memoryview]:
        return self._views[stream]

    def write_register(self, stream: int | None, offset: int, value: int) -> None:
        self._functions[stream].region_write(REGISTER_BAR, offset, _WORD.pack(value))

    def set_bus_master(self, stream: int, on: bool) -> None:
        command = _MEMORY | (_MASTER if on else 0)
        self._functions[stream].region_write(RegionIndex.CONFIG, _COMMAND, command.to_bytes(2, "little"))

    def wait_for_ring(self, ring: int, position: int) -> None:
        while self.completed(ring) != position:
            if not self._iommu.work():
                raise Difference(self.name, f"slots of ring {ring} that are complete", position, self.completed(ring))

    def wait_for_descriptor(self, stream: int, word: int) -> None:
        while not self._views[stream][1][word]:
            if not self._endpoints[stream].work():
                raise Difference(self.name, f"descriptors of stream {stream}", "a completed one", "a pending one")
            if not self._views[stream][1][word]:  # it takes another turn, in which rings come first
                self._iommu.work()

    def plug(self, parts: Sequence[tuple[int, int, int]]) -> None:
        for address, size, offset in parts:
            for function in self.machine.functions():
                function.dma_map(DmaMapping(address, size, offset, True, True, os.dup(self.ram.fd)))

    def unplug(self, parts: Sequence[tuple[int, int, int]]) -> None:
        for address, size, _ in parts:
            for function in self.machine.functions():
                function.dma_unmap(address, size)

    def ring_doorbell(self, ring: int, first: int) -> None:
        """The rings are looked at whenever something waits."""

    def compare_touched(self, ctx: int, dfns: Iterable[int]) -> None:
        compare_pages(self.name, self._iommu.engine, self.oracle, ctx, dfns)

    def compare_tables(self) -> None:
        compare_tables(self.name, self._iommu.engine, self.oracle)

    def close(self) -> None:
        self._views.clear()
        self.machine.close()
        super().close()
