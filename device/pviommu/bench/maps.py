"""``pviommu bench maps``: what a range of guest memory costs the server, in time and in memory."""

from __future__ import annotations

import argparse
import array
import os
import random
import socket
import struct
import sys
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from time import perf_counter_ns
from typing import TextIO, TypeVar

from vfio_user import Client, Command, transport
from vfio_user.messages import DmaMap, DmaMapFlags, DmaUnmap, Header, HeaderFlags

from .. import resources
from ..exit_status import ExitStatus
from ..guest.memory import GuestRam
from ..lab.problems import RunError, UsageError
from ..lab.run import guarded, short_folder
from ..lab.server import PROGRAM
from .bars import Bar, Judgement, markdown_table, shown, text_table, verdict_table
from .cores import chosen_cores, serve_options
from .output import Document, add_targets, check_targets, machine, show
from .wire_guest import BenchServer, processor_time_ns

__all__ = ["LeanClient", "Measured", "add_arguments", "judge", "main", "resident"]

_NAME = "pviommu bench maps"
_MOST = 65535
_PAGE = 4096
_PIECES = 64
"""Ranges that one unmap removes, where several go at once: as with 128 MiB in pieces of 2 MiB."""
_TRANSACTION = 64
"""Maps that are sent before a reply is read, where they are pipelined: few enough that no socket fills up."""
_REPLY_SECONDS = 10
_HEADINGS = (
    *("core", "map, us", "its server", "all maps, s", "pipelined map, us", "its server", "all pipelined, s"),
    *("unmap, us", "its server", "all unmaps, s", f"unmap of {_PIECES}, us", "bytes a map"),
)
_Place = TypeVar("_Place")
AWAITED, PIPELINED = Bar("all maps, each awaited", 10.0, "s"), Bar("all maps, pipelined", 10.0, "s")
MEMORY = Bar("memory a map", 1024, "bytes")


