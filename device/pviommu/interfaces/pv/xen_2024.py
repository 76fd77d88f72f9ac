"""Profile ``xen-2024``: the seven sub-operations of the June 2024 Xen header, 32-byte ``pv_iommu_op``.

Errno values and partial counts are those of the Xen series' reference implementation (v1 to v3), except where
it is plainly broken: neither readable nor writeable, unknown flags and non-zero padding are -EINVAL, addresses
beyond the aperture are -ERANGE before anything changes, the default context cannot be edited, and a clone
really is one.
"""

from __future__ import annotations

from collections.abc import Callable

from pviommu_abi.slots import DEFAULT_CONTEXT, Errno, OpClass
from pviommu_abi.xen_2024 import (
    PV_IOMMU_OP_SIZE,
    XEN_2024_RECORDS,
    CreateFlags,
    FreeFlags,
    LookupPage,
    MapFlags,
    MapPages,
    PvIommuOp,
    QueryCapabilities,
    ReattachDevice,
    UnmapPages,
    Xen2024Op,
)

from ...counters import Counters
from ...dma.memory import GuestMemory
from ...engine import Engine, Outcome, Stop
from .bindings import Bindings, sbdf_of
from .config import IommuConfig
from .indirect import carry_out
from .pages import ACCESS, PageOperations
from .profile import DONE, REFUSED, Answer, Reply

__all__ = ["Xen2024"]

_MAP_FLAGS = int(MapFlags.READABLE | MapFlags.WRITEABLE)
_FLAGS_ALLOWED = {
    Xen2024Op.ALLOC_CONTEXT: int(CreateFlags.CLONE),
    Xen2024Op.FREE_CONTEXT: int(FreeFlags.REATTACH_DEFAULT),
    Xen2024Op.MAP_PAGES: _MAP_FLAGS,
}

_MAP_ERRNO = {
    Stop.NO_CONTEXT: -Errno.EINVAL,
    Stop.DEFAULT_CONTEXT: -Errno.EINVAL,
    Stop.NO_ACCESS: -Errno.EINVAL,
    Stop.OUT_OF_APERTURE: -Errno.ERANGE,
    Stop.NOT_RAM: -Errno.EPERM,
    Stop.RESERVED: -Errno.EADDRINUSE,
    Stop.MAPPED: -Errno.EADDRINUSE,
    Stop.POOL_EXHAUSTED: -Errno.ENOMEM,
}
_UNMAP_ERRNO = {
    Stop.NO_CONTEXT: -Errno.EINVAL,
    Stop.DEFAULT_CONTEXT: -Errno.EINVAL,
    Stop.OUT_OF_APERTURE: -Errno.ERANGE,
    Stop.RESERVED: -Errno.ENOENT,
    Stop.NOT_MAPPED: -Errno.ENOENT,
}
_CONTEXT_ERRNO = {
    Stop.DEFAULT_CONTEXT: -Errno.EINVAL,
    Stop.NO_CONTEXT: -Errno.ENOENT,
    Stop.NO_ENDPOINT: -Errno.ENOENT,
    Stop.ENDPOINTS_ATTACHED: -Errno.EBUSY,
    Stop.NO_FREE_CONTEXT: -Errno.ENOSPC,
    Stop.POOL_EXHAUSTED: -Errno.ENOMEM,
    Stop.RESERVED_CONFLICT: -Errno.EINVAL,
}
_REORDERING = frozenset((Xen2024Op.ALLOC_CONTEXT, Xen2024Op.FREE_CONTEXT, Xen2024Op.REATTACH_DEVICE))
_NO_CONTEXT = (Stop.NO_CONTEXT, Stop.DEFAULT_CONTEXT)
_MAPPED = MapPages.offset_of("mapped")
_UNMAPPED = UnmapPages.offset_of("unmapped")


