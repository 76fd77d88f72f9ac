"""``pviommu differential``."""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from enum import Enum
from random import Random

from ..exit_status import ExitStatus
from ..lab.problems import EnvironmentProblem
from ..lab.progress import Progress
from ..lab.provision import STEPS, Qemu, arm_qemu
from .comparison import compare
from .known import DIFFERENCES, FIXES, Judgement, judge
from .qtest import QtestError
from .sides import RAM, Ours, Theirs
from .stimuli import Reset, Stimulus, Store, draw

__all__ = ["Run", "add_arguments", "main"]

BATCH = 250
"""Stimuli after which both sides are made anew."""
FIRMWARE_SIZE = 2 << 20
"""At the beginning of RAM, where QEMU puts the device tree."""
MOST_SHOWN = 5
"""Unexplained differences after which a run ends."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``pviommu differential``."""
    parser.description = (
        "Do the same random things to the virtual SMMUv3 and to QEMU's, register accesses, commands, DMA by random "
        "structures and tables, and compare all that can be seen. Needs no guest. Exit status: 0 there was no "
        "difference but those that are known (docs/smmuv3.md), 1 there was another one, 2 bad arguments, 3 QEMU cannot "
        "be had here."
    )
    parser.add_argument("--stimuli", type=int, default=20_000, metavar="N", help="how many")
    parser.add_argument("--seed", type=int, default=1, metavar="S", help="seed of the random choices")
    parser.add_argument("--only", type=int, metavar="K", help="only the Kth stimulus of the run; default: all")


def main(args: argparse.Namespace) -> int:
    """Run ``pviommu differential``; returns its exit status."""
    if args.stimuli < 1:
        return _usage(f"--stimuli {args.stimuli}: must be at least 1")
    if args.only is not None and not 0 <= args.only < args.stimuli:
        return _usage(f"--only {args.only}: must be 0..{args.stimuli - 1} for {args.stimuli} stimuli")
    try:
        qemu = arm_qemu(Progress(sys.stderr, 2 * STEPS))
        numbers = range(args.stimuli) if args.only is None else range(args.only, args.only + 1)
        return _check(qemu, args.seed, numbers)
    except (EnvironmentProblem, QtestError) as problem:
        print(f"pviommu: {problem}", file=sys.stderr)
        return ExitStatus.ENVIRONMENT


def _usage(text: str) -> int:
    print(f"pviommu: {text}", file=sys.stderr)
    return ExitStatus.USAGE


@dataclass
class Run:
    """Stimuli that were tried, and what came of them."""

    qemu: Qemu
    seed: int
    tried: Counter[str] = field(default_factory=Counter)
    """stimuli, by kind"""
    met: Counter[str] = field(default_factory=Counter)
    """stimuli that met a known difference, by its row"""

    def check(self, numbers: range, report: Callable[[int, Stimulus, Judgement], bool]) -> None:
        """Try the stimuli of these numbers. ``report`` is told of what is not explained, while both sides are there;
        whether to go on. Raises :class:`.qtest.QtestError`.
        """
        for first in range(numbers.start - numbers.start % BATCH, numbers.stop, BATCH):
            two_levels = Random(f"{self.seed}/{first}").random() < 0.5
            left = iter(range(max(first, numbers.start), min(first + BATCH, numbers.stop)))
            while (number := next(left, None)) is not None:
                with Pair(self.qemu) as pair:
                    if not self._check(pair, two_levels, number, left, report):
                        return

    def _check(
        self,
        pair: Pair,
        two_levels: bool,
        number: int | None,
        left: Iterator[int],
        report: Callable[[int, Stimulus, Judgement], bool],
    ) -> bool:
        """As far as both sides are good for: QEMU's never goes back to a linear stream table. Whether to go on."""
        while number is not None:
            stimulus = draw(f"{self.seed}/{number}", two_levels)
            judgement = pair.judge(stimulus)
            self.tried[stimulus.kind] += 1
            self.met.update(judgement.met)
            if judgement.unexplained and not report(number, pair.shortened(stimulus), judgement):
                return False
            if stimulus.sets_format:
                break
            number = next(left, None)
        return True


class Pair:
    """Both sides. A context manager."""

    def __init__(self, qemu: Qemu) -> None:
        with ExitStack() as stack:
            self._ours = Ours()
            stack.callback(self._ours.close)
            self._theirs = Theirs(qemu)
            stack.callback(self._theirs.close)
            self._ours.store(RAM, self._theirs.load(RAM, FIRMWARE_SIZE))
            self._stack = stack.pop_all()

    def __enter__(self) -> Pair:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def judge(self, stimulus: Stimulus) -> Judgement:
        """Try a stimulus."""
        return judge(stimulus, compare(stimulus, self._ours, self._theirs))

    def shortened(self, stimulus: Stimulus) -> Stimulus:
        """What is left of a stimulus without the steps that a difference does not need."""
        steps = list(stimulus.steps)
        for place in reversed(range(len(steps))):
            if isinstance(steps[place], Reset | Store):  # without a part of a structure it would be another stimulus
                continue
            fewer = replace(stimulus, steps=(*steps[:place], *steps[place + 1 :]))
            if self.judge(fewer).unexplained:
                del steps[place]
        return replace(stimulus, steps=tuple(steps))


def _check(qemu: Qemu, seed: int, numbers: range) -> int:
    run, shown, began = Run(qemu, seed), 0, time.monotonic()

    def report(number: int, stimulus: Stimulus, judgement: Judgement) -> bool:
        nonlocal shown
        shown += 1
        _show(seed, number, stimulus, judgement)
        return shown < MOST_SHOWN

    interrupted: KeyboardInterrupt | None = None
    try:
        run.check(numbers, report)
    except KeyboardInterrupt as caught:
        interrupted = caught
    seconds, tried = time.monotonic() - began, sum(run.tried.values())
    kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(run.tried.items()))
    print(f"QEMU {qemu.version}, seed {seed}: {tried} stimuli ({kinds}) in {seconds:.1f} s")
    for row in (*FIXES, *DIFFERENCES):
        print(f"{run.met[row]:8} {row}")
    print(f"{shown or 'no'} other difference{'' if shown == 1 else 's'}")
    if interrupted:
        raise interrupted
    return ExitStatus.FAILED if shown else 0


def _show(seed: int, number: int, stimulus: Stimulus, judgement: Judgement) -> None:
    print(f"a difference at stimulus {number} of seed {seed}, {stimulus.kind}: {', '.join(stimulus.scene.changed)}")
    print(f"  {stimulus.scene.stage1}\n  {stimulus.scene.stage2}")
    for step in stimulus.steps:
        print(f"  {shown(step)}")
    for each in judgement.unexplained:
        print(f"  step {each.step}, {each.what}: ours {shown(each.ours)}, QEMU {shown(each.theirs)}")
    print(f"again: pviommu differential --stimuli {number + 1} --seed {seed} --only {number}")


def shown(value: object) -> str:
    """A value as text, with numbers in hexadecimal."""
    match value:
        case bool() | None | str():
            return str(value)
        case Enum():
            return value.name
        case int():
            return f"{value:#x}"
        case bytes():
            return value.hex()
        case tuple() if hasattr(value, "_fields"):
            fields = (f"{name}={shown(each)}" for name, each in zip(value._fields, value, strict=True))
            return f"{type(value).__name__}({', '.join(fields)})"
        case tuple() | list() | set() | frozenset():
            return f"({', '.join(shown(each) for each in value)})"
    return repr(value)
