import pytest

from pviommu.pacing import CREDIT, FEWEST_CHANCES, FIRST_CREDIT, FOREVER, MISS, MOST_CHANCES, SLEEPS_MS, STOLEN_NS, Pace

LEAST = 200_000
LIMIT = 2_000_000
MS = 1_000_000


class Loop:
    """The loop that a pace is for: polls with a step of the clock, then sleeps until the guest has work."""

    STEP = 10_000

    def __init__(self, least=LEAST, limit=LIMIT):
        self.pace = Pace(least, limit)
        self.now = 1_000_000_000
        self.pace.worked(self.now)
        self.doorbells = 0
        self.polled = 0

    def operation_after(self, gap):
        """The guest's next operation comes ``gap`` ns after the last; whether it had to ring."""
        came_at, polling_since = self.now + gap, self.now
        while self.pace.idle(self.now) and self.now < came_at:
            self.now += self.STEP
        self.polled += min(self.now, came_at) - polling_since
        rung = self.now < came_at
        if rung:
            self.doorbells += 1
            self.pace.woke(came_at)
        self.now = came_at
        self.pace.worked(self.now)
        return rung


def test_a_guest_that_takes_longer_than_the_window_soon_needs_no_doorbells():
    loop = Loop()
    assert [loop.operation_after(300_000) for _ in range(64)] == [True] + [False] * 63


def test_the_window_doubles_until_it_is_long_enough():
    loop = Loop()
    windows = []
    for _ in range(4):
        loop.operation_after(790_000)
        windows.append(loop.pace.window_ns)
    assert windows == [2 * LEAST, 4 * LEAST, 4 * LEAST, 4 * LEAST]


def test_the_window_never_exceeds_its_limit():
    loop = Loop()
    for gap in (700_000, 1_500_000, 2_000_000):
        loop.operation_after(gap)
        for _ in range(CREDIT):
            loop.operation_after(300_000)
    loop.operation_after(2_000_000)
    assert loop.pace.window_ns == LIMIT


@pytest.mark.parametrize("gap", [810_000, 1_990_000, 10 * MS])
def test_a_guest_that_does_something_now_and_then_is_not_waited_for(gap):
    loop = Loop()
    rung = [loop.operation_after(gap) for _ in range(100)]
    assert all(rung)
    assert loop.pace.window_ns == LEAST
    assert loop.polled <= 100 * (LEAST + Loop.STEP)


def proven(gap=300_000):
    """A loop whose window has grown for a guest with this gap, and has proved of use."""
    loop = Loop()
    for _ in range(2 + CREDIT):
        loop.operation_after(gap)
    return loop


