"""Translation between an endpoint and guest memory: each guest interface of an IOMMU implements it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import Enum
from typing import NamedTuple

from .access import Copier
from .fault import Fault
from .plan import DmaPlan, DmaRequest, Span

__all__ = ["PENDING", "Lent", "Pending", "Translator"]


class Pending(Enum):
    """The third result, besides plans and a fault: it is not known yet."""

    PENDING = "try again in a later step"


PENDING = Pending.PENDING


class Lent(NamedTuple):
    """What native code needs to translate requests of one stream: addresses in this process, for the native core."""

    core: int
    context: int
    """its number there"""
    line: int = 0
    """the word of the in-flight line, if the guest owns the context's tables"""
    step: int = 0
    """of the word's value"""


class Translator:
    """Translates the DMA of one stream, one request at a time. An interface overrides at least the first two
    methods."""

    transfers: bool = False
    """Whether it is worth while to ask for :meth:`transfer`."""

    def transfer(self, spans: Sequence[Span], copier: Copier | None, data: bytes | memoryview | None) -> bytes | None:
        """Carry out a whole request at once, translated and copied by ``copier``: write ``data``, or read, if that is
        None. The bytes; None if it is not for here, for whatever reason: then :meth:`translate` knows more. What is
        read by a request that comes to nothing nobody has seen; what is written is written again.
        """
        return None

    def translate(self, requests: Sequence[DmaRequest]) -> list[DmaPlan] | Fault | Pending:
        """Translate ``requests``, which are carried out together or not at all: a plan for each, valid until the
        guest's next operation; or the first refused byte; or :data:`PENDING`: to be asked again later.
        """
        raise NotImplementedError

    def lend(self) -> Lent | None:
        """Let native code carry out requests as :meth:`transfer` does, one after the other, until anything else is done
        in this process. None: it may not.
        """
        return None

    def finished(self) -> None:
        """All plans that :meth:`translate` gave in this step are used up: nothing is read or written by them any
        more. Called at the end of the step at the latest, and also if there were none.
        """

    def keep(self) -> None:
        """They will be used in a later step instead, after :meth:`resume`, unless the request is given up."""

    def resume(self) -> None:
        """What was kept is used in this step."""

    def report(self, fault: Fault) -> None:
        """Report a fault to the guest: one that :meth:`translate` returned, or that was found where its plans lead."""
        raise NotImplementedError

    def catch_up(self) -> bool:
        """A request that is translated piece by piece begins: first carry out what the guest submitted before it.
        Returns whether that is done; otherwise this is called again in a later step.
        """
        return True

    def give_up(self) -> None:
        """The request that was :data:`PENDING`, or not caught up, is given up: the next call is about another one."""

    def on_lost(self, cancel: Callable[[], None]) -> None:
        """``cancel``, which raises nothing, is called when the mappings of queued requests are gone."""

    def endpoint_failed(self) -> None:
        """The endpoint has failed: it does no DMA until its reset."""

    def endpoint_begins(self) -> None:
        """The endpoint was reset, or its bus mastering turned on."""
