"""The server as a child process of the lab: started on a topology, asked for its capabilities, stopped."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from ..exit_status import ExitStatus
from .problems import RunError, UsageError
from .processes import Child

__all__ = ["PROGRAM", "Capabilities", "ServerProcess", "capabilities", "messages", "summary"]

PROGRAM = (sys.executable, "-m", "pviommu")
_START_SECONDS = 20.0
_POLL_SECONDS = 0.01
_USAGE = 2
_LOG_KEYS = frozenset(("time", "level", "event", "message"))  # of any record of the log


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What the server says about a topology.

    ``printed`` is its JSON unchanged, ``driver_lines`` what the guest's driver must show, ``sockets`` the file names of
    the functions' sockets, the IOMMU's first.
    """

    printed: bytes
    driver_lines: list[str]
    sockets: list[str]


def capabilities(topology: Path, program: Sequence[str] = PROGRAM, options: Sequence[str] = ()) -> Capabilities:
    """Ask ``pviommu serve --print-capabilities`` about ``topology`` with ``options``.

    Raises UsageError when the topology is refused, RunError when the server fails otherwise.
    """
    command = [*program, "serve", "--print-capabilities", str(topology), *options]
    finished = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    if finished.returncode != 0:
        raise _refusal(finished.returncode, finished.stderr.decode(errors="replace"))
    said = _object(finished.stdout.decode(errors="replace"))
    try:
        lines = [str(line) for line in said["driver_capabilities"]]
        sockets = [str(function["socket"]) for function in said["functions"]]
    except (KeyError, TypeError) as problem:
        raise RunError(f"the server's capabilities lack what the lab needs: {problem!r}") from problem
    return Capabilities(finished.stdout, lines, sockets)


class ServerProcess:
    """A running server; a context manager that leaves no process behind. Its standard error goes to ``log``, all of
    which is JSON; its standard output, a verdict for people, goes nowhere.

    ``options`` are further ones of ``pviommu serve``, ``environment`` is added to the lab's own.
    """

    def __init__(
        self,
        topology: Path,
        folder: Path,
        log: Path,
        program: Sequence[str] = PROGRAM,
        options: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._log = log
        self._pidfile = folder / "server.pid"
        self._command = [
            *(*program, "serve", str(topology), "--socket-dir", str(folder)),
            *("--log-format", "json", "--pidfile", str(self._pidfile), *options),
        ]
        self._environment = environment
        self._child = Child()
        self._stopped = False
        self._killed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Start the server; returns once it listens on its sockets. Raises UsageError, RunError."""
        with self._log.open("wb") as log:
            self._child.start(self._command, output=log, is_quiet=True, environment=self._environment)
        limit = time.monotonic() + _START_SECONDS
        while not self._pidfile.exists():
            status = self._child.poll()
            if status is not None:
                raise _refusal(status, self._log.read_text(errors="replace"))
            if time.monotonic() > limit:
                raise RunError(f"the server did not listen within {_START_SECONDS:.0f} s", self._tail())
            time.sleep(_POLL_SECONDS)

    @property
    def pid(self) -> int:
        """The server's process. Raises ProcessLookupError if it is not running."""
        return self._child.pid

    def pause(self) -> None:
        """Stop the server (SIGSTOP). Raises ProcessLookupError if it is gone."""
        self._child.pause()

    def resume(self) -> None:
        """Let a stopped server go on. Raises ProcessLookupError if it is gone."""
        self._child.resume()

    def wait(self, seconds: float) -> int | None:
        """The exit status once the server ends by itself; None if it did not within ``seconds``."""
        return self._child.wait(seconds)

    def kill(self) -> None:
        """Kill the server, so that its end is no problem; returns once it is dead.

        Raises ProcessLookupError if it is gone already.
        """
        self._child.kill()
        self._killed = True

    def stop(self) -> list[str]:
        """End the server with SIGTERM; returns what was wrong with its end, the first time it is called.

        A server that is stopped is continued first, since it could not end otherwise. That fault rules did not do what
        was expected is wrong with them and not with its end: whoever has loaded them asks for their verdict.
        """
        if self._stopped or self._killed or not self._child.started:
            return []
        self._stopped = True
        died = self._child.poll()
        if died is None:
            with contextlib.suppress(ProcessLookupError):  # it has just ended, as its status will say
                self._child.resume()
        status = self._child.stop()
        if died is not None:
            return [f"the server ended unexpectedly with status {died}: {_last_words(self._tail())}"]
        if status not in (ExitStatus.PASSED, ExitStatus.UNEXPECTED):
            return [f"the server ended with status {status} when told to stop: {_last_words(self._tail())}"]
        return []

    def _tail(self) -> str:
        return "\n".join(self._log.read_text(errors="replace").splitlines()[-20:])


def summary(log: Path) -> dict[str, Any]:
    """The fields of the last ``"event": "summary"`` line of a server log; empty if there is none."""
    found = _records(log, "summary")
    return {key: value for key, value in found[-1].items() if key not in _LOG_KEYS} if found else {}


def messages(log: Path, event: str) -> list[str]:
    """The messages of all lines of a kind of a server log; empty if there is none."""
    return [str(record.get("message")) for record in _records(log, event)]


def _records(log: Path, event: str) -> list[dict[str, Any]]:
    if not log.is_file():
        return []
    with log.open(errors="replace") as lines:
        found = [_object(line) for line in lines if f'"{event}"' in line]
    return [record for record in found if record.get("event") == event]


def _object(line: str) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _last_words(text: str) -> str:
    """The last line that a program wrote; of a JSON log record, its message."""
    lines = [line for line in text.splitlines() if line.strip()]
    if not lines:
        return "it printed nothing"
    record = _object(lines[-1])
    for key in ("message", "error", "event"):
        if isinstance(record.get(key), str):
            return str(record[key])
    return lines[-1].strip().removeprefix("pviommu: ")


def _refusal(status: int, output: str) -> UsageError | RunError:
    words = _last_words(output)
    if status == _USAGE:
        return UsageError(words)
    return RunError(f"the server ended at its start with status {status}: {words}", output)
