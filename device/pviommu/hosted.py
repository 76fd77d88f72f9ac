"""The interfaces between the loop and what it serves: see :mod:`pviommu.host.loop`."""

from __future__ import annotations

import enum
import select
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol, TypeVar

from .inputs import WorkOutcome

__all__ = [
    "HUNG_UP",
    "NAP_MS",
    "SHORT_NAP_MS",
    "STOPPED_NS",
    "Helper",
    "Host",
    "MayGoOn",
    "Owner",
    "Poll",
    "Pollable",
    "Standby",
    "Timer",
    "Waited",
    "Waiting",
    "Watch",
]

_T = TypeVar("_T")

STOPPED_NS = 200_000_000
"""A process that did nothing for so long may have been stopped: the guest may have given its devices up and reuse the
memory that it unmapped. A driver waits longer before it does that; a busy host takes the processor away for less."""

NAP_MS = 0.1
"""The sleep after work that nobody waits for, during which no doorbell is asked for."""
SHORT_NAP_MS = 0.02
"""A short nap. It is not left out, since whoever is waited for may need this very processor: QEMU, or the other end of
a tap."""
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


class Waited(enum.Enum):
    """What ended a sleep of native code."""

    IN_VAIN = "its time is over"
    DONE = "it has done something, or there is something that it leaves to Python"
    OTHER = "a descriptor of somebody else is ready, or a signal has come"


class Helper(Protocol):
    """Native code that does some of an endpoint's work, also while the loop sleeps. Several of one kind sleep
    together."""

    @property
    def state(self) -> Any:
        """What it shares with the endpoint."""

    def held(self) -> bytes:
        """What it has read and leaves to the endpoint."""

    def step(self, budget_ns: int) -> int:
        """Do what there is, for about so long. How much was done."""

    def wait(
        self,
        with_others: Sequence[Any],
        fd: int,
        timeout_ms: float,
        nap_ms: float,
        short_ms: float,
        budget_ns: int,
    ) -> Waited:
        """Sleep until something can be read from ``fd``, an epoll, for at most ``timeout_ms`` (-1: no limit); do what
        there is then, for about ``budget_ns``. What nobody tells of is looked at each ``nap_ms`` (-1: never), and each
        ``short_ms`` once something was done.
        """


class Standby(Protocol):
    """An endpoint that leaves work to a :class:`Helper` while the loop sleeps."""

    def stand_by(self) -> Helper | None:
        """The loop is going to sleep: who helps meanwhile. Nothing else is done before :meth:`stood_by`, which is
        called then in any case.
        """

    def stood_by(self) -> None:
        """It has slept."""


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
