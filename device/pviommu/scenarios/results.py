"""What came of a scenario as results of tests: one for each rule, and what was wrong with the run as a whole."""

from __future__ import annotations

from collections.abc import Iterator

from ..faults.verdict import RuleResult, Verdict
from ..reports.ktap import Outcome, TestResult

__all__ = ["rule_results"]


def rule_results(verdict: Verdict) -> Iterator[TestResult]:
    """A test for each rule, numbered from 1, and behind them one of the whole scenario."""
    for number, rule in enumerate(verdict.rules, 1):
        yield _result(number, f"rule {rule.id}", rule.problems, [_line(rule)])
    state = f"{verdict.events} events, seed {verdict.seed}, state {verdict.state}"
    yield _result(len(verdict.rules) + 1, "the scenario ends as expected", verdict.problems, [state])


def _line(rule: RuleResult) -> str:
    what = f": {rule.text}" if rule.text else ""
    return f"{rule.nature}, {rule.on}: fired {rule.fired} of {rule.passed}, expected {rule.expected}{what}"


def _result(number: int, name: str, problems: tuple[str, ...], notes: list[str]) -> TestResult:
    outcome = Outcome.FAILED if problems else Outcome.PASSED
    return TestResult(number, name, outcome, diagnostics=[*notes, *problems])
