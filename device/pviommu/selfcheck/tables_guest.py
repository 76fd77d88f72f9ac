"""Guests that own the tables of all their contexts: what maps and unmaps would do they store, and then look whether DMA
is in flight. The operations on pages they send all the same: these are refused, and change nothing.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pviommu_abi.shared import IN_FLIGHT_LINES, TableFormat
from pviommu_abi.slots import PAYLOAD_SIZE, Errno, OpClass
from pviommu_abi.vendor import AllocTables, Flush, TablesFlags, VendorOp

from ..guest.tables import InFlight
from ..guest.waiting import came_true
from .difference import require
from .guest import Guest, ModularRam
from .machine_path import MachinePath
from .operations import Alloc, Batch, Dma, Lookup, Map, Operation, Posted, SlotOperation, Unmap, Usage
from .oracle import BatchOutcome, DmaOutcome, Oracle, Verdict
from .own_tables import OwnTables
from .profiles import Interface, Seen, Submission
from .ring_path import RingPath
from .wire_path import WirePath

__all__ = ["TablesGuest", "TablesMachinePath", "TablesRam", "TablesRingPath", "TablesWirePath"]

TABLES = range(0x200000, 0x208000)
"""Guest frames of tables. The model does not know them, and nothing is mapped to them."""
FLUSH_EVERY = 16
PATIENCE_S = 10.0
_PAGE = 4096
_ACCESSED, _DIRTY = 1 << 8, 1 << 9
_NO_CONTEXT = ("NO_DOMAIN", "NOT_PAGING")


class TablesRam(ModularRam):
    """Such RAM, and what tables lie in."""

    def __init__(self) -> None:
        super().__init__(len(TABLES) * _PAGE)
        self.tables = mmap.mmap(self.fd, len(TABLES) * _PAGE, offset=self.size - len(TABLES) * _PAGE)

    def parts(self, present: bool) -> list[tuple[int, int, int]]:
        own = (TABLES.start * _PAGE, len(TABLES) * _PAGE, self.size - len(TABLES) * _PAGE)
        return super().parts(present) if present else [*super().parts(present), own]

    def close(self) -> None:
        self.tables.close()
        super().close()


class TablesInterface:
    """An interface whose contexts are made by ALLOC_TABLES."""

    def __init__(self, inner: Interface, alloc: Callable[[], AllocTables]) -> None:
        """``alloc``: the record of the next ALLOC_TABLES."""
        self._inner, self._alloc = inner, alloc
        self.number, self.malformed, self.set_up = inner.number, inner.malformed, inner.set_up
        self.has_lookup = inner.has_lookup
        self.refuses, self.errno = inner.refuses, inner.errno

    def submission(self, op: SlotOperation) -> Submission:
        """See :class:`.profiles.Interface`."""
        if not isinstance(op, Alloc):
            return self._inner.submission(op)
        payload = self._alloc().pack().ljust(PAYLOAD_SIZE, b"\0")
        return Submission(OpClass.VENDOR, VendorOp.ALLOC_TABLES, 0, payload)

    def expected(self, op: SlotOperation, given: bytes, refused: int, outcome: Any, seen: Seen) -> tuple[int, bytes]:
        """See :class:`.profiles.Interface`."""
        if refused or not isinstance(op, Alloc):
            return self._inner.expected(op, given, refused, outcome, seen)
        result = self._inner.errno("alloc", outcome)
        if result:
            return result, given
        answer = replace(AllocTables.unpack(given), ctx_no=outcome[0], line=_line(outcome[0]))
        return 0, answer.pack().ljust(PAYLOAD_SIZE, b"\0")


def _line(ctx: int) -> int:
    return (ctx - 1) % IN_FLIGHT_LINES


class TablesGuest(Guest):
    """What such guests have in common, however they reach the device."""

    def __init__(self, oracle: Oracle, *args: Any, dirty: bool = False, **named: Any) -> None:
        """``dirty``: let the device set accessed and dirty bits. The rest is for the path."""
        self._dirty = dirty
        self._unmaps = 0
        super().__init__(oracle, *args, **named)

    def make_ram(self) -> ModularRam:
        ram = TablesRam()
        self._own = OwnTables(self.oracle.model, memoryview(ram.tables), TABLES)
        self._root = TABLES.start
        return ram

    def make_interface(self) -> Interface:
        return TablesInterface(self.oracle.interface, self._next_tables)

    def _next_tables(self) -> AllocTables:
        flags = TablesFlags.DIRTY if self._dirty else 0
        return AllocTables(TableFormat.VTD_SS, int(flags), self._root, self.oracle.setting.aperture_bits)

    def usage(self) -> tuple[int, int, int, int]:
        return self._own.usage()

    def close(self) -> None:
        self._own.close()
        super().close()

    # -- operations -------------------------------------------------------------------------------------------------

    def run(self, op: Operation, verdict: Verdict) -> None:
        op, verdict = self._own.can_be(op, verdict)
        self._own.store(op, verdict)
        self._choose_root(op, verdict)
        before = self._leaves(op) if isinstance(op, Dma) else {}
        super().run(op, self._as_refused(op, verdict))
        if isinstance(op, Dma):
            self._compare_bits(op, verdict.outcome, before)
        if isinstance(op, Unmap) and op.ctx in self.oracle.model.pages:
            self._wait_for_walks(op.ctx)
        self._own.forget_others()

    def _choose_root(self, op: Operation, verdict: Verdict) -> None:
        if isinstance(op, Posted):
            self._choose_root(op.then, verdict.outcome[-1])
        elif isinstance(op, Alloc):
            ctx = verdict.outcome[0]
            self._root = self._own[ctx].root if ctx else TABLES.start << 12

    def _as_refused(self, op: Operation, verdict: Verdict) -> Verdict:
        """What is carried out on pages by an operation is refused in such contexts, and posted ones are as well."""
        refused = verdict.refused
        match op:
            case _ if refused:
                pass
            case Posted():
                parts = zip((*op.operations, op.then), verdict.outcome, strict=True)
                return verdict._replace(outcome=[self._as_refused(*part) for part in parts])
            case Map() | Unmap() if verdict.outcome[1] not in _NO_CONTEXT:
                refused = Errno.EOPNOTSUPP
            case Lookup() if self.oracle.interface.has_lookup and op.ctx in self.oracle.model.pages:
                refused = Errno.EOPNOTSUPP
            case Batch():
                refused = Errno.EOPNOTSUPP
        return verdict._replace(refused=refused)

    def _wait_for_walks(self, ctx: int) -> None:
        """What ends a strict unmap: the look, and time and again a FLUSH."""
        line = InFlight(self.iommu, _line(ctx))
        if not came_true(line.is_quiet, PATIENCE_S):
            require(self.name, f"step and pending of context {ctx}", "even, 0", (line.step, line.pending))
        self._unmaps += 1
        if self._unmaps % FLUSH_EVERY == 0:
            payload = Flush(ctx).pack().ljust(PAYLOAD_SIZE, b"\0")
            found = self.call(Submission(OpClass.VENDOR, VendorOp.FLUSH, 0, payload))
            require(self.name, f"FLUSH of context {ctx}", (0, payload), found)

    def _statuses(self, op: Batch, outcome: BatchOutcome) -> list[int]:
        return []

    # -- what the device writes to the tables -----------------------------------------------------------------------

    def _leaves(self, op: Dma) -> dict[int, tuple[int, int] | None]:
        """The leaves that a request may use, and their neighbours, by page."""
        ctx = self.oracle.model.attached[op.stream]
        if ctx not in self.oracle.model.pages:
            return {}
        first, last = op.iova >> 12, op.iova + op.length - 1 >> 12
        limit = self.oracle.model.limit
        return {dfn: self._own[ctx].leaf(dfn << 12) for dfn in range(max(0, first - 1), min(last + 2, limit))}

    def _compare_bits(self, op: Dma, outcome: DmaOutcome, before: dict[int, tuple[int, int] | None]) -> None:
        """Exactly the leaves that were used are accessed, and dirty if they were written through. If the request was
        refused, those that come before what was refused may be.
        """
        is_done = isinstance(outcome.translation, list) and outcome.lost is None
        bits = (_ACCESSED | (_DIRTY if op.write else 0)) if self._dirty else 0
        end = op.iova + op.length - 1
        found = self._leaves(op)
        for dfn, leaf in before.items():
            allowed = [leaf]
            if leaf and dfn >> leaf[1] - 12 << leaf[1] <= end and op.iova >> leaf[1] <= dfn >> leaf[1] - 12:
                used = leaf[0] | bits, leaf[1]
                allowed = [used] if is_done else [leaf, used]
            if found[dfn] not in allowed:
                require(self.name, f"leaf of {dfn:#x} after {op}", allowed, found[dfn])

    # -- comparing --------------------------------------------------------------------------------------------------

    def compare_all(self) -> None:
        for ctx, pages in self.oracle.model.pages.items():
            require(self.name, f"tables of context {ctx}", pages, self._own.pages(ctx))
        super().compare_all()


class TablesRingPath(TablesGuest, RingPath):
    """Such a guest of a machine in this process."""

    name = "tables-ring"


class TablesMachinePath(TablesGuest, MachinePath):
    """Such a guest of machines that are saved, and go on in another process. With ``dirty`` all of them have the
    native core.
    """

    name = "tables-machine"

    def kinds_of_core(self, library: Path | None) -> Sequence[bool]:
        return (True,) if self._dirty else super().kinds_of_core(library)


class TablesWirePath(TablesGuest, WirePath):
    """Such a guest of a server in another process. It sees of its tables what DMA finds."""

    name = "tables-wire"

    def compare_touched(self, ctx: int, dfns: Iterable[int]) -> None:
        """Read a byte of the first and of the last page, by an endpoint that is inside."""
        pages = list(dfns)
        inside = [stream for stream, at in self.oracle.model.attached.items() if ctx and at == ctx]
        for dfn in {dfn for dfn in (*pages[:1], *pages[-1:]) if dfn < 1 << 52}:
            for stream in inside[:1]:
                look = Dma(stream, (dfn << 12) + 4095, 1, False, 0)
                self.run(look, self.oracle.apply(look))

    def compare_tables(self) -> None:
        """Look whether the device has as many contexts."""
        self.run(Usage(), Verdict(0, (0, None, None)))
