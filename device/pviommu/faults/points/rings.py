"""Command rings: slots that are copied, and the index that tells of those that are complete."""

from __future__ import annotations

from typing import Any

from pviommu_abi.slots import SLOT_SIZE

from ...interfaces.pv.ring import MASK
from ..actions import Do
from ..holds import Hold
from .base import Args, Deferred, Done, Outcome, Point, changed_bytes

__all__ = ["CompletePoint", "FetchPoint"]


class FetchPoint(Point):
    """A copy of at most so many slots of a ring, which is ``form``."""

    def values(self, args: Args) -> dict[str, Any]:
        return {"ring": self.form.number, "index": self.form.completed, "count": args[0]}

    def answers(self, args: Args, result: Any) -> dict[str, Any]:
        return {"count": len(result) // SLOT_SIZE}

    def post_corrupt(self, do: Do, _args: Args, result: bytes) -> tuple[bytes, Any]:
        place = int(do.corrupt or 0)
        return changed_bytes(do, result, place), {"byte": place}

    def can(self, args: Args, result: Any, do: Do) -> bool:
        return do.truncate is None or do.truncate * SLOT_SIZE < len(result)

    def post_truncate(self, do: Do, _args: Args, result: bytes) -> tuple[bytes, Any]:
        """In slots, at least one: a ring that brings nothing would be asked again at once."""
        slots = max(do.truncate or 0, 1)
        return result[: slots * SLOT_SIZE], {"slots": slots}


class CompletePoint(Deferred):
    """So many slots more of a ring, which is ``form``, are complete. The device goes on behind them in any case; held
    or dropped, only the guest does not see it.
    """

    neutral = False
    """the guest is not interrupted"""

    def values(self, args: Args) -> dict[str, Any]:
        return {"ring": self.form.number, "index": self.form.completed, "count": args[0]}

    def hold_before(self, hold: Hold, stage: int, args: Args) -> Any:
        ring, (count,) = self.form, args
        ring.completed = ring.completed + count & MASK
        completed = ring.completed

        def tell() -> None:
            if ring.enabled and ring.completed == completed:  # otherwise a later one has told of it
                ring.completed = completed - count & MASK
                if self.go_on(stage, args):
                    self.faults.victim.interrupt(ring.number + 1)

        hold.then(tell)
        return self.neutral

    def do_drop(self, _do: Do, args: Args) -> Outcome:
        self.form.completed = self.form.completed + args[0] & MASK
        return Done(self.neutral, "the guest does not see it")

    def repeated(self, args: Args, times: int) -> Any:
        """The guest is told of slots that are not complete; the device stays where it is."""
        ring = self.form
        before = ring.completed
        result = self.call(args[0] * (times + 1))
        ring.completed = before + args[0] & MASK
        return result
