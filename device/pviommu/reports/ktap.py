"""Reads KTAP version 1 (Documentation/dev-tools/ktap.rst of Linux) line by line into a tree of results, and writes it.

Subtests are indented by two spaces a level and come before the result line of the test they belong to. Directives are
SKIP, XFAIL and TODO (counted as skipped), TIMEOUT and ERROR (counted as failed). Lines that are not KTAP are
kept as diagnostics of the next result.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum

__all__ = ["Counts", "Event", "EventKind", "KtapParser", "KtapRun", "Outcome", "TestResult", "head", "lines", "written"]

MAX_DEPTH = 16
MAX_LINE = 4096
MAX_DIAGNOSTICS = 200
"""Diagnostic lines kept for one result; a guest that prints without end must not fill the host's memory."""

_VERSION = re.compile(r"K?TAP version (\d+)$")
_PLAN = re.compile(r"1\.\.(\d{1,7})(?:\s*#\s*SKIP\b\s*(.*))?$", re.IGNORECASE)
_RESULT = re.compile(r"(not ok|ok) (\d{1,7})(?:\s+(?:-\s+)?(.*?))?(?:\s*#\s*([A-Z]+)\b[:\s]*(.*))?$")
_BAIL_OUT = re.compile(r"Bail out!\s*(.*)$")
_DIRECTIVES = frozenset(("SKIP", "XFAIL", "TODO", "TIMEOUT", "ERROR"))


class Outcome(Enum):
    """How one test ended."""

    PASSED = "passed"
    FAILED = "failed"
    SKIPPED = "skipped"


@dataclass(slots=True)
class TestResult:
    """One result line with the subtests and diagnostics that came before it."""

    __test__ = False  # not a pytest class

    number: int
    name: str
    outcome: Outcome
    directive: str = ""
    reason: str = ""
    seconds: float = 0.0
    """from the result before it, whichever that was; set by who knows the time"""
    diagnostics: list[str] = field(default_factory=list)
    children: list[TestResult] = field(default_factory=list)

    @property
    def failed(self) -> bool:
        """Whether this test or one below it failed."""
        return self.outcome is Outcome.FAILED or any(child.failed for child in self.children)

    def leaves(self, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], TestResult]]:
        """Every test that counts, with its path: the ends of the tree, and a parent that failed by itself."""
        here = (*path, self.name)
        for child in self.children:
            yield from child.leaves(here)
        by_itself = self.outcome is Outcome.FAILED and not any(child.failed for child in self.children)
        if not self.children or by_itself:
            yield here, self


@dataclass(frozen=True, slots=True)
class Counts:
    """Numbers of tests by outcome."""

    passed: int = 0
    failed: int = 0
    skipped: int = 0

    @property
    def total(self) -> int:
        """All tests that reported."""
        return self.passed + self.failed + self.skipped


@dataclass(slots=True)
class KtapRun:
    """The tests of a whole run and what was wrong with the report itself."""

    tests: list[TestResult]
    problems: list[str]

    def leaves(self) -> Iterator[tuple[tuple[str, ...], TestResult]]:
        """Every test that counts, with its path."""
        for test in self.tests:
            yield from test.leaves()

    def counts(self, below: str | None = None) -> Counts:
        """How many tests passed, failed and were skipped, of all or of those ``below`` an outermost test."""
        outcomes = [
            result.outcome for path, result in self.leaves() if below is None or (path[0] == below and path[1:])
        ]
        return Counts(*(outcomes.count(kind) for kind in (Outcome.PASSED, Outcome.FAILED, Outcome.SKIPPED)))


class EventKind(Enum):
    """What a line meant."""

    VERSION = "version"
    PLAN = "plan"
    RESULT = "result"
    DIAGNOSTIC = "diagnostic"
    BAIL_OUT = "bail out"


@dataclass(frozen=True, slots=True)
class Event:
    """One understood line: its level (0 is the outermost) and, for a result line, the result."""

    kind: EventKind
    depth: int
    text: str
    result: TestResult | None = None


@dataclass(slots=True)
class _Level:
    """One open level: what its plan promised and what has been reported so far."""

    versioned: bool = False
    planned: int | None = None
    tests: list[TestResult] = field(default_factory=list)
    diagnostics: list[str] = field(default_factory=list)


