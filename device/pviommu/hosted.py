"""What the loop asks of what it serves, and what that may ask of the loop: see :mod:`pviommu.host.loop`."""

from __future__ import annotations

import select
from collections.abc import Callable
from typing import NamedTuple, Protocol, TypeVar

from .inputs import Outcome

__all__ = ["HUNG_UP", "STOPPED_NS", "Host", "MayGoOn", "Owner", "Poll", "Pollable", "Timer", "Waiting", "Watch"]

_T = TypeVar("_T")

STOPPED_NS = 200_000_000
"""A process that did nothing for so long may have been stopped, and the guest have given its devices up and be using
again what it unmapped. A driver waits longer before it does that. A busy host may take the processor away for less."""

HUNG_UP = select.EPOLLHUP | select.EPOLLERR
"""What epoll says, whatever is waited for, of a descriptor whose other end is closed."""
MayGoOn = Callable[[], bool]
"""Whether there is time for more; asked between two pieces of work."""


class Poll(NamedTuple):
    """How long a core is to poll: in nanoseconds, all of them about."""

    budget_ns: int
    """at most"""
    left_ns: int
    """if nobody waits"""
    window_ns: int
    """each time that somebody has begun to wait, so much longer"""
    fd: int = -1
    """something to read here ends it early; -1: there is no such thing"""


class Pollable(Protocol):
    """What is given work through memory, and told of it only if it asks for that: command rings."""

    @property
    def has_core(self) -> bool:
        """Whether :meth:`spin` does anything. The turns of a loop with a core are long."""

    @property
    def is_polled(self) -> bool:
        """Whether there is anything to poll at all."""

    @property
    def is_told_of_waits(self) -> bool:
        """Whether the guest says when it begins to wait."""

    def work(self) -> bool:
        """One bounded step. Whether there was anything to do."""

    def spin(self, poll: Poll) -> bool:
        """Poll for a while. Whether there was anything to do."""

    def waits(self) -> int:
        """How many times somebody in the guest began to wait since the last call, as far as that can be told."""

    def is_pressed(self) -> bool:
        """Whether there is work that cannot wait a moment."""

    def arm(self) -> bool:
        """Ask to be told of work. Whether there was none meanwhile, so that the loop may sleep."""

    def disarm(self) -> None:
        """It is polled again, and need not be told."""

    def rested(self) -> None:
        """The loop has slept: that was no stop of the process."""


class Waiting(Protocol):
    """What somebody waits for. Whatever ends it wakes the loop."""

    @property
    def is_over(self) -> bool: ...


class Watch(Protocol):
    """A descriptor that the loop looks at. Its callback is called with what epoll says of it, 0 if nothing."""

    events: int
    """what is waited for, in epoll's numbers"""
    has_more: bool
    """whether the callback is to be called in the next look, whatever the descriptor says"""

    def close(self) -> None:
        """Look no more at it. The descriptor stays open. A second time it does nothing."""


class Timer(Protocol):
    """A call that is due."""

    def cancel(self) -> None:
        """It is not made, unless it was already."""


class Owner(Protocol):
    """On whose behalf something is done in another thread."""

    @property
    def generation(self) -> int:
        """Another number after each reset: what was asked for before it is of no interest. Read in any thread."""


class Host(Protocol):
    """The loop. All but :meth:`call` is for its own thread; callbacks are called there, and must not block."""

    def watch(self, fd: int, callback: Callable[[int, MayGoOn], None]) -> Watch:
        """Call ``callback`` whenever there is something to read from ``fd``, or its other end is closed."""

    def at(self, time_ns: int, callback: Callable[[], None]) -> Timer:
        """Call ``callback`` once at a time of the inputs' clock, or soon after."""

    def call(self, callback: Callable[[], None]) -> None:
        """From any thread: have the loop call ``callback`` soon."""

    def submit(self, owner: Owner, work: Callable[[], _T], callback: Callable[[Outcome[_T]], None]) -> None:
        """Do ``work``, which may block and touches nothing of the device, in another thread, and call ``callback`` with
        what came of it, unless ``owner`` has another generation by then; what has not begun by then is not done at all.
        """

    def hung_up(self) -> list[Watch]:
        """Those whose other end is closed, of which the next look may not have told yet."""
