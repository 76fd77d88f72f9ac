"""Which contexts exist, and which one each endpoint is in."""

from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType

from pviommu.engine.clone import Clone
from pviommu.engine.config import ReservedRegion
from pviommu.engine.context import Context
from pviommu.engine.core import Core, PagePool
from pviommu.engine.ranges import FrameRanges
from pviommu.engine.results import AllocResult, Stop

DEFAULT_CONTEXT = 0


class Contexts:
    """Contexts 1..limit. The default context has no page table and is not held here."""

    __slots__ = ("_contexts", "_core", "_frames", "_pool", "_reserved", "limit")

    def __init__(self, limit: int, core: Core, pool: PagePool, frames: int, reserved: FrameRanges) -> None:
        """`frames`: DFNs of a context are below it. `reserved`: closed to every context."""
        self.limit = limit
        self._core = core
        self._pool = pool
        self._frames = frames
        self._reserved = reserved
        self._contexts: dict[int, Context] = {}

    def __len__(self) -> int:
        return len(self._contexts)

    def __iter__(self) -> Iterator[int]:
        return iter(sorted(self._contexts))

    def get(self, ctx: int) -> Context | None:
        return self._contexts.get(ctx)

    def clones(self) -> list[tuple[int, Clone]]:
        """(number, clone) of the contexts that are clones, in order."""
        return [(ctx, context.clone) for ctx, context in sorted(self._contexts.items()) if context.clone]

    def mapped_pages(self) -> int:
        return sum(context.table.mapped for context in self._contexts.values())

    def alloc(self) -> AllocResult:
        """A new empty context under the lowest free number."""
        ctx = next((ctx for ctx in range(1, self.limit + 1) if ctx not in self._contexts), None)
        if ctx is None:
            return AllocResult(None, Stop.NO_FREE_CONTEXT)
        if not self._pool.free:
            return AllocResult(None, Stop.POOL_EXHAUSTED)
        self._contexts[ctx] = Context(self._core, self._pool, self._frames, self._reserved)
        self.show(ctx)
        return AllocResult(ctx, None)

    def free(self, ctx: int) -> None:
        """Drop a context with its mappings. Raises KeyError when there is none."""
        context = self._contexts.pop(ctx)
        self._core.hide(ctx)
        context.release()

    def show(self, ctx: int) -> None:
        """Tell the core what a context is now. Raises KeyError when there is none."""
        context = self._contexts[ctx]
        self._core.show(ctx, context.table, context.direct, context.closed, context.clone is not None)


class Endpoints:
    """Every endpoint is in exactly one context; a blocked one translates nothing meanwhile.

    One that is held is blocked until it is attached: its own reset does not unblock it.
    """

    __slots__ = ("_blocked", "_contexts", "_held", "_regions")

    def __init__(self) -> None:
        self._contexts: dict[int, int] = {}
        self._blocked: set[int] = set()
        self._held: set[int] = set()
        self._regions: dict[int, tuple[ReservedRegion, ...]] = {}

    def view(self) -> Mapping[int, int]:
        """stream -> context, read only, always current."""
        return MappingProxyType(self._contexts)

    def add(self, stream: int, regions: Sequence[ReservedRegion] = ()) -> None:
        """Raises ValueError for a stream that is there already: two endpoints would share their isolation."""
        if stream in self._contexts:
            raise ValueError(f"add endpoint: stream {stream} exists already; a stream names one endpoint")
        self._contexts[stream] = DEFAULT_CONTEXT
        self._regions[stream] = tuple(regions)

    def get(self, stream: int) -> int | None:
        return self._contexts.get(stream)

    def regions(self, stream: int) -> tuple[ReservedRegion, ...]:
        """The endpoint's direct regions. Raises KeyError for an unknown stream."""
        return self._regions[stream]

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
        """Without effect on one that is held."""
        if stream not in self._held:
            self._blocked.discard(stream)

    def hold(self, stream: int) -> None:
        """Block it until :meth:`let_go`."""
        self._held.add(stream)
        self._blocked.add(stream)

    def let_go(self, stream: int) -> None:
        """Unblock it, held or not."""
        self._held.discard(stream)
        self._blocked.discard(stream)

    def reset(self) -> None:
        """All into the default context; what was outside it is blocked, lest a stale IOVA is read as physical.

        What was held stays blocked, but its own reset unblocks it from now on.
        """
        self._held.clear()
        for stream, ctx in self._contexts.items():
            if ctx != DEFAULT_CONTEXT:
                self._blocked.add(stream)
                self._contexts[stream] = DEFAULT_CONTEXT
