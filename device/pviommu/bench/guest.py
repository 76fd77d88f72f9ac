"""What the guest's benchmark says, line by line, and what it is answered."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields

from pviommu.lab.report import exit_line

__all__ = ["ANSWER", "Boot", "Conversation", "MeasurementError", "Plan", "Round", "parse_round"]

ANSWER = "go"
"""What the guest waits for after a mark."""


class MeasurementError(Exception):
    """One machine did not give its figures."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How much one boot measures. ``rounds`` of ``operations`` map + unmap pairs each after ``warm_up`` pairs, then
    ``count_operations`` pairs while trapped accesses are counted (0: none are).
    """

    rounds: int
    operations: int
    warm_up: int
    count_operations: int

    @property
    def timed_pairs(self) -> int:
        """Pairs of map and unmap outside the counting phase."""
        return self.warm_up + self.rounds * self.operations if self.rounds else 0

    def settings(self, device: str, modules: Sequence[str]) -> bytes:
        """The guest's ``/lab/bench``."""
        lines = {
            "modules": " ".join(modules),
            "device": device,
            "operations": self.operations,
            "rounds": self.rounds,
            "warm_up": self.warm_up,
            "count_operations": self.count_operations,
        }
        return "".join(f"{name}='{value}'\n" for name, value in lines.items()).encode()


@dataclass(frozen=True, slots=True)
class Round:
    """One round, nanoseconds: medians and means over its calls, ``pair`` a map and the unmap after it.

    Means also carry rare dear calls, such as the flush of many unmaps at once. ``clock`` is what reading the clock
    costs; each of the others contains it, a pair twice.
    """

    map_ns_median: float
    map_ns_mean: float
    unmap_ns_median: float
    unmap_ns_mean: float
    pair_ns_median: float
    pair_ns_mean: float
    clock_ns_median: float


@dataclass(slots=True)
class Boot:
    """What one boot of one machine gave."""

    rounds: list[Round] = field(default_factory=list)
    facts: dict[str, str] = field(default_factory=dict)
    accesses: dict[str, float] = field(default_factory=dict)
    """accesses that left the guest per pair, by trace event; only those that occurred"""
    counted: bool = False
    exit_status: int | None = None


def parse_round(words: Sequence[str]) -> Round:
    """The figures of a ``NAME=VALUE ...`` list. Raises MeasurementError."""
    wanted = [entry.name for entry in fields(Round)]
    values: dict[str, float] = {}
    for word in words:
        name, _, value = word.partition("=")
        if name in wanted and value.replace(".", "", 1).isdecimal():
            values[name] = float(value)
    missing = [name for name in wanted if name not in values]
    if missing:
        raise MeasurementError(f"the guest's round lacks {', '.join(missing)}: {' '.join(words)[:200]}")
    return Round(**values)


class Conversation:
    """Takes the guest's lines and keeps what they say in :attr:`boot`.

    ``switch`` turns the counting on and off, ``counts`` gives the totals so far, ``answer`` sends a line to the guest.
    Two stretches are counted, alike but for the pairs measured in the second, so their difference is the pairs' own.
    """

    def __init__(
        self,
        plan: Plan,
        switch: Callable[[bool], None],
        counts: Callable[[], Counter[str]],
        answer: Callable[[str], None],
    ) -> None:
        self.boot = Boot()
        self._plan = plan
        self._switch = switch
        self._counts = counts
        self._answer = answer
        self._empty: Counter[str] = Counter()

    def line(self, line: str) -> None:
        """Take one line. Raises MeasurementError when the guest gave up or is not understood."""
        match line.split():
            case ["bench", "round", _, *words]:
                self.boot.rounds.append(parse_round(words))
            case ["bench", "fact", name, *words]:
                self.boot.facts[name] = " ".join(words)
            case ["bench", "mark", name]:
                self._mark(name)
                self._answer(ANSWER)
            case ["bench", "failed", *words]:
                raise MeasurementError(" ".join(words))
            case _:
                status = exit_line(line)
                self.boot.exit_status = self.boot.exit_status if status is None else status

    def finish(self) -> Boot:
        """The boot, once QEMU has ended. Raises MeasurementError if anything planned is missing."""
        boot = self.boot
        if boot.exit_status != 0:
            ended = "without its last line" if boot.exit_status is None else f"with status {boot.exit_status}"
            raise MeasurementError(f"the guest ended {ended}")
        if len(boot.rounds) != self._plan.rounds:
            raise MeasurementError(f"{self._plan.rounds} rounds were asked for, {len(boot.rounds)} came")
        if self._plan.count_operations and not boot.counted:
            raise MeasurementError("the guest left the counting phase out")
        return boot

    def _mark(self, name: str) -> None:
        if name == "count-begin":
            self._switch(True)
        elif name == "count-empty":
            self._empty = self._counts()
        elif name == "count-end":
            total = self._counts()
            self._switch(False)
            pairs = self._plan.count_operations
            own = {event: (total[event] - 2 * self._empty[event]) / pairs for event in total}
            self.boot.accesses = {event: value for event, value in sorted(own.items()) if value}
            self.boot.counted = True
        else:
            raise MeasurementError(f"the guest set an unknown mark, {name}")
