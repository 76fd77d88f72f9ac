"""``pviommu bench transports``: this project's own transport beside the C library libvfio-user, the same device behind
both.
"""

from __future__ import annotations

import argparse
import socket
import struct
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from time import perf_counter_ns
from typing import TextIO

from libvfio_user import Library
from pviommu_abi.dma_test import REGISTER
from pviommu_abi.registers import REGISTER_BAR
from vfio_user import Client, Command, transport
from vfio_user.messages import Header, RegionAccess

from .. import resources
from ..exit_status import ExitStatus
from ..lab import libvfio_user
from ..lab.problems import RunError, UsageError
from ..lab.progress import Progress
from ..lab.run import guarded, short_folder
from ..lab.server import PROGRAM
from ..transports import LIBRARY, TRANSPORTS
from . import bars
from .bars import Bar, Judgement, markdown_table, shown, text_table, verdict_table
from .cores import chosen_cores, mechanism_of, serve_options
from .maps import LeanClient, resident
from .mechanisms import Mechanism
from .output import Document, add_targets, check_targets, machine, show
from .processors import apart_from_children
from .samples import Case, Effort, Figure, Series, figure, measure
from .wire_guest import BenchServer, WireGuest, processor_time_ns, start_ns

__all__ = ["Measured", "Trap", "add_arguments", "judge", "main"]

_NAME = "pviommu bench transports"
_OWN = TRANSPORTS[0]
_SECONDS = 10.0
_WAKE_UPS = 8
READ, WRITE, MAP = "trapped read", "trapped write", "DMA_MAP and DMA_UNMAP"
WAITED, WAKE = "waited op, polling", "waited op, asleep"
MEMORY, START = "memory of the server", "start to listening"
_OF_SERVER = "its server"
"""what follows the name of a figure that is processor time of the server"""
JUDGED = (READ, f"{READ}, {_OF_SERVER}", WRITE, f"{WRITE}, {_OF_SERVER}")
LIMIT = 1.3
"""of what a trapped access may cost, in times of the library's"""


Measured = dict[str, list[float]]
"""All figures of one transport, by name: nanoseconds, or bytes for :data:`MEMORY`; one for each round."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``pviommu bench transports``."""
    parser.description = (
        "Start two servers, one with pviommu's own transport and one behind the C library libvfio-user, act as the "
        "guest of both in turns, and compare: accesses to registers, ranges of memory, operations that are waited "
        "for, in time and in the server's processor time; memory; start. The library is the one that LIBVFIO_USER "
        "names or an installed one; else it is built."
    )
    parser.epilog = (
        "Exit status: 0 everything was measured, whether bars are met or not; 2 usage; 3 it could not be measured."
    )
    parser.add_argument(
        "--core", choices=("native", "python"), help="core of the servers; default: native, if it can be built"
    )
    parser.add_argument("--repeat", metavar="N", type=int, default=15, help="samples of each figure")
    parser.add_argument("--sample-ms", metavar="N", type=float, default=40.0, help="length of a sample in ms")
    add_targets(parser)


ProvideLibrary = Callable[[Progress], Library]


def main(
    args: argparse.Namespace,
    *,
    out: TextIO | None = None,
    program: Sequence[str] = PROGRAM,
    provide: ProvideLibrary = libvfio_user.provide,
) -> int:
    """Measure with parsed options; returns the exit status."""
    return guarded(_NAME, lambda: _run(args, sys.stdout if out is None else out, program, provide))


def _run(args: argparse.Namespace, out: TextIO, program: Sequence[str], provide: ProvideLibrary) -> int:
    if not 1 <= args.repeat <= 1000:
        raise UsageError(f"--repeat {args.repeat}: give 1 to 1000")
    if not 0 < args.sample_ms <= 10_000:
        raise UsageError(f"--sample-ms {args.sample_ms:g}: give a number above 0, up to 10000")
    effort = Effort(args.repeat, int(args.sample_ms * 1e6))
    core = chosen_cores(args.core or "both")[0]
    check_targets(args)
    progress = Progress(sys.stderr, libvfio_user.STEPS)
    try:
        library = provide(progress)
    finally:
        progress.close()
    began = datetime.now(UTC)
    document = _document(began, effort, core, library, _measure(core, effort, program))
    show(document, args, out)
    return ExitStatus.PASSED


