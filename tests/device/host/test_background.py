"""Work that nobody waits for."""

import pytest

from pviommu.host.background import MOST_WAITING, PIECE_NS, Background


class Host:
    """Calls what is due when it is told to."""

    def __init__(self):
        self.due = []

    def at(self, time_ns, callback):
        self.due.append(callback)

    def turn(self):
        due, self.due = self.due, []
        for callback in due:
            callback()


class Clock:
    """Goes on by so much at each step."""

    time = 0

    def now_ns(self):
        return self.time


@pytest.fixture
def host():
    return Host()


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def background(host, clock):
    return Background(host, clock)


def steps(clock, done, name, count, ns):
    for _ in range(count):
        clock.time += ns
        done.append(name)
        yield


def test_a_turn_has_steps_for_its_time_only(background, host, clock):
    done = []
    background.add(steps(clock, done, "a", 10, PIECE_NS // 2))
    assert done == []
    host.turn()

    assert len(done) == 3
    while host.due:
        host.turn()
    assert done == ["a"] * 10


def test_what_came_first_is_done_first_and_short_ones_share_a_turn(background, host, clock):
    done = []
    for name in "abc":
        background.add(steps(clock, done, name, 2, 1))
    host.turn()

    assert done == list("aabbcc")
    assert host.due == []


def test_what_fails_is_in_the_log_and_keeps_nothing_from_being_done(background, host, clock, caplog):
    def fails():
        yield
        raise ValueError("a fault of ours")

    done = []
    background.add(fails())
    background.add(steps(clock, done, "b", 1, 1))
    host.turn()

    assert done == ["b"]
    assert "a fault of ours" in caplog.text


def test_too_much_of_it_is_refused(background, host, clock):
    done = []
    taken = [background.add(steps(clock, done, number, 1, 1)) for number in range(MOST_WAITING + 1)]

    assert taken == [True] * MOST_WAITING + [False]
    host.turn()
    assert background.add(steps(clock, done, "later", 1, 1))
