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

_TOKEN_BYTES = 16
_MOST_PASID = (1 << 31) - 1
"""That Linux can remember of a device."""


class VfioDevice(DeviceFile):
    """An open device. Its DMA reaches nothing before it is bound and attached."""

    def __init__(self, device: Device) -> None:
        super().__init__(device)
        self._file: Iommufd | None = None
        self._bound: DeviceObject | None = None
        self._attached: set[int | None] = set()
        """The PASIDs that it is attached with; None: without one."""

    def ioctl(self, process: Process, request: int, argument: int) -> int:
        """Raises OSError: EINVAL before the device is bound, ENOTTY for a request that is none of these."""
        memory = process.user
        if request == v.VfioRequest.DEVICE_BIND_IOMMUFD:
            self._bind(process, argument)
            return 0
        if self._bound is None:
            raise RequestError(errno.EINVAL, f"request {request:#x} of {self.device}: it is not bound")
        if request == v.VfioRequest.DEVICE_ATTACH_IOMMUFD_PT:
            attach = arguments.read(v.AttachIommufdPt, memory, argument, v.AttachFlag.PASID)
            pasid = None
            if attach.flags:
                arguments.check_size(v.AttachIommufdPasid, attach.argsz)
                pasid = arguments.read(v.AttachIommufdPasid, memory, argument, v.AttachFlag.PASID).pasid
                if pasid > _MOST_PASID:
                    raise RequestError(errno.ENOSPC, f"attach {self.device} with PASID {pasid:#x}: has over 31 bits")
            # PASID 0 is what DMA without a PASID goes through, as well, but remembered for itself
            found = self._bound.attach(attach.pt_id, replaces=pasid in self._attached, pasid=pasid or None)
            try:
                memory.write(argument, v.AttachIommufdPt(attach.argsz, attach.flags, found).pack())
            except OSError:
                self._bound.detach(pasid or None)
                self._attached.discard(pasid)
                raise
            self._attached.add(pasid)
        elif request == v.VfioRequest.DEVICE_DETACH_IOMMUFD_PT:
            detach = arguments.read(v.DetachIommufdPt, memory, argument, v.AttachFlag.PASID)
            pasid = None
            if detach.flags:
                arguments.check_size(v.DetachIommufdPasid, detach.argsz)
                pasid = arguments.read(v.DetachIommufdPasid, memory, argument, v.AttachFlag.PASID).pasid
            if pasid in self._attached:
                self._bound.detach(pasid or None)
                self._attached.discard(pasid)
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
        bind = arguments.read_growing(v.BindIommufd, process.user, argument, minimum)
        if bind.iommufd < 0 or bind.flags & ~int(v.BindFlag.TOKEN):
            what = f"descriptor {bind.iommufd}, flags {bind.flags:#x}"
            raise RequestError(errno.EINVAL, f"bind {self.device}: {what}")
        if self._bound is not None:
            raise RequestError(errno.EINVAL, f"bind {self.device}: it is bound already")
        if self.device.group.file is not None:
            raise RequestError(errno.EBUSY, f"bind {self.device}: the file of its group is open")
        if bind.flags & v.BindFlag.TOKEN:
            process.user.read(bind.token_uuid_ptr, _TOKEN_BYTES)
            raise RequestError(errno.EINVAL, f"bind {self.device}: it needs no token")
        file = process.file(bind.iommufd)
        if not isinstance(file, Iommufd):
            raise RequestError(errno.EBADFD, f"bind {self.device}: descriptor {bind.iommufd} is no /dev/iommu")
        if self.device.owner is not None:
            raise RequestError(errno.EINVAL, f"bind {self.device}: it is bound through another descriptor")
        bound = file.bind(self.device)
        answer = v.BindIommufd(bind.argsz, bind.flags, bind.iommufd, bound.id, 0)
        try:
            process.user.write(argument, answer.pack()[:minimum])
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
            self._attached.clear()
            self.device.group.bound -= 1
