"""Queues that a program reads: page requests of devices, which it answers, and events of virtual IOMMUs.

As drivers/iommu/iommufd/eventq.c of Linux 7.3.
"""

from __future__ import annotations

import errno
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import count as numbers_from
from typing import TYPE_CHECKING

from ...engine import PAGE_MASK, PAGE_SHIFT, Access, Refusal, TranslationFault
from . import structures as s
from .devices import Device, Group
from .objects import Object
from .places import Places
from .request_error import RequestError
from .user_memory import UserMemory

if TYPE_CHECKING:
    from .pagetable import PageTable
    from .virtual import Viommu

__all__ = ["MAX_EVENTS", "EventFile", "EventQueue", "FaultQueue", "PageRequests"]

MAX_EVENTS = 1 << 19
"""That a queue of events holds at most."""
_SEQUENCES = (1 << 31) - 1
_GROUPS = (1 << 9) - 1
_ASKED_FOR = (Refusal.NOT_MAPPED, Refusal.NO_PERMISSION)
_Place = tuple[int, int | None, int]
"""Stream, PASID and page."""


class EventFile(Object):
    """A queue, and the open file by which it is read: the file keeps it and the open /dev/iommu alive."""

    def __init__(self, places: Places, hold: Callable[[], None], drop: Callable[[], None]) -> None:
        """Raises OSError (ENOMEM)."""
        super().__init__(places)
        self._places = places
        self.users = 1
        self.watcher: Callable[[], None] = lambda: None
        """Called when there is something to read."""
        self._drop = drop
        hold()

    @property
    def is_readable(self) -> bool:
        """Whether poll() says that there is something to read."""
        raise NotImplementedError

    def read_to(self, memory: UserMemory, address: int, count: int) -> int:
        """read(): how many bytes were written to memory; 0 if there is nothing. Raises OSError."""
        raise NotImplementedError

    def write_from(self, memory: UserMemory, address: int, count: int) -> int:
        """write(): how many bytes were taken. Raises OSError."""
        raise RequestError(errno.EINVAL, f"write to {self}: it is only read")

    def ioctl(self, process: object, request: int, argument: int) -> int:
        """Raises OSError (ENOTTY): there are none."""
        raise RequestError(errno.ENOTTY, f"request {request:#x} of {self}: it has none")

    def close(self) -> None:
        """The last descriptor is closed."""
        self.users -= 1
        self._drop()


@dataclass(eq=False)
class PageRequests:
    """What a device asks for at once; it waits until that is answered."""

    device: Device
    pasid: int | None
    """What its DMA went through: with this PASID, or without one."""
    faults: Sequence[s.Pgfault]
    """As they are read, but for the cookie."""
    answer: Callable[[bool | None], None]
    """Called once, with whether the pages are there now; None: the device was detached before that was answered."""
    cookie: int = field(default=0, init=False)


class FaultQueue(EventFile):
    """Page requests of devices that are attached to some page tables."""

    what = "fault queue"

    def __init__(self, places: Places, hold: Callable[[], None], drop: Callable[[], None]) -> None:
        super().__init__(places, hold, drop)
        self._waiting: deque[PageRequests] = deque()
        self._read: dict[int, PageRequests] = {}
        """Those that were read, by the cookie of their answer."""
        self._lowest = 1
        """All cookies below are in use."""

    def destroy(self) -> None:
        self._refuse([*self._waiting, *self._read.values()])

    def add(self, requests: PageRequests) -> None:
        """A device asks. Raises OSError (ENOMEM): it is to be refused."""
        self._places.event()
        self._waiting.append(requests)
        self.watcher()

    def give_up(self, group: Group, pasid: int | None) -> None:
        """A group was detached, with this PASID or without one: what its devices asked for is refused."""
        everything = [*self._waiting, *self._read.values()]
        self._refuse([one for one in everything if one.device.group is group and one.pasid == pasid])

    def _refuse(self, refused: Sequence[PageRequests]) -> None:
        gone = set(refused)
        self._waiting = deque(one for one in self._waiting if one not in gone)
        self._read = {cookie: one for cookie, one in self._read.items() if one not in gone}
        self._lowest = 1
        for one in refused:
            one.answer(None)

    @property
    def is_readable(self) -> bool:
        """See the base class."""
        return bool(self._waiting)

    def read_to(self, memory: UserMemory, address: int, count: int) -> int:
        """See the base class. Raises ESPIPE for a part of a record, EINVAL if what was asked at once does not fit."""
        size = s.Pgfault.SIZE
        if count % size:
            raise RequestError(errno.ESPIPE, f"read {count} bytes of {self}: records have {size}")
        done = 0
        while self._waiting and len(self._waiting[0].faults) * size <= count - done:
            requests = self._waiting[0]
            requests.cookie = next(number for number in numbers_from(self._lowest) if number not in self._read)
            data = b"".join(s.changed(fault, cookie=requests.cookie).pack() for fault in requests.faults)
            try:
                memory.write(address + done, data)
            except OSError:
                if done:
                    return done
                raise
            self._read[requests.cookie] = self._waiting.popleft()
            self._lowest = requests.cookie + 1
            done += len(data)
        if self._waiting and not done:
            need = len(self._waiting[0].faults) * size
            raise RequestError(errno.EINVAL, f"read {count} bytes of {self}: {need} belong together")
        return done

    def write_from(self, memory: UserMemory, address: int, count: int) -> int:
        """See the base class. Raises ESPIPE for a part of an answer, EINVAL for an unknown code or cookie; answers
        before the one that is refused are taken, and if there are such that is no error.
        """
        size = s.PageResponse.SIZE
        if count % size:
            raise RequestError(errno.ESPIPE, f"write {count} bytes to {self}: answers have {size}")
        done = 0
        try:
            while done < count:
                response = s.PageResponse.unpack(memory.read(address + done, size))
                if response.code not in tuple(s.PageResponseCode):
                    raise RequestError(errno.EINVAL, f"answer to {self}: code {response.code}: must be 0 or 1")
                requests = self._read.pop(response.cookie, None)
                if requests is None:
                    raise RequestError(errno.EINVAL, f"answer to {self}: cookie {response.cookie}: nothing waits by it")
                self._lowest = min(self._lowest, response.cookie)
                requests.answer(response.code == s.PageResponseCode.SUCCESS)
                done += size
        except RequestError:
            if not done:
                raise
        return done


