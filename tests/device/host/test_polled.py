"""Several pollables of one loop."""

from __future__ import annotations

import pytest

from pviommu.host.polled import Polled, as_one
from pviommu.hosted import Poll


class Rings:
    """Says what it is told to say, and remembers what it was asked."""

    def __init__(self, **says: object) -> None:
        self.has_core = self.is_polled = self.is_told_of_waits = False
        self.says = says
        self.asked: list[object] = []
        self.__dict__.update({name: value for name, value in says.items() if name in self.__dict__})

    def _say(self, name: str) -> object:
        self.asked.append(name)
        return self.says.get(name, False)

    def work(self) -> bool:
        return bool(self._say("work"))

    def spin(self, poll: Poll) -> bool:
        self.asked.append(poll)
        return bool(self.says.get("spin"))

    def waits(self) -> int:
        return self.says.get("waits", 0)  # type: ignore[return-value]

    def is_pressed(self) -> bool:
        return bool(self._say("is_pressed"))

    def arm(self) -> bool:
        return bool(self._say("arm"))

    def disarm(self) -> None:
        self._say("disarm")

    def rested(self) -> None:
        self._say("rested")


def test_a_single_one_is_itself() -> None:
    rings = Rings()
    assert as_one([rings]) is rings


def test_none_at_all_have_nothing_to_do_and_keep_no_loop_awake() -> None:
    none = as_one([])
    assert [none.work(), none.is_polled, none.waits(), none.is_told_of_waits, none.is_pressed()] == [False] * 5
    assert none.arm()


@pytest.mark.parametrize("what", ["work", "is_pressed"])
def test_one_that_has_something_is_enough_and_all_have_their_turn(what: str) -> None:
    first, second = Rings(**{what: True}), Rings()
    assert getattr(Polled([second, first]), what)() is True
    assert second.asked == [what]
    assert getattr(Polled([second]), what)() is False


def test_work_of_the_first_keeps_no_other_from_its_turn() -> None:
    first, second = Rings(work=True), Rings()
    assert Polled([first, second]).work()
    assert second.asked == ["work"]


@pytest.mark.parametrize(("first", "second", "may"), [(True, True, True), (True, False, False), (False, True, False)])
def test_the_loop_may_sleep_if_none_got_work_and_all_are_disarmed_and_told_of_rest(
    first: bool, second: bool, may: bool
) -> None:
    rings = [Rings(arm=first), Rings(arm=second)]
    both = Polled(rings)
    assert both.arm() is may
    both.disarm()
    both.rested()
    assert [each.asked[-2:] for each in rings] == [["disarm", "rested"]] * 2


def test_those_with_a_core_share_the_time_of_a_poll() -> None:
    first, second, python = Rings(has_core=True), Rings(has_core=True, spin=True), Rings()
    both = Polled([first, second, python])
    assert both.has_core
    assert both.spin(Poll(200, 90, 100, 5)) is True
    assert first.asked == second.asked == [Poll(100, 90, 100, 5)]
    assert python.asked == []


def test_waits_add_up() -> None:
    assert Polled([Rings(waits=2), Rings(waits=3)]).waits() == 5


@pytest.mark.parametrize(
    ("told", "others", "is_told"),
    [(True, {"is_polled": True}, False), (True, {}, True), (False, {}, False)],
)
def test_all_that_are_in_use_have_to_say_when_they_wait(told: bool, others: dict[str, bool], is_told: bool) -> None:
    both = Polled([Rings(is_polled=True, is_told_of_waits=told), Rings(**others)])
    assert both.is_polled
    assert both.is_told_of_waits is is_told
