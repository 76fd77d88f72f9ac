"""``pviommu bench smmu --guest``: what an SMMUv3 costs the kernel's own driver, here and in QEMU's process."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO

from ..exit_status import ExitStatus
from ..lab.architecture import ARM64
from ..lab.problems import RunError
from ..lab.progress import Progress
from ..lab.run import Provide, Wanted, prepare, set_up
from ..lab.vm import parse_memory
from .bars import Bar, Judgement, as_json, markdown_table, shown, text_table, verdict_table
from .guest import MeasurementError
from .guest_options import check_limits, results_folder
from .output import Document, check_targets, machine, show, write
from .samples import Figure
from .smmu_boots import BESIDE, Machine, SmmuBench, SmmuBoot, boot_smmu, compared

__all__ = ["BootSmmu", "judge", "run"]

BootSmmu = Callable[[SmmuBench, Machine, Path], SmmuBoot]
_KERNEL = "debian-7"
"""Its device tree can change, which the virtual SMMU needs."""
_OURS, _THEIRS = (machine.name for machine in BESIDE)
_HEADINGS = ("", f"{_OURS}, us", "least-most", f"{_THEIRS}, us", "least-most", "ratio")
_SYNC = "TLBI and SYNC"
_BAR = Bar(f"{_SYNC}, in QEMU's SMMUv3 = 1", 2)


def run(
    args: argparse.Namespace, name: str, out: TextIO, provide: Provide = prepare, boot_once: BootSmmu = boot_smmu
) -> int:
    """Measure with parsed options; returns the exit status. Raises UsageError, EnvironmentProblem, RunError,
    GuestTimeoutError.
    """
    check_limits(
        args.timeout,
        ("--boots", args.boots, 1, 100),
        ("--rounds", args.rounds, 1, 1000),
        ("--operations", args.operations, 1, 100_000),
    )
    memory = parse_memory(args.memory)
    check_targets(args)
    talk = sys.stderr if args.json == "-" else out
    setup = set_up(talk, provide, Wanted(args.qemu, "tcg", _KERNEL, architecture=ARM64))
    began = datetime.now(UTC)
    folder = results_folder(args.results, began)
    bench = SmmuBench(setup, args.rounds, args.operations, memory, args.timeout)
    before = time.monotonic()
    boots = _measure(bench, args.boots, folder, talk, boot_once)
    setting = {
        "time": began.isoformat(timespec="seconds"),
        "seconds": round(time.monotonic() - before, 1),
        "versions": machine() | setup.toolbox.versions | {"accelerator": setup.accelerator},
        "kernel": _KERNEL,
        "memory": memory,
        "boots": args.boots,
        "rounds": args.rounds,
        "operations": args.operations,
    }
    document = _document(name, compared(boots), setting)
    write("--results", folder / "smmu.txt", document.text + "\n")
    write("--results", folder / "smmu.json", document.json())
    show(document, args, out)
    return ExitStatus.PASSED


def _measure(
    bench: SmmuBench, boots: int, folder: Path, talk: TextIO, boot_once: BootSmmu
) -> dict[str, list[SmmuBoot]]:
    """Both machines in turn, every other time in reverse order, so that a host that grows slower favours neither."""
    found: dict[str, list[SmmuBoot]] = {each.name: [] for each in BESIDE}
    progress = Progress(talk, boots * len(BESIDE))
    try:
        for turn in range(boots):
            for each in BESIDE if turn % 2 == 0 else reversed(BESIDE):
                progress.step(f"{each.name}: boot {turn + 1}")
                found[each.name].append(boot_once(bench, each, folder / each.name / str(turn + 1)))
                progress.done()
    except MeasurementError as error:
        raise RunError(f"{error}; see the logs in {folder}") from error
    finally:
        progress.close()
    return found


def judge(figures: Mapping[str, Mapping[str, Figure]]) -> list[Judgement]:
    """The bar: what an invalidation that is waited for takes, as a multiple of what it takes in QEMU's process."""
    return [_BAR.judge(_ratio(figures[_SYNC]))]


def _ratio(figures: Mapping[str, Figure]) -> float:
    return figures[_OURS].median / figures[_THEIRS].median


def _document(name: str, figures: Mapping[str, Mapping[str, Figure]], setting: dict[str, Any]) -> Document:
    rows = [(what, *_cells(each[_OURS]), *_cells(each[_THEIRS]), shown(_ratio(each))) for what, each in figures.items()]
    judgements = judge(figures)
    notes = _notes(setting)
    blocks = {
        "smmu-guest": markdown_table(_HEADINGS, rows),
        "smmu-guest-bars": verdict_table(judgements, markdown=True),
        "smmu-guest-setting": notes,
    }
    data = {
        **setting,
        "bars": as_json(judgements),
        "figures_us": {what: {machine: asdict(one) for machine, one in each.items()} for what, each in figures.items()},
    }
    text = "\n\n".join([text_table([_HEADINGS, *rows]), verdict_table(judgements), notes])
    return Document(name, text, data, blocks)


def _cells(one: Figure) -> Sequence[str]:
    return shown(one.median), f"{shown(one.least)}-{shown(one.most)}"


def _notes(setting: Mapping[str, Any]) -> str:
    host = ", ".join(f"{name} {value}" for name, value in setting["versions"].items())
    return (
        f"Microseconds an operation, in the guest: medians of {setting['rounds']} rounds of {setting['operations']} in "
        f"each of {setting['boots']} boots. Linux {setting['kernel']} for arm64, iommu.strict=1, 1 vCPU, "
        f"{setting['memory'] >> 20} MiB. {host}; {setting['time']}, {setting['seconds']:g} s."
    )
