"""``pviommu faults sweep``: everything that can fail where a workload passes, one after the other.

Here without a virtual machine; :mod:`.guest_sweep` has the same over the lab's guest.
"""

from __future__ import annotations

import argparse
import json
import logging
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

from ..exit_status import ExitStatus
from ..faults.catalogue import PROBES, places
from ..faults.scenario import ScenarioError, load
from ..faults.written import written
from ..host.signals import terminated_like_interrupted
from ..host_errors import write_whole
from ..lab.guest_settings import KERNELS, MODES, PROFILES
from ..reports import ktap
from ..reports.ktap import Outcome, TestResult
from .cases import LEFT_OUT, Case, Passes, cases, passes
from .examination import Examined, Kind, examined
from .minimise import NothingFailsError, minimised
from .run import known_workload
from .workloads import WORKLOADS

__all__ = ["LAB", "Report", "Result", "add_arguments", "chosen", "main", "swept", "uncovered"]

_REPORT_S = 5.0
"""Between two lines about how far it is."""
_WORKLOAD = "maps"
LAB = "lab"
"""The workload of a real guest."""
_OF_LAB = {
    "results": Path("lab-results"),
    "case_timeout": 60.0,
    "kernel": KERNELS[0],
    "mode": "lazy",
    "profile": PROFILES[0],
}
"""Options that only it has, with their defaults."""
_SHARD = re.compile(r"([0-9]{1,4})/([0-9]{1,4})")
_MOST_PASS = 1 << 32


class Result(NamedTuple):
    """One case, and what came of it."""

    case: Case
    fired: bool
    """whether the rule acted: at its pass there may be nothing that it is about"""
    failures: tuple[str, ...]
    """in words; empty if all is right"""

    def test(self, number: int) -> TestResult:
        """As the result of a test."""
        if self.failures:
            rules = [f"  {line}" for line in written(self.case.scenario).splitlines() if line]
            return TestResult(number, self.case.words, Outcome.FAILED, diagnostics=[*self.failures, *rules])
        if not self.fired:
            return TestResult(number, self.case.words, Outcome.SKIPPED, "SKIP", "nothing that it is about comes there")
        return TestResult(number, self.case.words, Outcome.PASSED)

    def as_dict(self) -> dict[str, Any]:
        """For programs."""
        return {
            "number": self.case.number,
            "rule": self.case.rule.id,
            "class": self.case.rule.nature.value,
            "words": self.case.words,
            "result": "failed" if self.failures else "passed" if self.fired else "skipped",
            "failures": self.failures,
        }


def swept(workload: str, case: Case) -> Result:
    """Run one case."""
    try:
        seen = examined(case.scenario, workload)
    except Exception as error:  # whatever it is, other cases go on
        return Result(case, True, (f"an exception in the guest's program: {type(error).__name__}: {error}",))
    fired = any(rule.fired for rule in seen.outcome.verdict.rules)
    return Result(case, fired, _told(seen))


def _told(seen: Examined) -> tuple[str, ...]:
    """A rule that did not fire is no failure of a sweep."""
    return tuple(str(failure) for failure in seen.failures if failure.kind is not Kind.RULES)


def uncovered(passed: Passes) -> list[str]:
    """Probes of which the workload passes no side."""
    return [name for name, probe in PROBES.items() if not any(place.name in passed for place in probe.places)]


def _shard(text: str) -> tuple[int, int]:
    match = _SHARD.fullmatch(text)
    part, count = (int(match[1]), int(match[2])) if match else (0, 0)
    if not 1 <= part <= count:
        raise argparse.ArgumentTypeError(f"{text!r}: must be I/N, as 2/3, with I from 1 to N and N at most 9999")
    return part, count


def _nth(text: str) -> int | str:
    if text in ("all", "last"):
        return text
    return _pass(text, "all, last, or the number of a pass, from 1 on")


def _limit(text: str) -> int:
    return _pass(text, "a number of passes, from 1 on")


def _pass(text: str, rule: str) -> int:
    if not re.fullmatch("[0-9]{1,10}", text) or not 1 <= int(text) < _MOST_PASS:
        raise argparse.ArgumentTypeError(f"{text!r}: must be {rule}")
    return int(text)


def _seconds(text: str) -> float:
    if not re.fullmatch(r"[0-9]{1,5}(\.[0-9]{1,3})?", text) or not float(text) > 0:
        raise argparse.ArgumentTypeError(f"{text!r}: must be a number of seconds above 0, below 100000")
    return float(text)


