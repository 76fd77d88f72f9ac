"""Which domain each endpoint is attached to."""

from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType

from .config import ReservedFrames
from .state import AttachmentsState


class Attachments:
    """Every endpoint is attached to exactly one domain, and besides to one for each PASID that it uses.

    An endpoint that is blocked translates nothing meanwhile, with a PASID or without.
    """

    __slots__ = ("_first", "_regions", "blocked", "domains", "pasids")

    def __init__(self) -> None:
        self.domains: dict[int, int] = {}
        """stream -> domain, of requests without a PASID"""
        self.pasids: dict[tuple[int, int], int] = {}
        """(stream, PASID) -> domain"""
        self.blocked: set[int] = set()
        self._first: dict[int, int] = {}
        self._regions: dict[int, tuple[ReservedFrames, ...]] = {}

    def view(self) -> Mapping[int, int]:
        """stream -> domain, read only, always current."""
        return MappingProxyType(self.domains)

    def add(self, stream: int, domain: int, regions: Sequence[ReservedFrames] = ()) -> None:
        """Raises ValueError for a stream that is there already: two endpoints would share their isolation."""
        if stream in self.domains:
            raise ValueError(f"add endpoint: stream {stream} exists already; a stream names one endpoint")
        self.domains[stream] = self._first[stream] = domain
        self._regions[stream] = tuple(regions)

    def regions(self, stream: int) -> tuple[ReservedFrames, ...]:
        """The endpoint's direct regions. Raises KeyError for an unknown stream."""
        return self._regions[stream]

    def inside(self, domain: int) -> Iterator[tuple[int, int | None]]:
        """(stream, PASID or None) of what is attached to a domain."""
        yield from ((stream, None) for stream, current in self.domains.items() if current == domain)
        yield from (key for key, current in self.pasids.items() if current == domain)

    def save(self) -> AttachmentsState:
        """The state, in the order of streams."""
        pasids = tuple((stream, pasid, domain) for (stream, pasid), domain in sorted(self.pasids.items()))
        return AttachmentsState(tuple(sorted(self.domains.items())), pasids, tuple(sorted(self.blocked)))

    def power_on(self) -> AttachmentsState:
        """Every endpoint where it began, without PASIDs, and not blocked."""
        return AttachmentsState(tuple(sorted(self._first.items())))

    def reset(self) -> None:
        """Be in the state of :meth:`power_on`."""
        self.domains.update(self._first)
        self.pasids.clear()
        self.blocked.clear()