class KtapParser:
    """Feed it lines as they come; :meth:`finish` gives the tree and the problems."""

    def __init__(self) -> None:
        self._levels = [_Level()]
        self._problems: list[str] = []

    def feed(self, line: str) -> Event:
        """Take one line (without its newline) and say what it meant. Never raises on any text."""
        line = line.rstrip("\r\n")[:MAX_LINE]
        body = line.lstrip(" ")
        indent = len(line) - len(body)
        depth = indent // 2
        # Deeper than one new level cannot be KTAP: the level between would have no version line.
        if indent % 2 == 0 and depth <= min(len(self._levels), MAX_DEPTH):
            event = self._structured(depth, body)
            if event is not None:
                return event
        return self._diagnostic(line)

    def finish(self) -> KtapRun:
        """Close the report. Call it once, after the last line."""
        while len(self._levels) > 1:
            level = self._levels.pop()
            self._check_plan(level, f"level {len(self._levels)}")
            if level.tests:
                names = ", ".join(test.name for test in level.tests)
                self._problems.append(f"subtests without the result line of their test: {names}")
                self._levels[-1].tests.extend(level.tests)
        top = self._levels[0]
        if not top.versioned:
            self._problems.append('no "KTAP version 1" line')
        if top.planned is None:
            self._problems.append("no plan line")
        self._check_plan(top, "the run")
        return KtapRun(top.tests, self._problems)

    def _structured(self, depth: int, body: str) -> Event | None:
        if match := _VERSION.match(body):
            self._open(depth).versioned = True
            return Event(EventKind.VERSION, depth, body)
        if match := _PLAN.match(body):
            return self._plan(depth, body, int(match[1]))
        if match := _RESULT.match(body):
            return self._result(depth, body, match)
        if depth == 0 and (match := _BAIL_OUT.match(body)):
            self._problems.append(f"the tests bailed out: {match[1] or 'no reason given'}")
            return Event(EventKind.BAIL_OUT, depth, body)
        return None

    def _open(self, depth: int) -> _Level:
        while len(self._levels) <= depth:
            self._levels.append(_Level())
        return self._levels[depth]

    def _plan(self, depth: int, body: str, planned: int) -> Event:
        level = self._open(depth)
        if level.planned is not None:
            self._problems.append(f"second plan at level {depth}: {body}")
        else:
            level.planned = planned
        return Event(EventKind.PLAN, depth, body)

    def _result(self, depth: int, body: str, match: re.Match[str]) -> Event:
        number, directive, reason = int(match[2]), match[4] or "", match[5] or ""
        name = (match[3] or "").strip() or f"test {number}"
        if directive not in _DIRECTIVES:
            if directive:
                name = f"{name} # {directive} {reason}".strip()
            directive = reason = ""
        outcome = Outcome.PASSED if match[1] == "ok" else Outcome.FAILED
        if directive in ("SKIP", "XFAIL", "TODO"):
            outcome = Outcome.SKIPPED
        elif directive in ("TIMEOUT", "ERROR"):
            outcome = Outcome.FAILED
        result = TestResult(number, name, outcome, directive, reason)
        self._adopt(depth, result)
        level = self._open(depth)
        result.diagnostics[:0] = level.diagnostics
        level.diagnostics = []
        if number != len(level.tests) + 1:
            self._problems.append(f"{name}: reported as number {number}, expected {len(level.tests) + 1}")
        level.tests.append(result)
        return Event(EventKind.RESULT, depth, body, result)

    def _adopt(self, depth: int, parent: TestResult) -> None:
        """Close every level below ``depth``: its tests become the children of ``parent``."""
        while len(self._levels) > depth + 1:
            level = self._levels.pop()
            self._check_plan(level, parent.name)
            parent.diagnostics.extend(level.diagnostics)
            if len(self._levels) > depth + 1:
                self._levels[-1].tests.extend(level.tests)
            else:
                parent.children = level.tests

    def _check_plan(self, level: _Level, where: str) -> None:
        if level.planned is None or level.planned == len(level.tests):
            return
        reported = {test.number for test in level.tests}
        missing = [n for n in range(1, min(level.planned, 1000) + 1) if n not in reported][:10]
        tail = f", missing {', '.join(map(str, missing))}" if missing else ""
        self._problems.append(f"{where}: planned {level.planned} tests, {len(level.tests)} reported{tail}")

    def _diagnostic(self, line: str) -> Event:
        level = self._levels[-1]
        text = line.strip()
        if text and len(level.diagnostics) < MAX_DIAGNOSTICS:
            level.diagnostics.append(text)
        return Event(EventKind.DIAGNOSTIC, len(self._levels) - 1, line)


def head(count: int) -> str:
    """The first lines of a report of so many tests."""
    return f"KTAP version 1\n1..{count}\n"


def lines(test: TestResult) -> list[str]:
    """A test without subtests: its diagnostics, and behind them its result line."""
    notes = [f"# {line}".rstrip() for text in test.diagnostics for line in text.splitlines()]
    mark = "not ok" if test.outcome is Outcome.FAILED else "ok"
    directive = f" # {test.directive} {test.reason}".rstrip() if test.directive else ""
    return [*notes, f"{mark} {test.number} {test.name}{directive}"]


def written(tests: Sequence[TestResult]) -> str:
    """A whole report of tests without subtests."""
    return head(len(tests)) + "".join(f"{line}\n" for test in tests for line in lines(test))