def _pattern(text: str) -> str:
    if not any(places(text)) and not any(places(f"{text}.*")):
        raise argparse.ArgumentTypeError(f"no place is {text!r}; `pviommu faults list` has them all")
    return text if any(places(text)) else f"{text}.*"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``pviommu faults sweep``."""
    parser.description = (
        "Play a workload once to count the places that it passes, then once for each place and each failure that the "
        "place knows: each of its declared errors, and what else a correct IOMMU may do there; a spurious interrupt, "
        "where that is nothing. A case fails if the guest comes to harm or does not come to its end, if the server "
        "raises an exception, if anything is left behind, or if the guest that comes next does not find a sound "
        "machine. The result is KTAP. No case has "
        + ", ".join(LEFT_OUT)
        + f". With --workload {LAB} the guest is a real one: one boot for as many cases as it survives. "
        "Exit status: 0 all cases pass; 1 one fails; 2 bad arguments or a wrong scenario; 3 no guest can be booted, "
        "or the sweep cannot go on, of which the cases so far are printed; "
        "5 there is no case, or with --minimise nothing fails."
    )
    parser.add_argument(
        "--workload",
        choices=(*WORKLOADS, LAB),
        help=f"what the guest does; default: {_WORKLOAD}, or with --minimise what the scenario says. "
        + "; ".join(f"{name}: {workload.text}" for name, workload in WORKLOADS.items())
        + f"; {LAB}: Linux in a virtual machine does DMA, unloads, loads and binds its drivers, does DMA again",
    )
    parser.add_argument(
        "--nth",
        type=_nth,
        default=1,
        metavar="PASS",
        help="the pass at which the rule acts: a number, last, or all for one after the other",
    )
    parser.add_argument(
        "--limit", type=_limit, default=64, metavar="PASSES", help="with --nth all: so many passes of a place at most"
    )
    parser.add_argument(
        "--adversarial",
        action="store_true",
        help="also what no correct IOMMU does: its guest may come to harm, the server and the next guest may not",
    )
    parser.add_argument(
        "--only",
        type=_pattern,
        metavar="PATTERN",
        help="only places or probes of this name, with wildcards; default: all",
    )
    parser.add_argument(
        "--shard", type=_shard, default=(1, 1), metavar="I/N", help="only part I of N parts; default: all of it"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of KTAP")
    parser.add_argument("--quiet", action="store_true", help="do not say on standard error how far it is")
    parser.add_argument(
        "--minimise",
        type=Path,
        metavar="FILE",
        help="sweep nothing: print the scenario FILE with the fewest of its rules that still fail; default: sweep",
    )
    parser.add_argument(
        "--output", type=Path, metavar="FILE", help="with --minimise: write it there instead; default: printed"
    )
    lab = parser.add_argument_group(f"with --workload {LAB}")
    lab.add_argument(
        "--results",
        metavar="DIR",
        type=Path,
        help="folder of the results, one in it for each boot; default: lab-results",
    )
    lab.add_argument(
        "--case-timeout",
        metavar="SECONDS",
        type=_seconds,
        help=f"hard limit of each case, after which its guest is ended; default: {_OF_LAB['case_timeout']:g}",
    )
    lab.add_argument(
        "--kernel",
        metavar="NAME|PATH",
        help=f"{', '.join(KERNELS)}, or the build tree or bzImage of your own kernel; default: {KERNELS[0]}",
    )
    lab.add_argument(
        "--mode",
        choices=[mode for mode in MODES if mode != "passthrough"],
        help="how the guest's DMA API maps; default: lazy",
    )
    lab.add_argument("--profile", choices=PROFILES, help=f"profile that the driver uses; default: {PROFILES[0]}")


@terminated_like_interrupted()
def main(args: argparse.Namespace) -> int:
    """Run ``pviommu faults sweep``; returns its exit status."""
    # Not printed: what they tell of is a failure of its case. Not silenced by level: then it would be none.
    logging.basicConfig(handlers=[logging.NullHandler()])
    if args.workload == LAB and args.minimise is not None:
        args.parser.error(f"--minimise plays without a virtual machine: --workload {LAB} does not go with it")
    for name, default in _OF_LAB.items():
        if getattr(args, name) is None:
            setattr(args, name, default)
        elif args.workload != LAB:
            args.parser.error(f"--{name.replace('_', '-')} goes with --workload {LAB}")
    if args.minimise is not None:
        return _minimise(args.minimise, args.workload, args.output)
    args.workload = args.workload or _WORKLOAD
    if args.output is not None:
        args.parser.error("--output goes with --minimise")
    if args.workload == LAB:
        from .guest_sweep import guest_swept  # and with it all of the lab

        return guest_swept(args)
    with Report(args) as report:
        for case in report.begin(passes(args.workload)):
            report.add(swept(args.workload, case))
    return report.end()


def chosen(passed: Passes, pattern: str | None) -> Passes:
    """Of the places that are passed, those of this name."""
    if pattern is None:
        return passed
    return {place.name: passed[place.name] for place in places(pattern) if place.name in passed}


class Report:
    """Chooses the cases of a sweep as its options say, and tells what comes of them. A context manager: what ends the
    sweep early has the results before it told.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        self._args = args
        self._has_begun = False
        self._passed: Passes = {}
        self._every: Sequence[Case] = ()
        self._mine: Sequence[Case] = ()
        self._results: list[Result] = []
        self._told = time.monotonic()

    def begin(self, passed: Passes) -> Sequence[Case]:
        """What the workload passes is known, and so are the cases of this shard."""
        args, (part, count) = self._args, self._args.shard
        self._has_begun, self._passed = True, passed
        without = ("disconnect",) if args.workload == LAB else ()  # QEMU does not come again, rule or not
        some, adversarial = chosen(passed, args.only), args.adversarial
        self._every = list(cases(some, args.nth, limit=args.limit, adversarial=adversarial, without=without))
        self._mine = [case for case in self._every if (case.number - 1) % count == part - 1]
        if not args.json:
            print(ktap.head(len(self._mine)), end="", flush=True)
        return self._mine

    def add(self, result: Result) -> None:
        """One of these cases is over."""
        self._results.append(result)
        if not self._args.json:
            print("\n".join(ktap.lines(result.test(len(self._results)))), flush=True)
        if time.monotonic() - self._told >= _REPORT_S:
            self.say(f"{len(self._results)} of {len(self._mine)} cases, {self._failed} failed")

    def say(self, text: str) -> None:
        """How far it is, on standard error."""
        self._told = time.monotonic()
        if not self._args.quiet:
            print(f"pviommu: {text}", file=sys.stderr)

    @property
    def _failed(self) -> int:
        return sum(bool(result.failures) for result in self._results)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *unused: object) -> None:
        if kind is not None and self._has_begun:
            self._sum_up()

    def _sum_up(self) -> None:
        args, others = self._args, uncovered(self._passed)
        if args.json:
            print(json.dumps(_document(args, len(self._every), self._results, others), indent=2))
        else:
            print(f"# {_covered(self._passed, args.workload)}")
            print(f"# not covered: {', '.join(others) or 'none'}")

    def end(self) -> int:
        """All of them are over: the exit status."""
        self._sum_up()
        if not self._every:
            workload = self._args.workload
            print(f"pviommu: workload {workload} passes no such place so often: there is no case", file=sys.stderr)
            return ExitStatus.UNEXPECTED
        return ExitStatus.FAILED if self._failed else ExitStatus.PASSED


