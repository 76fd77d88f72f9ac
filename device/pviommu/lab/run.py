"""``pviommu lab run``: sets up, starts the server, boots the guest, shows its tests as they end, and judges the run."""

from __future__ import annotations

import argparse
import contextlib
import os
import platform
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Protocol, TextIO

from pviommu import __version__
from pviommu.lab import accelerator, build, provision, report, resources
from pviommu.lab.image import guest_image
from pviommu.lab.kernel import open_tree
from pviommu.lab.ktap import Event, EventKind, KtapParser, Outcome
from pviommu.lab.problems import EnvironmentProblem, ExitStatus, RunError, UsageError
from pviommu.lab.progress import Progress
from pviommu.lab.provision import Toolbox
from pviommu.lab.server import PROGRAM, Capabilities, ServerProcess, capabilities, summary
from pviommu.lab.vm import GuestTimeoutError, VirtualMachine, VmConfig, parse_memory

__all__ = ["Listener", "Setup", "add_arguments", "guarded", "main", "prepare", "run_guest", "short_folder"]

PRINTED_PATH = "/lab/expect.json"
"""Where the guest finds the server's capabilities as the server printed them."""

EXPECTED_PATH = "/lab/capabilities"
"""Where the guest finds the lines that its driver must show."""

MAX_VCPUS = 64

_SERVER_LOG = "server.jsonl"
_STATUS = {
    "passed": ExitStatus.PASSED,
    "failed": ExitStatus.FAILED,
    "error": ExitStatus.ENVIRONMENT,
    "timeout": ExitStatus.TIMEOUT,
}
_LONGEST_SOCKET_PATH = 90  # sun_path holds 108 bytes; sockets are named after endpoints


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``pviommu lab run``."""
    parser.add_argument("--results", metavar="DIR", type=Path, default=Path("lab-results"))
    parser.add_argument(
        "--timeout", metavar="SECONDS", type=float, default=300.0, help="hard limit for server and guest"
    )
    parser.add_argument("--accel", choices=("auto", "kvm", "tcg"), default="auto")
    parser.add_argument(
        "--memory", metavar="SIZE", default="5G", help="guest memory; more than 4G has frames above 4 GiB"
    )
    parser.add_argument("--vcpus", metavar="N", type=int, default=1)
    parser.add_argument("--qemu", metavar="PATH", help="QEMU to use (10.1 or later, with vfio-user-pci)")
    parser.add_argument(
        "--kernel", metavar="TREE", type=Path, help="build tree of your own kernel, with its image; default: Debian's"
    )
    parser.add_argument("--topology", metavar="FILE", type=Path, help="default: qemu-configs/lab.toml")
    parser.add_argument("--only-setup", action="store_true", help="provide everything that a run needs, then stop")
    parser.add_argument("-v", "--verbose", action="store_true", help="show the guest's diagnostics too")


@dataclass(frozen=True, slots=True)
class Setup:
    """What every run of this host shares."""

    toolbox: Toolbox
    modules: Sequence[Path]
    accelerator: str


class Provide(Protocol):
    """Makes the set-up of a run; :func:`prepare` is the real one."""

    def __call__(self, progress: Progress, *, qemu: str | None, accel: str, kernel: Path | None = None) -> Setup: ...


def prepare(progress: Progress, *, qemu: str | None = None, accel: str = "auto", kernel: Path | None = None) -> Setup:
    """Provide QEMU, kernel and modules and choose the accelerator; ``kernel`` is a build tree to use instead of
    Debian's.

    Raises UsageError, EnvironmentProblem, RunError.
    """
    tree = None if kernel is None else open_tree(kernel)
    toolbox = provision.provision(progress, qemu=qemu)
    if tree is not None:
        toolbox = replace(toolbox, kernel_image=tree.image, kernel_release=tree.release, kernel_tree=tree.tree)
    cache = provision.cache_folder(os.environ)
    modules = build.build_modules(toolbox, resources.guest_tools() / "driver", cache, progress)
    return Setup(toolbox, modules, accelerator.choose_accelerator(accel, toolbox, cache, progress))


@contextlib.contextmanager
def short_folder(environment: dict[str, str] | None = None) -> Iterator[Path]:
    """A private folder whose path is short enough for sockets; removed with its contents."""
    runtime = (os.environ if environment is None else environment).get("XDG_RUNTIME_DIR", "")
    usable = runtime and len(runtime) < _LONGEST_SOCKET_PATH // 2 and os.access(runtime, os.W_OK | os.X_OK)
    folder = Path(tempfile.mkdtemp(prefix="pviommu-", dir=runtime if usable else "/tmp"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def main(
    args: argparse.Namespace,
    *,
    out: TextIO | None = None,
    program: Sequence[str] = PROGRAM,
    provide: Provide = prepare,
) -> int:
    """Run the lab with parsed options; returns the exit status (see ExitStatus)."""
    stream = sys.stdout if out is None else out
    return guarded("pviommu lab", lambda: _run(args, stream, program, provide))


def guarded(name: str, work: Callable[[], int]) -> int:
    """Do ``work`` and give its exit status; what breaks it becomes one line that begins with ``name``, and a status."""
    try:
        with _terminated_like_interrupted():
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
        print(f"{name}: interrupted", file=sys.stderr)
        return ExitStatus.INTERRUPTED


@contextlib.contextmanager
def _terminated_like_interrupted() -> Iterator[None]:
    """Make SIGTERM unwind like Ctrl-C, so that children end and folders go."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


