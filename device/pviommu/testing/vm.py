"""The lab's guest, booted once and kept: commands are carried out in it, and its server is asked as any other."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import math
import os
import re
import select
import shutil
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from ..control.client import ConnectionLostError
from ..control.description import CommandError
from ..lab.console import HOW_TO_LEAVE
from ..lab.problems import EnvironmentProblem
from ..lab.processes import Child
from ..lab.provision import find_toolbox
from .server import Watched

__all__ = ["Said", "Vm", "VmError", "why_not"]

AGENT = Path(__file__).with_name("guest-agent.sh")
_PIECE = 1024
_GRACE_S = 15.0
"""How much longer than a command may take its answer is waited for."""
_END_S = 30.0
_LINES = 60


class VmError(Exception):
    """The VM does not boot, or does not answer any more; the text says why."""


@dataclass(frozen=True)
class Said:
    """What came of a command in the guest."""

    status: int
    output: str
    """standard error included"""


def why_not() -> str | None:
    """Why no VM can be booted at once, and what helps; None if one can."""
    try:
        found = find_toolbox()
    except EnvironmentProblem as problem:
        return f"{problem.what}; {problem.how_to_get_it}"
    if found is not None:
        return None
    return "QEMU and kernel of the lab are not in its cache: `pviommu lab run --only-setup` puts them there"


class Vm(Watched):
    """A booted guest. A context manager; ends it.

    All of its life is bounded: it is killed after ``limit_s``.
    """

    def __init__(self, results: Path, limit_s: float, options: Sequence[str] = ()) -> None:
        """``results``: folder of the lab's results; ``options``: further ones of ``pviommu lab run``. Without
        ``--tables`` among them each map is an operation, which rules can be about.
        """
        super().__init__("vm", 30.0)
        self.results = results
        self.limit_s = limit_s
        self._output = b""
        self._lines: list[str] = []
        self._control_socket: Path | None = None
        self._child = Child()
        self._typed, self._types = os.pipe()
        self._reads, self._written = os.pipe()
        self._is_closed = False
        self._ends = math.inf
        self._watchdog = threading.Timer(limit_s, self._kill)
        self._watchdog.daemon = True
        self._agent = results / AGENT.name
        self._command = [
            *(sys.executable, "-m", "pviommu", "lab", "run", "--keep", "--run", str(self._agent)),
            *("--results", str(results), "--timeout", f"{limit_s:g}", "--tables", "off", *options),
        ]

    def _kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._child.kill()

    @property
    def control_socket(self) -> Path:
        if self._control_socket is None:
            raise ConnectionLostError("the VM has no server yet")
        return self._control_socket

    def __enter__(self) -> Self:
        try:
            self.results.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(AGENT, self._agent)  # an installed one need not be executable
            self._agent.chmod(0o755)
            try:
                with open(self._written, "wb") as written:
                    self._child.start(self._command, output=written, typed=self._typed)
            finally:
                os.close(self._typed)
            self._ends = time.monotonic() + self.limit_s
            self._watchdog.start()
            self._wait_for(re.escape(HOW_TO_LEAVE), self.limit_s)
            for line in self._lines:
                if line.startswith("control socket "):
                    self._control_socket = Path(line.removeprefix("control socket "))
            self._type(f"exec sh /lab/add/{AGENT.name} console")
            self._wait_for("@@ready", self.limit_s)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # -- the guest --------------------------------------------------------------------------------------------------

    def run(self, command: str, timeout_s: float = 60.0) -> Said:
        """Carry out a shell command in the guest, in the folder of files that were added (``lab run --add``), with what
        ``lab run --run`` gives to programs in the environment. Its status is 143 (or 124) if it took longer than
        ``timeout_s``. Raises VmError if the guest does not answer.
        """
        coded = base64.b64encode(command.encode()).decode()
        for place in range(0, len(coded), _PIECE):
            self._type(f"add {coded[place : place + _PIECE]}")
            self._wait_for("@@added", _GRACE_S)
        self._type(f"run {max(1, round(timeout_s))}")
        begin = len(self._lines)
        status, digest = self._wait_for(r"@@status (\d+) (\w+)", timeout_s + _GRACE_S).groups()
        said = [line.removeprefix("@@said ") for line in self._lines[begin:] if line.startswith("@@said ")]
        output = base64.b64decode("".join(said))
        if hashlib.md5(output, usedforsecurity=False).hexdigest() != digest:
            raise VmError(f"the output of {command!r} was not received whole")
        return Said(int(status), output.decode(errors="replace"))

    def check(self, command: str, timeout_s: float = 60.0) -> str:
        """The same for one that must end with status 0: its output. Raises AssertionError with its output otherwise."""
        said = self.run(command, timeout_s)
        if said.status:
            raise AssertionError(f"{command!r} ended with status {said.status} in the guest:\n{said.output}")
        return said.output

    def _type(self, line: str) -> None:
        try:
            os.write(self._types, line.encode() + b"\n")
        except OSError as error:
            raise VmError(self._why(error.strerror or "it takes no commands")) from error

    def _wait_for(self, pattern: str, seconds: float) -> re.Match[str]:
        """The next line of what the lab and the guest say that is like this."""
        deadline = time.monotonic() + seconds
        while True:
            while (end := self._output.find(b"\n")) >= 0:
                line = self._output[:end].decode(errors="replace").strip("\r")
                self._output = self._output[end + 1 :]
                self._lines.append(line)
                if match := re.search(pattern, line):
                    return match
            ready, _, _ = select.select([self._reads], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                raise VmError(self._why(f"nothing came within {seconds:g} s"))
            data = os.read(self._reads, 1 << 16)
            if not data:
                raise VmError(self._why("it is gone"))
            self._output += data

    def _why(self, what: str) -> str:
        if time.monotonic() >= self._ends:  # whoever waits may see that before the watchdog has acted
            what = f"the VM was ended after {self.limit_s:g} s"
        said = "\n".join(line for line in self._lines[-_LINES:] if not line.startswith("@@"))
        return f"{what}; the lab said last:\n{said}"

    def close(self) -> list[str]:
        """End the guest; what was wrong with that, the first time that it is called."""
        if self._is_closed:
            return []
        self._is_closed = True
        self.hang_up()
        with contextlib.suppress(OSError):
            os.write(self._types, b"end\n")
        os.set_blocking(self._reads, False)
        end, status = time.monotonic() + _END_S, None
        while self._child.started and time.monotonic() < end and (status := self._child.wait(0.05)) is None:
            with contextlib.suppress(OSError):  # nobody is to wait for room in the pipe
                self._output += os.read(self._reads, 1 << 16)
        with contextlib.suppress(BlockingIOError):
            while data := os.read(self._reads, 1 << 16):
                self._output += data
        self._watchdog.cancel()
        self._child.stop()
        for descriptor in (self._types, self._reads):
            os.close(descriptor)
        self._lines += self._output.decode(errors="replace").splitlines()
        return [] if status == 0 else [self._why(f"`pviommu lab run` ended with status {status}")]

    # -- for a report -----------------------------------------------------------------------------------------------

    def kernel_log(self) -> list[str]:
        """The last lines of the guest's ``dmesg``. Raises VmError if the guest does not answer."""
        return self.run(f"dmesg | tail -n {_LINES}", 10.0).output.splitlines()

    def log(self) -> list[str]:
        """Of the guest's kernel; of its console, if it does not answer."""
        try:
            return ["kernel log:", *self.kernel_log()]
        except VmError as error:
            found = self.results / "latest" / "console.log"
            lines = found.read_text(errors="replace").splitlines() if found.is_file() else []
            return [str(error).splitlines()[0], "console:", *lines[-_LINES:]]

    def unload(self) -> None:
        """Take the rules away."""
        if self.scenario is not None:
            self.scenario = None
            with contextlib.suppress(CommandError, ConnectionLostError):
                self.call("rules-unload")
