"""A program that uses /dev/iommu and VFIO, played for scenarios: what fails changes nothing, and is asked for again."""

from __future__ import annotations

import contextlib
import errno
import os
import struct
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, TypeVar

from vfio_user import IrqIndex
from vfio_user.messages import SetIrqsFlags
from wire_layout import Record

from ..interfaces.iommufd import DeviceConfig, DmaRefusedError, FileMemory, LocalProcess, System
from ..interfaces.iommufd import structures as s
from ..interfaces.iommufd import vfio_structures as v
from ..interfaces.iommufd.holdings import changes, holdings
from ..interfaces.iommufd.nesting import KIND, NESTING, FirstStageData, Invalidation
from ..interfaces.iommufd.places import KEPT_IN_LINUX, Places
from ..topology import Topology
from ..vfio_run.machine import build
from .guest import TRIES
from .stage import TOPOLOGY, Stage, StuckError

__all__ = ["PlayedProgram", "programs"]

_T = TypeVar("_T")
R = TypeVar("R", bound=Record)

_PAGE = 4096
_BYTES = 16 * _PAGE
_IOVA, _OTHER, _THIRD = 0x100000, 0x200000, 0x300000
_PASID = 5
_EVENT, _TEST = 0xBEEFBEEF, 0x3BA0
_FIXED = int(s.MapFlag.FIXED_IOVA | s.MapFlag.READABLE | s.MapFlag.WRITEABLE)
_FLAG = s.HwptAllocFlag


class PlayedProgram(LocalProcess):
    """Makes requests, and looks after each that fails on purpose whether it has changed anything."""

    def __init__(self, stage: Stage, system: System, harm: list[str], answers: Counter[str]) -> None:
        """``harm``: what no /dev/iommu lets happen. ``answers``: how often what was answered."""
        super().__init__(system)
        self.harm = harm
        self.answers = answers
        self._stage = stage
        self.data = bytearray(_BYTES)
        self.va = self.memory.add(self.data)

    def check(self, is_right: bool, what: str) -> None:
        """Note ``what`` unless it is right."""
        if not is_right:
            self.harm.append(what)

    def done(self, what: str, make: Callable[[], _T], undo: Callable[[], object] | None = None) -> _T:
        """What a request returns, once it does not fail on purpose. ``undo``: of one that stays done if only its answer
        cannot be written, as in Linux. Raises StuckError.
        """
        for _ in range(TRIES):
            before, rules = self.state(), self._failed()
            try:
                result = make()
            except (OSError, DmaRefusedError) as error:
                self._judge(what, error, rules, before, undo)
            else:
                self.answers["done"] += 1
                return result
        raise StuckError(f"{what}: it failed {TRIES} times")

    def _judge(
        self,
        what: str,
        error: OSError | DmaRefusedError,
        rules: Counter[tuple[str, str]],
        before: dict[str, Any],
        undo: Callable[[], object] | None,
    ) -> None:
        acted = self._failed() - rules
        errors = {error for _, error in acted}
        name = "refused" if isinstance(error, DmaRefusedError) else errno.errorcode.get(error.errno or 0, "?")
        self.answers[name] += 1
        if isinstance(error, OSError) and name not in errors:
            self.harm.append(f"{what}: {error}, where {', '.join(errors) or 'nothing'} was to be")
        if undo and any(place in KEPT_IN_LINUX for place, _ in acted) and self.state() != before:
            with contextlib.suppress(OSError):
                undo()
        self.harm += [f"{what} failed, and changed {change}" for change in changes(before, self.state())]

    def _failed(self) -> Counter[tuple[str, str]]:
        """How often a rule has had something fail, by the place and the error."""
        found: Counter[tuple[str, str]] = Counter()
        for active in self._stage.faults.rules:
            if active.rule.do and active.rule.do.fail:
                found[active.rule.on.split(".")[1], active.rule.do.fail] += active.turns.fired
        return found

    def state(self) -> dict[str, Any]:
        """All that requests change, by what it is."""
        open_files = [self.find_file(descriptor) for descriptor in self.descriptors()]
        return {"descriptors": self.descriptors(), **holdings(self.system, open_files)}

    # Requests

    def ask(self, fd: int, record: type[R], undo: Callable[[], object] | None = None, /, **fields: Any) -> R:
        """A request by its structure."""
        return self.done(record.__name__, partial(self.call, fd, record, **fields), undo)

    def opened(self, path: str) -> int:
        """A descriptor of a path."""
        return self.done(f"open {path}", partial(self.open, path))

    def asked(self, fd: int, request: int, argument: int = 0) -> int:
        """A request without a structure of its own."""
        return self.done(f"request {request:#x}", partial(self.ioctl, fd, request, argument))

    def put(self, data: bytes, at: int = 0) -> int:
        """The address of such bytes."""
        self.data[at : at + len(data)] = data
        return self.va + at

    def map(self, fd: int, ioas: int, iova: int, pages: int) -> None:
        """Map the first pages of the memory."""
        fields: dict[str, Any] = {"flags": _FIXED, "user_va": self.va, "length": pages * _PAGE, "iova": iova}
        self.ask(fd, s.IoasMap, partial(self._unmap, fd, ioas, iova, pages), ioas_id=ioas, **fields)

    def _unmap(self, fd: int, ioas: int, iova: int, pages: int) -> None:
        self.call(fd, s.IoasUnmap, ioas_id=ioas, iova=iova, length=pages * _PAGE)

    def unmap(self, fd: int, ioas: int, iova: int, pages: int) -> None:
        """The opposite."""
        fields = {"flags": _FIXED, "user_va": self.va, "length": pages * _PAGE, "iova": iova}
        again = partial(self.call, fd, s.IoasMap, ioas_id=ioas, **fields)
        self.ask(fd, s.IoasUnmap, again, ioas_id=ioas, iova=iova, length=pages * _PAGE)

    def test(
        self, fd: int, operation: int, number: int, *words: int, undo: Callable[[], object] | None = None
    ) -> bytes:
        """A request that only kernels for tests have; what became of its words."""
        place = 0x8000
        body = struct.pack(f"<{len(words)}I", *words).ljust(48, b"\0")

        def make() -> int:
            at = self.put(struct.pack("<IIII", 72, operation, number, 0) + body + bytes(8), place)
            return self.ioctl(fd, _TEST, at)

        self.done(f"test {operation}", make, undo)
        return bytes(self.data[place + 16 : place + 64])


