"""The commands of a running session, carried out on its device."""

from __future__ import annotations

import errno
from collections.abc import Callable, Generator
from typing import Any, NamedTuple

from . import requests
from .device import Device, Steps
from .errors import RequestError
from .framing import Frame
from .memory_kind import DescriptorKind
from .messages import (
    IRQ_COUNT,
    REGION_COUNT,
    Command,
    DmaUnmapFlags,
    GetInfo,
    GetIrqInfo,
    GetRegionIoFds,
    RegionAccess,
    WriteMulti,
    WriteMultiEntry,
)
from .negotiation import Capabilities, SessionLimits

__all__ = ["SERVED", "Answer", "Commands", "Reply"]


class Reply(NamedTuple):
    """The answer to a command, with descriptors that the device keeps."""

    payload: bytes = b""
    fds: tuple[int, ...] = ()


Answer = Reply | Generator[Any, None, Reply | None] | None
"""A reply; or a generator if it takes steps until there is one, each of which may yield the :class:`.device.Waiting`
that it waits for; or None if there is no reply.
"""


class Commands:
    """The commands of one client. Whatever does not depend on the device is checked here before it is asked."""

    def __init__(
        self,
        device: Device,
        limits: SessionLimits,
        check_memory: Callable[[int, bool, str], DescriptorKind],
        is_eventfd: Callable[[int], bool],
    ) -> None:
        self.client = Capabilities()
        """what the client can receive; the protocol's defaults before negotiation"""
        self._device = device
        self._limits = limits
        self._check_memory, self._is_eventfd = check_memory, is_eventfd
        self._maps = 0

    def carry_out(self, frame: Frame) -> Answer:
        """Carry out a command; a handler that keeps its descriptors takes them out of ``frame``. Raises
        :class:`RequestError`, and whatever the device raises.
        """
        command = frame.header.command
        handler = _HANDLERS.get(command)
        if handler is None:
            raise RequestError(errno.EINVAL, _unserved(command))
        return handler(self, frame)

    def _dma_map(self, frame: Frame) -> Reply:
        mapping = requests.dma_map(frame.payload, frame.fds)
        if mapping.fd is not None:
            what = f"DMA_MAP {mapping.address:#x}+{mapping.size:#x}"
            mapping = mapping._replace(kind=self._check_memory(mapping.fd, mapping.writable, what))
        frame.fds.clear()  # the device owns it now
        self._maps += self._device.dma_map(mapping)
        if self._maps > self._limits.max_dma_maps:
            self._maps -= self._device.dma_unmap(mapping.address, mapping.size)
            what = f"DMA_MAP {mapping.address:#x}+{mapping.size:#x}"
            raise RequestError(errno.ENOSPC, f"{what}: at most {self._limits.max_dma_maps} maps at a time")
        return Reply()

    def _dma_unmap(self, frame: Frame) -> Reply:
        request = requests.dma_unmap(frame.payload)
        if request.flags & DmaUnmapFlags.ALL:
            self._device.dma_unmap_all()
            self._maps = 0
        else:
            self._maps -= self._device.dma_unmap(request.address, request.size)
        # Cloud Hypervisor waits for the whole request to be echoed.
        return Reply(request.pack())

    def _get_info(self, frame: Frame) -> Reply:
        requests.get_info(frame.payload)
        found = self._device.describe()
        if found.num_regions > REGION_COUNT or found.num_irqs > IRQ_COUNT:
            text = f"{found.num_regions} regions and {found.num_irqs} interrupt indexes"
            raise ValueError(f"the device describes {text}: at most {REGION_COUNT} and {IRQ_COUNT} can be asked for")
        return Reply(GetInfo(GetInfo.SIZE, found.flags, found.num_regions, found.num_irqs).pack())

    def _get_region_info(self, frame: Frame) -> Reply:
        request = requests.get_region_info(frame.payload)
        region = self._device.region(request.index)
        payload, fd = requests.region_info_reply(request, region, self.client.max_msg_fds > 0)
        return Reply(payload, () if fd is None else (fd,))

    def _get_region_io_fds(self, frame: Frame) -> Reply:
        request = requests.get_region_io_fds(frame.payload)
        # No region here has any, so the client traps all accesses.
        return Reply(GetRegionIoFds(GetRegionIoFds.SIZE, 0, request.index, 0).pack())

    def _get_irq_info(self, frame: Frame) -> Reply:
        request = requests.get_irq_info(frame.payload)
        found = self._device.irq(request.index)
        return Reply(GetIrqInfo(GetIrqInfo.SIZE, found.flags, request.index, found.count).pack())

    def _set_irqs(self, frame: Frame) -> Reply:
        request = requests.set_irqs(frame.payload, frame.fds, lambda index: self._device.irq(index).count)
        if not all(self._is_eventfd(fd) for fd in frame.fds):
            text = f"SET_IRQS index {request.index} vectors {request.start}+{request.count}"
            raise RequestError(errno.EINVAL, f"{text}: not every descriptor is an eventfd")
        frame.fds.clear()  # the device owns them now
        self._device.set_irqs(request)
        return Reply()

    def _region_read(self, frame: Frame) -> Reply:
        # The limit of the side that is asked holds for reads and writes; a client asks for no more than it can receive.
        access = requests.region_read(frame.payload, self._limits.max_data_xfer_size)
        self._check_range(access.region, access.offset, access.count)
        data = b""
        if access.count:
            data = self._device.region_read(access.region, access.offset, access.count)
        if len(data) != access.count:
            raise ValueError(f"region {access.region} gave {len(data)} bytes, asked for {access.count}")
        return Reply(frame.payload[: RegionAccess.SIZE] + data)

    def _region_write(self, frame: Frame) -> Answer:
        access, data = requests.region_write(frame.payload, self._limits.max_data_xfer_size)
        self._check_range(access.region, access.offset, access.count)
        reply = Reply(frame.payload[: RegionAccess.SIZE])
        steps = self._device.region_write(access.region, access.offset, data) if data else None
        return reply if steps is None else _after(steps, reply)

    def _write_multi(self, frame: Frame) -> Answer:
        if not self.client.write_multiple:
            raise RequestError(errno.EINVAL, "several writes at once: write_multiple was not negotiated")
        entries = requests.write_multi(frame.payload)
        for entry in entries:
            self._check_range(entry.region, entry.offset, entry.count)
        return self._write_each(entries)

    def _write_each(self, entries: list[WriteMultiEntry]) -> Generator[None, None, Reply]:
        """One write a step."""
        for entry in entries[:-1]:
            yield from self._write_entry(entry)
            yield
        yield from self._write_entry(entries[-1])
        return Reply(WriteMulti(len(entries)).pack())

    def _write_entry(self, entry: WriteMultiEntry) -> Steps:
        steps = None
        if entry.count:
            steps = self._device.region_write(entry.region, entry.offset, entry.data[: entry.count])
        return iter(()) if steps is None else steps

    def _reset(self, frame: Frame) -> Reply:
        self._device.reset()
        return Reply()

    def _check_range(self, index: int, offset: int, count: int) -> None:
        requests.check_range(self._device.region(index), index, offset, count)


