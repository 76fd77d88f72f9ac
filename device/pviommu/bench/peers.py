"""``pviommu bench peers``: the DMA API's map and unmap behind the PV-IOMMU, beside QEMU's own IOMMUs."""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO

from pviommu import __version__
from pviommu.bench.boots import Bench, boot, server_counts
from pviommu.bench.configurations import CONFIGURATIONS, Configuration, choose
from pviommu.bench.figures import Measurement, as_json, notes, table
from pviommu.bench.guest import Boot, MeasurementError, Plan
from pviommu.lab import accelerator, build, provision
from pviommu.lab.problems import ExitStatus, RunError, UsageError
from pviommu.lab.progress import Progress
from pviommu.lab.report import new_results_folder
from pviommu.lab.run import MAX_VCPUS, Provide, guarded, prepare
from pviommu.lab.vm import GuestTimeoutError, parse_memory

__all__ = ["add_arguments", "main"]

_NAME = "pviommu bench peers"
_MOST_OPERATIONS = 1_000_000

BootOnce = Callable[[Bench, Configuration, Plan, Path], tuple[Boot, dict[str, Any]]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``pviommu bench peers``."""
    parser.description = (
        "Boot the same guest kernel behind no IOMMU, QEMU's virtio-iommu, QEMU's intel-iommu in caching mode, the "
        "guest driver with the ring store left out (the floor: what the kernel itself costs) and the PV-IOMMU, and "
        "measure dma_map_page and dma_unmap_page of one page with the same guest module. Then print medians, ratios "
        "and the accesses that leave the guest. The first run fetches QEMU and a kernel, as pviommu lab run does."
    )
    parser.epilog = (
        "Exit status: 0 everything was measured, 1 a measurement failed, 2 usage, 3 the environment lacks something, "
        "124 a guest did not finish in its time."
    )
    parser.add_argument(
        "--only",
        metavar="NAMES",
        help="measure only these, separated by commas: " + ", ".join(entry.name for entry in CONFIGURATIONS),
    )
    parser.add_argument(
        "--operations", metavar="N", type=int, default=20_000, help="map + unmap pairs in a round (%(default)s)"
    )
    parser.add_argument("--rounds", metavar="N", type=int, default=3, help="rounds in a boot (%(default)s)")
    parser.add_argument(
        "--repeat",
        metavar="N",
        type=int,
        default=1,
        help="boot each configuration N times; every other time in reverse order (%(default)s)",
    )
    parser.add_argument(
        "--count-operations",
        metavar="N",
        type=int,
        default=1000,
        help="pairs during which accesses that leave the guest are counted, apart from the timed ones; 0: count none"
        " (%(default)s)",
    )
    parser.add_argument("--json", metavar="FILE", help="write all figures as JSON; - is standard output")
    parser.add_argument(
        "--results",
        metavar="DIR",
        type=Path,
        default=Path("bench-results"),
        help="folder that gets a new folder with each boot's logs (%(default)s)",
    )
    parser.add_argument(
        "--timeout", metavar="SECONDS", type=float, default=90.0, help="hard limit of one boot (%(default)s)"
    )
    parser.add_argument(
        "--accel", choices=("auto", "kvm", "tcg"), default="auto", help="QEMU's accelerator (%(default)s)"
    )
    parser.add_argument("--memory", metavar="SIZE", default="1G", help="guest memory (%(default)s)")
    parser.add_argument("--vcpus", metavar="N", type=int, default=1, help="guest processors (%(default)s)")
    parser.add_argument("--qemu", metavar="PATH", help="QEMU to use (10.1 or later, with vfio-user-pci)")


@dataclass(frozen=True, slots=True)
class _Request:
    """The options, checked."""

    configurations: Sequence[Configuration]
    plan: Plan
    repeat: int
    memory: int
    vcpus: int
    timeout: float


def _request(args: argparse.Namespace) -> _Request:
    limits = (
        ("--operations", args.operations, 1, _MOST_OPERATIONS),
        ("--count-operations", args.count_operations, 0, 100_000),
        ("--rounds", args.rounds, 1, 1000),
        ("--repeat", args.repeat, 1, 100),
        ("--vcpus", args.vcpus, 1, MAX_VCPUS),
    )
    for option, value, least, most in limits:
        if not least <= value <= most:
            raise UsageError(f"{option} {value}: give {least} to {most}")
    if args.timeout <= 0:
        raise UsageError(f"--timeout {args.timeout:g}: give a number of seconds above 0")
    # A tenth of a round fills the kernel's caches of IOVAs and table pages.
    plan = Plan(args.rounds, args.operations, max(args.operations // 10, 1), args.count_operations)
    return _Request(choose(args.only), plan, args.repeat, parse_memory(args.memory), args.vcpus, args.timeout)


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
    _check_target(args.json)
    talk = sys.stderr if args.json == "-" else out
    progress = Progress(talk, provision.STEPS + build.STEPS + accelerator.STEPS)
    try:
        setup = provide(progress, qemu=args.qemu, accel=args.accel)
    finally:
        progress.close()
    began = datetime.now(UTC)
    try:
        folder = new_results_folder(args.results, began)
    except OSError as problem:
        raise UsageError(f"--results {args.results}: {problem.strerror}") from problem
    bench = Bench(setup, request.memory, request.vcpus, request.timeout)
    run = _Run(request, bench, folder, talk, boot_once)
    run.measure()
    versions = {"pviommu": __version__, "python": platform.python_version(), **setup.toolbox.versions}
    setting = {
        "time": began.isoformat(timespec="seconds"),
        "versions": versions | {"accelerator": setup.accelerator},
        "vcpus": request.vcpus,
        "memory": request.memory,
        "repeat": request.repeat,
        "plan": asdict(request.plan),
        "seconds": round(run.seconds, 1),
    }
    printed = f"{table(run.measurements)}\n\n{notes(run.measurements, setting)}"
    (folder / "peers.txt").write_text(printed + "\n")
    found = json.dumps(as_json(run.measurements, setting), indent=2) + "\n"
    (folder / "peers.json").write_text(found)
    print(f"\n{printed}\nlogs {folder}", file=talk)
    _give(args.json, found, out)
    return run.status


def _check_target(target: str | None) -> None:
    """Fail before measuring, not after it. Raises UsageError."""
    if target not in (None, "-"):
        _write(str(target), "")


def _give(target: str | None, found: str, out: TextIO) -> None:
    if target == "-":
        out.write(found)
    elif target is not None:
        _write(target, found)


def _write(target: str, text: str) -> None:
    try:
        Path(target).write_text(text)
    except OSError as problem:
        raise UsageError(f"--json {target}: {problem.strerror}") from problem


class _Run:
    """All boots of one command."""

    def __init__(self, request: _Request, bench: Bench, folder: Path, talk: TextIO, boot_once: BootOnce) -> None:
        self.measurements = [Measurement(entry.name, entry.title) for entry in request.configurations]
        self.status = ExitStatus.PASSED
        self.seconds = 0.0
        self._request = request
        self._bench = bench
        self._folder = folder
        self._boot_once = boot_once
        boots = request.repeat * len(request.configurations) + sum(entry.served for entry in request.configurations)
        self._progress = Progress(talk, boots)

    def measure(self) -> None:
        """Boot everything; a configuration that fails is noted and the others go on."""
        began = time.monotonic()
        served: dict[str, dict[str, Any]] = {}
        pairs = list(zip(self._request.configurations, self.measurements, strict=True))
        try:
            for turn in range(self._request.repeat):
                for configuration, measurement in pairs if turn % 2 == 0 else reversed(pairs):
                    served[configuration.name] = self._boot(
                        configuration, measurement, self._request.plan, str(turn + 1)
                    )
            for configuration, measurement in pairs:
                if configuration.served and not served[configuration.name]:
                    self._progress.skip(1)  # there is nothing to take the empty boot's counts from
                elif configuration.served:
                    self._count_at_server(configuration, measurement, served[configuration.name])
        finally:
            self._progress.close()
        self.seconds = time.monotonic() - began

    def _boot(self, configuration: Configuration, measurement: Measurement, plan: Plan, label: str) -> dict[str, Any]:
        self._progress.step(f"{configuration.name}: {configuration.title}" + ("" if plan.rounds else ", doing nothing"))
        counts: dict[str, Any] = {}
        try:
            folder = self._folder / configuration.name / label
            measured, counts = self._boot_once(self._bench, configuration, plan, folder)
            if plan.rounds:
                measurement.boots.append(measured)
            self._progress.done(_shown(measured))
        except GuestTimeoutError:
            self._failed(
                measurement, f"the guest did not finish within {self._request.timeout:g} s", ExitStatus.TIMEOUT
            )
        except (MeasurementError, RunError) as problem:
            self._failed(measurement, str(problem), ExitStatus.FAILED)
        return counts

    def _count_at_server(self, configuration: Configuration, measurement: Measurement, counts: dict[str, Any]) -> None:
        """What the server counted in the last measuring boot, less what it counts in a boot that does nothing."""
        plan = self._request.plan
        nothing = replace(plan, rounds=0, count_operations=0)
        empty = self._boot(configuration, measurement, nothing, "empty")
        measurement.server = server_counts(counts, empty, plan.timed_pairs + plan.count_operations)

    def _failed(self, measurement: Measurement, problem: str, status: ExitStatus) -> None:
        self._progress.done(f"failed: {problem}")
        measurement.problem = problem
        self.status = max(self.status, status)


def _shown(measured: Boot) -> str:
    pairs = [entry.pair_ns_median for entry in measured.rounds]
    return f"map + unmap {min(pairs):.0f} to {max(pairs):.0f} ns" if pairs else ""