def test_a_grown_window_that_was_too_short_several_times_in_a_row_is_given_up():
    loop = proven()
    windows = []
    for _ in range(CREDIT // MISS):
        loop.operation_after(10 * MS)
        windows.append(loop.pace.window_ns)
    assert windows == [2 * LEAST] * (CREDIT // MISS - 1) + [LEAST]


def test_a_window_just_grown_is_given_up_earlier():
    loop = Loop()
    loop.operation_after(300_000)
    for _ in range(FIRST_CREDIT // MISS):
        assert loop.pace.window_ns == 2 * LEAST
        loop.operation_after(10 * MS)
    assert loop.pace.window_ns == LEAST


def test_bursts_far_apart_do_not_keep_a_grown_window():
    loop = proven()
    for _ in range(CREDIT // MISS):
        for _ in range(10):
            loop.operation_after(2000)
        loop.operation_after(50 * MS)
    assert loop.pace.window_ns == LEAST


def test_a_window_that_is_mostly_of_use_is_kept():
    loop = proven()
    for _ in range(50):
        loop.operation_after(50 * MS)
        for _ in range(MISS):
            assert not loop.operation_after(300_000)


def test_a_window_that_is_seldom_of_use_is_given_up():
    loop = proven()
    for _ in range(CREDIT // 2):
        loop.operation_after(50 * MS)
        loop.operation_after(300_000)
        loop.operation_after(300_000)
    assert loop.pace.window_ns == LEAST


def stand_still_while_the_loop_polls(loop, operations):
    """Operations of a guest on the loop's own processor; how long the loop polled per operation, in nanoseconds."""
    before = loop.polled
    for _ in range(operations):
        loop.operation_after(loop.pace.window_ns + 50_000)
    return (loop.polled - before) / operations


def test_a_guest_that_stands_still_while_the_loop_polls_soon_has_the_least_window_for_good():
    loop = Loop()
    assert stand_still_while_the_loop_polls(loop, 2000) < 1.1 * LEAST
    assert stand_still_while_the_loop_polls(loop, 2000) < 1.02 * LEAST


def test_a_loop_that_loses_its_processor_while_it_polls_gives_its_window_up():
    loop = proven(700_000)
    assert loop.pace.window_ns == 4 * LEAST
    for _ in range(CREDIT // 2):
        loop.pace.worked(loop.now)
        loop.now += STOLEN_NS + 1
        loop.pace.idle(loop.now)
    assert loop.pace.window_ns == LEAST


def test_a_long_sleep_is_no_loss_of_the_processor():
    loop = proven()
    loop.pace.armed()
    for _ in range(CREDIT):
        loop.now += 50 * MS
        loop.pace.woke(loop.now)
        assert not loop.pace.idle(loop.now + 10)
    assert loop.pace.window_ns == 2 * LEAST


def test_after_failures_a_guest_that_profits_is_found_again():
    loop = Loop()
    stand_still_while_the_loop_polls(loop, 4000)
    rung = [loop.operation_after(300_000) for _ in range(MOST_CHANCES + 2)]
    assert not rung[-1]


def test_a_success_ends_the_putting_off():
    loop = Loop()
    stand_still_while_the_loop_polls(loop, 4000)
    for _ in range(MOST_CHANCES + 2 + CREDIT):
        loop.operation_after(300_000)
    for _ in range(CREDIT // MISS):
        loop.operation_after(50 * MS)
    rung = [loop.operation_after(300_000) for _ in range(FEWEST_CHANCES + 2)]
    assert rung == [True] * (FEWEST_CHANCES + 1) + [False]


def test_growing_is_reported_once_each_time():
    pace = Pace(LEAST, LIMIT)
    pace.worked(10 * MS)
    pace.woke(10 * MS + 300_000)
    assert pace.worked(10 * MS + 300_000)
    assert not pace.worked(10 * MS + 300_001)


def test_work_that_takes_long_is_no_idle_time():
    pace = Pace(LEAST, LIMIT)
    pace.worked(10 * MS)
    pace.idle(10 * MS + 1000)
    assert not pace.worked(10 * MS + 300_000)
    assert pace.window_ns == LEAST


def test_work_of_endpoints_says_nothing_about_the_window():
    pace = Pace(LEAST, LIMIT)
    pace.worked(10 * MS)
    pace.idle(10 * MS + 300_000)
    assert not pace.worked(10 * MS + 300_000, rings=False)
    assert pace.idle(10 * MS + 300_000 + LEAST - 1)
    assert not pace.idle(10 * MS + 300_000 + LEAST)


def test_a_window_of_zero_never_polls_and_never_grows():
    loop = Loop(least=0)
    assert all(loop.operation_after(gap) for gap in (1000, 1000, 1000))
    assert (loop.pace.window_ns, loop.polled) == (0, 0)


def test_a_limit_below_the_least_window_means_a_fixed_window():
    loop = Loop(limit=0)
    assert all(loop.operation_after(300_000) for _ in range(5))
    assert loop.pace.window_ns == LEAST


def test_sleeps_grow_after_arming_and_then_have_no_bound():
    pace = Pace(LEAST, LIMIT)
    for _ in range(2):
        pace.armed()
        assert [pace.sleep_ms() for _ in range(len(SLEEPS_MS) + 2)] == [*SLEEPS_MS, FOREVER, FOREVER]
    assert list(SLEEPS_MS) == sorted(SLEEPS_MS)
