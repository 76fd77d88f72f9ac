"""The PV-IOMMU's PCI function: rings, and the translation of its endpoints' DMA."""

from __future__ import annotations

import logging
from collections.abc import Iterator

from pviommu_abi.registers import (
    MSIX_BAR,
    MSIX_BAR_SIZE,
    MSIX_PBA_OFFSET,
    MSIX_VECTORS,
    REGISTER_BAR,
    REGISTER_BAR_SIZE,
    SHARED_BAR,
    Profile,
)
from pviommu_abi.shared import SHARED_BAR_SIZE
from vfio_user import DmaMapping

from ...engine import Engine
from ...engine.ranges import FrameRanges
from ...history.faults import FaultLog
from ...history.records import History
from ...hosted import Poll
from ...pci.capabilities import Capability
from ...pci.capabilities import endpoint as endpoint_capability
from ...pci.function import Environment, PciFunction
from ...pci.state import load_function, save_function
from .batch import BatchOperations
from .bindings import Bindings
from .capability_area import CapabilityPublisher, Chain, endpoint_entries, limits
from .config import NO_STREAM, IommuConfig
from .contexts import Contexts
from .events import EventRing
from .execution import Executor
from .guest_tables import CAPABILITY, ContextTables
from .in_flight import InFlight
from .page_operation import watched_kinds
from .patience import Patience
from .profile import XenProfile
from .recording import RefusedDma, record_operations
from .registers import PvRegisters
from .reporting import Reporter
from .ring import CommandRing
from .ring_core import DeviceCore
from .state import PvIommuState
from .stream import PvStream
from .unshared import UnsharedMemory
from .vendor import VendorOperations
from .xen_2024 import Xen2024
from .xen_v7 import XenV7

__all__ = ["IommuConfig", "PvIommu"]

log = logging.getLogger(__name__)

_OF_DMA = ("dma.translate", "dma.read", "dma.write")
"""Probes that a request passes."""


