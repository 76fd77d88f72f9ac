import pytest

from pviommu.host.pacing import (
    CREDIT,
    FEWEST_CHANCES,
    FIRST_CREDIT,
    FOREVER,
    MISS,
    MOST_CHANCES,
    SLEEPS_MS,
    WAKE_NS,
    Pace,
)

LIMIT = 100_000
MS = 1_000_000
DOORBELL = 80_000
"""What a doorbell takes the guest, and waking up the loop."""


class Loop:
    """The loop that a pace is for, and a guest that waits: for as long as a doorbell takes, if it has to ring."""

    def __init__(self, limit=LIMIT):
        self.pace = Pace(limit)
        self.now = 1_000_000_000
        self.doorbells = 0
        self.polled = 0
        self.pace.waited(self.now)

    def wait_after(self, gap):
        """The guest waits ``gap`` ns after its last wait was over; whether it had to ring."""
        left = self.pace.left_ns(self.now)
        rings = left < gap
        self.polled += min(left, gap)
        self.doorbells += rings
        self.now += gap + DOORBELL * rings
        self.pace.waited(self.now)
        return rings

    def waits(self, count, gap):
        return [self.wait_after(gap) for _ in range(count)]


@pytest.mark.row("driver", 70)
@pytest.mark.parametrize("gap", [500, 2000, 20_000, 90_000])
def test_a_guest_that_waits_again_and_again_soon_needs_no_doorbells(gap):
    assert Loop().waits(64, gap) == [True] + [False] * 63


@pytest.mark.row("driver", 70)
@pytest.mark.parametrize("gap", [LIMIT + WAKE_NS, 500_000, 10 * MS])
def test_a_guest_that_waits_now_and_then_is_not_polled_for(gap):
    loop = Loop()
    assert all(loop.waits(100, gap))
    assert loop.polled == 0


def test_a_guest_that_always_comes_a_little_late_is_hardly_polled_for():
    loop = Loop()
    loop.waits(4000, LIMIT + 20_000)
    polled = loop.polled
    loop.waits(4000, LIMIT + 20_000)
    assert loop.polled - polled < 4000 * LIMIT / 100


def test_many_waits_in_one_poll_earn_as_much_as_one_by_one():
    pace = Pace(LIMIT)
    pace.waited(MS)
    pace.waited(MS + 1000)
    pace.waited(MS + 1000 + CREDIT * LIMIT, CREDIT)
    for _ in range(CREDIT // MISS - 1):
        pace.waited(100 * MS)
        assert pace.window_ns == LIMIT


def test_a_guest_whose_waits_become_rarer_is_still_polled_for():
    loop = Loop()
    loop.waits(100, 2000)
    rung = loop.waits(100, 60_000)
    assert not any(rung)


def test_polling_goes_on_for_the_window_and_no_longer():
    loop = Loop()
    loop.waits(100, 5000)
    assert loop.pace.left_ns(loop.now) == loop.pace.window_ns == LIMIT
    assert loop.pace.left_ns(loop.now + LIMIT - 1) == 1
    assert loop.pace.left_ns(loop.now + LIMIT) == loop.pace.left_ns(loop.now + 10 * MS) == 0


def test_polling_that_was_in_vain_several_times_in_a_row_is_given_up():
    loop = Loop()
    loop.waits(1 + CREDIT, 2000)
    windows = []
    for _ in range(CREDIT // MISS):
        loop.wait_after(10 * MS)
        windows.append(loop.pace.window_ns)
    assert all(windows[:-1])
    assert windows[-1] == 0


def test_polling_just_begun_is_given_up_earlier():
    loop = Loop()
    loop.wait_after(2000)
    for _ in range(FIRST_CREDIT // MISS):
        assert loop.pace.window_ns
        loop.wait_after(10 * MS)
    assert loop.pace.window_ns == 0


def test_bursts_of_waits_keep_being_polled_for():
    loop = Loop()
    for _ in range(50):
        loop.wait_after(50 * MS)
        loop.waits(2 * MISS, 2000)
    doorbells = loop.doorbells
    loop.wait_after(50 * MS)
    loop.waits(100, 2000)
    assert loop.doorbells == doorbells + 1


def test_polling_that_is_seldom_of_use_is_given_up():
    loop = Loop()
    loop.waits(1 + CREDIT, 2000)
    for _ in range(CREDIT // 2):
        loop.wait_after(50 * MS)
        loop.waits(2, 2000)
    assert loop.pace.window_ns == 0


def stand_still_while_the_loop_polls(loop, waits):
    """Waits of a guest on the loop's own processor; how long the loop polled for each, in nanoseconds."""
    before = loop.polled
    for _ in range(waits):
        loop.wait_after(loop.pace.left_ns(loop.now) + 5000)
    return (loop.polled - before) / waits


def test_a_guest_that_stands_still_while_the_loop_polls_is_soon_not_polled_for():
    loop = Loop()
    assert stand_still_while_the_loop_polls(loop, 2000) < LIMIT / 20
    assert stand_still_while_the_loop_polls(loop, 2000) < LIMIT / 200


def test_after_failures_a_guest_that_profits_is_found_again():
    loop = Loop()
    stand_still_while_the_loop_polls(loop, 4000)
    assert not loop.waits(MOST_CHANCES + 2, 2000)[-1]


def test_a_success_ends_the_putting_off():
    loop = Loop()
    stand_still_while_the_loop_polls(loop, 4000)
    loop.waits(MOST_CHANCES + 2 + CREDIT, 2000)
    loop.waits(CREDIT // MISS, 50 * MS)
    assert loop.waits(FEWEST_CHANCES + 2, 2000) == [True] * (FEWEST_CHANCES + 1) + [False]


def test_a_limit_of_zero_never_polls():
    loop = Loop(limit=0)
    assert all(loop.waits(100, 500))
    assert (loop.pace.window_ns, loop.polled) == (0, 0)


def test_there_is_one_nap_after_work():
    pace = Pace(LIMIT)
    assert not pace.takes_nap()
    pace.worked()
    pace.worked()
    assert pace.takes_nap()
    assert not pace.takes_nap()


def test_sleeps_grow_after_arming_and_then_have_no_bound():
    pace = Pace(LIMIT)
    for _ in range(2):
        pace.armed()
        assert [pace.sleep_ms() for _ in range(len(SLEEPS_MS) + 2)] == [*SLEEPS_MS, FOREVER, FOREVER]
    assert list(SLEEPS_MS) == sorted(SLEEPS_MS)
