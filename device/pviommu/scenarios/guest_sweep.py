"""Sweeps over the lab's guest: rules come and go by the control socket of the server that it runs on.

The guest (``guest-tools/tests/sweep.sh``) asks for one case after the other and does the same for each. It is booted
once; a case that it does not pass ends it, so that the next one begins in a sound guest.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from ..control.client import Client, ConnectionLostError
from ..control.description import CommandError
from ..faults.actions import Do
from ..faults.catalogue import places
from ..faults.points.reports import WorkError
from ..faults.scenario import Expect, Rule, Scenario
from ..faults.verdict import Verdict
from ..host_errors import is_lack_of_room
from ..lab import report as lab_report
from ..lab.boot import Job, judged_run
from ..lab.guest_settings import GuestSettings, kernel_name
from ..lab.listener import Listener
from ..lab.problems import EnvironmentProblem, RunError, UsageError
from ..lab.report import RunRecord
from ..lab.run import Provide, Wanted, guarded, prepare, set_up
from ..lab.scenario import WITH_A_CONNECTION, Played
from ..lab.server import PROGRAM, capabilities
from ..lab.vm import Alarm, GuestTimeoutError, parse_memory
from ..reports.ktap import TestResult
from ..topology import find
from .cases import Case, Passes, counted, counting
from .sweep import Report, Result

__all__ = ["GuestSweep", "guest_swept"]

_CONTROL_S = 10.0
_BOOT_S = 300.0
"""From the start of a guest to its first case; lockdep and KASAN under TCG need most of it."""
_MEMORY = "2G"
_CONSOLE_LINES = 12
_NOT_COUNTED = (*WITH_A_CONNECTION, "smmu.", "iommufd.")
"""Places that are watched from the start only, and those of what these guests do not have: an SMMU, /dev/iommu."""
_OF_MAPS = ("op.map_pages.", "table.map.")
_NO_PAGES_IN_ADVANCE = Rule(
    id="no-pages-in-advance", on="op.reserve.pre", do=Do(fail="ENOMEM"), expect=Expect(fired="0..")
)
"""Linux's driver reserves page tables, and no map for which there are some may fail for want of memory."""


class _Limit:
    """Rings what a guest asked for, and ends a guest that takes too long."""

    def __init__(self, requests: Alarm, sweep: GuestSweep) -> None:
        self._requests = requests
        self._sweep = sweep

    @property
    def due(self) -> float | None:
        asked = self._requests.due
        return self._sweep.deadline if asked is None else min(asked, self._sweep.deadline)

    def ring(self) -> None:
        """Raises GuestTimeoutError."""
        self._sweep.check_time()
        self._requests.ring()


