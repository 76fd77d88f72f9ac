"""The interfaces between the loop and what it serves: see :mod:`pviommu.host.loop`."""

from __future__ import annotations

import select
from collections.abc import Callable
from typing import NamedTuple, Protocol, TypeVar

from .inputs import WorkOutcome

__all__ = [
    "HUNG_UP",
    "NAP_MS",
    "STOPPED_NS",
    "Host",
    "MayGoOn",
    "Owner",
    "Poll",
    "Pollable",
    "Timer",
    "Waiting",
    "Watch",
]

_T = TypeVar("_T")

STOPPED_NS = 200_000_000
"""A process that did nothing for so long may have been stopped: the guest may have given its devices up and reuse the
memory that it unmapped. A driver waits longer before it does that; a busy host takes the processor away for less."""

NAP_MS = 0.1
"""The sleep after work that nobody waits for, during which no doorbell is asked for."""
HUNG_UP = select.EPOLLHUP | select.EPOLLERR
"""Events that epoll always reports for a descriptor whose other end is closed."""
MayGoOn = Callable[[], bool]
"""Whether there is time for more; called between two pieces of work."""


class Poll(NamedTuple):
    """How long a core is to poll, in nanoseconds, approximately."""

    budget_ns: int
    """at most"""
    left_ns: int
    """if the guest does not wait"""
    window_ns: int
    """so much longer after each time that the guest has begun to wait"""
    fd: int = -1
    """a descriptor; something to read from it ends polling early; -1: none"""


class Pollable(Protocol):
    """What gets work through memory and a doorbell only if it asks for one: command rings."""

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
        """One bounded step. Returns whether there was anything to do."""

    def spin(self, poll: Poll) -> bool:
        """Poll for a while. Returns whether there was anything to do."""

    def waits(self) -> int:
        """How many times the guest began to wait since the last call, as far as is known."""

    def is_pressed(self) -> bool:
        """Whether there is work that must be done at once."""

    def arm(self) -> bool:
        """Ask for a doorbell. Returns whether there is still no work, so that the loop may sleep."""

    def disarm(self) -> None:
        """It is polled again and needs no doorbell."""

    def rested(self) -> None:
        """The loop has slept: the process was not stopped."""


class Waiting(Protocol):
    """What somebody waits for. Whatever ends it wakes the loop."""

    @property
    def is_over(self) -> bool: ...


class Watch(Protocol):
    """A descriptor that the loop watches. Its callback is called with its epoll events, or 0 if there are none."""

    events: int
    """what is waited for, in epoll's numbers"""
    has_more: bool
    """whether the callback is to be called next time, whatever its events"""

    def close(self) -> None:
        """Stop watching it. The descriptor stays open. A second call does nothing."""


class Timer(Protocol):
    """A call at a certain time."""

    def cancel(self) -> None:
        """The call is not made, unless it was made already."""


class Owner(Protocol):
    """The owner of work in another thread."""

    @property
    def generation(self) -> int:
        """A different number after each reset: results of earlier work are dropped. Read in any thread."""


class Host(Protocol):
    """The loop. All but :meth:`call` is for its own thread; callbacks are called there, and must not block."""

    def watch(self, fd: int, callback: Callable[[int, MayGoOn], None]) -> Watch:
        """Call ``callback`` whenever there is something to read from ``fd``, or its other end is closed."""

    def at(self, time_ns: int, callback: Callable[[], None]) -> Timer:
        """Call ``callback`` once at a time of the inputs' clock, or soon after."""

    def call(self, callback: Callable[[], None]) -> None:
        """From any thread: have the loop call ``callback`` soon."""

    def submit(self, owner: Owner, work: Callable[[], _T], callback: Callable[[WorkOutcome[_T]], None]) -> None:
        """Do ``work``, which may block and must not touch the device, in another thread, and call ``callback`` with its
        outcome, unless the generation of ``owner`` has changed by then; work that has not begun by then is not done at
        all.
        """

    def hung_up(self) -> list[Watch]:
        """Watches whose other end is closed, even if their callback was not called yet."""
