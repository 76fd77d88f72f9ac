"""``pviommu vfio run --sweep``: a program once for each place that its requests pass, which fails in that run.

As fail-nth of Linux' fault injection is used: the first place, then the second one, until nothing fails any more. What
the program makes of it is its own affair; judged is the model: the request has changed nothing, nothing is left behind
at the end, and no exception was raised.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from typing import Any

from ..exit_status import ExitStatus
from ..faults.catalogue import PROBES
from ..interfaces.iommufd.holdings import changes
from ..interfaces.iommufd.places import KEPT_IN_LINUX, Places, refusal
from ..reports import ktap
from ..reports.ktap import Outcome, TestResult
from .fail_nth import FailNth

__all__ = ["RUN_S", "Judge", "swept"]

RUN_S = 60
"""After which a program is killed that does not end by itself once a request of it has failed."""
_MOST = 1000
"""Runs at most: as many as the kernel's own test of this kind allows itself."""


class Judge(FailNth):
    """Lets the n-th place of all processes together fail, once, and looks what that has changed."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.failed = ""
        """What failed, in words; empty: nothing yet"""
        self.harm: list[str] = []
        self._number = number
        self._mark = number
        self._place = ""
        self._doing = ""
        self._look: Callable[[], dict[str, Any]] = dict
        self._first: dict[str, Any] = {}
        self._state: dict[str, Any] = {}

    def watch(self, places: Places, look: Callable[[], dict[str, Any]]) -> None:
        """See the base class."""
        super().watch(places, look)
        self._look, self._first = look, look()

    def begin(self, process: int, doing: str) -> None:
        """See the base class."""
        self.process, self._doing, self._mark, self._place = process, doing, self._number, ""
        if not self.failed:
            self._state = self._look()

    def rewind(self) -> None:
        """See the base class."""
        self._number = self._mark

    def end(self) -> None:
        """See the base class."""
        self.process = 0
        if self._place:
            before, after = self._state, self._look()
            if self._place in KEPT_IN_LINUX:
                before = {key: value for key, value in after.items() if key in before}
            self.harm += [f"the request has changed {each}" for each in changes(before, after)]

    def over(self) -> None:
        """See the base class."""
        self.harm += [f"left behind: {each}" for each in changes(self._first, self._look())]

    def _meet(self, place: str) -> None:
        if not self.process or self.failed:
            return
        self._number -= 1
        if not self._number:
            error = PROBES[f"iommufd.{place}"].errors[0]
            self.failed, self._place = f"{place} fails with {error} in {self._doing}", place
            raise refusal(place, error)


class _Exceptions(logging.Handler):
    """Notes what the server raises and survives."""

    def __init__(self, harm: list[str]) -> None:
        super().__init__(logging.ERROR)
        self._harm = harm

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        self._harm.append(f"{record.getMessage()}: {type(error).__name__}: {error}")


def swept(run: Callable[[Judge], int]) -> int:
    """Run a program until nothing fails any more, and print what came of each run, as KTAP, on standard error, since
    standard output is the program's. ``run`` returns its exit status, or minus the number of the signal that ended it.
    Returns the exit status of the command. Raises as ``run`` does.
    """
    results: list[TestResult] = []
    for number in range(1, _MOST + 1):
        judge = Judge(number)
        handler = _Exceptions(judge.harm)
        logging.getLogger().addHandler(handler)
        try:
            status = run(judge)
        finally:
            logging.getLogger().removeHandler(handler)
        if not judge.failed:
            break
        outcome = Outcome.FAILED if judge.harm else Outcome.PASSED
        results.append(TestResult(number, f"{judge.failed}: exit status {status}", outcome, diagnostics=judge.harm))
    else:
        print(f"pviommu: --sweep: the program passes more than {_MOST} places: these were the first", file=sys.stderr)
    print(ktap.written(results), end="", file=sys.stderr)
    if any(result.outcome is Outcome.FAILED for result in results) or judge.harm:
        print(*judge.harm, sep="\n", end="\n" if judge.harm else "", file=sys.stderr)
        return ExitStatus.FAILED
    if judge.failed or status:
        if not judge.failed:
            print(f"pviommu: --sweep: exit status {status} where nothing fails", file=sys.stderr)
        return ExitStatus.UNEXPECTED
    return ExitStatus.PASSED
