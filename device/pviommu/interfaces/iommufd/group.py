"""VFIO's old way: a group is put into a container, which gets an IOMMU of type1, and gives its devices away.

As drivers/vfio/group.c and container.c of Linux 7.3. Instead of a container a group takes an open /dev/iommu, too.
"""

from __future__ import annotations

import errno
from collections import Counter
from typing import TYPE_CHECKING

from . import vfio_arguments as arguments
from . import vfio_structures as v
from .context import Iommufd
from .device_file import DeviceFile
from .devices import Device, Group
from .hardware import Hardware
from .pagetable import DeviceObject
from .request_error import RequestError
from .type1 import Type1

if TYPE_CHECKING:
    from .process import OpenFile, Process

__all__ = ["Container", "VfioGroup"]

_NAME_BYTES = 4096
_EXTENSIONS = (v.Extension.TYPE1, v.Extension.TYPE1V2, v.Extension.UNMAP_ALL)


class Container:
    """An open /dev/vfio/vfio. Its IOMMU is there from SET_IOMMU until the last group leaves."""

    def __init__(self, hardware: Hardware, *, allows_unsafe_interrupts: bool = False) -> None:
        self.type1: Type1 | None = None
        self._hardware = hardware
        self._allows_unsafe_interrupts = allows_unsafe_interrupts
        self.groups: list[Group] = []

    def ioctl(self, process: Process, request: int, argument: int) -> int:
        """Raises OSError: EINVAL for a request of the IOMMU while there is none, and what it says."""
        if request == v.VfioRequest.GET_API_VERSION:
            return v.API_VERSION
        if request == v.VfioRequest.CHECK_EXTENSION:
            if argument == v.Extension.DMA_CC:
                return int(self.type1 is not None and self.type1.enforces_snoop)
            return int(argument in _EXTENSIONS)
        if request == v.VfioRequest.SET_IOMMU:
            self._set_iommu(argument)
        elif self.type1 is None:
            raise RequestError(errno.EINVAL, f"request {request:#x}: the container has no IOMMU yet")
        else:
            self.type1.ioctl(process, request, argument)
        return 0

    def _set_iommu(self, kind: int) -> None:
        if self.type1 is not None or not self.groups:
            raise RequestError(errno.EINVAL, f"set IOMMU {kind}: the container has one already, or has no group")
        if kind not in _EXTENSIONS:
            raise RequestError(errno.ENODEV, f"set IOMMU {kind}: there is no such kind")
        if kind == v.Extension.UNMAP_ALL:
            raise RequestError(errno.EINVAL, f"set IOMMU {kind}: this is an extension, no kind of IOMMU")
        version = 1 if kind == v.Extension.TYPE1 else 2
        type1 = Type1(self._hardware, version=version, allows_unsafe_interrupts=self._allows_unsafe_interrupts)
        attached: list[Group] = []
        try:
            for group in self.groups:
                type1.attach(group)
                attached.append(group)
        except OSError:
            for group in attached:
                type1.detach(group)
            raise
        self.type1 = type1

    def enter(self, group: Group) -> None:
        """Raises OSError, and then changes nothing, as Type1.attach() does."""
        if self.type1 is not None:
            self.type1.attach(group)
        self.groups.append(group)

    def leave(self, group: Group) -> None:
        """A group goes, and with the last one the IOMMU."""
        self.groups.remove(group)
        if self.type1 is not None:
            self.type1.detach(group)
            if not self.groups:
                self.type1 = None

    def close(self) -> None:
        """It lives on as long as groups are in it."""


