"""What must be executed before something else happens: drains of the rings, and for how long these go on."""

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
"""A step of all rings together, each of which ends with the slot or the piece that takes it past its share: a full ring
of the largest maps takes seconds."""
DRAIN_NS = 1_000_000
"""Time for drains between two steps of the rings, all of them together. What is left is for the steps that follow."""


class Backlog(NamedTuple):
    """What the rings held at one time. Of no meaning any more after a reset, which is ``era``'s end."""

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
    """Brings rings where they have to be."""

    def __init__(self, inputs: Inputs, counters: Counters) -> None:
        self.rings: Sequence[Executed] = ()
        """all of them, by number"""
        self._inputs = inputs
        self._counters = counters
        self.drain_left_ns = DRAIN_NS
        """of the time that drains have; each step of the rings gives it back"""
        self._era = 0

    def reset(self) -> None:
        """Nobody waits any more for what the rings held."""
        self._era += 1

    # -- what rings held --------------------------------------------------------------------------------------------

    def backlog(self) -> Backlog:
        """What each ring holds now, with an operation in progress."""
        return Backlog(self._targets(), self._era)

    def is_current(self, backlog: Backlog) -> bool:
        """Whether there was no reset since ``backlog`` was taken."""
        return backlog.era == self._era

    def save(self, backlog: Backlog | None) -> Targets | None:
        """What a backlog, if there is one, is saved as; None once it is of no meaning."""
        return backlog.targets if backlog and self.is_current(backlog) else None

    def load(self, targets: Targets | None) -> Backlog | None:
        """The backlog that was saved. Raises ValueError for one of rings that there are not."""
        if targets is None:
            return None
        self.check(targets)
        return Backlog(targets, self._era)

    def check(self, targets: Targets) -> None:
        """Raise ValueError for rings that there are not."""
        for number, _ in targets:
            if not 0 <= number < len(self.rings):
                raise ValueError(f"ring {number} is to be waited for, and there are {len(self.rings)}")

    def drain(self, backlog: Backlog) -> bool:
        """Execute what a backlog has, as far as the time for drains reaches. Whether all of it is done.

        What is left is done by the steps of the rings; whoever needs it asks again after the next one. So a guest that
        fills its rings with large operations delays its own DMA and no one else.
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
        """As :meth:`drain`, for about :data:`DRAIN_NS` a step, to the end, but for rings that are held."""
        while self.is_current(backlog) and self._is_missing(backlog.targets, awaits_all=False):
            if all(self.rings[number].is_held for number, _ in backlog.targets):
                return
            self._drain_to(backlog.targets, self._inputs.now_ns() + DRAIN_NS, awaits_all=False)
            if self._is_missing(backlog.targets, awaits_all=False):
                self._counters.drains_continued += 1
                yield

    # -- other rings first ------------------------------------------------------------------------------------------

    def left_of_others(self) -> Targets:
        """Have all rings that have nothing executed right now get where they are to be before an operation that must
        not overtake theirs. Where that is, if there was not enough time.
        """
        targets = self._targets()
        return () if not targets or self.reach(targets) else targets

    def reach(self, targets: Targets) -> bool:
        """Execute rings up to ``targets``, for about :data:`STEP_NS`. Whether they are there, and none of them has an
        operation in progress.
        """
        return self._drain_to(targets, self._inputs.now_ns() + STEP_NS, awaits_all=True)

    def held_by(self, targets: Targets) -> Waiting | None:
        """What one of these rings waits for that is nothing of the guest's."""
        operations = (self.rings[number].ring.operation for number, _ in targets if self.rings[number].is_held)
        progress = next((operation.progress for operation in operations if operation), None)
        return progress.waiting if isinstance(progress, Held) else None

    def _targets(self) -> Targets:
        """Where the rings are to get that hold something now; those whose slots are being executed are left alone."""
        targets = []
        for executed in self.rings:
            ring = executed.ring
            count = 0 if ring.busy else executed.pending()
            if ring.operation and not ring.busy:
                count = max(count, 1)  # it is that of a slot, though the guest may have taken slots back
            if count:
                targets.append((ring.number, ring.completed + count & MASK))
        return tuple(targets)

    def _drain_to(self, targets: Targets, deadline_ns: float, *, awaits_all: bool) -> bool:
        """Execute rings up to ``targets`` and, with ``awaits_all``, until none has an operation in progress, of
        whatever slot. False if time ran out.

        Something is executed in any case, so repeating this comes to an end.
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

    @staticmethod
    def _missing(executed: Executed, target: int, *, awaits_all: bool) -> int:
        """Slots that a ring is short of ``target``, at least 1 while one of them has an operation in progress, or any
        slot with ``awaits_all``.
        """
        ring = executed.ring
        if ring.busy or not ring.enabled:
            return 0
        distance = target - ring.completed & MASK
        is_short = 0 < distance <= ring.entries
        # a ring that was turned off and on since, or whose guest took slots back, has nothing to wait for
        count = min(distance, executed.pending()) if is_short else 0
        return count or int((is_short or awaits_all) and ring.operation is not None)
