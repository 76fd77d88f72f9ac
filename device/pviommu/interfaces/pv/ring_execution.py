"""Executing the slots of one ring, and telling the guest about each."""

from __future__ import annotations

import logging
from typing import Protocol

from msgspec.structs import replace

from pviommu_abi.shared import EventReason
from pviommu_abi.slots import PAYLOAD_OFFSET, SLOT_SIZE, Slot, SlotFlags

from ...pci.function import Environment
from .operations import Operations
from .profile import Held, Reply
from .ring import CommandRing, Operation
from .ring_core import Reason, Report, RingCore
from .waits import Waits

__all__ = ["Notifier", "RingExecutor"]

log = logging.getLogger(__name__)

VECTOR_RING = 1
"""MSI-X vector of ring 0; the others follow."""
_POSTED = int(SlotFlags.POSTED)
"""A plain number: ``&`` with an IntFlag costs as much as a map."""


class Notifier(Protocol):
    """How the guest is told: see :class:`pviommu.interfaces.pv.reporting.Reporter`."""

    name: str

    def event(self, *, reason: EventReason, result: int = 0, slot: int = 0) -> None: ...
    def interrupt(self, vector: int) -> None: ...


class RingExecutor:
    """Executes slots in the order of the ring. A long operation is carried out in pieces; no later slot begins before
    it is complete.
    """

    def __init__(
        self,
        ring: CommandRing,
        operations: Operations,
        waits: Waits,
        environment: Environment,
        notifier: Notifier,
        core: RingCore | None,
    ) -> None:
        self.ring = ring
        self._operations = operations
        self._waits = waits
        self._inputs = environment.inputs
        self._counters = environment.counters
        self._notifier = notifier
        self._core = core

    @property
    def is_held(self) -> bool:
        """Whether the operation in progress waits for something that does not depend on the guest. The ring is then
        treated as if it were empty.
        """
        operation = self.ring.operation
        return operation is not None and isinstance(operation.progress, Held) and not operation.progress.is_over

    def pending(self) -> int:
        """Slots submitted and not completed. A ring that turns out to be broken has none, and the guest is told."""
        ring = self.ring
        was_broken = ring.broken
        count = ring.pending()
        if ring.broken and not was_broken:
            log.warning("%s: ring %d has an impossible producer index and is stopped", self._notifier.name, ring.number)
            self._notifier.event(reason=EventReason.RING_BROKEN, slot=ring.number)
        return count

    def execute(self, limit: int, deadline_ns: float) -> None:
        """Go on with the operation in progress, then execute up to ``limit`` slots, until ``deadline_ns``."""
        ring = self.ring
        if ring.operation and self.is_held:
            return
        ring.busy = True
        if ring.operation:
            limit = limit - 1 if self._advance(ring.operation, deadline_ns) and self._may_go_on(deadline_ns) else 0
        if limit > 0:
            if self._core is None:
                self._execute_slots(ring.fetch(limit), deadline_ns)
            else:
                self._execute_by_core(self._core, limit, deadline_ns)
        ring.busy = False

    def _may_go_on(self, deadline_ns: float) -> bool:
        return not self.ring.broken and self._inputs.now_ns() <= deadline_ns

    def _execute_by_core(self, core: RingCore, limit: int, deadline_ns: float) -> None:
        """As :meth:`_execute_slots`, which is used, slot by slot, for what the core leaves."""
        ring = self.ring
        while limit > 0 and not ring.operation:
            report = core.execute(ring, limit, int(deadline_ns - self._inputs.now_ns()))
            limit -= report.slots
            reason = report.reason  # the report is not valid any more once other rings have had a turn
            self.settle(report)
            if reason == Reason.FOR_PYTHON:
                self._execute_slots(ring.fetch(1), deadline_ns)
                limit -= 1
            if reason == Reason.OVERDUE or self._inputs.now_ns() > deadline_ns:
                break

    def settle(self, report: Report) -> None:
        """Count what a core has done of this ring, and tell the guest what the core does not."""
        if not report.slots:
            return
        counters = self._counters
        counters.slots += report.slots
        counters.slots_posted += report.posted
        if not self._waits.is_told:
            self._waits.count += report.slots - report.posted
        counters.ops_failed += report.failed
        counters.pages_mapped += report.pages_mapped
        counters.pages_unmapped += report.pages_unmapped
        if report.maps:
            counters.ops["map_pages"] += report.maps
        if report.unmaps:
            counters.ops["unmap_pages"] += report.unmaps
        if report.interrupt:
            self._notifier.interrupt(VECTOR_RING + self.ring.number)
        if report.reason == Reason.POSTED_FAILED:
            self._notifier.event(reason=EventReason.POSTED_FAILED, result=report.result, slot=report.sequence)
            self._publish(report.unpublished)

    def _execute_slots(self, raw: bytes, deadline_ns: float) -> None:
        ring, begin = self.ring, self._operations.begin
        unpublished = 0
        for start in range(0, len(raw), SLOT_SIZE):
            op_class, op, flags, sequence, _, _ = Slot.STRUCT.unpack_from(raw, start)
            payload = raw[start + PAYLOAD_OFFSET : start + SLOT_SIZE]
            reply = begin(op_class, op, flags, payload)
            if not isinstance(reply, Reply):  # a long operation
                if unpublished:
                    self._publish(unpublished)
                    unpublished = 0
                ring.operation = Operation(op_class, op, flags, sequence, payload, reply)
                self._operations.may_be_in_progress = True
                # it has waited for other rings already, for as long as a step may take
                if reply.targets or not self._advance(ring.operation, deadline_ns):
                    break
            else:
                ring.finish(unpublished, reply.result, sequence, reply.payload)
                unpublished += 1
                self._account(flags, sequence, reply.result)
                if not flags & _POSTED:  # somebody waits
                    self._publish(unpublished)
                    unpublished = 0
            if self._inputs.now_ns() > deadline_ns:
                break
        if unpublished:
            self._publish(unpublished)

    def _advance(self, operation: Operation, deadline_ns: float) -> bool:
        """Carry out the next pieces of the operation in progress, at least one. Returns whether that completed it."""
        ring = self.ring
        while not isinstance(answer := self._operations.go_on(operation), Reply):
            ring.operation = operation = replace(operation, progress=answer)
            if isinstance(answer, Held) and not answer.is_over:
                return False
            if self._inputs.now_ns() > deadline_ns:
                return False
        ring.operation = None
        ring.finish(0, answer.result, operation.sequence, answer.payload)
        self._account(operation.flags, operation.sequence, answer.result)
        self._publish(1)
        return True

    def _account(self, flags: int, sequence: int, result: int) -> None:
        self._counters.slots += 1
        if flags & _POSTED:
            self._counters.slots_posted += 1
            if result < 0:
                self._notifier.event(reason=EventReason.POSTED_FAILED, result=result, slot=sequence)
        elif not self._waits.is_told:
            self._waits.count += 1
        if result < 0:
            self._counters.ops_failed += 1

    def _publish(self, count: int) -> None:
        if self.ring.publish(count):
            self._notifier.interrupt(VECTOR_RING + self.ring.number)
