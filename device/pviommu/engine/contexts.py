"""Which contexts exist, and which one each endpoint is in."""

from collections.abc import Iterator, Mapping
from types import MappingProxyType

from pviommu.engine.pool import Pool
from pviommu.engine.results import AllocResult, Stop
from pviommu.engine.table import PageTable

DEFAULT_CONTEXT = 0


class Contexts:
    """Contexts 1..max_contexts with their page tables. The default context has none and is not held here."""

    __slots__ = ("_frames", "_max_contexts", "_pool", "_tables")

    def __init__(self, max_contexts: int, pool: Pool, frames: int) -> None:
        """`frames`: DFNs of a context are below it."""
        self._max_contexts = max_contexts
        self._pool = pool
        self._frames = frames
        self._tables: dict[int, PageTable] = {}

    def __len__(self) -> int:
        return len(self._tables)

    def __iter__(self) -> Iterator[int]:
        return iter(sorted(self._tables))

    def get(self, ctx: int) -> PageTable | None:
        return self._tables.get(ctx)

    def mapped_pages(self) -> int:
        return sum(table.mapped for table in self._tables.values())

    def alloc(self) -> AllocResult:
        """A new empty context under the lowest free number."""
        ctx = next((ctx for ctx in range(1, self._max_contexts + 1) if ctx not in self._tables), None)
        if ctx is None:
            return AllocResult(None, Stop.NO_FREE_CONTEXT)
        if not self._pool.free:
            return AllocResult(None, Stop.POOL_EXHAUSTED)
        self._tables[ctx] = PageTable(self._pool, self._frames)
        return AllocResult(ctx, None)

    def free(self, ctx: int) -> None:
        """Drop a context with its mappings. Raises KeyError when there is none."""
        self._tables.pop(ctx).release()


class Endpoints:
    """Every endpoint is in exactly one context; a blocked one translates nothing meanwhile."""

    __slots__ = ("_blocked", "_contexts")

    def __init__(self) -> None:
        self._contexts: dict[int, int] = {}
        self._blocked: set[int] = set()

    def view(self) -> Mapping[int, int]:
        """stream -> context, read only, always current."""
        return MappingProxyType(self._contexts)

    def add(self, stream: int) -> None:
        """Raises ValueError for a stream that is there already: two endpoints would share their isolation."""
        if stream in self._contexts:
            raise ValueError(f"add endpoint: stream {stream} exists already; a stream names one endpoint")
        self._contexts[stream] = DEFAULT_CONTEXT

    def get(self, stream: int) -> int | None:
        return self._contexts.get(stream)

    def move(self, stream: int, ctx: int) -> None:
        self._contexts[stream] = ctx

    def inside(self, ctx: int) -> list[int]:
        """Streams attached to a context."""
        return [stream for stream, current in self._contexts.items() if current == ctx]

    def is_blocked(self, stream: int) -> bool:
        return stream in self._blocked

    def block(self, stream: int) -> None:
        self._blocked.add(stream)

    def unblock(self, stream: int) -> None:
        self._blocked.discard(stream)

    def reset(self) -> None:
        """All into the default context; what was outside it is blocked, lest a stale IOVA is read as physical."""
        for stream, ctx in self._contexts.items():
            if ctx != DEFAULT_CONTEXT:
                self._blocked.add(stream)
                self._contexts[stream] = DEFAULT_CONTEXT
