"""One run: the server on its topology, a guest beside it, both ended, and what that was worth."""

from __future__ import annotations

import contextlib
import functools
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from libvfio_user import VARIABLE, Library

from .. import __version__, resources
from ..host_errors import is_host_error, named, write_whole
from ..reports.ktap import KtapRun
from ..transports import LIBRARY
from . import added, console, debugger, faults, report
from .architecture import AMD64, InterruptController
from .guest_settings import CONFIG_PATH, GuestSettings
from .image import KernelModules, guest_image
from .listener import Listener
from .output import GuestOutput
from .problems import RunError
from .provision import Toolbox
from .requests import Requests
from .scenario import EVENTS, RULES_PATH, Played
from .second_boot import with_second_boot
from .server import Capabilities, ServerProcess, messages, summary
from .vm import KERNEL_ARGUMENTS, Alarm, GuestTimeoutError, VirtualMachine, VmConfig, nic_backend

__all__ = ["GUEST_MODULES", "OF_THE_REPORT", "Job", "Rules", "Setup", "judged_run", "serve_options", "short_folder"]

PRINTED_PATH = "/lab/expect.json"
"""Where the guest finds the server's capabilities as the server printed them."""

EXPECTED_PATH = "/lab/capabilities"
"""Where the guest finds the lines that its driver must show."""

GUEST_MODULES = ("virtio_net", "8021q", "vfio_pci", "vfio_iommu_type1")
"""Modules of the kernel's own that the guest's tests load, where the kernel has them as modules."""

EARLY_PATH = "/lab/early-modules"
"""Where the guest finds the names of modules that it loads before it can report."""

OF_THE_REPORT = ("virtio_pci", "virtio_console")
"""What the report's port needs, which most kernels have built in."""

TAKEOVER = "driver/pviommu-takeover"
"""The script for devices whose driver came first. Users have it in their path, and so has the guest."""

SUITE = "/lab/suite"
"""Where the guest finds the programs of a suite."""

_SERVER_LOG = "server.jsonl"
_PROGRAM_OUTPUT = "program.out"
_CONTROL = "control"
_PAGES_OF_1_GIB = ("-cpu", "qemu64,pdpe1gb=on")  # which TCG's usual processor has not; a suite maps one
_LONGEST_SOCKET_PATH = 90  # sun_path holds 108 bytes; sockets are named after endpoints


@dataclass(frozen=True, slots=True)
class Setup:
    """What every run of this host shares."""

    toolbox: Toolbox
    modules: Sequence[Path]
    accelerator: str
    programs: Sequence[Path] = ()
    suite: Sequence[Path] = ()
    """programs of a suite that the guest is to run"""
    library: Library | None = None
    """libvfio-user, if that is what speaks with QEMU"""


class Rules(Protocol):
    """What plays rules of faults in a run: a scenario (:class:`.scenario.Play`), or a sweep."""

    @property
    def at_boot(self) -> bool:
        """Whether :meth:`load` is called before the machine is started."""

    def load(self, control: Path) -> str | None:
        """Load rules by the server's control socket; why that is not possible."""

    def requests(self, control: Path) -> Mapping[str, Callable[[], str | None]]:
        """What the guest may ask for, by name; each says why it is not done."""

    def alarm(self, requests: Alarm) -> Alarm:
        """What is to be rung while the guest works, ``requests`` included."""

    def expectations(self) -> bytes:
        """What the guest finds in :data:`.scenario.RULES_PATH`."""

    def finish(self, control: Path) -> None:
        """The guest is gone, the server is still there."""

    def played(self, *, wanted: bool) -> Played | None:
        """For the record of the run: see :meth:`.scenario.Play.played`."""


@dataclass(frozen=True, slots=True)
class Job:
    """One run, everything settled. ``memory`` is in bytes, ``timeout`` in seconds.

    With ``gdb`` the guest waits for a debugger. ``terminal`` gets what the user's program writes, and the console of a
    guest that is kept.
    """

    setup: Setup
    topology: Path
    capabilities: Capabilities
    settings: GuestSettings
    memory: int
    timeout: float
    folder: Path
    program: Sequence[str]
    gdb: bool = False
    terminal: console.Terminal = console.STANDARD
    say: Callable[[str], None] = print
    """takes what the user must know while the machine runs"""
    added: added.Added = field(default_factory=added.Added)
    """files of the user's"""
    play: Rules | None = None
    """the scenario of faults"""
    controller: InterruptController = AMD64.controllers[0]
    """of the machine's interrupts"""


def serve_options(controller: InterruptController) -> list[str]:
    """What ``pviommu serve`` must be told of a machine."""
    return ["--msi", controller.window] if controller.window else []


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


