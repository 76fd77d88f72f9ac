"""One open /dev/iommu: its objects, and what each request of iommufd does.

Errno values, and their rank where several would fit, are those of Linux 7.3 (drivers/iommu/iommufd).
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from typing import TYPE_CHECKING, Protocol

from wire_layout import Record

from ...engine import LAST_ADDRESS, PAGE_SHIFT, Access, ByteArea, Cutting, Span
from . import commands
from . import structures as s
from .devices import Device
from .hardware import Hardware
from .ioas import Backing, Ioas, Piece
from .objects import Objects
from .pagetable import DeviceObject, Hwpt
from .request_error import RequestError
from .type1_compat import Type1Compat
from .user_memory import UserMemory

if TYPE_CHECKING:
    from .process import Process

__all__ = ["Iommufd", "access_of"]

_RANGES_AT_ONCE = 4096
_ZEROS_AT_ONCE = 1 << 16
_BITMAP_BYTES_AT_ONCE = 1 << 16


class _Handler(Protocol):
    def __call__(self, command: Record, memory: UserMemory) -> Record | None: ...


def access_of(flags: int, readable: int, writeable: int) -> Access:
    """The access that flags of a mapping ask for."""
    return Access((Access.READ if flags & readable else 0) | (Access.WRITE if flags & writeable else 0))


class Iommufd:
    """An open /dev/iommu. It lives as long as a descriptor is open, or a device is bound to it."""

    def __init__(self, hardware: Hardware, *, allows_unsafe_interrupts: bool = False) -> None:
        self.objects = Objects()
        self.compat = Type1Compat(self.objects)
        self._hardware = hardware
        self._allows_unsafe_interrupts = allows_unsafe_interrupts
        self._accounts_process = 0
        self._is_closed = False
        self._holders = 0

    # As a file

    def ioctl(self, process: Process, request: int, argument: int) -> int:
        """Carry out a request. Raises OSError: by the rules of commands.read(), ENOTTY for a request that there is not,
        EOPNOTSUPP for one that this model does not carry out, and what its method says.
        """
        memory = process.memory
        number = request & 0xFF
        if not commands.BASE <= number < commands.LIMIT:
            return self.compat.ioctl(memory, request, argument)
        command = commands.COMMANDS.get(number)
        if command is None or command.request != request:
            memory.read(argument, 4)
            raise RequestError(errno.ENOTTY, f"request {request:#x}: iommufd has none of this number")
        record, size = commands.read(command, memory, argument)
        carry_out: _Handler | None = getattr(self, f"_do_{command.name}", None)
        if carry_out is None:
            raise RequestError(errno.EOPNOTSUPP, f"{command.name}: not part of this model")
        try:
            answer = carry_out(record, memory)
        except RequestError as refused:
            if refused.answer is not None:
                memory.write(argument, refused.answer.pack()[:size])
            raise
        if answer is not None:
            try:
                memory.write(argument, answer.pack()[:size])
            except OSError:
                if command.creates:
                    self.objects.remove(getattr(answer, command.creates))
                raise
        return 0

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
        """Claim a device's DMA. Raises OSError: EPERM if it can interrupt others, EBUSY if others own its group."""
        if not (device.config.isolated_msi or self._allows_unsafe_interrupts):
            raise RequestError(errno.EPERM, f"bind {device}: its interrupts are unsafe, which is not allowed")
        if device.owner is not None or device.group.owner not in (None, self):
            raise RequestError(errno.EBUSY, f"bind {device}: somebody has claimed its group")
        bound = DeviceObject(device, self._hardware, self.objects)
        device.owner = self
        self.objects.add(bound)
        return bound

    def unbind(self, bound: DeviceObject) -> None:
        """The driver gives a device back."""
        bound.detach()
        bound.users -= 1
        self.objects.remove(bound.id)
        self._end()

    # Requests

    def _do_destroy(self, command: s.Destroy, memory: UserMemory) -> None:
        self.objects.remove(command.id)

    def _do_ioas_alloc(self, command: s.IoasAlloc, memory: UserMemory) -> Record:
        ioas = Ioas(self._hardware)
        self.objects.add(ioas)
        return _changed(command, out_ioas_id=ioas.id)

    def _do_ioas_allow_iovas(self, command: s.IoasAllowIovas, memory: UserMemory) -> None:
        ioas = self.objects.get(Ioas, command.ioas_id)
        spans = list(_read_ranges(memory, command.allowed_iovas, command.num_iovas))
        _check_disjoint(spans)
        way = ioas.space.allow(spans)
        if way:
            raise RequestError(errno.EADDRINUSE, f"allow in {ioas}: {way[0]:#x}..{way[1]:#x} is reserved")

    def _do_ioas_iova_ranges(self, command: s.IoasIovaRanges, memory: UserMemory) -> Record:
        ioas = self.objects.get(Ioas, command.ioas_id)
        ranges = ioas.space.ranges()
        fitting = ranges[: command.num_iovas]
        if fitting:
            memory.write(command.allowed_iovas, b"".join(s.IovaRange(*span).pack() for span in fitting))
        answer = _changed(command, num_iovas=len(ranges), out_iova_alignment=ioas.space.alignment)
        if len(fitting) < len(ranges):
            text = f"ranges of {ioas}: there are {len(ranges)}, and room for {command.num_iovas}"
            raise RequestError(errno.EMSGSIZE, text, answer)
        return answer

    def _do_ioas_map(self, command: s.IoasMap, memory: UserMemory) -> Record:
        _check_below_last(command, "iova", "length")
        access = _map_access(command.flags)
        ioas = self.objects.get(Ioas, command.ioas_id)
        piece = Piece.of(memory, command.user_va, command.length, access)
        return _changed(command, iova=ioas.map([piece], access, _fixed(command.flags, command.iova)))

    def _do_ioas_copy(self, command: s.IoasCopy, memory: UserMemory) -> Record:
        _check_below_last(command, "length", "src_iova", "dst_iova")
        access = _map_access(command.flags)
        source = self.objects.get(Ioas, command.src_ioas_id)
        _check_range(command.src_iova, command.length)
        pieces = source.pieces(command.src_iova, command.length)
        target = self.objects.get(Ioas, command.dst_ioas_id)
        return _changed(command, dst_iova=target.map(pieces, access, _fixed(command.flags, command.dst_iova)))

    def _do_ioas_unmap(self, command: s.IoasUnmap, memory: UserMemory) -> Record:
        ioas = self.objects.get(Ioas, command.ioas_id)
        first, last = command.iova, LAST_ADDRESS
        is_everything = (command.iova, command.length) == (0, LAST_ADDRESS)
        if not is_everything:
            _check_below_last(command, "iova", "length")
            last = _check_range(command.iova, command.length)
        removal = ioas.unmap(first, last, Cutting.STOPS)
        if removal.cut or not (removal.gone or is_everything):
            raise RequestError(errno.ENOENT, f"unmap {first:#x}..{last:#x} of {ioas}: {_why_nothing(removal.cut)}")
        return _changed(command, length=removal.size)

    def _do_option(self, command: s.Option, memory: UserMemory) -> Record:
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
            return _changed(command, val64=self._accounts_process)
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
            return _changed(command, val64=int(ioas.huge_pages))
        if command.op != s.OptionOp.SET:
            raise RequestError(errno.EOPNOTSUPP, f"option HUGE_PAGES: op {command.op} is neither GET nor SET")
        if command.val64 not in (0, 1):
            raise RequestError(errno.EINVAL, f"option HUGE_PAGES: value {command.val64}: must be 0 or 1")
        ioas.set_huge_pages(bool(command.val64))
        return command

    def _do_vfio_ioas(self, command: s.VfioIoas, memory: UserMemory) -> Record | None:
        if command.op == s.VfioIoasOp.GET:
            return _changed(command, ioas_id=self.compat.ioas().id)
        if command.op == s.VfioIoasOp.SET:
            self.compat.choose(self.objects.get(Ioas, command.ioas_id))
        elif command.op == s.VfioIoasOp.CLEAR:
            self.compat.choose(None)
        else:
            raise RequestError(errno.EOPNOTSUPP, f"VFIO IOAS: op {command.op} is neither GET, SET nor CLEAR")
        return None

    def _do_hwpt_alloc(self, command: s.HwptAlloc, memory: UserMemory) -> Record:
        if bool(command.data_type) != bool(command.data_len):
            text = f"data of type {command.data_type} and length {command.data_len}: both are 0, or neither is"
            raise RequestError(errno.EINVAL, f"allocate a page table: {text}")
        bound = self.objects.get(DeviceObject, command.dev_id)
        target = self.objects.find(command.pt_id)
        if isinstance(target, Hwpt):
            raise RequestError(errno.EOPNOTSUPP, f"allocate a page table on {target}: not part of this model")
        if not isinstance(target, Ioas):
            raise RequestError(errno.EINVAL, f"allocate a page table on {target or command.pt_id}: it is no IOAS")
        flag, flags = s.HwptAllocFlag, command.flags
        known = exclusive = int(flag.NEST_PARENT | flag.FAULT_ID_VALID)
        if bound.device.config.dirty_tracking:
            known |= flag.DIRTY_TRACKING.value
        if flags & ~known or flags & exclusive == exclusive or command.data_type:
            text = f"flags {flags:#x}, data type {command.data_type}: the IOMMU before {bound.device} has not all of it"
            raise RequestError(errno.EOPNOTSUPP, f"allocate a page table: {text}")
        if flags & flag.FAULT_ID_VALID:
            raise RequestError(errno.ENOENT, f"allocate a page table: {command.fault_id} is no fault queue")
        hwpt = bound.new_table(target, dirty=bool(flags & flag.DIRTY_TRACKING), parent=bool(flags & flag.NEST_PARENT))
        return _changed(command, out_hwpt_id=hwpt.id)

    def _do_get_hw_info(self, command: s.GetHwInfo, memory: UserMemory) -> Record:
        config = self.objects.get(DeviceObject, command.dev_id).device.config
        for offset in range(0, command.data_len, _ZEROS_AT_ONCE):
            memory.write(command.data_uptr + offset, bytes(min(_ZEROS_AT_ONCE, command.data_len - offset)))
        capabilities = s.HwCapability.ATS_NOT_SUPPORTED
        if config.dirty_tracking:
            capabilities |= s.HwCapability.DIRTY_TRACKING
        return _changed(command, data_len=0, data_type=0, out_max_pasid_log2=0, out_capabilities=int(capabilities))

    def _do_hwpt_set_dirty_tracking(self, command: s.HwptSetDirtyTracking, memory: UserMemory) -> None:
        hwpt = self.objects.get(Hwpt, command.hwpt_id)
        if not hwpt.tracks_dirty:
            raise RequestError(errno.EOPNOTSUPP, f"dirty tracking of {hwpt}: it was not allocated for that")
        self._hardware.engine.track_dirty(hwpt.table, enabled=bool(command.flags & s.DirtyTrackingFlag.ENABLE))

    def _do_hwpt_get_dirty_bitmap(self, command: s.HwptGetDirtyBitmap, memory: UserMemory) -> None:
        hwpt = self.objects.get(Hwpt, command.hwpt_id)
        last = _check_range(command.iova, command.length)
        for size in (hwpt.ioas.space.alignment, command.page_size):
            if not size or (command.iova | last + 1) & size - 1:
                where = f"{command.iova:#x}..{last:#x}"
                raise RequestError(errno.EINVAL, f"dirty bitmap of {where}: not of pages of {size:#x} bytes")
        if not hwpt.tracks_dirty:
            raise RequestError(errno.EOPNOTSUPP, f"dirty bitmap of {hwpt}: it was not allocated for that")
        # Linux looks at areas as far as they follow each other, and forgets to say that it did not get to the end.
        covered = hwpt.ioas.space.areas.covered_up_to(command.iova, last)
        dfn, end = command.iova >> PAGE_SHIFT, covered + 1 >> PAGE_SHIFT
        engine = self._hardware.engine
        shift = (command.page_size & -command.page_size).bit_length() - 1
        for first, count in engine.dirty(hwpt.table, dfn, end - dfn, clear=False):
            offset = (first << PAGE_SHIFT) - command.iova
            _set_bits(memory, command.data, offset >> shift, offset + (count << PAGE_SHIFT) - 1 >> shift)
        if not command.flags & s.DirtyBitmapFlag.NO_CLEAR:
            engine.dirty(hwpt.table, dfn, end - dfn)


