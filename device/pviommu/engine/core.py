"""What does the work for each page: tables, the pool that they draw on, translation. There may be several.

`PythonCore` is the plain one and defines what is right; another one answers every question alike.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Protocol

from .config import EngineConfig
from .pool import Pool
from .ranges import FrameRanges
from .results import PackedRuns, Refusal, Run
from .stages import Stages
from .table import Leaf, PageTable

if TYPE_CHECKING:  # it needs what lies over this
    from .guest_tables import GuestTables


class PagePool(Protocol):
    """See `pool.Pool`."""

    total: int
    free: int

    @property
    def used(self) -> int: ...
    def take(self, pages: int) -> bool: ...
    def give(self, pages: int) -> None: ...
    def resize(self, total: int) -> None: ...


class DomainTable(Protocol):
    """See `table.PageTable`."""

    @property
    def shifts(self) -> tuple[int, ...]: ...
    @property
    def mapped(self) -> int: ...
    @property
    def reserved(self) -> int: ...
    def lookup(self, dfn: int) -> tuple[int, int] | None: ...
    def map(self, dfn: int, gfn: int, nr: int, kind: int, *, starts: bool = True) -> int: ...
    def joins(self, dfn: int, gfn: int, kind: int) -> bool: ...
    def unmap(self, dfn: int, nr: int, *, past_holes: bool) -> int: ...
    def cut_point(self, dfn: int, nr: int) -> int | None: ...
    def leaves(self, dfn: int, nr: int) -> Iterator[Leaf]: ...
    def holes(self, dfn: int, nr: int) -> list[tuple[int, int]]: ...
    def run(self, dfn: int, nr: int) -> tuple[int, int, int] | None: ...
    def release(self) -> None: ...
    def reserve(self, pages: int) -> bool: ...


class Core(Protocol):
    """The tables of one engine, which says what else there is that decides about pages."""

    name: str
    walks: bool
    """Whether `walk` is there; otherwise the engine walks the tables itself and keeps an IOTLB."""
    hits: dict[tuple[int, int, int], tuple[int, int]]
    """The engine's: requests that were translated to one run. A core that removes pages by itself clears it."""

    def start(self, config: EngineConfig) -> PagePool:
        """Called once, first: the pool of the engine with these limits."""

    def table(self, pool: PagePool, frames: int) -> DomainTable:
        """An empty table for dfns below `frames`. Raises MemoryError when the pool has no page for the root."""

    def change_backed(self, first: int, nr: int, backed: array[int]) -> None:
        """Of the nr frames from `first` on those in `backed` may be mapped, RAM or not, from now on, and the identity
        domain reaches them. They come as FrameRanges.within() gives them.
        """

    def show(self, domain: int, table: DomainTable, direct: FrameRanges, closed: FrameRanges, is_clone: bool) -> None:
        """Such a paging domain: what lies over its table, what the guest may not edit, whether edits are noted."""

    def show_tables(self, domain: int, guest: GuestTables, direct: FrameRanges, closed: FrameRanges) -> bool:
        """Such a domain with tables of the guest. Whether `walk` and `walk_spans` answer for it, too."""

    def hide(self, domain: int) -> None:
        """The domain is gone, which was shown; one with tables of the guest only if the core answers for it."""

    def walk(self, domain: int, iova: int, end: int, wanted: int) -> Sequence[Run] | tuple[int, Refusal]:
        """The runs of [iova, end) for these access bits in a domain that is not nested, or the first refused address
        and why.
        """

    def walk_spans(self, domain: int, spans: Sequence[tuple[int, int]], wanted: int) -> PackedRuns | None:
        """The runs of several (iova, length) at once, if each of them is one run."""

    def stages(self, memory: object, domain: int, end: int) -> Stages | None:
        """What walks tables at addresses of a domain below `end`, which `memory` holds; None if they are to be walked
        without the core.
        """


class PythonCore:
    """Tables of Python objects."""

    name = "python"
    walks = False

    def __init__(self) -> None:
        self.hits: dict[tuple[int, int, int], tuple[int, int]] = {}

    def start(self, config: EngineConfig) -> PagePool:
        return Pool(config.pool_pages)

    def table(self, pool: PagePool, frames: int) -> DomainTable:
        return PageTable(pool, frames)

    def change_backed(self, first: int, nr: int, backed: array[int]) -> None:
        """The engine looks itself."""

    def show(self, domain: int, table: DomainTable, direct: FrameRanges, closed: FrameRanges, is_clone: bool) -> None:
        """The engine looks itself."""

    def show_tables(self, domain: int, guest: GuestTables, direct: FrameRanges, closed: FrameRanges) -> bool:
        return False

    def hide(self, domain: int) -> None:
        """The engine looks itself."""

    def walk(self, domain: int, iova: int, end: int, wanted: int) -> Sequence[Run] | tuple[int, Refusal]:
        raise NotImplementedError("the engine walks the tables of this core")

    def walk_spans(self, domain: int, spans: Sequence[tuple[int, int]], wanted: int) -> PackedRuns | None:
        raise NotImplementedError("the engine walks the tables of this core")

    def stages(self, memory: object, domain: int, end: int) -> Stages | None:
        return None
