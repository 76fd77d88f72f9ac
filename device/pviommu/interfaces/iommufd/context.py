"""One open /dev/iommu: its objects, and what each request of iommufd does.

Errno values, and their rank where several would fit, are those of Linux 7.3 (drivers/iommu/iommufd).
"""

from __future__ import annotations

import errno
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Protocol

from wire_layout import Record

from ...engine import LAST_ADDRESS, Access, ByteArea, Cutting, Span
from . import commands
from . import structures as s
from .devices import Device
from .events import EventFile
from .guest_requests import GuestRequests
from .hardware import Hardware
from .ioas import Backing, Ioas, Piece
from .pagetable import DeviceObject, Hwpt
from .request_error import RequestError
from .type1_compat import Type1Compat
from .user_memory import FileMemory, UserMemory, write_back

if TYPE_CHECKING:
    from .process import Process

__all__ = ["Iommufd", "access_of"]

_RANGES_AT_ONCE = 4096
_BITMAP_BYTES_AT_ONCE = 1 << 10
_BITMAP_GAP = 64
"""Bytes between two that are written, from which on they are written one by one."""


_ACCESSES = (Access(0), Access.READ, Access.WRITE, Access.READ | Access.WRITE)
_FIXED_IOVA, _READABLE, _WRITEABLE = int(s.MapFlag.FIXED_IOVA), int(s.MapFlag.READABLE), int(s.MapFlag.WRITEABLE)
"""Plain numbers: each request looks at them, and flags of an enum cost as much as the rest of it."""


class _Handler(Protocol):
    def __call__(self, command: Record, process: Process) -> Record | None: ...


def access_of(flags: int, readable: int, writeable: int) -> Access:
    """The access that flags of a mapping ask for."""
    return _ACCESSES[bool(flags & readable) + 2 * bool(flags & writeable)]


