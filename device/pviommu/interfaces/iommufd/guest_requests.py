"""Requests about what a guest is given: page tables of its own, virtual IOMMUs, queues of page requests and events.

Errno values, and their rank where several would fit, are those of Linux 7.3 (drivers/iommu/iommufd: hw_pagetable.c,
viommu.c, eventq.c, device.c).
"""

from __future__ import annotations

import errno
from functools import partial
from typing import TYPE_CHECKING

from wire_layout import Record

from ...engine import LAST_ADDRESS, PAGE_SIZE
from . import structures as s
from .events import MAX_EVENTS, EventQueue, FaultQueue
from .hardware import Hardware
from .ioas import Ioas
from .objects import Object, Objects
from .pagetable import DeviceObject, Hwpt, NestedHwpt, PageTable
from .request_error import RequestError
from .user_memory import UserArray, UserData
from .virtual import HwQueue, Vdevice, Viommu

if TYPE_CHECKING:
    from .process import Process

__all__ = ["GuestRequests"]

_ZEROS_AT_ONCE = 1 << 16
_ENTRIES = 1 << 19
"""Of one HWPT_INVALIDATE at most."""
_FLAG = s.HwptAllocFlag
_NESTED_FLAGS = int(_FLAG.FAULT_ID_VALID | _FLAG.PASID)


