"""Nested domains: two stages of translation. The first is the interface's own, the second is a paging domain.

An interface whose guest keeps page tables of its own in guest memory (a virtual SMMUv3, an iommufd HWPT on a parent)
supplies a :class:`Stage1Walker`. It turns an IOVA into an address of the parent domain, an IPA; the engine turns that
into guest memory. Where the tables themselves lie is an IPA too: the walker asks the parent for it before it reads.

Nothing of the first stage is cached here: the interface knows what its guest invalidates, and when.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple, Protocol

from .results import Access, Refusal, Run
from .stages import StageWalker


class Stage1Run(NamedTuple):
    """Bytes that the first stage maps one after the other."""

    ipa: int
    """Where the first of them is in the parent domain."""
    length: int
    """At least 1; what goes beyond the request is ignored."""
    access: Access
    """What the first stage allows."""


class ParentRefusal(NamedTuple):
    """What the parent domain refused, and why."""

    ipa: int
    refusal: Refusal


class Wait(Enum):
    """Why there is no answer yet."""

    PAGE_REQUEST = "a page request must be answered first"


Parent = Callable[[int, int, Access], Sequence[Run] | ParentRefusal]
"""What the parent translates `length` bytes at `ipa` to for an access, all of them or not at all."""


Stage1Answer = Stage1Run | Refusal | ParentRefusal | Wait


class Stage1Walker(Protocol):
    """The first stage of one nested domain."""

    def walk(self, iova: int, length: int, access: Access, parent: Parent) -> Stage1Answer:
        """What the first stage makes of the request's bytes from `iova` on, `length` of which are left.

        The run at `iova`, however short: the engine asks again for what is behind it. Or why there is none: the first
        stage refuses; the parent refused a table, which is passed on as it came; or it has to wait. `parent` is good
        during the call only. What the run allows the engine compares with `access`, which says what is asked for.
        """


@dataclass(frozen=True)
class NestedDomain:
    """A first stage on a paging domain, which cannot be freed meanwhile."""

    parent: int
    walker: Stage1Walker
    whole: StageWalker | None = None
    """Asked first, if there is one: it translates as far as nothing has to be told to anybody."""
