"""Fuzz one target, or run single inputs through it.

    scripts/fuzz NAME [--seconds N] [FILE...]

Without FILE: mutate the corpus for N seconds of this process's CPU time, whatever else the machine does; new inputs
go to a folder of their own and not into the checkout. Exit status 0: nothing found; otherwise the input that shows
the defect is saved and named. With FILE: run these inputs, as a reproducer.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

__all__ = ["CORPUS", "NAMES", "main", "seeds_of"]

CORPUS = Path(__file__).parent / "corpus"
SHIPPED = {"topology": Path(__file__).parents[2] / "qemu-configs"}
"""Folders whose files are inputs too."""
NAMES = ("frames", "version", "regions", "irqs", "dma_maps", "rings", "smmu", "tables", "topology", "vfio", "virtio")
"""The targets, each a module of this folder with ``target(data)`` and ``TOKENS``, words for the mutator."""
INSTRUMENTED = ["wire_layout", "vfio_user", "pviommu_abi", "smmuv3", "pviommu"]
MAX_INPUT = 2048
MEMORY_LIMIT_MB = 768
HANG_S = 120
"""Bound of one input: generous, because the process may be starved; loops without end are told by counting."""
WALL_FACTOR = 250
"""Seconds of wall time granted for each second of CPU time: in the background it gets what others leave over."""
NO_ATHERIS = (
    "atheris is not installed: it has wheels for CPython 3.11 to 3.14 on x86-64 Linux, "
    f"and this is {sys.version.split()[0]}"
)


def seeds_of(name: str) -> list[Path]:
    """The corpus of a target, in order."""
    return sorted(file for folder in _folders(name) for file in folder.iterdir() if file.is_file())


def _folders(name: str) -> list[Path]:
    return [CORPUS / name, *([SHIPPED[name]] if name in SHIPPED else [])]


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; see the module text."""
    parser = argparse.ArgumentParser(prog="scripts/fuzz", description=__doc__.splitlines()[0])
    parser.add_argument("name", choices=NAMES)
    parser.add_argument("--seconds", type=int, default=30, help="CPU time (default: 30)")
    parser.add_argument("--seed", type=int, default=0, help="of the mutations (default 0: another one each time)")
    parser.add_argument("--work", type=Path, help="folder for new inputs and findings (default: a new one)")
    parser.add_argument("--background", action="store_true", help="only with processor time that nobody else wants")
    parser.add_argument("files", nargs="*", type=Path, metavar="FILE", help="run these inputs only")
    given = parser.parse_args(arguments)
    if given.background:
        _stand_back()
    if given.files:
        target = importlib.import_module(f"tests.fuzz.{given.name}").target
        for file in given.files:
            target(file.read_bytes())
            print(f"{file}: nothing found")
        return 0
    work = given.work or Path(tempfile.mkdtemp(prefix=f"pviommu-fuzz-{given.name}-"))
    return _fuzz(given.name, given.seconds, given.seed, work)


def _stand_back() -> None:
    """The lowest priority, within the session of this process and for all of it."""
    os.nice(19)
    with contextlib.suppress(OSError):  # a kernel without groups of sessions
        Path("/proc/self/autogroup").write_text("19")


def _fuzz(name: str, seconds: int, seed: int, work: Path) -> int:
    """Never returns once the fuzzer has begun: its library ends the process."""
    try:
        import atheris
    except ImportError:
        print(NO_ATHERIS, file=sys.stderr)
        return 3
    with atheris.instrument_imports(include=INSTRUMENTED):
        module = importlib.import_module(f"tests.fuzz.{name}")
    new, tokens = work / "corpus", work / "tokens.dict"
    new.mkdir(parents=True, exist_ok=True)
    tokens.write_text("".join(_quote(token) for token in module.TOKENS))
    options = (
        f"-artifact_prefix={work}/",
        f"-dict={tokens}",
        f"-seed={seed}",
        f"-max_len={MAX_INPUT}",
        "-len_control=0",
        f"-max_total_time={seconds * WALL_FACTOR}",
        f"-rss_limit_mb={MEMORY_LIMIT_MB}",
        f"-timeout={HANG_S}",
        "-print_final_stats=1",
        str(new),
        *map(str, _folders(name)),
    )
    atheris.Setup([name, *options], _timed(module.target, seconds), enable_python_coverage=True)
    atheris.Fuzz()
    return 0


def _quote(token: bytes) -> str:
    return '"' + "".join(f"\\x{byte:02x}" for byte in token) + '"\n'


def _timed(target: Callable[[bytes], None], seconds: int) -> Callable[[bytes], None]:
    """``target``, until ``seconds`` of CPU time are over: then the process ends with status 0."""
    begin, parent = time.process_time(), os.getppid()
    runs = 0

    def run(data: bytes) -> None:
        nonlocal runs
        target(data)
        runs += 1
        if time.process_time() - begin > seconds:
            print(f"fuzzed: {runs} inputs in {seconds} s of CPU time", flush=True)
            os._exit(0)
        if os.getppid() != parent:  # nobody waits for the result any more
            os._exit(4)

    return run


if __name__ == "__main__":
    sys.exit(main())
