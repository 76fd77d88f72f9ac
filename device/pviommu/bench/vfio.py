"""``pviommu bench vfio``: what requests and DMA cost a program that runs under ``pviommu vfio run``, and with --guest
beside the kernel's own iommufd.

The program is one of Python. It times itself, and reads from /proc how much processor time the server used meanwhile.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import textwrap
import tracemalloc
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TextIO

from ..exit_status import ExitStatus
from ..interfaces.iommufd import LocalProcess, System
from ..interfaces.iommufd.structures import IoasAlloc, IoasMap, MapFlag
from ..lab.problems import EnvironmentProblem, UsageError
from ..lab.run import guarded
from ..native.build import BuildError
from ..topology import load
from ..vfio_run.machine import build, native_if_built
from ..vfio_run.running import run_program
from . import bars
from .bars import Bar, Judgement, markdown_table, shown, text_table, verdict_table
from .guest_options import add_results_option, results_folder
from .output import Document, add_targets, check_targets, machine, show
from .samples import Figure, figure
from .vfio_beside import Beside, fault_round_trip, measure_beside

__all__ = ["add_arguments", "bytes_per_area", "judge", "main", "measure_program"]

_NAME = "pviommu bench vfio"
PAIR, BITMAP = "map and unmap, 4 KiB", "dirty bitmap, clean GiB"
_BESIDE = ("", "model, us", "least-most", "kernel in a guest, us", "least-most", "ratio")
_PAIR = Bar("map and unmap of a page", 60, "us")
_BITMAP = Bar("dirty bitmap of a clean GiB", 1000, "us")
_AREA = Bar("memory of an area", 200, "bytes")
_PROGRAM = r"""
    import ctypes, fcntl, json, mmap, os, struct, sys, time
    repeat, count, target = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]

    def server():
        return int(open(f"/proc/{os.getppid()}/schedstat").read().split()[0])

    def measured(work, count):
        work()
        walls, processors = [], []
        for _ in range(repeat):
            used, own, began = server(), time.process_time_ns(), time.perf_counter_ns()
            for _ in range(count):
                work()
            walls.append((time.perf_counter_ns() - began) / count)
            processors.append((time.process_time_ns() - own + server() - used) / count)
        return walls, processors

    def asked(fd, number, layout, *values):
        data = bytearray(struct.pack(layout, struct.calcsize(layout), *values))
        fcntl.ioctl(fd, 0x3B00 + number, data, True)
        return struct.unpack(layout, data)

    iommu = os.open("/dev/iommu", os.O_RDWR)
    device = os.open("/dev/vfio/devices/vfio0", os.O_RDWR)
    number = asked(device, 0x76, "<IIiIQ", 0, iommu, 0, 0)[3]
    space = asked(iommu, 0x81, "<III", 0, 0)[2]
    table = asked(iommu, 0x89, "<IIIIIIIIQII", 2, number, space, 0, 0, 0, 0, 0, 0, 0)[4]
    asked(device, 0x77, "<III", 0, table)
    GIB, AT = 1 << 30, 1 << 32
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x4000  # MAP_NORESERVE
    memory = mmap.mmap(-1, 2 * GIB, flags=flags)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    address += -address % GIB
    results = {}
    for name, size in (("4 KiB", 4096), ("2 MiB", 2 << 20), ("1 GiB", GIB)):
        there = bytearray(struct.pack("<IIIIQQQ", 40, 7, space, 0, address, size, AT))
        gone = struct.pack("<IIQQ", 24, space, AT, size)
        def pair():
            fcntl.ioctl(iommu, 0x3B85, there, True)
            fcntl.ioctl(iommu, 0x3B86, bytearray(gone), True)
        results[f"map and unmap, {name}"] = measured(pair, count)
    fcntl.ioctl(iommu, 0x3B85, struct.pack("<IIIIQQQ", 40, 7, space, 0, address, GIB, AT))
    asked(iommu, 0x8B, "<IIII", 1, table, 0)
    bitmap = ctypes.create_string_buffer(GIB // 4096 // 8)
    look = struct.pack("<IIIIQQQQ", 48, table, 0, 0, AT, GIB, 4096, ctypes.addressof(bitmap))
    results["dirty bitmap, clean GiB"] = measured(lambda: fcntl.ioctl(iommu, 0x3B8C, look), count)

    CONFIG, SHARED, MIB = 7 << 40, 2 << 40, 1 << 20
    os.pwrite(device, bytes([6, 0]), CONFIG + 4)
    os.pwrite(device, struct.pack("<I", 1), 0x14)
    queue = mmap.mmap(device, 0x10000, offset=SHARED)
    ctypes.memset(address, 1, 2 * MIB)
    producer = 0
    def copy():
        global producer
        struct.pack_into("<BBHIQQ", queue, 64 * (producer % 256), 1, 0, 0, MIB, AT, AT + MIB)
        producer += 1
        os.pwrite(device, struct.pack("<I", producer), 0x18)
        while struct.unpack("<I", os.pread(device, 4, 0x1C))[0] != producer:
            pass
    results["DMA copy, 1 MiB"] = measured(copy, max(count // 10, 1))
    results["read of a register"] = measured(lambda: os.pread(device, 4, 0), count)
    with open(target, "w") as file:
        json.dump(results, file)
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``pviommu bench vfio``."""
    parser.description = (
        "Measure requests of VFIO and iommufd, DMA and registers of a program under `pviommu vfio run`, in time and in "
        "processor time of both sides, the memory of an area, and the way of a page request. Prints medians, spreads, "
        "and the bars with their verdicts."
    )
    parser.epilog = (
        "Exit status: 0 everything was measured, whether bars are met or not; 2 usage; 3 it could not be measured."
    )
    parser.add_argument("--repeat", metavar="N", type=int, default=15, help="samples of each figure")
    parser.add_argument("--count", metavar="N", type=int, default=200, help="operations of a sample")
    parser.add_argument("--areas", metavar="N", type=int, default=100_000, help="areas whose memory is measured")
    parser.add_argument(
        "--guest",
        action="store_true",
        help="also make the same requests to the model and to the kernel of the lab's guest, which is booted for that, "
        "and print the ratios",
    )
    add_results_option(parser)
    add_targets(parser)


def main(args: argparse.Namespace, *, out: TextIO | None = None) -> int:
    """Measure with parsed options; returns the exit status."""
    return guarded(_NAME, lambda: _run(args, sys.stdout if out is None else out))


def _run(args: argparse.Namespace, out: TextIO) -> int:
    for option, most in (("repeat", 1000), ("count", 1_000_000), ("areas", 1_000_000)):
        value = getattr(args, option)
        if not 1 <= value <= most:
            raise UsageError(f"--{option} {value}: give 1 to {most}")
    check_targets(args)
    began = datetime.now(UTC)
    measured = measure_program(args.repeat, args.count)
    area = bytes_per_area(args.areas)
    fault = fault_round_trip(args.repeat, args.count)
    beside = measure_beside(args.repeat, args.count, results_folder(args.results, began)) if args.guest else []
    setting = {"time": began.isoformat(timespec="seconds"), "versions": machine()}
    effort = {"repeat": args.repeat, "count": args.count, "areas": args.areas}
    show(_document(setting, effort, measured, area, fault, beside), args, out)
    return ExitStatus.PASSED


def measure_program(repeat: int, count: int) -> dict[str, tuple[Figure, Figure]]:
    """Microseconds of an operation by its name, as time and as processor time. Raises EnvironmentProblem."""
    with tempfile.TemporaryDirectory(prefix="pviommu-bench-") as folder:
        target = Path(folder) / "results"
        command = [sys.executable, "-S", "-c", textwrap.dedent(_PROGRAM), str(repeat), str(count), str(target)]
        system, devices = build(load(Path("one-engine")), native_if_built())
        try:
            status = run_program(command, system, machine=devices)
        except (BuildError, OSError) as error:
            raise EnvironmentProblem(str(error), "see `pviommu vfio run --help`") from error
        finally:
            devices.close()
        if status:
            raise EnvironmentProblem(f"the program under vfio run ended with status {status}", "see what it said")
        found = json.loads(target.read_text(encoding="utf-8"))
    return {
        name: (figure([value / 1e3 for value in walls]), figure([value / 1e3 for value in processors]))
        for name, (walls, processors) in found.items()
    }


def bytes_per_area(areas: int) -> float:
    """Of mappings of a page each, no two of which are adjacent, as Python traces it."""
    program = LocalProcess(System())
    iommu = program.open("/dev/iommu")
    space = program.call(iommu, IoasAlloc).out_ioas_id
    address = program.memory.add(4096)
    flags = MapFlag.FIXED_IOVA | MapFlag.READABLE | MapFlag.WRITEABLE
    fields = {"ioas_id": space, "flags": flags, "user_va": address, "length": 4096}
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for number in range(1, areas + 1):
            program.call(iommu, IoasMap, iova=number * 8192, **fields)
        return (tracemalloc.get_traced_memory()[0] - before) / areas
    finally:
        tracemalloc.stop()
        program.exit()


def judge(measured: Mapping[str, tuple[Figure, Figure]], area: float) -> list[Judgement]:
    """The bars."""
    return [
        _PAIR.judge(measured[PAIR][0].median),
        _BITMAP.judge(measured[BITMAP][0].median),
        _AREA.judge(area),
    ]


def _document(
    setting: Mapping[str, object],
    effort: Mapping[str, int],
    measured: Mapping[str, tuple[Figure, Figure]],
    area: float,
    fault: Figure,
    beside: Sequence[Beside],
) -> Document:
    rows: list[tuple[str, ...]] = [
        (name, shown(wall.median), _spread(wall), shown(processor.median))
        for name, (wall, processor) in measured.items()
    ]
    rows.append(("page request, in one process", shown(fault.median), _spread(fault), ""))
    headings = ("", "us", "least-most", "us of processors")
    judgements = judge(measured, area)
    host = ", ".join(f"{name} {value}" for name, value in machine().items())
    line = f"Microseconds an operation: medians of {effort['repeat']} samples of {effort['count']}. {host}"
    line += f"; {setting['time']}."
    blocks = {
        "vfio": markdown_table(headings, rows),
        "vfio-bars": verdict_table(judgements, markdown=True),
        "vfio-setting": line,
    }
    texts = [text_table([headings, *rows]), verdict_table(judgements), line]
    if beside:
        compared = [_row_beside(each) for each in beside]
        blocks["vfio-guest"] = markdown_table(_BESIDE, compared)
        blocks["vfio-guest-setting"] = line
        texts.insert(1, text_table([_BESIDE, *compared]))
    data = {
        **setting,
        "effort": dict(effort),
        "bars": bars.as_json(judgements),
        "bytes_per_area": area,
        "figures_us": {
            name: {"time": asdict(wall), "processors": asdict(own)} for name, (wall, own) in measured.items()
        },
        "page_request_us": asdict(fault),
        "guest": [asdict(each) for each in beside],
    }
    return Document(_NAME, "\n\n".join(texts), data, blocks)


def _spread(values: Figure) -> str:
    return f"{shown(values.least)}-{shown(values.most)}"


def _row_beside(each: Beside) -> tuple[str, ...]:
    kernel = each.kernel
    theirs = (kernel, "") if isinstance(kernel, str) else (shown(kernel.median), _spread(kernel))
    ratio = "" if each.ratio is None else shown(each.ratio)
    return each.name, shown(each.model.median), _spread(each.model), *theirs, ratio
