"""Fuzzers in the background of a test run: two at a time, with what processor time the tests leave over."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

__all__ = ["AT_ONCE", "SECONDS", "Campaign", "Outcome"]

CHECKOUT = Path(__file__).parents[2]
SECONDS = 30
"""CPU time of each target."""
SEED = 1
"""One for every run, so that the same code meets the same inputs; `scripts/fuzz` takes a new one each time."""
AT_ONCE = 2
PATIENCE_S = 900
_FINDINGS = ("crash-*", "timeout-*", "oom-*", "leak-*")


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
    """Fuzzes each of ``names`` for ``seconds`` of CPU time, from now on."""

    def __init__(self, names: Sequence[str], seconds: int = SECONDS) -> None:
        self._seconds = seconds
        self._closing = False
        self._processes: set[subprocess.Popen[str]] = set()
        self._pool = ThreadPoolExecutor(AT_ONCE)
        self._futures: dict[str, Future[Outcome]] = {name: self._pool.submit(self._fuzz, name) for name in names}

    def outcome(self, name: str) -> Outcome:
        """Wait for a fuzzer."""
        return self._futures[name].result(PATIENCE_S)

    def close(self) -> None:
        """End the fuzzers that still run, and start no more."""
        self._closing = True
        for process in list(self._processes):
            process.kill()
        self._pool.shutdown(cancel_futures=True)

    def _fuzz(self, name: str) -> Outcome:
        work = Path(tempfile.mkdtemp(prefix=f"pviommu-fuzz-{name}-"))
        command = [sys.executable, "-m", "tests.fuzz.run", name, "--seconds", str(self._seconds)]
        sources = (CHECKOUT, CHECKOUT / "protocol", CHECKOUT / "device")
        process = subprocess.Popen(
            [*command, "--seed", str(SEED), "--work", str(work), "--background"],
            cwd=work,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(map(str, sources)), "PYTHONHASHSEED": "0"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        self._processes.add(process)
        if self._closing:
            process.kill()
        output, _ = process.communicate()
        self._processes.discard(process)
        findings = tuple(path for pattern in _FINDINGS for path in work.glob(pattern))
        if not findings:
            shutil.rmtree(work)
        return Outcome(name, process.returncode, output, findings)
