"""The endpoints of a topology as devices behind /dev/iommu, without the PV-IOMMU."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from ..counters import Counters
from ..dma.windows import Windows
from ..endpoints import endpoint_class
from ..endpoints.endpoint import Endpoint
from ..endpoints.surroundings import Surroundings
from ..engine.core import Core
from ..hosted import Pollable
from ..inputs import Inputs, LiveInputs
from ..interfaces.iommufd import DeviceConfig, Region, RegionKind, System
from ..interfaces.iommufd.endpoint_dma import PageTables, ProgramMemory
from ..interfaces.iommufd.pci_device import PciDevice
from ..interfaces.iommufd.places import Places
from ..pci.environment import Environment
from ..pci.function import PciFunction
from ..topology import EndpointSection, Topology

__all__ = ["DeviceMachine", "address_of", "build", "configurations", "native_if_built"]

_FIRST_BAR = 0xC0000000
"""Where firmware would put the first BAR."""
_BARS = range(6)


@dataclass
class DeviceMachine:
    """What a loop serves: see :class:`pviommu.host.work.Machine`. Devices do not reach each other's BARs."""

    endpoints: Mapping[str, Endpoint]
    inputs: Inputs
    counters: Counters
    windows: Windows = field(default_factory=Windows)
    pollables: Sequence[Pollable] = ()

    def functions(self) -> Iterator[PciFunction]:
        """All of them."""
        yield from self.endpoints.values()

    def close(self) -> None:
        """Give everything back."""
        for endpoint in self.endpoints.values():
            endpoint.close()


def address_of(entry: EndpointSection, number: int) -> str:
    """The PCI address of an endpoint, which is the ``number``-th: the one that its topology fixes, else each has a bus
    of its own, from 0000:01:00.0 on.
    """
    address = entry.sbdf or f"{number + 1:02x}:00.0"
    return address if address.count(":") == 2 else f"0000:{address}"


def configurations(topology: Topology) -> list[DeviceConfig]:
    """The devices of a topology, by their addresses; the IOMMU before them is as wide as the topology's. Raises
    ValueError for two of one address.
    """
    aperture = 0, (1 << min(topology.iommu.aperture_bits, 48)) - 1
    windows = [Region(each.start, each.start + each.size - 1, RegionKind.MSI) for each in topology.msi]
    found: dict[str, DeviceConfig] = {}
    for number, entry in enumerate(topology.endpoint):
        name = address_of(entry, number)
        if name in found:
            raise ValueError(f"endpoint {entry.name}: {name} is the address of another one: give it an sbdf")
        own = [Region(each.start, each.start + each.size - 1, RegionKind.DIRECT) for each in entry.reserved]
        found[name] = DeviceConfig(name, aperture=aperture, regions=(*windows, *own))
    return list(found.values())


def native_if_built() -> Core | None:
    """The native core, which makes large maps fast, if it was built."""
    from ..native.build import LibraryError  # only what is asked for costs start-up time
    from ..native.core import native_core

    try:
        return native_core()
    except LibraryError:
        return None


def build(topology: Topology, core: Core | None = None, places: Places | None = None) -> tuple[System, DeviceMachine]:
    """The devices of a topology. ``core``: as of an engine. ``places``: where requests can fail. Raises ValueError as
    above, and OSError.
    """
    system = System(configurations(topology), core=core, places=places)
    environment = Environment(LiveInputs(), Counters())
    endpoints: dict[str, Endpoint] = {}
    memory = ProgramMemory(system.hardware)
    place = _FIRST_BAR
    try:
        for entry, device in zip(topology.endpoint, system.devices.values(), strict=True):
            kind = endpoint_class(entry.kind)
            endpoint = endpoints[entry.name] = kind(
                Surroundings(
                    entry.name,
                    device.stream,
                    PageTables(system.hardware, device.stream),
                    environment,
                    entry.options or kind.OPTIONS(),
                    siblings=endpoints,
                    memory=memory,
                )
            )
            place = _place_bars(endpoint, place)
            device.pci = PciDevice(endpoint, _number(device.config.name))
    except BaseException:
        for endpoint in endpoints.values():
            endpoint.close()
        raise
    return system, DeviceMachine(endpoints, environment.inputs, environment.counters)


def _place_bars(endpoint: Endpoint, place: int) -> int:
    """Give its BARs addresses from ``place`` on, as firmware does; returns what is free behind them."""
    for index in _BARS:
        size = endpoint.region(index).size
        if size:
            place = -(-place // size) * size
            endpoint.config.write(0x10 + 4 * index, place.to_bytes(4, "little"))
            place += size
    return place


def _number(address: str) -> int:
    """Segment, bus, device and function as one number."""
    segment, bus, rest = address.split(":")
    slot, function = rest.split(".")
    return int(segment, 16) << 16 | int(bus, 16) << 8 | int(slot, 16) << 3 | int(function)
