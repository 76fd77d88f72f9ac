"""How long the loop polls for a guest that waits, and how long it sleeps otherwise."""

from __future__ import annotations

import contextlib
from pathlib import Path

__all__ = ["DEFAULT_SPIN_NS", "FOREVER", "SLEEPS_MS", "TIMER_SLACK_NS", "Pace", "naps_end_in_time"]

DEFAULT_SPIN_NS = 100_000
"""How long the rings are polled after a wait, if at all. That is about what a doorbell and waking up cost together, so
that polling in vain costs the host no more than not polling costs the guest.
"""
WAKE_NS = 200_000
"""A wait that wakes the loop may have begun this much earlier."""
CREDIT = 16
"""The most credit that a guest can have; each wait that came while it was polled for earns 1."""
FIRST_CREDIT = 12
MISS = 4
"""The credit that is lost when a wait came too late to be polled for. Without credit there is no polling."""
FEWEST_CHANCES, MOST_CHANCES = 16, 1024
"""Chances to begin that are passed over after polling was in vain: at first the fewest, and twice as many after each
further failure."""
TIMER_SLACK_NS = 1_000
"""By how much the kernel may lengthen a nap; its default is half of one."""
SLEEPS_MS = (1, 4, 16, 64, 256)
"""Bounds of the sleeps after arming, one after the other. Should a doorbell get lost, its slot waits no longer than
that."""
FOREVER = -1
"""The bound of the sleeps after those: none."""


def naps_end_in_time() -> None:
    """Have no sleep of this process last more than :data:`TIMER_SLACK_NS` longer than asked for, if the host allows
    that."""
    with contextlib.suppress(OSError):
        Path("/proc/self/timerslack_ns").write_text(str(TIMER_SLACK_NS), encoding="ascii")


class Pace:
    """The polling and sleeping of one loop. All times come from the caller, in nanoseconds of one clock.

    Polling is for guests that wait again and again, each time only a moment after the last: without it each wait would
    cost a doorbell, which is a trapped access, and the waking of a process. Posted work needs none, and polling has its
    price too: on a processor whose hardware threads share a core it slows the guest down.

    So the loop polls for ``spin_ns`` after a wait if waits have been coming within that time of each other. Where they
    come later several times in a row, or in more than a fifth of all cases, it stops, and the next attempt is put off,
    for longer each time until one succeeds. This also happens where guest and loop share one processor, since the guest
    stands still while the loop polls.

    After other work it takes a nap, if the guest is one that says when it waits, and then finds all at once what was
    posted meanwhile. After a nap in vain, and without one for other guests, it asks for doorbells and sleeps.
    """

    def __init__(self, spin_ns: int = DEFAULT_SPIN_NS) -> None:
        """``spin_ns``: how long to poll; 0 never polls."""
        self.window_ns = 0
        """how long the rings are polled after a wait at present: ``spin_ns`` or 0"""
        self._spin_ns = spin_ns
        self._waited_at = 0
        self._poll_until = 0
        self._credit = 0
        self._chances_to_skip = 0
        self._penalty = 0
        self._tired = False
        self._sleeps = 0

    def waited(self, now_ns: int, times: int = 1) -> None:
        """The guest has begun to wait ``times`` times since the last call, most recently at about ``now_ns``."""
        gap_ns = (now_ns - self._waited_at) / times
        self._waited_at = now_ns
        if self.window_ns:
            self._judge(gap_ns, times)
        elif gap_ns <= self._spin_ns + WAKE_NS:
            self._consider()
        self._poll_until = now_ns + self.window_ns

    def left_ns(self, now_ns: int) -> int:
        """How long to go on polling; 0: not at all."""
        return max(0, self._poll_until - now_ns)

    def worked(self) -> None:
        """There was something to do."""
        self._tired = True

    def takes_nap(self) -> bool:
        """Whether a nap is due instead of a sleep with doorbells: there is one each time that work has been done."""
        tired, self._tired = self._tired, False
        return tired

    def armed(self) -> None:
        """Doorbells are asked for from now on: the sleeps begin with the shortest."""
        self._sleeps = 0

    def sleep_ms(self) -> int:
        """The bound of the next sleep in milliseconds, or :data:`FOREVER`."""
        if self._sleeps == len(SLEEPS_MS):
            return FOREVER
        self._sleeps += 1
        return SLEEPS_MS[self._sleeps - 1]

    def _judge(self, gap_ns: float, times: int) -> None:
        """Learn from ``times`` waits, each ``gap_ns`` after the one before, of a guest that is polled for."""
        if gap_ns > self._spin_ns:
            self._credit -= MISS
            if self._credit <= 0:
                self._give_up()
            return
        self._credit = min(self._credit + times, CREDIT)
        if self._credit == CREDIT:
            self._penalty = 0

    def _consider(self) -> None:
        """Begin to poll, unless that is put off: of a wait that woke the loop, nobody knows when exactly it began."""
        if self._chances_to_skip:
            self._chances_to_skip -= 1
            return
        self._credit = FIRST_CREDIT
        self.window_ns = self._spin_ns

    def _give_up(self) -> None:
        self.window_ns = 0
        self._penalty = min(max(2 * self._penalty, FEWEST_CHANCES), MOST_CHANCES)
        self._chances_to_skip = self._penalty
