"""Lines of system calls, played by the model on this host and by the kernel of the lab's guest.

Both are played by one program, guest-tools/programs/pviommu_history.c, which says what the lines are.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from wire_layout import Record

from .. import resources
from ..interfaces.iommufd import System
from ..lab.problems import EnvironmentProblem
from ..vfio_run.machine import DeviceMachine
from ..vfio_run.running import run_program

__all__ = [
    "FILE",
    "SCRIPT",
    "PlayError",
    "Value",
    "Word",
    "answers",
    "build_player",
    "call",
    "on_the_kernel",
    "on_the_model",
]

SCRIPT = "histories.sh"
"""What `pviommu lab run --run` takes, of the guest's programs, to play :data:`FILE`, which is added."""
FILE = "histories"
_NAME = "pviommu_history"
_COMPILE = ("cc", "-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror", "-D_GNU_SOURCE")


class PlayError(Exception):
    """Not all was played."""


class Word(NamedTuple):
    """A field whose value only the program knows: ``r3`` and so on."""

    text: str


Value = int | bytes | Word


def call(
    file: int,
    code: int,
    record: type[Record],
    values: Mapping[str, Value],
    *,
    after: Sequence[str] = (),
    tail: str = "",
) -> str:
    """The line of a request with a structure, whose fields are the lower bits of ``values``. ``tail``: bytes behind it;
    ``after``: words of what is kept.
    """
    words, data = [], b""
    for entry in record.FIELDS:
        value = values[entry.name]
        if isinstance(value, Word):
            words += [data.hex(), value.text]
            data = b""
        else:
            mask = (1 << 8 * entry.size) - 1
            data += value if isinstance(value, bytes) else (value & mask).to_bytes(entry.size, "little")
    return " ".join(filter(None, ("call", f"{file:x}", f"{code:x}", *words, data.hex() + tail, *after)))


def build_player(folder: Path) -> Path:
    """The program, for this host: dynamic, so that a library can be preloaded. Raises EnvironmentProblem."""
    target = folder / _NAME
    source = resources.guest_tools() / "programs" / f"{_NAME}.c"
    try:
        subprocess.run([*_COMPILE, "-o", target, source], check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        why = error.stderr[-500:] if isinstance(error, subprocess.CalledProcessError) else error.strerror
        raise EnvironmentProblem(f"{source} cannot be compiled: {why}", "install a C compiler (cc)") from error
    return target


def on_the_model(lines: Sequence[str], program: Path, system: System, machine: DeviceMachine) -> list[str]:
    """What the model answers to each line, in the order of the lines. Raises PlayError, and as run_program() does."""
    with tempfile.TemporaryDirectory(prefix="pviommu-histories-") as name:
        folder = Path(name)
        (folder / FILE).write_text(_text(lines))
        shell = 'exec "$0" "$@" <"$HISTORIES" >"$ANSWERS"'
        files = {"HISTORIES": str(folder / FILE), "ANSWERS": str(folder / "out")}
        command = ["sh", "-c", shell, str(program), *system.devices]
        status = run_program(command, system, {**os.environ, **files}, machine)
        return answers((folder / "out").read_text(), lines, f"{_NAME} under vfio run ended with status {status}")


def on_the_kernel(lines: Sequence[str], folder: Path, *options: str, timeout: int = 600) -> list[str]:
    """What Linux answers in a guest of the lab, whose results come to ``folder``. ``options``: of `pviommu lab run`.
    Raises PlayError.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / FILE).write_text(_text(lines))
    command = [sys.executable, "-m", "pviommu", "lab", "run", "--kernel", "lab"]
    command += ["--add", str(folder / FILE), "--run", str(resources.guest_tools() / "programs" / SCRIPT)]
    command += ["--results", str(folder), "--timeout", str(timeout), *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        why = (done.stderr or done.stdout)[-500:]
        raise PlayError(f"the lab's run ended with status {done.returncode}: {why}")
    return answers((folder / "latest" / "program.out").read_text(), lines)


def _text(lines: Sequence[str]) -> str:
    return "".join(f"{line}\n" for line in lines)


def answers(said: str, lines: Sequence[str], why: str = "no more were written") -> list[str]:
    """What the program wrote, as a list. Raises PlayError if there is not one for each line, but for calls that are
    timed.
    """
    found = said.splitlines()
    timed = sum(int(line.split()[2], 16) for line in lines if line.startswith("time "))
    if len(found) != len(lines) - timed:
        raise PlayError(f"{len(found)} answers to {len(lines)} lines: {why}")
    return found
