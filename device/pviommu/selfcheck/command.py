"""``pviommu selfcheck``."""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections.abc import Sequence
from ctypes import addressof, c_char
from functools import partial
from pathlib import Path

from ..engine import Engine, EngineConfig
from ..exit_status import ExitStatus
from ..machine import Machine
from ..native.build import LibraryError, find_library
from ..native.core import NativeCore
from ..native.library import Library, load
from ..native.memory import NativeCopier
from ..pci.function import Environment
from ..topology import Topology
from .checker import PATHS, MakePath, Run, run_history, shortened
from .engine_path import EnginePath
from .machine_path import MachinePath
from .operations import Operation
from .profiles import PROFILES
from .ring_path import RingPath
from .settings import Setting
from .snapshot_path import SnapshotPath
from .tables_guest import TablesMachinePath, TablesRingPath, TablesWirePath
from .tables_path import TablesPath
from .wire_path import WirePath

__all__ = ["add_arguments", "main"]

EPISODE_STEPS = 5000
"""How many operations there are until a new machine with other limits begins."""
SLOW_REPLAYS = 60
PROGRESS_S = 1.0
_HEXADECIMAL = ("dfn", "gfn", "iova", "devfn", "pattern")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``pviommu selfcheck``."""
    parser.description = (
        "Carry out random operations on a small reference model and on the device, and compare results, counts, "
        "tables, quota, events and guest memory after each. Needs no VM. "
        "Exit status: 0 all agreed, 1 a difference (printed with a short history that reproduces it), 2 bad arguments, "
        "3 the native core that was asked for is not built."
    )
    parser.add_argument("--steps", type=int, default=100_000, metavar="N", help="number of operations")
    parser.add_argument("--seed", type=int, default=1, metavar="S", help="seed of the random choices")
    parser.add_argument(
        "--through",
        default="engine,ring",
        metavar="PATHS",
        help="engine: its own calls; snapshot: the same, but time and again a new engine loads what the last one "
        "saved; tables: an engine whose contexts have tables of the guest; "
        "ring: slots in shared memory; machine: the same in another process, and time and again a third one "
        "restores a snapshot of the whole machine; wire: a server process, sockets and shared memory; tables-ring, "
        "tables-machine, tables-wire: the same of a guest that owns the tables of its contexts; several with commas",
    )
    parser.add_argument("--profile", choices=PROFILES, default=PROFILES[0], help="profile of the guest")
    parser.add_argument("--core", choices=("python", "native"), default="python", help="core of the device")
    parser.add_argument(
        "--episode",
        type=int,
        metavar="K",
        help=f"only the Kth machine of the run, each with {EPISODE_STEPS} operations; default: all",
    )


def main(args: argparse.Namespace) -> int:
    """Run ``pviommu selfcheck``; returns its exit status."""
    names = args.through.split(",")
    if unknown := [name for name in names if name not in PATHS]:
        return _usage(f"--through {args.through}: {unknown[0]!r} must be one of {', '.join(PATHS)}")
    if args.steps < 1:
        return _usage(f"--steps {args.steps}: must be at least 1")
    episodes = -(-args.steps // EPISODE_STEPS)
    if args.episode is not None and not 0 <= args.episode < episodes:
        return _usage(f"--episode {args.episode}: must be 0..{episodes - 1} for {args.steps} steps")
    try:
        library = find_library() if args.core == "native" else None
    except LibraryError as error:
        print(f"pviommu: --core native: {error}", file=sys.stderr)
        return ExitStatus.ENVIRONMENT
    logger = logging.getLogger("pviommu")
    level = logger.level
    logger.setLevel(logging.ERROR)  # DMA is refused on purpose
    try:
        return check(args, [PATHS[name] for name in names] if library is None else native_paths(names, library))
    finally:
        logger.setLevel(level)


def native_paths(names: Sequence[str], file: Path) -> list[MakePath]:
    """The paths with these names, to devices whose native core is the library ``file``."""
    lib = load(file)

    def native(config: EngineConfig) -> Engine:
        return Engine(config, NativeCore(lib))

    def machine(topology: Topology, environment: Environment) -> Machine:
        return Machine.build(topology, environment, NativeCore(lib))

    made: dict[str, MakePath] = {
        "engine": partial(EnginePath, make=native),
        "snapshot": partial(SnapshotPath, makes=(native, Engine)),
        "tables": partial(TablesPath, make=native, memory=partial(native_memory, lib)),
        "ring": partial(RingPath, make=machine),
        "machine": partial(MachinePath, library=file),
        "wire": partial(WirePath, core="native"),
        "tables-ring": partial(TablesRingPath, make=machine, dirty=True),
        "tables-machine": lambda oracle: TablesMachinePath(oracle, file, dirty=oracle.setting.identity),
        "tables-wire": partial(TablesWirePath, core="native", dirty=True),
    }
    return [made[name] for name in names]


def native_memory(lib: Library, view: memoryview) -> NativeCopier:
    """What a native core reads tables through that lie in ``view`` from GPA 0 on."""
    copier = NativeCopier(lib)
    copier.add(0, len(view), addressof(c_char.from_buffer(view)))
    return copier


def _usage(text: str) -> int:
    print(f"pviommu: {text}", file=sys.stderr)
    return ExitStatus.USAGE


def check(args: argparse.Namespace, paths: Sequence[MakePath]) -> int:
    """Run the episodes of ``args`` through ``paths``; returns the exit status."""
    first, end = 0, -(-args.steps // EPISODE_STEPS)
    if args.episode is not None:
        first, end = args.episode, args.episode + 1
    began = shown = time.monotonic()
    done = 0
    for episode in range(first, end):
        run = Run(f"{args.seed}/{episode}", args.profile)
        difference = run.check(min(EPISODE_STEPS, args.steps - episode * EPISODE_STEPS), paths)
        done += len(run.history)
        if difference is not None:
            _progress("")
            _report(args, episode, run, paths)
            return ExitStatus.FAILED
        if time.monotonic() - shown > PROGRESS_S:
            shown = time.monotonic()
            _progress(f"{done} operations, {1e6 * (shown - began) / done:.0f} us each")
    _progress("")
    seconds = time.monotonic() - began
    core = ", native core" if args.core == "native" else ""
    outcome = f"no difference, {seconds:.1f} s, seed {args.seed}"
    print(f"{args.profile}{core}: {done} operations through {args.through}: {outcome}")
    return 0


def _report(args: argparse.Namespace, episode: int, run: Run, paths: Sequence[MakePath]) -> None:
    is_slow = any(name.endswith(("wire", "machine")) for name in args.through.split(","))  # replays begin processes
    print(f"pviommu selfcheck: a difference after {len(run.history)} operations; looking for a shorter history")
    history = shortened(run.setting, run.history, paths, *((SLOW_REPLAYS,) if is_slow else ()))
    print_history(run.setting, history, paths)
    core = " --core native" if args.core == "native" else ""
    print(
        f"again: pviommu selfcheck --steps {args.steps} --seed {args.seed} --through {args.through}"
        f" --profile {args.profile}{core} --episode {episode}"
    )


def print_history(setting: Setting, history: Sequence[Operation], paths: Sequence[MakePath]) -> None:
    """Print a history and the difference that it leads to."""
    print(setting)
    for op in history:
        print(f"  {_shown(op)}")
    difference = run_history(setting, history, paths)
    print(difference or "the difference cannot be reproduced: it depends on timing")


def _shown(value: object) -> str:
    """An operation as text, with addresses and frames in hexadecimal."""
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        fields = (
            f"{name}={field:#x}" if name in _HEXADECIMAL else f"{name}={_shown(field)}"
            for name, field in zip(value._fields, value, strict=True)
        )
        return f"{type(value).__name__}({', '.join(fields)})"
    if isinstance(value, tuple):
        return f"({', '.join(_shown(each) for each in value)})"
    return repr(value)


def _progress(text: str) -> None:
    if sys.stderr.isatty():
        print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)