def _changed(record: Record, **fields: int) -> Record:
    """The same record with other values in some fields."""
    values = {field.name: getattr(record, field.name) for field in record.FIELDS}
    return type(record)(**{**values, **fields})


def _fixed(flags: int, iova: int) -> int | None:
    return iova if flags & s.MapFlag.FIXED_IOVA else None


def _map_access(flags: int) -> Access:
    access = access_of(flags, s.MapFlag.READABLE, s.MapFlag.WRITEABLE)
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


def _read_ranges(memory: UserMemory, address: int, count: int) -> Iterator[Span]:
    """Raises OSError: EFAULT, or EINVAL for a range of fewer than two addresses."""
    size = s.IovaRange.SIZE
    for number in range(0, count, _RANGES_AT_ONCE):
        data = memory.read(address + number * size, min(_RANGES_AT_ONCE, count - number) * size)
        for start, last in s.IovaRange.STRUCT.iter_unpack(data):
            if start >= last:
                raise RequestError(errno.EINVAL, f"range {start:#x}..{last:#x}: start must be less than last")
            yield start, last


def _check_disjoint(spans: list[Span]) -> None:
    """Raises OSError (EINVAL) if two of them overlap."""
    reached = -1
    for start, last in sorted(spans):
        if start <= reached:
            raise RequestError(errno.EINVAL, f"range {start:#x}..{last:#x}: overlaps another one")
        reached = last


def _set_bits(memory: UserMemory, address: int, first: int, last: int) -> None:
    """Set bits first..last of a bitmap in user memory."""
    for begin in range(first >> 3, (last >> 3) + 1, _BITMAP_BYTES_AT_ONCE):
        end = min(begin + _BITMAP_BYTES_AT_ONCE, (last >> 3) + 1)
        low, high = max(first - begin * 8, 0), min(last + 1, end * 8) - begin * 8
        bits = int.from_bytes(memory.read(address + begin, end - begin), "little") | (1 << high) - (1 << low)
        memory.write(address + begin, bits.to_bytes(end - begin, "little"))