# -- measuring --------------------------------------------------------------------------------------------------------


class Trap:
    """Accesses to the registers of a function over a connected socket, each with as little work as Python allows: the
    messages are made once. Raises RunError at the first reply that is none.
    """

    def __init__(self, sock: socket.socket) -> None:
        """The caller keeps ``sock``, which has negotiated, and whose time limit changes."""
        sock.settimeout(None)  # any other makes Python ask the kernel twice
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", int(_SECONDS), 0))
        self._sock = sock
        place = RegionAccess(REGISTER["CONTROL"].offset, REGISTER_BAR, 4).pack()
        self._read = Header(1, Command.REGION_READ, Header.SIZE + len(place), 0, 0).pack() + place
        self._write = Header(1, Command.REGION_WRITE, Header.SIZE + len(place) + 4, 0, 0).pack() + place + bytes(4)

    def read(self, count: int) -> None:
        """Read a register ``count`` times."""
        self._exchange(self._read, Header.SIZE + RegionAccess.SIZE + 4, count)

    def write(self, count: int) -> None:
        """Write it, so that nothing changes."""
        self._exchange(self._write, Header.SIZE + RegionAccess.SIZE, count)

    def _exchange(self, request: bytes, size: int, count: int) -> None:
        send, receive = self._sock.send, self._sock.recv
        for _ in range(count):
            send(request)
            reply = receive(64)
            if len(reply) != size:
                raise RunError(f"the server answered a trapped access with {len(reply)} bytes, not {size}")


class _Side:
    """One server and its guest. A context manager."""

    def __init__(self, program: Sequence[str], topology: Path, options: Sequence[str], mechanism: Mechanism) -> None:
        with ExitStack() as stack:
            folder = stack.enter_context(short_folder())
            self._server = stack.enter_context(BenchServer(program, topology, folder, options))
            self._guest = stack.enter_context(WireGuest(folder))
            self._mechanism = mechanism
            self._trap = Trap(_connected(stack, folder / "dma0.sock"))
            self._mapper = LeanClient(_connected(stack, folder / "dma1.sock"), self._guest.ram)
            self.close = stack.pop_all().close

    def memory(self) -> float:
        """Bytes of the server's own."""
        return float(resident(self._server.pid))

    def cases(self, name: str) -> list[Case]:
        """All but those of a server that sleeps, in time and in processor time of the server."""
        works = {READ: self._trap.read, WRITE: self._trap.write, MAP: self._maps}
        timed = [Case(_named(name, what), self._timed(work)) for what, work in works.items()]
        charged = [Case(_named(name, f"{what}, {_OF_SERVER}"), self._charged(work)) for what, work in works.items()]
        return [*timed, *charged, Case(_named(name, WAITED), self._waited, least_count=2)]

    def wake_ups(self, name: str) -> list[Case]:
        """Those of a server that sleeps."""
        return [Case(_named(name, WAKE), self._waited_asleep, least_count=_WAKE_UPS)]

    def _timed(self, work: Callable[[int], None]) -> Callable[[int], int]:
        def timed(count: int) -> int:
            begun = perf_counter_ns()
            work(count)
            return perf_counter_ns() - begun

        return timed

    def _charged(self, work: Callable[[int], None]) -> Callable[[int], int]:
        def charged(count: int) -> int:
            used = processor_time_ns(self._server.pid)
            work(count)
            return processor_time_ns(self._server.pid) - used

        return charged

    def _maps(self, count: int) -> None:
        for _ in range(count):
            self._mapper.map(1)
            self._mapper.unmap(1)

    def _waited(self, count: int) -> int:
        with closing(self._guest.use(self._mechanism)) as ring:
            self._guest.run(ring, 0)
            return self._guest.run(ring, count)

    def _waited_asleep(self, count: int) -> int:
        taken = 0
        with closing(self._guest.use(self._mechanism)) as ring:
            for end in range(1, count + 1):
                self._guest.wait_until_asleep(ring)
                taken += self._guest.run(ring, end, trapped=True)
        return taken


def _connected(stack: ExitStack, path: Path) -> socket.socket:
    sock = stack.enter_context(closing(transport.connect(path, _SECONDS)))
    Client(sock).negotiate()
    return sock


def _named(name: str, what: str) -> str:
    return f"{name}: {what}"


