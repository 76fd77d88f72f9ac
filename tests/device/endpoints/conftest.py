"""A PV-IOMMU with guest memory, ready for endpoints, without sockets."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from pviommu.counters import Counters
from pviommu.endpoints.endpoint import Endpoint, Options
from pviommu.engine import Access
from pviommu.guest.events import EventRing
from pviommu.guest.local import LocalFunction
from pviommu.guest.memory import memory_file
from pviommu.guest.ring import Ring
from pviommu.interfaces.pv.function import IommuConfig, PvIommu
from pviommu.interfaces.pv.ring_core import DeviceCore
from pviommu.machine import AnyEndpoint, build_endpoint
from pviommu.pci.function import Environment
from pviommu.topology import EndpointSection
from pviommu_abi.registers import REGISTER, Profile
from pviommu_abi.shared import MIN_RING_ENTRIES, Event
from pviommu_abi.slots import OpClass
from vfio_user import DmaMapping, IrqAction, IrqIndex, IrqKind, IrqRequest
from wire_layout import Record

from ..conftest import Inputs

PAGE = 4096
RAM_SIZE = 16 << 20
STREAM = 1


class Guest:
    """A virtual machine of 16 MiB whose endpoints stand outside the default context, in an empty one."""

    def __init__(self, core: DeviceCore | None = None) -> None:
        self.counters = Counters()
        self.environment = Environment(Inputs(), self.counters)  # whose clock does not know how busy this machine is
        self.core = core
        self.iommu = PvIommu("iommu", IommuConfig(streams=(1, 2)), self.environment, core)
        self._driver = LocalFunction(self.iommu, REGISTER)
        self._ring = Ring(self._driver, entries=MIN_RING_ENTRIES)
        self._events = EventRing(self._driver)
        self.ram = memory_file(RAM_SIZE)
        self.poke((1 << 20) - PAGE, b"firmware")  # low memory of zeros is taken for memory that is not shared
        self.give_memory(self.iommu)
        self.context = self.iommu.contexts.alloc().context or 0
        self.endpoints: list[Endpoint] = []
        self.siblings: dict[str, Endpoint] = {}

    def give_memory(self, function: PvIommu | Endpoint, first: int = 0, size: int = RAM_SIZE) -> None:
        """What DMA_MAP of this machine's client says."""
        function.dma_map(DmaMapping(first, size, first, True, True, os.dup(self.ram)))

    def make(self, kind: type[AnyEndpoint], name: str, stream: int, options: Options | None = None) -> AnyEndpoint:
        """An endpoint of this machine. Its client has not announced memory yet, and it may do no DMA: see `plug`."""
        section = EndpointSection(name, "", stream, options=options)
        endpoint = build_endpoint(kind, section, self.iommu, self.environment, self.core, self.siblings)
        self.siblings[name] = endpoint
        return endpoint

    def plug(self, endpoint: Endpoint) -> None:
        """Connect ``endpoint``, attach it to the context and let it do DMA."""
        self.endpoints.append(endpoint)
        self.give_memory(endpoint)
        self.iommu.contexts.attach(endpoint.stream, self.context)
        self.set_bus_master(endpoint, True)

    def set_bus_master(self, endpoint: Endpoint, enabled: bool) -> None:
        endpoint.region_write(7, 0x04, (0x6 if enabled else 0x2).to_bytes(2, "little"))

    def map(self, dfn: int, gfn: int, nr: int = 1, access: Access = Access.READ | Access.WRITE) -> None:
        """Map pages in the context."""
        self.iommu.engine.map(self.context, dfn, gfn, nr, access)

    def poke(self, gpa: int, data: bytes) -> None:
        os.pwrite(self.ram, data, gpa)

    def peek(self, gpa: int, length: int) -> bytes:
        return os.pread(self.ram, length, gpa)

    def events(self) -> list[Event]:
        """Events that came since the last call."""
        return self._events.take()

    def set_up_ring(self) -> None:
        """Select the profile and turn ring 0 on. This resets the device: contexts are made anew."""
        self._driver.write("PROFILE", Profile.XEN_2024)
        self._ring.turn_on()
        self.context = self.iommu.contexts.alloc().context or 0
        for endpoint in self.endpoints:
            self.iommu.contexts.attach(endpoint.stream, self.context)

    def submit(self, *operations: Record) -> None:
        """Put operations into ring 0. Nobody executes them yet."""
        for operation in operations:
            self._ring.put(OpClass.XEN_2024, 0, 0, operation.pack())

    def arm_interrupt(self, endpoint: Endpoint) -> int:
        """Give vector 0 an eventfd."""
        fd = os.eventfd(0, os.EFD_NONBLOCK)
        endpoint.set_irqs(IrqRequest(IrqIndex.MSIX, 0, 1, IrqAction.TRIGGER, IrqKind.EVENTFD, (os.dup(fd),)))
        return fd

    def close(self) -> None:
        for function in (self.iommu, *self.endpoints):
            function.close()
        os.close(self.ram)


@pytest.fixture
def guest() -> Iterator[Guest]:
    guest = Guest()
    yield guest
    guest.close()
