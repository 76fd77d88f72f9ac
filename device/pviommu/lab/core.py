"""Builds the server's native core: with the host's compiler, or else with that of the private root."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..native import build
from .build import find_sandbox
from .problems import RunError
from .processes import Run, run
from .progress import Progress
from .provision import Toolbox

__all__ = ["STEPS", "build_core"]

STEPS = 1


def build_core(
    toolbox: Toolbox,
    cache: Path,
    progress: Progress,
    run: Run = run,
    *,
    environment: Mapping[str, str] = os.environ,
) -> Path:
    """The library, from ``cache`` if nothing changed. Raises RunError with the compiler's output."""
    places = {**environment, "XDG_CACHE_HOME": str(cache.parent)}
    with contextlib.suppress(build.LibraryError):
        kept = build.find_library(places)
        progress.skip(STEPS)
        return kept
    progress.step("building the native core")
    try:
        if build.find_compiler(places) is not None:
            made = build.build(places)
        else:
            made = build.build(places, compile_with=_Inside(toolbox, run))
    except build.BuildError as problem:
        raise RunError("the native core cannot be built", str(problem)) from problem
    progress.done()
    return made


class _Inside:
    """The compiler of the private root. Its C library may be newer than the host's: see ``build.OPTIONS``."""

    def __init__(self, toolbox: Toolbox, run: Run) -> None:
        self._toolbox = toolbox
        self._run = run

    def __call__(self, arguments: Sequence[str], folder: Path) -> subprocess.CompletedProcess[str]:
        work = Path(tempfile.mkdtemp(dir=self._toolbox.root / "build"))
        try:
            for source in folder.iterdir():
                shutil.copyfile(source, work / source.name)
            inside = "/" + str(work.relative_to(self._toolbox.root))
            sandbox = find_sandbox(self._toolbox.root, self._run)
            command = sandbox.command(
                self._toolbox.root, ["sh", "-c", 'cd "$1" && shift && exec gcc "$@"', "sh", inside, *arguments]
            )
            outcome = self._run(command)
            if (work / "core.so").is_file():
                shutil.copyfile(work / "core.so", folder / "core.so")
        finally:
            shutil.rmtree(work, ignore_errors=True)
        return subprocess.CompletedProcess(command, outcome.status, outcome.output, "")
