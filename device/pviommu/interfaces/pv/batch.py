"""The vendor operation BATCH, after the interface of 2014: an array of elements in guest memory, each with a status."""

from __future__ import annotations

from pviommu_abi.slots import Errno
from pviommu_abi.vendor import Batch, BatchFlags, MapOp
from pviommu_abi.xen_2024 import MapFlags

from ...counters import Counters
from ...dma.access import GuestMemoryError
from ...dma.memory import GuestMemory
from ...engine import Engine
from .indirect import FAULT
from .page_operation import access_by
from .profile import BEGUN, REFUSED, Answer, Progress, Reply, XenProfile

__all__ = ["ELEMENTS", "BatchOperations"]

ELEMENTS = 16
"""Elements that are read, carried out and answered in one piece: most of a millisecond."""
_ALIGNMENT = 8
_FLAGS = int(BatchFlags.UNMAP)
_MAP_FLAGS = int(MapFlags.READABLE | MapFlags.WRITEABLE)
_ACCESS = access_by(int(MapFlags.READABLE), int(MapFlags.WRITEABLE))
_DONE = Batch.offset_of("done")
_STATUS = MapOp.offset_of("status")
_STATUS_SIZE = 4


class BatchOperations:
    """Executes BATCH, with the errno values of the profile that is selected."""

    def __init__(self, engine: Engine, memory: GuestMemory, counters: Counters) -> None:
        self._engine = engine
        self._memory = memory
        self._counters = counters

    def execute(self, profile: XenProfile, payload: bytes) -> Answer:
        """Carry out the operation in ``payload``, in pieces of :data:`ELEMENTS`.

        The whole array must be in guest memory, otherwise nothing happens. It is read, and the statuses written, piece
        by piece; elements that another CPU of the guest changes before they are read are taken as they then are.
        """
        op = Batch.unpack(payload)
        if op.flags & ~_FLAGS or op.pad0 or any(payload[Batch.SIZE :]) or op.address % _ALIGNMENT:
            return REFUSED
        if self._engine.has_guest_tables(op.ctx_no):
            return Reply(-Errno.EOPNOTSUPP)
        if not self._engine.is_paging(op.ctx_no):
            return REFUSED
        try:
            self._memory.check([(op.address, op.count * MapOp.SIZE)])
        except GuestMemoryError:
            return _reply(payload, FAULT.result, 0)
        if op.count > ELEMENTS:
            return BEGUN
        result, done = self._piece(profile, op, 0)
        return _reply(payload, result, done)

    def go_on(self, profile: XenProfile, payload: bytes, progress: Progress) -> Answer:
        """Carry out the next piece of a long array."""
        op = Batch.unpack(payload)
        result, count = self._piece(profile, op, progress.done)
        done = progress.done + count
        if result or done >= op.count:
            return _reply(payload, result, done)
        return Progress(done)

    def _piece(self, profile: XenProfile, op: Batch, first: int) -> tuple[int, int]:
        """Carry out elements from ``first`` on; returns the result, and how many succeeded. They share one IOTLB
        flush."""
        address = op.address + first * MapOp.SIZE
        count = min(ELEMENTS, op.count - first)
        try:
            raw = self._memory.read([(address, count * MapOp.SIZE)])
        except GuestMemoryError:  # it was guest memory when the operation began
            return FAULT.result, 0
        statuses: list[int] = []
        unmap = bool(op.flags & BatchFlags.UNMAP)
        with self._engine.deferred_invalidation():
            for bfn, mfn, flags, _ in MapOp.STRUCT.iter_unpack(raw):
                status = self._unmap(profile, op.ctx_no, bfn) if unmap else self._map(profile, op, bfn, mfn, flags)
                statuses.append(status)
                if status:
                    break
        done = statuses.count(0)
        runs = [(address + place * MapOp.SIZE + _STATUS, _STATUS_SIZE) for place in range(len(statuses))]
        try:
            self._memory.write(runs, b"".join(status.to_bytes(4, "little", signed=True) for status in statuses))
        except GuestMemoryError:  # its file refuses the write
            return FAULT.result, done
        return (FAULT.result if done < len(statuses) else 0), done

    def _map(self, profile: XenProfile, op: Batch, bfn: int, mfn: int, flags: int) -> int:
        if flags & ~_MAP_FLAGS:
            return -Errno.EINVAL
        outcome = self._engine.map(op.ctx_no, bfn, mfn, 1, _ACCESS[flags])
        self._counters.pages_mapped += outcome.done
        return profile.map_errno(op.ctx_no, outcome)

    def _unmap(self, profile: XenProfile, ctx: int, bfn: int) -> int:
        outcome = self._engine.unmap(ctx, bfn, 1)
        self._counters.pages_unmapped += outcome.done
        return profile.unmap_errno(ctx, outcome)


def _reply(payload: bytes, result: int, done: int) -> Reply:
    return Reply(result, payload[:_DONE] + done.to_bytes(4, "little"))
