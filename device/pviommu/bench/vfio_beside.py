"""The same requests to the model, under `pviommu vfio run`, and to the kernel's own iommufd in the lab's guest.

And what a page request costs, which that one cannot have: no device behind the guest's IOMMU asks for pages.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from wire_layout import Record

from ..interfaces.iommufd import DeviceConfig, DmaRefusedError, LocalProcess, System
from ..interfaces.iommufd import structures as s
from ..interfaces.iommufd import vfio_structures as v
from ..interfaces.iommufd.process import REQUEST_OF, blank
from ..lab.problems import EnvironmentProblem
from ..native.build import BuildError
from ..topology import load
from ..vfio_run.machine import build, native_if_built
from .players import PlayError, Value, Word, build_player, call, on_the_kernel, on_the_model
from .samples import Figure, figure

__all__ = ["Beside", "fault_round_trip", "measure_beside"]

_MEMORY = "3G"
"""Of the guest, which must have a mapping of 1 GiB and itself."""
_SIZES = {"4 KiB": 4096, "2 MiB": 2 << 20, "1 GiB": 1 << 30}
_IOVA = 1 << 32
_LARGE = 0x210000000000
"""Where pviommu_history.c has it."""
_BITMAP = 0x200000000000
_BITMAP_NAME = "dirty bitmap, clean GiB"
_IOMMU, _DEVICE = 0, 6
_SPACE, _DEVICE_ID, _TABLE = "r0", "r1", "r2"


@dataclass(frozen=True)
class Beside:
    """Of one kind of request, microseconds: by the model, by the kernel or the errno that it has instead."""

    name: str
    model: Figure
    kernel: Figure | str

    @property
    def ratio(self) -> float | None:
        """What the model needs of the kernel's time."""
        return self.model.median / self.kernel.median if isinstance(self.kernel, Figure) else None


def _call(record: type[Record], file: int = _IOMMU, *after: str, **fields: Value) -> str:
    values = {entry.name: getattr(blank(record), entry.name) for entry in record.FIELDS}
    return call(file, REQUEST_OF[record], record, {**values, **fields}, after=after)


def _lines(repeat: int, count: int) -> list[str]:
    """What is played. The first sample of each kind is for warming up."""
    largest = max(_SIZES.values())
    space, table, both = Word(_SPACE), Word(_TABLE), s.MapFlag.READABLE | s.MapFlag.WRITEABLE | s.MapFlag.FIXED_IOVA
    lines = [
        "history pairs",
        f"open {_IOMMU} /dev/iommu",
        f"cdev {_DEVICE} 0",
        _call(v.BindIommufd, _DEVICE, ">1@c", iommufd=Word(f"%{_IOMMU}")),
        _call(s.IoasAlloc, _IOMMU, ">0@8"),
        _call(v.AttachIommufdPt, _DEVICE, pt_id=space),
        f"large {largest:x}",
    ]
    for size in _SIZES.values():
        pair = [
            _call(s.IoasMap, ioas_id=space, flags=both, user_va=_LARGE, length=size, iova=_IOVA),
            _call(s.IoasUnmap, ioas_id=space, iova=_IOVA, length=size),
        ]
        for _ in range(repeat + 1):
            lines += [f"time {_turns(size, count):x} 2", *pair]
    lines += [
        _call(s.IoasMap, ioas_id=space, flags=both, user_va=_LARGE, length=largest, iova=_IOVA),
        _call(
            *(s.HwptAlloc, _IOMMU, ">2@10"),
            flags=s.HwptAllocFlag.DIRTY_TRACKING,
            dev_id=Word(_DEVICE_ID),
            pt_id=space,
        ),
        _call(s.HwptSetDirtyTracking, hwpt_id=table, flags=s.DirtyTrackingFlag.ENABLE),
    ]
    look = _call(s.HwptGetDirtyBitmap, hwpt_id=table, iova=_IOVA, length=largest, page_size=4096, data=_BITMAP)
    for _ in range(repeat + 1):
        lines += [f"time {count:x} 1", look]
    return lines