class Iommufd(GuestRequests):
    """An open /dev/iommu. It lives as long as a descriptor is open, or a device is bound to it."""

    def __init__(self, hardware: Hardware, *, allows_unsafe_interrupts: bool = False) -> None:
        super().__init__(hardware)
        self.compat = Type1Compat(self.objects)
        self._allows_unsafe_interrupts = allows_unsafe_interrupts
        self._accounts_process = 0
        self._is_closed = False
        self._holders = 0

    # As a file

    def ioctl(self, process: Process, request: int, argument: int) -> int:
        """Carry out a request. Raises OSError: by the rules of commands.read(), ENOTTY for a request that there is not,
        EOPNOTSUPP for one that this model does not carry out, and what its method says.
        """
        memory = process.user
        number = request & 0xFF
        if not commands.BASE <= number < commands.LIMIT:
            return self.compat.ioctl(process, request, argument)
        command = commands.COMMANDS.get(number)
        if command is None or command.request != request:
            memory.read(argument, 4)
            raise RequestError(errno.ENOTTY, f"request {request:#x}: iommufd has none of this number")
        record, size = commands.read(command, memory, argument)
        carry_out: _Handler | None = getattr(self, command.method, None)
        if carry_out is None:
            raise RequestError(errno.EOPNOTSUPP, f"{command.name}: not part of this model")
        try:
            answer = carry_out(record, process)
        except RequestError as refused:
            if refused.answer is not None:
                memory.write(argument, refused.answer.pack()[:size])
            raise
        if answer is not None:
            self._answer(command, answer, process, argument, size)
        return 0

    def _answer(self, command: commands.Command, answer: Record, process: Process, argument: int, size: int) -> None:
        """Write the structure back; of a request that opens a file, after that. If that fails, what is new is gone."""
        if command.creates is None:
            data = answer.pack()
            write_back(process.user, argument, data if size >= len(data) else data[:size])
            return
        new = self.objects.find(getattr(answer, command.creates))
        descriptor = None
        try:
            if command.opens and isinstance(new, EventFile):
                try:
                    descriptor = process.install(new, answer.offset_of(command.opens))
                except OSError:
                    new = None  # the file is closed, and that is all that used it
                    self.objects.remove(getattr(answer, command.creates))
                    raise
                answer = s.changed(answer, **{command.opens: descriptor})
            process.user.write(argument, answer.pack()[:size])
        except OSError:
            if descriptor is not None:
                process.uninstall(descriptor)
            if new:
                self.objects.remove(new.id)
            raise

    def mapped(self, offset: int, length: int) -> tuple[int, int]:
        """As mmap(): the file to be mapped, and an offset there, in bytes. Raises OSError (ENXIO): there is nothing."""
        raise RequestError(errno.ENXIO, f"map {offset:#x}+{length:#x} of /dev/iommu: nothing is there")

    def close(self) -> None:
        """The last descriptor is closed."""
        self._is_closed = True
        self._end()

    def hold(self) -> None:
        """Live until :meth:`drop` at least."""
        self._holders += 1

    def drop(self) -> None:
        """End what :meth:`hold` began."""
        self._holders -= 1
        self._end()

    def _end(self) -> None:
        if self._is_closed and not self._holders and not any(isinstance(held, DeviceObject) for held in self.objects):
            self.objects.clear()

    # Devices

    def bind(self, device: Device) -> DeviceObject:
        """Claim a device's DMA. Raises OSError (EPERM): it can interrupt others, or others own its group."""
        if not (device.config.isolated_msi or self._allows_unsafe_interrupts):
            raise RequestError(errno.EPERM, f"bind {device}: its interrupts are unsafe, which is not allowed")
        if device.owner is not None or device.group.owner not in (None, self):
            raise RequestError(errno.EPERM, f"bind {device}: somebody has claimed its group")
        bound = DeviceObject(device, self._hardware, self.objects)
        device.owner = self
        self.objects.add(bound)
        device.bound_as = bound.id
        return bound

    def unbind(self, bound: DeviceObject) -> None:
        """The driver gives a device back. What a virtual IOMMU had of it is gone, but for its id."""
        bound.detach_everything()
        if bound.vdevice:
            self.objects.bury(bound.vdevice)
        bound.users -= 1
        self.objects.remove(bound.id)
        self._end()

    # Requests

    def _do_destroy(self, command: s.Destroy, process: Process) -> None:
        self.objects.remove(command.id)

    def _do_ioas_alloc(self, command: s.IoasAlloc, process: Process) -> Record:
        ioas = Ioas(self._hardware)
        self.objects.add(ioas)
        return s.changed(command, out_ioas_id=ioas.id)

    def _do_ioas_allow_iovas(self, command: s.IoasAllowIovas, process: Process) -> None:
        ioas = self.objects.get(Ioas, command.ioas_id)
        spans = _read_ranges(process.user, command.allowed_iovas, command.num_iovas)
        for _ in spans:
            self._hardware.places.span()
        way = ioas.space.allow(spans)
        if way:
            raise RequestError(errno.EADDRINUSE, f"allow in {ioas}: {way[0]:#x}..{way[1]:#x} is reserved")

    def _do_ioas_iova_ranges(self, command: s.IoasIovaRanges, process: Process) -> Record:
        ioas = self.objects.get(Ioas, command.ioas_id)
        ranges = ioas.space.ranges()
        fitting = ranges[: command.num_iovas]
        if fitting:
            process.user.write(command.allowed_iovas, b"".join(s.IovaRange(*span).pack() for span in fitting))
        answer = s.changed(command, num_iovas=len(ranges), out_iova_alignment=ioas.space.alignment)
        if len(fitting) < len(ranges):
            text = f"ranges of {ioas}: there are {len(ranges)}, and room for {command.num_iovas}"
            raise RequestError(errno.EMSGSIZE, text, answer)
        return answer

    def _do_ioas_map(self, command: s.IoasMap, process: Process) -> Record:
        _check_below_last(command, "iova", "length")
        access = _map_access(command.flags)
        ioas = self.objects.get(Ioas, command.ioas_id)
        piece = Piece.of(process.memory, command.user_va, command.length, access)
        return s.changed(command, iova=ioas.map([piece], access, _fixed(command.flags, command.iova)))

    def _do_ioas_map_file(self, command: s.IoasMapFile, process: Process) -> Record:
        _check_below_last(command, "iova", "length")
        access = _map_access(command.flags)
        ioas = self.objects.get(Ioas, command.ioas_id)
        _check_range(command.start, command.length)
        file = _memory_of(process, command.fd)
        file.check_mapping(command.start, command.length)
        piece = Piece.of(file, command.start, command.length, access)
        return s.changed(command, iova=ioas.map([piece], access, _fixed(command.flags, command.iova)))

    def _do_ioas_change_process(self, command: s.IoasChangeProcess, process: Process) -> None:
        """Nothing is accounted here: what remains is that only files can go to another process."""
        for ioas in self.objects:
            for area in ioas.space.areas if isinstance(ioas, Ioas) else ():
                if not isinstance(area.tag.memory, FileMemory) or area.tag.memory.is_device:
                    where = f"{ioas} at {area.first:#x}"
                    raise RequestError(errno.EINVAL, f"change process: {where} maps no file in memory")

    def _do_ioas_copy(self, command: s.IoasCopy, process: Process) -> Record:
        _check_below_last(command, "length", "src_iova", "dst_iova")
        access = _map_access(command.flags)
        source = self.objects.get(Ioas, command.src_ioas_id)
        _check_range(command.src_iova, command.length)
        pieces = source.pieces(command.src_iova, command.length)
        target = self.objects.get(Ioas, command.dst_ioas_id)
        return s.changed(command, dst_iova=target.map(pieces, access, _fixed(command.flags, command.dst_iova)))

    def _do_ioas_unmap(self, command: s.IoasUnmap, process: Process) -> Record:
        ioas = self.objects.get(Ioas, command.ioas_id)
        first, last = command.iova, LAST_ADDRESS
        is_everything = command.length == LAST_ADDRESS and not command.iova
        if not is_everything:
            _check_below_last(command, "iova", "length")
            last = _check_range(command.iova, command.length)
        removal = ioas.unmap(first, last, Cutting.STOPS)
        if removal.cut or not (removal.gone or is_everything):
            raise RequestError(errno.ENOENT, f"unmap {first:#x}..{last:#x} of {ioas}: {_why_nothing(removal.cut)}")
        return s.changed(command, length=removal.size & LAST_ADDRESS)  # all addresses are 0, as in Linux

    def _do_ioas_noiommu_get_pa(self, command: s.IoasNoiommuGetPa, process: Process) -> None:
        raise RequestError(errno.EOPNOTSUPP, "physical address of an IOVA: there is an IOMMU before every device")

    def _do_option(self, command: s.Option, process: Process) -> Record:
        if command.option_id == s.OptionId.RLIMIT_MODE:
            return self._rlimit_mode(command)
        if command.option_id == s.OptionId.HUGE_PAGES:
            return self._huge_pages(command)
        raise RequestError(errno.EOPNOTSUPP, f"option {command.option_id}: there is no such option")

    def _rlimit_mode(self, command: s.Option) -> Record:
        """It is remembered, and changes nothing: this model accounts no memory."""
        if command.object_id:
            raise RequestError(errno.EOPNOTSUPP, f"option RLIMIT_MODE of {command.object_id}: it is of the whole file")
        if command.op == s.OptionOp.GET:
            return s.changed(command, val64=self._accounts_process)
        if command.op != s.OptionOp.SET:
            raise RequestError(errno.EOPNOTSUPP, f"option RLIMIT_MODE: op {command.op} is neither GET nor SET")
        if len(self.objects):
            raise RequestError(errno.EBUSY, "option RLIMIT_MODE: can be set only before there are objects")
        if command.val64 not in (0, 1):
            raise RequestError(errno.EINVAL, f"option RLIMIT_MODE: value {command.val64}: must be 0 or 1")
        self._accounts_process = command.val64
        return command

    def _huge_pages(self, command: s.Option) -> Record:
        ioas = self.objects.get(Ioas, command.object_id)
        if command.op == s.OptionOp.GET:
            return s.changed(command, val64=int(ioas.huge_pages))
        if command.op != s.OptionOp.SET:
            raise RequestError(errno.EOPNOTSUPP, f"option HUGE_PAGES: op {command.op} is neither GET nor SET")
        if command.val64 not in (0, 1):
            raise RequestError(errno.EINVAL, f"option HUGE_PAGES: value {command.val64}: must be 0 or 1")
        ioas.set_huge_pages(bool(command.val64))
        return command

    def _do_vfio_ioas(self, command: s.VfioIoas, process: Process) -> Record | None:
        if command.op == s.VfioIoasOp.GET:
            return s.changed(command, ioas_id=self.compat.ioas().id)
        if command.op == s.VfioIoasOp.SET:
            self.compat.choose(self.objects.get(Ioas, command.ioas_id))
        elif command.op == s.VfioIoasOp.CLEAR:
            self.compat.choose(None)
        else:
            raise RequestError(errno.EOPNOTSUPP, f"VFIO IOAS: op {command.op} is neither GET, SET nor CLEAR")
        return None

    def _do_hwpt_set_dirty_tracking(self, command: s.HwptSetDirtyTracking, process: Process) -> None:
        hwpt = self.objects.get(Hwpt, command.hwpt_id)
        if not hwpt.tracks_dirty:
            raise RequestError(errno.EOPNOTSUPP, f"dirty tracking of {hwpt}: it was not allocated for that")
        self._hardware.track_dirty(hwpt.table, enabled=bool(command.flags & s.DirtyTrackingFlag.ENABLE))

    def _do_hwpt_get_dirty_bitmap(self, command: s.HwptGetDirtyBitmap, process: Process) -> None:
        hwpt = self.objects.get(Hwpt, command.hwpt_id)
        last = _check_range(command.iova, command.length)
        for size in (hwpt.ioas.space.alignment, command.page_size):
            if not size or (command.iova | last + 1) & size - 1:
                where = f"{command.iova:#x}..{last:#x}"
                raise RequestError(errno.EINVAL, f"dirty bitmap of {where}: not of pages of {size:#x} bytes")
        if not hwpt.tracks_dirty:
            raise RequestError(errno.EOPNOTSUPP, f"dirty bitmap of {hwpt}: it was not allocated for that")
        # Linux looks at areas as far as they follow each other, and forgets to say that it did not get to the end.
        length = hwpt.ioas.space.areas.covered_up_to(command.iova, last) + 1 - command.iova
        self._hardware.places.bitmap()
        shift = (command.page_size & -command.page_size).bit_length() - 1
        runs = [
            (first - command.iova >> shift, first - command.iova + size - 1 >> shift)
            for first, size in self._hardware.dirty(hwpt.table, command.iova, length, clear=False)
        ]
        _set_bits(process.user, command.data, runs)
        if not command.flags & s.DirtyBitmapFlag.NO_CLEAR:
            self._hardware.dirty(hwpt.table, command.iova, length, clear=True)


