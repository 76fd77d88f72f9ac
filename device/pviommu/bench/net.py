"""``pviommu bench net``: this server's network card behind the PV-IOMMU, beside QEMU's own card."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO

from ..exit_status import ExitStatus
from ..lab.guest_settings import KERNELS
from ..lab.problems import RunError, UsageError
from ..lab.processes import run
from ..lab.progress import Progress
from ..lab.provision import Toolbox, cache_folder
from ..lab.roots import STEPS, private_root
from ..lab.run import MAX_VCPUS, Provide, Wanted, guarded, prepare, set_up
from ..lab.vm import GuestTimeoutError, parse_memory
from . import bars
from .bars import verdict_table
from .configurations import Configuration
from .guest import MeasurementError
from .guest_options import add_boot_options, add_repeat_option, add_results_option, check_limits, results_folder
from .host_network import own_network
from .net_boots import NET_CONFIGURATIONS, VHOST, VHOST_DEVICE, NetBench, NetBoot, NetPlan, boot_net
from .net_figures import NetMeasurement, as_json, judge, plots, tables
from .net_loads import LOADS, Tools, find_tools, guest_programs
from .output import Document, add_targets, check_targets, give, machine, write

__all__ = ["BootNet", "add_arguments", "main", "provide_tools"]

_NAME = "pviommu bench net"
_KERNELS = KERNELS[:2]
"""those with network cards"""
BootNet = Callable[[NetBench, Configuration, NetPlan, Path], NetBoot]
ProvideTools = Callable[[Progress, Toolbox], tuple[Tools, dict[str, bytes]]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``pviommu bench net``."""
    names = ", ".join(one.name for one in NET_CONFIGURATIONS)
    parser.description = (
        "Boot the same guest kernel with this server's network card behind the PV-IOMMU, and with QEMU's own behind "
        "no IOMMU, its virtio-iommu and its intel-iommu in caching mode, each on a tap in a network namespace that "
        "goes with this command. Measure TCP both ways, packets a second, round trips, and what a packet takes of "
        "traps, interrupts, maps and processor time. The first run fetches QEMU, a kernel and iperf3."
    )
    parser.epilog = (
        "Exit status: 0 everything was measured, 1 a measurement failed, 2 usage, 3 the environment lacks something, "
        "124 a guest did not finish within --timeout."
    )
    parser.add_argument(
        "--only",
        metavar="NAMES",
        help=f"measure only these, separated by commas; default: {names} (the last only where there is {VHOST_DEVICE})",
    )
    parser.add_argument("--loads", metavar="NAMES", default=",".join(one.name for one in LOADS), help="what is sent")
    parser.add_argument("--seconds", metavar="N", type=int, default=5, help="length of each load")
    parser.add_argument(
        "--count-seconds",
        metavar="N",
        type=int,
        default=2,
        help="length of each load during which traps, interrupts and maps are counted; 0: do not count",
    )
    parser.add_argument("--pings", metavar="N", type=int, default=500, help="round trips, 10 ms apart; 0: none")
    add_repeat_option(parser)
    add_targets(parser)
    add_results_option(parser)
    add_boot_options(parser, timeout=300.0)
    parser.add_argument("--vcpus", metavar="N", type=int, default=1, help="guest processors")
    parser.add_argument("--kernel", choices=_KERNELS, default=_KERNELS[0], help="guest kernel")


def provide_tools(progress: Progress, toolbox: Toolbox) -> tuple[Tools, dict[str, bytes]]:
    """iperf3 of Debian, for the host and as files for the guest. Raises EnvironmentProblem, MeasurementError."""
    layer = private_root(cache_folder(os.environ), ("iperf3",), progress, os.environ, run, base=toolbox.root)
    return find_tools(layer, toolbox), guest_programs(layer)


def main(
    args: argparse.Namespace,
    *,
    out: TextIO | None = None,
    provide: Provide = prepare,
    tools: ProvideTools = provide_tools,
    network: Callable[[], None] = own_network,
    boot_once: BootNet = boot_net,
) -> int:
    """Measure with parsed options; returns the exit status."""
    stream = sys.stdout if out is None else out
    return guarded(_NAME, lambda: _run(args, stream, provide, tools, network, boot_once))


def _plan(args: argparse.Namespace) -> NetPlan:
    check_limits(
        args.timeout,
        ("--seconds", args.seconds, 1, 600),
        ("--count-seconds", args.count_seconds, 0, 600),
        ("--pings", args.pings, 0, 100_000),
        ("--repeat", args.repeat, 1, 100),
        ("--vcpus", args.vcpus, 1, MAX_VCPUS),
    )
    names = _chosen("--loads", args.loads, [load.name for load in LOADS])
    return NetPlan([load for load in LOADS if load.name in names], args.seconds, args.count_seconds, args.pings)


def _chosen(option: str, text: str | None, known: Sequence[str]) -> set[str]:
    """The names of a comma-separated list; all without one. Raises UsageError."""
    wanted = set(known) if text is None else {name.strip() for name in text.split(",") if name.strip()}
    if not wanted or not wanted <= set(known):
        unknown = ", ".join(sorted(wanted - set(known))) or "nothing"
        raise UsageError(f"{option} {text}: {unknown} is not one of {', '.join(known)}")
    return wanted


