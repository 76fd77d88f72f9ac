"""The endpoints' part of the loop's turns: which of them have something to do, and which come first."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import ClassVar, Protocol

from ..hosted import NAP_MS, Host, Standby
from ..inputs import Inputs
from .fairness import Fairness

__all__ = ["ENDPOINTS_NS", "Endpoint", "Endpoints", "Posted"]

ENDPOINTS_NS = 3_000_000
"""The endpoints' part of a turn ends with the step that takes it past this: many endpoints have a step each if these
are short. The next turn goes on with the others.
"""
GOING_ON_NS = 1_000_000
"""The same for what comes after it: steps of requests that are in progress."""
_UNKNOWN_NS = 100_000
"""What the first step after an idle turn is charged: to read the clock before it would make every idle turn slower."""


class Endpoint(Protocol):
    """See :class:`pviommu.endpoints.endpoint.Endpoint`."""

    polls_memory: ClassVar[bool]
    may_nap: bool
    nap_ms: float
    standby: Standby | None
    on_ready: Callable[[], None]
    host: Host

    def step(self) -> bool: ...
    def goes_on(self) -> bool: ...
    def arm(self) -> bool: ...
    def disarm(self) -> None: ...


class Posted(Protocol):
    """Writes to registers by DMA: see :class:`pviommu.dma.windows.Windows`."""

    @property
    def is_waiting(self) -> bool: ...
    def deliver(self, may_go_on: Callable[[], bool]) -> bool: ...


class Endpoints:
    """The endpoints of one machine. One that has nothing to do costs a turn nothing."""

    def __init__(self, inputs: Inputs, endpoints: Iterable[Endpoint], posted: Posted) -> None:
        self.busy = False
        """whether there was something to do in the last :meth:`work`"""
        self.may_nap = False
        """whether all those that had something to do then do not mind a nap"""
        self.nap_ms = NAP_MS
        """how long that may be"""
        self._inputs = inputs
        self._posted = posted
        self._fairness: Fairness[Endpoint] = Fairness()
        members = list(endpoints)
        self._polled = [endpoint for endpoint in members if endpoint.polls_memory]
        self.standbys = [endpoint.standby for endpoint in members if endpoint.standby is not None]
        """those that leave work to native code while the loop sleeps"""
        self._ready = dict.fromkeys(members)  # what was done before is unknown
        for endpoint in members:
            endpoint.on_ready = partial(self.ready, endpoint)

    def ready(self, endpoint: Endpoint) -> None:
        """``endpoint`` may have something to do: it has a step in the next turn, and further ones as long as they find
        anything."""
        self._ready[endpoint] = None

    @property
    def is_polled(self) -> bool:
        """Whether some of them have to be called in each turn."""
        return bool(self._polled)

    @property
    def has_ready(self) -> bool:
        """Whether there is one that has a step in the next turn."""
        return bool(self._ready)

    def arm(self) -> bool:
        """Called before the loop sleeps; returns whether it may."""
        return not self._ready and all(endpoint.arm() for endpoint in self._polled)

    def disarm(self) -> None:
        """The loop is awake."""
        for endpoint in self._polled:
            endpoint.disarm()

    def work(self) -> bool:
        """Have a step done by each that has something to do, as far as there is time; those that used least time come
        first. Returns whether there was anything to do.
        """
        self.may_nap, self.nap_ms = True, NAP_MS
        if not self._ready and not self._polled and not self._posted.is_waiting:
            self.busy = False
        else:
            self.busy = self._work() or self._posted.is_waiting
            self.may_nap &= not self._posted.is_waiting
        return self.busy

    def _work(self) -> bool:
        """Requests that begin come before those in progress, which have a time budget of their own."""
        if not self.busy and not self._posted.is_waiting:  # nothing is in progress
            return self._work_in_turn(self._in_order())
        begun = self._inputs.now_ns()
        if not self._deliver(begun + ENDPOINTS_NS):
            return True
        members = self._in_order()
        going_on = [endpoint for endpoint in members if endpoint.goes_on()]
        if not going_on:
            return self._work_in_turn(members)
        self._work_in_turn([endpoint for endpoint in members if endpoint not in going_on])
        deadline = self._inputs.now_ns() + GOING_ON_NS
        if self._deliver(deadline):
            self._work_in_turn(going_on, deadline)
        return True

    def _in_order(self) -> list[Endpoint]:
        """Those that are to have a step."""
        members = list(dict.fromkeys([*self._ready, *self._polled])) if self._polled else list(self._ready)
        return self._fairness.order(members) if len(members) > 1 else members

    def _work_in_turn(self, members: list[Endpoint], deadline_ns: int | None = None) -> bool:
        """One step of each, until the deadline, or for :data:`ENDPOINTS_NS`. Returns whether there was anything to
        do."""
        busy = False
        worked = self._inputs.worked_ns() if self.busy else None
        for endpoint in members:
            self._ready.pop(endpoint, None)  # before the step, in which it may be made ready
            if not endpoint.step():
                continue
            self._ready[endpoint] = None
            busy = True
            self.may_nap &= endpoint.may_nap
            self.nap_ms = min(self.nap_ms, endpoint.nap_ms)
            if deadline_ns is None:
                deadline_ns = self._inputs.now_ns() + ENDPOINTS_NS
            is_delivered = self._deliver(deadline_ns)
            before, worked = worked, self._inputs.worked_ns()
            self._fairness.charge(endpoint, _UNKNOWN_NS if before is None else worked - before)
            if not is_delivered or self._inputs.now_ns() > deadline_ns:
                self.may_nap = False
                break
        return busy

    def _deliver(self, deadline_ns: int) -> bool:
        """Carry out DMA's writes to registers. Returns whether all are done: before that no endpoint may do
        anything."""
        return self._posted.deliver(lambda: self._inputs.now_ns() <= deadline_ns)
