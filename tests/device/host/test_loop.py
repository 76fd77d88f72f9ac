"""The loop by itself: descriptors, times, calls of other threads, endpoints."""

from __future__ import annotations

import os
import select
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from pviommu.host.loop import Loop
from pviommu.host.pacing import FOREVER, Pace
from pviommu.host.watches import SOCKETS_NS
from pviommu.host.work import Work
from pviommu.host.workers import THREADS
from pviommu.hosted import STOPPED_NS, Waited
from pviommu.inputs import WorkOutcome

from ..conftest import Driver, Inputs


@pytest.fixture
def inputs(driver: Driver) -> Inputs:
    return driver.inputs


@pytest.fixture
def loop(make_driver: Callable[..., Driver], inputs: Inputs) -> Iterator[Loop]:
    machine = make_driver().machine
    made = Loop(Work(machine), inputs, machine.counters, Pace())
    yield made
    made.close()


class Event:
    """An eventfd that a loop looks at. What it was told, in order."""

    def __init__(self, loop: Loop) -> None:
        self.fd = os.eventfd(0, os.EFD_NONBLOCK)
        self.told: list[int] = []
        self.watch = loop.watch(self.fd, self.hear)

    def hear(self, events: int, _: Callable[[], bool]) -> None:
        self.told.append(events)
        if events:
            os.eventfd_read(self.fd)

    def ring(self) -> None:
        os.eventfd_write(self.fd, 1)


@pytest.fixture
def event(loop: Loop) -> Iterator[Event]:
    made = Event(loop)
    yield made
    made.watch.close()
    os.close(made.fd)


def turns(loop: Loop, count: int) -> None:
    for _ in range(count):
        loop.turn()


# -- descriptors ------------------------------------------------------------------------------------------------------


def test_a_callback_is_called_once_for_what_is_ready(loop: Loop, event: Event) -> None:
    turns(loop, 2)
    event.ring()
    turns(loop, 3)
    assert event.told == [select.EPOLLIN]


def test_what_is_not_waited_for_is_not_told(loop: Loop, event: Event) -> None:
    event.watch.events = 0
    event.ring()
    turns(loop, 2)
    assert event.told == []
    event.watch.events = select.EPOLLIN
    turns(loop, 2)
    assert event.told == [select.EPOLLIN]


def test_what_has_more_is_called_in_each_look_and_the_loop_does_not_sleep(
    loop: Loop, event: Event, inputs: Inputs
) -> None:
    event.watch.has_more = True
    inputs.waits.clear()
    turns(loop, 3)
    assert event.told == [0, 0, 0]
    assert inputs.waits == [0, 0, 0]
    event.watch.has_more = False
    turns(loop, 3)
    assert event.told == [0, 0, 0]
    assert inputs.waits[3:] == [FOREVER] * 3


def test_a_watch_that_is_closed_by_the_callback_of_another_is_not_called(loop: Loop, event: Event) -> None:
    other = Event(loop)
    both = {event, other}
    for one in both:
        one.watch.callback = lambda *_, one=one: (one.told.append(1), [each.watch.close() for each in both - {one}])
        one.ring()
    turns(loop, 1)
    assert len(event.told) + len(other.told) == 1
    other.watch.close()
    os.close(other.fd)


def test_a_busy_descriptor_has_its_time_and_no_more_and_one_that_is_not_comes_first(
    loop: Loop, event: Event, inputs: Inputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inputs, "worked_ns", lambda: inputs.time)
    taken = []

    def without_end(_: int, may_go_on: Callable[[], bool]) -> None:
        begun = inputs.time
        while may_go_on():
            pass
        taken.append(inputs.time - begun)

    busy = Event(loop)
    busy.watch.callback = without_end
    busy.watch.has_more = True
    turns(loop, 3)
    event.ring()
    turns(loop, 1)
    assert event.told == [select.EPOLLIN]
    assert max(taken) <= SOCKETS_NS + 2 * inputs.time_step
    busy.watch.close()
    os.close(busy.fd)


