"""What a process sees of the model: paths that it opens, descriptors, requests, its memory."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from itertools import count
from typing import Any, Protocol, TypeVar
from weakref import WeakSet

from wire_layout import Record

from ...engine.core import Core
from . import commands
from .cdev import VfioDevice
from .context import Iommufd
from .devices import Device, DeviceConfig, Group
from .events import EventFile, PageRequester
from .group import Container, VfioGroup
from .hardware import Hardware
from .mock import MockIommufd
from .places import Places
from .request_error import RequestError
from .rfc import RfcDevice, RfcIommu
from .rfc_structures import REQUESTS as RFC_REQUESTS
from .user_memory import FileMemory, LocalMemory, UserMemory
from .vfio_structures import REQUESTS

__all__ = ["REQUEST_OF", "LocalProcess", "OpenFile", "Process", "System", "blank"]

R = TypeVar("R", bound=Record)
_MAX_FILES = 1024


class OpenFile(Protocol):
    """What an open descriptor, or several of them, refer to."""

    def ioctl(self, process: Process, request: int, argument: int) -> int:
        """Carry out a request of a process; what it returns. Raises OSError."""

    def close(self) -> None:
        """The last descriptor is closed."""


class System:
    """Devices behind one IOMMU, and the files by which programs reach them: ``/dev/iommu``; ``/dev/vfio/vfio``;
    ``/dev/vfio/devices/vfioN`` for each device, and ``/dev/vfio/N`` for each group, N from 0 on in the order of the
    configurations.
    """

    def __init__(
        self,
        devices: Sequence[DeviceConfig] = (),
        *,
        rfc: bool = False,
        mock: bool = False,
        allows_unsafe_interrupts: bool = False,
        core: Core | None = None,
        places: Places | None = None,
    ) -> None:
        """``rfc``: ``/dev/iommu`` is the one that was first proposed, and devices are at ``/dev/vfio/devices/NAME``;
        there is nothing else. ``mock``: ``/dev/iommu`` has what a kernel has that was built with IOMMUFD_TEST, so that
        programs make devices that do not exist. ``allows_unsafe_interrupts``: whether devices without isolated
        interrupts are given away.
        ``core``: as of an engine. ``places``: where requests can fail. Raises ValueError for two devices of one name.
        """
        if rfc and mock:
            raise ValueError("mock devices are not part of /dev/iommu as it was first proposed")
        self.is_rfc = rfc
        self.is_mock = mock
        self.mocks: WeakSet[MockIommufd] = WeakSet()
        """Open /dev/iommu of that kind."""
        self.mock_numbers = count()
        self.places = places or Places()
        self.hardware = Hardware(core, places=self.places)
        self.devices: dict[str, Device] = {}
        """By name."""
        self.allows_unsafe_interrupts = allows_unsafe_interrupts
        requester = PageRequester()
        self.hardware.asks = requester.asks
        groups: dict[str, Group] = {}
        for number, config in enumerate(devices):
            if config.name in self.devices:
                raise ValueError(f"device {config.name}: there are two of this name")
            group = groups.setdefault(config.group or f"\0{config.name}", Group(len(groups)))
            name = config.name if rfc else f"vfio{number}"
            stream = self.hardware.add_stream(config.model.smallest_page)
            device = Device(config, stream, group, node=f"/dev/vfio/devices/{name}")
            group.devices.append(device)
            self.devices[config.name] = device
            requester.add(device)

    def open(self, path: str) -> OpenFile:
        """The file at a path. Raises OSError: ENOENT, EBUSY for a group that is in use, and as that place fails."""
        self.places.file()
        unsafe = self.allows_unsafe_interrupts
        device = next((device for device in self.devices.values() if device.node == path), None)
        if device is not None:
            return RfcDevice(device) if self.is_rfc else VfioDevice(device)
        if path == "/dev/iommu" and self.is_mock:
            return MockIommufd(self)
        if path == "/dev/iommu":
            iommu = RfcIommu if self.is_rfc else Iommufd
            return iommu(self.hardware, allows_unsafe_interrupts=unsafe)
        if self.is_rfc:
            raise RequestError(errno.ENOENT, f"open {path}: no such file")
        if path == "/dev/vfio/vfio":
            return Container(self.hardware, allows_unsafe_interrupts=unsafe)
        for device in self.devices.values():
            if path == device.group.node:
                return VfioGroup(device.group, self.hardware)
        raise RequestError(errno.ENOENT, f"open {path}: no such file")

    def read(self, device: str, iova: int, length: int, pasid: int | None = None) -> bytes:
        """Let a device read memory by DMA. Raises :class:`DmaRefusedError`, and KeyError for an unknown one.

        DMA that has to wait for the answer to a page request is refused as such: the same again goes on, once it is
        answered.
        """
        return self.hardware.read(self.devices[device].stream, iova, length, pasid)

    def write(self, device: str, iova: int, data: bytes, pasid: int | None = None) -> None:
        """Let a device write memory by DMA. Raises as :meth:`read` does."""
        self.hardware.write(self.devices[device].stream, iova, data, pasid)


class _Description:
    """An open file, and how many descriptors refer to it."""

    def __init__(self, file: OpenFile) -> None:
        self.file = file
        self.descriptors = 0


class Process:
    """Descriptors and memory of one program."""

    def __init__(self, system: System, memory: UserMemory) -> None:
        self.system = system
        self.memory = memory
        """What it maps."""
        self._table: dict[int, _Description] = {}

    @property
    def user(self) -> UserMemory:
        """Its memory as requests read and write it."""
        places = self.system.places
        return places.arguments(self.memory) if places.watches_copies else self.memory

    def open(self, path: str) -> int:
        """A descriptor. Raises OSError as System.open() does, and EMFILE."""
        return self.install(self.system.open(path))

    def descriptors(self) -> list[int]:
        """All that are open."""
        return sorted(self._table)

    def dup(self, fd: int) -> int:
        """Another descriptor of the same open file. Raises OSError (EBADF, EMFILE)."""
        return self._install(self._find(fd))

    def close(self, fd: int) -> None:
        """Raises OSError (EBADF)."""
        description = self._find(fd)
        del self._table[fd]
        description.descriptors -= 1
        if not description.descriptors:
            description.file.close()

    def exit(self) -> None:
        """Close all descriptors, in order."""
        for fd in self.descriptors():
            self.close(fd)

    def ioctl(self, fd: int, request: int, argument: int = 0) -> int:
        """Make a request. ``argument`` is an address, or the number that a request takes instead.

        Raises OSError: EBADF, and what the file says.
        """
        return self._find(fd).file.ioctl(self, request, argument)

    def file(self, fd: int) -> OpenFile:
        """What a descriptor refers to. Raises OSError: EBADF, EBADFD for a file that is none of the model's."""
        return self._find(fd).file

    def find_file(self, fd: int) -> OpenFile | None:
        """As file(), but None if it is not open."""
        description = self._table.get(fd)
        return description.file if description else None

    def own_file(self, fd: int) -> OpenFile | None:
        """As file(), but None for a file of the program that is none of the model's. Raises OSError (EBADF)."""
        try:
            return self.file(fd)
        except RequestError as error:
            if error.errno != errno.EBADFD:
                raise
            return None

    def duplicate(self, fd: int) -> int:
        """Another descriptor, of this process, of a file of the program that is none of the model's, such as an
        eventfd. Raises OSError (EBADF).
        """
        try:
            return os.dup(fd)
        except OSError as error:
            raise RequestError(error.errno or errno.EBADF, f"descriptor {fd}: {error.strerror}") from error

    def _find(self, fd: int) -> _Description:
        description = self._table.get(fd)
        if description is None:
            raise RequestError(errno.EBADF, f"descriptor {fd}: not open")
        return description

    def install(self, file: OpenFile, field: int = 0) -> int:
        """A descriptor for a file that was just opened. Raises OSError, EMFILE or as that place fails, and then closes
        it.

        ``field``: where in the structure of the request it will be; 0: the request returns it.
        """
        try:
            self.system.places.file()
        except OSError:
            file.close()
            raise
        return self._install(_Description(file))

    def uninstall(self, fd: int) -> None:
        """The request that opened it fails after all."""
        self.close(fd)

    def memory_file(self, fd: int) -> FileMemory:
        """The memory that a descriptor stands for. Raises OSError: EBADF, EINVAL if it stands for none."""
        file = self.file(fd)
        if not isinstance(file, FileMemory):
            raise RequestError(errno.EINVAL, f"descriptor {fd}: no file in memory")
        return file

    def read(self, fd: int, address: int, count: int) -> int:
        """read() of a queue. Raises OSError: EBADF, EINVAL for a file that cannot be read, and what the queue says."""
        return self._queue(fd).read_to(self.user, address, count)

    def write(self, fd: int, address: int, count: int) -> int:
        """write() to a queue. Raises OSError as :meth:`read` does."""
        return self._queue(fd).write_from(self.user, address, count)

    def _queue(self, fd: int) -> EventFile:
        file = self.file(fd)
        if not isinstance(file, EventFile):
            raise RequestError(errno.EINVAL, f"descriptor {fd}: cannot be read or written")
        return file

    def _install(self, description: _Description) -> int:
        fd = next((fd for fd in range(3, _MAX_FILES) if fd not in self._table), None)
        if fd is None:
            if not description.descriptors:
                description.file.close()
            raise RequestError(errno.EMFILE, f"open: a process has at most {_MAX_FILES} descriptors")
        description.descriptors += 1
        self._table[fd] = description
        return fd


