"""``pviommu lab run``: sets up, starts the server, boots the guest, shows its tests as they end, and judges the run."""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TextIO

from libvfio_user import Library

from .. import resources
from ..exit_status import ExitStatus
from ..host.signals import terminated_like_interrupted
from ..host_errors import is_lack_of_room, named
from ..topology import find
from ..transports import LIBRARY, TRANSPORTS
from . import (
    accelerator,
    added,
    build,
    core,
    kernels,
    libvfio_user,
    programs,
    provision,
    report,
    roots,
    scenario,
    suites,
)
from .architecture import AMD64, ARCHITECTURES, ARM64, Architecture, InterruptController, interrupt_controller
from .boot import Job, Setup, judged_run, serve_options, short_folder
from .console import STANDARD, Terminal
from .guest_settings import ARM64_KERNELS, KERNELS, MODES, PROFILES, SUITES, TABLES, GuestSettings, kernel_name
from .listener import Listener
from .problems import EnvironmentProblem, RunError, UsageError
from .progress import Progress
from .server import PROGRAM, capabilities
from .vm import parse_memory

__all__ = [
    "Provide",
    "Setup",
    "Wanted",
    "add_arguments",
    "guarded",
    "main",
    "prepare",
    "set_up",
    "short_folder",
    "time_limit",
]

MAX_VCPUS = 64
MAX_CYCLES = 100_000