def programs(stage: Stage) -> Iterator[PlayedProgram]:
    """By calls: programs one after the other that use iommufd, mock devices, and VFIO by groups and with interrupts."""
    places = Places(stage.machine.iommu.probes)
    harm: list[str] = []
    answers: Counter[str] = Counter()
    devices = [DeviceConfig("nic", model=NESTING, pasid_bits=20)]
    system = System(devices, places=places, mock=True)
    with_registers, machine = build(_topology(stage), places=places)
    try:
        for number, (use, served) in enumerate(
            ((_map, system), (_attach, system), (_nest, system), (_test, system), (_drive, with_registers))
        ):
            program = PlayedProgram(stage, served, harm, answers)
            if not number:
                yield program
            before = program.state()
            use(program)
            program.exit()
            harm += [
                f"the program {use.__name__[1:]} leaves behind {left}" for left in changes(before, program.state())
            ]
    finally:
        machine.close()


def _topology(stage: Stage) -> Topology:
    return stage.topology if stage.topology.endpoint else TOPOLOGY


def _map(program: PlayedProgram) -> None:
    """Address spaces without a device."""
    fd = program.opened("/dev/iommu")
    ioas, other = (program.ask(fd, s.IoasAlloc).out_ioas_id for _ in range(2))
    ranges = program.put(b"".join(s.IovaRange(first, first + 0xFFFFFF).pack() for first in (0, 1 << 32)), 0x9000)
    program.ask(fd, s.IoasAllowIovas, ioas_id=ioas, num_iovas=2, allowed_iovas=ranges)
    program.ask(fd, s.IoasIovaRanges, ioas_id=ioas, num_iovas=2, allowed_iovas=ranges)
    program.map(fd, ioas, _IOVA, 4)
    back = partial(program.call, fd, s.IoasUnmap, ioas_id=other, iova=_IOVA, length=_PAGE)
    source: dict[str, Any] = {"flags": _FIXED, "src_ioas_id": ioas, "src_iova": _IOVA}
    program.ask(fd, s.IoasCopy, back, dst_ioas_id=other, length=_PAGE, dst_iova=_IOVA, **source)
    memory = program.done("a file", partial(program.install, FileMemory(bytearray(_PAGE))))
    back = partial(program.call, fd, s.IoasUnmap, ioas_id=other, iova=_OTHER, length=_PAGE)
    program.ask(fd, s.IoasMapFile, back, flags=_FIXED, ioas_id=other, fd=memory, length=_PAGE, iova=_OTHER)
    program.ask(fd, s.VfioIoas, op=s.VfioIoasOp.SET, ioas_id=other)
    program.ask(fd, v.DmaMap, flags=3, vaddr=program.va, iova=_THIRD, size=2 * _PAGE)
    again = partial(program.call, fd, v.DmaMap, flags=3, vaddr=program.va, iova=_THIRD, size=2 * _PAGE)
    program.ask(fd, v.DmaUnmap, again, iova=_THIRD, size=2 * _PAGE)
    program.unmap(fd, ioas, _IOVA, 4)
    program.ask(fd, s.Destroy, id=ioas)