def _configurations(text: str | None) -> list[Configuration]:
    names = _chosen("--only", text, [one.name for one in NET_CONFIGURATIONS])
    if text is None and not os.access(VHOST_DEVICE, os.R_OK | os.W_OK):
        names.discard(VHOST)
    return [one for one in NET_CONFIGURATIONS if one.name in names]


def _run(
    args: argparse.Namespace,
    out: TextIO,
    provide: Provide,
    tools: ProvideTools,
    network: Callable[[], None],
    boot_once: BootNet,
) -> int:
    plan = _plan(args)
    configurations = _configurations(args.only)
    memory = parse_memory(args.memory)
    check_targets(args)
    talk = sys.stderr if args.json == "-" else out
    setup = set_up(talk, provide, Wanted(args.qemu, args.accel, args.kernel))
    progress = Progress(talk, STEPS)
    try:
        found, programs = tools(progress, setup.toolbox)
    except MeasurementError as problem:
        raise RunError(str(problem)) from problem
    finally:
        progress.close()
    began = datetime.now(UTC)
    folder = results_folder(args.results, began)
    network()
    bench = NetBench(setup, found, programs, memory, args.vcpus, args.timeout)
    measurements = [NetMeasurement(one.name, one.title, one.group) for one in configurations]
    before = time.monotonic()
    status = _measure(bench, configurations, measurements, plan, args.repeat, folder, talk, boot_once)
    setting = {
        "time": began.isoformat(timespec="seconds"),
        "seconds": round(time.monotonic() - before, 1),
        "versions": machine() | setup.toolbox.versions | {"accelerator": setup.accelerator},
        "vcpus": args.vcpus,
        "memory": memory,
        "repeat": args.repeat,
        "plan": asdict(plan),
    }
    document = _document(measurements, setting)
    write("--results", folder / "net.txt", document.text + "\n")
    write("--results", folder / "net.json", document.json())
    print(f"\n{document.text}\nlogs {folder}", file=talk)
    give(document, args, out)
    return status


def _measure(
    bench: NetBench,
    configurations: Sequence[Configuration],
    measurements: Sequence[NetMeasurement],
    plan: NetPlan,
    repeat: int,
    folder: Path,
    talk: TextIO,
    boot_once: BootNet,
) -> int:
    """Do all boots. One that fails is noted, and the others go on. Returns the exit status."""
    status = ExitStatus.PASSED
    progress = Progress(talk, repeat * len(configurations))
    pairs = list(zip(configurations, measurements, strict=True))
    try:
        for turn in range(repeat):
            for configuration, measurement in pairs if turn % 2 == 0 else reversed(pairs):
                progress.step(f"{configuration.name}: {configuration.title}")
                try:
                    boot = boot_once(bench, configuration, plan, folder / configuration.name / str(turn + 1))
                except GuestTimeoutError:
                    problem, failed = f"the guest did not finish within {bench.timeout:g} s", ExitStatus.TIMEOUT
                except (MeasurementError, RunError) as error:
                    problem, failed = str(error), ExitStatus.FAILED
                else:
                    measurement.boots.append(boot)
                    progress.done(", ".join(f"{one.load} {_shown(one.rate)}" for one in boot.samples))
                    continue
                progress.done(f"failed: {problem}")
                measurement.problem, status = problem, max(status, failed)
    finally:
        progress.close()
    return status


def _shown(rate: float) -> str:
    return f"{rate / 1e6:.0f}M" if rate > 1e6 else f"{rate / 1e3:.1f}k"


def _document(measurements: Sequence[NetMeasurement], setting: dict[str, Any]) -> Document:
    judgements = judge(measurements)
    made = tables(measurements)
    notes = _notes(measurements, setting)
    text = [table(markdown=False) for table in made.values()]
    blocks = {name: table(markdown=True) for name, table in made.items()}
    if judgements:
        text.append(verdict_table(judgements))
        blocks["net-bars"] = verdict_table(judgements, markdown=True)
    blocks["net-setting"] = notes.replace("\n", "  \n")
    data = {**setting, "bars": bars.as_json(judgements), "configurations": as_json(measurements)}
    charts = plots(measurements, setting["versions"]["accelerator"])
    return Document(
        _NAME, "\n\n".join([*text, notes]), data, blocks, {f"net-{name}.svg": chart for name, chart in charts.items()}
    )


def _notes(measurements: Sequence[NetMeasurement], setting: dict[str, Any]) -> str:
    plan = setting["plan"]
    lines = [f"{one.name}: {one.problem}" for one in measurements if one.problem]
    host = ", ".join(f"{name} {value}" for name, value in setting["versions"].items())
    lines.append(
        f"Medians of {setting['repeat']} boots; each load for {plan['seconds']:g} s, {plan['pings']} pings; "
        f"{setting['vcpus']} vCPUs, {setting['memory'] >> 20} MiB. A busy of 1 is one processor of the host. "
        f"{host}; {setting['time']}, {setting['seconds']:g} s."
    )
    if VHOST not in (one.name for one in measurements):
        lines.append(f"QEMU's kernel path, {VHOST}, was not measured; it needs {VHOST_DEVICE}.")
    return "\n".join(lines)