def _covered(passed: Passes, workload: str) -> str:
    return (
        f"workload {workload} passes {len(passed)} of {len(list(places('*')))} places, "
        f"{len(PROBES) - len(uncovered(passed))} of {len(PROBES)} probes, {sum(passed.values())} times in all"
    )


def _document(args: argparse.Namespace, count: int, results: Sequence[Result], others: list[str]) -> dict[str, Any]:
    kinds = [result.as_dict() for result in results]
    return {
        "workload": args.workload,
        "shard": "/".join(map(str, args.shard)),
        "cases": count,
        "counts": {name: sum(kind["result"] == name for kind in kinds) for name in ("passed", "failed", "skipped")},
        "results": kinds,
        "not_covered": others,
    }


def _minimise(path: Path, workload: str | None, output: Path | None) -> int:
    try:
        scenario = load(path)
        smaller = minimised(scenario, workload or known_workload(path, scenario))
    except ScenarioError as error:
        print(f"pviommu: {error}", file=sys.stderr)
        return ExitStatus.USAGE
    except NothingFailsError as error:
        print(f"pviommu: {path}: {error}", file=sys.stderr)
        return ExitStatus.UNEXPECTED
    print(f"pviommu: {len(smaller.rule)} of {len(scenario.rule)} rules still fail", file=sys.stderr)
    if output is None:
        print(written(smaller), end="")
    else:
        write_whole(output, written(smaller))
    return ExitStatus.PASSED
