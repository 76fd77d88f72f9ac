"""What a kernel that was built with IOMMUFD_TEST has for the tests of iommufd: devices that do not exist.

A program makes them by a request of its own (IOMMU_TEST_CMD), looks by others at what became of them, and lets them
fault. Their IOMMU has pages of 2 KiB, an aperture from 16 MiB to 2 GiB, PASIDs of 20 bits, a first stage that is
nothing but a cache of four numbers, and virtual IOMMUs. The requests are those of iommufd_test.h of Linux 7.3
(drivers/iommu/iommufd). Limits of memory are taken, and change nothing.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import weakref
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from enum import IntEnum, IntFlag
from functools import partial
from itertools import count
from typing import TYPE_CHECKING, Annotated, Protocol, TypeVar

from wire_layout import S32, U32, U64, Record, run_of_bytes

from ...engine import LAST_ADDRESS, PAGE_MASK, PAGE_SIZE, Parent, Refusal
from ...engine import Access as Rights
from . import commands
from . import structures as s
from .access import Access
from .context import Iommufd
from .devices import Device, DeviceConfig, Group
from .events import PageRequests
from .hardware import DmaRefusedError
from .ioas import Ioas
from .models import Geometry, IommuModel, ReadPhysical
from .objects import Object
from .pagetable import DeviceObject, Hwpt, NestedHwpt, PageTable
from .places import Places
from .request_error import RequestError
from .user_memory import FileMemory, Place, UserArray, UserData, located

if TYPE_CHECKING:
    from .process import Process, System

__all__ = ["MockIommufd", "TestOperation"]

R = TypeVar("R", bound=Record)

_PAGE = 2048
_SIZES = ((1 << 31) - 1) & ~(_PAGE - 1)
"""All powers of two from there on."""
_HUGE_SIZES = 512 * _PAGE | PAGE_SIZE
_APERTURE = (1 << 24, (1 << 31) - 1)
_PASID_BITS = 20
_FAILING_PASID = 1024
"""The second page table that is attached with it is refused."""
_CACHE = 4
_DEVICE_CACHE_DEFAULT = 0xBADDAD
_KIND = 0xDEADBEEF
"""Of virtual IOMMUs, hardware queues, and what is invalidated."""
_HW_INFO_KIND, _HW_INFO_VALUE = 0xFEEDBEEF, 0xDEADBEEF
_DATA_KIND = 0xDEAD
_EVENT_KIND = 0xBEEFBEEF
_QUEUES = 2
_MAPPED = 2 * PAGE_SIZE
"""Bytes of a virtual IOMMU that can be mapped."""
_MOST_PAGES = 16 << 20
_MOST_DMABUF = 512 * PAGE_SIZE
_LEAST_LIMIT = 12
_EVERYWHERE = (0, (1 << 47) - 1)
_MOST_BITS = (16 << 20) * 8


class TestOperation(IntEnum):
    """In `op` of TestCmd."""

    __test__ = False

    ADD_RESERVED = 1
    MOCK_DOMAIN = 2
    MD_CHECK_MAP = 3
    MD_CHECK_REFS = 4
    CREATE_ACCESS = 5
    DESTROY_ACCESS_PAGES = 6
    ACCESS_PAGES = 7
    ACCESS_RW = 8
    SET_TEMP_MEMORY_LIMIT = 9
    MOCK_DOMAIN_REPLACE = 10
    ACCESS_REPLACE_IOAS = 11
    MOCK_DOMAIN_FLAGS = 12
    DIRTY = 13
    MD_CHECK_IOTLB = 14
    TRIGGER_IOPF = 15
    DEV_CHECK_CACHE = 16
    TRIGGER_VEVENT = 17
    PASID_ATTACH = 18
    PASID_REPLACE = 19
    PASID_DETACH = 20
    PASID_CHECK_HWPT = 21
    DMABUF_GET = 22
    DMABUF_REVOKE = 23


class DeviceFlag(IntFlag):
    """Of a new device."""

    NO_DIRTY = 1
    PASID = 4


class TestCmd(Record):
    """The request; what `body` is, each operation says."""

    __test__ = False

    size: Annotated[int, U32, "bytes of this structure"]
    op: Annotated[int, U32, "TestOperation"]
    id: Annotated[int, U32, "an object, or a descriptor"]
    reserved: Annotated[int, U32, "not looked at"]
    body: Annotated[bytes, run_of_bytes(48), "of the operation"]
    last: Annotated[int, U32, "not looked at"]
    padding: Annotated[int, U32, "not looked at"]


class _Range(Record):
    start: Annotated[int, U64, "IOVA"]
    length: Annotated[int, U64, "bytes"]


class _NewDevice(Record):
    out_stdev_id: Annotated[int, U32, "what it is destroyed by"]
    out_hwpt_id: Annotated[int, U32, "the page table that it is attached to"]
    out_idev_id: Annotated[int, U32, "the device as others are"]
    dev_flags: Annotated[int, U32, "DeviceFlag"]


class _Number(Record):
    value: Annotated[int, U32, "a number"]


class _CheckMap(Record):
    iova: Annotated[int, U64, "IOVA"]
    length: Annotated[int, U64, "bytes"]
    uptr: Annotated[int, U64, "address of the memory that must be there"]


class _CheckRefs(Record):
    length: Annotated[int, U64, "bytes"]
    uptr: Annotated[int, U64, "address"]
    refs: Annotated[int, U32, "how often each page must be pinned"]
    padding: Annotated[int, U32, "0"]


class _NewAccess(Record):
    out_access_fd: Annotated[int, U32, "its descriptor"]
    flags: Annotated[int, U32, "1: it pins pages"]


class _AccessPages(Record):
    flags: Annotated[int, U32, "1: to be written"]
    out_access_pages_id: Annotated[int, U32, "what they are given back by"]
    iova: Annotated[int, U64, "IOVA"]
    length: Annotated[int, U64, "bytes"]
    uptr: Annotated[int, U64, "address of the memory that must be there; 0: any"]


class _AccessRw(Record):
    iova: Annotated[int, U64, "IOVA"]
    length: Annotated[int, U64, "bytes"]
    uptr: Annotated[int, U64, "address of the data"]
    flags: Annotated[int, U32, "1: write"]
    padding: Annotated[int, U32, "0"]


class _Dirty(Record):
    flags: Annotated[int, U32, "0"]
    padding: Annotated[int, U32, "0"]
    iova: Annotated[int, U64, "IOVA"]
    length: Annotated[int, U64, "bytes"]
    page_size: Annotated[int, U64, "bytes that a bit stands for"]
    uptr: Annotated[int, U64, "address of the bits"]
    out_nr_dirty: Annotated[int, U64, "bits that were 1"]


class _CheckCache(Record):
    id: Annotated[int, U32, "which number"]
    value: Annotated[int, U32, "what it must be"]


class _TriggerIopf(Record):
    dev_id: Annotated[int, U32, "the device"]
    pasid: Annotated[int, U32, "of its DMA; 0: none"]
    grpid: Annotated[int, U32, "of the page request"]
    perm: Annotated[int, U32, "PgfaultPermission"]
    addr: Annotated[int, U64, "IOVA"]


class _Pasid(Record):
    pasid: Annotated[int, U32, "the PASID"]
    pt_id: Annotated[int, U32, "a page table"]


class _Revoke(Record):
    fd: Annotated[int, S32, "descriptor of the dma-buf"]
    revoked: Annotated[int, U32, "whether"]


class _TableData(Record):
    iotlb: Annotated[int, U32, "what a first stage's numbers begin with"]
    pagetable_type: Annotated[int, U32, "0: pages of 2 KiB; 1: of 1 MiB"]


class _InvalidateStage(Record):
    flags: Annotated[int, U32, "1: all"]
    iotlb_id: Annotated[int, U32, "which number"]


class _InvalidateDevice(Record):
    flags: Annotated[int, U32, "1: all"]
    vdev_id: Annotated[int, U32, "the guest's name of a device"]
    cache_id: Annotated[int, U32, "which number"]


class _ViommuData(Record):
    in_data: Annotated[int, U32, "any"]
    out_data: Annotated[int, U32, "the same"]
    out_mmap_offset: Annotated[int, U64, "where a page with the same can be mapped"]
    out_mmap_length: Annotated[int, U64, "its bytes"]


_COMMAND = commands.Command(0xA0, TestCmd, "last")


class _Stage:
    """A first stage that translates nothing, and has numbers that are 0 once they were invalidated."""

    def __init__(self, first: int) -> None:
        self.numbers = [first] * _CACHE

    def walk(self, iova: int, length: int, access: Rights, parent: Parent) -> Refusal:
        """See Stage1Walker."""
        return Refusal.NOT_MAPPED

    def invalidate(self, entries: UserArray) -> None:
        """See FirstStage."""
        entries.check_kind(_KIND)
        for entry in entries.each(_InvalidateStage, "iotlb_id"):
            _invalidate(self.numbers, entry.flags, entry.iotlb_id)


def _invalidate(numbers: list[int], flags: int, which: int) -> None:
    if flags & ~1:
        raise RequestError(errno.EOPNOTSUPP, f"invalidate with flags {flags:#x}: only 1 is known")
    if which >= _CACHE:
        raise RequestError(errno.EINVAL, f"invalidate number {which}: there are {_CACHE}")
    numbers[:] = [0 if flags or place == which else value for place, value in enumerate(numbers)]


class _MappedFile:
    """A file in memory that a program maps."""

    def __init__(self, first: int) -> None:
        self.descriptor = os.memfd_create("pviommu-mock", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        weakref.finalize(self, os.close, self.descriptor)
        os.truncate(self.descriptor, _MAPPED)
        os.pwrite(self.descriptor, first.to_bytes(4, "little"), 0)

    def is_mapped(self) -> bool:
        """A file that somebody can write by a mapping cannot be sealed against that. It is not used afterwards."""
        try:
            fcntl.fcntl(self.descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)
        except OSError:
            return True
        return False


class _Viommu:
    """See VirtualIommu."""

    queue_kinds: Collection[int] = (_KIND,)

    def __init__(self, data: UserData, pages: dict[int, _MappedFile]) -> None:
        self._pages = pages
        self._offset = 0
        if data.length:
            given = data.read(_ViommuData, "out_data")
            self._offset = next(offset for offset in count(_MAPPED, _MAPPED) if offset not in pages)
            answer = _ViommuData(given.in_data, given.in_data, self._offset, _MAPPED)
            data.memory.write(data.address, answer.pack()[: data.length])
            pages[self._offset] = _MappedFile(given.in_data)

    def first_stage(self, data: UserData, read: ReadPhysical) -> _Stage:
        """See VirtualIommu."""
        return _first_stage(data)

    def invalidate(self, entries: UserArray, devices: Mapping[int, Device]) -> None:
        """See VirtualIommu."""
        if not entries.number and entries.kind == _KIND:
            return
        if entries.kind != _KIND or not entries.number:
            raise RequestError(errno.EINVAL, f"{entries.number} entries of type {entries.kind:#x}: must be {_KIND:#x}")
        for entry in entries.all(_InvalidateDevice):
            cache = list(_CACHE * (0,))
            _invalidate(cache, entry.flags, entry.cache_id)
            device = devices.get(entry.vdev_id)
            if device is None:
                raise RequestError(errno.EINVAL, f"invalidate what device {entry.vdev_id:#x} has: there is no such")
            _invalidate(_mock_of(device).cache, entry.flags, entry.cache_id)
            entries.done += 1

    def check_queue(self, kind: int, index: int, taken: Sequence[int]) -> None:
        """See VirtualIommu."""
        if index >= _QUEUES:
            raise RequestError(errno.EINVAL, f"hardware queue {index}: there are {_QUEUES}")
        if index in taken:
            raise RequestError(errno.EEXIST, f"hardware queue {index}: there is one")
        if index and index - 1 not in taken:
            raise RequestError(errno.EIO, f"hardware queue {index}: that before it must be there")

    def is_mapped(self) -> bool:
        """See VirtualIommu."""
        return self._offset in self._pages and self._pages[self._offset].is_mapped()

    def close(self) -> None:
        """See VirtualIommu."""
        self._pages.pop(self._offset, None)


def _first_stage(data: UserData) -> _Stage:
    if data.kind != _DATA_KIND:
        raise RequestError(errno.EOPNOTSUPP, f"nested page table with data of type {data.kind:#x}: no such type")
    return _Stage(data.read(_TableData, "iotlb").iotlb)


class _MockModel(IommuModel):
    """The IOMMU before one device, with what that has of it."""

    smallest_page = _PAGE
    hw_info_type = _HW_INFO_KIND
    takes_first_stages = True
    always_knows_pasids = True

    def __init__(self, pages: dict[int, _MappedFile]) -> None:
        self.cache = [_DEVICE_CACHE_DEFAULT] * _CACHE
        self._pages = pages
        self._fails_next = False

    def hw_info(self) -> bytes:
        """See the base class."""
        return (_HW_INFO_VALUE << 32).to_bytes(8, "little")

    def geometry(self, config: DeviceConfig, data: UserData) -> Geometry:
        """See the base class."""
        if data.kind not in (0, _DATA_KIND):
            raise RequestError(errno.EOPNOTSUPP, f"page table with data of type {data.kind:#x}: no such type")
        kind = data.read(_TableData, "iotlb").pagetable_type if data.kind else 0
        if kind > 1:
            raise RequestError(errno.EOPNOTSUPP, f"page table of type {kind}: must be 0 or 1")
        return Geometry(_EVERYWHERE, _HUGE_SIZES) if kind else Geometry(config.aperture, config.page_sizes)

    def suits(self, table: Hwpt, config: DeviceConfig) -> bool:
        """See the base class."""
        return config.dirty_tracking or not table.tracks_dirty

    def entering(self, table: PageTable | None, pasid: int | None) -> None:
        """See the base class."""
        if pasid != _FAILING_PASID:
            return
        fails = self._fails_next and table is not None
        self._fails_next = not fails and table is not None
        if fails:
            raise RequestError(errno.ENOMEM, f"attach with PASID {pasid}: fails every second time")

    def first_stage(self, data: UserData, read: ReadPhysical) -> _Stage:
        """See the base class."""
        return _first_stage(data)

    def virtual_iommu(self, kind: int) -> Callable[[UserData], _Viommu] | None:
        """See the base class."""
        return (lambda data: _Viommu(data, self._pages)) if kind == _KIND else None


def _mock_of(device: Device) -> _MockModel:
    model = device.config.model
    if not isinstance(model, _MockModel):
        raise RequestError(errno.EINVAL, f"{device} is no mock device")
    return model


class _MockDevice(Object):
    """What user space destroys to have a device unplugged."""

    what = "mock device"

    def __init__(self, places: Places, file: Iommufd, bound: DeviceObject) -> None:
        """Raises OSError (ENOMEM)."""
        super().__init__(places)
        self.bound = bound
        self._file = file

    def destroy(self) -> None:
        self._file.unbind(self.bound)


class _AccessFile:
    """The open file of an access."""

    def __init__(self, file: Iommufd, access: Access) -> None:
        self.access = access
        self._file = file
        file.hold()

    def ioctl(self, process: object, request: int, argument: int) -> int:
        """Raises OSError (ENOTTY)."""
        raise RequestError(errno.ENOTTY, f"request {request:#x} of an access: it has none")

    def close(self) -> None:
        """It is given up."""
        self.access.users -= 1
        self._file.objects.remove(self.access.id)
        self._file.drop()


class _Dmabuf(FileMemory):
    """Memory of a device that does not exist, which can be taken back."""

    is_device = True

    def __init__(self, size: int) -> None:
        super().__init__(bytearray(size))
        self.is_revoked = False

    def check_mapping(self, start: int, length: int) -> None:
        """See the base class."""
        if start + length > len(self.buffer):
            raise RequestError(errno.EINVAL, f"map {start:#x}+{length:#x} of a dma-buf of {len(self.buffer)} bytes")
        if self.is_revoked:
            raise RequestError(errno.ENODEV, "map a dma-buf that was taken back")

    def holds(self, address: int, length: int, *, writeable: bool) -> bool:
        """Whether or not it was taken back: page tables have it, and accesses through them fail."""
        return address + length <= len(self.buffer)

    def _find(self, address: int, length: int) -> memoryview:
        if self.is_revoked:
            raise RequestError(errno.EFAULT, "a dma-buf that was taken back")
        return super()._find(address, length)


_Undoable = tuple[Record, Callable[[], object]]
"""What is written back, and what is to be called if that fails."""


class _Handler(Protocol):
    def __call__(self, number: int, body: bytes, process: Process) -> Record | _Undoable | int | None: ...


class MockIommufd(Iommufd):
    """An open /dev/iommu that knows these requests, too."""

    def __init__(self, system: System) -> None:
        super().__init__(system.hardware, allows_unsafe_interrupts=system.allows_unsafe_interrupts)
        self.pages: dict[int, _MappedFile] = {}
        """What virtual IOMMUs let be mapped, by offset."""
        self._is_ending = False
        self._system = system
        system.mocks.add(self)

    def ioctl(self, process: Process, request: int, argument: int) -> int:
        """See the base class."""
        if request != _COMMAND.request:
            return super().ioctl(process, request, argument)
        record, size = commands.read(_COMMAND, process.user, argument)
        assert isinstance(record, TestCmd)
        try:
            operation = TestOperation(record.op)
        except ValueError:
            raise RequestError(errno.EOPNOTSUPP, f"test operation {record.op}: there is none") from None
        handler: _Handler = getattr(self, f"_test_{operation.name.lower()}")
        answer = handler(record.id, record.body, process)
        if isinstance(answer, int):
            return answer
        if answer is not None:
            answered, undo = answer if isinstance(answer, tuple) else (answer, None)
            body = answered.pack()
            try:
                process.user.write(argument + TestCmd.offset_of("body"), body[: size - TestCmd.offset_of("body")])
            except OSError:
                if undo:
                    undo()
                raise
        return 0

    # Devices

    def mapped(self, offset: int, length: int) -> tuple[int, int]:
        """See the base class. What a virtual IOMMU has is mapped whole."""
        file = self.pages.get(offset)
        return (file.descriptor, 0) if file and length == _MAPPED else super().mapped(offset, length)

    def _test_mock_domain(self, number: int, body: bytes, process: Process) -> _Undoable:
        return self._new_device(number, DeviceFlag(0))

    def _test_mock_domain_flags(self, number: int, body: bytes, process: Process) -> _Undoable:
        flags = _unpack(_NewDevice, body).dev_flags
        if flags & ~int(DeviceFlag.NO_DIRTY | DeviceFlag.PASID):
            raise RequestError(errno.EINVAL, f"mock device with flags {flags:#x}: unknown")
        return self._new_device(number, DeviceFlag(flags))

    def _new_device(self, target: int, flags: DeviceFlag) -> _Undoable:
        name = f"iommufd_mock{next(self._system.mock_numbers)}"
        config = DeviceConfig(
            name,
            aperture=_APERTURE,
            regions=(),
            page_sizes=_SIZES,
            dirty_tracking=DeviceFlag.NO_DIRTY not in flags,
            enforces_snoop=False,
            pasid_bits=_PASID_BITS if DeviceFlag.PASID in flags else 0,
            model=_MockModel(self.pages),
        )
        group = Group(-1)
        device = Device(config, self._hardware.add_stream(_PAGE), group)
        group.devices.append(device)
        try:
            bound = self.bind(device)
        except OSError:
            self._hardware.remove_stream(device.stream)
            raise
        try:
            new = _MockDevice(self._hardware.places, self, bound)
            hwpt = bound.attach(target)
        except OSError:
            self.unbind(bound)
            raise
        self.objects.add(new)
        return _NewDevice(new.id, hwpt, bound.id, flags), partial(self.objects.remove, new.id)

    def unbind(self, bound: DeviceObject) -> None:
        """See the base class."""
        super().unbind(bound)
        if isinstance(bound.device.config.model, _MockModel):
            self._hardware.remove_stream(bound.device.stream)

    def _end(self) -> None:
        """Mock devices go with the file: nobody else has them."""
        if self._is_ending:
            return  # by a device that goes
        if self._is_closed and not self._holders:
            self._is_ending = True
            for held in self.objects:
                if isinstance(held, _MockDevice):
                    self.objects.remove(held.id)
            self._is_ending = False
        super()._end()

    def _test_mock_domain_replace(self, number: int, body: bytes, process: Process) -> Record:
        bound = self.objects.get(_MockDevice, number).bound
        return _Number(bound.attach(_unpack(_Number, body).value, replaces=True))

    def _test_pasid_attach(self, number: int, body: bytes, process: Process) -> _Undoable:
        bound, pasid = self.objects.get(_MockDevice, number).bound, _unpack(_Pasid, body).pasid or None
        return self._pasid_change(number, body, replaces=False), partial(bound.detach, pasid)

    def _test_pasid_replace(self, number: int, body: bytes, process: Process) -> Record:
        return self._pasid_change(number, body, replaces=True)

    def _pasid_change(self, number: int, body: bytes, *, replaces: bool) -> Record:
        bound = self.objects.get(_MockDevice, number).bound
        asked = _unpack(_Pasid, body)
        return _Pasid(asked.pasid, bound.attach(asked.pt_id, replaces=replaces, pasid=asked.pasid or None))

    def _test_pasid_detach(self, number: int, body: bytes, process: Process) -> None:
        self.objects.get(_MockDevice, number).bound.detach(_unpack(_Pasid, body).pasid or None)

    def _test_pasid_check_hwpt(self, number: int, body: bytes, process: Process) -> None:
        group = self.objects.get(_MockDevice, number).bound.device.group
        asked = _unpack(_Pasid, body)
        at = group.pasids.get(asked.pasid) if asked.pasid else group.main
        found = at.hwpt if at else None
        if found is not (self._table(asked.pt_id) if asked.pt_id else None):
            raise RequestError(errno.EINVAL, f"PASID {asked.pasid} is attached to {found}, not to {asked.pt_id}")

    def _table(self, number: int) -> PageTable:
        found = self.objects.get(Object, number)
        if not isinstance(found, PageTable):
            raise RequestError(errno.EINVAL, f"{found} is no page table")
        return found

    # What page tables and caches have

    def _test_add_reserved(self, number: int, body: bytes, process: Process) -> None:
        start, length = _values(_unpack(_Range, body))
        if not length:
            raise RequestError(errno.EINVAL, f"reserve at {start:#x}: length 0")
        if start + length - 1 > LAST_ADDRESS:
            raise RequestError(errno.EOVERFLOW, f"reserve {start:#x}+{length:#x}: beyond 64-bit addresses")
        self.objects.get(Ioas, number).reserve("the test", [(start, start + length - 1)])

    def _test_md_check_map(self, number: int, body: bytes, process: Process) -> None:
        iova, length, address = _values(_unpack(_CheckMap, body))
        hwpt = self.objects.get(Hwpt, number)
        if (iova | length | address) & hwpt.page_size - 1:
            raise RequestError(errno.EINVAL, f"check {iova:#x}+{length:#x}: not of pages of {hwpt.page_size:#x} bytes")
        if length and self._reached(hwpt, iova, length) != _joined(located(process.memory, address, length)):
            raise RequestError(errno.EINVAL, f"check {iova:#x}+{length:#x} of {hwpt}: other memory is mapped there")

    def _reached(self, hwpt: Hwpt, iova: int, length: int) -> list[Place]:
        """What a device would reach. Raises OSError (EINVAL) for what is not mapped."""
        with self._hardware.probing(hwpt.table) as stream:
            try:
                runs = self._hardware.runs(stream, iova, length, Rights(0))
            except DmaRefusedError as refused:
                raise RequestError(errno.EINVAL, f"{hwpt} at {iova:#x}+{length:#x}: {refused}") from None
        return _joined([place for run in runs for place in located(*run)])

    def _test_md_check_refs(self, number: int, body: bytes, process: Process) -> None:
        asked = _unpack(_CheckRefs, body)
        if (asked.length | asked.uptr) & PAGE_MASK:
            raise RequestError(errno.EINVAL, f"check {asked.uptr:#x}+{asked.length:#x}: not of pages")
        if not asked.length:
            return
        pinned = Counter(page for page, _ in set(self._pinned_pages()))
        for page in _pages(located(process.memory, asked.uptr, asked.length)):
            if pinned[page] != asked.refs:
                raise RequestError(errno.EIO, f"check {asked.uptr:#x}: pinned {pinned[page]} times")

    def _pinned_pages(self) -> Iterator[tuple[tuple[object, int], object]]:
        """(page, mapping) of all pages that are pinned, perhaps several times."""
        for file in self._system.mocks:
            for ioas in file.objects:
                if not isinstance(ioas, Ioas):
                    continue
                for area in ioas.space.areas:
                    spans = [(area.first, area.last)] if ioas.hwpts else []
                    for access in ioas.accesses:
                        spans += access.pinned.values()
                    for first, last in spans:
                        if last < area.first or area.last < first:
                            continue
                        part = area.clipped(first, last)
                        try:
                            places = located(part.tag.memory, part.target, part.length)
                        except RequestError:
                            continue
                        for page in _pages(places):
                            yield page, part.tag.pages

    def _test_dirty(self, number: int, body: bytes, process: Process) -> Record:
        asked = _unpack(_Dirty, body)
        size = asked.page_size
        if asked.flags or not size or asked.iova % size or asked.length % size or not asked.uptr:
            where = f"{asked.iova:#x}+{asked.length:#x}"
            raise RequestError(errno.EINVAL, f"set {where} dirty, by pages of {size:#x} bytes")
        if asked.length and asked.iova + asked.length - 1 > LAST_ADDRESS:
            raise RequestError(errno.EOVERFLOW, f"set {asked.iova:#x}+{asked.length:#x} dirty: beyond 64-bit addresses")
        bits = asked.length // size
        if bits > _MOST_BITS:
            raise RequestError(errno.EOVERFLOW, f"set {bits} pages dirty: at most {_MOST_BITS}")
        hwpt = self.objects.get(Hwpt, number)
        if not self._hardware.tracks_dirty(hwpt.table):
            raise RequestError(errno.EINVAL, f"set pages of {hwpt} dirty: they are not tracked")
        bitmap = process.user.read(asked.uptr, -(-bits // 8))
        found = [
            place * 8 + bit
            for place, byte in enumerate(bitmap)
            if byte
            for bit in range(8)
            if byte >> bit & 1 and place * 8 + bit < bits
        ]
        with self._hardware.probing(hwpt.table) as stream:
            for bit in found:
                first, length = _leaf(hwpt, asked.iova + bit * size)
                with contextlib.suppress(DmaRefusedError):  # where nothing is mapped, nothing becomes dirty
                    self._hardware.runs(stream, first, length, Rights.WRITE)
        return s.changed(asked, out_nr_dirty=len(found))

    def _test_md_check_iotlb(self, number: int, body: bytes, process: Process) -> None:
        which, value = _values(_unpack(_CheckCache, body))
        stage = self.objects.get(NestedHwpt, number).stage
        if not isinstance(stage, _Stage) or which >= _CACHE or stage.numbers[which] != value:
            raise RequestError(errno.EINVAL, f"number {which} of nested page table {number} is not {value:#x}")

    def _test_dev_check_cache(self, number: int, body: bytes, process: Process) -> None:
        which, value = _values(_unpack(_CheckCache, body))
        cache = _mock_of(self.objects.get(DeviceObject, number).device).cache
        if which >= _CACHE or cache[which] != value:
            raise RequestError(errno.EINVAL, f"number {which} of device {number} is not {value:#x}")

    # Accesses

    def _test_create_access(self, number: int, body: bytes, process: Process) -> _Undoable:
        flags = _unpack(_NewAccess, body).flags
        if flags & ~1:
            raise RequestError(errno.EOPNOTSUPP, f"access with flags {flags:#x}: only 1 is known")
        access = Access(self.objects.get(Ioas, number), pins=bool(flags))
        self.objects.add(access)
        place = TestCmd.offset_of("body") + _NewAccess.offset_of("out_access_fd")
        descriptor = process.install(_AccessFile(self, access), place)
        return _NewAccess(descriptor, flags), partial(process.uninstall, descriptor)

    @staticmethod
    def _access(process: Process, descriptor: int) -> Access:
        file = process.find_file(descriptor)
        if not isinstance(file, _AccessFile):
            raise RequestError(errno.EBADFD, f"descriptor {descriptor} is no access")
        return file.access

    def _test_access_replace_ioas(self, number: int, body: bytes, process: Process) -> None:
        self._access(process, number).replace(self.objects.get(Ioas, _unpack(_Number, body).value))

    def _test_access_pages(self, number: int, body: bytes, process: Process) -> _Undoable:
        asked = _unpack(_AccessPages, body)
        if asked.length > _MOST_PAGES:
            raise RequestError(errno.ENOMEM, f"pin {asked.length} bytes: at most {_MOST_PAGES}")
        if asked.flags & ~1:
            raise RequestError(errno.EOPNOTSUPP, f"pin with flags {asked.flags:#x}: only 1 is known")
        access = self._access(process, number)
        if not access.can_pin:
            raise RequestError(errno.EOPNOTSUPP, f"pin through {access}: it was not made for that")
        pinned = access.pin(asked.iova, asked.length, Rights.WRITE if asked.flags else Rights.READ)
        if asked.uptr:
            pieces = access.ioas.pieces(asked.iova, asked.length)
            there = [place for piece in pieces for place in located(piece.backing.memory, piece.address, piece.length)]
            if _joined(there) != _joined(located(process.memory, asked.uptr, asked.length)):
                access.unpin(pinned)
                raise RequestError(errno.EBADE, f"pin {asked.iova:#x}+{asked.length:#x}: other memory is mapped there")
        return s.changed(asked, out_access_pages_id=pinned), partial(access.unpin, pinned)

    def _test_destroy_access_pages(self, number: int, body: bytes, process: Process) -> None:
        self._access(process, number).unpin(_unpack(_Number, body).value)

    def _test_access_rw(self, number: int, body: bytes, process: Process) -> None:
        asked = _unpack(_AccessRw, body)
        if asked.length > _MOST_PAGES:
            raise RequestError(errno.ENOMEM, f"access {asked.length} bytes: at most {_MOST_PAGES}")
        if asked.flags & ~5:
            raise RequestError(errno.EOPNOTSUPP, f"access with flags {asked.flags:#x}: 1 and 4 are known")
        access = self._access(process, number)
        if asked.flags & 1:
            access.write(asked.iova, process.user.read(asked.uptr, asked.length))
        else:
            process.user.write(asked.uptr, access.read(asked.iova, asked.length))

    def _test_set_temp_memory_limit(self, number: int, body: bytes, process: Process) -> None:
        limit = _unpack(_Number, body).value
        if limit < _LEAST_LIMIT:
            raise RequestError(errno.EINVAL, f"memory limit of {limit} bytes: at least {_LEAST_LIMIT}")

    # Faults and events

    def _test_trigger_iopf(self, number: int, body: bytes, process: Process) -> None:
        asked = _unpack(_TriggerIopf, body)
        device = self.objects.get(DeviceObject, asked.dev_id).device
        _mock_of(device)
        group = device.group
        pasid = asked.pasid or None
        if pasid not in group.pasids:
            # A guest has the table of PASIDs behind its first stage.
            pasid = None
        table = group.main.hwpt if pasid is None else group.pasids[pasid].hwpt
        if table is None or table.faults is None or (asked.pasid and pasid is None and isinstance(table, Hwpt)):
            return
        flags = s.PgfaultFlag.LAST_PAGE | (s.PgfaultFlag.PASID_VALID if asked.pasid else 0)
        fault = s.Pgfault(flags, asked.dev_id, asked.pasid, asked.grpid, asked.perm, 0, asked.addr, 0, 0)
        with contextlib.suppress(OSError):  # then it is refused, which nobody waits for
            table.faults.add(PageRequests(device, pasid, [fault], lambda there: None))

    def _test_trigger_vevent(self, number: int, body: bytes, process: Process) -> None:
        bound = self.objects.get(DeviceObject, _unpack(_Number, body).value)
        table = bound.device.group.hwpt
        viommu = table.viommu if isinstance(table, NestedHwpt) else None
        name = viommu.name_of(bound) if viommu else None
        if not viommu or not name:
            raise RequestError(errno.ENOENT, f"event of {bound.device}: no virtual IOMMU has it")
        queue = viommu.event_queues.get(_EVENT_KIND)
        if queue is None:
            raise RequestError(errno.EOPNOTSUPP, f"event of {bound.device}: {viommu} has no queue for it")
        queue.add((name & 0xFFFFFFFF).to_bytes(4, "little"))

    # dma-buf

    def _test_dmabuf_get(self, number: int, body: bytes, process: Process) -> int:
        length = -(-_unpack(_Number, body).value // PAGE_SIZE) * PAGE_SIZE
        if not 0 < length <= _MOST_DMABUF:
            raise RequestError(errno.EINVAL, f"dma-buf of {length} bytes: must be 1..{_MOST_DMABUF}")
        return process.install(_Dmabuf(length))

    def _test_dmabuf_revoke(self, number: int, body: bytes, process: Process) -> None:
        asked = _unpack(_Revoke, body)
        file = process.file(asked.fd)
        if not isinstance(file, _Dmabuf):
            raise RequestError(errno.EOPNOTSUPP, f"take back descriptor {asked.fd}: it is no dma-buf")
        file.is_revoked = bool(asked.revoked)


def _unpack(record: type[R], body: bytes) -> R:
    return record.unpack(body[: record.SIZE])


def _values(record: Record) -> tuple[int, ...]:
    return tuple(getattr(record, field.name) for field in record.FIELDS)


def _joined(places: Sequence[Place]) -> list[Place]:
    """Adjacent ones as one."""
    joined: list[Place] = []
    for place in places:
        last = joined[-1] if joined else None
        if last and (last.of, last.offset + last.length) == (place.of, place.offset):
            joined[-1] = last._replace(length=last.length + place.length)
        else:
            joined.append(place)
    return joined


def _pages(places: Sequence[Place]) -> Iterator[tuple[object, int]]:
    for of, offset, length in places:
        for page in range(offset // PAGE_SIZE, -(-(offset + length) // PAGE_SIZE)):
            yield of, page


def _leaf(hwpt: Hwpt, iova: int) -> tuple[int, int]:
    """First IOVA and bytes of the entry that maps an address: the largest size that fits."""
    area = hwpt.ioas.space.areas.first_in(iova, iova)
    sizes = hwpt.page_sizes if hwpt.ioas.huge_pages else hwpt.page_sizes & (PAGE_SIZE << 1) - 1
    for shift in range(sizes.bit_length() - 1, -1, -1):
        first, size = iova >> shift << shift, 1 << shift
        fits = area and area.first <= first and first + size - 1 <= area.last
        if sizes & size and area and fits and not (area.target + first - area.first) & size - 1:
            return first, size
    return iova, hwpt.page_size
