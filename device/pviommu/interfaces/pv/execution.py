"""Executing slots: which ring when, in what order, and what the guest is told of it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, Protocol

from pviommu_abi.shared import EventReason
from pviommu_abi.slots import PAYLOAD_OFFSET, SLOT_SIZE, Errno, OpClass, Slot, SlotFlags

from ...pci.function import Environment
from ...pci.shared_memory import fence
from .page_operation import PageKinds
from .profile import REFUSED, Answer, Reply, Steps, XenProfile
from .ring import MASK, CommandRing
from .ring_core import Poll, Reason, Report, RingCore
from .vendor import VendorOperations

__all__ = ["Backlog", "Executor", "Notifier"]

log = logging.getLogger(__name__)

BATCH = 256
"""Most slots of a ring in one step."""
STEP_NS = 1_000_000
"""A step of all rings together, each of which ends with the slot or the piece that takes it past its share: a full ring
of the largest maps takes seconds."""
DRAIN_NS = 1_000_000
"""Time for drains between two steps of the rings, all of them together. What is left is for the steps that follow."""
VECTOR_RING = 1
"""MSI-X vector of ring 0; the others follow."""
_POSTED = int(SlotFlags.POSTED)
"""A number: ``&`` with an IntFlag costs as much as a map, and ``~`` of one leaves out the bits without a name."""
_SLOT_FLAGS = _POSTED


class _Operation(NamedTuple):
    """An operation in progress: of the oldest slot of its ring that is not completed."""

    steps: Steps
    flags: int
    sequence: int


Targets = list[tuple[CommandRing, int]]
"""Rings, and the index up to which each is to be completed."""


class Backlog(NamedTuple):
    """What the rings held at one time. Of no meaning any more after a reset, which is ``era``'s end."""

    targets: Targets
    era: int


class Notifier(Protocol):
    """How the guest is told: see :class:`pviommu.interfaces.pv.reporting.Reporter`."""

    name: str

    def event(self, *, reason: EventReason, result: int = 0, slot: int = 0) -> None: ...
    def interrupt(self, vector: int) -> None: ...


