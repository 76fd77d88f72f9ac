"""Fuzzers in the background of a test run: two at a time, with what processor time the tests leave over.

They belong to a process of their own, ``python -m tests.fuzz.campaign FOLDER NAME=SECONDS...``: tests count the
descriptors, children and threads of theirs.
"""

from __future__ import annotations

import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

__all__ = ["AT_ONCE", "Campaign", "Outcome", "seconds_of"]

CHECKOUT = Path(__file__).parents[2]
SECONDS = 2
"""CPU time of each target. The corpus has what 30 s without the files ``grown-*`` reached, and what twice this time
reached with them, so that this is the same in every run.
"""
LONGER = {"rings": 4}
"""CPU time of those that still reach new places then."""
SEED = 1
"""One for every run, so that the same code meets the same inputs; `scripts/fuzz` takes a new one each time."""
AT_ONCE = 2
PATIENCE_S = 900
PID = "pid"
"""File of a campaign's folder: its process."""
NOT_TOLD = -1
"""Exit status of a campaign for a process that did not start it."""
STATUS, LOG = "status", "log"
"""Files of a target in the campaign's folder: its exit status, once it has ended, and what it printed."""
_FINDINGS = ("crash-*", "timeout-*", "oom-*", "leak-*")


def seconds_of(name: str) -> int:
    """CPU time that the target ``name`` is fuzzed for."""
    return LONGER.get(name, SECONDS)


@dataclass(frozen=True)
class Outcome:
    """What became of a fuzzer."""

    name: str
    status: int
    output: str
    findings: tuple[Path, ...]

    def report(self) -> str:
        """For a failed test: the end of what the fuzzer printed, and how to see it again."""
        again = "".join(f"\nreproduce: scripts/fuzz {self.name} {path}" for path in self.findings)
        return f"fuzz target {self.name} ended with status {self.status}\n{self.output[-6000:]}{again}"


class Campaign:
    """Fuzzers in the background, which leave what becomes of them in a folder: whoever knows that may wait for them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def is_started(self) -> bool:
        """Whether it was started from here."""
        return self._process is not None

    def start(self, names: Sequence[str], seconds: int | None = None) -> None:
        """Fuzz each of ``names`` from now on, for ``seconds`` of CPU time or as long as :func:`seconds_of` says.

        Once, and by whoever closes it.
        """
        targets = [f"{name}={seconds or seconds_of(name)}" for name in names]
        sources = (CHECKOUT, CHECKOUT / "protocol", CHECKOUT / "device")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.fuzz.campaign", str(self.folder), *targets],
            cwd=self.folder,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(map(str, sources)), "PYTHONHASHSEED": "0"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        (self.folder / PID).write_text(str(self._process.pid))

    def outcome(self, name: str) -> Outcome:
        """Wait for a fuzzer. Its status is that of the campaign if that ended before it."""
        status, limit = self.folder / name / STATUS, time.monotonic() + PATIENCE_S
        while not status.exists() and (ended := self._ended()) is None:
            if time.monotonic() > limit:
                raise TimeoutError(f"fuzz target {name} did not end within {PATIENCE_S} s")
            time.sleep(0.05)
        log = self.folder / name / LOG
        return Outcome(
            name,
            int(status.read_text()) if status.exists() else ended,
            log.read_text(errors="replace") if log.exists() else "",
            tuple(path for pattern in _FINDINGS for path in (self.folder / name).glob(pattern)),
        )

    def _ended(self) -> int | None:
        """None while the campaign runs; then its exit status, which only the process that started it is told."""
        if self._process is not None:
            return self._process.poll()
        try:
            watched = os.pidfd_open(int((self.folder / PID).read_text()))
        except ProcessLookupError:
            return NOT_TOLD
        try:
            return NOT_TOLD if select.select([watched], [], [], 0)[0] else None
        finally:
            os.close(watched)

    def close(self) -> None:
        """End the fuzzers that were started from here and still run; what they found stays."""
        if self._process is not None and self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        if not any(True for pattern in _FINDINGS for _ in self.folder.glob(f"*/{pattern}")):
            shutil.rmtree(self.folder, ignore_errors=True)


def _fuzz(folder: Path, target: str) -> None:
    name, _, seconds = target.partition("=")
    work = folder / name
    work.mkdir()
    command = [sys.executable, "-m", "tests.fuzz.run", name, "--seconds", seconds, "--seed", str(SEED)]
    with (work / LOG).open("wb") as log:
        done = subprocess.run(
            [*command, "--work", str(work), "--background"],
            cwd=work,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            check=False,
        )
    (work / "ending").write_text(str(done.returncode))
    (work / "ending").rename(work / STATUS)


def main(folder: str, *targets: str) -> None:
    """The campaign's own process."""
    with ThreadPoolExecutor(AT_ONCE) as pool:
        for outcome in [pool.submit(_fuzz, Path(folder), target) for target in targets]:
            outcome.result()


if __name__ == "__main__":
    main(*sys.argv[1:])
