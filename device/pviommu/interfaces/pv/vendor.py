"""Vendor operations: bindings, what is in use, Xen operations with structures in guest memory, tables of the guest."""

from __future__ import annotations

from functools import partial

from pviommu_abi.slots import Errno
from pviommu_abi.vendor import AllocTables, Batch, Binding, Call, Flush, Reserve, Usage, VendorOp
from wire_layout import Record

from ...counters import Counters
from ...engine import Stop
from ...probes import Probes
from .batch import BatchOperations
from .bindings import Bindings, sbdf_of
from .contexts import Contexts
from .events import EventRing
from .guest_tables import ContextTables
from .in_flight import Flushing, line_of
from .profile import DONE, REFUSED, Answer, Begin, GoOn, Held, Progress, Reply, XenProfile, probe_operation

__all__ = ["VendorOperations"]

_BINDING_IN = Binding.offset_of("ctx_no")
_ALLOC_TABLES_IN = AllocTables.offset_of("ctx_no")
_REORDERING = (VendorOp.UNBIND, VendorOp.BLOCK, VendorOp.CALL, VendorOp.ALLOC_TABLES)
_CALL_ALIGNMENT = 8
_RECORDS: dict[int, type[Record]] = {
    **dict.fromkeys((VendorOp.BIND, VendorOp.UNBIND, VendorOp.QUERY_ENDPOINT, VendorOp.BLOCK), Binding),
    VendorOp.QUERY_USAGE: Usage,
    VendorOp.BATCH: Batch,
    VendorOp.CALL: Call,
    VendorOp.RESERVE: Reserve,
    VendorOp.ALLOC_TABLES: AllocTables,
    VendorOp.FLUSH: Flush,
}
"""structures of the payloads"""
_RESERVE_RESULTS = {Stop.POOL_EXHAUSTED: -Errno.ENOMEM, Stop.GUEST_TABLES: -Errno.EOPNOTSUPP}


