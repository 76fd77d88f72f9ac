"""Profile ``xen-v7``: the operations of versions 4 to 7 of the Xen series, a structure each, numbered by the slot.

Errno values and partial counts are those of the series' reference implementation, except where it is plainly broken:
INIT does only that and never truncates, the page size is looked at, unknown flags and non-zero padding are -EINVAL,
addresses beyond the aperture are -ERANGE before anything changes, every page is looked at for reserved regions, IN
fields survive a long operation, and an identity context really is one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from pviommu_abi.slots import Errno, OpClass
from pviommu_abi.xen_v7 import (
    DOMID_SELF,
    XEN_V7_RECORDS,
    V7Alloc,
    V7AllocFlags,
    V7Capabilities,
    V7Capability,
    V7Free,
    V7FreeFlags,
    V7Init,
    V7MapFlags,
    V7MapPages,
    V7ReattachDevice,
    V7RemoteCmd,
    V7UnmapPages,
    XenV7Op,
)
from wire_layout import Record

from ...counters import Counters
from ...dma.memory import GuestMemory
from ...engine import PAGE_SIZE, DefaultPolicy, Engine, Outcome, Stop
from .bindings import Bindings, sbdf_of
from .config import IommuConfig
from .indirect import carry_out
from .pages import ACCESS, PageOperations
from .profile import DONE, REFUSED, Answer, Reply

__all__ = ["XenV7"]

MAX_CTX_NO_LIMIT = 65535
"""INIT refuses this and more: the reference adds 1 and keeps 16 bits of the sum."""
MAX_ARENA_ORDER = 31
_COUNT_MASK = 0xFFFFFFFF
_MAPPED = V7MapPages.offset_of("mapped")
_UNMAPPED = V7UnmapPages.offset_of("unmapped")

_FLAGS = {
    XenV7Op.ALLOC_CONTEXT: ("alloc_flags", int(V7AllocFlags.IDENTITY)),
    XenV7Op.FREE_CONTEXT: ("free_flags", int(V7FreeFlags.REATTACH_DEFAULT)),
    XenV7Op.MAP_PAGES: ("map_flags", int(V7MapFlags.READABLE | V7MapFlags.WRITEABLE)),
}
_COPIED_BACK = (XenV7Op.QUERY_CAPABILITIES, XenV7Op.ALLOC_CONTEXT, XenV7Op.MAP_PAGES, XenV7Op.UNMAP_PAGES)
_REORDERING = frozenset(
    (
        XenV7Op.INIT,
        XenV7Op.ALLOC_CONTEXT,
        XenV7Op.FREE_CONTEXT,
        XenV7Op.REATTACH_DEVICE,
        XenV7Op.REMOTE_CMD,  # may be any of these; what it is, guest memory says
    )
)

_MAP_ERRNO = {
    Stop.NO_CONTEXT: -Errno.EINVAL,
    Stop.DEFAULT_CONTEXT: -Errno.EINVAL,
    Stop.NO_ACCESS: -Errno.EINVAL,
    Stop.OUT_OF_APERTURE: -Errno.ERANGE,
    Stop.NOT_RAM: -Errno.ENOENT,
    Stop.RESERVED: -Errno.EADDRNOTAVAIL,
    Stop.MAPPED: -Errno.EADDRINUSE,
    Stop.POOL_EXHAUSTED: -Errno.ENOMEM,
}
_UNMAP_ERRNO = {
    Stop.NO_CONTEXT: -Errno.EINVAL,
    Stop.DEFAULT_CONTEXT: -Errno.EINVAL,
    Stop.OUT_OF_APERTURE: -Errno.ERANGE,
    Stop.RESERVED: -Errno.EADDRNOTAVAIL,
    Stop.NOT_MAPPED: -Errno.ENOENT,
}
_CONTEXT_ERRNO = {
    Stop.DEFAULT_CONTEXT: -Errno.EINVAL,
    Stop.NO_CONTEXT: -Errno.ENOENT,
    Stop.NO_ENDPOINT: -Errno.ENODEV,
    Stop.ENDPOINTS_ATTACHED: -Errno.EBUSY,
    Stop.NO_FREE_CONTEXT: -Errno.ENOSPC,
    Stop.POOL_EXHAUSTED: -Errno.ENOMEM,
    Stop.RESERVED_CONFLICT: -Errno.EINVAL,
}


class _Handler(NamedTuple):
    name: str
    zero: int
    """bits of the payload, as a little-endian number, that must be 0"""
    call: Callable[[bytes], Answer]


def _must_be_zero(op: XenV7Op, record: type[Record]) -> int:
    """Padding, flags without a meaning, and everything behind the structure."""
    mask = -1 << 8 * record.SIZE
    if op is XenV7Op.QUERY_CAPABILITIES:
        return mask  # its padding is OUT
    flags_name, flags = _FLAGS.get(op, ("", 0))
    for field in record.FIELDS:
        if field.name.startswith("pad") or field.name == flags_name:
            bits = (1 << 8 * field.size) - 1
            mask |= (bits & ~flags if field.name == flags_name else bits) << 8 * field.offset
    return mask


class XenV7:
    """Executes slots of class XEN_V7."""

    op_class = OpClass.XEN_V7

    def __init__(
        self, engine: Engine, bindings: Bindings, memory: GuestMemory, counters: Counters, config: IommuConfig
    ) -> None:
        self.denied = 0 if config.allowed else -int(Errno.ENODEV)
        self._engine = engine
        self._bindings = bindings
        self._memory = memory
        self._counters = counters
        self._config = config
        self._pages = PageOperations(engine, counters)
        self._initialised = False
        self._max_ctx_no = 0
        self._handlers = {
            int(op): _Handler(op.name.lower(), _must_be_zero(op, record), getattr(self, f"op_{op.name.lower()}"))
            for op, record in XEN_V7_RECORDS.items()
            if record is not None
        }

    def reset(self) -> None:
        """INIT is possible, and necessary, again."""
        self._initialised = False
        self._max_ctx_no = 0

    def reorders(self, op: int, payload: bytes) -> bool:
        """Whether the operation must wait for all rings: it changes contexts or who is in them."""
        return op in _REORDERING

    def execute(self, op: int, payload: bytes) -> Answer:
        """Carry out ``op`` with the 48 bytes of ``payload``. Unknown operations are -EOPNOTSUPP."""
        if self.denied:
            return Reply(self.denied)
        handler = self._handlers.get(op)
        if handler is None:
            if op != XenV7Op.NOOP:
                return Reply(-Errno.EOPNOTSUPP)
            self._counters.ops["noop"] += 1
            return DONE
        self._counters.ops[handler.name] += 1
        if int.from_bytes(payload, "little") & handler.zero:
            return REFUSED
        return handler.call(payload)

    def call(self, op: int, address: int) -> Answer:
        """Carry out ``op`` with its structure at guest physical ``address``; query, alloc, map and unmap change it."""
        record = XEN_V7_RECORDS.get(XenV7Op(op)) if op in self._handlers else None
        if self.denied or record is None:
            return self.execute(op, b"")
        return carry_out(
            self._memory, address, record.SIZE, lambda data: self.execute(op, data), copied_back=op in _COPIED_BACK
        )

    def map_errno(self, ctx: int, outcome: Outcome) -> int:
        """0 or a negative errno; a reserved page outranks a frame that is not RAM."""
        if outcome.stop is None:
            return 0
        if outcome.stop is Stop.NOT_RAM and outcome.at is not None and self._is_reserved(ctx, outcome.at):
            return _MAP_ERRNO[Stop.RESERVED]
        return _MAP_ERRNO[outcome.stop]

    def _is_reserved(self, ctx: int, dfn: int) -> bool:
        everywhere = [(region.first, region.last) for region in self._engine.config.reserved]
        return any(first <= dfn <= last for first, last in (*everywhere, *self._engine.direct(ctx)))

    def unmap_errno(self, outcome: Outcome) -> int:
        """0 or a negative errno."""
        return _UNMAP_ERRNO[outcome.stop] if outcome.stop else 0

    def op_query_capabilities(self, payload: bytes) -> Reply:
        config = self._engine.config
        flags = V7Capability.IDENTITY
        if config.default_policy is DefaultPolicy.IDENTITY:
            flags |= V7Capability.DEFAULT_IDENTITY
        answer = V7Capabilities(
            max_iova_addr=(1 << config.aperture_bits) - 1,
            cap_flags=int(flags),
            pgsize_mask=PAGE_SIZE,
            max_ctx_no=self._max_ctx_no,
        )
        return Reply(0, answer.pack())

    def op_init(self, payload: bytes) -> Reply:
        op = V7Init.unpack(payload)
        if op.max_ctx_no >= MAX_CTX_NO_LIMIT:
            return Reply(-Errno.E2BIG)
        if self._initialised:
            return Reply(-Errno.EACCES)
        if op.max_ctx_no > self._engine.config.max_contexts:
            return Reply(-Errno.E2BIG)
        if op.arena_order > MAX_ARENA_ORDER:
            return REFUSED
        pool_pages = 1 << op.arena_order
        if pool_pages > self._engine.config.pool_pages:
            return Reply(-Errno.ENOMEM)
        self._engine.limit(op.max_ctx_no, pool_pages)
        self._initialised = True
        self._max_ctx_no = op.max_ctx_no
        return DONE

    def op_alloc_context(self, payload: bytes) -> Reply:
        op = V7Alloc.unpack(payload)
        if not self._max_ctx_no:  # not initialised, or for no contexts at all
            return Reply(-Errno.ENOSPC)
        context, stop = self._engine.alloc_context(bool(op.alloc_flags & V7AllocFlags.IDENTITY))
        if context is None:
            return Reply(_CONTEXT_ERRNO[stop] if stop else -Errno.ENOMEM)
        return Reply(0, V7Alloc(context, 0, op.alloc_flags).pack())

    def op_free_context(self, payload: bytes) -> Reply:
        op = V7Free.unpack(payload)
        stop = self._engine.free_context(op.ctx_no, bool(op.free_flags & V7FreeFlags.REATTACH_DEFAULT))
        return DONE if stop is None else Reply(_CONTEXT_ERRNO[stop])

    def op_reattach_device(self, payload: bytes) -> Reply:
        op = V7ReattachDevice.unpack(payload)
        if op.pasid:
            return Reply(-Errno.EOPNOTSUPP)
        stream = self._bindings.stream(sbdf_of(op.seg, op.bus, op.devfn))
        if stream is None:  # an unknown device outranks an unknown context
            return Reply(-Errno.ENODEV)
        stop = self._engine.attach(stream, op.ctx_no)
        return DONE if stop is None else Reply(_CONTEXT_ERRNO[stop])

    def op_map_pages(self, payload: bytes) -> Answer:
        ctx, _, _, gfn, dfn, flags, pgsize, nr, mapped = V7MapPages.STRUCT.unpack_from(payload)
        if pgsize != PAGE_SIZE:
            return REFUSED

        def reply(outcome: Outcome) -> Reply:
            total = mapped + outcome.done & _COUNT_MASK
            return Reply(self.map_errno(ctx, outcome), payload[:_MAPPED] + total.to_bytes(4, "little"))

        return self._pages.map(ctx, dfn, gfn, nr, ACCESS[flags], reply)

    def op_unmap_pages(self, payload: bytes) -> Answer:
        ctx, _, _, dfn, pgsize, nr, unmapped, _ = V7UnmapPages.STRUCT.unpack_from(payload)
        if pgsize != PAGE_SIZE:
            return REFUSED

        def reply(outcome: Outcome) -> Reply:
            total = unmapped + outcome.done & _COUNT_MASK
            return Reply(self.unmap_errno(outcome), payload[:_UNMAPPED] + total.to_bytes(4, "little"))

        return self._pages.unmap(ctx, dfn, nr, reply)

    def op_remote_cmd(self, payload: bytes) -> Answer:
        """For a device that serves one guest this is an indirect operation of that guest on itself."""
        op = V7RemoteCmd.unpack(payload)
        if not self._config.remote_cmd:
            return Reply(-Errno.EPERM)
        if op.domid not in (0, DOMID_SELF):
            return Reply(-Errno.ENOENT)
        if op.subop == XenV7Op.REMOTE_CMD:
            return REFUSED
        return self.call(op.subop, op.arg)
