"""``pviommu faults run``: a scenario, and a guest that is played for it."""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vfio_user import ProtocolError

from ..exit_status import ExitStatus
from ..faults.scenario import Scenario, ScenarioError, load
from ..faults.verdict import Verdict
from ..host.signals import terminated_like_interrupted
from ..host_errors import write_whole
from ..interfaces.pv.ring_core import DeviceCore
from ..native.build import LibraryError
from ..process.event_file import EventFile
from ..reports import junit, ktap
from ..reports.ktap import KtapRun, TestResult
from ..reports.ktap import Outcome as TestOutcome
from .guest import guest_in_words
from .results import rule_results
from .stage import Crashed, ServerError, Stage, StuckError
from .workloads import WORKLOADS

__all__ = ["Around", "Outcome", "add_arguments", "known_workload", "main", "played"]


_PATIENCE_S = 5.0
"""How long who reads the events may let the run wait."""


@dataclass(frozen=True)
class Outcome:
    """What came of a run."""

    verdict: Verdict
    end: str
    """``done``, or why the guest did not come to its end"""
    harm: tuple[str, ...]
    """what the guest found that no correct IOMMU lets happen"""
    answers: dict[str, int]
    """what it was answered, how often"""
    failed: bool = False
    """whether :attr:`end` is an exception in the server"""

    @property
    def is_adversarial(self) -> bool:
        """See :attr:`.Verdict.is_adversarial`."""
        return self.verdict.is_adversarial

    @property
    def is_excused(self) -> bool:
        """Whether harm to the guest fails nothing: an adversarial rule may do that, and it may not end the server."""
        return self.is_adversarial and not self.failed

    @property
    def status(self) -> ExitStatus:
        """Of the command."""
        if not self.verdict.ok:
            return ExitStatus.UNEXPECTED
        return ExitStatus.FAILED if self.came_to_harm and not self.is_excused else ExitStatus.PASSED

    def lines(self) -> list[str]:
        """For people."""
        lines = guest_in_words(self.answers, self.harm)
        if self.end != "done":
            lines.append(f"  it did not come to its end: {self.end}")
        if self.came_to_harm and self.is_excused:
            lines.append("  which adversarial rules may do")
        return [*lines, *self.verdict.lines()]

    @property
    def came_to_harm(self) -> bool:
        """Whether the guest saw what no correct IOMMU lets happen, or did not come to its end."""
        return bool(self.harm) or self.end != "done"

    def tests(self, workload: str) -> KtapRun:
        """As results of tests: the guest's first, then one for each rule."""
        guest = TestResult(1, f"the guest of {workload}", TestOutcome.PASSED, diagnostics=list(self.harm))
        if self.end != "done":
            guest.diagnostics.append(f"it did not come to its end: {self.end}")
        if self.came_to_harm and self.is_excused:
            guest.outcome, guest.directive, guest.reason = TestOutcome.SKIPPED, "XFAIL", "adversarial rules acted"
        elif self.came_to_harm:
            guest.outcome = TestOutcome.FAILED
        rules = [replace(result, number=result.number + 1) for result in rule_results(self.verdict)]
        return KtapRun([guest, *rules], [])

    def as_dict(self) -> dict[str, Any]:
        """For programs."""
        return {
            "status": int(self.status),
            "end": self.end,
            "harm": self.harm,
            "answers": dict(sorted(self.answers.items())),
            "verdict": self.verdict.as_dict(),
        }


Around = Callable[[Stage], Callable[["Outcome"], None]]
"""Called before a guest comes; what it returns is called with what came of it, once it is gone."""