class VendorOperations:
    """Executes payloads of class VENDOR."""

    def __init__(
        self,
        contexts: Contexts,
        bindings: Bindings,
        events: EventRing,
        batch: BatchOperations,
        tables: ContextTables,
        counters: Counters,
    ) -> None:
        self.profile: XenProfile | None = None
        """the selected one"""
        self._contexts = contexts
        self._engine = contexts.engine
        self._batch = batch
        self._tables = tables
        self._bindings = bindings
        self._events = events
        self._counters = counters
        self._handlers: dict[int, tuple[Begin, GoOn | None]] = {
            int(op): (getattr(self, f"op_{op.name.lower()}"), getattr(self, f"go_on_{op.name.lower()}", None))
            for op in VendorOp
        }

    def bind(self, probes: Probes, owner: str) -> None:
        """Make each operation a probe, ``op.NAME``."""
        plain = self._handlers

        def bind() -> None:
            self._handlers = {
                op: probe_operation(probes, VendorOp(op).name.lower(), *calls, owner, _RECORDS[op])
                for op, calls in plain.items()
            }

        probes.bound(bind)

    @staticmethod
    def reorders(op: int, _payload: bytes) -> bool:
        """Whether it must wait for all rings: it moves an endpoint or makes a context, or (CALL) may do so."""
        return op in _REORDERING

    def execute(self, op: int, payload: bytes) -> Answer:
        """Carry out ``op`` with the 48 bytes of ``payload``. Unknown operations are -EOPNOTSUPP."""
        found = self._handlers.get(op)
        if found is None:
            return Reply(-Errno.EOPNOTSUPP)
        self._counters.ops[VendorOp(op).name.lower()] += 1
        return found[0](payload)

    def go_on(self, op: int, payload: bytes, progress: Progress) -> Answer:
        """Carry out the next piece of a long operation."""
        go_on = self._handlers[op][1]
        if go_on is None:
            raise ValueError(f"operation {op} of class VENDOR is not done in pieces")
        return go_on(payload, progress)

    def op_bind(self, payload: bytes) -> Reply:
        if any(payload[_BINDING_IN:]):
            return REFUSED
        binding = Binding.unpack(payload)
        return Reply(self._bindings.bind(_sbdf(binding), binding.stream))

    def op_unbind(self, payload: bytes) -> Reply:
        if any(payload[_BINDING_IN:]):
            return REFUSED
        binding = Binding.unpack(payload)
        sbdf = _sbdf(binding)
        stream = self._bindings.stream(sbdf)
        result = self._bindings.unbind(sbdf)
        if result == 0 and stream is not None:
            self._contexts.hold(stream)
        return Reply(result)

    def op_block(self, payload: bytes) -> Reply:
        if any(payload[_BINDING_IN:]):
            return REFUSED
        given = Binding.unpack(payload)
        stream = self._bindings.stream(_sbdf(given))
        if stream is None:
            return Reply(-Errno.ENOENT)
        self._contexts.hold(stream)
        return DONE

    def op_query_endpoint(self, payload: bytes) -> Reply:
        if any(payload[Binding.SIZE :]):
            return REFUSED
        given = Binding.unpack(payload)
        stream = self._bindings.stream(_sbdf(given))
        if stream is None:
            return Reply(-Errno.ENOENT)
        blocked = int(self._engine.is_blocked(stream))
        context = self._contexts.of(stream)
        return Reply(0, Binding(given.seg, given.bus, given.devfn, stream, context, blocked).pack())

    def op_query_usage(self, payload: bytes) -> Reply:
        if any(payload[Usage.SIZE :]):
            return REFUSED
        usage = self._engine.usage()
        answer = Usage(
            usage.domains,
            len(self._bindings),
            usage.pool_pages_used,
            usage.pool_pages_total,
            usage.mapped_pages,
            self._events.lost,
        )
        return Reply(0, answer.pack())

    def op_batch(self, payload: bytes) -> Answer:
        if self.profile is None:
            return REFUSED
        if self.profile.denied:
            return Reply(self.profile.denied)
        return self._batch.execute(self.profile, payload)

    def go_on_batch(self, payload: bytes, progress: Progress) -> Answer:
        return self._batch.go_on(self._selected(), payload, progress)

    def op_call(self, payload: bytes) -> Answer:
        op = Call.unpack(payload)
        if self.profile is None or op.pad0 or any(payload[Call.SIZE :]) or op.address % _CALL_ALIGNMENT:
            return REFUSED
        return self.profile.call(op.op, op.address)

    def go_on_call(self, payload: bytes, progress: Progress) -> Answer:
        op = Call.unpack(payload)
        return self._selected().go_on_with_call(op.op, op.address, progress)

    def _selected(self) -> XenProfile:
        if self.profile is None:
            raise ValueError("there is no profile, so nothing of it is in progress")
        return self.profile

    def op_reserve(self, payload: bytes) -> Reply:
        op = Reserve.unpack(payload)
        if op.pad0 or any(payload[Reserve.SIZE :]):
            return REFUSED
        if self.profile is not None and self.profile.denied:
            return Reply(self.profile.denied)
        stop = self._engine.reserve_pool(op.ctx_no, op.pages)
        return DONE if stop is None else Reply(_RESERVE_RESULTS.get(stop, -Errno.EINVAL))

    def op_alloc_tables(self, payload: bytes) -> Reply:
        if not self._tables.is_offered:
            return Reply(-Errno.EOPNOTSUPP)
        if self.profile is None or any(payload[_ALLOC_TABLES_IN:]):
            return REFUSED
        if self.profile.denied:
            return Reply(self.profile.denied)
        if not self.profile.may_alloc:
            return Reply(-Errno.ENOSPC)
        op = AllocTables.unpack(payload)
        ctx = self._tables.alloc(op)
        if ctx < 0:
            return Reply(ctx)
        return Reply(
            0, AllocTables(op.format, op.flags, op.root, op.aperture_bits, ctx_no=ctx, line=line_of(ctx)).pack()
        )

    def op_flush(self, payload: bytes) -> Answer:
        if not self._tables.is_offered:
            return Reply(-Errno.EOPNOTSUPP)
        op = Flush.unpack(payload)
        if op.pad0 or op.pad1 or any(payload[Flush.SIZE :]) or not self._engine.has_guest_tables(op.ctx_no):
            return REFUSED
        return self._flushed(self._tables.in_flight.flush(line_of(op.ctx_no)))

    def _flushed(self, flush: Flushing) -> Answer:
        """The answer now, or once all is over that ``flush`` waits for."""
        return DONE if flush.is_over else Held(waiting=flush, carry_on=partial(self._flushed, flush))


def _sbdf(binding: Binding) -> int:
    return sbdf_of(binding.seg, binding.bus, binding.devfn)