def _memory_of(process: Process, fd: int) -> FileMemory:
    """The memory that a descriptor stands for: of one of the model's own files none, which is found out when a page
    table is filled, as in Linux. Raises OSError as Process.memory_file().
    """
    own = process.find_file(fd)
    return process.memory_file(fd) if own is None or isinstance(own, FileMemory) else FileMemory(bytearray())


def _fixed(flags: int, iova: int) -> int | None:
    return iova if flags & _FIXED_IOVA else None


def _map_access(flags: int) -> Access:
    access = access_of(flags, _READABLE, _WRITEABLE)
    if not access:
        raise RequestError(errno.EINVAL, f"map with flags {flags:#x}: neither readable nor writeable")
    return access


def _check_below_last(command: Record, *names: str) -> None:
    """Raises OSError (EOVERFLOW) for fields that have the highest value."""
    for name in names:
        if getattr(command, name) == LAST_ADDRESS:
            raise RequestError(errno.EOVERFLOW, f"{name} {LAST_ADDRESS:#x}: must be less")


def _check_range(iova: int, length: int) -> int:
    """The last IOVA. Raises OSError: EINVAL for an empty range, EOVERFLOW for one beyond 64 bits."""
    if not length:
        raise RequestError(errno.EINVAL, f"range at {iova:#x}: length 0")
    if iova + length - 1 > LAST_ADDRESS:
        raise RequestError(errno.EOVERFLOW, f"range {iova:#x}+{length:#x}: beyond 64-bit addresses")
    return iova + length - 1


