"""Stages of tables that a core walks by itself, whole requests at once: see `walk`, and `nested` for what asks.

What is found is what Python's walker finds, and is remembered where Python's looks too, so either may go on where the
other has stopped.
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from .results import Access, Run
from .walk import Leaf, Tables


class Remembered(Protocol):
    """Translations of a stage, a bounded number: what has been there longest makes room. Tags are 64-bit numbers."""

    def __len__(self) -> int: ...

    @property
    def looked_at(self) -> int:
        """Translations that `drop` has looked at, ever."""

    def find(self, tag: int, every: int, address: int, access: Access) -> tuple[int, int, Access] | None:
        """(output address, log2 of the block's size, what is allowed) with one of these tags, if it allows `access`."""

    def add(self, tag: int, address: int, leaf: Leaf) -> None:
        """Remember a leaf that was found for an address. Contiguous leaves are one translation if they can be."""

    def drop(self, first: int, last: int, mask: int, tags: tuple[int, int]) -> None:
        """Forget what translates any of the bytes first..last, of tags whose bits `mask` are one of `tags`."""

    def clear(self) -> None: ...


class Stage(NamedTuple):
    """Tables, and what is remembered of them."""

    tables: Tables
    remembered: Remembered | None = None
    tag: int = 0
    every: int = 0
    """Instead of `tag`, of leaves without any of the bits `own`."""
    own: int = 0
    base: int = 0
    """Bits that are set in the addresses that are remembered, and not in those that the tables translate."""


class StageWalker(Protocol):
    """One or two stages, and the domain below them."""

    def span(self, address: int, length: int, access: Access) -> tuple[Sequence[Run], int]:
        """The runs of the bytes from `address` on, adjacent ones joined, up to the first one that is refused, or where
        something is remembered otherwise than it is in memory; and that byte, or the end.
        """


class Commands(Protocol):
    """Commands in guest memory that forget what is remembered, which a core carries out by itself."""

    def run(self, at: int, count: int) -> tuple[int, bool, bool]:
        """Carry out those at an address of the domain, up to `count`, as far as they are of kinds that it knows. How
        many were; whether somebody is to be told that the last one is complete; whether enough was looked at meanwhile.
        """


class Stages(Protocol):
    """What a core has for walks of tables that lie in a domain."""

    def remembered(self, limit: int) -> Remembered:
        """Room for so many translations. Raises MemoryError."""

    def walker(self, first: Stage | None, second: Stage | None, pass_bits: int, *, compares: bool) -> StageWalker:
        """`second` translates what `first` leads to, and where its tables are. Without `first`, addresses of
        `pass_bits` bits pass. `compares`: what is remembered is compared with memory whenever it is used.
        """

    def commands(self, table: object, first: Remembered, second: Remembered) -> Commands:
        """What carries out the commands that an interface declares in `table`, on what two stages remember."""