def _turns(size: int, count: int) -> int:
    """How often in a sample: what is large is slow where pages are pinned one by one."""
    return max(1, count // 50) if size == max(_SIZES.values()) else count


def _figures(lines: Sequence[str], answers: Sequence[str], count: int) -> dict[str, list[float] | str]:
    """Microseconds of each sample by what was measured, or an errno. Raises PlayError for a request that failed."""
    found: dict[str, list[float] | str] = {}
    names = [*(f"map and unmap, {name}" for name in _SIZES), _BITMAP_NAME]
    turns = [*(_turns(size, count) for size in _SIZES.values()), count]
    spoken = _spoken(lines)
    timed = [answer for line, answer in zip(spoken, answers, strict=True) if line.startswith("time ")]
    others = [(line, answer) for line, answer in zip(spoken, answers, strict=True) if not line.startswith("time ")]
    for line, answer in others[:-2]:
        if answer.startswith("E"):
            raise PlayError(f"{line}: {answer}")
    each = len(timed) // len(names)
    for number, (name, often) in enumerate(zip(names, turns, strict=True)):
        samples = timed[number * each + 1 : (number + 1) * each]
        if samples[0].startswith("E"):
            found[name] = others[-2][1].split()[0] if name == _BITMAP_NAME else samples[0]
        else:
            found[name] = [int(sample, 16) / often / 1e3 for sample in samples]
    return found


def _spoken(lines: Sequence[str]) -> list[str]:
    """The lines that are answered: not those of calls that are timed."""
    spoken, silent = [], 0
    for line in lines:
        if silent:
            silent -= 1
            continue
        spoken.append(line)
        if line.startswith("time "):
            silent = int(line.split()[2], 16)
    return spoken


def measure_beside(
    repeat: int, count: int, folder: Path, on_kernel: Callable[..., list[str]] = on_the_kernel
) -> list[Beside]:
    """The model before and after the guest, so that a host that grows slower or faster favours neither. ``folder``: of
    the guest's logs. Raises EnvironmentProblem.
    """
    lines = _lines(repeat, count)
    with tempfile.TemporaryDirectory(prefix="pviommu-bench-") as name:
        program = build_player(Path(name))
        try:
            before = _figures(lines, _on_the_model(lines, program), count)
            kernel = _figures(lines, on_kernel(lines, folder, "--memory", _MEMORY), count)
            after = _figures(lines, _on_the_model(lines, program), count)
        except (PlayError, BuildError, OSError) as error:
            raise EnvironmentProblem(str(error), f"see the logs in {folder}") from error
    return [Beside(name, _joined(name, before, after), _shown(kernel[name])) for name in kernel]


def _on_the_model(lines: Sequence[str], program: Path) -> list[str]:
    system, machine = build(load(Path("one-engine")), native_if_built())
    try:
        return on_the_model(lines, program, system, machine)
    finally:
        machine.close()


def _joined(name: str, *runs: Mapping[str, list[float] | str]) -> Figure:
    samples: list[float] = []
    for run in runs:
        values = run[name]
        if isinstance(values, str):
            raise PlayError(f"{name} by the model: {values}")
        samples += values
    return figure(samples)


def _shown(values: list[float] | str) -> Figure | str:
    return values if isinstance(values, str) else figure(values)


def fault_round_trip(repeat: int, count: int) -> Figure:
    """Microseconds from DMA that finds no page to its end: the request is read, the page mapped, the answer written,
    and the DMA made again; all in one process.
    """
    system = System([DeviceConfig("nic")])
    program = LocalProcess(system)
    iommu, nic = program.open("/dev/iommu"), program.open("/dev/vfio/devices/vfio0")
    device = program.call(nic, v.BindIommufd, iommufd=iommu).out_devid
    space = program.call(iommu, s.IoasAlloc).out_ioas_id
    queue = program.call(iommu, s.FaultQueueAlloc)
    table = program.call(
        iommu,
        s.HwptAlloc,
        flags=s.HwptAllocFlag.FAULT_ID_VALID,
        dev_id=device,
        pt_id=space,
        fault_id=queue.out_fault_id,
    )
    program.call(nic, v.AttachIommufdPt, pt_id=table.out_hwpt_id)
    page, record = bytearray(4096), bytearray(s.Pgfault.SIZE)
    memory, place = program.memory.add(page), program.memory.add(record)
    both = s.MapFlag.READABLE | s.MapFlag.WRITEABLE | s.MapFlag.FIXED_IOVA
    mapping = {"ioas_id": space, "flags": both, "user_va": memory, "length": 4096, "iova": _IOVA}

    def turn() -> None:
        try:
            system.write("nic", _IOVA, b"data")
        except DmaRefusedError:
            program.read(queue.out_fault_fd, place, s.Pgfault.SIZE)
        program.call(iommu, s.IoasMap, **mapping)
        record[:8] = s.PageResponse(s.Pgfault.unpack(record).cookie, s.PageResponseCode.SUCCESS).pack()
        program.write(queue.out_fault_fd, place, s.PageResponse.SIZE)
        system.write("nic", _IOVA, b"data")

    samples = []
    for _ in range(repeat + 1):
        taken = 0
        for _ in range(count):
            began = time.perf_counter_ns()
            turn()
            taken += time.perf_counter_ns() - began
            program.call(iommu, s.IoasUnmap, ioas_id=space, iova=_IOVA, length=4096)
        samples.append(taken / count / 1e3)
    program.exit()
    return figure(samples[1:])
