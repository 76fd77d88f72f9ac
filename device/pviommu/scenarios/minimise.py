"""The fewest rules of a scenario that still fail: delta debugging (ddmin of Zeller and Hildebrandt, 2002)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import msgspec

from ..documents import WrongValueError
from ..faults.scenario import Rule, Scenario
from .examination import Kind, examined

__all__ = ["NothingFailsError", "fewest", "minimised"]

_T = TypeVar("_T")


class NothingFailsError(Exception):
    """A scenario with which nothing goes wrong: there is nothing to make smaller."""


def fewest(parts: Sequence[_T], fails: Callable[[Sequence[_T]], bool]) -> list[_T]:
    """Those of ``parts``, of which all together fail, that fail without any one of which nothing would. In order."""
    left, pieces = list(parts), 2
    while len(left) > 1:
        size = -(-len(left) // pieces)
        starts = range(0, len(left), size)
        some = [left[start : start + size] for start in starts]
        others = [left[:start] + left[start + size :] for start in starts] if pieces > 2 else []
        found = next((subset for subset in (*some, *others) if fails(subset)), None)
        if found is not None:
            pieces = 2 if len(found) <= size else max(pieces - 1, 2)
            left = found
        elif size == 1:
            break
        else:
            pieces = min(2 * pieces, len(left))
    return left


def minimised(scenario: Scenario, workload: str) -> Scenario:
    """The scenario with the fewest of its rules that still fail as all of them do. What adversarial rules do to their
    guest counts, too; that a rule did not do what was expected only if nothing else is wrong. Raises
    :class:`NothingFailsError`.
    """
    kinds = _kinds(scenario, workload)
    if not kinds:
        raise NothingFailsError(f"nothing fails in workload {workload}")
    wanted = kinds - {Kind.RULES} or kinds

    def fails(rules: Sequence[Rule]) -> bool:
        smaller = msgspec.structs.replace(scenario, rule=tuple(rules))
        try:
            smaller.check()
        except WrongValueError:  # a state that none of these rules sets, for instance
            return False
        return bool(_kinds(smaller, workload) & wanted)

    return msgspec.structs.replace(scenario, rule=tuple(fewest(scenario.rule, fails)))


def _kinds(scenario: Scenario, workload: str) -> set[Kind]:
    return {failure.kind for failure in examined(scenario, workload).found}
