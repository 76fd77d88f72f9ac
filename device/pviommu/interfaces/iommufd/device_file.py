"""An open file of a device, however it was opened: what can be read, written, mapped and asked for there."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from vfio_user import Steps

from . import vfio_structures as v
from .devices import Device
from .pci_device import PciDevice, Piece
from .request_error import RequestError

if TYPE_CHECKING:
    from .process import OpenFile, Process

__all__ = ["DeviceFile"]


class DeviceFile:
    """The device answers from :meth:`begin` to :meth:`end`. One that has nothing but DMA answers ENOTTY."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self._pci: PciDevice | None = None
        self._may_access = False

    @property
    def dependent(self) -> tuple[int, v.HotResetFlag]:
        """By which id a reset of the bus names the device, and the kind of id."""
        raise NotImplementedError

    def owns_by(self, file: OpenFile) -> bool:
        """Whether a program that has this file, and names it to reset the bus, has the device by it."""
        return False

    def begin(self) -> None:
        """It belongs to the program."""
        self._may_access = True
        self._pci = self.device.pci
        if self._pci:
            self._pci.open()

    def end(self) -> None:
        """It does not any more."""
        self._may_access = False
        if self._pci:
            self._pci.close()
            self._pci = None

    def request(self, process: Process, request: int, argument: int) -> int:
        """A request of the device itself. Raises OSError as PciDevice.ioctl() does."""
        if self._pci is None:
            raise RequestError(errno.ENOTTY, f"request {request:#x} of {self.device}: it has nothing but DMA")
        if request == v.VfioRequest.DEVICE_PCI_HOT_RESET:
            self._reset_bus(process, self._pci, argument)
            return 0
        return self._pci.ioctl(process, request, argument, self.dependent)

    def _reset_bus(self, process: Process, pci: PciDevice, argument: int) -> None:
        """Each device is alone on its bus. Who has opened it by its group shows the group, others show nothing."""
        groups = pci.groups_of_reset(process.user, argument, named=not self.dependent[1])
        files = [process.own_file(fd) for fd in groups]
        if not all(file is not None and self.owns_by(file) for file in files):
            raise RequestError(errno.EINVAL, f"reset of the bus of {self.device}: its group is not shown")
        pci.reset()

    def read(self, offset: int, count: int) -> bytes:
        """As pread(). Raises OSError: EINVAL before the device is bound and if it has no regions."""
        data = self._reached("read").read(offset, count)
        self.settle()
        return data

    def write(self, offset: int, data: bytes) -> tuple[int, Steps]:
        """As pwrite(): bytes, and the steps that it takes (see PciDevice.write()); :meth:`settle` follows them. Raises
        OSError as :meth:`read` does.
        """
        return self._reached("write").write(offset, data)

    def settle(self) -> None:
        """An access has ended."""
        if self._pci:
            self._pci.function.settle()

    def mapped(self, offset: int, length: int) -> Piece:
        """As mmap(): the first bytes of these that are of one kind. Raises OSError as :meth:`read` does."""
        return self._reached("map").mapped(offset, length)

    def _reached(self, what: str) -> PciDevice:
        if self._pci is None:
            why = "it has no regions" if self._may_access else "it is not bound"
            raise RequestError(errno.EINVAL, f"{what} {self.device}: {why}")
        return self._pci