def judged_run(job: Job, listener: Listener, tested: Callable[[report.RunRecord], None]) -> report.RunRecord:
    """Run ``job`` to its end and judge it.

    If the guest is kept after its tests, ``tested`` gets the record as it is then, without the server's counts. Raises
    UsageError, EnvironmentProblem; whatever else goes wrong is in the record.
    """
    judge = _Judge(job, listener)
    try:
        problems = _boot(job, listener, lambda: tested(judge.record([])), judge.refused)
    except GuestTimeoutError as late:
        return judge.record([str(late) or f"the guest did not finish within {job.timeout:g} s"], "timeout")
    except RunError as problem:
        return judge.record([problem.what], "error")
    except OSError as problem:
        if not is_host_error(problem):
            raise
        return judge.record([named(problem)], "error")
    return judge.record(problems)


class _Judge:
    """Makes records of one run; its time and its report end when the first one is made."""

    def __init__(self, job: Job, listener: Listener) -> None:
        self._job = job
        self._listener = listener
        self._began = time.monotonic()
        self._report: tuple[KtapRun, float] | None = None
        self.refused: dict[int, dict[str, Any]] = {}
        """requests that the server has told of, by number"""

    def record(self, problems: list[str], verdict: str = "") -> report.RunRecord:
        """The run with what speaks against it; without a ``verdict`` the report is judged too."""
        if self._report is None:
            self._report = self._listener.parser.finish(), time.monotonic() - self._began
        ktap, seconds = self._report
        if not verdict:  # of a run that was cut off, missing tests and lines say nothing more
            program, status = self._job.settings.program, self._listener.program_status
            if program and status:
                problems = [*problems, f"{program} ended with status {status}"]
            if self._played:
                problems = [*problems, *self._played.problems]
            problems = report.judge(ktap, self._listener.exit_status, problems, self._job.settings.suite)
            verdict = "failed" if problems else "passed"
        if verdict != "passed":  # it may be why
            problems = [*problems, *messages(self._job.folder / _SERVER_LOG, "ranges-full")]
        setup = self._job.setup
        versions = {"pviommu": __version__, "python": platform.python_version(), **setup.toolbox.versions}
        versions["accelerator"] = setup.accelerator
        if setup.library is not None:
            versions[LIBRARY] = f"{setup.library.generation.value}, {setup.library.path}"
        counts = summary(self._job.folder / _SERVER_LOG)
        suite = self._job.settings.suite
        refused = () if verdict == "passed" else self.refused.values()
        unexpected = self._listener.spans.unexpected(refused)
        return report.RunRecord(
            *(verdict, ktap, problems, seconds, versions, counts, self._program(), suite, unexpected, self._played)
        )

    @property
    def _played(self) -> Played | None:
        play = self._job.play
        return play.played(wanted=self._job.settings.scenario_alone) if play else None

    def _program(self) -> report.ProgramRecord | None:
        name = self._job.settings.program
        output = self._job.folder / _PROGRAM_OUTPUT
        size = output.stat().st_size if output.is_file() else 0
        return report.ProgramRecord(name, self._listener.program_status, output.name, size) if name else None


def _boot(job: Job, listener: Listener, tested: Callable[[], None], refused: dict[int, dict[str, Any]]) -> list[str]:
    """Start the server and the guest, listen to its end; returns what was wrong with the server's end.

    ``refused`` gets the requests that the server refused, however the guest ends.
    """
    deadline = time.monotonic() + job.timeout
    with short_folder() as short:
        write_whole(short / "initrd", _image(job))
        control = short / _CONTROL
        options = ["--ctl", str(control), "--history", str(faults.HISTORY), *serve_options(job.controller)]
        environment = {}
        if library := job.setup.library:
            options += ["--transport", LIBRARY]
            if os.path.isabs(library.path):  # an installed one is found by its name
                environment[VARIABLE] = library.path
        rules: Mapping[str, Callable[[], str | None]] = {}
        if play := job.play:
            options += ["--events", str(job.folder / EVENTS)]
            rules = play.requests(control)
        with (
            ServerProcess(job.topology, short, job.folder / _SERVER_LOG, job.program, options, environment) as server,
            _output(job) as output,
            contextlib.ExitStack() as last,
        ):
            server.start()
            listener.spans.on_failed = functools.partial(_ask, server, control, refused)
            if play:
                last.callback(play.finish, control)
                if play.at_boot and (reason := play.load(control)):
                    raise RunError(f"the rules of {job.settings.scenario} cannot be loaded: {reason}")
            last.callback(listener.spans.on_failed)  # the first to be called: it lets a server that was stopped go on
            if listener.verbose or job.settings.keep:
                job.say(f"control socket {control}")
            config = _machine(job, short, output)
            with VirtualMachine(job.setup.toolbox, config) as machine:
                write_whole(job.folder / "qemu-command.txt", machine.command_line + "\n")
                machine.start()
                if output is not None:
                    output.far.close()  # so that the end of the machine is the end of the output
                if config.gdb_socket is not None:
                    job.say(debugger.instructions(config.gdb_socket, job.setup.toolbox.vmlinux, job.setup.modules))
                came = None if output is None else functools.partial(output.wait_for, deadline=deadline)
                requests = Requests(server, machine, machine.send, output_came=came, rules=rules)
                _listen(job, machine, requests, listener, deadline)
                if config.console_socket is not None and listener.exit_status is not None:
                    tested()
                    job.say(console.HOW_TO_LEAVE)
                    # The guest's shell waits for this line: its first prompt would have no reader yet.
                    joined = functools.partial(machine.send, "console")
                    console.attach(config.console_socket, machine.report, job.terminal, joined)
                    job.say("")  # whatever the guest's last line was
            last.close()
            return [*server.stop(), *(output.problems if output is not None else ())]


