"""Histories through engines that are saved half-way and continued by a new one."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import msgspec

from ..engine import Engine, EngineConfig, EngineState
from ..interfaces.pv.contexts import ContextsState
from .difference import Difference, require
from .engine_path import EnginePath
from .operations import Operation
from .oracle import Oracle, Verdict

__all__ = ["SNAPSHOT_EVERY", "SnapshotPath"]

SNAPSHOT_EVERY = 23
"""How many operations there are between two snapshots."""

_T = TypeVar("_T")


class SnapshotPath(EnginePath):
    """The path to an engine of its own. Its saved state becomes text, and the next engine goes on from that."""

    name = "snapshot"

    def __init__(self, oracle: Oracle, makes: Sequence[Callable[[EngineConfig], Engine]] = (Engine,)) -> None:
        """``makes`` build the engines, in turns such that each continues an engine of the make before, and its own."""
        twice = [makes[0], *(make for make in makes[1:] for _ in range(2)), makes[0]]
        self._makes: Iterator[Callable[[EngineConfig], Engine]] = itertools.cycle(twice)
        self._ran = 0
        self.snapshots = 0
        """how many were taken so far"""
        super().__init__(oracle, lambda config: next(self._makes)(config))

    def run(self, op: Operation, verdict: Verdict) -> None:
        super().run(op, verdict)
        self._ran += 1
        if self._ran % SNAPSHOT_EVERY == 0:
            self.go_on_in_another()

    def go_on_in_another(self) -> None:
        """Save the engine, load it into the next one, and forget it."""
        saved = _as_text(self.engine.save(), EngineState), _as_text(self.contexts.save(), ContextsState)
        self.build()
        try:
            self.engine.load(saved[0])
            self.contexts.load(saved[1])
        except ValueError as error:
            raise Difference(self.name, "a load of what was saved", "none refused", str(error)) from error
        require(self.name, "what is saved again", saved, (self.engine.save(), self.contexts.save()))
        self.snapshots += 1


def _as_text(state: object, kind: type[_T]) -> _T:
    """A state, converted to JSON and back."""
    return msgspec.json.decode(msgspec.json.encode(state), type=kind)
