"""Rules as a whole: their order, states, log, verdict, the page that the guest reads, and rules that come later."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import MethodType

import pytest

from pviommu.faults.engine import Faults
from pviommu.faults.page import RulePage
from pviommu.faults.points.base import Point
from pviommu.faults.scenario import converted
from pviommu.guest.capabilities import capabilities
from pviommu.guest.fault_rules import FaultRules
from pviommu.probes import ProbeCall, Probes, Rule
from pviommu_abi.shared import FAULT_RULES_MOST, CapabilityId, FaultPage, FaultRule, name_hash
from pviommu_abi.slots import Errno

from ..conftest import Driver
from .conftest import Faulty, Load, scenario

PRE = "op.map_pages.pre"


def test_the_first_rule_that_fires_with_more_than_a_look_decides_and_those_behind_it_are_not_asked(load: Load) -> None:
    faulty = load(
        {"on": PRE, "do": {"log": "one more"}},
        {"on": PRE, "schedule": {"nth": 1}, "do": {"fail": "ENOMEM"}},
        {"on": PRE, "do": {"fail": "EPERM"}},
        {"on": "op.map_pages.*", "expect": {"fired": 0}},
    )
    _, ctx = faulty.driver.alloc()

    assert faulty.driver.map(ctx, 0x100, 0x10, 1)[0] == -Errno.ENOMEM
    assert faulty.driver.map(ctx, 0x100, 0x10, 1)[0] == -Errno.EPERM
    assert [(rule.passed, rule.fired) for rule in faulty.faults.verdict().rules] == [(2, 2), (2, 1), (1, 1), (2, 2)]


def test_states_arm_and_trip_rules(load: Load) -> None:
    faulty = load(
        {"on": "op.unmap_pages.post", "set_state": "armed"},
        {"on": PRE, "when_state": "armed", "set_state": "tripped", "do": {"fail": "ENOMEM"}},
        expect={"state": "tripped"},
    )
    driver = faulty.driver
    _, ctx = driver.alloc()
    assert driver.map(ctx, 0x100, 0x10, 1)[0] == 0
    assert faulty.faults.verdict().problems == ("the scenario ends in state start, expected tripped",)
    driver.unmap(ctx, 0x100, 1)
    assert driver.map(ctx, 0x100, 0x10, 1)[0] == -Errno.ENOMEM
    assert driver.map(ctx, 0x100, 0x10, 1)[0] == 0
    assert faulty.faults.state == "tripped"
    assert faulty.faults.verdict().ok


def test_an_event_says_when_which_rule_where_and_what_was_and_is(load: Load) -> None:
    faulty = load({"on": PRE, "do": {"corrupt": "gfn", "value": 7}}, {"on": "op.map_pages.post", "do": {"status": 5}})
    _, ctx = faulty.driver.alloc()
    faulty.driver.map(ctx, 0x100, 0x10, 2)

    first, second = faulty.events()
    assert first.pop("time_ns") < second.pop("time_ns")
    before = {"function": "iommu", "ctx": 1, "dfn": [0x100, 0x101], "gfn": [0x10, 0x11], "nr": 2, "flags": 3}
    common = {"class": "adversarial", "state": "start"}
    assert first == {
        "seq": 1,
        "rule": "rule-0",
        "on": PRE,
        "action": "corrupt",
        "before": before,
        "after": {"gfn": 7},
        **common,
    }
    assert second == {
        "seq": 2,
        "rule": "rule-1",
        "on": "op.map_pages.post",
        "action": "status",
        "before": {**before, "gfn": [7, 8]},
        "after": {"result": -5, "was": 0},
        **common,
    }


@pytest.mark.parametrize(
    ("expect", "maps", "problem"),
    [
        ({}, 0, "it fired never, expected once or more: no call met its place, conditions and state"),
        ({}, 1, "it fired never, expected once or more: once its conditions were met, and its schedule chose"),
        ({}, 2, None),
        ({"fired": 0}, 1, None),
        ({"fired": 0}, 2, "it fired once, expected 0"),
        ({"fired": "2.."}, 2, "it fired once, expected 2.."),
        ({"passed": 3}, 2, "its conditions were met 2 times, expected 3"),
        ({"passed": "0.."}, 0, None),
    ],
)
def test_a_rule_that_did_not_do_what_was_expected_fails_the_run(
    load: Load, expect: dict[str, object], maps: int, problem: str | None
) -> None:
    faulty = load({"on": PRE, "schedule": {"nth": 2}, "do": {"fail": "ENOMEM"}, "expect": expect})
    _, ctx = faulty.driver.alloc()
    for number in range(maps):
        faulty.driver.map(ctx, 0x100 + number, 0x10, 1)

    verdict = faulty.faults.verdict()
    assert verdict.ok is (problem is None)
    if problem:
        assert problem in verdict.rules[0].problems[0]
        assert any(line.startswith("  FAIL rule-0 (op.map_pages.pre)") for line in verdict.lines())
    assert verdict.lines()[0] == "conforming:"


def test_an_assertion_that_does_not_hold_fails_the_run_and_changes_nothing(load: Load) -> None:
    faulty = load({"on": PRE, "do": {"assert": {"nr": "..4", "ctx": 1}}})
    _, ctx = faulty.driver.alloc()
    assert faulty.driver.map(ctx, 0x100, 0x10, 4) == (0, 4)
    assert faulty.faults.verdict().ok
    assert faulty.driver.map(ctx, 0x200, 0x10, 5) == (0, 5)
    assert faulty.faults.verdict().problems == ("rule rule-0: event 2: the assertion does not hold: nr",)


def play(faulty: Faulty) -> list[int]:
    _, ctx = faulty.driver.alloc()
    return [faulty.driver.map(ctx, 0x100 + number, 0x10, 1)[0] for number in range(200)]


def test_the_same_scenario_and_the_same_guest_give_the_same_log_byte_for_byte(load: Load) -> None:
    rules = [
        {"on": PRE, "schedule": {"probability": 0.2}, "do": {"fail": "ENOMEM"}},
        {"on": PRE, "schedule": {"probability": 0.2}, "do": {"delay": "1us", "jitter": "1us", "clock": "virtual"}},
    ]
    first, second, other = load(*rules, seed=7), load(*rules, seed=7), load(*rules, seed=8)

    assert play(first) == play(second) != play(other)
    assert first.faults.log.lines == second.faults.log.lines
    assert len(first.faults.log.lines) > 40


def test_a_rule_more_does_not_change_what_another_draws(load: Load) -> None:
    rule = {"id": "it", "on": PRE, "schedule": {"probability": 0.2}, "do": {"fail": "ENOMEM"}}
    more = {"id": "more", "on": PRE, "schedule": {"probability": 0.5}, "do": {"log": "x"}}

    assert play(load(rule)) == play(load(more, rule))


# -- the guest sees it ----------------------------------------------------------------------------------------------


def test_the_guest_reads_what_each_rule_did(load: Load) -> None:
    faulty = load(
        {"id": "no-memory", "on": PRE, "schedule": {"nth": 2}, "set_state": "tripped", "do": {"fail": "ENOMEM"}},
        {"id": "lie", "on": "op.unmap_pages.apply", "do": {"lie": True}},
        seed=7,
    )
    driver = faulty.driver
    page = FaultRules(driver._function)
    assert page.count("no-memory") == (0, 0)
    _, ctx = driver.alloc()
    for number in range(3):
        driver.map(ctx, 0x100 + number, 0x10, 1)

    assert page.count("no-memory") == (3, 1)
    assert page.count("lie") == (0, 0)
    assert page.is_adversarial("lie")
    assert not page.is_adversarial("no-memory")
    assert page.head().state == name_hash("tripped")
    assert page.head().seed == 7
    with pytest.raises(KeyError):
        page.count("none")


def test_a_guest_that_sees_the_generation_even_sees_all_of_the_page() -> None:
    class Watched:
        """The shared BAR, and what a guest would have seen of its page before each access by the device."""

        def __init__(self) -> None:
            self.memory = memoryview(bytearray(0x10000))
            self.seen: list[tuple[int, int, int]] = []

        @property
        def view(self) -> memoryview:
            head = FaultPage.unpack(self.memory, 0x8000)
            self.seen.append((head.generation, head.rules, self.memory[0x8020]))
            return self.memory

    shared = Watched()
    page, one, two = RulePage(), FaultRule(1, 0, 0, 0), FaultRule(2, 0, 0, 0)
    page.show(shared, 7, "start", [one])
    page.show(shared, 7, "start", [two, one])
    _ = shared.view
    assert shared.seen == [(0, 0, 0), (1, 0, 0), (1, 1, 1), (2, 1, 1), (3, 1, 1), (3, 2, 2), (4, 2, 2)]


def test_counts_survive_a_reset_and_what_the_guest_writes_there(load: Load) -> None:
    faulty = load({"id": "it", "on": PRE, "do": {"fail": "ENOMEM"}})
    driver = faulty.driver
    _, ctx = driver.alloc()
    driver.map(ctx, 0x100, 0x10, 1)
    driver.view[0x8000:0x9000] = b"\xff" * 0x1000
    driver.iommu.reset()
    assert FaultRules(driver._function).count("it") == (1, 1)
    driver.iommu.disconnected()
    assert FaultRules(driver._function).count("it") == (1, 1)


def test_the_page_has_room_for_as_many_rules_as_a_scenario_may_have(load: Load) -> None:
    rules = [{"on": PRE, "expect": {"fired": 0}} for _ in range(FAULT_RULES_MOST)]
    faulty = load(*rules)
    assert FaultRules(faulty.driver._function).count(f"rule-{FAULT_RULES_MOST - 1}") == (0, 0)
    assert not any(faulty.driver.view[0x9000:0x10000])
    with pytest.raises(ValueError, match="at most 127 tables"):
        scenario(*rules, rules[0])


def test_without_rules_there_is_no_page_and_no_capability(load: Load, driver: Driver) -> None:
    assert CapabilityId.FAULT_RULES not in capabilities(driver.view)
    assert not any(driver.view[0x8000:0x9000])
    assert CapabilityId.FAULT_RULES in capabilities(load({"on": PRE}).driver.view)


# -- without rules, and with other ones -----------------------------------------------------------------------------


def points(holder: object) -> list[str]:
    """Of what points stand in for, in an object and what it refers to, the probes."""
    todo: list[object] = [holder]
    known: set[int] = set()
    found = []
    while todo:
        one = todo.pop()
        if isinstance(one, MethodType):
            one = one.__self__
        if id(one) in known:
            continue
        known.add(id(one))
        if isinstance(one, Point):
            found.append(one.probe.name)
        elif isinstance(one, dict):
            todo += one.values()
        elif isinstance(one, (list, tuple)):
            todo += one
        elif hasattr(one, "__dict__") and type(one).__module__.startswith(("pviommu", "vfio_user")):
            todo += vars(one).values()
    return found


def test_a_call_without_a_rule_is_the_callable_itself(load: Load) -> None:
    faulty = load()
    assert points(faulty.driver.machine) == []
    assert Probes(interposer=faulty.faults).probe("op.map_pages", len) is len
    assert set(points(load({"on": PRE}).driver.machine)) == {"op.map_pages"}
    assert set(points(load({"on": "iotlb.fill.pre"}).driver.machine)) == {"iotlb.fill"}


def test_other_rules_can_be_loaded_while_the_machine_lives(make_driver: Callable[..., Driver]) -> None:
    kept: list[Faults] = []

    def probes(inputs: object) -> Probes:
        kept.append(Faults(scenario(), inputs))  # type: ignore[arg-type]
        return Probes(interposer=kept[0])

    driver = make_driver(probes=probes).start()
    [faults] = kept
    _, ctx = driver.alloc()
    assert driver.map(ctx, 0x100, 0x10, 1)[0] == 0
    interposed = driver.iommu.probes

    faults.load(scenario({"id": "it", "on": PRE, "do": {"fail": "ENOMEM"}}, {"on": "table.unmap.pre"}))
    interposed.rebind()
    assert driver.map(ctx, 0x101, 0x10, 1)[0] == -Errno.ENOMEM
    assert FaultRules(driver._function).count("it") == (1, 1)
    assert CapabilityId.FAULT_RULES in capabilities(driver.view)

    faults.load(scenario())
    interposed.rebind()
    assert driver.map(ctx, 0x101, 0x10, 1)[0] == 0
    assert points(driver.machine) == []
    assert CapabilityId.FAULT_RULES not in capabilities(driver.view)


def test_rules_that_others_replace_are_judged_as_they_are_then(load: Load) -> None:
    faulty = load({"on": PRE}, {"on": "op.unmap_pages.pre"})
    faulty.driver.map(faulty.driver.alloc()[1], 0x100, 0x10, 1)
    faulty.faults.load(scenario({"id": "second", "on": "op.bind.pre", "expect": {"fired": "0.."}}))
    assert faulty.faults.verdict().ok  # of those that are loaded

    faulty.faults.load(scenario())
    verdict = faulty.faults.finish()

    assert not verdict.ok
    assert verdict.lines() == [
        "scenarios that were replaced or taken away: 2, 1 not as expected",
        "  conforming:",
        f"    ok   rule-0 ({PRE}): fired 1 of 1, expected once or more",
        "    FAIL rule-1 (op.unmap_pages.pre): fired 0 of 0, expected once or more",
        "         it fired never, expected once or more: no call met its place, conditions and state",
        "  rules did not do what was expected: 1 events, seed 0, state start",
        "rules did not do what was expected: 1 events, seed 0, state start",
    ]


def test_a_run_whose_rules_all_did_what_was_expected_before_they_went_is_as_expected(load: Load) -> None:
    faulty = load({"on": "op.bind.pre", "expect": {"fired": 0}})
    faulty.faults.load(scenario())

    verdict = faulty.faults.finish()
    assert verdict.ok
    assert verdict.lines()[0] == "scenarios that were replaced or taken away: 1, all as expected"


def test_any_number_of_scenarios_that_went_takes_little_memory(load: Load) -> None:
    faulty = load({"on": PRE})
    for _ in range(99):
        faulty.faults.load(scenario({"on": PRE}))

    lines = faulty.faults.finish().lines()
    assert lines[0] == "scenarios that were replaced or taken away: 99, 99 not as expected"
    assert sum("FAIL rule-0" in line for line in lines) == 16 + 1
    assert "  and 83 more" in lines


def test_assertions_that_do_not_hold_are_told_and_counted_but_not_all_kept(load: Load) -> None:
    faulty = load({"on": PRE, "do": {"assert": {"ctx": 77}}})
    _, ctx = faulty.driver.alloc()
    for number in range(35):
        faulty.driver.map(ctx, 0x100 + number, 0x10, 1)

    problems = faulty.faults.verdict().problems
    assert problems[0] == "rule rule-0: event 1: the assertion does not hold: ctx"
    assert problems[32:] == ("and 3 more assertions that did not hold",)


def test_the_last_events_are_kept(load: Load) -> None:
    faulty = load({"on": PRE})
    for number in range(10_003):
        faulty.faults.log.write(number=number)

    assert len(faulty.events()) == 10_000
    assert faulty.events()[-1]["number"] == 10_002
    assert faulty.faults.verdict().events == 10_003


def test_many_rules_that_are_everywhere_are_loaded_in_no_time_for_a_loop(load: Load) -> None:
    faulty = load()
    many = {"rule": [{"id": f"r{number}", "on": "*", "do": {"log": "x"}} for number in range(64)]}

    def load_them() -> float:
        began = time.thread_time()
        faulty.faults.load(converted(many))
        faulty.driver.iommu.probes.rebind()
        return time.thread_time() - began

    assert min(load_them() for _ in range(5)) < 0.05  # a tenth of what it was, and several times what it is


def test_who_looks_on_sees_what_was_asked_and_what_came_of_it(make_driver: Callable[..., Driver]) -> None:
    seen: list[ProbeCall] = []

    def probes(inputs: object) -> Probes:
        faults = Faults(scenario({"on": PRE, "do": {"fail": "ENOMEM"}}), inputs)  # type: ignore[arg-type]
        return Probes([Rule("op.map_pages.*", seen.append)], faults)

    driver = make_driver(probes=probes).start()
    _, ctx = driver.alloc()
    driver.map(ctx, 0x100, 0x10, 1)
    assert [event.probe for event in seen] == [PRE, "op.map_pages.post"]
    assert seen[1].result.result == -Errno.ENOMEM