def _ask(server: ServerProcess, control: Path, refused: dict[int, dict[str, Any]]) -> None:
    with contextlib.suppress(ProcessLookupError):
        server.resume()  # a test may have stopped it
        refused |= faults.ask(control)


def _output(job: Job) -> contextlib.AbstractContextManager[GuestOutput | None]:
    if not job.settings.program:
        return contextlib.nullcontext()
    return GuestOutput(job.folder / _PROGRAM_OUTPUT, job.terminal.writes)


def _listen(job: Job, machine: VirtualMachine, requests: Requests, listener: Listener, deadline: float) -> None:
    """Take the report to its end, which is its last line where the guest stays, else the end of QEMU."""
    for line in machine.lines(deadline, job.play.alarm(requests) if job.play else requests):
        if not requests.take(line):
            listener.line(line)
        if job.settings.keep and listener.exit_status is not None:
            break
    requests.finish()


def _image(job: Job) -> bytes:
    toolbox = job.setup.toolbox
    own = KernelModules(toolbox.modules)
    early = [name for name in OF_THE_REPORT if name in own]
    files = {
        PRINTED_PATH: job.capabilities.printed,
        EXPECTED_PATH: "".join(f"{line}\n" for line in job.capabilities.driver_lines).encode(),
        CONFIG_PATH: job.settings.config(),
        EARLY_PATH: "".join(f"{name}\n" for name in early).encode(),
    }
    if job.play:
        files[RULES_PATH] = job.play.expectations()
    executables = {f"{SUITE}/{path.name}": path.read_bytes() for path in job.setup.suite}
    for place, path in job.added.files.items():
        (executables if place in job.added.executable else files)[place] = path.read_bytes()
    image = guest_image(
        toolbox,
        resources.guest_tools(),
        job.setup.modules,
        programs=[*job.setup.programs, resources.guest_tools() / TAKEOVER],
        extra_modules=[*early, *(name for name in GUEST_MODULES if name in own)],
        files=files,
        executables=executables,
    )
    return with_second_boot(image, toolbox.kernel_image, job.settings) if job.settings.long else image


def _machine(job: Job, short: Path, output: GuestOutput | None) -> VmConfig:
    sockets = [short / name for name in job.capabilities.sockets]
    return VmConfig(
        initrd=short / "initrd",
        console_log=job.folder / "console.log",
        qemu_log=job.folder / "qemu.log",
        accelerator=job.setup.accelerator,
        memory=job.memory,
        vcpus=job.settings.vcpus,
        sockets=sockets,
        # The IOMMU and the first endpoint, and every second one, are on the root bus. Where Linux gave the buses their
        # numbers, not firmware, a rescan gives them anew, below functions that are in use; so there is one bus only.
        behind_ports=sockets[2:3] if job.setup.toolbox.architecture.is_foreign else sockets[2::2],
        nic=nic_backend(job.setup.toolbox),
        kernel_arguments=_kernel_arguments(job),
        machine_options=job.controller.machine,
        console_socket=short / "console" if job.settings.keep else None,
        gdb_socket=short / "gdb" if job.gdb else None,
        output=None if output is None else output.far.fileno(),
        extra_arguments=_PAGES_OF_1_GIB if job.settings.suite and job.setup.accelerator == "tcg" else (),
    )


def _kernel_arguments(job: Job) -> tuple[str, ...]:
    own = job.setup.toolbox.kernel_arguments
    return (*KERNEL_ARGUMENTS, *job.settings.kernel_arguments, *own, *(debugger.KERNEL_ARGUMENTS if job.gdb else ()))
