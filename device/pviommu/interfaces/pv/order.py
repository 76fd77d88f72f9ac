"""What must be executed before something else may happen: drains of the rings, and how long these go on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

from ...counters import Counters
from ...hosted import Waiting
from ...inputs import Inputs
from .profile import Held, Targets
from .ring import MASK, CommandRing

__all__ = ["DRAIN_NS", "STEP_NS", "Backlog", "Executed", "Order"]

STEP_NS = 1_000_000
"""Time for one step of all rings together. Each ring stops after the slot or piece that takes it past its share: a full
ring of the largest maps takes seconds."""
DRAIN_NS = 1_000_000
"""Time for all drains together between two steps of the rings. What they leave undone is left to the steps that
follow."""


class Backlog(NamedTuple):
    """What the rings held at one time. It has no meaning any more after a reset, which begins another ``era``."""

    targets: Targets
    era: int


class Executed(Protocol):
    """A ring and what executes its slots: see :class:`.ring_execution.RingExecutor`."""

    ring: CommandRing

    @property
    def is_held(self) -> bool: ...
    def pending(self) -> int: ...
    def execute(self, limit: int, deadline_ns: float) -> None: ...


class Order:
    """Brings rings up to the indices that something waits for."""

    def __init__(self, inputs: Inputs, counters: Counters) -> None:
        self.rings: Sequence[Executed] = ()
        """all of them, by number"""
        self._inputs = inputs
        self._counters = counters
        self.drain_left_ns = DRAIN_NS
        """what is left of the time for drains; each step of the rings gives all of it again"""
        self._era = 0

    def reset(self) -> None:
        """Nobody waits any more for what the rings held."""
        self._era += 1

    # -- what rings held --------------------------------------------------------------------------------------------

    def backlog(self) -> Backlog:
        """What each ring holds now, including an operation in progress."""
        return Backlog(self._targets(), self._era)

    def is_current(self, backlog: Backlog) -> bool:
        """Whether there was no reset since ``backlog`` was taken."""
        return backlog.era == self._era

    def save(self, backlog: Backlog | None) -> Targets | None:
        """The saved form of a backlog, if there is one; None once it has no meaning."""
        return backlog.targets if backlog and self.is_current(backlog) else None

    def load(self, targets: Targets | None) -> Backlog | None:
        """The backlog that was saved. Raises ValueError if it names rings that do not exist."""
        if targets is None:
            return None
        self.check(targets)
        return Backlog(targets, self._era)

    def check(self, targets: Targets) -> None:
        """Raise ValueError if a ring does not exist."""
        for number, _ in targets:
            if not 0 <= number < len(self.rings):
                raise ValueError(f"ring {number} is to be waited for, and there are {len(self.rings)}")

    def drain(self, backlog: Backlog) -> bool:
        """Execute a backlog, as far as the time for drains reaches. Returns whether all of it is done.

        The rest is done by the steps of the rings; whoever needs it asks again after the next one. So a guest that
        fills its rings with large operations delays its own DMA and nobody else.
        """
        if not self.is_current(backlog) or not self._is_missing(backlog.targets, awaits_all=False):
            return True
        if self.drain_left_ns > 0:
            start = self._inputs.now_ns()
            self._drain_to(backlog.targets, start + self.drain_left_ns, awaits_all=False)
            self.drain_left_ns -= self._inputs.now_ns() - start
        done = not self._is_missing(backlog.targets, awaits_all=False)
        if not done:
            self._counters.drains_continued += 1
        return done

    def drain_in_steps(self, backlog: Backlog) -> Iterator[None]:
        """As :meth:`drain`, in steps of about :data:`DRAIN_NS`, until all is done except in rings that are held."""
        while self.is_current(backlog) and self._may_advance(backlog.targets):
            self._drain_to(backlog.targets, self._inputs.now_ns() + DRAIN_NS, awaits_all=False)
            if self._is_missing(backlog.targets, awaits_all=False):
                self._counters.drains_continued += 1
                yield

    # -- other rings first ------------------------------------------------------------------------------------------

    def left_of_others(self) -> Targets:
        """Execute the other rings (all but those whose slots are being executed right now) up to where an operation
        that must not overtake theirs may begin. Returns where that is if there was not enough time, else nothing.
        """
        targets = self._targets()
        return () if not targets or self.reach(targets) else targets

    def reach(self, targets: Targets) -> bool:
        """Execute rings up to ``targets``, for about :data:`STEP_NS`. Returns whether they have got there, with no
        operation in progress in any of them.
        """
        return self._drain_to(targets, self._inputs.now_ns() + STEP_NS, awaits_all=True)

    def held_by(self, targets: Targets) -> Waiting | None:
        """What one of these rings waits for, if that does not depend on the guest."""
        operations = (self.rings[number].ring.operation for number, _ in targets if self.rings[number].is_held)
        progress = next((operation.progress for operation in operations if operation), None)
        return progress.waiting if isinstance(progress, Held) else None

    def _targets(self) -> Targets:
        """The targets of the rings that hold something now, except those whose slots are being executed."""
        targets = []
        for executed in self.rings:
            ring = executed.ring
            count = 0 if ring.busy else executed.pending()
            if ring.operation and not ring.busy:
                count = max(count, 1)  # it is a slot's operation, though the guest may have taken slots back
            if count:
                targets.append((ring.number, ring.completed + count & MASK))
        return tuple(targets)

    def _drain_to(self, targets: Targets, deadline_ns: float, *, awaits_all: bool) -> bool:
        """Execute rings up to ``targets`` and, with ``awaits_all``, until none has an operation in progress, whichever
        slot it is of. False if time ran out.

        Something is executed at each call, so repeating this comes to an end.
        """
        is_held = False
        for number, target in targets:
            executed = self.rings[number]
            while count := self._missing(executed, target, awaits_all=awaits_all):
                executed.execute(count, deadline_ns)
                if executed.is_held:
                    is_held = True
                    break
                if self._inputs.now_ns() > deadline_ns:
                    return not self._is_missing(targets, awaits_all=awaits_all)
        return not is_held or not self._is_missing(targets, awaits_all=awaits_all)

    def _is_missing(self, targets: Targets, *, awaits_all: bool) -> bool:
        return any(self._missing(self.rings[number], target, awaits_all=awaits_all) for number, target in targets)

    def _may_advance(self, targets: Targets) -> bool:
        """Whether a ring that has not reached its target is not held."""
        rings = ((self.rings[number], target) for number, target in targets)
        return any(self._missing(ring, target, awaits_all=False) and not ring.is_held for ring, target in rings)

    @staticmethod
    def _missing(executed: Executed, target: int, *, awaits_all: bool) -> int:
        """How many slots a ring still has to complete to reach ``target``; at least 1 while one of them has an
        operation in progress, with ``awaits_all`` while any slot has.
        """
        ring = executed.ring
        if ring.busy or not ring.enabled:
            return 0
        distance = target - ring.completed & MASK
        is_short = 0 < distance <= ring.entries
        # a ring that was turned off and on since, or whose guest took slots back, has nothing to wait for
        count = min(distance, executed.pending()) if is_short else 0
        return count or int((is_short or awaits_all) and ring.operation is not None)
