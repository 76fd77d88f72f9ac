"""What the profiles have in common: how operations answer, and what the rest of the device needs of a profile."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, NamedTuple, Protocol

from msgspec import Struct

from pviommu_abi.slots import Errno, OpClass
from wire_layout import Record

from ...engine import Outcome
from ...hosted import Waiting
from ...probes import Probes
from .page_operation import PageRules

__all__ = [
    "BEGUN",
    "DONE",
    "REFUSED",
    "Answer",
    "Begin",
    "GoOn",
    "Held",
    "Progress",
    "Reply",
    "Targets",
    "XenProfile",
    "probe_operation",
]


class Reply(NamedTuple):
    """The outcome of an operation: 0 or a negative errno, and the new first bytes of the payload."""

    result: int
    payload: bytes = b""


Targets = tuple[tuple[int, int], ...]
"""Numbers of rings, each with the index up to which it is to be completed."""


class Progress(Struct, frozen=True):
    """How far a long operation is. Together with its slot, this is all that there is to know about it."""

    done: int = 0
    """pages, or elements of an array"""
    structures: tuple[bytes, ...] = ()
    """what was copied from guest memory when it began, the outermost first"""
    targets: Targets = ()
    """where other rings have to get before it begins"""


class Held(Progress, frozen=True):
    """How far an operation is that waits for something that does not depend on the guest. It is not saved."""

    waiting: Waiting | None = None
    """what it waits for; None: nothing any more"""
    carry_on: Callable[[], Answer] | None = None
    """the next piece by who holds it, whatever is bound to its probe meanwhile; None: as of any other operation"""

    @property
    def is_over(self) -> bool:
        """Whether it may go on."""
        return self.waiting is None or self.waiting.is_over


Answer = Reply | Progress
"""What carrying out an operation, or a piece of it, gives: the outcome, or how far it is now."""
Begin = Callable[[bytes], Answer]
"""Carries out an operation with the 48 bytes of a payload. Of a long one, nothing is done yet."""
GoOn = Callable[[bytes, Progress], Answer]
"""Carries out the next piece of a long one, with the same payload."""

BEGUN = Progress()
"""The progress of a long operation before its first piece."""
DONE = Reply(0)
REFUSED = Reply(-Errno.EINVAL)


def probe_operation(
    probes: Probes, name: str, begin: Begin, go_on: GoOn | None, owner: str, record: type[Record]
) -> tuple[Begin, GoOn | None]:
    """Make an operation the probe ``op.NAME``, which sees it before it begins, and its reply after the last piece.
    ``record``: the structure of its payload.
    """
    return probes.probe_pieces(f"op.{name}", begin, go_on, lambda answer: isinstance(answer, Reply), owner, record)


class XenProfile(Protocol):
    """One version of the Xen operations: their numbers, structures and errno values."""

    op_class: ClassVar[OpClass]
    """class of its slots"""
    denied: int
    """result of every operation if the configuration does not let the guest use the IOMMU; otherwise 0"""

    page_rules: PageRules
    """its maps and unmaps"""

    @property
    def may_alloc(self) -> bool:
        """Whether there may be contexts yet; otherwise allocating one is -ENOSPC."""

    def reset(self) -> None:
        """As at power-on."""

    def reorders(self, op: int, payload: bytes) -> bool:
        """Whether the operation must wait for all rings: it changes contexts, or which endpoint is in which."""

    def execute(self, op: int, payload: bytes) -> Answer:
        """Carry out ``op`` of a slot's header with the 48 bytes of ``payload``. Of a long one, nothing is done yet."""

    def go_on(self, op: int, payload: bytes, progress: Progress) -> Answer:
        """Carry out the next piece of what :meth:`execute` began with the same ``op`` and ``payload``."""

    def call(self, op: int, address: int) -> Answer:
        """As :meth:`execute`, with a structure at guest physical ``address``."""

    def go_on_with_call(self, op: int, address: int, progress: Progress) -> Answer:
        """As :meth:`go_on`, of what :meth:`call` began."""

    def map_errno(self, ctx: int, outcome: Outcome) -> int:
        """The result of a map: 0 or a negative errno."""

    def unmap_errno(self, ctx: int, outcome: Outcome) -> int:
        """The result of an unmap: 0 or a negative errno."""
