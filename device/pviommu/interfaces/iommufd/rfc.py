"""/dev/iommu as it was first proposed (the RFC of September 2021), with the devices that it is used with.

Its rules are those of the posted code: one I/O address space is VFIO's type1v2 with a page table from the first
attachment to the last detachment, a device is attached to one of them, and what does not fit is refused.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from ...engine.spans import complement
from . import rfc_structures as r
from . import vfio_arguments as arguments
from .devices import Device
from .hardware import Hardware
from .request_error import RequestError
from .type1 import Type1
from .user_memory import UserMemory

if TYPE_CHECKING:
    from .process import Process

__all__ = ["RfcDevice", "RfcIommu"]

_ALL_FLAGS = (1 << 32) - 1


class _Ioasid:
    """One I/O address space, and the devices that are attached to it."""

    def __init__(self, type1: Type1, width: int) -> None:
        self.type1 = type1
        self.width = width
        self.devices: list[Device] = []

    def attach(self, device: Device) -> None:
        """Raises OSError, and then changes nothing: EINVAL if it does not suit, EBUSY if its group is elsewhere, and as
        Type1.attach() does.
        """
        config, group = device.config, device.group
        if not config.enforces_snoop or config.address_width < self.width:
            what = f"{config.address_width} bits" if config.enforces_snoop else "no coherent DMA"
            raise RequestError(errno.EINVAL, f"attach {device}: it has {what}, and {self.width} bits are asked for")
        if group.attached:
            if not any(other.group is group for other in self.devices):
                raise RequestError(errno.EBUSY, f"attach {device}: its group is attached somewhere else")
        else:
            self.type1.attach(group)
        group.attached.append(device)
        self.devices.append(device)

    def detach(self, device: Device) -> None:
        """With the last device what is mapped goes."""
        self.devices.remove(device)
        device.group.attached.remove(device)
        if not device.group.attached:
            self.type1.detach(device.group)


class RfcIommu:
    """An open /dev/iommu. It lives as long as a descriptor is open, or a device is bound to it."""

    def __init__(self, hardware: Hardware, *, allows_unsafe_interrupts: bool = False) -> None:
        self._hardware = hardware
        self._allows_unsafe_interrupts = allows_unsafe_interrupts
        self._ioasids: dict[int, _Ioasid] = {}
        self._devices: dict[int, Device] = {}
        """By cookie."""

    def ioctl(self, process: Process, request: int, argument: int) -> int:
        """Raises OSError: EINVAL for a request that is none of these, and what they say."""
        memory = process.user
        if request == r.RfcRequest.CHECK_EXTENSION:
            return int(argument == r.Extension.MAP_TYPE1V2)
        if request == r.RfcRequest.DEVICE_GET_INFO:
            self._get_info(memory, argument)
        elif request == r.RfcRequest.IOASID_ALLOC:
            return self._alloc(memory, argument)
        elif request == r.RfcRequest.IOASID_FREE:
            self._free(int.from_bytes(memory.read(argument, 4), "little", signed=True))
        elif request in (r.RfcRequest.MAP_DMA, r.RfcRequest.UNMAP_DMA):
            type1 = self._for_dma(arguments.read(r.DmaOp, memory, argument, 0))
            carry_out = type1.map if request == r.RfcRequest.MAP_DMA else type1.unmap
            carry_out(process, argument + r.DmaOp.SIZE)
        else:
            raise RequestError(errno.EINVAL, f"request {request:#x}: /dev/iommu has none of this number")
        return 0

    def _alloc(self, memory: UserMemory, argument: int) -> int:
        alloc = arguments.read(r.IoasidAlloc, memory, argument, _ALL_FLAGS)
        asked = (alloc.flags, alloc.type, bool(alloc.addr_width))
        if asked != (r.IoasidFlag.ENFORCE_SNOOP, r.IoasidType.KERNEL_TYPE1V2, True):
            text = f"flags {alloc.flags:#x}, type {alloc.type}, {alloc.addr_width} bits"
            raise RequestError(errno.EINVAL, f"allocate with {text}: must be coherent, of type 1, and of some bits")
        number = next(number for number in range(len(self._ioasids) + 1) if number not in self._ioasids)
        type1 = Type1(
            self._hardware,
            version=2,
            overflow=errno.EINVAL,
            allows_unsafe_interrupts=self._allows_unsafe_interrupts,
        )
        self._ioasids[number] = _Ioasid(type1, alloc.addr_width)
        return number

    def _find(self, number: int) -> _Ioasid:
        found = self._ioasids.get(number)
        if found is None:
            raise RequestError(errno.EINVAL, f"IOASID {number}: there is none of this number")
        return found

    def _free(self, number: int) -> None:
        devices = self._find(number).devices
        if devices:
            raise RequestError(errno.EBUSY, f"free IOASID {number}: {devices[0]} is attached to it")
        del self._ioasids[number]

    def _for_dma(self, operation: r.DmaOp) -> Type1:
        found = self._find(operation.ioasid)
        if not found.devices:
            raise RequestError(errno.EINVAL, f"IOASID {operation.ioasid}: no page table, for no device is attached")
        return found.type1

    def _get_info(self, memory: UserMemory, argument: int) -> None:
        info = arguments.read(r.DeviceInfo, memory, argument, _ALL_FLAGS)
        device = self._devices.get(info.dev_cookie)
        if device is None:
            raise RequestError(errno.EINVAL, f"info of device {info.dev_cookie:#x}: none is bound by this cookie")
        config, flag = device.config, r.DeviceInfoFlag
        flags = flag.PGSIZES | flag.ADDR_WIDTH | flag.CAPS | (flag.ENFORCE_SNOOP if config.enforces_snoop else 0)
        ranges = complement([*complement([config.aperture]), *config.reserved()])
        answer = arguments.with_chain(
            info.argsz,
            [arguments.iova_ranges(ranges)],
            r.DeviceInfo.SIZE,
            lambda needed, offset: r.DeviceInfo(
                needed, flags, info.dev_cookie, config.page_sizes, config.address_width, offset
            ),
        )
        memory.write(argument, answer)

    # Devices

    def bind(self, device: Device, cookie: int) -> None:
        """Claim a device's DMA. Raises OSError (EBUSY) if somebody else has its group, or the cookie is taken."""
        if cookie in self._devices:
            raise RequestError(errno.EBUSY, f"bind {device}: cookie {cookie:#x} is that of {self._devices[cookie]}")
        if device.owner is not None or device.group.owner not in (None, self):
            raise RequestError(errno.EBUSY, f"bind {device}: somebody has claimed its group")
        device.owner = self
        self._devices[cookie] = device

    def unbind(self, device: Device) -> None:
        """The driver gives a device back, which is not attached."""
        device.owner = None
        self._devices = {cookie: other for cookie, other in self._devices.items() if other is not device}

    def attach(self, device: Device, number: int) -> None:
        """Raises OSError, and then changes nothing: EINVAL for an unknown number, and as attaching does."""
        self._find(number).attach(device)

    def detach(self, device: Device, number: int) -> None:
        """It is attached there."""
        self._find(number).detach(device)

    def close(self) -> None:
        """What devices are attached to stays until they leave."""


