"""Which domains are allocated."""

from collections.abc import Iterator, Mapping

from .clone import Clone
from .config import MAX_DOMAIN
from .core import Core, PagePool
from .domain import PagingDomain, RegionedDomain
from .guest_tables import GuestTables, TablesDomain
from .nested import NestedDomain, Stage1Walker
from .ranges import FrameRanges
from .results import Stop
from .state import DomainsState, NestedState


class Domains:
    """Paging and nested domains, and those with tables of the guest, by number. The fixed ones are not held here."""

    __slots__ = ("_core", "_frames", "_pool", "_reserved", "nested", "paging", "tables")

    def __init__(self, core: Core, pool: PagePool, frames: int, reserved: FrameRanges) -> None:
        """`frames`: DFNs of a paging domain are below it. `reserved`: closed to every domain."""
        self._core = core
        self._pool = pool
        self._frames = frames
        self._reserved = reserved
        self.paging: dict[int, PagingDomain] = {}
        self.nested: dict[int, NestedDomain] = {}
        self.tables: dict[int, TablesDomain] = {}

    def __iter__(self) -> Iterator[int]:
        """The numbers, in order."""
        return iter(sorted((*self.paging, *self.nested, *self.tables)))

    def __contains__(self, number: int) -> bool:
        return number in self.paging or number in self.nested or number in self.tables

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
        if number in self:
            raise ValueError(f"domain {number}: exists already")

    def alloc_tables(self, number: int, guest: GuestTables) -> None:
        """A domain with tables of the guest. Raises ValueError for a number or an aperture that it cannot have."""
        self.check_number(number)
        if not 1 <= guest.frames <= self._frames:
            raise ValueError(f"domain {number}: {guest.frames:#x} frames: must be 1..{self._frames:#x}")
        self.tables[number] = TablesDomain(guest, self._reserved)
        self.show(number)

    def free(self, number: int) -> None:
        """Drop a domain, a paging one with its mappings. Raises KeyError when there is none."""
        if self.nested.pop(number, None) is not None:
            return
        tables = self.tables.pop(number, None)
        if tables is None:
            domain = self.paging.pop(number)
            self._core.hide(number)
            domain.release()
        elif tables.is_of_core:
            self._core.hide(number)

    def save(self) -> DomainsState:
        """The state, in the order of numbers."""
        return DomainsState(
            tuple(domain.save(number) for number, domain in sorted(self.paging.items())),
            tuple(NestedState(number, nested.parent) for number, nested in sorted(self.nested.items())),
            tuple(sorted(self.tables)),
        )

    def load(self, state: DomainsState, walkers: Mapping[int, Stage1Walker], tables: Mapping[int, GuestTables]) -> None:
        """Take over a state; there are no domains. `walkers`: of the nested ones, `tables`: of the guest's, by number.

        Raises ValueError for a state that these limits do not allow, or for which a walker or tables are missing.
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
        for number in state.tables:
            if number not in tables:
                raise ValueError(f"domain {number}: nobody says which tables of the guest it has")
            self.alloc_tables(number, tables[number])

    def has_children(self, number: int) -> bool:
        """Whether nested domains stand on this one."""
        return any(nested.parent == number for nested in self.nested.values())

    def beneath(self, number: int) -> int | None:
        """The domain whose tables decide in the end: this one, or its parent; None for any other number."""
        nested = self.nested.get(number)
        if nested:
            return nested.parent
        return number if number in self.paging or number in self.tables else None

    def regioned(self, number: int) -> RegionedDomain:
        """A domain that beneath() gave."""
        return self.tables.get(number) or self.paging[number]

    def show(self, number: int) -> None:
        """Tell the core what a domain that beneath() gave is now. Raises KeyError when there is none."""
        tables = self.tables.get(number)
        if tables:
            tables.is_of_core = self._core.show_tables(number, tables.guest, tables.direct, tables.closed)
            return
        domain = self.paging[number]
        self._core.show(number, domain.table, domain.direct, domain.closed, domain.clone is not None)
