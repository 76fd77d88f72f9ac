"""What an engine operation answers, in the engine's own words.

The engine knows no errno: a guest interface reads these results and chooses errno, counts and atomicity itself.
Units: dfn and gfn are frame numbers of 4 KiB pages, iova and gpa are byte addresses.
"""

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum, IntFlag
from typing import NamedTuple, overload

from .frames import ADDRESS_LIMIT as ADDRESS_LIMIT
from .frames import FRAME_LIMIT as FRAME_LIMIT
from .frames import PAGE_MASK as PAGE_MASK
from .frames import PAGE_SHIFT as PAGE_SHIFT
from .frames import PAGE_SIZE as PAGE_SIZE


class Access(IntFlag):
    """What a mapping allows, or a DMA asks for."""

    READ = 1
    WRITE = 2


class UnmapMode(Enum):
    """How an unmap treats holes and ranges that cut an earlier map call."""

    UNTIL_HOLE = "until-hole"  # Xen: page by page until a hole, cutting allowed
    CHECK_ENDS = "check-ends"  # VFIO type1v2: refuse if an end would cut a map call, then remove all
    UNTIL_CUT = "until-cut"  # iommufd: remove whole map calls in order until one would be cut


class Stop(Enum):
    """Why an operation stopped."""

    NO_DOMAIN = "no such domain"
    NOT_PAGING = "the domain has no page table of its own"
    GUEST_TABLES = "the guest owns the tables of the domain"
    POOL_EXHAUSTED = "the page pool is exhausted"
    ENDPOINTS_ATTACHED = "endpoints are attached to the domain"
    NESTED_ATTACHED = "nested domains stand on the domain"
    NO_ENDPOINT = "no such endpoint"
    OUT_OF_APERTURE = "outside the aperture"
    RESERVED = "inside a reserved region"
    NOT_RAM = "the guest frame is neither RAM nor MMIO that may be mapped"
    MAPPED = "already mapped"
    NOT_MAPPED = "not mapped"
    NO_ACCESS = "neither read nor write was asked for"
    CUT = "would cut an earlier map call"
    RESERVED_CONFLICT = "a reserved region of the endpoint is in conflict with the domain"


class Refusal(Enum):
    """Why a translation was refused."""

    NOT_MAPPED = "not mapped"
    NO_PERMISSION = "the mapping does not allow this access"
    OUT_OF_APERTURE = "outside the aperture"
    RESERVED = "inside a reserved region"
    BLOCKED = "the endpoint or its domain is blocked"
    NO_ENDPOINT = "no such endpoint"
    NO_PASID = "the endpoint has no attachment for this PASID"
    NOT_RAM = "a table of the guest, or what it leads to, is not RAM"


@dataclass(frozen=True, slots=True)
class Outcome:
    """Result of a map or an unmap."""

    done: int
    """Pages whose state changed; they stay changed."""
    stop: Stop | None
    """Why not all was done; None when it was."""
    at: int | None
    """dfn of the first page refused; None when the domain was the reason, or nothing was refused."""

    @property
    def ok(self) -> bool:
        return self.stop is None


class Run(NamedTuple):
    """A piece of guest memory, in bytes."""

    gpa: int
    length: int


def add_run(runs: list[Run], gpa: int, length: int) -> None:
    """Add a run, or make the last one longer."""
    if runs and sum(runs[-1]) == gpa:
        runs[-1] = Run(runs[-1].gpa, runs[-1].length + length)
    else:
        runs.append(Run(gpa, length))


class PackedRuns(Sequence[Run]):
    """Many runs side by side: `numbers` are pairs (gpa, length) of 64 bits, `size` bytes in all."""

    __slots__ = ("numbers", "size")

    def __init__(self, numbers: "array[int]") -> None:
        self.numbers = numbers
        self.size = sum(numbers[1::2])

    def __len__(self) -> int:
        return len(self.numbers) // 2

    @overload
    def __getitem__(self, place: int) -> Run: ...
    @overload
    def __getitem__(self, place: slice) -> list[Run]: ...
    def __getitem__(self, place: int | slice) -> Run | list[Run]:
        return list(self)[place]

    def __iter__(self) -> Iterator[Run]:
        return map(Run, self.numbers[::2], self.numbers[1::2])

    def __eq__(self, other: object) -> bool:
        return list(self) == list(other) if isinstance(other, PackedRuns | list) else NotImplemented

    __hash__ = None  # type: ignore[assignment]


class NoRuns:
    """What a translation comes to otherwise: a `TranslationFault`, or `TranslationPending`."""

    __slots__ = ()


@dataclass(slots=True)  # frozen, it takes five times as long to make
class TranslationFault(NoRuns):
    """A refused translation. Not to be changed."""

    iova: int
    """Address of the first refused byte."""
    refusal: Refusal
    access: Access
    """What was asked for."""
    stream: int
    domain: int
    """Number of the domain that was asked; BLOCKED if nothing was attached."""
    pasid: int | None = None
    ipa: int | None = None
    """Address that the parent of a nested domain refused; None if the domain that was asked refused by itself."""
    during_walk: bool = False
    """Whether `ipa` is of a table that the walker wanted to read, not of what the DMA wanted."""


@dataclass(frozen=True, slots=True)
class TranslationPending(NoRuns):
    """A translation that must wait: somebody has to answer a page request. The same request may be made again then."""

    iova: int
    """Address of the first byte that waits."""
    access: Access
    stream: int
    domain: int
    pasid: int | None = None


class Area(NamedTuple):
    """A mapping: a run of pages that one map call made (or what later cuts left of it)."""

    dfn: int
    gfn: int
    nr: int
    access: Access
    starts_call: bool
    """Whether a map call begins here; what a cut leaves counts as a call, so only a run inside one does not."""


class EngineUsage(NamedTuple):
    """What is in use."""

    domains: int
    """Domains allocated that are not nested: with page tables, or tables of the guest."""
    pool_pages_used: int
    pool_pages_total: int
    """The limit in force."""
    mapped_pages: int
    """Pages that map calls and clones mapped in all paging domains; direct regions are not counted."""


_WHOLE = tuple(Outcome(done, None, None) for done in range(513))


def whole(done: int) -> Outcome:
    """An operation that did all `done` pages. Small ones are shared: building one costs as much as a one-page map."""
    return _WHOLE[done] if done < len(_WHOLE) else Outcome(done, None, None)