class GuestSweep:
    """All boots of one sweep; what plays rules in each (:class:`pviommu.lab.boot.Rules`)."""

    at_boot = False

    def __init__(
        self,
        begin: Callable[[Passes], Sequence[Case]],
        told: Callable[[Result], None],
        limit_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``begin`` chooses cases once it is known what the guest passes, ``told`` gets each result; ``limit_s`` is the
        time of a case.
        """
        self._begin = begin
        self._told = told
        self._limit_s = limit_s
        self._clock = clock
        self._counting = counting([place.name for place in places("*") if not place.name.startswith(_NOT_COUNTED)])
        self._passed: dict[str, int] = {}
        self._left: deque[Case] | None = None
        self._current: Case | Scenario | None = None
        self._verdict: Verdict | None = None
        self._heard: list[TestResult] = []
        self._folder = Path()
        self._log_place = 0
        self._begun = 0
        self._is_unsound = False
        self._broken = ""
        self._unreached = ""
        """why the server could not be asked for the rules of the case"""
        self._allowed = ""
        self.deadline = 0.0
        """when the guest that runs now is ended, by the clock"""

    @property
    def is_over(self) -> bool:
        """Whether there is nothing left to try."""
        return self._left is not None and not self._left

    # -- boots -------------------------------------------------------------------------------------------------------

    def boot(self, folder: Path, run: Callable[[Listener], RunRecord]) -> None:
        """``run`` boots a guest whose files are in ``folder``, until it has no more cases or does not survive one.
        Raises RunError if it comes to none, fails without any rule, or the server refuses the rules of a case.
        """
        listener = Listener(io.StringIO(), verbose=False)
        listener.on_result = self._hear
        self._folder, self._log_place, self._is_unsound, self._heard = folder, 0, False, []
        self._allow("come to its first case", _BOOT_S)
        begun = self._begun
        record = run(listener)
        if self._current is not None:
            self._ended([self._why(record), *self._how_far()])
        elif self._begun == begun and not self._broken:
            self._broken = f"the guest came to no case: {'; '.join(record.problems)}"
        if self._broken:
            raise RunError(f"{self._broken}; see {folder}")

    def _allow(self, what: str, seconds: float) -> None:
        self._allowed = f"the guest did not {what} within {seconds:g} s"
        self.deadline = self._clock() + seconds

    def check_time(self) -> None:
        """Raises GuestTimeoutError once it is too late."""
        if self._clock() >= self.deadline:
            raise GuestTimeoutError(self._allowed)

    def _why(self, record: RunRecord) -> str:
        what = "" if record.verdict == "timeout" or self._unreached else "the guest is gone: "
        return f"{what}{'; '.join(filter(None, (self._unreached, *record.problems)))}"

    def _how_far(self) -> Iterator[str]:
        yield from (f"it came as far as: {result.name}" for result in self._heard[-1:])
        console = self._folder / "console.log"
        lines = console.read_text(errors="replace").splitlines() if console.is_file() else []
        yield from (f"console: {line}" for line in lines[-_CONSOLE_LINES:])

    # -- rules -------------------------------------------------------------------------------------------------------

    def requests(self, control: Path) -> Mapping[str, Callable[[], str | None]]:
        """What the guest may ask for."""
        return {"case": lambda: self._next(control), "rules-unload": lambda: self._unload(control)}

    def alarm(self, requests: Alarm) -> Alarm:
        return _Limit(requests, self)

    def load(self, control: Path) -> str | None:
        return None

    def expectations(self) -> bytes:
        return b""

    def finish(self, control: Path) -> None:
        """The guest is gone; what its rule did is still to be known."""
        if self._current is not None and self._verdict is None:
            self._unload(control)

    def played(self, *, wanted: bool) -> Played | None:
        return None

    def _next(self, control: Path) -> str | None:
        """Load the rules of the next case; why there is none."""
        if self._is_unsound:
            return "another guest goes on"
        following = self._following()
        if following is None:
            return "there are no more cases"
        scenario = following.scenario if isinstance(following, Case) else following
        self._unreached = ""
        try:
            self._ask(control, "rules-load", {"scenario": msgspec.to_builtins(scenario)})
        except CommandError as refusal:
            what = f"case {following.words}" if isinstance(following, Case) else "the scenario that counts passes"
            self._broken = f"{what} cannot be loaded: {refusal}"
            return str(refusal)
        except ConnectionLostError as error:
            self._unreached = str(error)
        self._current, self._verdict, self._heard = following, None, []
        self._begun += 1
        self._allow("come to the end of a case", self._limit_s)
        return self._unreached or None

    def _following(self) -> Case | Scenario | None:
        if self._left is None:
            if (scenario := next(self._counting, None)) is not None:
                return scenario
            self._left = deque(map(_made_possible, self._begin(self._passed)))
        return self._left.popleft() if self._left else None

    def _unload(self, control: Path) -> str | None:
        try:
            self._verdict = msgspec.convert(self._ask(control, "rules-unload", {}), Verdict)
        except (ConnectionLostError, CommandError) as error:
            return str(error)
        return None

    @staticmethod
    def _ask(control: Path, command: str, arguments: Mapping[str, Any]) -> Any:
        with Client(control, _CONTROL_S) as client:
            return client.call(command, arguments)

    # -- results -----------------------------------------------------------------------------------------------------

    def _hear(self, depth: int, result: TestResult) -> None:
        if depth:
            self._heard.append(result)
        elif self._current is not None and result.name.startswith("case "):
            self._ended(list(_harm(result)))

    def _ended(self, failures: list[str]) -> None:
        """The case is over."""
        case, self._current = self._current, None
        self._allow("go on after a case", self._limit_s)
        failures += self._exceptions()
        if self._verdict is None:
            failures.append("nobody knows what its rule did: the server did not answer")
        self._is_unsound = bool(failures)
        if not isinstance(case, Case):
            if self._verdict is None or failures:
                self._broken = f"the guest fails though no rule does anything: {'; '.join(failures)}"
            else:
                self._passed |= counted(self._verdict)
            return
        if failures:
            failures.append(f"its guest: {self._folder}")
        rules = self._verdict.rules if self._verdict else ()
        self._told(Result(case, any(rule.fired for rule in rules if rule.id == case.rule.id), tuple(failures)))

    def _exceptions(self) -> list[str]:
        """What the server has logged since the case before, except what a rule has raised."""
        log = self._folder / "server.jsonl"
        if not log.is_file():
            return []
        with log.open("rb") as file:
            file.seek(self._log_place)
            lines = file.read().splitlines(keepends=True)
        whole = [line for line in lines if line.endswith(b"\n")]
        self._log_place += sum(map(len, whole))
        return [text for text in map(_exception, whole) if text]


def _made_possible(case: Case) -> Case:
    """The case with what its rule needs to meet anything in Linux: most of its maps are of a single page."""
    rule, do = case.rule, case.rule.do
    if do is None or not rule.on.startswith(_OF_MAPS):
        return case
    if do.partial is not None:
        rule = msgspec.structs.replace(rule, where={"nr": "2.."})
    return case._replace(rule=rule, before=(_NO_PAGES_IN_ADVANCE,) if do.lacks_memory else ())


def _harm(result: TestResult) -> Iterator[str]:
    """Why a case has failed, of its report."""
    for path, leaf in result.leaves():
        if leaf.failed:
            notes = "; ".join(note.removeprefix("# ") for note in leaf.diagnostics)
            yield ": ".join(part for part in (" / ".join(path[1:]), notes) if part)


def _exception(line: bytes) -> str:
    try:
        record = json.loads(line)
    except ValueError:
        return ""
    if not isinstance(record, dict) or "traceback" not in record:
        return ""
    raised = str(record["traceback"]).rstrip().rpartition("\n")[2]
    own = f"{WorkError.__module__}.{WorkError.__qualname__}"
    return "" if raised.startswith(own) else f"an exception in the server: {record.get('message')}: {raised}"


def guest_swept(args: argparse.Namespace, *, program: Sequence[str] = PROGRAM, provide: Provide = prepare) -> int:
    """Sweep the lab's guest as the options of ``pviommu faults sweep`` say; the exit status."""
    return guarded("pviommu faults sweep", lambda: _guest_swept(args, program, provide))


def _guest_swept(args: argparse.Namespace, program: Sequence[str], provide: Provide) -> int:
    progress = io.StringIO() if args.quiet else sys.stderr
    setup = set_up(progress, provide, Wanted(kernel=args.kernel))
    topology = find(Path("lab"))
    offered = capabilities(topology, program)
    settings = GuestSettings(args.profile, args.mode, kernel=kernel_name(args.kernel), sweep=True, tables="off")
    boots = 0
    with Report(args) as report:
        sweep = GuestSweep(report.begin, report.add, args.case_timeout)
        while not sweep.is_over:
            boots += 1
            report.say(f"boot {boots} of a guest")
            folder = _new_folder(args.results)
            job = Job(
                *(setup, topology, offered, settings, parse_memory(_MEMORY), math.inf, folder, program),
                play=sweep,
            )

            def run(listener: Listener, job: Job = job) -> RunRecord:
                record = judged_run(job, listener, lambda record: None)
                lab_report.write_results(job.folder, record)
                return record

            sweep.boot(folder, run)
    return report.end()


def _new_folder(base: Path) -> Path:
    try:
        return lab_report.new_results_folder(base, datetime.now(UTC))
    except OSError as problem:
        if is_lack_of_room(problem):
            raise EnvironmentProblem(f"--results {base}: {problem.strerror}", "free some space") from problem
        raise UsageError(f"--results {base}: {problem.strerror}") from problem
