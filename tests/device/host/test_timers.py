"""What is due, and what was cancelled before."""

from __future__ import annotations

import gc
import weakref

from pviommu.host.timers import LEAST_KEPT, Timers


def test_timers_that_are_set_and_cancelled_again_and_again_do_not_pile_up() -> None:
    timers = Timers()
    called: list[int] = []
    for number in range(LEAST_KEPT):
        timers.add(1_000 - number, lambda number=number: called.append(number))
    timers.add(2_000, lambda: called.append(-1)).cancel()
    first = weakref.ref(timers.add(3_000, lambda: None))
    for _ in range(10_000):
        timers.add(10**12, lambda: called.append(-1)).cancel()

    assert len(timers._due) <= 2 * LEAST_KEPT + 2
    assert first() is not None
    timers.run(1_000)
    assert called == list(reversed(range(LEAST_KEPT)))
    assert timers.next_ns() == 3_000


def test_a_timer_that_was_cancelled_is_freed_before_it_is_due() -> None:
    timers = Timers()
    cancelled = timers.add(10**12, lambda: None)
    gone = weakref.ref(cancelled)
    cancelled.cancel()
    del cancelled
    for _ in range(LEAST_KEPT):
        timers.add(10**12, lambda: None)
    gc.collect()

    assert gone() is None