class GuestRequests:
    """A part of :class:`pviommu.interfaces.iommufd.context.Iommufd`."""

    def __init__(self, hardware: Hardware) -> None:
        self.objects = Objects()
        self._hardware = hardware

    def hold(self) -> None:
        """Live until :meth:`drop` at least."""
        raise NotImplementedError

    def drop(self) -> None:
        """End what :meth:`hold` began."""
        raise NotImplementedError

    # Page tables

    def _do_hwpt_alloc(self, command: s.HwptAlloc, process: Process) -> Record:
        if bool(command.data_type) != bool(command.data_len):
            text = f"data of type {command.data_type} and length {command.data_len}: both are 0, or neither is"
            raise RequestError(errno.EINVAL, f"allocate a page table: {text}")
        bound = self.objects.get(DeviceObject, command.dev_id)
        target = self.objects.find(command.pt_id)
        data = UserData(command.data_type, process.user, command.data_uptr, command.data_len)
        table: PageTable
        if isinstance(target, Ioas):
            table = self._new_table(bound, target, command.flags, data)
        elif isinstance(target, Hwpt | Viommu):
            table = self._new_nested(bound, target, command.flags, data)
        else:
            raise RequestError(errno.EINVAL, f"allocate a page table on {target or command.pt_id}: it is no IOAS")
        if command.flags & _FLAG.FAULT_ID_VALID:
            queue = self.objects.find(command.fault_id)
            if not isinstance(queue, FaultQueue):
                self.objects.remove(table.id)
                raise RequestError(errno.ENOENT, f"allocate a page table: {command.fault_id} is no fault queue")
            table.send_faults_to(queue)
        return s.changed(command, out_hwpt_id=table.id)

    def _new_table(self, bound: DeviceObject, ioas: Ioas, flags: int, data: UserData) -> Hwpt:
        config = bound.device.config
        known, exclusive = _NESTED_FLAGS, int(_FLAG.NEST_PARENT | _FLAG.FAULT_ID_VALID)
        if config.model.takes_first_stages:
            known |= int(_FLAG.NEST_PARENT)
        if config.dirty_tracking:
            known |= int(_FLAG.DIRTY_TRACKING)
        if not config.page_requests:
            known &= ~int(_FLAG.FAULT_ID_VALID)
        if not config.pasid_bits and not config.model.always_knows_pasids:
            known &= ~int(_FLAG.PASID)
        if flags & ~known or flags & exclusive == exclusive:
            text = f"flags {flags:#x}: the IOMMU before {bound.device} has not all of it"
            raise RequestError(errno.EOPNOTSUPP, f"allocate a page table: {text}")
        geometry = config.model.geometry(config, data)
        dirty, parent, pasids = (bool(flags & flag) for flag in (_FLAG.DIRTY_TRACKING, _FLAG.NEST_PARENT, _FLAG.PASID))
        return bound.new_table(ioas, geometry, dirty=dirty, parent=parent, pasids=pasids)

    def _new_nested(self, bound: DeviceObject, target: Hwpt | Viommu, flags: int, data: UserData) -> NestedHwpt:
        model = bound.device.config.model
        viommu = target if isinstance(target, Viommu) else None
        if viommu:
            viommu.check(bound)
        if flags & ~_NESTED_FLAGS or not data.length or not model.takes_first_stages:
            text = f"flags {flags:#x}, {data.length} bytes of data"
            raise RequestError(errno.EOPNOTSUPP, f"allocate a page table on {target}: {text}")
        parent = target.hwpt if isinstance(target, Viommu) else target
        if not parent.can_be_parent or type(parent.model) is not type(model):
            raise RequestError(errno.EINVAL, f"allocate a page table on {parent}: it was not allocated for that")
        stage = (viommu.is_like if viommu else model).first_stage(data, self._hardware.read_physical)
        table = NestedHwpt(parent, stage, self._hardware, viommu, pasids=bool(flags & _FLAG.PASID))
        self.objects.add(table)
        return table

    def _do_hwpt_invalidate(self, command: s.HwptInvalidate, process: Process) -> Record:
        entries = UserArray(command.data_type, process.user, command.data_uptr, command.entry_len, command.entry_num)
        try:
            if command.reserved:
                raise RequestError(errno.EOPNOTSUPP, f"invalidate: reserved is {command.reserved}, and must be 0")
            if command.entry_num and not (
                command.data_uptr and 0 < command.entry_len <= PAGE_SIZE and command.entry_num <= _ENTRIES
            ):
                text = f"{command.entry_num} entries of {command.entry_len} bytes at {command.data_uptr:#x}"
                raise RequestError(errno.EINVAL, f"invalidate: {text}: at most {_ENTRIES} of 1 to {PAGE_SIZE} bytes")
            target = self.objects.get(Object, command.hwpt_id)
            if isinstance(target, NestedHwpt):
                target.stage.invalidate(entries)
            elif isinstance(target, Viommu):
                target.is_like.invalidate(entries, {name: own.of.device for name, own in target.devices.items()})
            else:
                raise RequestError(errno.EINVAL, f"invalidate {target}: a guest keeps nothing of it")
        except RequestError as refused:
            refused.answer = s.changed(command, entry_num=entries.done)
            raise
        return s.changed(command, entry_num=entries.done)

    def _do_get_hw_info(self, command: s.GetHwInfo, process: Process) -> Record:
        config = self.objects.get(DeviceObject, command.dev_id).device.config
        model = config.model
        kind = command.data_type if command.flags & s.HwInfoFlag.INPUT_TYPE else 0
        data = model.hw_info()
        if kind and kind != model.hw_info_type and data:
            raise RequestError(errno.EOPNOTSUPP, f"hardware information of type {kind:#x}: there is no such")
        if data and command.data_len:
            process.user.write(command.data_uptr, data[: command.data_len])
        for offset in range(len(data), command.data_len, _ZEROS_AT_ONCE):
            zeros = bytes(min(_ZEROS_AT_ONCE, command.data_len - offset))
            process.user.write(command.data_uptr + offset, zeros)
        capabilities = s.HwCapability.ATS_NOT_SUPPORTED
        if config.dirty_tracking:
            capabilities |= s.HwCapability.DIRTY_TRACKING
        return s.changed(
            command,
            data_len=len(data),
            data_type=model.hw_info_type,
            out_max_pasid_log2=config.pasid_bits,
            out_capabilities=int(capabilities),
        )

    # Virtual IOMMUs

    def _do_viommu_alloc(self, command: s.ViommuAlloc, process: Process) -> Record:
        if not command.type:
            raise RequestError(errno.EOPNOTSUPP, "allocate a virtual IOMMU of type 0")
        model = self.objects.get(DeviceObject, command.dev_id).device.config.model
        new = model.virtual_iommu(command.type)
        if new is None:
            raise RequestError(errno.EOPNOTSUPP, f"allocate a virtual IOMMU of type {command.type}: unknown")
        hwpt = self.objects.get(Hwpt, command.hwpt_id)
        if not hwpt.can_be_parent:
            raise RequestError(errno.EINVAL, f"allocate a virtual IOMMU on {hwpt}: it was not allocated for that")
        data = UserData(command.type, process.user, command.data_uptr, command.data_len)
        viommu = Viommu(hwpt, model, partial(new, data))
        self.objects.add(viommu)
        return s.changed(command, out_viommu_id=viommu.id)

    def _do_vdevice_alloc(self, command: s.VdeviceAlloc, process: Process) -> Record:
        viommu = self.objects.get(Viommu, command.viommu_id)
        vdevice = Vdevice(viommu, self.objects.get(DeviceObject, command.dev_id), command.virt_id)
        self.objects.add(vdevice)
        return s.changed(command, out_vdevice_id=vdevice.id)

    def _do_hw_queue_alloc(self, command: s.HwQueueAlloc, process: Process) -> Record:
        if not command.type:
            raise RequestError(errno.EOPNOTSUPP, "allocate a hardware queue of type 0")
        iova, length = command.nesting_parent_iova, command.length
        if not length:
            raise RequestError(errno.EINVAL, f"allocate a hardware queue at {iova:#x}: length 0")
        if iova + length - 1 > LAST_ADDRESS:
            raise RequestError(errno.EOVERFLOW, f"allocate a hardware queue at {iova:#x}+{length:#x}: beyond 64 bits")
        viommu = self.objects.get(Viommu, command.viommu_id)
        if command.type not in viommu.is_like.queue_kinds:
            raise RequestError(errno.EOPNOTSUPP, f"allocate a hardware queue of type {command.type} of {viommu}")
        queue = HwQueue(viommu, command.type, command.index, iova, length)
        self.objects.add(queue)
        return s.changed(command, out_hw_queue_id=queue.id)

    # Queues that are read

    def _do_fault_queue_alloc(self, command: s.FaultQueueAlloc, process: Process) -> Record:
        queue = FaultQueue(self._hardware.places, self.hold, self.drop)
        self.objects.add(queue)
        return s.changed(command, out_fault_id=queue.id)

    def _do_veventq_alloc(self, command: s.VeventqAlloc, process: Process) -> Record:
        if not command.type:
            raise RequestError(errno.EOPNOTSUPP, "allocate a queue for events of type 0")
        if not 0 < command.veventq_depth <= MAX_EVENTS:
            depth = command.veventq_depth
            raise RequestError(errno.EINVAL, f"allocate a queue for {depth} events: must be 1..{MAX_EVENTS}")
        viommu = self.objects.get(Viommu, command.viommu_id)
        if command.type in viommu.event_queues:
            raise RequestError(errno.EEXIST, f"allocate a queue for events of type {command.type}: {viommu} has one")
        queue = EventQueue(viommu, command.type, command.veventq_depth, self.hold, self.drop)
        self.objects.add(queue)
        return s.changed(command, out_veventq_id=queue.id)