def played(
    scenario: Scenario,
    workload: str,
    sink: Callable[[str], None] | None = None,
    core: DeviceCore | None = None,
    around: Around | None = None,
) -> Outcome:
    """Play a workload. ``sink`` gets the lines of the log of events."""
    end, guest, failed = "done", None, False
    with Stage(scenario, sink, core, topology=WORKLOADS[workload].topology()) as stage:
        after = around(stage) if around else None
        steps = WORKLOADS[workload].play(stage)
        try:
            guest = next(steps)
            next(steps, None)
        except Crashed:
            end = "the server is gone"
        except StuckError as stuck:
            end = str(stuck)
        except ServerError as error:
            end, failed = str(error), True
        except (OSError, ProtocolError) as error:
            end = f"{type(error).__name__}: {error}"
        finally:
            with contextlib.suppress(Crashed, ServerError, StuckError, OSError):
                steps.close()  # type: ignore[attr-defined]
        harm, answers = (tuple(guest.harm), dict(guest.answers)) if guest else ((), {})
        outcome = Outcome(stage.faults.verdict(), end, harm, answers, failed)
        if after:
            after(outcome)
    return outcome


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``pviommu faults run``."""
    parser.description = (
        "Play a guest on a machine in this process, in virtual time, while the rules of a scenario go wrong. "
        "Exit status: 0 all is as expected; 1 the guest came to harm though all rules are conforming; 2 bad arguments "
        "or a wrong scenario; 3 there is no native core, or a file cannot be written; 5 a rule did not do what was "
        "expected of it."
    )
    parser.add_argument(
        "scenario",
        metavar="FILE",
        type=Path,
        help="TOML, or JSON if its name ends so, or a name of `pviommu faults scenarios`",
    )
    parser.add_argument(
        "--workload",
        choices=WORKLOADS,
        help="what the guest does; default: what the scenario says. "
        + "; ".join(f"{name}: {workload.text}" for name, workload in WORKLOADS.items()),
    )
    parser.add_argument(
        "--events", type=Path, metavar="FILE", help="write the log of events, JSON lines; default: none"
    )
    parser.add_argument("--core", choices=("python", "native"), default="python", help="what the device is made of")
    parser.add_argument("--json", action="store_true", help="print what came of it as JSON")
    parser.add_argument(
        "--ktap",
        metavar="FILE",
        help="write a KTAP report, a test for the guest and one for each rule; -: to standard output, instead of the "
        "text. Default: none",
    )
    parser.add_argument("--junit", type=Path, metavar="FILE", help="write the same as JUnit XML; default: none")
    parser.add_argument("--verbose", action="store_true", help="print the device's log, too")


@terminated_like_interrupted()
def main(args: argparse.Namespace) -> int:
    """Run ``pviommu faults run``; returns its exit status."""
    if args.json and args.ktap == "-":
        print("pviommu: --json and --ktap -: only one of them has standard output", file=sys.stderr)
        return ExitStatus.USAGE
    try:
        scenario = load(args.scenario)
        workload = args.workload or known_workload(args.scenario, scenario)
        core = _core(args.core)
    except (ScenarioError, LibraryError) as error:
        print(f"pviommu: {error}", file=sys.stderr)
        return ExitStatus.USAGE if isinstance(error, ScenarioError) else ExitStatus.ENVIRONMENT
    logging.basicConfig(level=logging.INFO if args.verbose else logging.CRITICAL, format="%(message)s")
    began = time.monotonic()
    try:
        with EventFile(args.events, _PATIENCE_S) if args.events else contextlib.nullcontext() as file:
            outcome = played(scenario, workload, file.write if file else None, core)
    except OSError as error:
        if not args.events or error.filename != str(args.events):
            raise
        print(f"pviommu: --events {args.events}: {error.strerror}", file=sys.stderr)
        return ExitStatus.ENVIRONMENT
    if file and file.lost:
        print(f"pviommu: --events {args.events}: {file.lost} events were lost", file=sys.stderr)
    tests = outcome.tests(workload)
    if args.junit:
        name, seconds = f"pviommu faults {args.scenario.stem}", time.monotonic() - began
        write_whole(args.junit, junit.written(name, tests, prefix=args.scenario.stem, seconds=seconds))
    report = ktap.written(tests.tests)
    if args.ktap and args.ktap != "-":
        write_whole(Path(args.ktap), report)
    if args.ktap == "-":
        sys.stdout.write(report)
    else:
        print(json.dumps(outcome.as_dict(), indent=2) if args.json else "\n".join(outcome.lines()))
    return outcome.status


def known_workload(path: Path, scenario: Scenario) -> str:
    """The workload that a file names. Raises :class:`.ScenarioError` if there is none of this name."""
    if scenario.workload not in WORKLOADS:
        known = ", ".join(WORKLOADS)
        raise ScenarioError(f"scenario {path}: workload = {scenario.workload!r}: there are {known}")
    return scenario.workload


def _core(name: str) -> DeviceCore | None:
    if name == "python":
        return None
    from ..native.core import native_core

    return native_core()
