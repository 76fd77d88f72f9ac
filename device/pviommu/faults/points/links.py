"""Frames of network cards, on their way into a link and out of it. ``form`` is the card."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from functools import partial
from typing import Any

from ..actions import Do, duration_ns
from ..holds import Hold
from .base import Args, Deferred, Done, Fails, Go, Outcome, changed_bytes

__all__ = ["ReceiveFramePoint", "SendFramePoint"]


class _FramePoint(Deferred):
    """A frame with its header: the first two arguments. Held, it arrives later, unless the card is reset meanwhile."""

    def values(self, args: Args) -> dict[str, Any]:
        stream = self.form.stream
        return {"stream": stream, "device": self.faults.device_of(stream), "length": len(args[1])}

    def size(self, args: Args) -> int:
        return len(args[1])

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

    def do_unplug(self, do: Do, _args: Args) -> Outcome:
        self.form.set_link(False)
        self.faults.holds.delay(duration_ns(do.unplug or "")).then(partial(self.form.set_link, True))
        return Done(self.neutral, "the cable is pulled")


class SendFramePoint(_FramePoint):
    """Header, frame and pair of queues: whether the link took it."""

    neutral = True

    def late(self, go: Callable[[], Any]) -> None:
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
