"""Starting and ending child processes so that none outlives the lab."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import IO

from ..host.signals import handled

__all__ = ["Child", "Outcome", "Run", "run"]

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_ENDING_SIGNALS = signal.SIGINT, signal.SIGTERM, signal.SIGHUP
_LIBC = ctypes.CDLL(None, use_errno=True)


class Outcome:
    """The status and the output of a finished program, standard error included."""

    __slots__ = ("output", "status")

    def __init__(self, status: int, output: str) -> None:
        self.status = status
        self.output = output


Run = Callable[[Sequence[str]], Outcome]
"""Runs a short program to its end; tests put a fake in its place."""


def run(command: Sequence[str]) -> Outcome:
    """Run ``command`` to its end with no input. A program that does not exist has status 127, as in a shell."""
    environment = {**os.environ, "LC_ALL": "C"}
    try:
        finished = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=environment,
            text=True,
            errors="replace",
            check=False,
        )
    except OSError as problem:
        return Outcome(127, f"{command[0]}: {problem.strerror}")
    return Outcome(finished.returncode, finished.stdout)


def _die_with_parent() -> None:
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # a lab that is killed outright cannot clean up


@contextlib.contextmanager
def _signals_held_back() -> Iterator[None]:
    """Handlers of signals that end the lab are called only when the block is over.

    Blocking the signals would not be enough: that holds for one thread, the kernel may deliver them to another, and
    Python then still calls the handler in the main thread.
    """
    came: list[int] = []
    is_main = threading.current_thread() is threading.main_thread()  # handlers run only there
    numbers = [number for number in _ENDING_SIGNALS if is_main and callable(signal.getsignal(number))]
    try:
        with handled(numbers, lambda number, _: came.append(number)):
            yield
    finally:
        for held in came:
            signal.raise_signal(held)


class Child:
    """A long-running program in a session of its own (Ctrl-C reaches only the lab), which dies with the lab.

    The object exists before the program does, so that a caller that is interrupted while starting it can still stop it.
    """

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def started(self) -> bool:
        """Whether a program was started."""
        return self._process is not None

    @property
    def pid(self) -> int:
        """The program's process. Raises ProcessLookupError if it is not running."""
        return self._running().pid

    def start(
        self,
        command: Sequence[str],
        *,
        output: IO[bytes],
        pass_fds: Sequence[int] = (),
        environment: Mapping[str, str] | None = None,
        typed: int = subprocess.DEVNULL,
        is_quiet: bool = False,
    ) -> None:
        """Start ``command``; both its streams go to ``output``, and ``typed`` is a descriptor of what it reads. Of one
        that ``is_quiet`` only standard error goes there, and the rest nowhere. Raises OSError when it cannot be
        started.
        """
        with _signals_held_back():  # a handler that raises between fork and assignment would lose the child
            self._process = subprocess.Popen(
                command,
                stdin=typed,
                stdout=subprocess.DEVNULL if is_quiet else output,
                stderr=output,
                pass_fds=tuple(pass_fds),
                env=None if environment is None else {**os.environ, **environment},
                start_new_session=True,
                preexec_fn=_die_with_parent,
            )

    def poll(self) -> int | None:
        """The exit status if the program has ended, else None."""
        return None if self._process is None else self._process.poll()

    def wait(self, seconds: float | None) -> int | None:
        """Wait for the program to end. Returns its exit status, or None if it did not end within ``seconds`` (None: no
        limit)."""
        if self._process is None:
            return None
        try:
            return self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None

    def pause(self) -> None:
        """Stop the program (SIGSTOP); returns once all its threads have stopped. Raises ProcessLookupError if it has
        ended."""
        process = self._running()
        process.send_signal(signal.SIGSTOP)
        # The signal may still be on its way to a thread that runs on another processor.
        os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)

    def resume(self) -> None:
        """Let a stopped program go on (SIGCONT). Raises ProcessLookupError if it has ended."""
        self._running().send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """End the program and what it started with SIGKILL; returns once it is dead.

        Raises ProcessLookupError if it has ended already.
        """
        process = self._running()
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None or self._process.poll() is not None:
            raise ProcessLookupError("the program is not running")
        return self._process

    def stop(self, *, grace: float = 5.0) -> int | None:
        """End the program with SIGTERM, after ``grace`` seconds with SIGKILL.

        Returns its exit status, None if it was never started.
        """
        if self._process is None:
            return None
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(grace)
            except subprocess.TimeoutExpired:
                # The whole session: what the program started must not outlive it either.
                os.killpg(self._process.pid, signal.SIGKILL)
        return self._process.wait()
