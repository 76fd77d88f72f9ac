"""``pviommu bench peers``: the DMA API's map and unmap behind the PV-IOMMU, beside QEMU's own IOMMUs."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO

from ..lab.guest_settings import KERNELS, kernel_name
from ..lab.problems import UsageError
from ..lab.run import MAX_VCPUS, Provide, Wanted, guarded, prepare, set_up
from ..lab.vm import parse_memory
from . import bars, peer_bars
from .bars import verdict_table
from .boots import Bench, boot
from .configurations import CONFIGURATIONS, LEVERS, Configuration, choose
from .figures import Measurement, as_json, load_title, loads, notes, table, vfio_table, witness_table
from .guest import Plan
from .guest_options import add_boot_options, add_repeat_option, add_results_option, check_limits, results_folder
from .kept import check_setting
from .output import Document, add_targets, check_targets, give, machine, write
from .runs import BootOnce, Request, Runs

__all__ = ["add_arguments", "main"]

_NAME = "pviommu bench peers"
_MOST_OPERATIONS = 1_000_000
_MOST_SAMPLES = 4_000_000  # of all threads together, as pviommu_bench.c has it
_MOST_PAGES = 1024
_MOST_HOGS = 1024
_MOST_VFIO_MIB = 16384  # as pviommu_vfiobench.c has it
_WITNESSED = ("lab", "lab-debug")


def _names(configurations: Sequence[Configuration]) -> str:
    return ", ".join(entry.name for entry in configurations)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``pviommu bench peers``."""
    parser.description = (
        "Boot the same guest kernel behind no IOMMU, QEMU's virtio-iommu, QEMU's intel-iommu in caching mode, the "
        "guest driver without writes to its rings (the floor: what the kernel itself costs) and the PV-IOMMU, with "
        "tables of the guest and with tables of its own, and measure dma_map_page and dma_unmap_page of one page with "
        "the same guest module. Then print medians, ratios and the accesses that leave the guest. The first run "
        "fetches QEMU and a kernel, as pviommu lab run does."
    )
    parser.epilog = (
        "Exit status: 0 everything was measured, 1 a measurement failed, 2 usage, 3 the environment lacks something, "
        "124 a guest did not finish within --timeout."
    )
    parser.add_argument(
        "--only",
        metavar="NAMES",
        help="measure only these, separated by commas; default: " + _names(CONFIGURATIONS),
    )
    parser.add_argument(
        "--levers", action="store_true", help="also pviommu without one optimisation each: " + _names(LEVERS)
    )
    parser.add_argument("--granules", metavar="N,...", default="1,16,512", help="pages of a map, powers of two")
    parser.add_argument(
        "--threads",
        metavar="N,...",
        default="1,2",
        help="threads that map at the same time, each on its own processor of the guest",
    )
    parser.add_argument("--operations", metavar="N", type=int, default=10_000, help="map + unmap pairs per round")
    parser.add_argument(
        "--rounds",
        metavar="N",
        type=int,
        default=5,
        help="rounds per boot, in each of which the granules take turns",
    )
    parser.add_argument("--hogs", metavar="N", type=int, default=0, help="run N spinning processes beside it")
    parser.add_argument(
        "--vfio-mib",
        metavar="N",
        type=int,
        default=1024,
        help="also map N MiB page by page through VFIO's type1 interface, in separate boots; 0: do not",
    )
    add_repeat_option(parser)
    parser.add_argument(
        "--count-operations",
        metavar="N",
        type=int,
        default=1000,
        help="pairs for which accesses that leave the guest are counted, apart from the timed ones; 0: do not count",
    )
    add_targets(parser)
    parser.add_argument(
        "--plot", metavar="DIR", type=Path, help="write the plots there, besides the results; default: do not"
    )
    add_results_option(parser)
    parser.add_argument(
        "--resume",
        metavar="DIR",
        type=Path,
        help="continue the run in this folder, with the same options: finished boots are not repeated; "
        "default: begin a new one",
    )
    add_boot_options(parser, timeout=180.0)
    parser.add_argument(
        "--vcpus", metavar="N", type=int, default=1, help="least number of guest processors; there is one per thread"
    )
    parser.add_argument(
        "--kernel",
        metavar="NAME|PATH",
        default=KERNELS[0],
        help=f"{', '.join(KERNELS)}, or your own; with the lab's own kernels, their DMA_MAP_BENCHMARK measures, too",
    )


def _numbers(option: str, text: str, most: int) -> tuple[int, ...]:
    """The numbers of a comma-separated list, without repetitions. Raises UsageError."""
    words = [word.strip() for word in text.split(",")]
    if not all(word.isdecimal() and 1 <= int(word) <= most for word in words):
        raise UsageError(f"{option} {text}: give numbers from 1 to {most}, separated by commas")
    return tuple(dict.fromkeys(int(word) for word in words))


