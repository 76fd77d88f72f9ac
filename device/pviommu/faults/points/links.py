"""Frames of network cards, on their way into a link and out of it. ``form`` is the card."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from ..actions import WAITS, Do, duration_ns
from ..holds import Hold
from .base import Args, Deferred, Done, Fails, Go, Held, Outcome, changed_bytes

if TYPE_CHECKING:
    from ..engine import ActiveRule

__all__ = ["MOST_BYTES", "ReceiveFramePoint", "SendFramePoint"]

log = logging.getLogger(__name__)

MOST_BYTES = 16 << 20
"""of frames that are held in one direction of a card: how many there are to hold is up to the guest"""


class _FramePoint(Deferred):
    """A frame with its header: the first two arguments. Held, it arrives later, unless the card is reset meanwhile."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._held_bytes = 0

    def values(self, args: Args) -> dict[str, Any]:
        stream = self.form.stream
        return {"stream": stream, "device": self.faults.device_of(stream), "length": len(args[1])}

    def size(self, args: Args) -> int:
        return len(args[1])

    def _decide(self, active: ActiveRule, args: Args) -> Outcome:
        do, size = active.rule.do, len(args[1])
        if do and do.action in WAITS and self._held_bytes + size > MOST_BYTES:
            return Done(self.neutral, "lost: too many bytes are held")
        outcome = super()._decide(active, args)
        if isinstance(outcome, Held) and not outcome.hold.is_over:
            self._held_bytes += size
            outcome.hold.on_end = partial(self._give_back, size)
        return outcome

    def _give_back(self, size: int) -> None:
        self._held_bytes -= size

    def hold(self, hold: Hold, go: Callable[[], Any]) -> Any:
        hold.then(partial(self.form.attempts.make, "a frame that was held", self.late, go))
        return self.neutral

    def late(self, go: Callable[[], Any]) -> None:
        """What is left to do with a frame that was held."""
        go()

    def do_corrupt(self, do: Do, args: Args) -> Outcome:
        place = int(do.corrupt or 0)
        return self._changed(args, changed_bytes(do, args[1], place), {"byte": place})

    def do_truncate(self, do: Do, args: Args) -> Outcome:
        return self._changed(args, args[1][: do.truncate], {"bytes": do.truncate})

    def _changed(self, args: Args, frame: bytes, after: Any) -> Outcome:
        """The frame is another one, or lost, if it is none any more, or its header does not fit it."""
        header, _, *others = args
        if not self.form.is_frame(header, frame):
            return Done(self.neutral, "no frame any more")
        return Go((header, frame, *others), after)

    def can(self, args: Args, result: Any, do: Do) -> bool:
        return do.unplug is None or not self.form.is_set_down

    def do_unplug(self, do: Do, _args: Args) -> Outcome:
        self.form.set_link(False)
        plug_in = partial(self._plug_in, self.form.times_set)
        self.faults.holds.delay(duration_ns(do.unplug or "")).then(plug_in)
        return Done(self.neutral, "the cable is pulled")

    def _plug_in(self, times_set: int) -> None:
        """Unless somebody has set the link meanwhile."""
        if self.form.times_set != times_set:
            return
        try:
            self.form.set_link(True)
        except OSError as error:
            log.warning("%s: the link stays down after a cable was pulled: %s", self.owner, error.strerror)


class SendFramePoint(_FramePoint):
    """Header, frame and pair of queues: whether the link took it."""

    neutral = True

    def late(self, go: Callable[[], Any]) -> None:
        if self.form.is_set_down:
            return
        try:
            go()
        except OSError as error:
            self.form.judge(error)

    def do_fail(self, do: Do, _args: Args) -> Outcome:
        return Fails(_refusal(do.fail or ""), {"errno": do.fail})


class ReceiveFramePoint(_FramePoint):
    """Header and frame."""


def _refusal(name: str) -> OSError:
    number = getattr(errno, name)
    return OSError(number, os.strerror(number))