class LocalProcess(Process):
    """A Python program: its memory is of buffers, and its requests are records."""

    memory: LocalMemory

    def __init__(self, system: System) -> None:
        super().__init__(system, LocalMemory())
        self._scratch = bytearray(1 << 16)
        self._argument = self.memory.add(self._scratch)

    def call(self, fd: int, record: type[R], /, **fields: Any) -> R:
        """Make the request that takes such a structure, and return what became of the structure.

        Fields that are not given are 0, the first one is the size. Raises OSError, TypeError for a field that there is
        not, and KeyError for a structure that belongs to no request, or to more than one.
        """
        self.returned(fd, REQUEST_OF[record], blank(record, **fields))
        return record.unpack(self._scratch)

    def returned(self, fd: int, request: int, argument: Record) -> int:
        """Make a request with a structure, and return what ioctl() does. Raises OSError."""
        self._scratch[: argument.SIZE] = argument.pack()
        return self.ioctl(fd, request, self._argument)


def blank(record: type[R], /, **fields: Any) -> R:
    """A structure with its size in the first field, and 0 in others that are not given."""
    values: dict[str, Any] = {
        field.name: bytes(field.size) if field.format[-1] == "s" else 0 for field in record.FIELDS
    }
    values[record.FIELDS[0].name] = record.SIZE
    return record(**{**values, **fields})


REQUEST_OF: dict[type[Record], int] = {
    **{command.record: command.request for command in commands.COMMANDS.values()},
    **REQUESTS,
    **RFC_REQUESTS,
}
"""What ioctl() takes, by the structure that its argument points to."""
