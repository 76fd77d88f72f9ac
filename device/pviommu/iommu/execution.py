"""Executing slots: which ring when, in what order, and what the guest is told of it."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import Protocol

from pviommu_abi.shared import EventReason
from pviommu_abi.slots import PAYLOAD_OFFSET, SLOT_SIZE, Errno, OpClass, Slot, SlotFlags

from ..pci.function import Environment
from ..pci.shared_memory import fence
from .own import OwnOperations
from .ring import CommandRing
from .xen_2024 import REFUSED, Reply, Xen2024

__all__ = ["Executor", "Notifier"]

log = logging.getLogger(__name__)

BATCH = 256
"""Most slots of a ring in one step."""
STEP_NS = 1_000_000
"""A step ends with the slot that takes it past this: a full ring of the largest maps would take seconds."""
VECTOR_RING = 1
"""MSI-X vector of ring 0; the others follow."""
_SLOT_FLAGS = int(SlotFlags.POSTED)
"""A number, because ``~`` of an IntFlag leaves out the bits without a name."""


class Notifier(Protocol):
    """How the guest is told: see :class:`pviommu.iommu.function.PvIommu`."""

    name: str

    def event(self, *, reason: EventReason, result: int = 0, slot: int = 0) -> None: ...
    def interrupt(self, vector: int) -> None: ...


class Executor:
    """The command rings of one PV-IOMMU and the operations that they carry."""

    def __init__(
        self,
        rings: Sequence[CommandRing],
        xen_2024: Xen2024,
        own: OwnOperations,
        environment: Environment,
        notifier: Notifier,
    ) -> None:
        self._rings = rings
        self._xen_2024 = xen_2024
        self._own = own
        self._inputs = environment.inputs
        self._counters = environment.counters
        self._notifier = notifier

    def work(self) -> bool:
        """Execute a bounded number of slots of each ring, for a bounded time. Whether there were any."""
        done = False
        for ring in self._rings:
            if ring.entries:
                count = self._pending(ring)
                if count:
                    self._execute(ring, min(count, BATCH), self._inputs.now_ns() + STEP_NS)
                    done = True
        return done

    def drain(self) -> None:
        """Execute what each ring held when this was called; a ring whose operation is in progress is left alone."""
        for ring in self._rings:
            if ring.busy:
                continue
            count = self._pending(ring)
            while count > 0 and ring.enabled:
                count -= self._execute(ring, count, math.inf)

    def arm(self) -> bool:
        """Ask for doorbells. Whether the loop may sleep now: no ring got work in the meantime."""
        for ring in self._rings:
            if ring.enabled:
                ring.arm()
        fence()
        return not any(self._pending(ring) for ring in self._rings)

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

    def _execute(self, ring: CommandRing, limit: int, deadline_ns: float) -> int:
        """Execute up to ``limit`` slots, all of them submitted, until ``deadline_ns``; returns how many, 1 at least."""
        raw = ring.fetch(limit)
        ring.busy = True
        count = unpublished = 0
        for start in range(0, len(raw), SLOT_SIZE):
            op_class, op, flags, sequence, _, _ = Slot.STRUCT.unpack_from(raw, start)
            reply = self._execute_one(op_class, op, flags, raw[start + PAYLOAD_OFFSET : start + SLOT_SIZE])
            ring.finish(unpublished, reply.result, sequence, reply.payload)
            count += 1
            unpublished += 1
            if flags & SlotFlags.POSTED:
                self._counters.slots_posted += 1
                if reply.result < 0:
                    self._notifier.event(reason=EventReason.POSTED_FAILED, result=reply.result, slot=sequence)
            else:  # somebody waits
                self._publish(ring, unpublished)
                unpublished = 0
            if reply.result < 0:
                self._counters.ops_failed += 1
            if self._inputs.now_ns() > deadline_ns:
                break
        if unpublished:
            self._publish(ring, unpublished)
        ring.busy = False
        self._counters.slots += count
        return count

    def _publish(self, ring: CommandRing, count: int) -> None:
        if ring.publish(count):
            self._notifier.interrupt(VECTOR_RING + ring.number)

    def _execute_one(self, op_class: int, op: int, flags: int, payload: bytes) -> Reply:
        if flags & ~_SLOT_FLAGS:
            return REFUSED
        try:
            if op_class == OpClass.XEN_2024 and op == 0:
                if self._xen_2024.reorders(payload):
                    self.drain()
                return self._xen_2024.execute(payload)
            if op_class == OpClass.OWN:
                if self._own.reorders(op):
                    self.drain()
                return self._own.execute(op, payload)
        except Exception:  # one bad request fails alone, whatever it hit
            log.exception(
                "%s: operation failed: class %d op %d payload %s", self._notifier.name, op_class, op, payload.hex()
            )
            return Reply(-Errno.EIO)
        return REFUSED
