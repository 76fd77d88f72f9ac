"""``pviommu bench delays``: how long an honest operation waits while somebody abuses the server."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import TextIO

from ..exit_status import ExitStatus
from ..lab.problems import UsageError
from ..lab.run import guarded, short_folder
from ..lab.server import PROGRAM
from . import bars
from .abuses import ABUSES, NOTHING, Abuse, Scene
from .bars import Bar, Judgement, markdown_table, shown, text_table, verdict_table
from .cores import chosen_cores, serve_options
from .idle import judge_idle, measure_idle
from .mechanisms import PythonMechanism
from .output import Document, add_targets, check_targets, machine, show
from .wire_guest import BenchServer, processor_time_ns

__all__ = ["OPERATIONS", "Delay", "Found", "add_arguments", "judge", "main"]

_NAME = "pviommu bench delays"
_STOP_SECONDS = 20.0
RING, REGISTER, DMA = "ring 0", "register", "DMA"
OPERATIONS = (RING, REGISTER, DMA)
"""What an honest user does: wait for an operation of ring 0, read a trapped register, have an engine write 8 bytes."""
_MOST_ENGINES = 256


@dataclass(slots=True)
class Delay:
    """The longest time that an operation took, in nanoseconds: by the clock, and of the server's processor time."""

    wall_ns: int = 0
    cpu_ns: int = 0

    def add(self, wall_ns: int, cpu_ns: int) -> None:
        """Add one measurement."""
        self.wall_ns = max(self.wall_ns, wall_ns)
        self.cpu_ns = max(self.cpu_ns, cpu_ns)


@dataclass(slots=True)
class Found:
    """Delays of one core under one abuse, for each operation that this leaves possible."""

    abuse: str
    delays: dict[str, Delay] = field(default_factory=dict)
    stop_ns: int = 0
    """from SIGTERM to the end of the server"""
    judged: Sequence[str] = OPERATIONS
    """the operations that have bars"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``pviommu bench delays``."""
    parser.description = (
        "Start the server, abuse it as a hostile guest or client would, in one way at a time, and measure how long "
        "an honest operation takes meanwhile: an operation of ring 0, a read of a register, DMA of another function; "
        "in elapsed time, and in processor time of the server, which a busy host does not change; then how long "
        "SIGTERM takes. The longest time of each is shown. Last, the cost of an idle turn of the loop, "
        "with 1 endpoint and with 256."
    )
    parser.epilog = (
        "Exit status: 0 everything was measured, whether bars are met or not; 2 usage; 3 it could not be measured."
    )
    parser.add_argument("--core", choices=("native", "python", "both"), default="both", help="core of the server")
    parser.add_argument("--rounds", metavar="N", type=int, default=30, help="how often each operation is timed")
    parser.add_argument("--engines", metavar="N", type=int, default=64, help="number of DMA test engines")
    parser.add_argument(
        "--only", metavar="ABUSE", action="append", help="only this abuse; may be repeated; default: all"
    )
    add_targets(parser)


def main(args: argparse.Namespace, *, out: TextIO | None = None, program: Sequence[str] = PROGRAM) -> int:
    """Measure with parsed options; returns the exit status."""
    return guarded(_NAME, lambda: _run(args, sys.stdout if out is None else out, program))


def _run(args: argparse.Namespace, out: TextIO, program: Sequence[str]) -> int:
    if not 1 <= args.rounds <= 10_000:
        raise UsageError(f"--rounds {args.rounds}: give 1 to 10000")
    if not 2 <= args.engines <= _MOST_ENGINES:
        raise UsageError(f"--engines {args.engines}: give 2 to {_MOST_ENGINES}, one of which is the honest one")
    abuses = _chosen(args.only)
    check_targets(args)
    began = datetime.now(UTC)
    found = {}
    for core in chosen_cores(args.core):
        options = (*serve_options(core), "--log-level", "error")
        found[core] = [_measure(abuse, args.engines, args.rounds, program, options) for abuse in abuses]
    idle = {core: measure_idle(core) for core in found}
    document = _document(began, args.rounds, args.engines, found, idle)
    show(document, args, out)
    return ExitStatus.PASSED


def _chosen(names: Sequence[str] | None) -> list[type[Abuse]]:
    for name in names or ():
        if name not in ABUSES:
            raise UsageError(f"--only {name}: there are {', '.join(ABUSES)}")
    return [abuse for name, abuse in ABUSES.items() if not names or name in names]


# -- measuring --------------------------------------------------------------------------------------------------------


def _measure(kind: type[Abuse], engines: int, rounds: int, program: Sequence[str], options: Sequence[str]) -> Found:
    found = Found(kind.name, judged=(RING,) if kind.is_by_many else OPERATIONS)
    with ExitStack() as stack:
        server, scene, abuse = stack.enter_context(_scene(kind, engines, program, options))
        honest = stack.enter_context(closing(_Honest(scene, server.pid)))
        for name in OPERATIONS if kind.leaves_ring_0 else OPERATIONS[1:]:
            found.delays[name] = delay = Delay()
            honest.take(name)  # the first time takes longer
            for _ in range(rounds):
                abuse.go_on()
                delay.add(*honest.take(name))
        abuse.go_on()
        found.stop_ns = server.stop_ns(_STOP_SECONDS)
    return found


