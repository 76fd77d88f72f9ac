"""The in-flight lines: by them a guest that has cleared entries of its tables sees whether DMA may still use them.

A line's ``step`` is odd from before the first entry is read until the bytes are copied. With :func:`fence` between
that store and the reads, and a full barrier of the guest's between its clearing and its look, one of the two sides sees
the other: either the device reads the cleared entry, or the guest sees the odd step. ``docs/guest-tables.md`` has the
proof.
"""

from __future__ import annotations

from array import array
from ctypes import addressof, c_char

from pviommu_abi.shared import CACHE_LINE, IN_FLIGHT_LINES, IN_FLIGHT_OFFSET, InFlightLine

from ...pci.shared_memory import SharedMemory, fence

__all__ = ["Flushing", "InFlight", "Use", "line_of"]

_WORD = 4
_MASK = 0xFFFFFFFF
_PENDING = InFlightLine.offset_of("pending") // _WORD


def line_of(context: int) -> int:
    """The line of a context; contexts that are :data:`IN_FLIGHT_LINES` apart share one."""
    return (context - 1) % IN_FLIGHT_LINES


class Use:
    """One request that tables of the guest translate."""

    __slots__ = ("is_kept", "is_over", "line")

    def __init__(self, line: int) -> None:
        self.line = line
        self.is_kept = False
        """whether it takes longer than a step"""
        self.is_over = False


class Flushing:
    """Somebody waits for requests: a :class:`.hosted.Waiting`."""

    def __init__(self, uses: frozenset[Use]) -> None:
        self._uses = uses

    @property
    def is_over(self) -> bool:
        return all(use.is_over for use in self._uses)


class InFlight:
    """The lines of one PV-IOMMU. Nothing here is ever read back from the shared memory."""

    def __init__(self, shared: SharedMemory) -> None:
        self._shared = shared
        self._steps = array("I", [0] * IN_FLIGHT_LINES)
        self._uses: list[set[Use]] = [set() for _ in range(IN_FLIGHT_LINES)]
        self._memory = 0
        """where the shared memory is in this process, once somebody has asked"""

    def begin(self, line: int) -> Use:
        """From now on a request may use what it reads in tables."""
        uses = self._uses[line]
        if not uses:
            self._step(line)
            fence()
        uses.add(use := Use(line))
        return use

    def end(self, use: Use) -> None:
        """The request is over: nothing is read or written by its translations any more. A second time this does
        nothing.
        """
        uses = self._uses[use.line]
        if use not in uses:
            return
        uses.remove(use)
        use.is_over = True
        if use.is_kept:
            self._show_pending(use.line)
        if not uses:
            self._step(use.line)

    def keep(self, use: Use) -> None:
        """It will take longer than a step, which stays odd: the guest need not poll for its end."""
        use.is_kept = True
        self._show_pending(use.line)

    def resume(self, use: Use) -> None:
        """What was kept goes on in this step."""
        use.is_kept = False
        self._show_pending(use.line)

    def is_quiet(self, line: int) -> bool:
        """Whether nothing is in flight."""
        return not self._uses[line]

    def hand_over(self, line: int) -> tuple[int, int]:
        """Let somebody else make a step of a line that is quiet: the address of its word in this process, and the odd
        value that it is to have meanwhile. The next one is for afterwards, whatever comes of it.
        """
        step = self._steps[line] + 1 & _MASK
        self._steps[line] = step + 1 & _MASK
        return self._word(line), step

    def lend(self, line: int) -> tuple[int, int]:
        """Let native code make steps of a line that is quiet, until somebody else does anything: the addresses in this
        process of its word and of the step that the word has, both of which it changes.
        """
        return self._word(line), self._steps.buffer_info()[0] + _WORD * line

    def _word(self, line: int) -> int:
        if not self._memory:
            self._memory = addressof(c_char.from_buffer(self._shared.view))
        return self._memory + _WORD * _place(line)

    def flush(self, line: int) -> Flushing:
        """Wait for all that is in flight now, and for nothing that begins later."""
        return Flushing(frozenset(self._uses[line]))

    def reset(self) -> None:
        """Nothing is in flight, whatever was. The shared memory may be another, or have been cleared: the words are
        written anew. A step that was odd becomes the next even one, so whoever polls sees it change.
        """
        self.abandon()
        for line, step in enumerate(self._steps):
            if step:
                self._steps[line] = step = step + (step & 1) & _MASK
                self._shared.words[_place(line)] = step
                self._show_pending(line)

    def abandon(self) -> None:
        """Nothing is in flight, and nothing is written: the shared memory may be gone."""
        self._memory = 0
        for uses in self._uses:
            for use in uses:
                use.is_over = True
            uses.clear()

    def save(self) -> dict[int, int]:
        """The steps of the lines that were ever used."""
        return {line: step for line, step in enumerate(self._steps) if step}

    def load(self, steps: dict[int, int]) -> None:
        """Take over what :meth:`save` gave. Raises ValueError for a line that there is not, or a step that is none."""
        for line, step in steps.items():
            if not (0 <= line < IN_FLIGHT_LINES and 0 <= step <= _MASK):
                raise ValueError(f"in-flight line {line} at step {step}: there are {IN_FLIGHT_LINES}, of 32 bits")
        self._steps = array("I", [steps.get(line, 0) for line in range(IN_FLIGHT_LINES)])
        self.reset()

    def _step(self, line: int) -> None:
        self._steps[line] = step = self._steps[line] + 1 & _MASK
        self._shared.words[_place(line)] = step

    def _show_pending(self, line: int) -> None:
        self._shared.words[_place(line) + _PENDING] = sum(use.is_kept for use in self._uses[line])


def _place(line: int) -> int:
    return (IN_FLIGHT_OFFSET + line * CACHE_LINE) // _WORD
