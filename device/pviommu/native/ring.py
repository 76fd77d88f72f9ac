"""Command rings whose common slots are carried out in C: see :mod:`pviommu.interfaces.pv.ring_core`."""

from __future__ import annotations

from collections.abc import Callable
from ctypes import addressof, c_char, memset, sizeof
from typing import Any

from pviommu_abi.shared import CACHE_LINE, INDEX_OFFSET, RING_INDEX_STRIDE

from ..inputs import Inputs
from ..interfaces.pv.page_operation import PageKinds, PageRules
from ..interfaces.pv.ring import CommandRing, CommandRingState
from ..interfaces.pv.ring_core import Poll, Report
from ..pci.shared_memory import SharedMemory
from . import library
from .page_operation import hand_over

__all__ = ["NativeRing", "NativeRings"]


class NativeRing(CommandRing):
    """A ring whose indices C and Python share. C reaches its memory only while it is on."""

    def __init__(self, state: Any, number: int, shared: SharedMemory, inputs: Inputs) -> None:
        """``state``: the :class:`.library.Ring` of this ring."""
        self.state = state
        state.number = number
        super().__init__(number, shared, inputs)

    @property
    def completed(self) -> int:
        return int(self.state.completed)

    @completed.setter
    def completed(self, value: int) -> None:
        self.state.completed = value

    @property
    def broken(self) -> bool:
        return bool(self.state.broken)

    @broken.setter
    def broken(self, value: bool) -> None:
        self.state.broken = value

    @property
    def awaited(self) -> int:
        return int(self.state.awaited)

    @awaited.setter
    def awaited(self, value: int) -> None:
        self.state.awaited = value

    def enable(self, base: int, entries: int) -> None:
        self._locate(base)
        super().enable(base, entries)
        self.state.entries = entries

    def load(self, state: CommandRingState) -> None:
        super().load(state)
        if state.entries:
            self._locate(state.base)
        self.state.entries = state.entries

    def _locate(self, base: int) -> None:
        memory = addressof(c_char.from_buffer(self._shared.view))  # the BAR may have new memory since
        line = memory + INDEX_OFFSET + self.number * RING_INDEX_STRIDE
        self.state.slots = memory + base
        self.state.guest_line = line
        self.state.device_line = line + CACHE_LINE

    def disable(self) -> None:
        super().disable()
        self.state.entries = 0


class NativeRings:
    """The rings of one device: see :class:`pviommu.interfaces.pv.ring_core.RingCore`."""

    def __init__(
        self,
        lib: library.Library,
        core: int,
        count: int,
        shared: SharedMemory,
        inputs: Inputs,
        removed: Callable[[], object],
    ) -> None:
        """``core``: address of the ``struct pv_core``. ``removed`` is called after pages were unmapped."""
        self._lib = lib
        self._shared = shared
        self._inputs = inputs
        self._removed = removed
        self._states = (library.Ring * count)()
        self._rings = library.Rings(core=core, rings=addressof(self._states), count=count)
        self._rings_at = addressof(self._rings)
        self._report = library.Report()
        self._report_at = addressof(self._report)

    def ring(self, number: int) -> NativeRing:
        return NativeRing(self._states[number], number, self._shared, self._inputs)

    def select(self, rules: PageRules | None, carried_out: PageKinds = PageKinds.BOTH) -> None:
        hand_over(rules, carried_out, self._rings)

    def keep_history(self, buffer: bytearray) -> None:
        self._history = (c_char * len(buffer)).from_buffer(buffer)  # it must live as long as C writes there
        self._rings.history = addressof(self._history)

    def execute(self, ring: CommandRing, limit: int, budget_ns: int) -> Report:
        memset(self._report_at, 0, sizeof(self._report))
        self._lib.pv_ring_execute(self._rings_at, ring.number, limit, max(0, budget_ns), self._report_at)
        return self._done()

    def spin(self, poll: Poll) -> Report:
        memset(self._report_at, 0, sizeof(self._report))
        self._lib.pv_spin(self._rings_at, *poll, self._report_at)
        return self._done()

    def _done(self) -> Report:
        if self._report.pages_unmapped:
            self._removed()  # before anybody can ask for a translation
        return self._report
