"""The one loop: it serves what is ready, polls what is polled as long as the guest waits again and again, and otherwise
sleeps.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import TypeVar

from ..counters import Counters
from ..hosted import NAP_MS, SHORT_NAP_MS, STOPPED_NS, Helper, MayGoOn, Owner, Poll, Standby, Timer, Watch
from ..inputs import Inputs, WorkOutcome
from .calls import Calls
from .pacing import FOREVER, Pace
from .timers import Timers
from .watches import Watches
from .work import Work

__all__ = ["CORE_SPIN_NS", "LOOK_NS", "Loop"]

CORE_SPIN_NS = 200_000
"""How long the core polls in C between two turns. A descriptor that becomes ready ends this early."""
LOOK_TURNS = 16
"""Turns of a busy loop between two looks at the descriptors, if they are short."""
MOST_YOUNG = 700
"""Objects that may have been made since the last collection when the loop falls asleep: as many as Python allows."""
LOOK_NS = 1_000_000
"""Longest time between two looks at the descriptors, besides what is left of the turn in progress."""
AFTER_STOP_NS = 5_000_000
"""After a stop of the process: how long the looks at descriptors go on that precede all work."""
_HELP_NS = 100_000
"""How long helpers may work that are woken, or look, while the loop sleeps: as long as a step of an endpoint."""
_MOST_HELPERS = 64
_LONGEST_MS = 3_600_000
"""Longest sleep until a timer: the kernel counts the milliseconds in 31 bits."""
_T = TypeVar("_T")


class Loop:
    """Serves one machine. Implements :class:`pviommu.hosted.Host`."""

    def __init__(self, work: Work, inputs: Inputs, counters: Counters, pace: Pace) -> None:
        self.watches = Watches(inputs)
        self._work = work
        self._polled = work.polled
        self._endpoints = work.endpoints
        self._inputs = inputs
        self._counters = counters
        self._pace = pace
        self._timers = Timers()
        self.calls = Calls(inputs, self.watches)
        self._stopping = False
        self._armed = False
        self._looked_at = self._turned_at = inputs.now_ns()

    # -- for those that are served ----------------------------------------------------------------------------------

    def watch(self, fd: int, callback: Callable[[int, MayGoOn], None]) -> Watch:
        return self.watches.add(fd, callback)

    def at(self, time_ns: int, callback: Callable[[], None]) -> Timer:
        return self._timers.add(time_ns, callback)

    def call(self, callback: Callable[[], None]) -> None:
        self.calls.call(callback)

    def submit(self, owner: Owner, work: Callable[[], _T], callback: Callable[[WorkOutcome[_T]], None]) -> None:
        self.calls.submit(owner, work, callback)

    def hung_up(self) -> list[Watch]:
        return list(self.watches.hung_up())

    # -- running ----------------------------------------------------------------------------------------------------

    def stop(self) -> None:
        """Leave :meth:`run` at the next turn. For signal handlers too."""
        self._stopping = True

    def run(self) -> None:
        """Serve until :meth:`stop`."""
        gc.collect()
        gc.freeze()
        gc.disable()  # collected when idle, never while a guest waits
        try:
            turns = 0
            while not self._stopping:
                turns = (turns + 1) % LOOK_TURNS
                self.turn(may_look=turns == 0)
        finally:
            gc.enable()
            gc.unfreeze()

    def close(self) -> None:
        """Stop watching. What was watched stays open."""
        self.calls.close()
        self.watches.poller.close()

    def turn(self, *, may_look: bool = True) -> None:
        """One turn: work; look at descriptors or sleep."""
        may_look |= self._polled.has_core or bool(self.watches.unfinished)  # turns with a core are long
        now = self._inputs.now_ns()
        if now - self._turned_at > STOPPED_NS:
            self._catch_up(now + AFTER_STOP_NS)
        if self._timers:
            self._timers.run(now)
        self._turn(may_look)
        self._turned_at = self._inputs.now_ns()

    def _catch_up(self, deadline_ns: int) -> None:
        """Serve descriptors before any DMA: a guest that has given the IOMMU up meanwhile has reset it."""
        self._look(0)
        while self.watches.unfinished and self._inputs.now_ns() < deadline_ns:
            self._look(0)

    def _turn(self, may_look: bool) -> None:
        polled = self._polled
        worked = self._work.step()
        now = self._inputs.now_ns()
        self._learn(now, worked)
        left = self._pace.left_ns(now)
        if left and polled.has_core and not (self._armed or self._endpoints.busy or self.watches.unfinished):
            worked |= polled.spin(Poll(CORE_SPIN_NS, left, self._pace.window_ns, self.watches.poller.fileno()))
            now = self._inputs.now_ns()
            self._learn(now, worked)
        if self._is_nap_due(now):
            self._counters.naps += 1
            self._look(self._endpoints.nap_ms if self._work.may_nap else NAP_MS)
        elif worked:
            if may_look or now - self._looked_at >= LOOK_NS:
                self._look(0)
                self._looked_at = now
        elif self._pace.left_ns(now):
            if may_look:
                self._look(0)
        elif self._may_sleep():
            self._sleep()

    def _is_nap_due(self, now_ns: int) -> bool:
        """Whether to let posted work gather for a moment, or endpoints look less often. The loop does not ask for
        doorbells then, so none can get lost."""
        polled = self._polled
        if self._pace.left_ns(now_ns):
            return False
        if self._work.may_nap:
            return True
        if self._armed or not polled.is_told_of_waits or self._endpoints.busy:
            return False
        return not polled.is_pressed() and self._pace.takes_nap()

    def _learn(self, now_ns: int, worked: bool) -> None:
        """There was work until ``now_ns``, or none."""
        if not worked:
            return
        waits = self._polled.waits()
        if waits:
            self._pace.waited(now_ns, waits)
        self._pace.worked()
        self._disarm()

    def _disarm(self) -> None:
        if self._armed:
            self._armed = False
            self._work.disarm()

    def _may_sleep(self) -> bool:
        """Ask for doorbells and look once more. Whether there is still nothing to do."""
        if not self._armed:
            self._armed = True
            self._pace.armed()
            if not self._work.arm():
                self._disarm()  # at once: a guest may be looking at what is asked for
        return self._armed and not self._endpoints.has_ready

    def _sleep(self) -> None:
        self._counters.sleeps += 1
        timeout_ms = self._pace.sleep_ms() if self._work.is_polled else FOREVER
        if timeout_ms == FOREVER and gc.get_count()[0] > MOST_YOUNG:
            gc.collect(0)
        self._look(timeout_ms)

    def _look(self, timeout_ms: float) -> None:
        """Serve what is ready, after at most ``timeout_ms``."""
        if timeout_ms and self._timers:
            timeout_ms = self._until_timer(timeout_ms)
        is_awake = timeout_ms and self._endpoints.standbys and self._sleep_with_help(timeout_ms)
        ready = self.watches.wait(0 if is_awake else timeout_ms)
        if timeout_ms:
            self._polled.rested()
        if ready:
            self._disarm()  # a ring may have been turned on, or its doorbell rung
            self.watches.serve(ready, lambda: self._stopping)

    def _sleep_with_help(self, timeout_ms: float) -> bool:
        """Sleep while endpoints have somebody who stands by for them. False if there is nobody."""
        if self.watches.unfinished:
            return False
        helpers: list[Helper] = []
        used: list[Standby] = []
        for standby in self._endpoints.standbys[:_MOST_HELPERS]:
            if (helper := standby.stand_by()) is not None:
                helpers.append(helper)
                used.append(standby)
        if not helpers:
            return False
        is_nap = 0 < timeout_ms <= NAP_MS
        longest = NAP_MS if is_nap else timeout_ms
        fd = self.watches.poller.fileno()
        helpers[0].wait(helpers, fd, longest, timeout_ms if is_nap else -1, SHORT_NAP_MS, _HELP_NS)
        for standby in used:
            standby.stood_by()
        return True

    def _until_timer(self, timeout_ms: float) -> float:
        """How long to sleep: ``timeout_ms``, which may be FOREVER, or less if a timer is due before."""
        due_ns = self._timers.next_ns()
        if due_ns is None:
            return timeout_ms
        left_ms = min(max(due_ns - self._inputs.now_ns(), 0) / 1e6, _LONGEST_MS)
        return left_ms if timeout_ms == FOREVER else min(timeout_ms, left_ms)
