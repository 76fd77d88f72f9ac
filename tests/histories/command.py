"""Random histories of requests, answered by the kernel's own iommufd and VFIO and by the model.

Boots the lab's kernel, whose IOMMU is the PV-IOMMU, has it answer the histories of a seed, and compares its answers,
byte by byte, with those of the model. Ends with status 1 if they differ in a way that is not in the table of
docs/vfio-user-space.md, and with 3 if not all was played.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from pviommu.bench.players import PlayError, build_player, on_the_kernel
from pviommu.lab.problems import EnvironmentProblem
from pviommu.native.build import BuildError

from .differences import Difference, compare, known
from .generator import histories
from .players import on_the_model

__all__ = ["main"]

_BEFORE = 12
_SHOWN = 10


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; see the module text."""
    parser = argparse.ArgumentParser(prog="iommufd-histories", description=__doc__)
    parser.add_argument("--seed", metavar="N", type=int, default=1, help="which histories; default: 1")
    parser.add_argument("--count", metavar="N", type=int, default=200, help="how many; default: 200")
    parser.add_argument("--steps", metavar="N", type=int, default=80, help="requests of each, about; default: 80")
    parser.add_argument("--timeout", metavar="SECONDS", type=int, default=600, help="limit of the guest; default: 600")
    parser.add_argument("--keep", metavar="DIR", type=Path, help="leave what was played and answered there")
    args = parser.parse_args(arguments)
    lines = histories(args.seed, args.count, args.steps)
    with tempfile.TemporaryDirectory(prefix="histories-") as name:
        folder = args.keep or Path(name)
        folder.mkdir(parents=True, exist_ok=True)
        try:
            model = on_the_model(lines, build_player(Path(name)))
            (folder / "model.out").write_text("\n".join(model) + "\n")
            kernel = on_the_kernel(lines, folder, "--memory", "1G", timeout=args.timeout)
        except (PlayError, EnvironmentProblem, BuildError) as error:
            print(f"iommufd-histories: {error}", file=sys.stderr)
            return 3
    found = list(compare(lines, model, kernel))
    print(_summary(lines, kernel))
    return _report(found, lines)


def _summary(lines: Sequence[str], kernel: Sequence[str]) -> str:
    """How many requests there were, and what came of them."""
    results = Counter(
        answer.split()[0] if answer.split()[0].startswith("E") else "success"
        for line, answer in zip(lines, kernel, strict=True)
        if line.startswith(("call", "value"))
    )
    every = ", ".join(f"{name} {number}" for name, number in results.most_common())
    return f"{results.total()} requests to the kernel: {every}"


def _report(found: Sequence[Difference], lines: Sequence[str]) -> int:
    """Print what differs; the exit status."""
    rows = Counter(row for each in found if (row := known(each)) is not None)
    news = [each for each in found if known(each) is None]
    for row, number in rows.most_common():
        print(f"known, {number} times: {row}")
    for each in news[:_SHOWN]:
        begin = lines.index(f"history {each.history}")
        for line in lines[max(begin, begin + each.number - _BEFORE) : begin + each.number]:
            print(f"    {line}")
        print(each)
    print(f"{len(news)} histories differ in a way that is not known")
    return 1 if news else 0


if __name__ == "__main__":
    sys.exit(main())
