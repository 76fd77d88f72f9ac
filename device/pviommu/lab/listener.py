"""Takes the report of a guest line by line: parses it and shows results as they come."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TextIO

from ..reports.ktap import Event, EventKind, KtapParser, Outcome, TestResult
from . import report
from .faults import Spans

__all__ = ["Listener"]


class Listener:
    """One guest's report; that of a second kernel, started by kexec, goes on with the same numbers and one plan."""

    def __init__(self, stream: TextIO, *, verbose: bool, now: Callable[[], float] = time.monotonic) -> None:
        self.parser = KtapParser()
        self.exit_status: int | None = None
        self.program_status: int | None = None
        """what the user's program ended with"""
        self.spans = Spans()
        self.on_result: Callable[[int, TestResult], None] = lambda depth, result: None
        """called with each result as it comes, and its level: 0 is the outermost"""
        self.verbose = verbose
        self._stream = stream
        self._now = now
        self._last = now()

    def line(self, line: str) -> None:
        """Take one line of the report."""
        status = report.exit_line(line)
        if status is not None:
            self.exit_status = status
            return
        status = report.program_line(line)
        if status is not None:
            self.program_status = status
            return
        event = self.parser.feed(line)
        if event.result is not None:
            now = self._now()
            event.result.seconds, self._last = now - self._last, now
            self.on_result(event.depth, event.result)
        self._show(event)

    def _show(self, event: Event) -> None:
        margin = "  " * event.depth
        if event.kind is EventKind.RESULT and event.result is not None:
            result = event.result
            if event.depth == 0:
                self.spans.ended(result.name, failed=result.failed)
            word = {Outcome.PASSED: "ok  ", Outcome.FAILED: "FAIL", Outcome.SKIPPED: "skip"}[result.outcome]
            tail = f" ({result.reason})" if result.reason else ""
            print(f"{margin}{word} {result.name}{tail}", file=self._stream, flush=True)
            if result.outcome is Outcome.FAILED and not self.verbose:
                for note in result.diagnostics:
                    print(f"{margin}     {note}", file=self._stream, flush=True)
        elif event.kind is EventKind.BAIL_OUT or (self.verbose and event.kind is EventKind.DIAGNOSTIC):
            print(f"{margin}{event.text}", file=self._stream, flush=True)
