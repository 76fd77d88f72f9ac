"""Profile ``xen-v7``: the operations of versions 4 to 7 of the Xen series, each with its own structure and numbered in
the slot's header.

Errno values and partial counts are those of the series' reference implementation, except where it is plainly broken:
INIT does nothing else and never truncates; the page size is checked; unknown flags and non-zero padding are -EINVAL;
addresses beyond the aperture are -ERANGE before anything changes; every page is checked against reserved regions; IN
fields survive a long operation; and an identity context really is one.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

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

from ...counters import Counters
from ...dma.memory import GuestMemory
from ...engine import PAGE_SIZE, Stop
from .bindings import Bindings
from .config import IommuConfig
from .contexts import Contexts, DefaultPolicy
from .indirect import carry_out, go_on
from .page_operation import PageOperation, PageRules
from .profile import DONE, REFUSED, Answer, Progress, Reply
from .xen import CONTEXT_RESULTS, MAP_RESULTS, UNMAP_RESULTS, Operation, XenOperations

__all__ = ["PAGE_RULES", "XenV7", "XenV7State"]

MAX_CTX_NO_LIMIT = 65535
"""INIT refuses this and more: the reference adds 1 and keeps 16 bits of the sum."""
MAX_ARENA_ORDER = 31

PAGE_RULES = PageRules(
    PageOperation(
        op_class=OpClass.XEN_V7,
        op=XenV7Op.MAP_PAGES,
        record=V7MapPages,
        fixed={"pgsize": PAGE_SIZE},
        flags="map_flags",
        readable=V7MapFlags.READABLE,
        writeable=V7MapFlags.WRITEABLE,
        count="mapped",
        adds=True,
        reserved_first=True,
        results=MAP_RESULTS | {Stop.NOT_RAM: -Errno.ENOENT, Stop.RESERVED: -Errno.EADDRNOTAVAIL},
    ),
    PageOperation(
        op_class=OpClass.XEN_V7,
        op=XenV7Op.UNMAP_PAGES,
        record=V7UnmapPages,
        fixed={"pgsize": PAGE_SIZE},
        count="unmapped",
        adds=True,
        results=UNMAP_RESULTS | {Stop.RESERVED: -Errno.EADDRNOTAVAIL},
    ),
)


@dataclass(frozen=True)
class XenV7State:
    """The saved state of the profile."""

    initialised: bool = False
    max_ctx_no: int = 0
    """that INIT was given"""


class XenV7(XenOperations):
    """Executes slots of class XEN_V7."""

    op_class = OpClass.XEN_V7
    numbers = XenV7Op
    records = XEN_V7_RECORDS
    operations: ClassVar = {
        XenV7Op.QUERY_CAPABILITIES: Operation(is_answer=True),
        XenV7Op.INIT: Operation(reorders=True),
        XenV7Op.ALLOC_CONTEXT: Operation("alloc_flags", V7AllocFlags.IDENTITY, reorders=True),
        XenV7Op.FREE_CONTEXT: Operation("free_flags", V7FreeFlags.REATTACH_DEFAULT, reorders=True),
        XenV7Op.REATTACH_DEVICE: Operation(reorders=True),
        XenV7Op.REMOTE_CMD: Operation(reorders=True),  # it may be any of these: guest memory says which
    }
    unknown = Reply(-Errno.EOPNOTSUPP)
    not_allowed = -Errno.ENODEV
    context_results = CONTEXT_RESULTS | {Stop.NO_ENDPOINT: -Errno.ENODEV}

    def __init__(
        self, contexts: Contexts, bindings: Bindings, memory: GuestMemory, counters: Counters, config: IommuConfig
    ) -> None:
        super().__init__(contexts, bindings, memory, counters, config, PAGE_RULES)
        self._initialised = False
        self._max_ctx_no = 0

    def reset(self) -> None:
        """INIT is possible again, and necessary."""
        self.load(XenV7State())

    def save(self) -> XenV7State:
        """The state, without the limits that INIT set."""
        return XenV7State(self._initialised, self._max_ctx_no)

    def load(self, state: XenV7State) -> None:
        """Take over a state; contexts and pool have their limits already."""
        self._initialised = state.initialised
        self._max_ctx_no = state.max_ctx_no

    def call(self, op: int, address: int) -> Answer:
        """Carry out ``op`` with its structure at guest physical ``address``; query, alloc, map and unmap change it."""
        record = self.records.get(XenV7Op(op)) if op in self._handlers else None
        if self.denied or record is None:
            return self.execute(op, b"")
        return carry_out(self._memory, address, record.SIZE, partial(self.execute, op), copied_back=op in _COPIED_BACK)

    def go_on_with_call(self, op: int, address: int, progress: Progress) -> Answer:
        """The next piece of what :meth:`call` began."""
        return go_on(self._memory, address, progress, partial(self.go_on, op), copied_back=op in _COPIED_BACK)

    def op_query_capabilities(self, payload: bytes) -> Reply:
        config = self._engine.config
        flags = V7Capability.IDENTITY
        if self._config.default_policy is DefaultPolicy.IDENTITY:
            flags |= V7Capability.DEFAULT_IDENTITY
        answer = V7Capabilities(
            max_iova_addr=(1 << config.aperture_bits) - 1,
            cap_flags=int(flags),
            pgsize_mask=PAGE_SIZE,
            max_ctx_no=self._max_ctx_no,
        )
        return Reply(0, answer.pack())

    @property
    def may_alloc(self) -> bool:
        """Not before INIT, and not after one that is for no contexts at all."""
        return self._max_ctx_no > 0

    def op_init(self, payload: bytes) -> Reply:
        op = V7Init.unpack(payload)
        if op.max_ctx_no >= MAX_CTX_NO_LIMIT:
            return Reply(-Errno.E2BIG)
        if self._initialised:
            return Reply(-Errno.EACCES)
        if op.max_ctx_no > self._config.max_contexts:
            return Reply(-Errno.E2BIG)
        if op.arena_order > MAX_ARENA_ORDER:
            return REFUSED
        pool_pages = 1 << op.arena_order
        if pool_pages > self._engine.config.pool_pages:
            return Reply(-Errno.ENOMEM)
        self._contexts.set_limits(op.max_ctx_no, pool_pages)
        self._initialised = True
        self._max_ctx_no = op.max_ctx_no
        return DONE

    def op_alloc_context(self, payload: bytes) -> Reply:
        op = V7Alloc.unpack(payload)
        if not self.may_alloc:
            return Reply(-Errno.ENOSPC)
        return self._alloc(bool(op.alloc_flags & V7AllocFlags.IDENTITY), lambda ctx: V7Alloc(ctx, 0, op.alloc_flags))

    def op_free_context(self, payload: bytes) -> Reply:
        op = V7Free.unpack(payload)
        return self._free(op.ctx_no, bool(op.free_flags & V7FreeFlags.REATTACH_DEFAULT))

    def op_reattach_device(self, payload: bytes) -> Reply:
        op = V7ReattachDevice.unpack(payload)
        return Reply(-Errno.EOPNOTSUPP) if op.pasid else self._reattach(op)

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

    def go_on_remote_cmd(self, payload: bytes, progress: Progress) -> Answer:
        op = V7RemoteCmd.unpack(payload)
        return self.go_on_with_call(op.subop, op.arg, progress)


_COPIED_BACK = (XenV7Op.QUERY_CAPABILITIES, XenV7Op.ALLOC_CONTEXT, XenV7Op.MAP_PAGES, XenV7Op.UNMAP_PAGES)
