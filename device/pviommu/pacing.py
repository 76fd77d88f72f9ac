"""How long the loop polls after its last work, and how long it sleeps when that was in vain."""

from __future__ import annotations

__all__ = ["DEFAULT_SPIN_LIMIT_NS", "DEFAULT_SPIN_NS", "FOREVER", "SLEEPS_MS", "Pace"]

DEFAULT_SPIN_NS = 200_000
"""How long the rings are polled after the last work, at first and at least."""
DEFAULT_SPIN_LIMIT_NS = 2_000_000
"""How long at most, for a guest whose operations have come a little later than that."""
NEAR = 4
"""Work that comes within this many windows of the last work was worth waiting for."""
CREDIT = 16
"""Of a grown window: each time that it was long enough earns 1 of this."""
FIRST_CREDIT = 12
MISS = 4
"""What it costs a grown window that work came only after its end. Without credit there is no grown window."""
FEWEST_CHANCES, MOST_CHANCES = 16, 1024
"""Chances to grow that are let go after a grown window failed; twice as many each time that it fails anew."""
STOLEN_NS = 500_000
"""A loop that polls looks at the clock far more often; if it has not for so long, it did not have its processor."""
SLEEPS_MS = (1, 4, 16, 64, 256)
"""Bounds of the sleeps after arming, one after the other. Should a doorbell get lost, the slot waits no longer."""
FOREVER = -1
"""The bound of the sleeps after those: none."""


class Pace:
    """The polling and sleeping of one loop. All times come from the caller, in nanoseconds of one clock.

    A doorbell is a trapped access, and on a busy machine it may take the guest longer than the spin window: the loop
    is asleep again before the next operation, which therefore pays a doorbell too, and so on for good. So the window
    doubles when work of the rings comes after its end, but within :data:`NEAR` windows of the last work and within the
    limit. It falls back to the least one when that did not help: the work came later still, several times in a row or
    in more than a fifth of all cases. Where guest and loop have to share one processor it never helps, since the guest
    stands still while the loop polls; so the next attempt is put off, longer and longer until one succeeds. Nor does it
    help where others want the processor: who polls loses it, who is woken gets it. Losing it counts like work too late.
    Work within the least window says nothing about a longer one.
    """

    def __init__(self, spin_ns: int = DEFAULT_SPIN_NS, limit_ns: int = DEFAULT_SPIN_LIMIT_NS) -> None:
        """``spin_ns``: the least window; 0 never polls, whatever ``limit_ns``, the largest window."""
        self.window_ns = spin_ns
        """how long the rings are polled after the last work"""
        self._least_ns = spin_ns
        self._limit_ns = max(spin_ns, limit_ns)
        self._worked_at = 0
        self._idle_until = 0
        self._poll_until = 0
        self._credit = 0
        self._chances_to_skip = 0
        self._penalty = 0
        self._sleeps = 0

    def worked(self, now_ns: int, *, rings: bool = True) -> bool:
        """There was work until ``now_ns``; whether the window grew for it.

        ``rings`` is false for work that need not be polled for, because an access to a register began it.
        """
        grown = self._judge(self._idle_until - self._worked_at) if rings else False
        self._worked_at = self._idle_until = now_ns
        self._poll_until = now_ns + self.window_ns
        return grown

    def idle(self, now_ns: int) -> bool:
        """There was no work until ``now_ns``. Whether to go on polling."""
        if now_ns - self._idle_until > STOLEN_NS and self.window_ns > self._least_ns:
            self._miss(is_near=False)
        self._idle_until = now_ns
        return now_ns < self._poll_until

    def armed(self) -> None:
        """Doorbells are asked for from now on: the sleeps begin with the shortest."""
        self._sleeps = 0

    def woke(self, now_ns: int) -> None:
        """A sleep ended at ``now_ns``."""
        self._idle_until = now_ns

    def sleep_ms(self) -> int:
        """The bound of the next sleep in milliseconds, or :data:`FOREVER`."""
        if self._sleeps == len(SLEEPS_MS):
            return FOREVER
        self._sleeps += 1
        return SLEEPS_MS[self._sleeps - 1]

    def _judge(self, idle_ns: int) -> bool:
        """Learn from work that came ``idle_ns`` after the last work. Whether the window grew."""
        if idle_ns <= self._least_ns:
            return False
        if idle_ns <= self.window_ns:
            self._credit = min(self._credit + 1, CREDIT)
            if self._credit == CREDIT:
                self._penalty = 0
            return False
        is_near = idle_ns <= min(NEAR * self.window_ns, self._limit_ns)
        return self._begin(is_near) if self.window_ns == self._least_ns else self._miss(is_near)

    def _begin(self, is_near: bool) -> bool:
        if not is_near:
            return False
        if self._chances_to_skip:
            self._chances_to_skip -= 1
            return False
        self._credit = FIRST_CREDIT
        return self._grow()

    def _miss(self, is_near: bool) -> bool:
        self._credit -= MISS
        if self._credit <= 0:
            self.window_ns = self._least_ns
            self._penalty = min(max(2 * self._penalty, FEWEST_CHANCES), MOST_CHANCES)
            self._chances_to_skip = self._penalty
            return False
        return is_near and self._grow()

    def _grow(self) -> bool:
        before, self.window_ns = self.window_ns, min(2 * self.window_ns, self._limit_ns)
        return self.window_ns > before