def _why_nothing(cut: ByteArea[Backing] | None) -> str:
    return f"{cut.first:#x}..{cut.last:#x} would be cut" if cut else "nothing is mapped there"


def _read_ranges(memory: UserMemory, address: int, count: int) -> list[Span]:
    """In order of addresses. Raises OSError: EFAULT, or EINVAL for a range of fewer than two addresses, or that
    overlaps one before it, whichever comes first.
    """
    spans: list[Span] = []
    for start, last in _user_ranges(memory, address, count):
        if start >= last:
            raise RequestError(errno.EINVAL, f"range {start:#x}..{last:#x}: start must be less than last")
        place = bisect_right(spans, (start, last))
        if (place and spans[place - 1][1] >= start) or (place < len(spans) and spans[place][0] <= last):
            raise RequestError(errno.EINVAL, f"range {start:#x}..{last:#x}: overlaps another one")
        spans.insert(place, (start, last))
    return spans


def _user_ranges(memory: UserMemory, address: int, count: int) -> Iterator[Span]:
    """As they are, many at a time, but up to the first one that is not there. Raises OSError (EFAULT) then."""
    size = s.IovaRange.SIZE
    done, at_once = 0, _RANGES_AT_ONCE
    while done < count:
        number = min(at_once, count - done)
        try:
            data = memory.read(address + done * size, number * size)
        except OSError:
            if number == 1:
                raise
            at_once = number // 2
        else:
            yield from s.IovaRange.STRUCT.iter_unpack(data)
            done += number


def _set_bits(memory: UserMemory, address: int, runs: Sequence[tuple[int, int]]) -> None:
    """Set bits first..last of a bitmap in user memory, for each run, in order. Bytes without such bits are not touched
    where there are many of them.
    """
    begin, end, bits = 0, 0, 0

    def write() -> None:
        if bits:
            before = int.from_bytes(memory.read(address + begin, end - begin), "little")
            memory.write(address + begin, (before | bits).to_bytes(end - begin, "little"))

    for first, last in runs:
        position, stop = first, last + 1
        while position < stop:
            if position >> 3 >= end + _BITMAP_GAP or (position >> 3) - begin >= _BITMAP_BYTES_AT_ONCE:
                write()
                begin, bits = position >> 3, 0
            until = min(stop, begin + _BITMAP_BYTES_AT_ONCE << 3)
            bits |= (1 << until - begin * 8) - (1 << position - begin * 8)
            position, end = until, until + 7 >> 3
    write()