class Executor:
    """The command rings of one PV-IOMMU and the operations that they carry.

    A long operation is carried out in pieces. Between two of them other rings have their turns, and so do sockets;
    nothing behind it in its own ring begins before it is complete.
    """

    def __init__(
        self,
        rings: Sequence[CommandRing],
        vendor: VendorOperations,
        environment: Environment,
        notifier: Notifier,
        core: RingCore | None = None,
    ) -> None:
        """``core``: what made ``rings``, if that carries out slots too."""
        self._rings = rings
        self._vendor = vendor
        self._profile: XenProfile | None = None
        self._operations: dict[CommandRing, _Operation] = {}
        self._drain_left_ns = DRAIN_NS
        self._busy_rings = 1
        """of the last step that found any"""
        self._era = 0
        self._inputs = environment.inputs
        self._counters = environment.counters
        self._notifier = notifier
        self._core = core
        self._watched = PageKinds(0)
        self._waits = 0
        self._rung = False
        self.is_told_of_waits = False
        """whether the guest says when it polls; one that does not is believed to wait for all but posted slots"""

    def select(self, profile: XenProfile | None) -> None:
        """Carry out slots of this profile's class from now on, and none of another's."""
        self._profile = self._vendor.profile = profile
        self._select_in_core()

    def watch(self, kinds: PageKinds) -> None:
        """Have Python carry out every slot of these kinds from now on, where it can be seen; a core does the others."""
        self._watched = kinds
        self._select_in_core()

    def _select_in_core(self) -> None:
        if self._core is not None:
            profile = self._profile
            rules = None if profile is None or profile.denied else profile.page_rules
            self._core.select(rules, PageKinds.BOTH & ~self._watched)

    def work(self) -> bool:
        """Execute a bounded number of slots of each ring, for a bounded time. Whether there were any."""
        self._drain_left_ns = DRAIN_NS
        busy = 0
        share = STEP_NS // self._busy_rings
        for ring in self._rings:
            if ring.entries:
                count = self._pending(ring)
                if count or ring in self._operations:
                    self._execute(ring, min(count, BATCH), self._inputs.now_ns() + share)
                    busy += 1
        self._busy_rings = busy or 1
        return busy > 0

    def spin(self, poll: Poll) -> bool:
        """Let the core poll the rings. Whether it executed anything."""
        if self._core is None or self._operations:
            return False
        report = self._core.spin(poll)
        if report.waits:
            self._waits += report.waits
            self.is_told_of_waits = True
        self._settle(self._rings[report.ring], report)
        return report.slots > 0

    def waits(self) -> int:
        """How many times somebody in the guest began to wait since the last call, as far as that can be told."""
        anew = sum(ring.is_awaited_anew() for ring in self._rings if ring.enabled)
        if anew:
            self.is_told_of_waits = True
        count, self._waits = self._waits + anew or int(self._rung), 0
        self._rung = False
        self._counters.waits += count
        return count

    def is_pressed(self) -> bool:
        """Whether there is work that cannot wait a moment: somebody polls for it, or it is more than one step's."""
        return bool(self._operations) or any(
            ring.is_awaited() or self._pending(ring) >= BATCH for ring in self._rings if ring.enabled
        )

    def rung(self) -> None:
        """A doorbell was rung: by somebody who waits, unless the guest says when it does."""
        self._rung = not self.is_told_of_waits

    def backlog(self) -> Backlog:
        """What each ring holds now, with an operation in progress."""
        return Backlog(self._targets(), self._era)

    def is_current(self, backlog: Backlog) -> bool:
        """Whether there was no reset since ``backlog`` was taken."""
        return backlog.era == self._era

    def drain(self, backlog: Backlog) -> bool:
        """Execute what a backlog has, as far as the time for drains reaches. Whether all of it is done.

        What is left is done by the steps of the rings; whoever needs it asks again after the next one. So a guest that
        fills its rings with large operations delays its own DMA and no one else.
        """
        if not self.is_current(backlog) or not self._is_missing(backlog.targets, awaits_all=False):
            return True
        if self._drain_left_ns > 0:
            start = self._inputs.now_ns()
            self._drain_to(backlog.targets, start + self._drain_left_ns, awaits_all=False)
            self._drain_left_ns -= self._inputs.now_ns() - start
        done = not self._is_missing(backlog.targets, awaits_all=False)
        if not done:
            self._counters.drains_continued += 1
        return done

    def drain_in_steps(self, backlog: Backlog) -> Iterator[None]:
        """As :meth:`drain`, for about :data:`DRAIN_NS` a step, to the end."""
        while self.is_current(backlog) and self._is_missing(backlog.targets, awaits_all=False):
            self._drain_to(backlog.targets, self._inputs.now_ns() + DRAIN_NS, awaits_all=False)
            if self._is_missing(backlog.targets, awaits_all=False):
                self._counters.drains_continued += 1
                yield

    def drop(self, ring: CommandRing) -> None:
        """Forget a ring's operation in progress: what it did stays, what is left of it is never done."""
        operation = self._operations.pop(ring, None)
        if operation is not None:
            ring.in_progress = False
            operation.steps.close()

    def arm(self) -> bool:
        """Ask for doorbells. Whether the loop may sleep now: no ring got work in the meantime."""
        rings = [ring for ring in self._rings if ring.enabled]
        for ring in rings:
            ring.arm()
        fence()
        return not self._operations and not any(self._pending(ring) for ring in rings)

    def reset(self) -> None:
        """No profile, nothing in progress."""
        self._era += 1
        self.select(None)
        self._waits = 0
        self._rung = False
        self.is_told_of_waits = False
        for ring in self._rings:
            self.drop(ring)

    def disarm(self) -> None:
        """Doorbells are not needed: the rings are being polled."""
        for ring in self._rings:
            if ring.enabled:
                ring.disarm()

    def _pending(self, ring: CommandRing) -> int:
        was_broken = ring.broken
        count = ring.pending()
        if ring.broken and not was_broken:
            log.warning("%s: ring %d has an impossible producer index and is stopped", self._notifier.name, ring.number)
            self._notifier.event(reason=EventReason.RING_BROKEN, slot=ring.number)
        return count

    # -- other rings first ------------------------------------------------------------------------------------------

    def _targets(self) -> Targets:
        """Where the rings are to get that hold something now; those whose slots are being executed are left alone."""
        targets = []
        for ring in self._rings:
            count = 0 if ring.busy else self._pending(ring)
            if ring in self._operations and not ring.busy:
                count = max(count, 1)  # it is that of a slot, though the guest may have taken slots back
            if count:
                targets.append((ring, ring.completed + count & MASK))
        return targets

    def _drain_to(self, targets: Targets, deadline_ns: float, *, awaits_all: bool) -> bool:
        """Execute rings up to ``targets`` and, with ``awaits_all``, until none has an operation in progress, of
        whatever slot. False if time ran out.

        Something is executed in any case, so repeating this comes to an end.
        """
        for ring, target in targets:
            while count := self._missing(ring, target, awaits_all=awaits_all):
                self._execute(ring, count, deadline_ns)
                if self._inputs.now_ns() > deadline_ns:
                    return not self._is_missing(targets, awaits_all=awaits_all)
        return True

    def _is_missing(self, targets: Targets, *, awaits_all: bool) -> bool:
        return any(self._missing(*each, awaits_all=awaits_all) for each in targets)

    def _missing(self, ring: CommandRing, target: int, *, awaits_all: bool) -> int:
        """Slots that a ring is short of ``target``, at least 1 while one of them has an operation in progress, or any
        slot with ``awaits_all``.
        """
        if ring.busy or not ring.enabled:
            return 0
        distance = target - ring.completed & MASK
        is_short = 0 < distance <= ring.entries
        # a ring that was turned off and on since, or whose guest took slots back, has nothing to wait for
        count = min(distance, self._pending(ring)) if is_short else 0
        return count or int((is_short or awaits_all) and ring in self._operations)

    def _in_order(self, call: Callable[[], Answer]) -> Answer:
        """``call``, once the other rings are where they have to get first."""
        targets = self._targets()
        if not targets or self._drain_to(targets, self._inputs.now_ns() + STEP_NS, awaits_all=True):
            return call()
        return self._wait(targets, call)

    def _wait(self, targets: Targets, call: Callable[[], Answer]) -> Steps:
        yield
        while not self._drain_to(targets, self._inputs.now_ns() + STEP_NS, awaits_all=True):
            yield
        answer = call()
        return answer if isinstance(answer, Reply) else (yield from answer)

    # -- one ring ---------------------------------------------------------------------------------------------------

    def _execute(self, ring: CommandRing, limit: int, deadline_ns: float) -> None:
        """Go on with the ring's operation in progress, then execute up to ``limit`` slots, until ``deadline_ns``."""
        ring.busy = True
        if ring in self._operations:
            limit = limit - 1 if self._advance(ring, deadline_ns) and self._may_go_on(ring, deadline_ns) else 0
        if limit > 0:
            if self._core is None:
                self._execute_slots(ring, ring.fetch(limit), deadline_ns)
            else:
                self._execute_by_core(self._core, ring, limit, deadline_ns)
        ring.busy = False

    def _may_go_on(self, ring: CommandRing, deadline_ns: float) -> bool:
        return not ring.broken and self._inputs.now_ns() <= deadline_ns

    def _execute_by_core(self, core: RingCore, ring: CommandRing, limit: int, deadline_ns: float) -> None:
        """As :meth:`_execute_slots`, which gets what is not for the core, slot by slot."""
        while limit > 0 and ring not in self._operations:
            report = core.execute(ring, limit, int(deadline_ns - self._inputs.now_ns()))
            limit -= report.slots
            reason = report.reason  # the report is not good any more once other rings had a turn
            self._settle(ring, report)
            if reason == Reason.FOR_PYTHON:
                self._execute_slots(ring, ring.fetch(1), deadline_ns)
                limit -= 1
            if reason == Reason.OVERDUE or self._inputs.now_ns() > deadline_ns:
                break

    def _settle(self, ring: CommandRing, report: Report) -> None:
        """Count what a core did, and tell the guest what is left to tell."""
        if not report.slots:
            return
        counters = self._counters
        counters.slots += report.slots
        counters.slots_posted += report.posted
        if not self.is_told_of_waits:
            self._waits += report.slots - report.posted
        counters.ops_failed += report.failed
        counters.pages_mapped += report.pages_mapped
        counters.pages_unmapped += report.pages_unmapped
        if report.maps:
            counters.ops["map_pages"] += report.maps
        if report.unmaps:
            counters.ops["unmap_pages"] += report.unmaps
        if report.interrupt:
            self._notifier.interrupt(VECTOR_RING + ring.number)
        if report.reason == Reason.POSTED_FAILED:
            self._notifier.event(reason=EventReason.POSTED_FAILED, result=report.result, slot=report.sequence)
            self._publish(ring, report.unpublished)

    def _execute_slots(self, ring: CommandRing, raw: bytes, deadline_ns: float) -> None:
        unpublished = 0
        for start in range(0, len(raw), SLOT_SIZE):
            op_class, op, flags, sequence, _, _ = Slot.STRUCT.unpack_from(raw, start)
            reply = self._execute_one(op_class, op, flags, raw[start + PAYLOAD_OFFSET : start + SLOT_SIZE])
            if not isinstance(reply, Reply):  # a long operation
                if unpublished:
                    self._publish(ring, unpublished)
                    unpublished = 0
                self._operations[ring] = _Operation(reply, flags, sequence)
                ring.in_progress = True
                if not self._advance(ring, deadline_ns):
                    break
            else:
                ring.finish(unpublished, reply.result, sequence, reply.payload)
                unpublished += 1
                self._account(flags, sequence, reply.result)
                if not flags & _POSTED:  # somebody waits
                    self._publish(ring, unpublished)
                    unpublished = 0
            if self._inputs.now_ns() > deadline_ns:
                break
        if unpublished:
            self._publish(ring, unpublished)

    def _advance(self, ring: CommandRing, deadline_ns: float) -> bool:
        """Carry out the next pieces of the ring's operation in progress, at least one. Whether that completed it."""
        steps, flags, sequence = self._operations[ring]
        while True:
            try:
                next(steps)
            except StopIteration as end:
                reply: Reply = end.value
                break
            except Exception:  # one bad request fails alone, whatever it hit
                log.exception("%s: operation in progress failed: slot %d", self._notifier.name, sequence)
                reply = Reply(-Errno.EIO)
                break
            if self._inputs.now_ns() > deadline_ns:
                return False
        del self._operations[ring]
        ring.in_progress = False
        ring.finish(0, reply.result, sequence, reply.payload)
        self._account(flags, sequence, reply.result)
        self._publish(ring, 1)
        return True

    def _account(self, flags: int, sequence: int, result: int) -> None:
        self._counters.slots += 1
        if flags & _POSTED:
            self._counters.slots_posted += 1
            if result < 0:
                self._notifier.event(reason=EventReason.POSTED_FAILED, result=result, slot=sequence)
        elif not self.is_told_of_waits:
            self._waits += 1
        if result < 0:
            self._counters.ops_failed += 1

    def _publish(self, ring: CommandRing, count: int) -> None:
        if ring.publish(count):
            self._notifier.interrupt(VECTOR_RING + ring.number)

    def _execute_one(self, op_class: int, op: int, flags: int, payload: bytes) -> Answer:
        if flags & ~_SLOT_FLAGS:
            return REFUSED
        profile, vendor = self._profile, self._vendor
        try:
            if profile is not None and op_class == profile.op_class:
                if profile.reorders(op, payload):
                    return self._in_order(lambda: profile.execute(op, payload))
                return profile.execute(op, payload)
            if op_class == OpClass.VENDOR:
                if vendor.reorders(op):
                    return self._in_order(lambda: vendor.execute(op, payload))
                return vendor.execute(op, payload)
        except Exception:  # one bad request fails alone, whatever it hit
            log.exception(
                "%s: operation failed: class %d op %d payload %s", self._notifier.name, op_class, op, payload.hex()
            )
            return Reply(-Errno.EIO)
        return REFUSED