def _attach(program: PlayedProgram) -> None:
    """A device, its page tables, DMA, dirty pages and page requests."""
    system = program.system
    fd, nic = program.opened("/dev/iommu"), program.opened("/dev/vfio/devices/vfio0")
    ioas, other = (program.ask(fd, s.IoasAlloc).out_ioas_id for _ in range(2))
    program.map(fd, ioas, _IOVA, 4)
    program.map(fd, ioas, _OTHER - _PAGE, 1)  # a page table is filled with both, or none
    program.map(fd, other, _IOVA, 4)
    device = program.ask(nic, v.BindIommufd, iommufd=fd).out_devid
    program.ask(fd, s.GetHwInfo, dev_id=device, data_len=16, data_uptr=program.put(b"", 0x9000))
    program.ask(nic, v.AttachIommufdPt, pt_id=ioas)
    system.write("nic", _IOVA, b"first")
    program.check(program.data[:5] == b"first", "DMA of an attached device does not arrive")
    flags = _FLAG.DIRTY_TRACKING | _FLAG.PASID
    table, second = (
        program.ask(fd, s.HwptAlloc, flags=flags, dev_id=device, pt_id=space).out_hwpt_id for space in (ioas, other)
    )
    program.map(fd, ioas, _THIRD, 2)  # into two page tables, or none
    program.unmap(fd, ioas, _THIRD, 2)
    for target in (table, other, table):
        # As in Linux, a device is detached whose new page table cannot be told.
        back = partial(program.call, nic, v.AttachIommufdPt, pt_id=_where(program))
        program.ask(nic, v.AttachIommufdPt, back, pt_id=target)
    program.ask(fd, s.HwptSetDirtyTracking, hwpt_id=table, flags=1)
    system.write("nic", _IOVA + _PAGE, b"dirty")
    bits = {"iova": _IOVA, "length": 4 * _PAGE, "page_size": _PAGE, "data": program.put(bytes(8), 0x9000)}
    program.ask(fd, s.HwptGetDirtyBitmap, hwpt_id=table, **bits)
    program.check(program.data[0x9000] == 0b10, "a page that DMA wrote is not in the bitmap")
    program.ask(nic, v.AttachIommufdPasid, flags=1, pt_id=table, pasid=_PASID)
    before = partial(program.call, nic, v.AttachIommufdPasid, flags=1, pt_id=table, pasid=_PASID)
    program.ask(nic, v.AttachIommufdPasid, before, flags=1, pt_id=second, pasid=_PASID)
    program.ask(nic, v.DetachIommufdPasid, flags=1, pasid=_PASID)
    queue = program.ask(fd, s.FaultQueueAlloc)
    asking = {"flags": _FLAG.FAULT_ID_VALID, "dev_id": device, "pt_id": ioas, "fault_id": queue.out_fault_id}
    waiting = program.ask(fd, s.HwptAlloc, **asking).out_hwpt_id
    program.ask(nic, v.DetachIommufdPt)
    program.ask(nic, v.AttachIommufdPt, pt_id=waiting)
    _page_request(program, queue.out_fault_fd)
    program.ask(nic, v.DetachIommufdPt)


