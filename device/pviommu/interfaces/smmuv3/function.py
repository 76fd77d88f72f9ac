"""The SMMU's PCI function: the register frame in BAR 0, three MSI-X vectors, and the streams of its endpoints.

It has an engine of its own, in which all guest RAM is mapped 1:1, so nothing that another interface does or undoes
reaches it.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from types import MappingProxyType
from typing import Any

from smmuv3.events import Event
from smmuv3.registers import FRAME_SIZE, MSIX_BAR, REGISTER_BAR, REGISTERS, Cr0, Vector

from ...dma.access import Copier
from ...dma.atc import Atc
from ...dma.pages import PageRequester
from ...engine import MSI_WINDOW, Access, Engine, EngineConfig, ReservedFrames
from ...engine.core import Core
from ...engine.ranges import FrameRanges
from ...hosted import Host, Poll, Timer
from ...pci.capabilities import Capability
from ...pci.function import Environment, PciFunction
from ...pci.identity import Identity
from ...pci.state import load_function, save_function
from .config import DEVICE_ID, SmmuConfig
from .smmu import KEPT, Smmu
from .state import SmmuState
from .stream import ParentFault, SmmuStream
from .translation import Stale

__all__ = ["DEFAULT_IDENTITY", "KEPT", "SmmuFunction"]

log = logging.getLogger(__name__)

DEFAULT_IDENTITY = Identity(0x1234, DEVICE_ID, 0x080600)
MSIX_BAR_SIZE, MSIX_PBA_OFFSET = 0x1000, 0x800
_PARENT, _FIRST_DOMAIN, _OWN_STREAM = 1, 2, 1 << 32
"""Numbers in the engine: the parent, the first domain of a stream, and the SMMU's own stream, no endpoint's."""
_MOST_EVENTS = 16
ATC_TIMEOUT_NS = 500_000_000
"""How long a CMD_SYNC waits for ATCs. PCI Express gives an endpoint a minute, but drivers wait for a second."""
_CONSTANT = tuple(register.name for register in REGISTERS if register.name.startswith(("IDR", "IIDR", "AIDR")))
_POOL_PAGES = 1 << 26
"""Enough for a parent of all RAM that its aperture has room for."""


class SmmuFunction(PciFunction):
    """The function that the guest programs."""

    def __init__(
        self,
        name: str,
        config: SmmuConfig,
        environment: Environment,
        streams: Mapping[int, int],
        identity: Identity = DEFAULT_IDENTITY,
        windows: Sequence[ReservedFrames] = (MSI_WINDOW,),
        core: Core | None = None,
        copier: Copier | None = None,
        atcs: Mapping[int, Atc] = MappingProxyType({}),
        requesters: Mapping[int, PageRequester] = MappingProxyType({}),
    ) -> None:
        """``streams``: StreamIDs by stream, which is by what the machine knows an endpoint. ``windows``: where writes
        are interrupts; the parent never leads there. ``core``: one that no other engine has, else Python's; with
        ``copier``, through which it reads guest memory, it walks tables. ``atcs`` and ``requesters``: by stream, of
        endpoints that have one. Raises ValueError for StreamIDs that are out
        of range or not unique.
        """
        super().__init__(name, identity, environment)
        self.settings = config
        self.streams = dict(streams)
        self._atcs = {stream: atc for stream, atc in atcs.items() if stream in streams}
        self._requesters = {stream: each for stream, each in requesters.items() if stream in streams}
        self.memory.copier = copier
        bits = min(48, config.address_bits)
        engine_config = EngineConfig(pool_pages=_POOL_PAGES, aperture_bits=bits, reserved=tuple(windows))
        self._engine = Engine(engine_config, core)
        self._engine.alloc_paging(_PARENT, clone=True)
        self._changed_ram: FrameRanges | None = None
        self._host: Host | None = None
        """the loop that serves it, once there is one"""
        self.parent_faults: deque[ParentFault] = deque(maxlen=KEPT)
        """the last ones"""
        self.stale: deque[Stale] = deque(maxlen=KEPT)
        """the last ones, of a strict cache"""
        self._probed: set[SmmuStream] = set()
        """translators before which rules may stand"""
        self.smmu = Smmu(
            config,
            self._engine,
            self.memory,
            _PARENT,
            own_stream=_OWN_STREAM,
            first_domain=_FIRST_DOMAIN,
            interrupt=self._raise,
            on_parent_fault=self._on_parent_fault,
            on_stale=self._on_stale,
            before=self.settle,
            stages=core.stages(copier, _PARENT, 1 << config.address_bits) if core else None,
            later=self._later,
        )
        for stream, sid in self.streams.items():
            self._engine.add_endpoint(stream)
            self.smmu.bind(stream, sid, atcs.get(stream), requesters.get(stream))
            self.smmu.attach(stream)
            self.stream(stream)
        self.probes.bind(self.smmu.commands, "carry_out", "smmu.command", name, self.smmu.commands)
        self.probes.bind(self.smmu.invalidations, "complete", "smmu.invalidated", name)
        self.probes.bind(self.smmu.page_queue, "record", "smmu.page-request", name, self.smmu.page_queue)
        self.probes.bind(self.smmu.requests, "respond", "smmu.response", name)
        self.probes.bind(self.smmu.memory, "fetch", "smmu.fetch", name)
        self.probes.bind(self.smmu.events, "record", "smmu.event", name, self.smmu.events)
        self.add_register_bar(REGISTER_BAR, self.smmu.registers.file, FRAME_SIZE)
        vectors = len(Vector) if config.priq_bits else Vector.PRIQ
        self.add_msix_bar(MSIX_BAR, vectors, MSIX_BAR_SIZE, MSIX_PBA_OFFSET)
        self.power_on()

    def stream(self, stream: int, pasid: int | None = None) -> SmmuStream:
        """The translator of an endpoint, of its requests with a PASID or of those without. Raises ValueError if it is
        not behind this SMMU.
        """
        translator = self.smmu.translator(stream, pasid)
        if translator not in self._probed:
            self._probed.add(translator)
            self.probes.bind(translator, "translate", "dma.translate", self.name, translator)
        return translator

    def capabilities_of(self, _stream: int) -> list[Capability]:
        """What an endpoint's configuration space is to say of this SMMU: nothing, the guest's firmware does."""
        return []

    def _later(self, callback: Callable[[], None]) -> Timer | None:
        """Time for an endpoint's answer; without a loop that ends none."""
        return self._host.at(self.inputs.now_ns() + ATC_TIMEOUT_NS, callback) if self._host else None

    # -- what it tells ----------------------------------------------------------------------------------------------

    def _raise(self, vector: Vector) -> None:
        self.interrupt(vector)

    def _on_parent_fault(self, fault: ParentFault) -> None:
        self.parent_faults.append(fault)
        log.warning(
            "%s: stream %d: %s at %#x leads to %#x, where there is nothing%s",
            *(self.name, fault.stream, fault.access.name, fault.iova, fault.ipa),
            ", to read a table or a structure" if fault.during_walk else "",
            extra={"event": "smmu-parent-fault", "fields": {"function": self.name, "stream": fault.stream}},
        )

    def _on_stale(self, stale: Stale) -> None:
        self.stale.append(stale)
        log.warning(
            "%s: StreamID %#x: %s is used at %#x as it is cached, and is otherwise in memory: an invalidation is "
            "missing: %s, now %s",
            *(self.name, stale.sid, stale.what, stale.address, stale.cached, stale.now),
            extra={"event": "smmu-stale", "fields": {"function": self.name, "sid": stale.sid, "what": stale.what}},
        )

    # -- for people -------------------------------------------------------------------------------------------------

    def report(self) -> dict[str, Any]:
        """What it is doing: plain values, ready for JSON, as the control command `smmus` describes them."""
        smmu = self.smmu
        file, caches = smmu.registers.file, smmu.caches
        names = [register.name for register in REGISTERS if register.count == 1 and register.name not in _CONSTANT]
        return {
            "name": self.name,
            "enabled": smmu.registers.has(Cr0.SMMUEN),
            "registers": " ".join(f"{name}={file[name]:#x}" for name in names if file[name]),
            "commands": smmu.commands.count(),
            "stalled": len(smmu.stalls.waiting),
            "cached": {
                "STE": len(caches.streams),
                "CD": len(caches.contexts),
                "stage 1": len(caches.stage1),
                "stage 2": len(caches.stage2),
            },
            "invalidations": len(smmu.invalidations),
            "page_requests": sum(map(len, self._requesters.values())),
            "streams": ", ".join(
                f"{stream}: {sid:#x}{' blocked' if self._engine.is_blocked(stream) else ''}{self._in_atc(stream)}"
                for stream, sid in self.streams.items()
            ),
            "parent_faults": len(self.parent_faults),
            "stale": len(self.stale),
        }

    def _in_atc(self, stream: int) -> str:
        """What the endpoint's ATC has, if it has one."""
        atc = self._atcs.get(stream)
        return "" if atc is None else f" ATC {len(atc)}" if atc.is_enabled() else " ATC off"

    def last_events(self) -> list[dict[str, Any]]:
        """The last events, the last one first, likewise."""
        last = islice(reversed(self.smmu.told), _MOST_EVENTS)
        return [{"smmu": self.name, **_event_report(*each)} for each in last]

    def explain(self, stream: int, iova: int, pasid: int | None = None) -> dict[str, Any]:
        """What a write of an endpoint to an address meets, with this PASID or without one, as the control command
        `explain` describes it. Raises KeyError for one that is not behind this SMMU.
        """
        self.settle()
        found = self.smmu.explain(stream, iova, Access.WRITE, pasid).report()
        text = found.pop("text")
        cause = (found["event"] or ("aborted" if found["leads_to"] is None else "not-refused")).lower()
        if self._engine.is_blocked(stream):
            cause, text = "blocked", "the endpoint is blocked until its reset"
        apart = {name: found.pop(name) for name in ("reads", "cached")}
        return {"cause": cause.replace("_", "-"), "text": text, "smmu": {"smmu": self.name} | found, **apart}

    # -- PCI hooks --------------------------------------------------------------------------------------------------

    def on_ram_changed(self, first: int, nr: int) -> None:
        self._changed_ram = self._changed_ram or FrameRanges()
        self._changed_ram.add(first, nr)

    def settle(self) -> None:
        """Tell the engine of RAM that came or went since the last call."""
        if self._changed_ram is not None:
            changed, self._changed_ram = self._changed_ram, None
            self._engine.change_ram(self.memory.ram, changed.spans())

    def on_served(self, host: Host) -> None:
        self._host = host

    def on_reset(self) -> None:
        """As at power-on: nothing is translated. If something was, endpoints are blocked until a reset of their own,
        lest a device address that is left over is taken for a physical one, and their caches are emptied, as they may
        begin anew without that reset (bus mastering turned off and on).
        """
        lost = list(self.streams) if self.smmu.registers.has(Cr0.SMMUEN) else []
        for stream in lost:
            self._engine.block(stream)
        self.smmu.reset()
        for stream in lost:
            self.stream(stream).cancel()
            for kept in (self._atcs.get(stream), self._requesters.get(stream)):
                if kept is not None:
                    kept.clear()  # the tables are gone, and no answer will come

    # -- state ------------------------------------------------------------------------------------------------------

    def save(self) -> SmmuState:
        """The state. No write to a register may be in progress."""
        self.settle()
        return SmmuState(save_function(self), tuple(each for each in self.streams if self._engine.is_blocked(each)))

    def load(self, state: SmmuState) -> None:
        """Go on from a state, whatever was done before. Raises ValueError, half-way, for a state that is another's."""
        self.settle()
        self.smmu.reset()
        load_function(self, state.function)
        for stream in self.streams:
            self._engine.unblock(stream)
        for stream in state.blocked:
            if self._engine.block(stream):
                raise ValueError(f"stream {stream}: not behind {self.name}")

    # -- commands: see :class:`.hosted.Pollable` --------------------------------------------------------------------

    has_core = False
    is_told_of_waits = True
    is_polled = False
    """a write to CMDQ_PROD is trapped, and wakes the loop"""

    def work(self) -> bool:
        """Carry out a bounded number of commands. Returns whether there were any."""
        if not self.smmu.is_waiting():
            return False
        self.settle()
        self.smmu.work()
        return True

    def spin(self, _: Poll) -> bool:
        return False

    def waits(self) -> int:
        return 0

    def is_pressed(self) -> bool:
        return self.smmu.is_waiting()

    def arm(self) -> bool:
        return not self.smmu.is_waiting()

    def disarm(self) -> None:
        """Nothing was armed."""

    def rested(self) -> None:
        """Time means nothing here."""


def _event_report(event: Event, is_told: bool) -> dict[str, Any]:
    record = " ".join(f"{int.from_bytes(event.pack()[place : place + 8], 'little'):#x}" for place in range(0, 32, 8))
    return {"event": event.type.name, "sid": event.sid, "iova": event.address, "record": record, "told": is_told}