class Xen2024:
    """Executes payloads of class XEN_2024."""

    op_class = OpClass.XEN_2024

    def __init__(
        self, engine: Engine, bindings: Bindings, memory: GuestMemory, counters: Counters, config: IommuConfig
    ) -> None:
        self.denied = 0 if config.allowed else -int(Errno.EPERM)
        self._engine = engine
        self._bindings = bindings
        self._memory = memory
        self._counters = counters
        self._max_nr_pages = config.max_nr_pages
        self._pages = PageOperations(engine, counters)
        self._handlers: dict[int, tuple[str, int, int, Callable[[bytes], Answer]]] = {
            int(op): (
                op.name.lower(),
                XEN_2024_RECORDS[op].SIZE,
                _FLAGS_ALLOWED.get(op, 0),
                getattr(self, f"op_{op.name.lower()}"),
            )
            for op in Xen2024Op
            if op is not Xen2024Op.NOOP
        }

    def reset(self) -> None:
        """There is nothing to forget."""

    def reorders(self, op: int, payload: bytes) -> bool:
        """Whether the operation must wait for all rings: it changes contexts or who is in them."""
        subop = payload[0] | payload[1] << 8
        return subop in _REORDERING

    def execute(self, op: int, payload: bytes) -> Answer:
        """Carry out the operation in the 48 bytes of ``payload``; ``op`` must be 0, the payload has the number."""
        if self.denied:
            return Reply(self.denied)
        if op:
            return REFUSED
        subop = payload[0] | payload[1] << 8
        handler = self._handlers.get(subop)
        if handler is None:
            if subop != Xen2024Op.NOOP:
                return REFUSED
            self._counters.ops["noop"] += 1
            return DONE
        name, size, flags, call = handler
        self._counters.ops[name] += 1
        given = int.from_bytes(payload[4:8], "little")
        if given & ~flags or any(payload[size:]):
            return REFUSED
        return call(payload)

    def call(self, op: int, address: int) -> Answer:
        """Carry out the ``pv_iommu_op`` at guest physical ``address``, all of which is read and written back."""
        return carry_out(self._memory, address, PV_IOMMU_OP_SIZE, lambda data: self.execute(op, data), copied_back=True)

    def map_errno(self, ctx: int, outcome: Outcome) -> int:
        """0 or a negative errno."""
        return _MAP_ERRNO[outcome.stop] if outcome.stop else 0

    def unmap_errno(self, outcome: Outcome) -> int:
        """0 or a negative errno."""
        return _UNMAP_ERRNO[outcome.stop] if outcome.stop else 0

    def op_query_capabilities(self, payload: bytes) -> Reply:
        op = QueryCapabilities.unpack(payload)
        config = self._engine.config
        answer = QueryCapabilities(
            op.subop_id,
            op.ctx_no,
            op.flags,
            config.max_contexts,
            0,
            self._max_nr_pages,
            (1 << config.aperture_bits) - 1,
        )
        return Reply(0, answer.pack())

    def op_alloc_context(self, payload: bytes) -> Reply:
        op = PvIommuOp.unpack(payload)
        context, stop = self._engine.alloc_context(bool(op.flags & CreateFlags.CLONE))
        if context is None:
            return Reply(_CONTEXT_ERRNO[stop] if stop else -Errno.ENOMEM)
        return Reply(0, PvIommuOp(op.subop_id, context, op.flags).pack())

    def op_free_context(self, payload: bytes) -> Reply:
        op = PvIommuOp.unpack(payload)
        stop = self._engine.free_context(op.ctx_no, bool(op.flags & FreeFlags.REATTACH_DEFAULT))
        return DONE if stop is None else Reply(_CONTEXT_ERRNO[stop])

    def op_reattach_device(self, payload: bytes) -> Reply:
        op = ReattachDevice.unpack(payload)
        stream = self._bindings.stream(sbdf_of(op.seg, op.bus, op.devfn))
        if stream is None:  # an unknown device outranks an unknown context
            return Reply(-Errno.ENOENT)
        stop = self._engine.attach(stream, op.ctx_no)
        return DONE if stop is None else Reply(_CONTEXT_ERRNO[stop])

    def op_map_pages(self, payload: bytes) -> Answer:
        _, ctx, flags, gfn, dfn, nr, _ = MapPages.STRUCT.unpack_from(payload)
        if nr > self._max_nr_pages:
            return Reply(-Errno.E2BIG)

        def reply(outcome: Outcome) -> Reply:
            result = self.map_errno(ctx, outcome)
            if outcome.stop in _NO_CONTEXT:
                return Reply(result)
            return Reply(result, payload[:_MAPPED] + outcome.done.to_bytes(4, "little"))

        return self._pages.map(ctx, dfn, gfn, nr, ACCESS[flags], reply)

    def op_unmap_pages(self, payload: bytes) -> Answer:
        _, ctx, _, dfn, nr, _ = UnmapPages.STRUCT.unpack_from(payload)
        if nr > self._max_nr_pages:
            return Reply(-Errno.E2BIG)

        def reply(outcome: Outcome) -> Reply:
            result = self.unmap_errno(outcome)
            if outcome.stop in _NO_CONTEXT:
                return Reply(result)
            return Reply(result, payload[:_UNMAPPED] + outcome.done.to_bytes(4, "little"))

        return self._pages.unmap(ctx, dfn, nr, reply)

    def op_lookup_page(self, payload: bytes) -> Reply:
        op = LookupPage.unpack(payload)
        if not self._engine.has_context(op.ctx_no):
            return REFUSED
        # the default context has no page table to look into: it is opaque, as it is on Xen with shared tables
        found = self._engine.lookup(op.ctx_no, op.dfn) if op.ctx_no != DEFAULT_CONTEXT else None
        if found is None:
            return Reply(-Errno.ENOENT)
        return Reply(0, LookupPage(op.subop_id, op.ctx_no, op.flags, found[0], op.dfn).pack())