def _after(steps: Steps, reply: Reply) -> Generator[None, None, Reply]:
    yield from steps
    return reply


def _unserved(command: int) -> str:
    if command == Command.VERSION:
        return "VERSION once more: it is negotiated once, first"
    name = Command(command).name if command in set(Command) else "unknown"
    return f"command {command} ({name}): this server does not serve it"


_HANDLERS: dict[int, Callable[[Commands, Frame], Answer]] = {
    Command.DMA_MAP: Commands._dma_map,
    Command.DMA_UNMAP: Commands._dma_unmap,
    Command.DEVICE_GET_INFO: Commands._get_info,
    Command.DEVICE_GET_REGION_INFO: Commands._get_region_info,
    Command.DEVICE_GET_REGION_IO_FDS: Commands._get_region_io_fds,
    Command.DEVICE_GET_IRQ_INFO: Commands._get_irq_info,
    Command.DEVICE_SET_IRQS: Commands._set_irqs,
    Command.REGION_READ: Commands._region_read,
    Command.REGION_WRITE: Commands._region_write,
    Command.DEVICE_RESET: Commands._reset,
    Command.REGION_WRITE_MULTI: Commands._write_multi,
}
"""Plain functions: bound methods kept in their own object would be a reference cycle, and a server may collect cycles
rarely or never."""
SERVED = tuple(map(Command, _HANDLERS))
"""Commands that are carried out, once a session has begun."""
