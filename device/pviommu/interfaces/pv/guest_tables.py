"""Contexts whose tables the guest owns: what ALLOC_TABLES makes, and what FLUSH waits for (docs/guest-tables.md)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from msgspec import Struct

from pviommu_abi.shared import (
    CACHE_LINE,
    IN_FLIGHT_LINES,
    IN_FLIGHT_OFFSET,
    TableFormat,
)
from pviommu_abi.shared import (
    GuestTables as GuestTablesCapability,
)
from pviommu_abi.slots import Errno
from pviommu_abi.vendor import AllocTables, TablesFlags

from ...dma.access import Copier, GuestMemoryError
from ...dma.memory import GuestMemory
from ...dma.plan import Span
from ...dma.translator import Lent
from ...engine import PAGE_SHIFT, PAGE_SIZE, GuestTables
from ...engine.formats import vtd_second_stage, x86_64
from ...engine.walk import ENTRY_SIZE, ReadRefusal, Tables
from .contexts import Contexts
from .in_flight import InFlight, line_of
from .ring_core import DeviceCore

__all__ = ["CAPABILITY", "FORMATS", "ContextTables", "TablesState"]

_DEPTH = 4
_OUTPUT_BITS = 52
"""Of an address in an entry: what guest RAM is, the accesses find out."""
FORMATS: Mapping[int, tuple[Callable[[int, bool], Tables], int]] = {
    TableFormat.VTD_SS: (lambda root, dirty: vtd_second_stage(_DEPTH, root, _OUTPUT_BITS, updates=dirty), 48),
    TableFormat.X86_64: (lambda root, dirty: x86_64(_DEPTH, root, _OUTPUT_BITS, updates=dirty), 47),
}
"""What makes the tables of each format from root and dirty bits, and how many bits device addresses have at most."""
CAPABILITY = GuestTablesCapability(
    formats=sum(1 << format for format in FORMATS), offset=IN_FLIGHT_OFFSET, lines=IN_FLIGHT_LINES, stride=CACHE_LINE
)
_FLAGS = int(TablesFlags.DIRTY)


class TablesState(Struct, frozen=True):
    """The tables of one context, as ALLOC_TABLES named them."""

    format: int
    flags: int
    root: int
    aperture_bits: int


class _NotRam(ReadRefusal):
    """A table is not in guest memory."""

    __slots__ = ()


_NOT_RAM = _NotRam()


class ContextTables:
    """The tables of the contexts of one PV-IOMMU, and whether DMA by them is in flight."""

    def __init__(
        self,
        contexts: Contexts,
        memory: GuestMemory,
        in_flight: InFlight,
        core: DeviceCore | None,
        *,
        offered: bool,
    ) -> None:
        """``memory``: the PV-IOMMU's. Set its copier before: without one nothing sets dirty bits. ``core``: the
        engine's.
        """
        self.transfers = False
        """whether the core may carry out whole requests: nobody watches them, and it can"""
        self._core = core
        self.in_flight = in_flight
        self.is_offered = offered
        self._contexts = contexts
        self._engine = contexts.engine
        self._memory = memory
        self._states: dict[int, TablesState] = {}
        """by context"""

    def alloc(self, op: AllocTables) -> int:
        """A context with these tables, or a negative errno."""
        state = TablesState(op.format, op.flags, op.root, op.aperture_bits)
        if not self._is_well_formed(state):
            return -Errno.EINVAL
        if state.flags and self._exchange is None:
            return -Errno.EOPNOTSUPP
        try:
            self._memory.check([(state.root, PAGE_SIZE)])
        except GuestMemoryError:
            return -Errno.EFAULT
        ctx = self._contexts.alloc_tables(self._tables(state)).context
        if ctx is None:
            return -Errno.ENOSPC
        self._states[ctx] = state
        return ctx

    def _is_well_formed(self, state: TablesState) -> bool:
        _, bits = FORMATS.get(state.format, (None, 0))
        is_aperture = PAGE_SHIFT <= state.aperture_bits <= min(bits, self._engine.config.aperture_bits)
        is_root = not state.root % PAGE_SIZE and not state.root >> _OUTPUT_BITS
        return is_aperture and is_root and not state.flags & ~_FLAGS

    def _tables(self, state: TablesState) -> GuestTables:
        make, _ = FORMATS[state.format]
        frames = 1 << state.aperture_bits - PAGE_SHIFT
        dirty = bool(state.flags & TablesFlags.DIRTY)
        update = self._exchange if dirty else None
        return GuestTables(make(state.root, dirty), frames, self._read, update, self._memory.copier)

    @property
    def _exchange(self) -> Callable[[int, int, int], int | ReadRefusal] | None:
        return self._update if self._memory.copier is not None else None

    def _read(self, address: int) -> int | ReadRefusal:
        try:
            return int.from_bytes(self._memory.read([(address, ENTRY_SIZE)]), "little")
        except GuestMemoryError:
            return _NOT_RAM

    def _update(self, address: int, before: int, after: int) -> int | ReadRefusal:
        found = self._memory.copier.exchange(address, before, after) if self._memory.copier else None
        return _NOT_RAM if found is None else found

    def line(self, stream: int) -> int | None:
        """The line of an endpoint's DMA, if that is translated by tables of the guest."""
        if not self._states:
            return None
        domain = self._engine.endpoints()[stream]
        return line_of(domain) if self._engine.has_guest_tables(domain) else None

    def transfer(
        self, stream: int, spans: Sequence[Span], copier: Copier | None, data: bytes | memoryview | None
    ) -> bytes | None:
        """See :meth:`.translator.Translator.transfer`."""
        domain = self._engine.walked_by_core(stream)
        if domain is None or copier is None or self._core is None or not self.transfers:
            return None
        line = line_of(domain)
        if not self.in_flight.is_quiet(line):
            return None
        word, step = self.in_flight.hand_over(line)
        return self._core.transfer(domain, spans, copier, data, word, step)

    def lend(self, stream: int) -> Lent | None:
        """See :meth:`.translator.Translator.lend`."""
        domain = self._engine.core_domain(stream)
        if domain is None or self._core is None or not self.transfers:
            return None
        if not self._engine.has_guest_tables(domain):
            return Lent(self._core.address, domain)
        line = line_of(domain)
        return Lent(self._core.address, domain, *self.in_flight.lend(line)) if self.in_flight.is_quiet(line) else None

    def reset(self) -> None:
        """There are no contexts, and nothing is in flight."""
        self._states.clear()
        self.in_flight.reset()

    # -- state ------------------------------------------------------------------------------------------------------

    def save(self) -> dict[int, TablesState]:
        """The tables of each context that has any."""
        return {ctx: state for ctx, state in self._states.items() if self._engine.has_guest_tables(ctx)}

    def tables_of(self, states: Mapping[int, TablesState]) -> dict[int, GuestTables]:
        """What the engine is to load with what :meth:`save` gave. Raises ValueError for tables that cannot be."""
        for ctx, state in states.items():
            if not self._is_well_formed(state) or (state.flags and self._exchange is None):
                raise ValueError(f"context {ctx}: {state} are no tables that this device walks")
        return {ctx: self._tables(state) for ctx, state in states.items()}

    def load(self, states: Mapping[int, TablesState]) -> None:
        """Take over a state; the engine has its own already."""
        self._states = dict(states)
