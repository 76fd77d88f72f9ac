"""What every endpoint has: a stream, access to memory, and its part in turns and resets."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any, ClassVar, TypeVar

import msgspec

from ..dma.atc import Atc
from ..dma.fault import DmaPendingError
from ..dma.pages import PageRequester
from ..dma.port import DmaPort
from ..dma.translator import Translator
from ..hosted import NAP_MS, Host, Standby, Timer
from ..inputs import WorkOutcome
from ..pci.capabilities import (
    ATS,
    PASID,
    PRI,
    PRI_CAPACITY,
    AtsControl,
    PasidControl,
    PriControl,
    PriStatus,
    ats,
    pasid,
    pri,
)
from ..pci.config_space import Identity
from ..pci.function import PciFunction
from ..pci.state import FunctionState, load_function, save_function
from .failure import CANCELLING, EndpointAttempts
from .options import Options
from .surroundings import Surroundings

__all__ = ["Endpoint", "EndpointState", "Options", "Surroundings"]

_R = TypeVar("_R")


class EndpointState(msgspec.Struct, frozen=True):
    """What an endpoint is saved as."""

    function: FunctionState
    failed: bool
    own: dict[str, Any]
    """the fields of its :class:`Endpoint.State`, as plain values"""


class Endpoint(PciFunction):
    """A PCI function that does DMA. Subclasses set ``IDENTITY``, describe their BARs and end with ``power_on()``.

    An exception in any method of a subclass fails this endpoint and nothing else (:mod:`.failure`): until it is reset
    it does no DMA and raises no interrupt, its BARs read all ones where they are not mapped into the guest, and writes
    to them are ignored. Its configuration space still works, so that the guest can reset it.
    """

    IDENTITY: ClassVar[Identity]
    OPTIONS: ClassVar[type[Options]] = Options
    """what a topology may set, if there is anything; :attr:`.surroundings.Surroundings.options` is one"""

    class State(msgspec.Struct):
        """What it keeps beside registers and shared memory: nothing. A subclass has a class of this name with fields of
        plain values, whose defaults are those of power-on.
        """

    state: Any
    """a :class:`State`, made anew at each reset"""
    polls_memory: ClassVar[bool] = False
    """Whether :meth:`work` polls memory that the guest writes to without a trap: then it is called in each turn.
    Otherwise it is called after any access by a client, the guest or DMA of another function.
    """
    may_nap: bool = False
    """whether the next step need not follow before a nap, as it only looks whether there is something new by now"""
    nap_ms: float = NAP_MS
    """how long that nap may be: not longer than this"""
    standby: Standby | None = None
    """what does some of its work while the loop sleeps"""
    host: Host
    """the loop that serves it, once there is one"""
    attempts: EndpointAttempts

    def __init__(self, surroundings: Surroundings) -> None:
        self.stream = surroundings.stream
        self.options = surroundings.options
        self.state = self.State()
        self.on_ready: Callable[[], None] = lambda: None
        """called when there may be something to do for :meth:`step`"""
        self._translator = surroundings.translator
        attempts = EndpointAttempts(self, self._translator)
        super().__init__(surroundings.name, self.IDENTITY, surroundings.environment, attempts)
        self.memory.copier = surroundings.copier
        self._reached = surroundings.memory or self.memory
        self.dma = self._make_port(self._translator)
        self._ports: dict[int, DmaPort] = {}
        """by PASID, of requests that have one"""
        self._translator_of = surroundings.translator_of
        self._has_pasids: Callable[[], bool] = lambda: False
        self._pasid_bits = surroundings.pasid_bits
        self.probes.bind(self, "work", "endpoint.work", self.name, self)
        for capability in surroundings.capabilities:
            self.config.add_capability(*capability)
        self._pri_configured: Callable[[], None] = lambda: None
        self._atc, self._requester = surroundings.atc, surroundings.requester
        if self._atc is not None:
            self._have_ats(self._atc)
        if self._requester is not None:
            self._have_pri(self._requester)
        if self._pasid_bits:
            self._have_pasids(self._pasid_bits)
        self._translator.on_lost(self.cancel)

    def _make_port(self, translator: Translator) -> DmaPort:
        port = DmaPort(
            self.stream,
            *(translator, self._reached, self.counters),
            lambda: self.config.bus_master and not self.attempts.failed,
        )
        self.probes.bind(port, "read_plan", "dma.read", self.name, port)
        self.probes.bind(port, "write_plan", "dma.write", self.name, port)
        return port

    def dma_as(self, pasid: int) -> DmaPort | None:
        """DMA with a PASID; None for one out of range, or if the guest has not turned PASIDs on."""
        if not self._has_pasids() or pasid >> self._pasid_bits or self._translator_of is None:
            return None
        port = self._ports.get(pasid)
        if port is None:
            port = self._ports[pasid] = self._make_port(self._translator_of(pasid))
        return port

    def _have_pasids(self, bits: int) -> None:
        """Let the guest turn PASIDs on."""
        control = self.config.add_extended_capability(*pasid(bits)) + PASID.by_name["CONTROL"].offset
        self._has_pasids = lambda: bool(self.config.get(control, 2) & PasidControl.ENABLE)

    def _have_ats(self, atc: Atc) -> None:
        """Let the guest control ATS."""
        control = self.config.add_extended_capability(*ats()) + ATS.by_name["CONTROL"].offset
        atc.is_enabled = lambda: bool(self.config.get(control, 2) & AtsControl.ENABLE)
        atc.unit = lambda: 12 + AtsControl(self.config.get(control, 2)).STU

    def _have_pri(self, requester: PageRequester) -> None:
        """Let the guest control page requests."""
        begin, config = self.config.add_extended_capability(*pri()), self.config
        control, status, allocation = (begin + PRI.by_name[name].offset for name in ("CONTROL", "STATUS", "ALLOCATION"))

        def tell(bit: int) -> None:
            config.set(status, config.get(status, 2) | bit, 2)

        def is_enabled() -> bool:
            is_failed = config.get(status, 2) & PriStatus.RESPONSE_FAILURE
            return bool(config.get(control, 2) & PriControl.ENABLE) and not is_failed

        def on_configured() -> None:
            is_on = config.get(control, 2) & PriControl.ENABLE
            if not is_on:
                requester.clear()
            config.set(status, PriStatus(config.get(status, 2)).replace(STOPPED=int(not is_on)), 2)

        requester.is_enabled = is_enabled
        requester.allocation = lambda: min(config.get(allocation, 4), PRI_CAPACITY)
        requester.on_failure = lambda: tell(PriStatus.RESPONSE_FAILURE)
        requester.on_unexpected = lambda: tell(PriStatus.UNEXPECTED_GROUP)
        self._pri_configured = on_configured

    # -- what a subclass does ---------------------------------------------------------------------------------------

    @property
    def is_in_progress(self) -> bool:
        """Whether a request has begun that takes several steps. Those of other endpoints that begin come first then."""
        return False

    def work(self) -> bool:
        """Do one bounded step of what is queued, a tenth of a millisecond or so. Returns whether there was anything:
        then it is called again in the next turn, otherwise when there may be something new.

        :class:`DmaPendingError`, which any DMA may raise, may be let through if the request stays queued: nothing has
        happened, and this is called again. A :class:`DmaRefusedError` that it does not catch is no failure: everything
        queued is cancelled.
        """
        return False

    def go_on(self) -> None:
        """The next step of what :attr:`is_in_progress`, and of nothing else: the machine is about to be saved. If the
        guest has turned the device off meanwhile it is to come to an end all the same.
        """
        self.work()

    def on_arm(self) -> bool:
        """For an endpoint that :attr:`polls_memory`: ask the guest to write to a register when there is work, and look
        once more. Returns whether there is none, so that the loop may sleep until then.
        """
        return True

    def on_disarm(self) -> None:
        """The guest need not do so any more."""

    def cancel_dma(self) -> None:
        """Finish queued requests as cancelled, without DMA: if that is refused, the endpoint fails."""

    def reset_device(self) -> None:
        """As at power-on: its registers, unless a subclass does more. :attr:`state` is so afterwards in any case."""
        for file in self.bars.registers.values():
            file.reset()

    def on_load(self) -> None:
        """Registers, shared memory and :attr:`state` were loaded: make from them what else there is, ask for timers
        again. Nothing is in progress, and no work in a thread.
        """

    # -- what a subclass may ask for --------------------------------------------------------------------------------

    def submit(self, work: Callable[[], _R], callback: Callable[[WorkOutcome[_R]], None]) -> None:
        """Do ``work``, which may block, in another thread: it must touch neither this endpoint nor guest memory.
        ``callback`` is then called in the loop with its outcome, unless there was a reset meanwhile.
        """
        self.host.submit(self.attempts, work, partial(self._hear, callback))
        self.attempts.in_threads += 1

    def _hear(self, callback: Callable[[WorkOutcome[_R]], None], outcome: WorkOutcome[_R]) -> None:
        self.attempts.in_threads -= 1
        self.attempts.make("what came of its work in a thread", callback, outcome)

    def at(self, time_ns: int, callback: Callable[[], None]) -> Timer:
        """Call ``callback`` at ``time_ns`` of the inputs' clock, or soon after, unless there is a reset before that."""
        timer = self.host.at(time_ns, partial(self.attempts.make, "the callback of a timer", callback))
        self.attempts.timers.add(timer)
        return timer

    # -- state ------------------------------------------------------------------------------------------------------

    def save(self) -> EndpointState:
        """The state. There must be nothing that it is :meth:`busy_with`."""
        return EndpointState(save_function(self), self.failed, msgspec.to_builtins(self.state))

    def load(self, state: EndpointState) -> None:
        """Go on from a state, whatever was done before. Raises ValueError, on the way, for one that cannot be."""
        self.reset()
        load_function(self, state.function)
        try:
            self.state = msgspec.convert(state.own, self.State)
        except msgspec.ValidationError as error:
            raise ValueError(f"its state: {error}") from error
        self.attempts.make("taking over its state", self.on_load)
        self.attempts.failed |= state.failed

    def busy_with(self) -> str:
        """What it is doing that no saved state holds; empty if there is no such thing."""
        return "a request" if self.goes_on() else "work in a thread" if self.attempts.in_threads else ""

    # -- what is asked of it ----------------------------------------------------------------------------------------

    @property
    def failed(self) -> bool:
        """Whether it raised an exception since its last reset."""
        return self.attempts.failed

    def step(self) -> bool:
        """:meth:`work`, unless it has failed; raises nothing. Whether there was anything to do."""
        if self.attempts.failed:
            return False
        try:  # not an attempt like others, which costs more: this is done at each turn, for each endpoint
            return self.work()
        except DmaPendingError:  # its request is still there
            return True
        except Exception as error:
            self.attempts.caught("its work", error)
            return False
        finally:
            self.dma.end_step()
            for port in self._ports.values():
                port.end_step()

    def bring_to_end(self) -> None:
        """:meth:`go_on`, unless it has failed; raises nothing."""
        self.attempts.quietly("its last work before it is saved", self._go_on)

    def _go_on(self) -> None:
        with suppress(DmaPendingError):  # its request is still there
            self.go_on()

    def goes_on(self) -> bool:
        """:attr:`is_in_progress`, unless it has failed; raises nothing."""
        return bool(self.attempts.quietly("is_in_progress", lambda: self.is_in_progress))

    def cancel(self) -> None:
        """:meth:`cancel_dma`, unless it has failed; raises nothing."""
        self._give_up()
        self.attempts.make(CANCELLING, self.cancel_dma)

    def arm(self) -> bool:
        """:meth:`on_arm`, unless it has failed; raises nothing. Whether the loop may sleep."""
        return self.attempts.quietly("on_arm", self.on_arm) is not False

    def disarm(self) -> None:
        """:meth:`on_disarm`, unless it has failed; raises nothing."""
        self.attempts.quietly("on_disarm", self.on_disarm)

    def settle(self) -> None:
        self.on_ready()  # after requests that call no code of a subclass, too

    def _give_up(self) -> None:
        for port in (self.dma, *self._ports.values()):
            port.give_up()

    def on_reset(self) -> None:
        self._give_up()
        try:
            self.reset_device()
        finally:
            self.state = self.State()
            if self._atc is not None:
                self._atc.clear()
            if self._requester is not None:
                self._requester.clear()
            self._translator.endpoint_begins()
            if self.probes.interposer:
                self.probes.interposer.reset(self.name)

    def on_served(self, host: Host) -> None:
        self.host = host

    def on_configured(self) -> None:
        if self._atc is not None and not self._atc.is_enabled():
            self._atc.clear()
        self._pri_configured()

    def on_bus_master(self, enabled: bool) -> None:
        if enabled:
            self._translator.endpoint_begins()