def _measure(core: str, effort: Effort, program: Sequence[str]) -> dict[str, Measured]:
    topology = resources.qemu_configs() / "lab.toml"
    mechanism, _ = mechanism_of(core)
    found: dict[str, Measured] = {name: {} for name in TRANSPORTS}
    options = {name: (*serve_options(core), "--transport", name) for name in TRANSPORTS}
    with ExitStack() as stack:
        apart = stack.enter_context(apart_from_children())
        sides = {}
        for name in TRANSPORTS:
            sides[name] = stack.enter_context(closing(_Side(program, topology, options[name], mechanism)))
        apart()
        # one after the other, so that what is compared is measured at nearly the same time
        cases = [
            case for pair in zip(*(side.cases(name) for name, side in sides.items()), strict=True) for case in pair
        ]
        series = measure(cases, effort)
        wake_ups = [case for name, side in sides.items() for case in side.wake_ups(name)]
        series += measure(wake_ups, Effort(effort.repeat, 0))
        for name, side in sides.items():
            found[name][MEMORY] = [side.memory()]
    for name in TRANSPORTS:
        found[name] |= {one.name.removeprefix(_named(name, "")): one.values for one in _of(name, series)}
        found[name][START] = []
    for turn in range(effort.repeat):
        for name in TRANSPORTS if turn % 2 == 0 else reversed(TRANSPORTS):
            found[name][START].append(start_ns(program, topology, options[name]))
    return found


def _of(name: str, series: Sequence[Series]) -> list[Series]:
    return [one for one in series if one.name.startswith(_named(name, ""))]


# -- judging ----------------------------------------------------------------------------------------------------------


def ratio(found: Mapping[str, Measured], what: str) -> Figure:
    """The own transport's figure as a multiple of the library's, round by round."""
    pairs = zip(found[_OWN][what], found[LIBRARY][what], strict=True)
    return figure([own / other for own, other in pairs])


def judge(found: Mapping[str, Measured]) -> list[Judgement]:
    """The bars: what a trapped access costs beside the library's."""
    judgements = []
    for what in JUDGED:
        one = ratio(found, what)
        bar = Bar(what, LIMIT, f"x {LIBRARY}")
        judgements.append(bar.judge(one.median, f"{shown(one.least)}-{shown(one.most)}"))
    return judgements


# -- showing ----------------------------------------------------------------------------------------------------------

_HEADINGS = ("", _OWN, "least-most", LIBRARY, "least-most", "ratio", "least-most")
_ORDER = (
    *JUDGED,
    *(MAP, f"{MAP}, {_OF_SERVER}", WAITED, WAKE, MEMORY, START),
)
_UNITS = {MEMORY: ("MiB", 1 << 20), START: ("ms", 1e6)}


def _spread(one: Figure, unit: float = 1) -> tuple[str, str]:
    return shown(one.median / unit), f"{shown(one.least / unit)}-{shown(one.most / unit)}"


def _row(found: Mapping[str, Measured], what: str) -> tuple[str, ...]:
    name, unit = _UNITS.get(what, ("us", 1e3))
    cells = [_spread(figure(found[each][what]), unit) for each in TRANSPORTS]
    return (f"{what}, {name}", *cells[0], *cells[1], *_spread(ratio(found, what)))


def _document(began: datetime, effort: Effort, core: str, library: Library, found: Mapping[str, Measured]) -> Document:
    judgements = judge(found)
    rows = [_row(found, what) for what in _ORDER]
    host = ", ".join(f"{name} {value}" for name, value in machine().items())
    setting = (
        f"Medians of {effort.repeat} samples of {effort.sample_ns / 1e6:g} ms, and of the ratios of samples that were "
        f"taken one after the other; core {core}, {LIBRARY} of {library.generation.value}. {host}; "
        f"{began.isoformat(timespec='seconds')}."
    )
    text = [text_table([_HEADINGS, *rows]), verdict_table(judgements), setting]
    blocks = {
        "transports": markdown_table(_HEADINGS, rows),
        "transports-bars": verdict_table(judgements, markdown=True),
        "transports-setting": setting,
    }
    data = {
        "time": began.isoformat(timespec="seconds"),
        "versions": {**machine(), LIBRARY: library.generation.value},
        "effort": asdict(effort),
        "core": core,
        "bars": bars.as_json(judgements),
        "transports": found,
    }
    return Document(_NAME, "\n\n".join(text), data, blocks)
