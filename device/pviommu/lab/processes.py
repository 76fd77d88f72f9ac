"""Starting and ending child processes so that none outlives the lab."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from typing import IO

__all__ = ["Outcome", "Run", "run", "start", "stop"]

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_LIBC = ctypes.CDLL(None, use_errno=True)


class Outcome:
    """What a finished program left: its status and its output, standard error included."""

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
    # A lab that is killed outright cannot clean up; the kernel does it then.
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def start(
    command: Sequence[str],
    *,
    stdout: int | IO[bytes],
    stderr: int | IO[bytes],
    pass_fds: Sequence[int] = (),
    environment: Mapping[str, str] | None = None,
) -> subprocess.Popen[bytes]:
    """Start ``command`` in a session of its own (Ctrl-C reaches only the lab) that dies with the lab.

    Raises OSError when the program cannot be started.
    """
    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=stderr,
        pass_fds=tuple(pass_fds),
        env=None if environment is None else {**os.environ, **environment},
        start_new_session=True,
        preexec_fn=_die_with_parent,
    )


def stop(process: subprocess.Popen[bytes], *, grace: float = 5.0) -> int:
    """End ``process`` with SIGTERM, after ``grace`` seconds with SIGKILL; returns its exit status."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(grace)
        except subprocess.TimeoutExpired:
            # The whole session: what the child started must not outlive it either.
            os.killpg(process.pid, signal.SIGKILL)
    return process.wait()
