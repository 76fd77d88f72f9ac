"""What came of a scenario: whether each rule did what was expected of it, with the evidence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from .catalogue import Nature
from .scenario import Rule
from .where import number_range

__all__ = ["Earlier", "RuleResult", "Verdict", "judged", "problems_of"]

_KEPT = 16
"""Scenarios whose verdict is told in full."""


class RuleResult(msgspec.Struct, frozen=True, rename={"nature": "class"}):
    """One rule at the end of a run."""

    id: str
    nature: str
    """``conforming`` or ``adversarial``"""
    on: str
    passed: int
    """passes that met its conditions"""
    fired: int
    expected: str
    """of ``fired``, in words"""
    problems: tuple[str, ...] = ()
    """empty if it did what was expected"""
    text: str = ""
    """in one line"""


class Earlier(msgspec.Struct):
    """Scenarios that others have replaced, or that were taken away: each judged as it was when it went."""

    scenarios: int = 0
    wrong: int = 0
    """of these, how many did not end as expected"""
    kept: list[Verdict] = []
    """those of them, the first ones"""

    def add(self, verdict: Verdict) -> None:
        """One more, which goes now."""
        self.scenarios += 1
        self.wrong += not verdict.ok
        if not verdict.ok and len(self.kept) < _KEPT:
            self.kept.append(verdict)

    def lines(self) -> list[str]:
        """For people."""
        what = "all as expected" if not self.wrong else f"{self.wrong} not as expected"
        left_out = self.wrong - len(self.kept)
        return [
            f"scenarios that were replaced or taken away: {self.scenarios}, {what}",
            *(f"  {line}" for verdict in self.kept for line in verdict.lines()),
            *([f"  and {left_out} more"] if left_out else []),
        ]


class Verdict(msgspec.Struct, frozen=True, omit_defaults=True):
    """A whole run."""

    ok: bool
    seed: int
    state: str
    """at the end"""
    events: int
    rules: tuple[RuleResult, ...]
    problems: tuple[str, ...]
    """of the run: assertions that failed, a final state that is another one, calls left suspended or waiting"""
    earlier: Earlier | None = None
    """at the end of a server: what went before these rules, if anything; it is part of :attr:`ok`"""

    @property
    def is_adversarial(self) -> bool:
        """Whether a rule has done what no correct IOMMU does, so that harm to the guest is no surprise."""
        return any(rule.nature == Nature.ADVERSARIAL.value and rule.fired for rule in self.rules)

    def failures(self) -> list[str]:
        """All that is not as expected: of the rules, and of the run."""
        return [*(f"rule {rule.id}: {text}" for rule in self.rules for text in rule.problems), *self.problems]

    def lines(self) -> list[str]:
        """For people."""
        lines = []
        for nature in Nature:
            rules = [rule for rule in self.rules if rule.nature == nature.value]
            if rules:
                lines.append(f"{nature.value}:")
            for rule in rules:
                mark = "ok  " if not rule.problems else "FAIL"
                what = f" - {rule.text}" if rule.text else ""
                lines.append(
                    f"  {mark} {rule.id} ({rule.on}): fired {rule.fired} of {rule.passed}, "
                    f"expected {rule.expected}{what}"
                )
                lines += [f"       {problem}" for problem in rule.problems]
        lines += [f"FAIL {problem}" for problem in self.problems]
        return [
            *(self.earlier.lines() if self.earlier else ()),
            *lines,
            f"rules {'did what was expected' if self.ok else 'did not do what was expected'}: "
            f"{self.events} events, seed {self.seed}, state {self.state}",
        ]

    def as_dict(self) -> dict[str, Any]:
        """For programs."""
        made: dict[str, Any] = msgspec.to_builtins(self)
        return made


def judged(rule: Rule, nature: Nature, passed: int, fired: int) -> RuleResult:
    """What to say of a rule, which is of this nature."""
    expect = rule.expect
    problems = []
    expected = "once or more" if expect.fired is None else str(expect.fired)
    first, last = (1, None) if expect.fired is None else number_range(expect.fired)
    if expect.fired is None and expect.passed is not None:
        expected, first = "0..", 0  # it does say something
    if fired < first or (last is not None and fired > last):
        problems.append(f"it fired {_times(fired)}, expected {expected}{_why(rule, passed, fired)}")
    if expect.passed is not None:
        low, high = number_range(expect.passed)
        if not low <= passed <= high:
            problems.append(f"its conditions were met {_times(passed)}, expected {expect.passed}")
    return RuleResult(
        rule.id, nature.value, rule.on, passed, fired, expected, tuple(problems), " ".join(rule.text.split())
    )


def _times(count: int) -> str:
    return "once" if count == 1 else "never" if not count else f"{count} times"


def _why(rule: Rule, passed: int, fired: int) -> str:
    if fired:
        return ""
    if not passed:
        hint = "; maps in a context with a reservation (op.reserve) do not count" if _is_promised(rule) else ""
        return f": no call met its place, conditions and state{hint}"
    return f": {_times(passed)} its conditions were met, and its schedule chose none of them"


def _is_promised(rule: Rule) -> bool:
    """Whether RESERVE promises that what the rule does will not happen."""
    is_map = any(place.probe.name in ("op.map_pages", "table.map") for place in rule.places())
    return rule.do is not None and rule.do.lacks_memory and is_map


def problems_of(
    assertions: Sequence[str], state: str, wanted: str | None, suspended: Sequence[str], awaited: Sequence[str]
) -> tuple[str, ...]:
    """Those of a run as a whole."""
    problems = list(assertions)
    if wanted is not None and state != wanted:
        problems.append(f"the scenario ends in state {state}, expected {wanted}")
    if suspended:
        problems.append(f"still suspended at the end: {', '.join(suspended)}; nothing resumed them")
    if awaited:
        problems.append(f"still waiting at the end for {', '.join(awaited)}; nothing was suspended under that")
    return tuple(problems)
