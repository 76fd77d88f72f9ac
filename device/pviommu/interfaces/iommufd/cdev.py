"""The character device of a VFIO device: bound to an open /dev/iommu, attached and detached.

As drivers/vfio/device_cdev.c of Linux 7.3.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from . import vfio_arguments as arguments
from . import vfio_structures as v
from .context import Iommufd
from .device_file import DeviceFile
from .devices import Device
from .pagetable import DeviceObject
from .request_error import RequestError

if TYPE_CHECKING:
    from .process import Process

__all__ = ["VfioDevice"]


class VfioDevice(DeviceFile):
    """An open device. Its DMA reaches nothing before it is bound and attached."""

    def __init__(self, device: Device) -> None:
        super().__init__(device)
        self._file: Iommufd | None = None
        self._bound: DeviceObject | None = None

    def ioctl(self, process: Process, request: int, argument: int) -> int:
        """Raises OSError: EINVAL before the device is bound, ENOTTY for a request that is none of these."""
        memory = process.memory
        if request == v.VfioRequest.DEVICE_BIND_IOMMUFD:
            self._bind(process, argument)
            return 0
        if self._bound is None:
            raise RequestError(errno.EINVAL, f"request {request:#x} of {self.device}: it is not bound")
        if request == v.VfioRequest.DEVICE_ATTACH_IOMMUFD_PT:
            attach = arguments.read(v.AttachIommufdPt, memory, argument, v.AttachFlag.PASID)
            pasid = None
            if attach.flags:
                pasid = arguments.read(v.AttachIommufdPasid, memory, argument, v.AttachFlag.PASID).pasid
            at = self.device.group.main if pasid is None else self.device.group.pasids.get(pasid)
            is_attached = at is not None and self.device in at.devices
            found = self._bound.attach(attach.pt_id, replaces=is_attached, pasid=pasid)
            try:
                memory.write(argument, v.AttachIommufdPt(attach.argsz, attach.flags, found).pack())
            except OSError:
                self._bound.detach(pasid)
                raise
        elif request == v.VfioRequest.DEVICE_DETACH_IOMMUFD_PT:
            flags = arguments.read(v.DetachIommufdPt, memory, argument, v.AttachFlag.PASID).flags
            pasid = None
            if flags:
                pasid = arguments.read(v.DetachIommufdPasid, memory, argument, v.AttachFlag.PASID).pasid
            self._bound.detach(pasid)
        else:
            return self.request(process, request, argument)
        return 0

    @property
    def dependent(self) -> tuple[int, v.HotResetFlag]:
        """See the base class."""
        assert self._bound
        return self._bound.id, v.HotResetFlag.DEV_ID | v.HotResetFlag.DEV_ID_OWNED

    def _bind(self, process: Process, argument: int) -> None:
        minimum = v.BindIommufd.offset_of("token_uuid_ptr")
        bind = arguments.read(v.BindIommufd, process.memory, argument, 0, minimum)
        if bind.iommufd < 0:
            raise RequestError(errno.EINVAL, f"bind {self.device}: descriptor {bind.iommufd}")
        if self._bound is not None:
            raise RequestError(errno.EINVAL, f"bind {self.device}: it is bound already")
        if self.device.group.file is not None:
            raise RequestError(errno.EBUSY, f"bind {self.device}: the file of its group is open")
        if self.device.owner is not None:
            raise RequestError(errno.EINVAL, f"bind {self.device}: it is bound through another descriptor")
        file = process.file(bind.iommufd)
        if not isinstance(file, Iommufd):
            raise RequestError(errno.EBADFD, f"bind {self.device}: descriptor {bind.iommufd} is no /dev/iommu")
        bound = file.bind(self.device)
        answer = v.BindIommufd(bind.argsz, bind.flags, bind.iommufd, bound.id, 0)
        try:
            process.memory.write(argument, answer.pack()[:minimum])
        except OSError:
            file.unbind(bound)
            raise
        self._file, self._bound = file, bound
        self.begin()
        self.device.group.bound += 1

    def close(self) -> None:
        """Detach and unbind it."""
        if self._file and self._bound:
            self.end()
            self._file.unbind(self._bound)
            self._file = self._bound = None
            self.device.group.bound -= 1
