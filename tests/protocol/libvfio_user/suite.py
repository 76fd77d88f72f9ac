"""A pytest plugin under which the library's own tests speak to this project's server instead of the library.

Those tests drive the library by ctypes and are its client at the same time, in one thread. What they load as the
library is :class:`StandIn`: the functions that set a device up, and that serve one message, on a
:class:`vfio_user.Session`. What is not about messages is not there: such a test fails with :class:`NotThereError`.
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vfio_user import (
    DeviceInfo,
    DmaMapping,
    InterruptTable,
    Irq,
    IrqAction,
    IrqIndex,
    IrqRequest,
    Region,
    RegionFlags,
    RegionIndex,
    RequestError,
    Session,
    State,
    transport,
)

RESET, LOST = 0, 1
_ALWAYS_THERE = {IrqIndex.ERR: 1, IrqIndex.REQ: 1}


class NotThereError(NotImplementedError):
    """A function of the library that has nothing to do with messages."""


class SuiteDevice:
    """What a test has set up."""

    def __init__(self) -> None:
        self.regions: dict[int, tuple[Region, Any]] = {}
        self.config = bytearray(4096)
        self.counts: dict[int, int] = dict(_ALWAYS_THERE)
        self.interrupts = InterruptTable(self.counts)
        self.masked: dict[int, Callable[..., None]] = {}
        self.on_reset: Callable[[int, int], int] | None = None
        self.maps: dict[tuple[int, int], DmaMapping] = {}

    def describe(self) -> DeviceInfo:
        return DeviceInfo()

    def region(self, index: int) -> Region:
        if index == RegionIndex.CONFIG:
            return Region(len(self.config), RegionFlags.READ | RegionFlags.WRITE)
        return self.regions.get(index, (Region(), None))[0]

    def irq(self, index: int) -> Irq:
        return Irq(self.counts.get(index, 0))

    def region_read(self, index: int, offset: int, count: int) -> bytes:
        if index == RegionIndex.CONFIG:
            return bytes(self.config[offset : offset + count])
        return self._access(index, bytes(count), offset, False)

    def region_write(self, index: int, offset: int, data: bytes) -> None:
        if index == RegionIndex.CONFIG:
            self.config[offset : offset + len(data)] = data
        else:
            self._access(index, data, offset, True)

    def _access(self, index: int, data: bytes, offset: int, is_write: bool) -> bytes:
        buffer = ctypes.create_string_buffer(data, len(data))
        callback = self.regions[index][1]
        if callback(1, ctypes.cast(buffer, ctypes.POINTER(ctypes.c_char)), len(data), offset, is_write) < 0:
            raise RequestError(ctypes.get_errno(), "the test's callback refuses")
        return buffer.raw

    def set_irqs(self, request: IrqRequest) -> None:
        self.interrupts.set_irqs(request)
        told = self.masked.get(request.index)
        if told and request.action is not IrqAction.TRIGGER:
            told(1, request.start, request.count, request.action is IrqAction.MASK)

    def dma_map(self, mapping: DmaMapping) -> bool:
        if mapping.fd is not None:
            os.close(mapping.fd)
        if any(mapping.address < end and start < mapping.address + mapping.size for start, end in self._ends()):
            raise RequestError(errno.EEXIST, "over an existing map")
        self.maps[mapping.address, mapping.size] = mapping
        return True

    def _ends(self) -> list[tuple[int, int]]:
        return [(address, address + size) for address, size in self.maps]

    def dma_unmap(self, address: int, size: int) -> int:
        if (address, size) not in self.maps:
            raise RequestError(errno.ENOENT, "no such map")
        del self.maps[address, size]
        return 1

    def dma_unmap_all(self) -> None:
        self.maps.clear()

    def reset(self) -> None:
        self._reset(RESET)

    def settle(self) -> None:
        pass

    def disconnected(self) -> None:
        self._reset(LOST)
        self.interrupts.close()
        self.maps.clear()

    def _reset(self, kind: int) -> None:
        if self.on_reset and self.on_reset(1, kind) < 0:
            raise RequestError(ctypes.get_errno(), "the test's callback refuses")


class StandIn:
    """The library. One context at a time; its pointer is 1."""

    device: SuiteDevice
    path: Path
    listener: transport.Listener | None = None
    sock: socket.socket | None = None
    session: Session

    def __getattr__(self, name: str) -> Any:
        # ctypes lets argument types be written to a function
        method = getattr(type(self), f"_{name}", None)

        def call(*arguments: Any) -> Any:
            if method is None:
                raise NotThereError(name)
            try:
                return method(self, *arguments[name != "vfu_create_ctx" :])
            except OSError as error:
                ctypes.set_errno(error.errno or errno.EIO)
                return -1

        setattr(self, name, call)
        return call

    def _vfu_create_ctx(self, kind: int, path: bytes, flags: int, private: object, device: int) -> int:
        self._vfu_destroy_ctx()  # that of a test that has failed
        self.device, self.path = SuiteDevice(), Path(os.fsdecode(path))
        return 1

    def _vfu_setup_log(self, log: object, level: int) -> int:
        return 0

    def _vfu_pci_init(self, kind: int, header: int, revision: int) -> int:
        self.device.config = bytearray(4096 if kind >= 2 else 256)  # PCI-X 2 and express
        return 0

    def _vfu_setup_region(
        self, index: int, size: int, callback: Any, flags: int, areas: Any, count: int, fd: int, offset: int
    ) -> int:
        kept = tuple((areas[n].iov_base or 0, areas[n].iov_len) for n in range(count))
        rights = RegionFlags(flags & 3) | (RegionFlags.MMAP if fd >= 0 else RegionFlags(0))
        self.device.regions[index] = Region(size, rights, kept, fd if fd >= 0 else None, offset), callback
        return 0

    def _vfu_setup_device_nr_irqs(self, index: int, count: int) -> int:
        self.device.counts[index] = self.device.interrupts.counts[index] = count
        return 0

    def _vfu_setup_irq_state_callback(self, index: int, callback: Any) -> int:
        self.device.masked[index] = callback
        return 0

    def _vfu_setup_device_reset_cb(self, callback: Any) -> int:
        self.device.on_reset = callback
        return 0

    def _vfu_setup_device_quiesce_cb(self, callback: Any) -> None:
        pass  # a matter between the library and its device

    def _vfu_setup_device_dma(self, register: Any, unregister: Any) -> int:
        return 0

    def _vfu_setup_device_migration_callbacks(self, callbacks: Any, offset: int) -> int:
        return 0

    def _vfu_realize_ctx(self) -> int:
        if self.listener is None:
            self.listener = transport.listen(self.path)
        return 0

    def _vfu_attach_ctx(self) -> int:
        assert self.listener is not None
        self.sock, self.session = transport.accept(self.listener), Session(self.device)
        if self.sock is None:
            raise BlockingIOError(errno.EAGAIN, "nobody has connected")
        self._serve()
        if self.session.state is not State.RUNNING:
            self._hang_up()
            raise OSError(errno.EINVAL, "refused")
        return 0

    def _vfu_run_ctx(self) -> int:
        if self.sock is None:
            raise OSError(errno.ENOTCONN, "no client")
        return self._serve()

    def _serve(self) -> int:
        assert self.sock is not None
        chunk = transport.receive(self.sock, 2 << 20)
        if chunk is None:
            self.session.eof()
            self._hang_up()
            raise OSError(errno.ENOTCONN, "the client has gone")
        self.session.receive(*chunk)
        transport.flush(self.sock, self.session.outgoing)
        return int(bool(chunk[0]))

    def _hang_up(self) -> None:
        if self.sock is not None:
            self.sock.close()
        self.sock = None

    def _vfu_irq_trigger(self, vector: int) -> int:
        index = max(self.device.counts, key=lambda each: self.device.counts[each])
        if vector >= self.device.counts[index]:
            raise OSError(errno.EINVAL, "no such vector")
        if not self.device.interrupts.trigger(index, vector):
            raise OSError(errno.ENOENT, "no eventfd")
        return 0

    def _vfu_destroy_ctx(self) -> None:
        if self.sock is not None:
            self.session.eof()
            self._hang_up()
        if self.listener is not None:
            self.listener.remove()
        self.listener = None


_load = ctypes.CDLL


def _stand_in(name: str, *arguments: Any, **options: Any) -> Any:
    return StandIn() if str(name).endswith("/libvfio-user.so") else _load(name, *arguments, **options)


ctypes.CDLL = _stand_in  # type: ignore[assignment,misc]
socket.setdefaulttimeout(0.2)  # what is not answered fails, and does not hang