class PvIommu(PciFunction):
    """The function that the guest programs. Each of its streams translates for the endpoint with that stream ID."""

    def __init__(
        self, name: str, config: IommuConfig, environment: Environment, core: DeviceCore | None = None
    ) -> None:
        """``core`` carries out what it can; without one, Python does everything."""
        super().__init__(name, config.identity, environment)
        self.settings = config
        self._engine = Engine(config.engine, core)
        self._contexts = Contexts(self._engine, config.max_contexts, config.default_policy)
        self._changed_ram: FrameRanges | None = None
        """frames whose changes engine and capability area have not been told of yet"""
        for stream in config.streams:
            self._contexts.add_endpoint(stream, config.reserved.get(stream, ()))
        if core and environment.inputs.may_be_bypassed:
            self.memory.copier = core.copier()
        self._unshared = UnsharedMemory(name, self.memory, self.bars, self._engine)
        self.shared = self.add_shared_bar(SHARED_BAR, SHARED_BAR_SIZE)
        self.add_msix_bar(MSIX_BAR, MSIX_VECTORS, MSIX_BAR_SIZE, MSIX_PBA_OFFSET)
        self.config.add_capability(*endpoint_capability(config.instance, NO_STREAM))
        self.bindings = Bindings(frozenset(config.streams), config.fixed_bindings)
        self.events = EventRing(self.shared, self.inputs)
        self._reporter = Reporter(self._contexts, self.bindings, self.events, environment, self)
        ring_core = self._ring_core = core.rings(config.rings, self.shared, self.inputs) if core else None
        self.has_core = ring_core is not None
        """whether :meth:`spin` can do anything"""
        self.rings = [
            ring_core.ring(number) if ring_core else CommandRing(number, self.shared, self.inputs)
            for number in range(config.rings)
        ]
        self._capabilities = CapabilityPublisher(self.shared)
        self._published = b""
        operands = (self._contexts, self.bindings, self.memory, self.counters, config)
        xen_2024, self._xen_v7 = Xen2024(*operands), XenV7(*operands)
        self._profiles: dict[int, XenProfile] = {Profile.XEN_2024: xen_2024, Profile.XEN_V7: self._xen_v7}
        batch = BatchOperations(self.engine, self.memory, self.counters)
        self._tables = ContextTables(
            *(self._contexts, self.memory, InFlight(self.shared), core), offered=config.guest_tables
        )
        vendor = VendorOperations(self._contexts, self.bindings, self.events, batch, self._tables, self.counters)
        self._executor = Executor(self.rings, vendor, environment, self._reporter, ring_core)
        xen_2024.bind(self.probes, name)
        self._xen_v7.bind(self.probes, name)
        vendor.bind(self.probes, name)
        self._executor.bind(self.probes, name)
        for ring in self.rings:
            self.probes.bind(ring, "fetch", "ring.fetch", name, ring)
            self.probes.bind(ring, "publish", "ring.complete", name, ring)
        self.probes.bind(self._reporter, "fault", "fault.record", name)
        self.probes.bind(self._reporter, "event", "fault.deliver", name, self._reporter)
        self._bind_engine()
        self.registers = PvRegisters(
            *(self, config.instance, self.rings, self._executor, self._profiles), guest_tables=config.guest_tables
        )
        self.add_register_bar(REGISTER_BAR, self.registers.file, REGISTER_BAR_SIZE)
        self._patience = Patience(self._executor.order, self.settle, self.inputs)
        self._streams = {
            stream: PvStream(stream, self._contexts, self._tables, self.settle, self._patience, self._reporter)
            for stream in config.streams
        }
        for each in self._streams.values():
            self.probes.bind(each, "translate", "dma.translate", name, each)
        self.probes.bound(self._follow_rules)
        self.power_on()
        if self.probes.interposer:
            self.probes.interposer.attach(self)

    def _bind_engine(self) -> None:
        """Make probes of the calls to engine and contexts."""
        engine, contexts, name = self._engine, self._contexts, self.name
        for holder, method, probe in (
            (engine, "map", "table.map"),
            (engine, "unmap", "table.unmap"),
            (engine, "reserve_pool", "pool.reserve"),
            (contexts, "alloc", "context.alloc"),
            (contexts, "free", "context.free"),
            (contexts, "attach", "context.attach"),
            (contexts, "hold", "context.hold"),
        ):
            self.probes.bind(holder, method, probe, name)
        iotlb = engine.iotlb(is_used=False)
        for method, probe in (("get", "iotlb.lookup"), ("put", "iotlb.fill"), ("invalidate", "iotlb.invalidate")):
            self.probes.bind(iotlb, method, probe, name)

    def _follow_rules(self) -> None:
        """Update what depends on which probes are watched, and on whether there are rules that the guest is told
        about."""
        probes, config = self.probes, self.settings
        self._executor.watch(watched_kinds(probes))
        self._engine.iotlb(is_used=any(map(probes.is_watched, ("iotlb.lookup", "iotlb.fill", "iotlb.invalidate"))))
        faults = probes.interposer.capability() if probes.interposer else None
        self._tables.transfers = self.memory.copier is not None and not any(map(probes.is_watched, _OF_DMA))
        tables = CAPABILITY if config.guest_tables else None
        self._chain = Chain(config.engine, limits(config), endpoint_entries(config), config.reserved, faults, tables)
        self._publish_capabilities()
        self._show_rules()

    def _show_rules(self) -> None:
        """Show the guest what the rules have done, in shared memory that has nothing there yet."""
        if self.probes.interposer:
            self.probes.interposer.show(self.shared)

    def keep_history(self, history: History | None) -> FaultLog:
        """Record operations in ``history``, if given, and explain refused DMA by it, from now on. Call it once."""
        refused = RefusedDma(history, self._contexts, self.bindings, self.inputs.now_ns, self.probes.interposer)
        if history:
            with self.probes.off():
                record_operations(history, self._contexts, self._executor.order.rings, self.inputs.now_ns)
                refused.watch(self._streams.values())
            if self._ring_core:
                self._ring_core.keep_history(history.buffer)
        self._reporter.on_fault = refused.add
        return refused.log

    def stream(self, stream: int) -> PvStream:
        """The translator of the endpoint ``stream``. Raises ValueError if that is not one of the configured streams."""
        if stream not in self._streams:
            raise ValueError(f"stream {stream}: not one of {self.settings.streams}")
        return self._streams[stream]

    def capabilities_of(self, stream: int) -> list[Capability]:
        """What an endpoint's configuration space is to say of this PV-IOMMU."""
        return [endpoint_capability(self.settings.instance, stream)]

    # -- PCI hooks --------------------------------------------------------------------------------------------------

    def reset(self) -> None:
        """As for every function. A client does this at a reboot, before which the guest's driver has stopped."""
        if self.registers.rings_on:
            log.info(
                "%s: reset by the client while rings were on: the guest was reset, or a saved state was loaded, which "
                "this device does not survive: bind its driver anew then",
                self.name,
                extra={"event": "reset-in-use", "fields": {"function": self.name}},
            )
        super().reset()

    def _hold_blocked(self) -> None:
        """After a reset: endpoints that it left blocked stay so until they are attached, because nobody translates for
        them any more."""
        for stream in self.engine.endpoints():
            if self.engine.is_blocked(stream):
                self.contexts.hold(stream)

    def disconnected(self) -> None:
        """As for every function; the endpoints behind this one stay blocked, even after a reset of their own."""
        super().disconnected()
        self._unshared.forget()
        self._hold_blocked()

    def on_function_reset(self) -> None:
        """As :meth:`disconnected`: whatever a driver has told the device is lost."""
        self.on_reset()
        self._hold_blocked()

    def on_reset(self) -> None:
        """Power-on state: rings off, only the default context, bindings and profile gone, queued DMA cancelled."""
        self._executor.reset()
        for profile in self._profiles.values():
            profile.reset()
        for ring in self.rings:
            ring.disable()
        lost = self.contexts.reset()  # what these endpoints have queued was not meant for the default context
        self.bindings.reset()
        self.shared.clear()
        self._tables.reset()
        self.events.reset()
        self.registers.reset()
        self._publish_capabilities()
        if self.probes.interposer:
            self.probes.interposer.reset(self.name)
        self._show_rules()
        for stream in lost:
            self._streams[stream].cancel()

    # -- state ------------------------------------------------------------------------------------------------------

    def save(self) -> PvIommuState:
        """The state. No write to a register may be in progress."""
        self.settle()
        backlogs = ((stream, each.save()) for stream, each in self._streams.items())
        return PvIommuState(
            function=save_function(self),
            engine=self._engine.save(),
            contexts=self._contexts.save(),
            bindings=self.bindings.save(),
            events=self.events.save(),
            rings=tuple(ring.save() for ring in self.rings),
            setups=self.registers.save(),
            executor=self._executor.save(),
            xen_v7=self._xen_v7.save(),
            patience=self._patience.save(),
            backlogs={stream: targets for stream, targets in backlogs if targets is not None},
            capability_generation=self._capabilities.generation,
            tables=self._tables.save(),
            steps=self._tables.in_flight.save(),
        )

    def load(self, state: PvIommuState) -> None:
        """Go on from a state, whatever was done before. Raises ValueError, half-way, for a state that contradicts
        itself."""
        if len(state.rings) != len(self.rings):
            raise ValueError(f"{len(state.rings)} rings, and there are {len(self.rings)}")
        self.settle()
        self._executor.reset()
        load_function(self, state.function)
        self._engine.load(state.engine, tables=self._tables.tables_of(state.tables))
        self._contexts.load(state.contexts)
        self._tables.load(state.tables)
        self._tables.in_flight.load(state.steps)
        self.bindings.load(state.bindings)
        self.events.load(state.events)
        for ring, saved in zip(self.rings, state.rings, strict=True):
            ring.load(saved)
        self.registers.load(state.setups)
        self._xen_v7.load(state.xen_v7)
        self._executor.select(self._profiles.get(self.registers.file["PROFILE"]))
        self._executor.load(state.executor)
        self._patience.load(state.patience)
        for stream, each in self._streams.items():
            each.load(state.backlogs.get(stream))
        self._published = self._chain.with_ram(self.memory.ram)
        self._capabilities.generation = state.capability_generation

    @property
    def engine(self) -> Engine:
        """The engine. It knows of all RAM."""
        self.settle()
        return self._engine

    @property
    def contexts(self) -> Contexts:
        """Xen's contexts, over the same engine."""
        self.settle()
        return self._contexts

    def on_ram_changed(self, first: int, nr: int) -> None:
        self._changed_ram = self._changed_ram or FrameRanges()
        self._changed_ram.add(first, nr)

    def settle(self) -> None:
        """Tell the engine and the guest about RAM that came or went since the last call: once for all changes of a
        turn, and before anything that depends on them.
        """
        if self._changed_ram is not None:  # this runs at each translation
            changed, self._changed_ram = self._changed_ram, None
            ram = self.memory.ram
            self._engine.change_ram(ram, changed.spans())
            if self._chain.reaches(changed.bounds[0]) and self._chain.with_ram(ram) is not self._published:
                self._publish_capabilities()

    def on_shared_renewed(self) -> None:
        self._tables.in_flight.reset()
        self._publish_capabilities()
        self._show_rules()

    def dma_map(self, mapping: DmaMapping) -> bool:
        is_new = super().dma_map(mapping)
        if is_new and mapping.fd is None and mapping.readable and mapping.writable:
            self._unshared.look_at(mapping)
        return is_new

    def check_client(self) -> None:
        self._unshared.check_client()

    def close(self) -> None:
        self._tables.in_flight.abandon()  # endpoints may be in the middle of a request
        super().close()

    def _publish_capabilities(self) -> None:
        self._published = self._chain.with_ram(self.memory.ram)
        self._capabilities.publish(self._published)

    # -- rings ------------------------------------------------------------------------------------------------------

    def work(self) -> bool:
        """Execute a bounded number of slots of each ring. Returns whether there were any."""
        self.settle()
        self._patience.look_for_stop()
        return self._executor.work()

    def rested(self) -> None:
        """The loop has slept, so the time that has passed was no stop of the process."""
        self._patience.rested()

    def spin(self, poll: Poll) -> bool:
        """Let the core poll the rings. Returns whether it executed anything."""
        self.settle()
        return self._executor.spin(poll)

    def waits(self) -> int:
        """How many times somebody in the guest began to wait since the last call, as far as that can be told."""
        return self._executor.take_waits()

    def is_pressed(self) -> bool:
        """Whether there is work that cannot wait a moment: somebody polls for it, or it takes more than one step."""
        return self._executor.is_pressed()

    @property
    def is_told_of_waits(self) -> bool:
        """Whether the guest says when it polls for a completion."""
        return self._executor.waits.is_told

    def drain(self) -> Iterator[None]:
        """Execute what each ring holds now, in steps of a millisecond."""
        self.settle()
        order = self._executor.order
        return order.drain_in_steps(order.backlog())

    def arm(self) -> bool:
        """Ask for doorbells. Returns whether the loop may sleep now: no ring has got work in the meantime."""
        return self._executor.arm()

    def disarm(self) -> None:
        """Doorbells are not needed: the rings are being polled."""
        self._executor.disarm()

    @property
    def is_polled(self) -> bool:
        """Whether there is anything that the loop has to poll."""
        return self.registers.rings_on
