"""``pviommu bench ring``: a server in a process of its own, and a guest's driver in this one."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from time import perf_counter_ns
from typing import TextIO

from .. import resources
from ..exit_status import ExitStatus
from ..lab.problems import UsageError
from ..lab.run import guarded, short_folder
from ..lab.server import PROGRAM
from . import bars
from .bare import bare_echo, bare_words
from .bars import Bar, Judgement, markdown_table, shown, text_table, verdict_table
from .cores import chosen_cores, mechanism_of, serve_options
from .mechanisms import Mechanism, RingUse
from .output import Document, add_targets, check_targets, machine, show
from .processors import apart_from_children
from .samples import Case, Effort, Figure, Series, figure, measure
from .wire_guest import BenchServer, WireGuest, capabilities_ns, processor_time_ns, start_ns

__all__ = ["Measured", "add_arguments", "judge", "main"]

_NAME = "pviommu bench ring"
_POSTED_AT_ONCE = 256
_WAKE_UPS = 8
_IDLE_SECONDS = 1.0
_SETTLED_SECONDS = 0.6
"""Time after which the bounded sleeps that follow arming are over."""
_RATES = (1000, 100)
"""Operations a second of a guest that works now and then."""

WAITED, SUBMIT, POSTED = "waited op, polling", "posted op, submitting", "posted op, to completion"
WAKE, POSTED_ASLEEP = "waited op, asleep", "posted op, asleep"
REGISTER, WORDS, ECHO = "trapped register", "bare words", "bare echo, asleep"


@dataclass(slots=True)
class Measured:
    """All figures of one core. ``times`` are in nanoseconds, ``doorbells`` per thousand operations; ``processor`` is
    the share of a processor that the server took.
    """

    series: list[Series] = field(default_factory=list)
    times: dict[str, list[float]] = field(default_factory=dict)
    doorbells: dict[str, float] = field(default_factory=dict)
    processor: dict[str, float] = field(default_factory=dict)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``pviommu bench ring``."""
    parser.description = (
        "Start the server, act as its guest, and measure the round trip of operations that are waited for and the cost "
        "of posted ones, while the server polls and while it sleeps, beside a bare exchange of words and a bare socket "
        "echo between two processes; how long the server takes to start; and its processor time when idle."
    )
    parser.epilog = (
        "Exit status: 0 everything was measured, whether bars are met or not; 2 usage; 3 it could not be measured."
    )
    parser.add_argument(
        "--core",
        choices=("native", "python", "both"),
        default="both",
        help="core of the server; both, if the native one is built",
    )
    parser.add_argument("--repeat", metavar="N", type=int, default=7, help="samples of each figure")
    parser.add_argument("--sample-ms", metavar="N", type=float, default=40.0, help="length of a sample in ms")
    parser.add_argument(
        "--spin-us", metavar="N", type=int, help="how long the server polls before it sleeps; default: the server's own"
    )
    add_targets(parser)


def main(args: argparse.Namespace, *, out: TextIO | None = None, program: Sequence[str] = PROGRAM) -> int:
    """Measure with parsed options; returns the exit status."""
    return guarded(_NAME, lambda: _run(args, sys.stdout if out is None else out, program))


def _run(args: argparse.Namespace, out: TextIO, program: Sequence[str]) -> int:
    if not 1 <= args.repeat <= 1000:
        raise UsageError(f"--repeat {args.repeat}: give 1 to 1000")
    if not 0 < args.sample_ms <= 10_000:
        raise UsageError(f"--sample-ms {args.sample_ms:g}: give a number above 0, up to 10000")
    if args.spin_us is not None and args.spin_us < 0:
        raise UsageError(f"--spin-us {args.spin_us}: must not be negative")
    effort = Effort(args.repeat, int(args.sample_ms * 1e6))
    cores = chosen_cores(args.core)
    check_targets(args)
    began = datetime.now(UTC)
    spin = () if args.spin_us is None else ("--spin-us", str(args.spin_us))
    measured = {core: _measure(core, effort, program, (*serve_options(core), *spin)) for core in cores}
    document = _document(began, effort, measured)
    show(document, args, out)
    return ExitStatus.PASSED


