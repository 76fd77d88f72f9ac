"""``pviommu faults run``: a scenario, and a guest that is played for it."""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vfio_user import ProtocolError

from ..exit_status import ExitStatus
from ..faults.catalogue import Nature
from ..faults.scenario import Scenario, ScenarioError, load
from ..faults.verdict import Verdict
from ..interfaces.pv.ring_core import DeviceCore
from ..native.build import LibraryError
from .stage import Crashed, ServerError, Stage, StuckError
from .workloads import WORKLOADS

__all__ = ["Around", "Outcome", "add_arguments", "main", "played"]


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
        """Whether a rule has done what no correct IOMMU does, so that harm is no surprise."""
        return any(rule.nature == Nature.ADVERSARIAL.value and rule.fired for rule in self.verdict.rules)

    @property
    def status(self) -> ExitStatus:
        """Of the command."""
        if not self.verdict.ok:
            return ExitStatus.UNEXPECTED
        came_to_harm = bool(self.harm) or self.end != "done"
        is_excused = self.is_adversarial and not self.failed
        return ExitStatus.FAILED if came_to_harm and not is_excused else ExitStatus.PASSED

    def lines(self) -> list[str]:
        """For people."""
        answers = ", ".join(f"{count} {answer}" for answer, count in sorted(self.answers.items()))
        lines = [f"guest: {answers or 'nothing answered'}"]
        lines += [f"  harm: {text}" for text in self.harm]
        if self.end != "done":
            lines.append(f"  it did not come to its end: {self.end}")
        if self.is_adversarial and not self.failed and (self.harm or self.end != "done"):
            lines.append("  which adversarial rules may do")
        return [*lines, *self.verdict.lines()]

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
    with Stage(scenario, sink, core) as stage:
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
        "or a wrong scenario; 3 there is no native core; 5 a rule did not do what was expected of it."
    )
    parser.add_argument("scenario", metavar="FILE", type=Path, help="TOML, or JSON if its name ends so")
    parser.add_argument(
        "--workload",
        choices=WORKLOADS,
        default="maps",
        help="; ".join(f"{name}: {workload.text}" for name, workload in WORKLOADS.items()),
    )
    parser.add_argument(
        "--events", type=Path, metavar="FILE", help="write the log of events, JSON lines; default: none"
    )
    parser.add_argument("--core", choices=("python", "native"), default="python", help="what the device is made of")
    parser.add_argument("--json", action="store_true", help="print what came of it as JSON")
    parser.add_argument("--verbose", action="store_true", help="print the device's log, too")


def main(args: argparse.Namespace) -> int:
    """Run ``pviommu faults run``; returns its exit status."""
    try:
        scenario = load(args.scenario)
        core = _core(args.core)
    except (ScenarioError, LibraryError) as error:
        print(f"pviommu: {error}", file=sys.stderr)
        return ExitStatus.USAGE if isinstance(error, ScenarioError) else ExitStatus.ENVIRONMENT
    logging.basicConfig(level=logging.INFO if args.verbose else logging.CRITICAL, format="%(message)s")
    with contextlib.ExitStack() as stack:
        sink = None
        if args.events:
            file = stack.enter_context(args.events.open("w", encoding="utf-8"))
            sink = lambda line: print(line, file=file)  # noqa: E731
        outcome = played(scenario, args.workload, sink, core)
    print(json.dumps(outcome.as_dict(), indent=2) if args.json else "\n".join(outcome.lines()))
    return outcome.status


def _core(name: str) -> DeviceCore | None:
    if name == "python":
        return None
    from ..native.core import native_core

    return native_core()
