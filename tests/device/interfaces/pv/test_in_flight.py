"""The words of the in-flight lines, as a guest sees them."""

import pytest

from pviommu.interfaces.pv import in_flight
from pviommu.interfaces.pv.in_flight import InFlight, line_of
from pviommu.pci.shared_memory import SharedMemory
from pviommu_abi.shared import IN_FLIGHT_LINES, IN_FLIGHT_OFFSET, SHARED_BAR_SIZE


@pytest.fixture
def shared():
    memory = SharedMemory("bar", SHARED_BAR_SIZE)
    yield memory
    memory.close()


@pytest.fixture
def lines(shared):
    return InFlight(shared)


def words(shared, line):
    """Step and what is pending."""
    at = (IN_FLIGHT_OFFSET + 64 * line) // 4
    return shared.words[at], shared.words[at + 1]


def test_each_context_has_a_line_until_there_are_more_than_lines():
    assert [line_of(context) for context in (1, 2, 256, 257)] == [0, 1, 255, 0]


def test_the_step_is_odd_while_something_is_in_flight(lines, shared):
    one = lines.begin(3)
    assert words(shared, 3) == (1, 0)
    other = lines.begin(3)
    lines.end(one)
    assert words(shared, 3) == (1, 0)
    lines.end(other)
    assert words(shared, 3) == (2, 0)
    lines.begin(3)
    assert words(shared, 3) == (3, 0)
    assert words(shared, 2) == words(shared, 4) == (0, 0)


def test_the_fence_is_behind_the_odd_step(lines, shared, monkeypatch):
    seen = []
    monkeypatch.setattr(in_flight, "fence", lambda: seen.append(words(shared, 3)))
    lines.end(lines.begin(3))
    assert seen == [(1, 0)]


def test_the_end_is_said_once(lines, shared):
    use = lines.begin(3)
    lines.end(use)
    lines.end(use)
    assert words(shared, 3) == (2, 0)


def test_the_step_wraps_to_an_even_one(lines, shared):
    lines.load({3: 0xFFFFFFFE})
    use = lines.begin(3)
    assert words(shared, 3)[0] == 0xFFFFFFFF
    lines.end(use)
    assert words(shared, 3)[0] == 0


def test_what_is_kept_is_pending_and_its_step_stays_odd(lines, shared):
    use = lines.begin(3)
    lines.keep(use)
    assert words(shared, 3) == (1, 1)
    other = lines.begin(3)
    lines.end(other)
    assert words(shared, 3) == (1, 1)
    lines.resume(use)
    assert words(shared, 3) == (1, 0)
    lines.end(use)
    assert words(shared, 3) == (2, 0)


def test_what_is_kept_and_given_up_is_not_pending(lines, shared):
    use = lines.begin(3)
    lines.keep(use)
    lines.end(use)
    assert words(shared, 3) == (2, 0)


def test_a_flush_waits_for_what_was_in_flight_and_nothing_later(lines):
    assert lines.flush(3).is_over
    one = lines.begin(3)
    flush = lines.flush(3)
    later = lines.begin(3)
    assert not flush.is_over
    lines.end(one)
    assert flush.is_over
    assert not lines.flush(3).is_over
    assert lines.flush(4).is_over
    lines.end(later)


def test_a_reset_ends_all_and_whoever_polls_sees_it(lines, shared):
    lines.keep(lines.begin(3))
    lines.begin(4)
    lines.end(lines.begin(5))
    flush = lines.flush(3)
    shared.clear()
    lines.reset()
    assert flush.is_over
    assert [words(shared, line) for line in (3, 4, 5, 6)] == [(2, 0), (2, 0), (2, 0), (0, 0)]


def test_a_state_goes_on_where_it_was(lines, shared):
    lines.end(lines.begin(3))
    lines.begin(4)
    saved = lines.save()
    assert saved == {3: 2, 4: 1}
    lines.load({})
    lines.load(saved)
    assert [words(shared, line) for line in (3, 4)] == [(2, 0), (2, 0)]


@pytest.mark.parametrize("steps", [{-1: 2}, {IN_FLIGHT_LINES: 2}, {0: -1}, {0: 1 << 32}])
def test_a_state_that_cannot_be_is_refused(lines, steps):
    with pytest.raises(ValueError, match=r"in-flight line -?\d+ at step -?\d+: there are 256, of 32 bits"):
        lines.load(steps)
