"""What a sweep tries: at each place that a workload passes, each failure that the place knows, one rule at a time."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from pviommu_abi.shared import FAULT_RULES_MOST

from ..faults.actions import Do
from ..faults.catalogue import ANYWHERE, Nature, Place, places
from ..faults.scenario import Expect, Rule, Scenario
from ..faults.schedule import Schedule
from ..faults.verdict import Verdict
from .run import played

__all__ = ["LEFT_OUT", "Case", "Passes", "cases", "counted", "counting", "passes"]

LEFT_OUT = {
    "suspend": "it is a delay whose end another rule decides",
    "wait": "it is a delay whose end another rule decides",
    "resume": "it ends a delay of another rule",
    "log": "it leaves the device alone",
    "assert": "it leaves the device alone",
    "crash": "it ends the server, which is what a sweep looks for",
}
"""Actions that no case has, with the reason."""

_NOBODY = 4095
"""A result that no interface has."""
_PARAMETERS: dict[str, dict[str, Any]] = {
    "status": {"status": _NOBODY},
    "delay": {"delay": "5ms"},
    "bandwidth": {"bandwidth": "1Mi/s"},
    "reorder": {"reorder": 1},
    "hang": {"hang": True},
    "drop": {"drop": True},
    "lie": {"lie": True},
    "duplicate": {"duplicate": 1},
    "truncate": {"truncate": 1},
    "slice": {"slice": 1},
    "stale": {"stale": True},
    "miss": {"miss": True},
    "overflow": {"overflow": True},
    "withhold": {"withhold": True},
    "unplug": {"unplug": "5ms"},
    "interrupt": {"interrupt": 0},
    "disconnect": {"disconnect": True},
    "reset": {"reset": True},
}
"""Of the actions of which a place has one case."""

Passes = Mapping[str, int]
"""How often a workload passes each place, by name; places that it does not pass are not in it."""


class Case(NamedTuple):
    """One run of the workload."""

    number: int
    """counted from 1, over all shards"""
    rule: Rule
    before: tuple[Rule, ...] = ()
    """rules without which this one would meet nothing"""

    @property
    def scenario(self) -> Scenario:
        """To run it by ``pviommu faults run``."""
        return Scenario(rule=(*self.before, self.rule))

    @property
    def words(self) -> str:
        """What its rule does."""
        assert self.rule.do is not None
        given = " ".join(f"{key} {value}" if value is not True else key for key, value in self.rule.do.given().items())
        adversarial = " (adversarial)" if self.rule.nature is Nature.ADVERSARIAL else ""
        return f"{self.rule.on} {given} at pass {self.rule.schedule.nth}{adversarial}"


def passes(workload: str) -> Passes:
    """Play a workload with rules that only count."""
    found: dict[str, int] = {}
    for scenario in counting([place.name for place in places("*")]):
        found |= counted(played(scenario, workload).verdict)
    return found


def counting(names: Sequence[str]) -> Iterator[Scenario]:
    """Scenarios that together count how often these places are passed."""
    for first in range(0, len(names), FAULT_RULES_MOST):
        some = names[first : first + FAULT_RULES_MOST]
        yield Scenario(rule=tuple(Rule(id=name, on=name, expect=Expect(fired="0..")) for name in some))


def counted(verdict: Verdict) -> Passes:
    """What such a scenario has counted."""
    return {result.on: result.passed for result in verdict.rules if result.passed}


def cases(
    passed: Passes, nth: int | str = 1, *, limit: int = 64, adversarial: bool = False, without: Collection[str] = ()
) -> Iterator[Case]:
    """All cases of a workload that passes these places, the same ones in the same order each time; none has an action
    of ``without``.

    ``nth``: the pass at which a rule fires, from 1 on, ``last``, or ``all`` for the first ``limit`` passes, one after
    the other.
    """
    number = 0
    for place in places("*"):
        turns = list(_turns(passed.get(place.name, 0), nth, limit))
        for do in _actions(place, adversarial) if turns else ():
            for turn in turns if do.action not in without else ():
                number += 1
                yield Case(number, _rule(place, do, turn))


def _turns(count: int, nth: int | str, limit: int) -> Iterable[int]:
    if nth == "all":
        return range(1, min(count, limit) + 1)
    turn = count if nth == "last" else int(nth)
    return (turn,) if 1 <= turn <= count else ()


def _rule(place: Place, do: Do, turn: int) -> Rule:
    given = do.given()
    told = "-".join(str(given[key]).lower() for key in ("fail", "then", "corrupt") if key in given)
    name = "-".join(part for part in (place.name, do.action, told, str(turn)) if part)
    return Rule(id=name[:64], on=place.name, schedule=Schedule(nth=turn), do=do)


def _actions(place: Place, adversarial: bool) -> Iterator[Do]:
    """What the place can do; an interrupt that nothing is behind, where a correct IOMMU can do nothing else."""
    own = [action for action in place.actions if action not in ANYWHERE]
    made = [do for action in own if action not in LEFT_OUT for do in _forms(action, place)]
    conforming = [do for do in made if do.nature_at(place) is Nature.CONFORMING]
    yield from conforming or [Do(interrupt=0)]
    if adversarial:
        yield from (do for do in made if do.nature_at(place) is Nature.ADVERSARIAL)
        yield from (Do(disconnect=True), Do(reset=True))


def _forms(action: str, place: Place) -> Iterator[Do]:
    probe = place.probe
    if action == "fail":
        yield from (Do(fail=error) for error in (*probe.errors, *probe.refusals))
    elif action == "partial":
        yield from (Do(partial=1, then=error) for error in (*probe.errors, *probe.refusals))
    elif action == "corrupt":
        yield from (Do(corrupt=field, xor=1) for field in probe.fields or (0,))
    else:
        yield Do(**_PARAMETERS[action])