class RfcDevice:
    """An open device."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self._iommu: RfcIommu | None = None
        self._fd = -1
        self._ioasid = -1

    def ioctl(self, process: Process, request: int, argument: int) -> int:
        """Raises OSError: ENOTTY for a request that is none of these, and what they say."""
        if request == r.RfcRequest.DEVICE_BIND_IOMMUFD:
            self._bind(process, argument)
            return 0
        if request not in (r.RfcRequest.DEVICE_ATTACH_IOASID, r.RfcRequest.DEVICE_DETACH_IOASID):
            raise RequestError(errno.ENOTTY, f"request {request:#x} of {self.device}: not part of this model")
        attach = arguments.read(r.AttachIoasid, process.user, argument, 0)
        number = attach.ioasid
        if self._iommu is None or attach.iommu_fd != self._fd or number < 0:
            text = f"descriptor {attach.iommu_fd}, IOASID {number}"
            raise RequestError(errno.EINVAL, f"{text} of {self.device}: it is not bound there, or it is no IOASID")
        if request == r.RfcRequest.DEVICE_ATTACH_IOASID:
            if self._ioasid >= 0:
                raise RequestError(errno.EBUSY, f"attach {self.device}: it is attached to IOASID {self._ioasid}")
            self._iommu.attach(self.device, number)
            self._ioasid = number
        else:
            if self._ioasid != number:
                raise RequestError(errno.EINVAL, f"detach {self.device} from {number}: it is in {self._ioasid}")
            self._detach(self._iommu)
        return 0

    def _bind(self, process: Process, argument: int) -> None:
        bind = arguments.read(r.BindIommufd, process.user, argument, 0)
        if bind.iommu_fd < 0:
            raise RequestError(errno.EINVAL, f"bind {self.device}: descriptor {bind.iommu_fd}")
        if self._iommu is not None:
            raise RequestError(errno.EBUSY, f"bind {self.device}: it is bound already")
        file = process.find_file(bind.iommu_fd)
        if not isinstance(file, RfcIommu):
            raise RequestError(errno.EINVAL, f"bind {self.device}: descriptor {bind.iommu_fd} is no /dev/iommu")
        file.bind(self.device, bind.dev_cookie)
        self._iommu, self._fd = file, bind.iommu_fd

    def _detach(self, iommu: RfcIommu) -> None:
        iommu.detach(self.device, self._ioasid)
        self._ioasid = -1

    def close(self) -> None:
        """Detach and unbind it."""
        if self._iommu is not None:
            if self._ioasid >= 0:
                self._detach(self._iommu)
            self._iommu.unbind(self.device)
            self._iommu = None
