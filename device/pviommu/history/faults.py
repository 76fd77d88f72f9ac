"""Refused DMA: the last ones, each with what there was to say of it at that moment."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from typing import Any

from ..engine import PAGE_SHIFT
from .explanation import Asked, Explainer, Explanation

__all__ = ["MOST_FAULTS", "FaultLog", "SeenFault"]

MOST_FAULTS = 1024
"""Kept; older ones go."""


@dataclass(slots=True)
class SeenFault:
    """One refused request."""

    number: int
    """from 1 on, without gaps"""
    time_ns: int
    stream: int
    sbdf: str
    context: int
    iova: int
    """of the first byte refused"""
    length: int
    """bytes of the span that the address is in"""
    access: str
    """READ or WRITE"""
    reason: str
    """:class:`pviommu_abi.shared.EventReason` by name"""
    operations: int
    """operations before it, as the history counts them"""
    explanation: Explanation | None = None
    """None while it is being found out, and if there were too many at a time"""

    def report(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        said = {name: getattr(self, name) for name in self.__slots__ if name != "explanation"}
        return said | ({} if self.explanation is None else {"explanation": self.explanation.report()})


@dataclass
class FaultLog:
    """The last refused requests of one IOMMU, explained when they come: later, what they tell of is gone."""

    explainer: Explainer
    find_out: Callable[[Iterator[None]], bool] = field(default=lambda steps: all(True for _ in steps))
    """takes the steps of an explanation, each bounded, to make them soon; False if there are too many already.
    Without a loop they are made at once"""
    told: list[Callable[[SeenFault], None]] = field(default_factory=list)
    """whom each fault is told of, once it is explained or will not be"""
    count: int = 0
    """of all faults so far"""
    unexplained: int = 0
    """of those that came too fast"""
    kept: deque[SeenFault] = field(default_factory=lambda: deque(maxlen=MOST_FAULTS))

    def add(self, seen: SeenFault, asked: Asked) -> None:
        """A request was refused this moment, of which ``asked`` says what it wanted and where."""
        self.count += 1
        seen.number = self.count
        before = self.kept[-1] if self.kept else None
        self.kept.append(seen)
        if before is not None and _is_same(before, seen):
            seen.explanation = before.explanation
        if seen.explanation is None:
            if self.find_out(self._explain(seen, self.explainer.begin(asked))):
                return
            self.unexplained += 1
        self._tell(seen)

    def _explain(self, seen: SeenFault, steps: Generator[None, None, Explanation]) -> Iterator[None]:
        seen.explanation = yield from steps
        self._tell(seen)

    def _tell(self, seen: SeenFault) -> None:
        for told in self.told:
            told(seen)

    def last(self, page: int, *, stream: int | None = None, context: int | None = None) -> SeenFault | None:
        """The last fault in the page ``page`` (a dfn), of a stream or in a context."""
        for seen in reversed(self.kept):
            is_meant = context in (None, seen.context) and stream in (None, seen.stream)
            if is_meant and seen.iova >> PAGE_SHIFT == page:
                return seen
        return None


def _is_same(before: SeenFault, seen: SeenFault) -> bool:
    """Whether nothing was done between two faults, so that there is nothing new to say of the second one."""
    return (before.iova, before.stream, before.access, before.reason, before.operations) == (
        *(seen.iova, seen.stream, seen.access, seen.reason, seen.operations),
    )
