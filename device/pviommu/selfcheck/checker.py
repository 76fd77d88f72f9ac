"""Runs histories: carries out every operation on the model and on every path and compares; shortens a failing
history."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from random import Random
from typing import Protocol

from .difference import Difference
from .engine_path import EnginePath
from .machine_path import MachinePath
from .operations import Batch, Map, Operation, Posted, Unmap
from .oracle import Oracle, Verdict
from .ring_path import RingPath
from .rules import Rules
from .settings import Setting
from .snapshot_path import SnapshotPath
from .tables_guest import TablesMachinePath, TablesRingPath, TablesWirePath
from .tables_path import TablesPath
from .wire_path import WirePath

__all__ = ["COMPARE_ALL_EVERY", "PATHS", "Checker", "MakePath", "Path", "Run", "run_history", "shortened"]

COMPARE_ALL_EVERY = 1000
"""How many operations there are between two comparisons of whole tables and of all guest RAM."""
_FRAMES = 1 << 64
_WHOLE_RANGE = 4096
"""Of a range that is longer, both ends are compared at once, and the rest with the whole tables."""
MAX_REPLAYS = 400


class Path(Protocol):
    """A way to the engine."""

    name: str

    def run(self, op: Operation, verdict: Verdict) -> None: ...
    def compare_touched(self, ctx: int, dfns: Iterable[int]) -> None: ...
    def compare_all(self) -> None: ...
    def close(self) -> None: ...


MakePath = Callable[[Oracle], Path]
PATHS: dict[str, MakePath] = {
    "engine": EnginePath,
    "snapshot": SnapshotPath,
    "tables": TablesPath,
    "ring": RingPath,
    "machine": MachinePath,
    "wire": WirePath,
    "tables-ring": TablesRingPath,
    "tables-machine": TablesMachinePath,
    "tables-wire": TablesWirePath,
}


class Checker:
    """Keeps the model and the paths in the same state, or raises :class:`Difference`. A context manager."""

    def __init__(self, setting: Setting, paths: Sequence[MakePath]) -> None:
        self.oracle = Oracle(setting)
        self._steps = 0
        self._paths: list[Path] = []
        with ExitStack() as stack:
            for make in paths:
                path = make(self.oracle)
                stack.callback(path.close)
                self._paths.append(path)
            self._stack = stack.pop_all()

    def __enter__(self) -> Checker:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def step(self, op: Operation) -> None:
        """Carry out one operation everywhere and compare."""
        verdict = self.oracle.apply(op)
        for path in self._paths:
            path.run(op, verdict)
        for ctx, dfns in _touched(op):
            for path in self._paths:
                path.compare_touched(ctx, dfns)
        self._steps += 1
        if self._steps % COMPARE_ALL_EVERY == 0:
            self.compare_all()

    def compare_all(self) -> None:
        """Compare whole tables and all of guest RAM."""
        for path in self._paths:
            path.compare_all()


def _touched(op: Operation) -> Iterable[tuple[int, Sequence[int]]]:
    match op:
        case Map() | Unmap():
            first, end = max(0, op.dfn - 1), min(op.dfn + op.nr + 1, _FRAMES)
            if op.nr <= _WHOLE_RANGE:
                yield op.ctx, range(first, end)
            else:
                yield op.ctx, (*range(first, min(first + 512, end)), *range(max(first, end - 512), end))
        case Batch():
            yield op.ctx, [element[0] for element in op.elements]
        case Posted():
            for each in (*op.operations, op.then):
                yield from _touched(each)
        case _:
            yield 0, ()


class Run:
    """A history with its own machine, both drawn from a seed."""

    def __init__(self, seed: str, profile: str) -> None:
        self._random = Random(seed)
        self.setting = Setting.drawn(self._random, profile)
        self.history: list[Operation] = []
        """what was carried out, the failing operation included"""

    def check(self, steps: int, paths: Sequence[MakePath]) -> Difference | None:
        """Draw and carry out ``steps`` operations. Returns the difference that was found, with which the history ends,
        or None."""
        try:
            with Checker(self.setting, paths) as checker:
                rules = Rules(self._random, checker.oracle.model, checker.oracle.interface.malformed)
                while len(self.history) < steps:
                    for op in rules.draw():
                        self.history.append(op)
                        checker.step(op)
                checker.compare_all()
        except Difference as difference:
            return difference
        return None


def run_history(setting: Setting, history: Sequence[Operation], paths: Sequence[MakePath]) -> Difference | None:
    """Carry out a history on new machines. Returns the first difference, or None."""
    try:
        with Checker(setting, paths) as checker:
            for op in history:
                checker.step(op)
            checker.compare_all()
    except Difference as difference:
        return difference
    return None


def shortened(
    setting: Setting, history: Sequence[Operation], paths: Sequence[MakePath], replays: int = MAX_REPLAYS
) -> list[Operation]:
    """A part of ``history``, in order, that still ends in a difference. None of its operations can be left out, as far
    as ``replays`` attempts can tell. A history without a difference is returned as it is.
    """
    best = list(history)
    chunk = max(1, len(best) // 2)
    while chunk and replays > 0:
        end, before = len(best), len(best)
        while end > 0 and replays > 0:
            candidate = best[: max(0, end - chunk)] + best[end:]
            replays -= 1
            if run_history(setting, candidate, paths) is not None:
                best = candidate
            end -= chunk
        if chunk > 1 or len(best) == before:  # single operations are tried until none can be left out
            chunk //= 2
    return best
