"""``pviommu bench maps``: what a range of guest memory costs a server, in time and in memory."""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from time import perf_counter_ns
from typing import TextIO

from pviommu import resources
from pviommu.bench.bars import Bar, Judgement, markdown_table, shown, text_table, verdict_table
from pviommu.bench.cores import chosen_cores, serve_options
from pviommu.bench.output import Document, add_targets, check_targets, machine, show
from pviommu.bench.wire_guest import BenchServer, memory_file, processor_time_ns
from pviommu.exit_status import ExitStatus
from pviommu.lab.problems import UsageError
from pviommu.lab.run import guarded, short_folder
from pviommu.lab.server import PROGRAM
from vfio_user import Client, Command
from vfio_user.messages import DmaUnmap

__all__ = ["Measured", "add_arguments", "judge", "main"]

_NAME = "pviommu bench maps"
_MOST = 65535
_PAGE = 4096
_PIECES = 64
"""Ranges that one unmap takes, where several go at once: 128 MiB in pieces of 2 MiB."""
_HEADINGS = (
    *("core", "map, us", "its server", "all maps, s", "unmap, us", "its server", "all unmaps, s"),
    *(f"unmap of {_PIECES}, us", "bytes a map"),
)
MAPS, MEMORY = Bar("all maps", 10.0, "s"), Bar("memory a map", 1024, "bytes")


@dataclass(frozen=True, slots=True)
class Measured:
    """Of one core, with so many ``ranges``: seconds of all maps and of all unmaps one by one, and of the server's
    processor time in them; seconds of unmaps of several at once; and by how many bytes the server has grown.
    """

    core: str
    ranges: int
    mapping: float
    mapping_server: float
    unmapping: float
    unmapping_server: float
    together: float
    grown: int


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``pviommu bench maps``."""
    parser.description = (
        "Start the server and announce ranges of guest memory to its PV-IOMMU, a page each with holes between them and "
        "in random order, waiting for each reply; take them away again, one by one and many at once. Measures the "
        "time, and by how much the server grows."
    )
    parser.epilog = "Exit status: 0 everything was measured, whether bars are met or not; 2 usage; 3 it was not."
    parser.add_argument("--core", choices=("native", "python", "both"), default="both", help="implementation")
    parser.add_argument(
        "--ranges", metavar="N", type=int, default=_MOST, help="ranges; at most, and by default: %(default)s"
    )
    add_targets(parser)


def main(args: argparse.Namespace, *, out: TextIO | None = None, program: Sequence[str] = PROGRAM) -> int:
    """Measure with parsed options; returns the exit status."""
    return guarded(_NAME, lambda: _run(args, sys.stdout if out is None else out, program))


def _run(args: argparse.Namespace, out: TextIO, program: Sequence[str]) -> int:
    if not _PIECES <= args.ranges <= _MOST:
        raise UsageError(f"--ranges {args.ranges}: give {_PIECES} to {_MOST}")
    check_targets(args)
    found = [_measure(core, args.ranges, program) for core in chosen_cores(args.core)]
    document = _document(found)
    show(document, args, out)
    return ExitStatus.PASSED


def judge(found: Measured) -> list[Judgement]:
    """Beside the bars, which are of all ranges that there can be."""
    if found.ranges < _MOST:
        few = f"with {found.ranges} ranges"
        return [MAPS.unjudged(found.mapping, few), MEMORY.unjudged(found.grown / found.ranges, few)]
    return [MAPS.judge(found.mapping), MEMORY.judge(found.grown / found.ranges)]


def _measure(core: str, ranges: int, program: Sequence[str]) -> Measured:
    topology = resources.qemu_configs() / "lab.toml"
    with (
        short_folder() as folder,
        BenchServer(program, topology, folder, serve_options(core)) as server,
        memory_file(2 * ranges * _PAGE) as ram,
        closing(Client.connect(folder / "iommu.sock")) as client,
    ):
        client.dma_map(0, _PAGE, ram)  # what the first one needs, no other does
        places = list(range(1, ranges))
        random.Random(ranges).shuffle(places)
        before = _resident(server.pid)
        used = [processor_time_ns(server.pid)]
        mapping = _timed(places, lambda place: client.dma_map(2 * place * _PAGE, _PAGE, ram, 2 * place * _PAGE))
        used.append(processor_time_ns(server.pid))
        grown = _resident(server.pid) - before
        unmapping = _timed(places, lambda place: client.dma_unmap(2 * place * _PAGE, _PAGE))
        used.append(processor_time_ns(server.pid))
        for place in places:
            client.dma_map(2 * place * _PAGE, _PAGE, ram, 2 * place * _PAGE)
        blocks = list(range(1, ranges - _PIECES + 1, _PIECES))
        together = _timed(blocks, lambda place: _unmap(client, 2 * place * _PAGE, 2 * _PIECES * _PAGE))
    by_server = [(after - earlier) / 1e9 for earlier, after in pairwise(used)]
    return Measured(
        *(core, ranges, mapping, by_server[0], unmapping, by_server[1]),
        *(together * ranges / (len(blocks) * _PIECES), grown),
    )


def _unmap(client: Client, address: int, size: int) -> None:
    """As :meth:`Client.dma_unmap`, which would look for what is inside among all its maps."""
    client.request(Command.DMA_UNMAP, DmaUnmap(DmaUnmap.SIZE, 0, address, size).pack())


def _timed(places: Sequence[int], request: Callable[[int], None]) -> float:
    """Seconds of a request for each place."""
    begun = perf_counter_ns()
    for place in places:
        request(place)
    return (perf_counter_ns() - begun) / 1e9


def _resident(pid: int) -> int:
    """Bytes of a process's own memory: what it shares with the guest does not count."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    return 0


def _document(found: Sequence[Measured]) -> Document:
    rows = [
        (
            one.core,
            shown(one.mapping / one.ranges * 1e6),
            shown(one.mapping_server / one.ranges * 1e6),
            shown(one.mapping),
            shown(one.unmapping / one.ranges * 1e6),
            shown(one.unmapping_server / one.ranges * 1e6),
            shown(one.unmapping),
            shown(one.together / one.ranges * _PIECES * 1e6),
            shown(one.grown / one.ranges),
        )
        for one in found
    ]
    texts = [text_table([_HEADINGS, *rows])]
    blocks = {"maps": markdown_table(_HEADINGS, rows)}
    for one in found:
        texts.append(f"{one.core}, {one.ranges} ranges\n{verdict_table(judge(one))}")
        blocks[f"maps-{one.core}-bars"] = verdict_table(judge(one), markdown=True)
    data = {"machine": machine(), "cores": [asdict(one) for one in found]}
    return Document(_NAME, "\n\n".join(texts), data, blocks)
