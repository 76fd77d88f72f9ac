"""Page tables of devices (HWPT), and devices that are attached to them, with or without a PASID.

A group is attached to one page table with all its devices, and to one more with each PASID. Each device that is
attached without a PASID adds its reserved regions to the address space behind the page table, and what is in the way
keeps it out. A nested page table is a first stage, which a guest keeps by itself, on one that maps the guest's memory.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from .devices import Attachment, Device, Group
from .hardware import Hardware
from .ioas import Ioas
from .models import FirstStage, Geometry
from .objects import Object, Objects
from .request_error import RequestError

if TYPE_CHECKING:
    from .events import FaultQueue
    from .virtual import Vdevice, Viommu

__all__ = ["DeviceObject", "Hwpt", "NestedHwpt", "PageTable"]


class PageTable(Object):
    """What devices are attached to."""

    what = "page table"
    ioas: Ioas
    """What maps the memory that it leads to in the end."""
    table: int
    """Its number in the engine."""
    is_automatic = False
    """Whether it came with an attachment to the IOAS, and goes with the last one."""
    takes_pasids = False
    """Whether devices are attached to it with a PASID, or without one beside some that have one."""
    faults: FaultQueue | None = None
    """Where page requests of its devices go; None: they are answered with a refusal."""

    def __init__(self, hardware: Hardware) -> None:
        super().__init__(hardware.places)
        self._hardware = hardware

    def check(self, device: Device, pasid: int | None) -> None:
        """Whether the IOMMU before a device can walk it. Raises OSError, EINVAL if not."""

    def send_faults_to(self, queue: FaultQueue) -> None:
        """Let page requests of its devices come to this queue."""
        queue.users += 1
        self.faults = queue

    def destroy(self) -> None:
        if self.faults:
            self.faults.users -= 1
        self._hardware.remove_table(self.table)

    # Devices

    def attach(self, device: Device, pasid: int | None = None) -> None:
        """Raises OSError, and then changes nothing: EBUSY if it is attached, EINVAL if its group is to another page
        table or this one does not suit it, EADDRINUSE if something is mapped or allowed in its regions.
        """
        group = device.group
        at = group.at(pasid)
        try:
            if device in at.devices:
                raise RequestError(errno.EBUSY, f"attach {device}: it is attached to {at.hwpt}")
            if at.hwpt not in (None, self):
                raise RequestError(errno.EINVAL, f"attach {device} to {self}: its group is attached to {at.hwpt}")
            if pasid is None:
                self.ioas.reserve(device, device.config.reserved())
            try:
                if at.hwpt is None:
                    self._enter(group, at, device, pasid)
            except OSError:
                if pasid is None:
                    self.ioas.space.release(device)
                raise
        except OSError:
            if at.hwpt is None:
                group.forget(pasid)
            raise
        at.devices.append(device)
        self.users += 1

    def replace(self, device: Device, pasid: int | None = None) -> PageTable:
        """Attach a device's group here instead of where it is, and say where that was; at no moment it is nowhere.

        Raises OSError, and then changes nothing: EINVAL if the device is not attached or this does not suit it,
        EADDRINUSE.
        """
        group = device.group
        at = group.main if pasid is None else group.pasids.get(pasid, Attachment())
        old = at.hwpt
        if old is None or device not in at.devices:
            raise RequestError(errno.EINVAL, f"replace the page table of {device}: it is not attached")
        if old is self:
            return self
        changes_space = pasid is None and old.ioas is not self.ioas
        reserved: list[Device] = []
        try:
            for member in at.devices if changes_space else ():
                self.ioas.reserve(member, member.config.reserved())
                reserved.append(member)
            self._enter(group, at, device, pasid)
        except OSError:
            for member in reserved:
                self.ioas.space.release(member)
            raise
        for member in reserved:
            old.ioas.space.release(member)
        old.users -= len(at.devices)
        self.users += len(at.devices)
        old._left_by(group, pasid)
        return old

    def _enter(self, group: Group, at: Attachment, device: Device, pasid: int | None) -> None:
        self._check_pasids(group, device, pasid)
        self.check(device, pasid)
        self._hardware.places.attach()
        device.config.model.entering(self, pasid)
        for member in group.devices:
            self._hardware.attach(member.stream, self.table, pasid)
        at.hwpt = self

    def _check_pasids(self, group: Group, device: Device, pasid: int | None) -> None:
        if pasid is None:
            if group.pasids and not self.takes_pasids:
                raise RequestError(errno.EINVAL, f"attach {device} to {self}: it has PASIDs, and that takes none")
            return
        if not self.takes_pasids or (group.hwpt and not group.hwpt.takes_pasids):
            raise RequestError(errno.EINVAL, f"attach {device} with PASID {pasid}: a page table takes none")
        if pasid >= 1 << device.config.pasid_bits or not device.config.pasid_bits:
            bits = device.config.pasid_bits
            raise RequestError(errno.EINVAL, f"attach {device} with PASID {pasid}: its PASIDs have {bits} bits")

    def detach(self, device: Device, pasid: int | None = None) -> None:
        """A device leaves; the last one of its group lets no DMA through any more."""
        group = device.group
        at = group.at(pasid)
        at.devices.remove(device)
        if not at.devices:
            for member in group.devices:
                self._hardware.attach(member.stream, None, pasid)
            device.config.model.entering(None, pasid)
            at.hwpt = None
            group.forget(pasid)
            self._left_by(group, pasid)
        if pasid is None:
            self.ioas.space.release(device)
        self.users -= 1

    def _left_by(self, group: Group, pasid: int | None) -> None:
        """Page requests that nobody has answered are over."""
        if self.faults:
            self.faults.give_up(group, pasid)


class Hwpt(PageTable):
    """A page table that is filled from an IOAS, as the IOMMU before some device needs it."""

    def __init__(
        self,
        ioas: Ioas,
        hardware: Hardware,
        device: Device,
        geometry: Geometry,
        *,
        dirty: bool = False,
        parent: bool = False,
        pasids: bool = False,
    ) -> None:
        """For `device`; it is neither filled yet, nor is the device attached. Raises OSError (ENOMEM)."""
        super().__init__(hardware)
        self.ioas = ioas
        self.can_be_parent = parent
        self.tracks_dirty = dirty
        self.takes_pasids = pasids
        self.aperture, self.page_sizes = geometry
        self.enforces_snoop = device.config.enforces_snoop
        self.model = device.config.model
        self.table = hardware.add_table(self.model.smallest_page)
        ioas.users += 1

    @property
    def page_size(self) -> int:
        """The smallest, in bytes."""
        return self.page_sizes & -self.page_sizes

    def destroy(self) -> None:
        if self in self.ioas.hwpts:
            self.ioas.remove_table(self)
        super().destroy()
        self.ioas.users -= 1

    def check(self, device: Device, pasid: int | None) -> None:
        """See the base class."""
        if type(device.config.model) is not type(self.model) or not device.config.model.suits(self, device.config):
            raise RequestError(errno.EINVAL, f"attach {device} to {self}: its IOMMU cannot walk it")


class NestedHwpt(PageTable):
    """A first stage of a guest on a page table that maps the guest's memory."""

    what = "nested page table"

    def __init__(
        self, parent: Hwpt, stage: FirstStage, hardware: Hardware, viommu: Viommu | None, *, pasids: bool
    ) -> None:
        """`viommu`: the virtual IOMMU that it belongs to, if it was made through one. Raises OSError (ENOMEM)."""
        super().__init__(hardware)
        self.parent = parent
        self.ioas = parent.ioas
        self.stage = stage
        self.viommu = viommu
        self.takes_pasids = pasids
        self._stands_on: Object = viommu or parent
        self.table = hardware.add_nested(parent.table, stage)
        self._stands_on.users += 1

    def destroy(self) -> None:
        super().destroy()
        self._stands_on.users -= 1

    def check(self, device: Device, pasid: int | None) -> None:
        """See the base class. Raises ENOENT for a device that the virtual IOMMU does not have."""
        self.parent.check(device, pasid)
        if self.viommu and not any(vdevice.of.device is device for vdevice in self.viommu.devices.values()):
            raise RequestError(errno.ENOENT, f"attach {device} to {self}: {self.viommu} has no such device")


