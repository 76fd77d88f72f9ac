"""Profile ``xen-2024``: the seven sub-operations of the June 2024 Xen header, 32-byte ``pv_iommu_op``.

Errno values and partial counts are those of the Xen series' reference implementation (v1 to v3), except where it is
plainly broken. So a map that is neither readable nor writeable, unknown flags and non-zero padding are -EINVAL;
addresses beyond the aperture are -ERANGE before anything changes; the default context cannot be edited; and a clone
really is one.
"""

from __future__ import annotations

from functools import partial
from typing import ClassVar

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
from ...engine import Stop
from .bindings import Bindings
from .config import IommuConfig
from .contexts import Contexts
from .indirect import carry_out, go_on
from .page_operation import PageOperation, PageRules
from .profile import REFUSED, Answer, Progress, Reply
from .xen import CONTEXT_RESULTS, MAP_RESULTS, UNMAP_RESULTS, Operation, XenOperations

__all__ = ["Xen2024", "page_rules"]

_NO_CONTEXT = (Stop.NO_DOMAIN, Stop.NOT_PAGING, Stop.GUEST_TABLES)


def page_rules(max_nr_pages: int) -> PageRules:
    """Maps and unmaps of at most ``max_nr_pages`` pages."""
    return PageRules(
        PageOperation(
            op_class=OpClass.XEN_2024,
            op=0,
            record=MapPages,
            fixed={"subop_id": Xen2024Op.MAP_PAGES},
            flags="flags",
            readable=MapFlags.READABLE,
            writeable=MapFlags.WRITEABLE,
            most=max_nr_pages,
            too_many=-Errno.E2BIG,
            count="mapped",
            uncounted=_NO_CONTEXT,
            results=MAP_RESULTS | {Stop.NOT_RAM: -Errno.EPERM, Stop.RESERVED: -Errno.EADDRINUSE},
        ),
        PageOperation(
            op_class=OpClass.XEN_2024,
            op=0,
            record=UnmapPages,
            fixed={"subop_id": Xen2024Op.UNMAP_PAGES, "flags": 0},
            most=max_nr_pages,
            too_many=-Errno.E2BIG,
            count="unmapped",
            uncounted=_NO_CONTEXT,
            results=UNMAP_RESULTS | {Stop.RESERVED: -Errno.ENOENT},
        ),
    )


class Xen2024(XenOperations):
    """Executes payloads of class XEN_2024."""

    op_class = OpClass.XEN_2024
    numbers = Xen2024Op
    number_in_payload = True
    records = XEN_2024_RECORDS
    operations: ClassVar = {
        Xen2024Op.QUERY_CAPABILITIES: Operation("flags", is_answer=True),
        Xen2024Op.ALLOC_CONTEXT: Operation("flags", CreateFlags.CLONE, reorders=True),
        Xen2024Op.FREE_CONTEXT: Operation("flags", FreeFlags.REATTACH_DEFAULT, reorders=True),
        Xen2024Op.REATTACH_DEVICE: Operation("flags", reorders=True),
        Xen2024Op.LOOKUP_PAGE: Operation("flags"),
    }
    unknown = REFUSED
    not_allowed = -Errno.EPERM
    context_results = CONTEXT_RESULTS | {Stop.NO_ENDPOINT: -Errno.ENOENT}

    def __init__(
        self, contexts: Contexts, bindings: Bindings, memory: GuestMemory, counters: Counters, config: IommuConfig
    ) -> None:
        super().__init__(contexts, bindings, memory, counters, config, page_rules(config.max_nr_pages))

    def call(self, op: int, address: int) -> Answer:
        """Carry out the ``pv_iommu_op`` at guest physical ``address``, all of which is read and written back."""
        return carry_out(self._memory, address, PV_IOMMU_OP_SIZE, partial(self.execute, op), copied_back=True)

    def go_on_with_call(self, op: int, address: int, progress: Progress) -> Answer:
        """The next piece of what :meth:`call` began."""
        return go_on(self._memory, address, progress, partial(self.go_on, op), copied_back=True)

    def op_query_capabilities(self, payload: bytes) -> Reply:
        op = QueryCapabilities.unpack(payload)
        config = self._engine.config
        answer = QueryCapabilities(
            op.subop_id,
            op.ctx_no,
            op.flags,
            self._config.max_contexts,
            0,
            self._config.max_nr_pages,
            (1 << config.aperture_bits) - 1,
        )
        return Reply(0, answer.pack())

    def op_alloc_context(self, payload: bytes) -> Reply:
        op = PvIommuOp.unpack(payload)
        return self._alloc(bool(op.flags & CreateFlags.CLONE), lambda ctx: PvIommuOp(op.subop_id, ctx, op.flags))

    def op_free_context(self, payload: bytes) -> Reply:
        op = PvIommuOp.unpack(payload)
        return self._free(op.ctx_no, bool(op.flags & FreeFlags.REATTACH_DEFAULT))

    def op_reattach_device(self, payload: bytes) -> Reply:
        return self._reattach(ReattachDevice.unpack(payload))

    def op_lookup_page(self, payload: bytes) -> Reply:
        op = LookupPage.unpack(payload)
        if op.ctx_no not in self._contexts:
            return REFUSED
        if self._engine.has_guest_tables(op.ctx_no):
            return Reply(-Errno.EOPNOTSUPP)
        # the default context has no page table to look into: it is opaque, as it is on Xen with shared tables
        found = self._engine.lookup(op.ctx_no, op.dfn) if op.ctx_no != DEFAULT_CONTEXT else None
        if found is None:
            return Reply(-Errno.ENOENT)
        return Reply(0, LookupPage(op.subop_id, op.ctx_no, op.flags, found[0], op.dfn).pack())
