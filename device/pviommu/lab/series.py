"""Programs that run one after the other in a folder of a private root. What ran before from the same start is recalled.

A root never changes, so the output of a program depends only on the files that the folder begins with and on the
programs before it. It is kept in the root, under a digest of these, and is removed with the root. Only successes are
kept: a failure may have been the machine's.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from ..host_errors import write_whole
from .build import Sandbox
from .processes import Outcome, Run, run

__all__ = ["FOLDER", "Series", "forget"]

FOLDER = "/build/series"
"""The path of the folder as programs see it and print it; on the host each series has a folder of its own."""

_KEPT = "said"


class Series:
    """A context manager; ``files`` are what the folder begins with, by their names in it."""

    def __init__(self, root: Path, sandbox: Sandbox, files: Mapping[str, Path], run: Run = run) -> None:
        self.is_recalled = True
        """whether nothing had to be run so far"""
        self._root = root
        self._sandbox = sandbox
        self._files = files
        self._run = run
        self._programs: list[Sequence[str]] = []
        self._digest = hashlib.sha256()
        for name, path in sorted(files.items()):
            self._digest.update(json.dumps([name, hashlib.sha256(path.read_bytes()).hexdigest()]).encode())
        self._work: Path | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._work is not None:
            shutil.rmtree(self._work, ignore_errors=True)

    def run(self, *program: str) -> Outcome:
        """The outcome of ``program``, run now or kept from an earlier series that began in the same way."""
        self._digest.update(json.dumps(program).encode())
        kept = self._root / _KEPT / self._digest.hexdigest()[:32]
        if self.is_recalled and kept.is_file():
            self._programs.append(program)
            return Outcome(0, kept.read_text())
        if self.is_recalled:
            self.is_recalled = False
            for earlier in self._programs:
                self._run_now(earlier)
        outcome = self._run_now(program)
        if outcome.status == 0:
            kept.parent.mkdir(exist_ok=True)
            write_whole(kept, outcome.output)
        return outcome

    def _run_now(self, program: Sequence[str]) -> Outcome:
        if self._work is None:
            self._work = Path(tempfile.mkdtemp(prefix="series-", dir=self._root / "build"))
            for name, path in self._files.items():
                copy = self._work / name
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, copy)
        inside = f"/{self._work.relative_to(self._root)}"
        outcome = self._run(self._sandbox.command(self._root, [word.replace(FOLDER, inside) for word in program]))
        return Outcome(outcome.status, outcome.output.replace(inside, FOLDER))


def forget(root: Path) -> None:
    """Forget all outcomes, so that every program is run again."""
    shutil.rmtree(root / _KEPT, ignore_errors=True)
