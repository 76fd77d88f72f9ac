"""What stands between an endpoint and guest memory: each interface by which a guest programs an IOMMU has its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import Enum

from .fault import Fault
from .plan import DmaPlan, DmaRequest

__all__ = ["PENDING", "Pending", "Translator"]


class Pending(Enum):
    """The third answer, beside plans and a fault: it is not known yet."""

    PENDING = "try again in a later step"


PENDING = Pending.PENDING


class Translator:
    """Translates the DMA of one stream, one request at a time. An interface overrides at least the first two."""

    def translate(self, requests: Sequence[DmaRequest]) -> list[DmaPlan] | Fault | Pending:
        """Where ``requests``, which are carried out together or not at all, lead: a plan for each, which hold until the
        guest's next operation; or the first byte refused, for good; or :data:`PENDING`: the same is asked again later.
        """
        raise NotImplementedError

    def report(self, fault: Fault) -> None:
        """Tell the guest of a fault: one that :meth:`translate` gave, or that was found where its plans lead."""
        raise NotImplementedError

    def catch_up(self) -> bool:
        """A request begins that is translated piece by piece: do first what the guest ordered before it. Whether that
        is done; otherwise this is called again in a later step.
        """
        return True

    def give_up(self) -> None:
        """What was answered :data:`PENDING`, or not caught up, is not asked again: the next call is about another."""

    def on_lost(self, cancel: Callable[[], None]) -> None:
        """``cancel``, which raises nothing, is called when what queued requests were made for is gone."""

    def endpoint_failed(self) -> None:
        """The endpoint does no DMA until its reset."""

    def endpoint_begins(self) -> None:
        """The endpoint was reset, or its bus mastering turned on."""
