"""What an engine is saved as: plain records of numbers, which any encoder of dataclasses writes and reads.

Each owner of state has one record. They say what is so, not how it is stored: a state that was saved with one core can
be loaded with another. Units as everywhere: dfn, gfn and counts are pages of 4 KiB. Not saved are the configuration and
the endpoints themselves, which whoever builds the engine brings, and what is cached.
"""

from dataclasses import dataclass

Entries = tuple[tuple[int, int, int, int, bool], ...]
"""dfn, gfn, pages, kind (access bits, perhaps table.CLONE), whether a map call begins here."""


@dataclass(frozen=True)
class TableState:
    """One page table."""

    entries: Entries = ()
    """In order; adjacent leaves that go on with the same map call are one."""
    reserved: int = 0
    """Pool pages that it holds at least."""


@dataclass(frozen=True)
class CloneState:
    """What a clone remembers besides its table."""

    edited: tuple[tuple[int, int], ...] = ()
    """(first dfn, count) of pages that the guest unmapped."""
    grows: bool = True


@dataclass(frozen=True)
class PagingState:
    """One paging domain. Its direct regions follow from who is attached."""

    number: int
    table: TableState = TableState()
    clone: CloneState | None = None


@dataclass(frozen=True)
class NestedState:
    """One nested domain; its walker is its interface's to save."""

    number: int
    parent: int


@dataclass(frozen=True)
class DomainsState:
    """Which domains are allocated."""

    paging: tuple[PagingState, ...] = ()
    nested: tuple[NestedState, ...] = ()
    tables: tuple[int, ...] = ()
    """Those with tables of the guest; where these are is their interface's to save."""


@dataclass(frozen=True)
class AttachmentsState:
    """Who is attached to what."""

    streams: tuple[tuple[int, int], ...] = ()
    """(stream, domain) of every endpoint."""
    pasids: tuple[tuple[int, int, int], ...] = ()
    """(stream, PASID, domain)."""
    blocked: tuple[int, ...] = ()
    """Streams."""


@dataclass(frozen=True)
class PoolState:
    """The page pool. What is in use follows from the domains."""

    total: int


@dataclass(frozen=True)
class RamState:
    """What is where, as merged (first gfn, last gfn inclusive) ranges."""

    ram: tuple[tuple[int, int], ...] = ()
    mmio: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True)
class IotlbState:
    """The IOTLB, without what it caches."""

    flushes: int = 0


@dataclass(frozen=True)
class DirtyState:
    """What DMA wrote in one paging domain that is tracked."""

    domain: int
    runs: tuple[tuple[int, int], ...] = ()
    """(first dfn, count)."""


@dataclass(frozen=True)
class EngineState:
    """All of an engine."""

    ram: RamState
    iotlb: IotlbState
    pool: PoolState
    domains: DomainsState
    attachments: AttachmentsState
    dirty: tuple[DirtyState, ...] = ()