# -- measuring --------------------------------------------------------------------------------------------------------


def _measure(core: str, effort: Effort, program: Sequence[str], options: Sequence[str]) -> Measured:
    topology = resources.qemu_configs() / "lab.toml"
    found = Measured()
    mechanism, library = mechanism_of(core)
    with ExitStack() as stack:
        folder = stack.enter_context(short_folder())
        apart = stack.enter_context(apart_from_children())
        server = stack.enter_context(BenchServer(program, topology, folder, options))
        guest = stack.enter_context(WireGuest(folder))
        words = stack.enter_context(bare_words(mechanism, library))
        echo = stack.enter_context(bare_echo())
        apart()
        driver = _Driver(guest, mechanism)
        cases = [
            Case(WAITED, driver.waited, least_count=2),
            Case(SUBMIT, driver.submitting, least_count=_POSTED_AT_ONCE),
            Case(POSTED, driver.posted, least_count=2),
            Case(WORDS, words.rounds),
            Case(REGISTER, driver.register),
        ]
        found.series = measure(cases, effort)
        # Some milliseconds of sleep precede each of these, so a few must do.
        wake_ups = [
            Case(WAKE, driver.waited_asleep, least_count=_WAKE_UPS),
            Case(POSTED_ASLEEP, driver.posted_asleep, least_count=_WAKE_UPS),
            Case(ECHO, echo.rounds, least_count=_WAKE_UPS),
        ]
        found.series += measure(wake_ups, Effort(effort.repeat, 0))
        found.doorbells = {name: 1000 * bells / ops for name, (bells, ops) in driver.doorbells.items() if ops}
        found.processor = driver.processor(server.pid)
    found.times = {
        "start to listening": [start_ns(program, topology, options) for _ in range(effort.repeat)],
        "--print-capabilities": [float(capabilities_ns(program, topology)) for _ in range(effort.repeat)],
    }
    return found


class _Driver:
    """What is measured with one server: each method is the work of a case and returns nanoseconds."""

    def __init__(self, guest: WireGuest, mechanism: Mechanism) -> None:
        self._guest = guest
        self._mechanism = mechanism
        self.doorbells: dict[str, tuple[int, int]] = {}
        """by case: doorbells, operations"""

    def waited(self, count: int) -> int:
        """Submit each operation when the one before is complete."""
        return self._counted(WAITED, count, lambda ring: self._guest.run(ring, count))

    def submitting(self, count: int) -> int:
        """The guest's cost of posting: groups for which the ring has room, without waiting for their completion."""

        def batches(ring: RingUse) -> int:
            ends = range(_POSTED_AT_ONCE, count + 1, _POSTED_AT_ONCE)
            return sum(self._guest.run(ring, end, posted=True, complete=False) for end in ends)

        return self._counted(SUBMIT, count, batches, posted=True)

    def posted(self, count: int) -> int:
        """Post as many as the ring has room for, until the last is complete."""
        return self._counted(POSTED, count, lambda ring: self._guest.run(ring, count, posted=True), posted=True)

    def register(self, count: int) -> int:
        """Trapped reads, while the server polls."""
        start = perf_counter_ns()
        for _ in range(count):
            self._guest.read_register()
        return perf_counter_ns() - start

    def waited_asleep(self, count: int) -> int:
        """One operation at a time, which wakes the server; doorbell included."""
        return self._asleep(count, posted=False)

    def posted_asleep(self, count: int) -> int:
        """One posted operation at a time. Nobody wakes the server for it: the next DMA or the next wait would."""
        return self._asleep(count, posted=True)

    def _asleep(self, count: int, *, posted: bool) -> int:
        ring = self._guest.use(self._mechanism, posted=posted)
        taken = 0
        for end in range(1, count + 1):
            self._guest.wait_until_asleep(ring)
            taken += self._guest.run(ring, end, posted=posted, complete=not posted, trapped=True)
        ring.close()
        return taken

    def processor(self, pid: int) -> dict[str, float]:
        """The server's share of a processor while there is nothing to do, and with an operation now and then."""
        ring = self._guest.use(self._mechanism)
        self._guest.run(ring, 2)
        self._guest.wait_until_asleep(ring)
        time.sleep(_SETTLED_SECONDS)
        shares = {"idle": _share(pid, lambda: time.sleep(_IDLE_SECONDS))}
        for rate in _RATES:
            shares[f"{rate} ops/s"] = _share(pid, lambda rate=rate: self._now_and_then(ring, rate))  # type: ignore[misc]
        ring.close()
        return shares

    def _now_and_then(self, ring: RingUse, rate: int) -> None:
        for _ in range(int(rate * _IDLE_SECONDS)):
            self._guest.run(ring, ring.submitted + 1, trapped=True)
            time.sleep(1 / rate)

    def _counted(self, name: str, count: int, work: Callable[[RingUse], int], *, posted: bool = False) -> int:
        ring = self._guest.use(self._mechanism, posted=posted)
        self._guest.run(ring, 0)
        before = self._guest.doorbells
        taken = work(ring)
        bells, ops = self.doorbells.get(name, (0, 0))
        self.doorbells[name] = bells + self._guest.doorbells - before, ops + count
        ring.close()
        return taken