def _where(program: PlayedProgram) -> int:
    """What the device is attached to: the IOAS if it chose the page table by itself."""
    hwpt = program.system.devices["nic"].group.hwpt
    assert hwpt
    return hwpt.ioas.id if hwpt.is_automatic else hwpt.id


def _page_request(program: PlayedProgram, queue: int) -> None:
    """DMA to what is not mapped waits, unless the request finds no room."""

    def wait() -> None:
        try:
            program.system.write("nic", _OTHER, b"waits")
        except DmaRefusedError as refused:
            if "answered" not in str(refused):
                raise

    def read() -> bytes:
        size = program.read(queue, program.va + 0x9000, s.Pgfault.SIZE)
        return bytes(program.data[0x9000 : 0x9000 + size])

    program.done("DMA that waits for a page", wait)
    fault = s.Pgfault.unpack(program.done("read a page request", read))
    program.check(fault.addr == _OTHER, f"a page request is of {fault.addr:#x}")
    answer = program.put(s.PageResponse(fault.cookie, s.PageResponseCode.INVALID).pack(), 0x9000)
    program.done("answer a page request", partial(program.write, queue, answer, s.PageResponse.SIZE))
    try:
        program.system.write("nic", _OTHER, b"waits")
    except DmaRefusedError:
        return
    program.check(False, "DMA whose page was refused is done")


def _nest(program: PlayedProgram) -> None:
    """What a guest is given."""
    fd, nic = program.opened("/dev/iommu"), program.opened("/dev/vfio/devices/vfio0")
    ioas = program.ask(fd, s.IoasAlloc).out_ioas_id
    program.map(fd, ioas, 0, 4)
    device = program.ask(nic, v.BindIommufd, iommufd=fd).out_devid
    parent = program.ask(fd, s.HwptAlloc, flags=_FLAG.NEST_PARENT, dev_id=device, pt_id=ioas).out_hwpt_id
    viommu = program.ask(fd, s.ViommuAlloc, type=KIND, dev_id=device, hwpt_id=parent).out_viommu_id
    program.ask(fd, s.VdeviceAlloc, viommu_id=viommu, dev_id=device, virt_id=7)
    root = program.put(FirstStageData(_PAGE).pack(), 0x9000)
    data = {"data_type": KIND, "data_len": FirstStageData.SIZE, "data_uptr": root}
    nested = program.ask(fd, s.HwptAlloc, dev_id=device, pt_id=viommu, **data).out_hwpt_id
    program.ask(nic, v.AttachIommufdPt, pt_id=nested)
    entry = {"data_uptr": program.put(Invalidation(0, 0).pack(), 0x9000), "data_type": KIND, "entry_num": 1}
    program.ask(fd, s.HwptInvalidate, hwpt_id=nested, entry_len=Invalidation.SIZE, **entry)
    program.ask(nic, v.DetachIommufdPt)