_SECONDS = 300.0
_SECONDS_LONG = 900.0
_SLOW_FACTOR = 4.0  # lockdep and KASAN under TCG; arm64 on a host of another architecture
_STATUS = {
    "passed": ExitStatus.PASSED,
    "failed": ExitStatus.FAILED,
    "error": ExitStatus.ENVIRONMENT,
    "timeout": ExitStatus.TIMEOUT,
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``pviommu lab run``."""
    parser.add_argument(
        "--results", metavar="DIR", type=Path, default=Path("lab-results"), help="folder of the results"
    )
    parser.add_argument(
        "--timeout",
        metavar="SECONDS",
        type=float,
        help=f"hard limit for server and guest; default: {_SECONDS:g}, with --long {_SECONDS_LONG:g}, "
        f"on lab-debug and of arm64 {_SLOW_FACTOR:g} times as much",
    )
    parser.add_argument("--accel", choices=("auto", "kvm", "tcg"), default="auto", help="QEMU's accelerator")
    parser.add_argument(
        "--memory", metavar="SIZE", default="5G", help="guest memory; a test of DMA above 4 GiB needs more than 4G"
    )
    parser.add_argument("--vcpus", metavar="N", type=int, default=1, help="guest processors")
    parser.add_argument(
        "--qemu",
        metavar="PATH",
        help="QEMU to use (10.1 or later, with vfio-user-pci); default: the host's own if suitable, else Debian's",
    )
    parser.add_argument(
        "--arch", choices=ARCHITECTURES, default=AMD64.name, help="the guest's architecture; arm64 is always emulated"
    )
    parser.add_argument(
        "--msi",
        metavar="NAME",
        help=f"the interrupt controller to which MSIs go, of arm64 "
        f"{' or '.join(each.name for each in ARM64.controllers)}; default: {ARM64.controllers[0].name}",
    )
    parser.add_argument(
        "--kernel",
        metavar="NAME|PATH",
        help=f"{', '.join(KERNELS)}, for arm64 {', '.join(ARM64_KERNELS)}, or the build tree or bzImage of your own "
        f"kernel; default: {KERNELS[0]}, with --suite {suites.KERNELS[0]}, for arm64 {ARM64_KERNELS[-1]}",
    )
    parser.add_argument("--profile", choices=PROFILES, default=PROFILES[0], help="profile that the driver uses first")
    parser.add_argument("--mode", choices=MODES, default="lazy", help="how the guest's DMA API maps")
    parser.add_argument(
        "--tables",
        choices=TABLES,
        help="whether the tables of the driver's domains are the guest's, as its parameter of that name has it; "
        f"default: {TABLES[0]}, with --scenario off, since rules may be about maps that are sent",
    )
    parser.add_argument("--long", action="store_true", help="run the long tests too")
    parser.add_argument(
        "--cycles",
        metavar="N",
        type=int,
        help="how often the drivers are unloaded and loaded, to see whether something leaks; "
        "default: 20, with --long 100",
    )
    parser.add_argument(
        "--add",
        metavar="FILE",
        type=Path,
        nargs="+",
        action="extend",
        default=[],
        help=f"your own files, which are in {added.FOLDER} of the guest, with the libraries of dynamic programs; "
        "default: none",
    )
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument(
        "--run",
        metavar="SCRIPT",
        type=Path,
        dest="program",
        help="run this script or program in the guest instead of the tests: its output comes here, "
        "and the run has passed if it ends with status 0; default: the tests",
    )
    instead.add_argument(
        "--suite",
        choices=SUITES,
        help="run the kernel's own tools/testing/selftests/SUITE in the guest instead; default: the tests",
    )
    parser.add_argument(
        "--scenario",
        metavar="FILE",
        type=Path,
        help="play this scenario of faults instead of the tests, or while the program of --run or the suite runs; exit "
        f"status 5 if a rule did not do what was expected of it. Default: {scenario.DEFAULT}, after the tests",
    )
    parser.add_argument(
        "--scenario-from",
        choices=("boot", "tests"),
        help="when its rules are loaded: before the guest boots, or once its driver is bound; default: tests, but boot "
        "if a rule is about messages or sockets, which it sees only on connections that are made later",
    )
    parser.add_argument(
        "--topology",
        metavar="FILE",
        type=Path,
        help="a file, or a name of `pviommu topology list`; default: lab-cards for the lab's own tests on Debian's "
        "kernels, else lab",
    )
    parser.add_argument(
        "--transport",
        choices=TRANSPORTS,
        default=TRANSPORTS[0],
        help=f"what speaks with QEMU; {LIBRARY}: that C library, the one that LIBVFIO_USER names or an installed one, "
        "else it is built; default: pviommu's own",
    )
    parser.add_argument("--keep", action="store_true", help="give a shell on the guest's console after the tests")
    parser.add_argument("--gdb", action="store_true", help="make the guest wait for a debugger, without a time limit")
    parser.add_argument("--only-setup", action="store_true", help="set up everything that a run needs, then stop")
    parser.add_argument("-v", "--verbose", action="store_true", help="show the guest's diagnostics too")


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is to be set up: for guests of ``architecture`` with ``kernel``, a name or a path. ``qemu`` names a QEMU to
    use; with ``suite`` its programs are built too.
    """

    qemu: str | None = None
    accel: str = "auto"
    kernel: str = KERNELS[0]
    suite: str | None = None
    architecture: Architecture = AMD64


Provide = Callable[[Progress, Wanted], Setup]
"""Makes the set-up of a run; :func:`prepare` is the real one."""

ProvideLibrary = Callable[[Progress], Library]
"""Finds libvfio-user, or builds it; :func:`.libvfio_user.provide` is the real one."""


def prepare(progress: Progress, wanted: Wanted) -> Setup:
    """Provide QEMU, kernel, modules and programs, and choose the accelerator.

    Raises UsageError, EnvironmentProblem, RunError.
    """
    architecture = wanted.architecture
    kernels.open_named_path(wanted.kernel, architecture)  # a wrong path is said before anything is fetched
    toolbox = provision.provision(progress, qemu=wanted.qemu, architecture=architecture)
    base = toolbox.root
    toolbox = kernels.with_kernel(toolbox, wanted.kernel, resources.guest_tools(), progress)
    cache = provision.cache_folder(os.environ)
    folders = [resources.guest_tools() / name for name in architecture.modules]
    modules = [path for folder in folders for path in build.build_modules(toolbox, folder, cache, progress)]
    built = programs.build_programs(toolbox, resources.guest_tools() / "programs", cache, progress)
    core.build_core(toolbox, cache, progress)
    chosen = accelerator.choose_accelerator(wanted.accel, toolbox, cache, progress)
    tests: Sequence[Path] = ()
    if wanted.suite is not None:
        layer = kernels.build_layer(base, progress, architecture)
        tests = suites.build_suite(wanted.suite, layer, resources.guest_tools(), cache, progress, architecture)
    return Setup(toolbox, modules, chosen, built, tests)


def set_up(stream: TextIO, provide: Provide, wanted: Wanted, library: ProvideLibrary | None = None) -> Setup:
    """What ``provide`` and ``library`` make, with their progress on ``stream``. Raises what they raise."""
    steps = provision.STEPS + kernels.steps(wanted.kernel, wanted.architecture) + programs.STEPS + core.STEPS
    steps += accelerator.STEPS + build.STEPS * len(wanted.architecture.modules)
    if wanted.architecture.is_foreign:
        steps += roots.STEPS
    if wanted.suite is not None:
        steps += roots.STEPS + suites.STEPS
    if library is not None:
        steps += libvfio_user.STEPS
    progress = Progress(stream, steps)
    try:
        setup = provide(progress, wanted)
        return setup if library is None else replace(setup, library=library(progress))
    finally:
        progress.close()


def main(
    args: argparse.Namespace,
    *,
    out: TextIO | None = None,
    program: Sequence[str] = PROGRAM,
    provide: Provide = prepare,
    provide_library: ProvideLibrary = libvfio_user.provide,
    terminal: Terminal = STANDARD,
) -> int:
    """Run the lab with parsed options; ``terminal`` gets the console of a guest that is kept.

    Returns the exit status (see ExitStatus).
    """
    stream = sys.stdout if out is None else out
    library = provide_library if args.transport == LIBRARY else None
    return guarded("pviommu lab", lambda: _run(args, stream, program, provide, library, terminal))


def guarded(name: str, work: Callable[[], int]) -> int:
    """Do ``work`` and give its exit status; what breaks it becomes one line that begins with ``name``, and a status."""
    try:
        with terminated_like_interrupted():
            return work()
    except UsageError as problem:
        print(f"{name}: {problem}", file=sys.stderr)
        return ExitStatus.USAGE
    except EnvironmentProblem as problem:
        print(f"{name}: {problem.what}; {problem.how_to_get_it}", file=sys.stderr)
        return ExitStatus.ENVIRONMENT
    except RunError as problem:
        if problem.detail:
            print(problem.detail, file=sys.stderr)
        print(f"{name}: {problem.what}", file=sys.stderr)
        return ExitStatus.ENVIRONMENT
    except KeyboardInterrupt:
        with contextlib.suppress(OSError):  # the terminal may be gone, which is why it ends
            print(f"{name}: interrupted", file=sys.stderr)
        return ExitStatus.INTERRUPTED


def _run(
    args: argparse.Namespace,
    stream: TextIO,
    program: Sequence[str],
    provide: Provide,
    library: ProvideLibrary | None,
    terminal: Terminal,
) -> int:
    memory = parse_memory(args.memory)
    play = _play(args)
    architecture = ARCHITECTURES[args.arch]
    controller = interrupt_controller(architecture, args.msi)
    settings = _settings(args, play, architecture, controller)
    timeout = math.inf if args.gdb else time_limit(args.timeout, settings, architecture)
    brought = added.collect(args.add, args.program, architecture=architecture)
    if brought.size > memory // 4:
        raise UsageError(
            f"--add: {brought.size >> 20} MB in all; the guest's memory holds them twice at its start, give --memory"
            f" at least {brought.size * 4 >> 20}M"
        )
    topology = find(args.topology or _usual_topology(args))
    if not topology.is_file():
        raise UsageError(f"--topology {topology}: no such file")
    kernel = args.kernel or _usual_kernel(args.suite, architecture)
    setup = set_up(stream, provide, Wanted(args.qemu, args.accel, kernel, args.suite, architecture), library)
    added.check_interpreter(brought, added.applets(setup.toolbox.runnable_busybox))
    if args.only_setup:
        print(
            f"ready: QEMU {setup.toolbox.qemu_version} ({setup.accelerator}), Linux {setup.toolbox.kernel_release}",
            file=stream,
        )
        return ExitStatus.PASSED
    offered = capabilities(topology, program, serve_options(controller))
    try:
        folder = report.new_results_folder(args.results, datetime.now(UTC))
    except OSError as problem:
        if is_lack_of_room(problem):
            raise EnvironmentProblem(f"--results {args.results}: {problem.strerror}", "free some space") from problem
        raise UsageError(f"--results {args.results}: {problem.strerror}") from problem

    lost: list[str] = []

    def show(record: report.RunRecord) -> None:
        try:
            report.write_results(folder, record)
        except OSError as problem:
            lost.append(named(problem))
        print(report.summary_text(record, folder), file=stream, flush=True)

    def say(text: str) -> None:
        print(text, file=stream, flush=True)

    job = Job(
        *(setup, topology, offered, settings, memory, timeout, folder, program, args.gdb, terminal, say, brought, play),
        controller=controller,
    )
    record = judged_run(job, Listener(stream, verbose=args.verbose), show)
    show(record)
    if lost:  # the verdict holds, but who looks for it in the folder does not find it
        print(f"pviommu lab: the results are incomplete: {lost[-1]}", file=sys.stderr)
        return _status(record) or ExitStatus.ENVIRONMENT
    return _status(record)


def _status(record: report.RunRecord) -> ExitStatus:
    """Rules that did something else than expected make everything else a question, so they are told first."""
    if record.verdict == "failed" and record.scenario and record.scenario.problems:
        return ExitStatus.UNEXPECTED
    return _STATUS[record.verdict]


def _play(args: argparse.Namespace) -> scenario.Play | None:
    """The scenario of a run: the one that is asked for, or else the lab's own at the end of the lab's own tests."""
    if args.scenario_from and not args.scenario:
        raise UsageError(f"--scenario-from {args.scenario_from}: only with --scenario")
    if args.scenario and args.long:
        raise UsageError("--scenario and --long: there are no long tests, --scenario replaces all tests")
    if not args.scenario and (args.program or args.suite or args.mode == "passthrough"):
        return None  # without translation nothing is mapped that could fail
    name, loaded = scenario.found(args.scenario or Path(scenario.DEFAULT))
    if args.transport == LIBRARY and (place := scenario.of_connections(loaded)):
        raise UsageError(
            f"--scenario {name}: a rule is about {place}, which is out of reach with --transport {LIBRARY}"
        )
    return scenario.Play(name, loaded, scenario.chosen_start(loaded, args.scenario_from))


def _settings(
    args: argparse.Namespace, play: scenario.Play | None, architecture: Architecture, controller: InterruptController
) -> GuestSettings:
    if not 1 <= args.vcpus <= MAX_VCPUS:
        raise UsageError(f"--vcpus {args.vcpus}: give 1 to {MAX_VCPUS}")
    if args.cycles is not None and not 1 <= args.cycles <= MAX_CYCLES:
        raise UsageError(f"--cycles {args.cycles}: give 1 to {MAX_CYCLES}")
    kernel = kernel_name(args.kernel or _usual_kernel(args.suite, architecture))
    if architecture.is_foreign and args.long:
        raise UsageError(f"--long: not with --arch {args.arch}, whose kernels cannot start another (KEXEC_FILE)")
    for option, value in (("--run", args.program), ("--suite", args.suite)):
        if value is not None and args.long:
            raise UsageError(f"{option} and --long: there are no long tests, {option} replaces all tests")
    for option, replaces in (("--run", args.program), ("--suite", args.suite), ("--scenario", args.scenario)):
        if replaces is not None and args.cycles is not None:
            raise UsageError(f"--cycles and {option}: {option} replaces the test that has cycles")
    if args.suite is not None and kernel not in suites.KERNELS:
        able = _usual_kernel(args.suite, architecture)
        raise UsageError(f"--suite {args.suite} needs iommufd, which {kernel} lacks: give --kernel {able}, or your own")
    program = args.program.name if args.program is not None else ""
    return GuestSettings(
        *(args.profile, args.mode, args.vcpus, kernel, args.long, args.keep, program, args.suite or ""),
        scenario=play.name if play else "",
        scenario_alone=args.scenario is not None,
        scenario_from=play.start if play else "tests",
        cycles=args.cycles,
        isolated_msi=controller.isolates,
        tables=args.tables or ("off" if args.scenario else TABLES[0]),
    )


def _usual_topology(args: argparse.Namespace) -> Path:
    """That of the lab's own tests has network cards, which only Debian's kernels can drive in namespaces."""
    others = args.program or args.suite or args.scenario or args.long
    debian = (None, *KERNELS[:2], *ARM64_KERNELS[:3])
    return Path("lab" if others or args.kernel not in debian else "lab-cards")


def _usual_kernel(suite: str | None, architecture: Architecture) -> str:
    able = architecture.kernels if suite is None else suites.KERNELS
    return next(name for name in able if name in architecture.kernels)


def time_limit(asked: float | None, settings: GuestSettings, architecture: Architecture = AMD64) -> float:
    """Seconds for server and guest: those that were ``asked`` for, else by what is run. Raises UsageError."""
    if asked is None:
        usual = _SECONDS_LONG if settings.long or settings.suite else _SECONDS
        return usual * (_SLOW_FACTOR if settings.kernel == "lab-debug" or architecture.is_foreign else 1.0)
    if not asked > 0:
        raise UsageError(f"--timeout {asked:g}: give a number of seconds above 0")
    return asked
