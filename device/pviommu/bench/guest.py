"""What the guest's benchmark says, line by line, and the answers to it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields

from ..lab.report import exit_line

__all__ = ["ANSWER", "Boot", "Conversation", "MeasurementError", "Plan", "Round", "VfioMaps", "Witness", "parse_round"]

ANSWER = "go"
"""The answer that the guest waits for after a mark."""


class MeasurementError(Exception):
    """A machine did not deliver its figures."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How much one boot measures, for maps of each of ``granules`` pages.

    ``threads`` do ``rounds`` of ``operations`` map + unmap pairs each, after ``warm_up`` pairs; then one of them does
    ``count_operations`` pairs of the first granule while trapped accesses are counted (0: nothing is counted). With
    ``witness`` the kernel's own benchmark measures the same for a second each. ``vfio_mib`` are mapped through VFIO
    page by page.
    """

    rounds: int
    operations: int
    warm_up: int
    count_operations: int
    granules: tuple[int, ...] = (1,)
    threads: int = 1
    witness: bool = False
    vfio_mib: int = 0

    @property
    def timed_pairs(self) -> int:
        """Pairs of map and unmap outside the counting phase and the witness, of all threads together."""
        one = self.warm_up + self.rounds * self.operations if self.rounds else 0
        return one * self.threads * len(self.granules)

    def settings(self, device: str, modules: Sequence[str], options: Sequence[str] = ()) -> bytes:
        """The guest's ``/lab/bench``; ``options`` are parameters of ``modules``."""
        lines = {
            "modules": " ".join(modules),
            "options": " ".join(options),
            "device": device,
            "granules": " ".join(map(str, self.granules)),
            "threads": self.threads,
            "witness": int(self.witness),
            "vfio_mib": self.vfio_mib,
            "operations": self.operations,
            "rounds": self.rounds,
            "warm_up": self.warm_up,
            "count_operations": self.count_operations,
        }
        return "".join(f"{name}='{value}'\n" for name, value in lines.items()).encode()


@dataclass(frozen=True, slots=True)
class Round:
    """One round of maps of ``pages`` pages by ``threads`` threads at once.

    In nanoseconds: medians and means over its calls; ``pair`` is a map and the unmap after it. Means include rare
    expensive calls, such as the flush of many unmaps at once. ``clock`` is what reading the clock costs; each of the
    others includes it once, a pair twice. ``elapsed_ns`` is the time of all calls, each thread having made ``rounds``
    pairs.
    """

    map_ns_median: float
    map_ns_mean: float
    unmap_ns_median: float
    unmap_ns_mean: float
    pair_ns_median: float
    pair_ns_mean: float
    clock_ns_median: float
    pages: float
    threads: float
    rounds: float
    elapsed_ns: float

    @property
    def pairs_per_second(self) -> float | None:
        """The rate of all threads together; None if the guest did not say."""
        return self.threads * self.rounds * 1e9 / self.elapsed_ns if self.elapsed_ns else None


@dataclass(frozen=True, slots=True)
class Witness:
    """What the kernel's own benchmark says: nanoseconds of one map and one unmap, to a tenth of a microsecond."""

    pages: float
    threads: float
    map_ns: float
    unmap_ns: float


@dataclass(frozen=True, slots=True)
class VfioMaps:
    """Nanoseconds per page for mapping ``pages`` through VFIO's type1 interface, with one call each, and for unmapping
    them."""

    pages: float
    map_ns: float
    unmap_ns: float


@dataclass(slots=True)
class Boot:
    """The figures of one boot of one machine."""

    rounds: list[Round] = field(default_factory=list)
    witnesses: list[Witness] = field(default_factory=list)
    facts: dict[str, str] = field(default_factory=dict)
    accesses: dict[str, float] = field(default_factory=dict)
    """counts per pair, by trace event; only events that occurred"""
    counted: bool = False
    exit_status: int | None = None
    vfio: list[VfioMaps] = field(default_factory=list)


def parse_round(words: Sequence[str]) -> Round:
    """The figures of a ``NAME=VALUE ...`` list. Raises MeasurementError."""
    return Round(**_values(Round, words))


def parse_witness(words: Sequence[str]) -> Witness:
    """The same for the kernel's own benchmark. Raises MeasurementError."""
    return Witness(**_values(Witness, words))


def parse_vfio(words: Sequence[str]) -> VfioMaps:
    """The same for maps through VFIO. Raises MeasurementError."""
    return VfioMaps(**_values(VfioMaps, words))


def _values(kind: type[Round] | type[Witness] | type[VfioMaps], words: Sequence[str]) -> dict[str, float]:
    wanted = [entry.name for entry in fields(kind)]
    values: dict[str, float] = {}
    for word in words:
        name, _, value = word.partition("=")
        if name in wanted and value.replace(".", "", 1).isdecimal():
            values[name] = float(value)
    missing = [name for name in wanted if name not in values]
    if missing:
        said = " ".join(words)[:200]
        raise MeasurementError(f"the guest's {kind.__name__.lower()} lacks {', '.join(missing)}: {said}")
    return values


class Conversation:
    """Takes the guest's lines and keeps what they say in :attr:`boot`.

    ``switch`` turns the counting on and off, ``counts`` gives the totals so far, ``answer`` sends a line to the guest.
    Two phases are counted. They differ only in the pairs of the second one, so the difference of the counts is due to
    these.
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
            case ["bench", "witness", *words]:
                self.boot.witnesses.append(parse_witness(words))
            case ["bench", "vfio", *words]:
                self.boot.vfio.append(parse_vfio(words))
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
        """Return the boot's figures, once QEMU has ended. Raises MeasurementError if anything planned is missing."""
        boot = self.boot
        if boot.exit_status != 0:
            ended = "without its last line" if boot.exit_status is None else f"with status {boot.exit_status}"
            raise MeasurementError(f"the guest ended {ended}")
        for kind, wanted, came in (
            ("rounds", self._plan.rounds * len(self._plan.granules), len(boot.rounds)),
            ("witnesses", self._plan.witness * len(self._plan.granules), len(boot.witnesses)),
            ("maps through VFIO", int(self._plan.vfio_mib > 0), len(boot.vfio)),
        ):
            if came != wanted:
                raise MeasurementError(f"{wanted} {kind} were asked for, {came} came")
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