def _test(program: PlayedProgram) -> None:
    """Devices that a program makes, as kernels have them for tests: accesses by drivers, events, hardware queues."""
    fd = program.opened("/dev/iommu")
    ioas, other = (program.ask(fd, s.IoasAlloc).out_ioas_id for _ in range(2))
    base = 1 << 24
    program.map(fd, ioas, base, 4)
    unreal, _, device = struct.unpack_from("<III", program.test(fd, 12, ioas, 0, 0, 0, 4))
    back = partial(program.test, fd, 10, unreal, ioas)
    program.test(fd, 10, unreal, other, undo=back)
    program.test(fd, 10, unreal, ioas, undo=partial(program.test, fd, 10, unreal, other))
    table = program.ask(fd, s.HwptAlloc, flags=_FLAG.PASID, dev_id=device, pt_id=ioas).out_hwpt_id
    program.test(fd, 10, unreal, table, undo=back)
    program.test(fd, 18, unreal, _PASID, table)
    program.test(fd, 20, unreal, _PASID)
    (access,) = struct.unpack_from("<I", program.test(fd, 5, ioas, 0, 1))
    span = (base, 0, 2 * _PAGE, 0)
    (pinned,) = struct.unpack_from("<4xI", program.test(fd, 7, access, 0, 0, *span, 0, 0))
    program.test(fd, 6, access, pinned)
    program.test(fd, 8, access, *span, *struct.unpack("<II", struct.pack("<Q", program.va)), 1)
    program.close(access)
    parent = program.ask(fd, s.HwptAlloc, flags=_FLAG.NEST_PARENT, dev_id=device, pt_id=ioas).out_hwpt_id
    data = {"data_len": 24, "data_uptr": program.put(struct.pack("<IIQQ", 3, 0, 0, 0), 0x9000)}
    viommu = program.ask(fd, s.ViommuAlloc, type=0xDEADBEEF, dev_id=device, hwpt_id=parent, **data).out_viommu_id
    program.ask(fd, s.VdeviceAlloc, viommu_id=viommu, dev_id=device, virt_id=7)
    place = {"index": 0, "nesting_parent_iova": base, "length": _PAGE}
    program.ask(fd, s.HwQueueAlloc, viommu_id=viommu, type=0xDEADBEEF, **place)
    queue = program.ask(fd, s.VeventqAlloc, viommu_id=viommu, type=_EVENT, veventq_depth=4)
    stage = {"data_type": 0xDEAD, "data_len": 4, "data_uptr": program.put(struct.pack("<I", 1), 0x9000)}
    nested = program.ask(fd, s.HwptAlloc, dev_id=device, pt_id=viommu, **stage).out_hwpt_id
    program.test(fd, 10, unreal, nested, undo=partial(program.test, fd, 10, unreal, table))
    _event(program, fd, device, queue.out_veventq_fd)
    program.ask(fd, s.Destroy, id=unreal)


def _event(program: PlayedProgram, fd: int, device: int, queue: int) -> None:
    """One that finds no room is lost, of which the queue tells."""

    def drained() -> bytes:
        size = program.read(queue, program.va + 0x9000, 64)
        return bytes(program.data[0x9000 : 0x9000 + size])

    program.test(fd, 17, device, device, undo=drained)
    program.check(len(program.done("read an event", drained)) == s.VeventHeader.SIZE + 4, "an event is not there")


def _drive(program: PlayedProgram) -> None:
    """VFIO by groups, with type1 and with iommufd; interrupts of a device."""
    devices = list(program.system.devices.values())
    device = devices[0]
    assert device.pci
    container = program.opened("/dev/vfio/vfio")
    groups = [program.opened(each.group.node) for each in devices[:2]]
    group = groups[0]
    program.ask(group, v.GroupStatus)
    for each in groups:
        program.asked(each, v.VfioRequest.GROUP_SET_CONTAINER, program.put(struct.pack("<i", container), 0x9000))
    program.asked(container, v.VfioRequest.SET_IOMMU, v.Extension.TYPE1V2)  # all of them, or none
    program.ask(container, v.DmaMap, flags=3, vaddr=program.va, iova=_IOVA, size=4 * _PAGE)
    name = program.put(device.config.name.encode() + b"\0", 0x9000)
    opened = program.asked(group, v.VfioRequest.GROUP_GET_DEVICE_FD, name)
    bell = os.eventfd(0, os.EFD_CLOEXEC)
    try:
        flags = int(SetIrqsFlags.DATA_EVENTFD | SetIrqsFlags.ACTION_TRIGGER)
        asked = program.put(v.IrqSetHeader(24, flags, IrqIndex.MSIX, 0, 1).pack() + struct.pack("<i", bell), 0x9000)
        program.asked(opened, v.VfioRequest.DEVICE_SET_IRQS, asked)
    finally:
        os.close(bell)
    program.ask(container, v.DirtyPages, flags=v.DirtyPagesFlag.START)
    program.ask(container, v.DmaMap, flags=3, vaddr=program.va, iova=_OTHER, size=_PAGE)
    again = partial(program.call, container, v.DmaMap, flags=3, vaddr=program.va, iova=_IOVA, size=4 * _PAGE)
    program.ask(container, v.DmaUnmap, again, iova=_IOVA, size=4 * _PAGE)