# -- times ------------------------------------------------------------------------------------------------------------


def test_what_is_due_is_called_once_in_order_and_not_before_its_time(loop: Loop, inputs: Inputs) -> None:
    called = []
    now = inputs.time
    for name, after in (("b", 40_000_000), ("a", 20_000_000), ("c", 40_000_000)):
        loop.at(now + after, lambda name=name: called.append(name))
    turns(loop, 2)
    assert called == []
    inputs.time = now + 21_000_000
    turns(loop, 2)
    assert called == ["a"]
    inputs.time = now + 41_000_000
    turns(loop, 2)
    assert called == ["a", "b", "c"]


def test_the_loop_sleeps_until_something_is_due(loop: Loop, inputs: Inputs) -> None:
    inputs.time_step = 0
    loop.at(inputs.time + 5_000_000, lambda: None)
    inputs.waits.clear()
    turns(loop, 1)
    assert inputs.waits == [5.0]
    inputs.time += 5_000_000
    turns(loop, 1)
    assert inputs.waits == [5.0, FOREVER]


def test_a_timer_of_years_is_slept_for_in_pieces_that_the_kernel_can_count(loop: Loop, inputs: Inputs) -> None:
    inputs.time_step = 0
    loop.at(inputs.time + 10**18, lambda: None)
    inputs.waits.clear()
    turns(loop, 1)
    assert inputs.waits == [3_600_000]


def test_what_is_cancelled_is_neither_called_nor_waited_for(loop: Loop, inputs: Inputs) -> None:
    called = []
    loop.at(inputs.time + 5_000_000, lambda: called.append(1)).cancel()
    inputs.waits.clear()
    turns(loop, 1)
    assert inputs.waits == [FOREVER]
    inputs.time += 6_000_000
    turns(loop, 1)
    assert called == []


def test_what_asks_for_another_call_at_once_does_not_keep_a_turn_from_ending(loop: Loop, inputs: Inputs) -> None:
    called = []

    def again() -> None:
        called.append(1)
        loop.at(inputs.time, again)

    again()
    turns(loop, 3)
    assert len(called) == 4


@pytest.mark.row("driver", 5)
def test_after_a_stop_what_clients_asked_for_comes_before_what_is_due(loop: Loop, event: Event, inputs: Inputs) -> None:
    loop.at(inputs.time, lambda: event.told.append(-1))
    event.ring()
    inputs.time += 2 * STOPPED_NS
    turns(loop, 1)
    assert event.told == [select.EPOLLIN, -1]


# -- other threads ----------------------------------------------------------------------------------------------------


class Owner:
    generation = 0


def wait_until(is_so: Callable[[], object]) -> None:
    deadline = time.monotonic() + 10
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def take(loop: Loop, outcomes: list[WorkOutcome[Any]], count: int) -> None:
    """Turn until so many outcomes are there."""
    for _ in range(1000):
        if len(outcomes) >= count:
            return
        select.select([loop.watches.poller], [], [], 0.01)
        loop.turn()
    raise AssertionError(f"{len(outcomes)} outcomes, not {count}")


def test_another_thread_ends_the_sleep_of_the_loop(loop: Loop) -> None:
    called = []
    thread = threading.Thread(target=lambda: loop.call(lambda: called.append(threading.current_thread())))
    thread.start()
    assert select.select([loop.watches.poller], [], [], 10)[0]
    turns(loop, 1)
    thread.join()
    assert called == [threading.main_thread()]