class DeviceObject(Object):
    """A device that is bound to an open /dev/iommu: its driver has it until it unbinds it."""

    what = "device"

    def __init__(self, device: Device, hardware: Hardware, objects: Objects) -> None:
        """Raises OSError (ENOMEM)."""
        super().__init__(hardware.places)
        self.device = device
        self.users = 1
        self.vdevice: Vdevice | None = None
        """What a virtual IOMMU has of it."""
        self._hardware = hardware
        self._objects = objects

    def destroy(self) -> None:
        self.device.owner = None

    def new_table(
        self,
        ioas: Ioas,
        geometry: Geometry | None = None,
        *,
        dirty: bool = False,
        parent: bool = False,
        pasids: bool = False,
        immediately: bool = False,
    ) -> Hwpt:
        """A page table for this device that is filled from an IOAS; ``immediately``: and the device is attached to it.

        Raises OSError, and then changes nothing.
        """
        config = self.device.config
        geometry = geometry or Geometry(config.aperture, config.page_sizes)
        hwpt = Hwpt(ioas, self._hardware, self.device, geometry, dirty=dirty, parent=parent, pasids=pasids)
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

    def attach(self, number: int, *, replaces: bool = False, pasid: int | None = None) -> int:
        """Attach it to a page table, or to an IOAS by a page table that suits it, which may have to be made.

        Returns the id of the page table. Raises OSError, and then changes nothing: ENOENT, EINVAL for another kind of
        object, and as PageTable.attach() or PageTable.replace() do.
        """
        target = self._objects.find(number)
        if isinstance(target, PageTable):
            self._change(target, replaces, pasid)
            return number
        if isinstance(target, Ioas):
            return self._attach_automatically(target, replaces, pasid)
        if target is None:
            raise RequestError(errno.ENOENT, f"attach {self.device} to {number}: no object has this id")
        raise RequestError(errno.EINVAL, f"attach {self.device} to {target}: it is neither an IOAS nor a page table")

    def _attach_automatically(self, ioas: Ioas, replaces: bool, pasid: int | None) -> int:
        if pasid is not None:
            what = f"attach {self.device} with PASID {pasid} to {ioas}"
            raise RequestError(errno.EINVAL, f"{what}: page tables that come by themselves take none")
        for hwpt in ioas.hwpts:
            if not hwpt.is_automatic:
                continue
            try:
                self._change(hwpt, replaces, None)
            except RequestError as refused:
                if refused.errno != errno.EINVAL:  # which means that it does not suit: another one may
                    raise
            else:
                return hwpt.id
        hwpt = self.new_table(ioas, immediately=not replaces)
        try:
            if replaces:
                self._change(hwpt, replaces, None)
            else:
                self.users += 1
        except OSError:
            self._objects.remove(hwpt.id)
            raise
        hwpt.is_automatic = True
        return hwpt.id

    def _change(self, table: PageTable, replaces: bool, pasid: int | None) -> None:
        if replaces:
            self._leave(table.replace(self.device, pasid), table)
        else:
            table.attach(self.device, pasid)
            self.users += 1

    def detach(self, pasid: int | None = None) -> None:
        """Let no DMA of it, with this PASID or without one, through any more. Without effect if it is not attached."""
        group = self.device.group
        at = group.main if pasid is None else group.pasids.get(pasid, Attachment())
        if at.hwpt is not None and self.device in at.devices:
            table = at.hwpt
            table.detach(self.device, pasid)
            self.users -= 1
            self._leave(table, None)

    def detach_everything(self) -> None:
        """With all PASIDs, and without one."""
        for pasid in (*self.device.group.pasids, None):
            self.detach(pasid)

    def _leave(self, left: PageTable, entered: PageTable | None) -> None:
        if left is not entered and left.is_automatic and not left.users:
            self._objects.remove(left.id)
