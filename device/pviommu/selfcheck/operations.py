"""What a history is made of. Every operation holds plain numbers, so any part of a history is a history."""

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
    """A new context, empty or with all guest RAM 1:1."""

    clone: bool = False


class Free(NamedTuple):
    """Drop a context, with ``reattach`` even if endpoints are in it."""

    ctx: int
    reattach: bool = False


class Bind(NamedTuple):
    """The function at ``devfn`` is ``stream``."""

    devfn: int
    stream: int


class Unbind(NamedTuple):
    """Forget the binding."""

    devfn: int


class Block(NamedTuple):
    """Take the function at ``devfn`` out of its context, so that it reaches nothing until it is attached."""

    devfn: int


class Attach(NamedTuple):
    """Move the function at ``devfn`` to a context."""

    devfn: int
    ctx: int


class Map(NamedTuple):
    """Map ``nr`` pages; ``access`` is 1 for read, 2 for write, other bits are not legal."""

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
    """The guest frame of a page."""

    ctx: int
    dfn: int


class Usage(NamedTuple):
    """What is in use."""


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
"""What travels in a slot."""


class Dma(NamedTuple):
    """An endpoint writes ``pattern`` over and over, or reads."""

    stream: int
    iova: int
    length: int
    write: bool
    pattern: int


class Posted(NamedTuple):
    """Slots that nobody waits for, and at once, without a look at them, what comes after."""

    operations: tuple[SlotOperation, ...]
    then: SlotOperation | Dma


class Revive(NamedTuple):
    """Bus mastering of an endpoint off and on: what a driver does that begins anew."""

    stream: int


class Reset(NamedTuple):
    """Reset the IOMMU, then set it up again."""


class Plug(NamedTuple):
    """Plug or unplug the large RAM module."""

    present: bool


Operation = SlotOperation | Dma | Posted | Revive | Reset | Plug
