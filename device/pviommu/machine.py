"""The machine that a topology describes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from .counters import Counters
from .dma.access import Copier
from .dma.atc import Atc
from .dma.pages import PageRequester
from .dma.windows import Window, Windows
from .endpoints import endpoint_class
from .endpoints.endpoint import Endpoint, EndpointState
from .endpoints.surroundings import Surroundings
from .engine import PAGE_SHIFT
from .hosted import Pollable
from .inputs import Inputs
from .interfaces.pv.function import PvIommu
from .interfaces.pv.ring_core import DeviceCore
from .interfaces.pv.state import PvIommuState
from .interfaces.smmuv3.state import SmmuState
from .pci.function import Environment, PciFunction
from .pci.state import BusyError, FunctionState, check_function
from .topology import EndpointSection, Topology

if TYPE_CHECKING:
    from .interfaces.smmuv3.function import SmmuFunction

__all__ = ["DRAIN_NS", "BusyError", "Machine", "MachineState", "build_endpoint"]

DRAIN_NS = 2_000_000_000
"""How long :meth:`Machine.drain` takes at most: for a descriptor of every endpoint and what full rings hold."""

AnyEndpoint = TypeVar("AnyEndpoint", bound=Endpoint)


def build_endpoint(
    kind: type[AnyEndpoint],
    entry: EndpointSection,
    iommu: PvIommu | SmmuFunction,
    environment: Environment,
    core: DeviceCore | None = None,
    siblings: Mapping[str, Endpoint] | None = None,
    atc: Atc | None = None,
    requester: PageRequester | None = None,
) -> AnyEndpoint:
    """Put an endpoint behind an IOMMU. ``siblings``: those of its machine, to which it is added by the caller. ``atc``
    and ``requester``: if it has ATS and PRI, those that the IOMMU knows. Raises ValueError if that has no such stream.
    """
    copier = _copier(core, environment)
    surroundings = Surroundings(
        entry.name,
        entry.stream,
        iommu.stream(entry.stream),
        environment,
        entry.options or kind.OPTIONS(),
        iommu.capabilities_of(entry.stream),
        {} if siblings is None else siblings,
        copier,
        atc,
        requester,
        entry.pasid_bits,
        partial(iommu.stream, entry.stream) if entry.pasid_bits else None,
        lambda: core.card(copier) if core else None,
    )
    endpoint = kind(surroundings)
    endpoint.memory.belongs_with(iommu.memory)
    return endpoint


def _copier(core: DeviceCore | None, environment: Environment) -> Copier | None:
    """For the guest memory of one function."""
    return core.copier() if core and environment.inputs.may_be_bypassed else None


class MachineState(msgspec.Struct, frozen=True):
    """A whole machine, without the guest memory, the eventfds and the connections, which its clients bring anew, and
    whatever core it had.
    """

    configuration: dict[str, Any]
    """what it was built of, as plain values: only a machine that is built of the same can go on"""
    iommu: PvIommuState
    endpoints: dict[str, EndpointState]
    counters: dict[str, Any]
    smmus: dict[str, SmmuState] = {}


@dataclass
class Machine:
    """The functions of one virtual machine."""

    iommu: PvIommu
    endpoints: dict[str, Endpoint]
    windows: Windows = field(default_factory=Windows)
    """the endpoints' BARs, for their DMA"""
    smmus: dict[str, SmmuFunction] = field(default_factory=dict)

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
        smmus: dict[str, SmmuFunction] = {}
        endpoints: dict[str, Endpoint] = {}
        atcs = {entry.stream: Atc() for entry in topology.endpoint if entry.ats}
        requesters = {entry.stream: PageRequester() for entry in topology.endpoint if entry.pri}
        try:
            for section in topology.smmu:
                from .interfaces.smmuv3.function import SmmuFunction  # few topologies have one

                streams = topology.streams_behind(section.name)
                smmu = SmmuFunction(
                    *(section.name, section.config(), environment, streams, section.identity(), topology.windows()),
                    *(core.another() if core else None, _copier(core, environment), atcs, requesters),
                )
                smmus[section.name] = smmu
                smmu.memory.belongs_with(iommu.memory)
            for entry in topology.endpoint:
                kind, owner = endpoint_class(entry.kind), smmus[entry.smmu] if entry.smmu else iommu
                endpoints[entry.name] = build_endpoint(
                    *(kind, entry, owner, environment, core, endpoints),
                    *(atcs.get(entry.stream), requesters.get(entry.stream)),
                )
        except BaseException:
            for function in (*endpoints.values(), *smmus.values(), iommu):  # endpoints may have made something outside
                function.close()
            raise
        return cls(iommu, endpoints, smmus=smmus)

    def _follow_bars(self) -> None:
        """BARs were added, moved or removed. DMA does not reach the IOMMU: the PV-IOMMU has no windows."""
        windows = [window for endpoint in self.endpoints.values() for window in endpoint.bars.windows()]
        self.windows.replace(window for window in windows if not self._is_reserved(window))
        self.iommu.engine.set_mmio(self.windows.frames())

    def _is_reserved(self, window: Window) -> bool:
        """Whether part of it is in an MSI window."""
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
        """What has to be polled for work: the rings, and what comes of commands of SMMUs."""
        return [self.iommu, *self.smmus.values()]

    def functions(self) -> Iterator[PciFunction]:
        """All of them, the PV-IOMMU first."""
        yield self.iommu
        yield from self.smmus.values()
        yield from self.endpoints.values()

    # -- state ------------------------------------------------------------------------------------------------------
    # All of it is for the loop's thread, between two turns or in the callback of a descriptor: the loop is awake then,
    # and asks for doorbells anew before it sleeps.

    def configuration(self) -> dict[str, Any]:
        """What it is built of, as JSON has it."""
        endpoints = {
            name: {"kind": type(each).__name__, "stream": each.stream, "options": each.options}
            for name, each in self.endpoints.items()
        }
        parts = {"endpoints": endpoints, "iommu": {"name": self.iommu.name, "settings": self.iommu.settings}}
        if self.smmus:
            parts["smmus"] = {
                name: {"settings": each.settings, "streams": sorted(each.streams.items())}
                for name, each in self.smmus.items()
            }
        plain: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(parts))
        return plain

    def drain(self) -> None:
        """Bring to an end what no state holds: the request that an endpoint is carrying out (what is queued behind it
        stays queued), and registers that DMA has written to. Rings are executed as far as that waits for them; a long
        operation of theirs needs no end.

        Raises BusyError for what takes longer than :data:`DRAIN_NS`.
        """
        deadline = self.inputs.now_ns() + DRAIN_NS
        while (going_on := [each for each in self.endpoints.values() if each.goes_on()]) or self.windows.is_waiting:
            if self.inputs.now_ns() > deadline:
                raise BusyError(f"{going_on[0].name if going_on else 'DMA to registers'} does not come to an end")
            for pollable in self.pollables:
                pollable.work()
            for endpoint in going_on:
                if self.windows.deliver():
                    endpoint.bring_to_end()
            self.windows.deliver()

    def save(self) -> MachineState:
        """The state. Raises BusyError if something is being done that no state holds: :meth:`drain` ends most of it; a
        write to a register that takes steps, and work in a thread, end in later turns of the loop.
        """
        self._check_writes()
        for endpoint in self.endpoints.values():
            if busy := endpoint.busy_with():
                raise BusyError(f"{endpoint.name}: {busy} is not done yet")
        if self.windows.is_waiting:
            raise BusyError("registers that DMA has written to are not told yet")
        return MachineState(
            self.configuration(),
            self.iommu.save(),
            {name: endpoint.save() for name, endpoint in self.endpoints.items()},
            self.counters.report(),
            {name: smmu.save() for name, smmu in self.smmus.items()},
        )

    def load(self, state: MachineState) -> None:
        """Go on from a state, whatever was done before. The clients have brought the guest memory that it was made
        with; interrupts wait for the eventfds that they have not brought yet.

        Raises ValueError for a state of a machine that is built of something else or has other guest memory, and
        BusyError while a write to a register takes steps: nothing is changed then. Raises ValueError for one that
        cannot be: the machine is as at power-on then.
        """
        _compare(state.configuration, self.configuration())
        for function, saved in self._functions_of(state):
            try:
                check_function(function, saved)
            except ValueError as error:
                raise ValueError(f"{function.name}: {error}") from error
        self._check_writes()
        try:
            self.windows.forget()
            for name, endpoint in self.endpoints.items():
                endpoint.load(state.endpoints[name])
            self.iommu.load(state.iommu)
            for name, smmu in self.smmus.items():
                smmu.load(state.smmus[name])
            self.counters.load(state.counters)
        except Exception:
            for function in self.functions():
                function.reset()
            raise
        for endpoint in self.endpoints.values():
            endpoint.on_ready()

    def _functions_of(self, state: MachineState) -> Iterator[tuple[PciFunction, FunctionState]]:
        if state.endpoints.keys() != self.endpoints.keys():
            raise ValueError(f"endpoints {', '.join(state.endpoints)}, and here {', '.join(self.endpoints)}")
        if state.smmus.keys() != self.smmus.keys():
            raise ValueError(f"SMMUs {', '.join(state.smmus)}, and here {', '.join(self.smmus)}")
        yield self.iommu, state.iommu.function
        yield from ((smmu, state.smmus[name].function) for name, smmu in self.smmus.items())
        yield from ((endpoint, state.endpoints[name].function) for name, endpoint in self.endpoints.items())

    def _check_writes(self) -> None:
        for function in self.functions():
            if function.unfinished_writes:
                raise BusyError(f"{function.name}: a write to its registers is not done yet")

    def close(self) -> None:
        """Give everything back."""
        for function in self.functions():
            function.close()


def _compare(saved: Any, here: Any, what: str = "") -> None:
    """Raise ValueError for the first difference between two configurations."""
    if isinstance(saved, dict) and isinstance(here, dict):
        for key in (*saved, *(here.keys() - saved.keys())):
            _compare(saved.get(key), here.get(key), f"{what}.{key}" if what else key)
    elif saved != here:
        raise ValueError(f"it is of another machine: {what} was {saved!r} there, and is {here!r} here")