class VfioGroup:
    """An open /dev/vfio/N. It lives as long as a descriptor of it or of one of its devices is open."""

    def __init__(self, group: Group, hardware: Hardware) -> None:
        """Raises OSError (EBUSY) if it is open already, or one of its devices is bound by its own file."""
        if group.file is not None or group.bound:
            raise RequestError(errno.EBUSY, f"open {group}: it is open already, or one of its devices is bound")
        group.file = self
        self.group = group
        self._hardware = hardware
        self._iommu: Container | Iommufd | None = None
        self._open: Counter[Device] = Counter()
        """How often each of its devices is open."""
        self._bound: dict[Device, tuple[Iommufd, DeviceObject]] = {}
        """Those that were opened first while the group had an open /dev/iommu."""
        self._is_closed = False

    def ioctl(self, process: Process, request: int, argument: int) -> int:
        """Raises OSError: ENOTTY for a request that is none of these, and what they say."""
        if request == v.VfioRequest.GROUP_GET_STATUS:
            status = arguments.read(v.GroupStatus, process.user, argument, (1 << 32) - 1)
            flags = v.GroupFlag(0) if self.group.owner not in (None, self) else v.GroupFlag.VIABLE
            if self._iommu is not None:
                flags = v.GroupFlag.VIABLE | v.GroupFlag.CONTAINER_SET
            process.user.write(argument, v.GroupStatus(status.argsz, flags).pack())
        elif request == v.VfioRequest.GROUP_SET_CONTAINER:
            self._set_container(process, argument)
        elif request == v.VfioRequest.GROUP_UNSET_CONTAINER:
            self._unset_container()
        elif request == v.VfioRequest.GROUP_GET_DEVICE_FD:
            return process.install(self._open_device(process, argument))
        else:
            raise RequestError(errno.ENOTTY, f"request {request:#x}: groups have none of this number")
        return 0

    def _set_container(self, process: Process, argument: int) -> None:
        fd = int.from_bytes(process.user.read(argument, 4), "little", signed=True)
        file = process.own_file(fd)
        if self._iommu is not None:
            raise RequestError(errno.EINVAL, f"set the container of {self.group}: it has one already")
        if isinstance(file, Container):
            if self.group.owner is not None:
                raise RequestError(errno.EPERM, f"set the container of {self.group}: somebody has claimed it")
            file.enter(self.group)
            for device in self.group.devices:
                device.owner = self
        elif isinstance(file, Iommufd):
            file.compat.ensure(self._hardware)
            file.hold()
        else:
            raise RequestError(errno.EBADFD, f"set the container of {self.group}: descriptor {fd} is none")
        self._iommu = file

    def _unset_container(self) -> None:
        if self._iommu is None:
            raise RequestError(errno.EINVAL, f"unset the container of {self.group}: it has none")
        if self._open and isinstance(self._iommu, Container):
            raise RequestError(errno.EBUSY, f"unset the container of {self.group}: devices of it are open")
        self._leave()

    def _leave(self) -> None:
        if isinstance(self._iommu, Container):
            for device in self.group.devices:
                device.owner = None
            self._iommu.leave(self.group)
        elif self._iommu is not None:
            self._iommu.drop()
        self._iommu = None

    def _open_device(self, process: Process, argument: int) -> GroupDevice:
        """The device whose name is at an address. Raises OSError: EFAULT, EINVAL for a name without an end and while
        there is no IOMMU, ENODEV for a name that none of the group has, and what binding and attaching say.
        """
        name = process.user.read(argument, 1)
        while not name.endswith(b"\0"):
            if len(name) == _NAME_BYTES:
                raise RequestError(errno.EINVAL, f"device of {self.group}: its name has no end")
            name += process.memory.read(argument + len(name), 1)
        text = name[:-1].decode(errors="backslashreplace")
        device = next((device for device in self.group.devices if device.config.name == text), None)
        if device is None:
            raise RequestError(errno.ENODEV, f"device {text!r}: {self.group} has none of this name")
        if self._iommu is None or (isinstance(self._iommu, Container) and self._iommu.type1 is None):
            raise RequestError(errno.EINVAL, f"device {text!r}: {self.group} has no IOMMU yet")
        if device not in self._open and isinstance(self._iommu, Iommufd):
            self._bind(device, self._iommu)
        self._open[device] += 1
        return GroupDevice(self, device)

    def _bind(self, device: Device, iommu: Iommufd) -> None:
        """Bind it, and attach it to the IOAS that the requests of VFIO are about. Raises OSError as these do."""
        bound = iommu.bind(device)
        try:
            bound.attach(iommu.compat.ioas().id)
        except OSError:
            iommu.unbind(bound)
            raise
        self._bound[device] = iommu, bound

    def device_closed(self, device: Device) -> None:
        """One of its devices was closed. At the last time it is unbound."""
        self._open[device] -= 1
        if not self._open[device]:
            del self._open[device]
            if device in self._bound:
                iommu, bound = self._bound.pop(device)
                iommu.unbind(bound)
        self._end()

    def close(self) -> None:
        """The last descriptor is closed."""
        self._is_closed = True
        self._end()

    def _end(self) -> None:
        if self._is_closed and not self._open:
            self._leave()
            self.group.file = None


class GroupDevice(DeviceFile):
    """A device that was opened through its group, as often as somebody likes. With an open /dev/iommu it is bound, and
    attached, as long as it is open at least once.
    """

    def __init__(self, group: VfioGroup, device: Device) -> None:
        super().__init__(device)
        self._group = group
        self.begin()

    @property
    def dependent(self) -> tuple[int, v.HotResetFlag]:
        """See the base class."""
        return self.device.group.number, v.HotResetFlag(0)

    def owns_by(self, file: OpenFile) -> bool:
        """See the base class."""
        return isinstance(file, VfioGroup) and file.group is self.device.group

    def ioctl(self, process: Process, request: int, argument: int) -> int:
        """Raises OSError: EINVAL for the requests of the new way, and what the others say."""
        if request == v.VfioRequest.DEVICE_BIND_IOMMUFD:
            arguments.read_growing(v.BindIommufd, process.user, argument, v.BindIommufd.offset_of("token_uuid_ptr"))
            raise RequestError(errno.EINVAL, f"bind {self.device}: it was opened through its group")
        return self.request(process, request, argument)

    def close(self) -> None:
        """Give it back."""
        self.end()
        self._group.device_closed(self.device)
