"""Page tables of devices (HWPT), and devices that are attached to them.

A group is attached to one page table with all its devices. Each device that is attached adds its reserved regions to
the address space behind the page table, and what is in the way keeps it out.
"""

from __future__ import annotations

import errno

from ...engine import Span
from .devices import Device, Group
from .hardware import Hardware
from .ioas import Ioas
from .objects import Object, Objects
from .request_error import RequestError

__all__ = ["DeviceObject", "Hwpt"]


class Hwpt(Object):
    """A page table that is filled from an IOAS, as the IOMMU before some device needs it."""

    what = "page table"

    def __init__(
        self, ioas: Ioas, hardware: Hardware, device: Device, *, dirty: bool = False, parent: bool = False
    ) -> None:
        """For `device`; it is neither filled yet, nor is the device attached. Raises OSError (ENOMEM)."""
        super().__init__()
        config = device.config
        self.ioas = ioas
        self.is_automatic = False
        """Whether it came with an attachment to the IOAS, and goes with the last one."""
        self.can_be_parent = parent
        self.tracks_dirty = dirty
        self.aperture: Span = config.aperture
        self.page_sizes = config.page_sizes
        self.enforces_snoop = config.enforces_snoop
        self._hardware = hardware
        self.table = hardware.add_table()
        ioas.users += 1

    @property
    def page_size(self) -> int:
        """The smallest, in bytes."""
        return self.page_sizes & -self.page_sizes

    def destroy(self) -> None:
        if self in self.ioas.hwpts:
            self.ioas.remove_table(self)
        self._hardware.remove_table(self.table)
        self.ioas.users -= 1

    def suits(self, device: Device) -> bool:
        """Whether the IOMMU before a device can walk it."""
        config = device.config
        return (
            config.aperture[0] <= self.aperture[0]
            and self.aperture[1] <= config.aperture[1]
            and not self.page_sizes & ~config.page_sizes
            and (config.dirty_tracking or not self.tracks_dirty)
            and (config.enforces_snoop or not self.enforces_snoop)
        )

    # Devices

    def attach(self, device: Device) -> None:
        """Raises OSError, and then changes nothing: EBUSY if it is attached, EINVAL if its group is to another page
        table or this one does not suit it, EADDRINUSE if something is mapped or allowed in its regions.
        """
        group = device.group
        if device in group.attached:
            raise RequestError(errno.EBUSY, f"attach {device}: it is attached to {group.hwpt}")
        if group.hwpt not in (None, self):
            raise RequestError(errno.EINVAL, f"attach {device} to {self}: its group is attached to {group.hwpt}")
        self.ioas.reserve(device, device.config.reserved())
        try:
            if group.hwpt is None:
                self._enter(group, device)
        except OSError:
            self.ioas.space.release(device)
            raise
        group.attached.append(device)
        self.users += 1

    def replace(self, device: Device) -> Hwpt:
        """Attach a device's group here instead of where it is, and say where that was; at no moment it is nowhere.

        Raises OSError, and then changes nothing: EINVAL if the device is not attached or this does not suit it,
        EADDRINUSE.
        """
        group = device.group
        old = group.hwpt
        if old is None or device not in group.attached:
            raise RequestError(errno.EINVAL, f"replace the page table of {device}: it is not attached")
        if old is self:
            return self
        changes_space = old.ioas is not self.ioas
        reserved: list[Device] = []
        try:
            for member in group.attached if changes_space else ():
                self.ioas.reserve(member, member.config.reserved())
                reserved.append(member)
            self._enter(group, device)
        except OSError:
            for member in reserved:
                self.ioas.space.release(member)
            raise
        for member in reserved:
            old.ioas.space.release(member)
        old.users -= len(group.attached)
        self.users += len(group.attached)
        return old

    def _enter(self, group: Group, device: Device) -> None:
        if not self.suits(device):
            raise RequestError(errno.EINVAL, f"attach {device} to {self}: its IOMMU cannot walk it")
        for member in group.devices:
            self._hardware.attach(member.stream, self.table)
        group.hwpt = self

    def detach(self, device: Device) -> None:
        """A device leaves; the last one of its group lets no DMA through any more."""
        group = device.group
        group.attached.remove(device)
        if not group.attached:
            for member in group.devices:
                self._hardware.attach(member.stream, None)
            group.hwpt = None
        self.ioas.space.release(device)
        self.users -= 1


class DeviceObject(Object):
    """A device that is bound to an open /dev/iommu: its driver has it until it unbinds it."""

    what = "device"

    def __init__(self, device: Device, hardware: Hardware, objects: Objects) -> None:
        super().__init__()
        self.device = device
        self.users = 1
        self._hardware = hardware
        self._objects = objects

    def destroy(self) -> None:
        self.device.owner = None

    def new_table(self, ioas: Ioas, *, dirty: bool = False, parent: bool = False, immediately: bool = False) -> Hwpt:
        """A page table for this device that is filled from an IOAS; ``immediately``: and the device is attached to it.

        Raises OSError, and then changes nothing.
        """
        hwpt = Hwpt(ioas, self._hardware, self.device, dirty=dirty, parent=parent)
        try:
            if immediately:
                hwpt.attach(self.device)
            ioas.add_table(hwpt)
        except OSError:
            if self.device in self.device.group.attached and self.device.group.hwpt is hwpt:
                hwpt.detach(self.device)
            hwpt.destroy()
            raise
        self._objects.add(hwpt)
        return hwpt

    def attach(self, number: int, *, replaces: bool = False) -> int:
        """Attach it to a page table, or to an IOAS by a page table that suits it, which may have to be made.

        Returns the id of the page table. Raises OSError, and then changes nothing: ENOENT, EINVAL for another kind of
        object, and as Hwpt.attach() or Hwpt.replace() do.
        """
        target = self._objects.find(number)
        if isinstance(target, Hwpt):
            self._change(target, replaces)
            return number
        if isinstance(target, Ioas):
            return self._attach_automatically(target, replaces)
        if target is None:
            raise RequestError(errno.ENOENT, f"attach {self.device} to {number}: no object has this id")
        raise RequestError(errno.EINVAL, f"attach {self.device} to {target}: it is neither an IOAS nor a page table")

    def _attach_automatically(self, ioas: Ioas, replaces: bool) -> int:
        for hwpt in ioas.hwpts:
            if not hwpt.is_automatic:
                continue
            try:
                self._change(hwpt, replaces)
            except RequestError as refused:
                if refused.errno != errno.EINVAL:  # which means that it does not suit: another one may
                    raise
            else:
                return hwpt.id
        hwpt = self.new_table(ioas, immediately=not replaces)
        try:
            if replaces:
                self._change(hwpt, replaces)
            else:
                self.users += 1
        except OSError:
            self._objects.remove(hwpt.id)
            raise
        hwpt.is_automatic = True
        return hwpt.id

    def _change(self, hwpt: Hwpt, replaces: bool) -> None:
        if replaces:
            self._leave(hwpt.replace(self.device), hwpt)
        else:
            hwpt.attach(self.device)
            self.users += 1

    def detach(self) -> None:
        """Let no DMA of it through any more. Without effect if it is not attached."""
        hwpt = self.device.group.hwpt
        if hwpt is not None and self.device in self.device.group.attached:
            hwpt.detach(self.device)
            self.users -= 1
            self._leave(hwpt, None)

    def _leave(self, left: Hwpt, entered: Hwpt | None) -> None:
        if left is not entered and left.is_automatic and not left.users:
            self._objects.remove(left.id)