def _share(pid: int, meanwhile: Callable[[], None]) -> float:
    used, begun = processor_time_ns(pid), perf_counter_ns()
    meanwhile()
    return (processor_time_ns(pid) - used) / (perf_counter_ns() - begun)


# -- judging ----------------------------------------------------------------------------------------------------------


def judge(found: Measured) -> list[Judgement]:
    """The bars of one core's figures."""
    by_name = {one.name: one.figure.median for one in found.series}
    start, printed = (figure(found.times[name]).median / 1e6 for name in ("start to listening", "--print-capabilities"))
    polling = max(found.doorbells[name] for name in (WAITED, POSTED)) / 1000
    return [
        Bar("waited op, polling", 5, "x bare words").judge(by_name[WAITED] / by_name[WORDS]),
        Bar("doorbells an op while busy", 1 / 64).judge(polling),
        Bar("processor of an idle server", 0, "%").judge(100 * found.processor["idle"]),
        Bar("server start to listening", 300, "ms").judge(start),
        Bar("serve --print-capabilities", 100, "ms").judge(printed),
    ]


# -- showing ----------------------------------------------------------------------------------------------------------

_HEADINGS = ("", "us", "least-most", "doorbells per 1000")


def _microseconds(found: Figure) -> tuple[str, str]:
    return shown(found.median / 1e3), f"{shown(found.least / 1e3)}-{shown(found.most / 1e3)}"


def _rows(found: Measured) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for one in found.series:
        bells = found.doorbells.get(one.name)
        rows.append((one.name, *_microseconds(one.figure), "" if bells is None else shown(bells)))
    rows += [(name, *_microseconds(figure(values)), "") for name, values in found.times.items()]
    return rows


def _shares(found: Measured) -> str:
    shares = ", ".join(f"{name} {100 * share:.2f} %" for name, share in found.processor.items())
    return f"Server's share of a processor: {shares}."


def _document(began: datetime, effort: Effort, measured: Mapping[str, Measured]) -> Document:
    setting = {"time": began.isoformat(timespec="seconds"), "versions": machine(), "effort": asdict(effort)}
    text: list[str] = []
    blocks: dict[str, str] = {}
    data = []
    for core, found in measured.items():
        judgements = judge(found)
        rows = _rows(found)
        text += [f"core {core}\n" + text_table([_HEADINGS, *rows]), verdict_table(judgements), _shares(found)]
        blocks[f"ring-{core}"] = markdown_table(_HEADINGS, rows)
        blocks[f"ring-{core}-bars"] = verdict_table(judgements, markdown=True)
        blocks[f"ring-{core}-processor"] = _shares(found)
        data.append({"core": core, "bars": bars.as_json(judgements), **asdict(found)})
    host = ", ".join(f"{name} {value}" for name, value in machine().items())
    text.append(
        f"Medians of {effort.repeat} samples of {effort.sample_ns / 1e6:g} ms; the driver's side, and both of a bare"
        f" exchange, are C for a native core and Python otherwise. {host}; {setting['time']}."
    )
    blocks["ring-setting"] = text[-1]
    return Document(_NAME, "\n\n".join(text), {**setting, "cores": data}, blocks)
