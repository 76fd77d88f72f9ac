"""Which domains are allocated."""

from collections.abc import Iterator, Mapping

from .clone import Clone
from .config import MAX_DOMAIN
from .core import Core, PagePool
from .domain import PagingDomain
from .nested import NestedDomain, Stage1Walker
from .ranges import FrameRanges
from .results import Stop
from .state import DomainsState, NestedState


class Domains:
    """Paging and nested domains by number. The fixed ones are not held here."""

    __slots__ = ("_core", "_frames", "_pool", "_reserved", "nested", "paging")

    def __init__(self, core: Core, pool: PagePool, frames: int, reserved: FrameRanges) -> None:
        """`frames`: DFNs of a paging domain are below it. `reserved`: closed to every domain."""
        self._core = core
        self._pool = pool
        self._frames = frames
        self._reserved = reserved
        self.paging: dict[int, PagingDomain] = {}
        self.nested: dict[int, NestedDomain] = {}

    def __iter__(self) -> Iterator[int]:
        """The numbers, in order."""
        return iter(sorted((*self.paging, *self.nested)))

    def clones(self) -> list[tuple[int, Clone]]:
        """(number, clone) of the domains that are clones, in order."""
        return [(number, domain.clone) for number, domain in sorted(self.paging.items()) if domain.clone]

    def mapped_pages(self) -> int:
        return sum(domain.table.mapped for domain in self.paging.values())

    def alloc(self, number: int) -> Stop | None:
        """A new empty paging domain; POOL_EXHAUSTED. Raises ValueError for a number that it cannot have."""
        self.check_number(number)
        if not self._pool.free:
            return Stop.POOL_EXHAUSTED
        self.paging[number] = PagingDomain(self._core, self._pool, self._frames, self._reserved)
        self.show(number)
        return None

    def check_number(self, number: int) -> None:
        """Raises ValueError for a number that a new domain cannot have."""
        if not 1 <= number <= MAX_DOMAIN:
            raise ValueError(f"domain {number}: must be 1..{MAX_DOMAIN}")
        if number in self.paging or number in self.nested:
            raise ValueError(f"domain {number}: exists already")

    def free(self, number: int) -> None:
        """Drop a paging domain with its mappings, or a nested one. Raises KeyError when there is none."""
        if self.nested.pop(number, None) is None:
            domain = self.paging.pop(number)
            self._core.hide(number)
            domain.release()

    def save(self) -> DomainsState:
        """The state, in the order of numbers."""
        return DomainsState(
            tuple(domain.save(number) for number, domain in sorted(self.paging.items())),
            tuple(NestedState(number, nested.parent) for number, nested in sorted(self.nested.items())),
        )

    def load(self, state: DomainsState, walkers: Mapping[int, Stage1Walker]) -> None:
        """Take over a state; there are no domains. `walkers`: of the nested ones, by number.

        Raises ValueError for a state that these limits do not allow, or for which a walker is missing.
        """
        for paging in state.paging:
            if self.alloc(paging.number):
                raise ValueError(f"domain {paging.number}: the pool is exhausted")
            self.paging[paging.number].load(paging)
            self.show(paging.number)
        for nested in state.nested:
            self.check_number(nested.number)
            if nested.parent not in self.paging or nested.number not in walkers:
                raise ValueError(f"domain {nested.number} on {nested.parent}: no such parent, or no walker for it")
            self.nested[nested.number] = NestedDomain(nested.parent, walkers[nested.number])

    def has_children(self, number: int) -> bool:
        """Whether nested domains stand on this one."""
        return any(nested.parent == number for nested in self.nested.values())

    def beneath(self, number: int) -> int | None:
        """The paging domain whose table decides in the end: this one, or its parent; None for any other number."""
        nested = self.nested.get(number)
        if nested:
            return nested.parent
        return number if number in self.paging else None

    def show(self, number: int) -> None:
        """Tell the core what a paging domain is now. Raises KeyError when there is none."""
        domain = self.paging[number]
        self._core.show(number, domain.table, domain.direct, domain.closed, domain.clone is not None)