def _request(args: argparse.Namespace) -> Request:
    check_limits(
        args.timeout,
        ("--operations", args.operations, 1, _MOST_OPERATIONS),
        ("--count-operations", args.count_operations, 0, 100_000),
        ("--rounds", args.rounds, 1, 1000),
        ("--repeat", args.repeat, 1, 100),
        ("--vcpus", args.vcpus, 1, MAX_VCPUS),
        ("--hogs", args.hogs, 0, _MOST_HOGS),
        ("--vfio-mib", args.vfio_mib, 0, _MOST_VFIO_MIB),
    )
    granules = _numbers("--granules", args.granules, _MOST_PAGES)
    if any(granule & granule - 1 for granule in granules):
        raise UsageError(f"--granules {args.granules}: give powers of two")
    threads = _numbers("--threads", args.threads, MAX_VCPUS)
    most = _MOST_SAMPLES // max(threads)
    if args.operations > most:
        raise UsageError(f"--operations {args.operations}: give at most {most} for {max(threads)} threads")
    plan = Plan(
        rounds=args.rounds,
        operations=args.operations,
        warm_up=max(args.operations // 10, 1),  # fill the kernel's caches of IOVAs and table pages
        count_operations=args.count_operations,
        granules=granules,
        witness=args.kernel in _WITNESSED,
        vfio_mib=args.vfio_mib,
    )
    return Request(choose(args.only, levers=args.levers), threads, plan, args.repeat, args.hogs)


def main(
    args: argparse.Namespace,
    *,
    out: TextIO | None = None,
    provide: Provide = prepare,
    boot_once: BootOnce = boot,
) -> int:
    """Measure with parsed options; returns the exit status."""
    stream = sys.stdout if out is None else out
    return guarded(_NAME, lambda: _run(args, stream, provide, boot_once))


def _run(args: argparse.Namespace, out: TextIO, provide: Provide, boot_once: BootOnce) -> int:
    request = _request(args)
    memory = parse_memory(args.memory)
    _check_targets(args)
    talk = sys.stderr if args.json == "-" else out
    setup = set_up(talk, provide, Wanted(args.qemu, args.accel, args.kernel))
    began = datetime.now(UTC)
    setting = {
        "versions": machine() | setup.toolbox.versions | {"accelerator": setup.accelerator},
        "kernel": args.kernel,
        "vcpus": args.vcpus,
        "memory": memory,
        "repeat": request.repeat,
        "hogs": request.hogs,
        "plan": asdict(request.plan),
    }
    folder = _folder(args, began)
    check_setting(folder, {name: value for name, value in setting.items() if name != "repeat"})  # this may have grown
    runs = Runs(request, Bench(setup, memory, args.vcpus, args.timeout), folder, talk, boot_once)
    runs.measure()
    setting |= {"time": began.isoformat(timespec="seconds"), "seconds": round(runs.seconds, 1)}
    document = _document(runs.measurements, setting)
    write("--results", folder / "peers.txt", document.text + "\n")
    write("--results", folder / "peers.json", document.json())
    _plot(folder, document)
    print(f"\n{document.text}\nlogs {folder}", file=talk)
    give(document, args, out)
    if args.plot is not None:
        _plot(args.plot, document)
    return runs.status


def _folder(args: argparse.Namespace, began: datetime) -> Path:
    """Where the boots' logs go. Raises UsageError."""
    if args.resume is not None:
        if not args.resume.is_dir():
            raise UsageError(f"--resume {args.resume}: no such folder")
        return Path(args.resume)
    return results_folder(args.results, began)


def _check_targets(args: argparse.Namespace) -> None:
    """Fail before measuring, not after it. Raises UsageError."""
    check_targets(args)
    if args.plot is not None:
        try:
            args.plot.mkdir(parents=True, exist_ok=True)
        except OSError as problem:
            raise UsageError(f"--plot {args.plot}: {problem.strerror}") from problem


def _plot(folder: Path, document: Document) -> None:
    for name, svg in document.plots.items():
        write("--plot", folder / name, svg)


def _document(measurements: Sequence[Measurement], setting: dict[str, Any]) -> Document:
    versions = setting["versions"]
    judgements = peer_bars.judge(measurements, int(versions["cores"]))
    text = [f"{load_title(load)}\n{table(measurements, load)}" for load in loads(measurements)]
    if vfio := vfio_table(measurements):
        text.append(f"maps through VFIO, page by page\n{vfio}")
    if judgements:
        text.append(verdict_table(judgements))
    text.append(notes(measurements, setting))
    name = "peers" if setting["kernel"] == KERNELS[0] else f"peers-{kernel_name(setting['kernel'])}"
    name += "-hogs" if setting["hogs"] else ""
    blocks = {
        f"{name}-{pages}-{threads}": table(measurements, (threads, pages), markdown=True)
        for threads, pages in loads(measurements)
    }
    blocks |= {
        f"{name}-bars": verdict_table(judgements, markdown=True) if judgements else "",
        f"{name}-vfio": vfio_table(measurements, markdown=True),
        f"{name}-levers": peer_bars.lever_table(measurements),
        f"{name}-witness": witness_table(measurements),
        f"{name}-setting": notes(measurements, setting).replace("\n", "  \n"),
    }
    data = {**setting, "bars": bars.as_json(judgements), "configurations": as_json(measurements)}
    charts = peer_bars.plots(measurements, versions["accelerator"])
    return Document(
        _NAME,
        "\n\n".join(text),
        data,
        {key: block for key, block in blocks.items() if block},
        {f"{name}-{key}.svg": chart for key, chart in charts.items()},
    )