@dataclass(frozen=True, slots=True)
class Measured:
    """The figures of one core with ``ranges`` ranges: seconds for all maps and all unmaps one by one, and for all maps
    pipelined, each also in processor time of the server; seconds for unmaps of several at once; and by how many bytes
    the server has grown.
    """

    core: str
    ranges: int
    mapping: float
    mapping_server: float
    pipelined: float
    pipelined_server: float
    unmapping: float
    unmapping_server: float
    together: float
    grown: int


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``pviommu bench maps``."""
    parser.description = (
        "Start the server and announce ranges of guest memory to its PV-IOMMU, of one page each with holes between "
        "them and in random order, waiting for each reply; remove them again, one by one and many at once; and "
        f"announce them with {_TRANSACTION} messages sent before a reply is read, as QEMU does within a transaction. "
        "The client does as little as it can, so that the server is what is measured. Measures the time, and the "
        "growth of the server's memory."
    )
    parser.epilog = (
        "Exit status: 0 everything was measured, whether bars are met or not; 2 usage; 3 it could not be measured."
    )
    parser.add_argument("--core", choices=("native", "python", "both"), default="both", help="core of the server")
    parser.add_argument(
        "--ranges", metavar="N", type=int, default=_MOST, help="number of ranges; at most, and by default: %(default)s"
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
    """Compare with the bars, which are for the largest number of ranges."""
    values = {AWAITED: found.mapping, PIPELINED: found.pipelined, MEMORY: found.grown / found.ranges}
    if found.ranges < _MOST:
        return [bar.unjudged(value, f"with {found.ranges} ranges") for bar, value in values.items()]
    return [bar.judge(value) for bar, value in values.items()]


class LeanClient:
    """Maps and unmaps of pages of ``ram`` over a connected socket; the address of each is its offset in that file.

    It does as little for each as Python allows, because it stands for QEMU, which is written in C. It checks replies
    only for refusals. Requests raise RunError if they are refused, or if there is no answer.
    """

    _MAP = struct.Struct(Header.STRUCT.format + DmaMap.STRUCT.format[1:])
    _UNMAP = struct.Struct(Header.STRUCT.format + DmaUnmap.STRUCT.format[1:])
    _FLAGS = int(DmaMapFlags.READ | DmaMapFlags.WRITE)
    _UNMAPPED = Header.SIZE + DmaUnmap.SIZE

    def __init__(self, sock: socket.socket, ram: int) -> None:
        """The caller keeps ``sock``, whose time limit changes."""
        sock.settimeout(None)  # any other makes Python ask the kernel twice
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", _REPLY_SECONDS, 0))
        self._sock = sock
        self._descriptor = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [ram]))]

    def map(self, place: int) -> None:
        """Map page ``place``."""
        self._send_map(place)
        self._take_replies(1, Header.SIZE)

    def map_pipelined(self, places: Sequence[int]) -> None:
        """Map these pages, no more than a socket has room for, and wait for all of them."""
        for place in places:
            self._send_map(place)
        self._take_replies(len(places), Header.SIZE)

    def unmap(self, place: int, pages: int = 1) -> None:
        """Remove all ranges within ``pages`` pages."""
        header = 0, Command.DMA_UNMAP, self._UNMAP.size, 0, 0
        self._sock.send(self._UNMAP.pack(*header, DmaUnmap.SIZE, 0, place * _PAGE, pages * _PAGE))
        self._take_replies(1, self._UNMAPPED)

    def _send_map(self, place: int) -> None:
        header = 0, Command.DMA_MAP, self._MAP.size, 0, 0
        address = place * _PAGE
        message = self._MAP.pack(*header, DmaMap.SIZE, self._FLAGS, address, address, _PAGE)
        self._sock.sendmsg([message], self._descriptor)

    def _take_replies(self, count: int, size: int) -> None:
        """Read ``count`` replies, of ``size`` bytes each if nothing is refused."""
        replies = self._receive(count * size)
        while len(replies) < count * size:
            replies += self._receive(count * size - len(replies))
        for at in range(0, count * size, size):
            _, _, _, flags, error = Header.STRUCT.unpack_from(replies, at)
            if flags & HeaderFlags.ERROR:
                raise RunError(f"the server refused a request: {os.strerror(error)}")

    def _receive(self, size: int) -> bytes:
        try:
            received = self._sock.recv(size)
        except BlockingIOError as error:
            raise RunError(f"the server did not answer within {_REPLY_SECONDS} s") from error
        if not received:
            raise RunError("the server hung up")
        return received


def _measure(core: str, ranges: int, program: Sequence[str]) -> Measured:
    topology = resources.qemu_configs() / "lab.toml"
    with (
        short_folder() as folder,
        BenchServer(program, topology, folder, serve_options(core)) as server,
        GuestRam(2 * ranges * _PAGE, _PAGE) as ram,
        closing(transport.connect(folder / "iommu.sock", _REPLY_SECONDS)) as sock,
    ):
        Client(sock).negotiate()
        client = LeanClient(sock, ram.fd)
        client.map(0)  # the first one takes longer than the others
        places = [2 * place for place in range(1, ranges)]
        random.Random(ranges).shuffle(places)
        before = resident(server.pid)
        used = [processor_time_ns(server.pid)]
        mapping = _timed(places, client.map)
        used.append(processor_time_ns(server.pid))
        grown = resident(server.pid) - before
        unmapping = _timed(places, client.unmap)
        used.append(processor_time_ns(server.pid))
        transactions = [places[at : at + _TRANSACTION] for at in range(0, len(places), _TRANSACTION)]
        pipelined = _timed(transactions, client.map_pipelined)
        used.append(processor_time_ns(server.pid))
        blocks = list(range(2, 2 * (ranges - _PIECES) + 1, 2 * _PIECES))
        together = _timed(blocks, lambda place: client.unmap(place, 2 * _PIECES))
    by_server = [(after - earlier) / 1e9 for earlier, after in pairwise(used)]
    return Measured(
        *(core, ranges, mapping, by_server[0], pipelined, by_server[2], unmapping, by_server[1]),
        *(together * ranges / (len(blocks) * _PIECES), grown),
    )


def _timed(places: Sequence[_Place], request: Callable[[_Place], None]) -> float:
    """How many seconds a request for each place takes, in all."""
    begun = perf_counter_ns()
    for place in places:
        request(place)
    return (perf_counter_ns() - begun) / 1e9


def resident(pid: int) -> int:
    """Bytes of a process's own memory, without what it shares with the guest."""
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
            shown(one.pipelined / one.ranges * 1e6),
            shown(one.pipelined_server / one.ranges * 1e6),
            shown(one.pipelined),
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