def test_work_is_done_in_another_thread_and_what_came_of_it_is_told_in_the_loop(loop: Loop) -> None:
    outcomes: list[WorkOutcome[Any]] = []
    loop.submit(Owner(), lambda: threading.current_thread().name, outcomes.append)
    loop.submit(Owner(), lambda: 1 // 0, outcomes.append)
    take(loop, outcomes, 2)
    first, second = sorted(outcomes, key=lambda outcome: outcome.job)
    assert first.result() == "worker"
    with pytest.raises(ZeroDivisionError):
        second.result()


def test_what_comes_after_a_reset_of_its_owner_is_dropped(loop: Loop) -> None:
    outcomes: list[WorkOutcome[Any]] = []
    owner, other, may_end = Owner(), Owner(), threading.Event()
    loop.submit(owner, may_end.wait, outcomes.append)
    owner.generation += 1
    loop.submit(owner, may_end.wait, outcomes.append)
    loop.submit(other, may_end.wait, outcomes.append)
    may_end.set()
    take(loop, outcomes, 2)
    turns(loop, 3)
    assert sorted(outcome.job for outcome in outcomes) == [2, 3]


@pytest.fixture
def busy(loop: Loop) -> Iterator[threading.Event]:
    """All threads of the loop wait for this."""
    begun, may_end = [], threading.Event()
    for _ in range(THREADS):
        loop.submit(Owner(), lambda: (begun.append(1), may_end.wait(10)), lambda _: None)
    wait_until(lambda: len(begun) == THREADS)
    yield may_end
    may_end.set()


def test_what_waits_when_its_owner_is_reset_and_asks_again_is_forgotten(loop: Loop, busy: threading.Event) -> None:
    outcomes: list[WorkOutcome[Any]] = []
    owner, done = Owner(), []
    for number in range(1000):
        loop.submit(owner, lambda number=number: done.append(number), outcomes.append)
        owner.generation += 1
    workers = loop.calls._workers
    assert (len(workers._waiting[owner]), len(workers._jobs)) == (1, THREADS + 1)
    loop.submit(owner, lambda: done.append(-1), outcomes.append)
    busy.set()
    take(loop, outcomes, 1)
    assert (done, len(outcomes)) == ([-1], 1)


def test_what_waits_when_its_owner_is_reset_is_not_begun(loop: Loop, busy: threading.Event) -> None:
    outcomes: list[WorkOutcome[Any]] = []
    owner, other, done = Owner(), Owner(), []
    loop.submit(owner, lambda: done.append("stale"), outcomes.append)
    loop.submit(other, lambda: done.append("other"), outcomes.append)
    owner.generation += 1
    busy.set()
    take(loop, outcomes, 1)
    wait_until(lambda: loop.calls._workers._idle == THREADS)
    turns(loop, 3)
    assert (done, len(outcomes), loop.calls._workers._jobs) == (["other"], 1, {})


def test_owners_take_turns_however_much_one_asks_for(loop: Loop, busy: threading.Event) -> None:
    workers = loop.calls._workers
    greedy, modest = Owner(), Owner()
    for number in range(3):
        loop.submit(greedy, lambda number=number: number, lambda _: None)
    loop.submit(modest, lambda: "modest", lambda _: None)
    loop.submit(modest, lambda: "modest again", lambda _: None)
    with workers._has_work:
        order = [job[1]() for job in iter(workers._next, None)]
    assert order == [0, "modest", 1, "modest again", 2]


def test_there_are_few_threads_and_work_beyond_waits(loop: Loop) -> None:
    outcomes: list[WorkOutcome[Any]] = []
    running, most, lock, may_end = [0], [0], threading.Lock(), threading.Event()

    def count() -> None:
        with lock:
            running[0] += 1
            most[0] = max(most[0], running[0])
        may_end.wait(10)
        with lock:
            running[0] -= 1

    for _ in range(20):
        loop.submit(Owner(), count, outcomes.append)
    wait_until(lambda: running[0] == 4)
    may_end.set()
    take(loop, outcomes, 20)
    assert most[0] == 4


def test_one_thread_is_enough_for_work_that_is_asked_for_one_by_one(loop: Loop) -> None:
    outcomes: list[WorkOutcome[Any]] = []
    threads = set()
    for count in range(1, 6):
        loop.submit(Owner(), lambda: threads.add(threading.get_ident()), outcomes.append)
        take(loop, outcomes, count)
        wait_until(lambda: loop.calls._workers._idle)
    assert len(threads) == 1


def test_an_owner_hears_that_there_is_no_thread_to_be_had(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_thread(_: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", no_thread)
    outcomes: list[WorkOutcome[Any]] = []
    loop.submit(Owner(), lambda: 1, outcomes.append)
    take(loop, outcomes, 1)
    with pytest.raises(RuntimeError, match="can't start"):
        outcomes[0].result()


def test_many_outcomes_at_once_are_told_in_several_looks(loop: Loop, inputs: Inputs) -> None:
    """Each takes as long to hear of as a look may last."""
    told: list[int] = []

    def slow(outcome: WorkOutcome[int]) -> None:
        inputs.time += SOCKETS_NS
        told.append(outcome.result())

    for number in range(5):
        loop.submit(Owner(), lambda number=number: number, slow)
    wait_until(lambda: len(loop.calls._workers._finished) == 5)
    for count in range(1, 6):
        turns(loop, 1)
        assert len(told) == count
    assert sorted(told) == [0, 1, 2, 3, 4]


def test_what_enters_through_the_inputs_is_what_the_device_learns(
    loop: Loop, inputs: Inputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A recorder, and a replay that has no threads, stand there."""
    heard: list[str] = []
    loop.submit(Owner(), lambda: "real", lambda outcome: heard.append(outcome.result()))
    monkeypatch.setattr(inputs, "outcomes", lambda finished: [WorkOutcome(finished.popleft().job, "replayed")])
    take(loop, heard, 1)  # type: ignore[arg-type]
    assert heard == ["replayed"]


def test_after_the_end_nothing_is_begun_and_nobody_woken(loop: Loop) -> None:
    may_end, begun = threading.Event(), []
    for number in range(8):
        loop.submit(Owner(), lambda number=number: (begun.append(number), may_end.wait(10)), lambda _: None)
    wait_until(lambda: len(begun) == 4)
    fd = loop.calls.fd
    reader, writer = os.pipe()
    loop.close()
    os.dup2(writer, fd)
    os.set_blocking(reader, False)
    may_end.set()
    for thread in threading.enumerate():
        if thread.name == "worker":
            thread.join(10)
    assert len(begun) == 4
    with pytest.raises(BlockingIOError):
        os.read(reader, 8)
    for each in (reader, writer, fd):
        os.close(each)


# -- helpers ----------------------------------------------------------------------------------------------------------


class Helped:
    """Somebody who leaves work to a helper, which is itself, while the loop sleeps."""

    def __init__(self, event: Event) -> None:
        self.event = event
        self.sleeps: list[tuple[int, float, float]] = []
        self.is_willing = True
        self.is_asleep = False

    def stand_by(self) -> Helped | None:
        assert not self.is_asleep
        self.is_asleep = self.is_willing
        return self if self.is_willing else None

    def stood_by(self) -> None:
        self.is_asleep = False

    def wait(
        self, with_others: list[Helped], fd: int, timeout_ms: float, nap_ms: float, _short_ms: float, _budget_ns: int
    ) -> Waited:
        assert all(one.is_asleep for one in with_others)
        self.sleeps.append((len(with_others), timeout_ms, nap_ms))
        self.event.ring()
        return Waited.OTHER


def test_the_loop_sleeps_in_the_hands_of_those_who_help(loop: Loop, event: Event, inputs: Inputs) -> None:
    helped = [Helped(event), Helped(event), Helped(event)]
    helped[1].is_willing = False
    loop._endpoints.standbys = helped
    turns(loop, 1)  # which does what came before
    inputs.waits.clear()
    turns(loop, 2)
    assert event.told == [select.EPOLLIN] * len(helped[0].sleeps)
    assert helped[0].sleeps[-1] == (2, FOREVER, -1)
    assert set(inputs.waits) == {0}
    assert not any(one.is_asleep for one in helped)


def test_nobody_helps_while_something_is_unfinished(loop: Loop, event: Event) -> None:
    loop._endpoints.standbys = [helped] = [Helped(event)]
    event.watch.has_more = True
    turns(loop, 3)
    assert helped.sleeps == []
    event.watch.has_more = False