class PageRequester:
    """What devices do that are refused a page: if there is a queue for that, they ask for it and wait."""

    def __init__(self) -> None:
        self._devices: dict[int, Device] = {}
        """By stream."""
        self._waiting: set[_Place] = set()
        """What was asked for, and not answered yet."""
        self._refused: dict[_Place, PageTable] = {}
        """What the answer was no to, as long as the device is in that page table and has not tried again."""
        self._group = 0

    def add(self, device: Device) -> None:
        """A device that may ask."""
        self._devices[device.stream] = device

    def asks(self, fault: TranslationFault) -> bool:
        """Whether to wait: the same DMA may be tried again, and is refused for good once the answer is that."""
        device = self._devices.get(fault.stream)
        at = device and (device.group.main if fault.pasid is None else device.group.pasids.get(fault.pasid))
        table = at and at.hwpt
        queue = table and table.faults
        if not device or not table or not queue or fault.ipa is not None or fault.refusal not in _ASKED_FOR:
            return False
        key = fault.stream, fault.pasid, fault.iova >> PAGE_SHIFT
        if key in self._waiting:
            return True
        if self._refused.pop(key, None) is table:
            return False
        self._group = self._group + 1 & _GROUPS
        flags = s.PgfaultFlag.LAST_PAGE | (0 if fault.pasid is None else s.PgfaultFlag.PASID_VALID)
        wanted = s.PgfaultPermission.WRITE if fault.access & Access.WRITE else s.PgfaultPermission.READ
        page = fault.iova & ~PAGE_MASK
        asked = s.Pgfault(flags, device.bound_as, fault.pasid or 0, self._group, wanted, 0, page, 0, 0)
        try:
            queue.add(PageRequests(device, fault.pasid, [asked], partial(self._answered, key, table)))
        except OSError:
            return False
        self._waiting.add(key)
        return True

    def _answered(self, key: _Place, table: PageTable, answer: bool | None) -> None:
        self._waiting.remove(key)
        if answer is False:
            self._refused[key] = table


class EventQueue(EventFile):
    """Events of one kind of a virtual IOMMU. Those that do not fit are lost, which a record at the end says."""

    what = "event queue"

    def __init__(
        self, viommu: Viommu, kind: int, depth: int, hold: Callable[[], None], drop: Callable[[], None]
    ) -> None:
        super().__init__(viommu.hwpt.ioas.hardware.places, hold, drop)
        self.viommu = viommu
        self.kind = kind
        self._depth = depth
        self._sequence = 0
        self._events: deque[tuple[int, bytes]] = deque()
        """Sequence number and data; without data: here some were lost."""
        viommu.event_queues[kind] = self
        viommu.users += 1

    def destroy(self) -> None:
        del self.viommu.event_queues[self.kind]
        self.viommu.users -= 1

    def add(self, data: bytes) -> None:
        """Something happened. ``data`` is not empty. Raises OSError (ENOMEM): it is lost, as one that does not fit."""
        try:
            self._places.event()
            self._put(data)
        except OSError:
            self._put(b"")
            raise

    def _put(self, data: bytes) -> None:
        has_lost = bool(self._events) and not self._events[-1][1]
        if has_lost:
            self._events.pop()
        self._events.append((self._sequence, data if len(self._events) < self._depth else b""))
        self._sequence = self._sequence + 1 & _SEQUENCES
        self.watcher()

    @property
    def is_readable(self) -> bool:
        """See the base class."""
        return bool(self._events)

    def read_to(self, memory: UserMemory, address: int, count: int) -> int:
        """See the base class. Raises EINVAL for fewer bytes than a header has, or than the first event has."""
        size = s.VeventHeader.SIZE
        if count < size:
            raise RequestError(errno.EINVAL, f"read {count} bytes of {self}: a header has {size}")
        done = 0
        while self._events:
            sequence, data = self._events[0]
            if size + len(data) > count - done:
                if not done:
                    raise RequestError(errno.EINVAL, f"read {count} bytes of {self}: an event has {size + len(data)}")
                break
            flags = 0 if data else s.VeventFlag.LOST_EVENTS
            try:
                memory.write(address + done, s.VeventHeader(flags, sequence).pack() + data)
            except OSError:
                if not done:
                    raise
                break
            self._events.popleft()
            done += size + len(data)
        return done