@contextmanager
def _scene(
    kind: type[Abuse], engines: int, program: Sequence[str], options: Sequence[str]
) -> Iterator[tuple[BenchServer, Scene, Abuse]]:
    with ExitStack() as stack:
        folder = stack.enter_context(short_folder())
        topology = folder / "delays.toml"
        topology.write_text(_topology(engines))
        server = stack.enter_context(BenchServer(program, topology, folder, options))
        scene = stack.enter_context(Scene(folder, engines, is_memory_used=kind.is_memory_used))
        yield server, scene, stack.enter_context(kind(scene))


def _topology(engines: int) -> str:
    parts = ['[iommu]\nname = "iommu"\ndefault-policy = "identity"\n']
    parts += [f'[[endpoint]]\nname = "dma{n}"\nkind = "dma-test"\nstream = {n + 1}\n' for n in range(engines)]
    return "\n".join(parts)


class _Honest:
    """The operations of an honest user."""

    def __init__(self, scene: Scene, pid: int) -> None:
        self._scene = scene
        self._pid = pid
        self._ring = scene.guest.use(PythonMechanism()) if scene.guest else None

    def close(self) -> None:
        """Release the ring's memory."""
        if self._ring:
            self._ring.close()

    def take(self, name: str) -> tuple[int, int]:
        """Do an operation once; returns nanoseconds by the clock, and of the server's processor time."""
        used, begun = processor_time_ns(self._pid), time.perf_counter_ns()
        if name == RING and self._scene.guest and self._ring:
            self._scene.guest.run(self._ring, self._ring.submitted + 1, trapped=True)
        elif name == REGISTER:
            self._scene.honest.read_register()
        else:
            self._scene.honest.fill()
        return time.perf_counter_ns() - begun, processor_time_ns(self._pid) - used


# -- judging ----------------------------------------------------------------------------------------------------------


def judge(found: Sequence[Found]) -> list[Judgement]:
    """The bars of one core's figures: the worst of all abuses."""
    judgements = []
    for name in OPERATIONS:
        worst = max(
            (one for one in found if name in one.delays and name in one.judged),
            key=lambda one: one.delays[name].cpu_ns,
            default=None,
        )
        bar = Bar(f"{name}, server's processor time", 10, "ms")
        if worst is not None:
            judgements.append(bar.judge(worst.delays[name].cpu_ns / 1e6, worst.abuse))
    slowest = max(found, key=lambda one: one.stop_ns)
    return [*judgements, Bar("SIGTERM to the end", 1000, "ms").judge(slowest.stop_ns / 1e6, slowest.abuse)]


# -- showing ----------------------------------------------------------------------------------------------------------

_HEADINGS = ("core", "abuse", *(f"{name}, {unit}" for name in OPERATIONS for unit in ("wall", "CPU")), "SIGTERM")


def _rows(core: str, found: Sequence[Found]) -> list[tuple[str, ...]]:
    return [(core, one.abuse, *_cells(one), shown(one.stop_ns / 1e6)) for one in found]


def _cells(found: Found) -> Iterator[str]:
    for name in OPERATIONS:
        delay = found.delays.get(name)
        yield from ("-", "-") if delay is None else (shown(delay.wall_ns / 1e6), shown(delay.cpu_ns / 1e6))


def _document(
    began: datetime,
    rounds: int,
    engines: int,
    measured: Mapping[str, Sequence[Found]],
    idle: Mapping[str, dict[int, float]],
) -> Document:
    setting = {"time": began.isoformat(timespec="seconds"), "versions": machine(), "rounds": rounds, "engines": engines}
    rows = [row for core, found in measured.items() for row in _rows(core, found)]
    blocks = {"delays": markdown_table(_HEADINGS, rows, left=(0, 1))}
    text = [text_table([_HEADINGS, *rows], left=(0, 1))]
    data = []
    for core, found in measured.items():
        judgements = [*judge(found), judge_idle(idle[core])]
        text.append(f"core {core}\n" + verdict_table(judgements))
        blocks[f"delays-{core}-bars"] = verdict_table(judgements, markdown=True)
        abuses = [asdict(one) for one in found]
        data.append({"core": core, "bars": bars.as_json(judgements), "abuses": abuses, "idle_turn_ns": idle[core]})
    host = ", ".join(f"{name} {value}" for name, value in machine().items())
    text.append(
        f"Milliseconds, the worst of {rounds} times each, with {engines} engines; row {NOTHING!r} is without any abuse."
        f" {host}; {setting['time']}."
    )
    blocks["delays-setting"] = text[-1]
    return Document(_NAME, "\n\n".join(text), {**setting, "cores": data}, blocks)