@dataclass(frozen=True, slots=True)
class _Job:
    """One run, everything settled."""

    setup: Setup
    topology: Path
    capabilities: Capabilities
    memory: int
    vcpus: int
    timeout: float
    folder: Path
    program: Sequence[str]


def _run(args: argparse.Namespace, stream: TextIO, program: Sequence[str], provide: Provide) -> int:
    memory = parse_memory(args.memory)
    if args.timeout <= 0:
        raise UsageError(f"--timeout {args.timeout:g}: give a number of seconds above 0")
    if not 1 <= args.vcpus <= MAX_VCPUS:
        raise UsageError(f"--vcpus {args.vcpus}: give 1 to {MAX_VCPUS}")
    topology = args.topology or resources.qemu_configs() / "lab.toml"
    if not topology.is_file():
        raise UsageError(f"--topology {topology}: no such file")
    progress = Progress(stream, provision.STEPS + build.STEPS + accelerator.STEPS)
    try:
        setup = provide(progress, qemu=args.qemu, accel=args.accel, kernel=args.kernel)
    finally:
        progress.close()
    if args.only_setup:
        print(
            f"ready: QEMU {setup.toolbox.qemu_version} ({setup.accelerator}), Linux {setup.toolbox.kernel_release}",
            file=stream,
        )
        return ExitStatus.PASSED
    offered = capabilities(topology, program)
    try:
        folder = report.new_results_folder(args.results, datetime.now(UTC))
    except OSError as problem:
        raise UsageError(f"--results {args.results}: {problem.strerror}") from problem
    job = _Job(setup, topology, offered, memory, args.vcpus, args.timeout, folder, program)
    record = _judged_run(job, Listener(stream, verbose=args.verbose))
    report.write_results(folder, record)
    print(report.summary_text(record, folder), file=stream)
    return _STATUS[record.verdict]


def _judged_run(job: _Job, listener: Listener) -> report.RunRecord:
    began = time.monotonic()
    problems: list[str] = []
    verdict = ""
    try:
        problems += _boot(job, listener, began + job.timeout)
    except GuestTimeoutError:
        verdict = "timeout"
        problems.append(f"the guest did not finish within {job.timeout:g} s")
    except RunError as problem:
        verdict = "error"
        problems.append(problem.what)
    ktap = listener.parser.finish()
    if not verdict:  # of a run that was cut off, missing tests and lines say nothing more
        problems = report.judge(ktap, listener.exit_status, problems)
        verdict = "failed" if problems else "passed"
    toolbox = job.setup.toolbox
    versions = {"pviommu": __version__, "python": platform.python_version(), **toolbox.versions}
    versions["accelerator"] = job.setup.accelerator
    counts = summary(job.folder / _SERVER_LOG)
    return report.RunRecord(verdict, ktap, problems, time.monotonic() - began, versions, counts)


def _boot(job: _Job, listener: Listener, deadline: float) -> list[str]:
    """Start the server and the guest, listen to its end; returns what was wrong with the server's end."""
    toolbox = job.setup.toolbox
    with short_folder() as short:
        expected = "".join(f"{line}\n" for line in job.capabilities.driver_lines)
        files = {PRINTED_PATH: job.capabilities.printed, EXPECTED_PATH: expected.encode()}
        initrd = short / "initrd"
        initrd.write_bytes(guest_image(toolbox, resources.guest_tools(), job.setup.modules, files=files))
        with ServerProcess(job.topology, short, job.folder / _SERVER_LOG, job.program) as server:
            server.start()
            config = VmConfig(
                initrd=initrd,
                console_log=job.folder / "console.log",
                qemu_log=job.folder / "qemu.log",
                accelerator=job.setup.accelerator,
                memory=job.memory,
                vcpus=job.vcpus,
                sockets=[short / name for name in job.capabilities.sockets],
            )
            run_guest(toolbox, config, listener, deadline, job.folder / "qemu-command.txt")
            return server.stop()


class Listener:
    """Takes the guest's report line by line: parses it and shows results as they come."""

    def __init__(self, stream: TextIO, *, verbose: bool) -> None:
        self.parser = KtapParser()
        self.exit_status: int | None = None
        self._stream = stream
        self._verbose = verbose

    def line(self, line: str) -> None:
        """Take one line of the report."""
        status = report.exit_line(line)
        if status is not None:
            self.exit_status = status
            return
        self._show(self.parser.feed(line))

    def _show(self, event: Event) -> None:
        margin = "  " * event.depth
        if event.kind is EventKind.RESULT and event.result is not None:
            result = event.result
            word = {Outcome.PASSED: "ok  ", Outcome.FAILED: "FAIL", Outcome.SKIPPED: "skip"}[result.outcome]
            tail = f" ({result.reason})" if result.reason else ""
            print(f"{margin}{word} {result.name}{tail}", file=self._stream, flush=True)
            if result.outcome is Outcome.FAILED and not self._verbose:
                for note in result.diagnostics:
                    print(f"{margin}     {note}", file=self._stream, flush=True)
        elif event.kind is EventKind.BAIL_OUT or (self._verbose and event.kind is EventKind.DIAGNOSTIC):
            print(f"{margin}{event.text}", file=self._stream, flush=True)


def run_guest(
    toolbox: Toolbox, config: VmConfig, listener: Listener, deadline: float, command_file: Path | None = None
) -> None:
    """Boot one guest and hand each line of its report to ``listener``. Raises GuestTimeoutError, RunError."""
    with VirtualMachine(toolbox, config) as machine:
        if command_file is not None:
            command_file.write_text(machine.command_line + "\n")
        machine.start()
        for line in machine.lines(deadline):
            listener.line(line)
