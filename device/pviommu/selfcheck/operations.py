"""The operations of histories. They hold only plain numbers, so any part of a history is a history."""

from __future__ import annotations

from typing import NamedTuple

__all__ = [
    "Alloc",
    "Attach",
    "Batch",
    "Bind",
    "Block",
    "Dma",
    "Free",
    "Lookup",
    "Malformed",
    "Map",
    "Operation",
    "Plug",
    "Posted",
    "Reset",
    "Revive",
    "SlotOperation",
    "Unbind",
    "Unmap",
    "Usage",
]


class Alloc(NamedTuple):
    """Allocate a context, empty or with all guest RAM mapped 1:1."""

    clone: bool = False


class Free(NamedTuple):
    """Free a context, with ``reattach`` even if endpoints are in it."""

    ctx: int
    reattach: bool = False


class Bind(NamedTuple):
    """Bind the function at ``devfn`` to ``stream``."""

    devfn: int
    stream: int


class Unbind(NamedTuple):
    """Remove the binding."""

    devfn: int


class Block(NamedTuple):
    """Block the function at ``devfn``: it reaches nothing until it is attached."""

    devfn: int


class Attach(NamedTuple):
    """Move the function at ``devfn`` to a context."""

    devfn: int
    ctx: int


class Map(NamedTuple):
    """Map ``nr`` pages; in ``access`` bit 0 is read, bit 1 is write, other bits are illegal."""

    ctx: int
    dfn: int
    gfn: int
    nr: int
    access: int = 3


class Unmap(NamedTuple):
    """Unmap ``nr`` pages."""

    ctx: int
    dfn: int
    nr: int


class Lookup(NamedTuple):
    """Look up the guest frame of a page."""

    ctx: int
    dfn: int


class Usage(NamedTuple):
    """Query what is in use."""


class Batch(NamedTuple):
    """Map or unmap single pages from an array in guest memory: (bfn, mfn, access) each."""

    ctx: int
    unmap: bool
    elements: tuple[tuple[int, int, int], ...]


class Malformed(NamedTuple):
    """A slot that breaks a rule and must be refused with ``errno``."""

    op_class: int
    op: int
    flags: int
    payload: bytes
    errno: int


SlotOperation = Alloc | Free | Bind | Unbind | Block | Attach | Map | Unmap | Lookup | Usage | Batch | Malformed
"""The operations that travel in a slot."""


class Dma(NamedTuple):
    """An endpoint writes ``pattern`` over and over, or reads."""

    stream: int
    iova: int
    length: int
    write: bool
    pattern: int


class Posted(NamedTuple):
    """Slots that nobody waits for, and immediately behind them the operation that comes next."""

    operations: tuple[SlotOperation, ...]
    then: SlotOperation | Dma


class Revive(NamedTuple):
    """Turn bus mastering of an endpoint off and on, as a driver does when it starts again."""

    stream: int


class Reset(NamedTuple):
    """Reset the IOMMU, then set it up again."""


class Plug(NamedTuple):
    """Plug or unplug the large RAM module."""

    present: bool


Operation = SlotOperation | Dma | Posted | Revive | Reset | Plug
