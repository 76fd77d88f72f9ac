"""A PCI device served by libvfio-user: its callbacks are methods, and what C would take unchecked is checked.

Set up in this order: :meth:`Device.pci`, regions, capabilities, interrupts, DMA, then :meth:`Device.realize`; then
:meth:`Device.serve`, or :meth:`Device.attach` and :meth:`Device.run` from a loop that waits for :attr:`Device.poll_fd`.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import logging
import mmap
import os
import select
import stat
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Any, Self

from . import raw
from .callbacks import Callbacks
from .checks import (
    CONFIG_SIZES,
    check_areas,
    check_capability,
    check_file,
    check_path,
    check_region,
    check_unsigned,
    check_vectors,
)
from .errors import ArgumentError, DisconnectedError, StateError, VfuError
from .find import find_library
from .memory import DmaRange, View
from .migration import migration_callbacks
from .raw import (
    CapabilityFlag,
    CreateFlag,
    Generation,
    IoVec,
    Irq,
    Library,
    MigrationState,
    PciType,
    Region,
    RegionFlag,
    Reset,
)

__all__ = ["Device"]

_LOG = logging.getLogger("libvfio_user")
_LEVELS = (*(logging.CRITICAL,) * 3, logging.ERROR, logging.WARNING, logging.INFO, logging.INFO, logging.DEBUG)
"""Of Python's logging, by those of syslog."""
_NO_FLAGS = CapabilityFlag(0)
_IOEVENTFD_SIZES = (0, 1, 2, 4, 8)
_REST_MS = 100
"""For how long nobody is accepted after that has failed: the client may stay in the queue, and fail again at once."""


class _Named(logging.LoggerAdapter[logging.Logger]):
    def process(self, msg: Any, kwargs: Any) -> tuple[Any, Any]:
        return f"{(self.extra or {})['device']}: {msg}", kwargs


class Device:
    """One device on one socket. A subclass overrides the callbacks below that it has a use for.

    A callback refuses by raising :class:`OSError`: the client gets its errno. Any other exception is logged, and the
    client gets EIO. Calls are not for several threads at a time. Every call raises :class:`StateError` once the device
    is closed, and :class:`VfuError` if the library refuses it.

    ``path`` is the socket's; ``name`` is what log lines begin with; ``log_level`` is syslog's, 0 to 7, of the library's
    own lines (7 writes several for each request). With ``blocking``, :meth:`attach` and :meth:`run` wait, and
    :meth:`run` returns only when the client has gone.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        library: Library | None = None,
        name: str | None = None,
        log_level: int = 3,
        blocking: bool = False,
    ) -> None:
        """Create the socket. Raises :class:`LibraryError`, :class:`ArgumentError` and :class:`VfuError`."""
        self._context: int | None = None
        encoded = check_path(path)
        self.path = os.fspath(path)
        self.library = library or find_library()
        self.log = _Named(_LOG, {"device": name or os.path.basename(self.path)})
        self.ranges: dict[int, DmaRange] = {}
        """what the client has registered for DMA, by first address"""
        self._callbacks = Callbacks(self.log)
        self._kept: dict[object, object] = {}  # what C holds a pointer to
        self._descriptors: dict[object, int] = {}  # copies, so that nobody else closes what C holds
        self._views: set[View] = set()
        self._pci_type: PciType | None = None
        self._regions: dict[Region, tuple[int, bool]] = {}
        self._vectors = dict.fromkeys(Irq, 0) | {Irq.ERR: 1, Irq.REQ: 1}
        self._has_dma = self._is_realized = self.is_attached = False
        self._is_quiescing = self._is_quiesced = self._is_lost = self._is_triggering = False
        self._socket = -1, -1
        flags = 0 if blocking else CreateFlag.ATTACH_NB
        ctypes.set_errno(0)
        context = self.library.vfu_create_ctx(raw.Transport.SOCK, encoded, flags, None, raw.DeviceType.PCI)
        if context is None:
            raise VfuError(ctypes.get_errno(), f"vfu_create_ctx({os.fsdecode(encoded)})")
        self._context = context
        try:
            found = os.stat(encoded)
            self._socket = found.st_dev, found.st_ino
            self._keep_to_this_process()
            self._set_callbacks(log_level)
        except BaseException:
            self.close()
            raise

    # What a subclass overrides

    def read(self, region: Region, offset: int, count: int) -> bytes:
        """The ``count`` bytes of ``region`` at ``offset``."""
        raise OSError(errno.EINVAL, f"{region.name} cannot be read")

    def write(self, region: Region, offset: int, data: bytes) -> None:
        """Take ``data`` at ``offset`` of ``region``."""
        raise OSError(errno.EINVAL, f"{region.name} cannot be written")

    def reset(self, kind: Reset) -> None:
        """The client asks for a reset, or has gone (``LOST_CONN``)."""

    def quiesce(self) -> bool:
        """Stop using guest memory: True if that is done, False if :meth:`quiesced` will say so later.

        Overridden, it is called before guest memory, migration state or the connection change.
        """
        raise NotImplementedError

    def dma_mapped(self, memory: DmaRange) -> None:
        """The client has registered a range. It cannot be refused."""

    def dma_unmapped(self, memory: DmaRange) -> None:
        """The client takes a range away: views of it end when this returns."""

    def interrupts_masked(self, irq: Irq, start: int, count: int, masked: bool) -> None:
        """The client masks or unmasks vectors."""
        raise NotImplementedError

    def migration_state(self, state: MigrationState) -> None:
        """See :class:`~libvfio_user.migration.Migratable`, also for :meth:`save` and :meth:`load`."""

    def save(self, count: int) -> bytes:
        """The next at most ``count`` bytes of the saved state."""
        return b""

    def load(self, data: bytes) -> None:
        """The next bytes of a saved state."""
        raise OSError(errno.EINVAL, "this device has no state")

    # Setting up

    def pci(
        self,
        vendor: int,
        device: int,
        *,
        subsystem: tuple[int, int] = (0, 0),
        class_code: int = 0,
        kind: PciType = PciType.CONVENTIONAL,
    ) -> None:
        """Make the configuration space: ids of 16 bits, ``class_code`` of 24 (base, sub, interface)."""
        ids = (vendor, device, *subsystem)
        for value in ids:
            check_unsigned("id", value, 16)
        check_unsigned("class code", class_code, 24)
        self._before_realize()
        self._do("vfu_pci_init", kind, 0, 0)
        self._pci_type = PciType(kind)
        context = self._open()
        self.library.vfu_pci_set_id(context, *ids)
        self.library.vfu_pci_set_class(context, class_code >> 16, class_code >> 8 & 0xFF, class_code & 0xFF)

    def region(
        self,
        region: Region,
        size: int,
        *,
        flags: RegionFlag = RegionFlag.RW | RegionFlag.MEM,
        file: int | None = None,
        areas: Sequence[tuple[int, int]] = (),
        offset: int = 0,
    ) -> None:
        """Set a region up, of ``size`` bytes; :meth:`read` and :meth:`write` are its callbacks.

        With ``file``, a descriptor, clients may map ``areas`` (offset, size), or all of it; ``offset`` is where the
        region begins in the file. A copy of the descriptor is kept. The configuration space is taken without MEM.
        """
        self._outside()
        region = Region(region)
        check_region(region, size, flags, self.library.generation)
        if region is Region.CFG:
            flags &= ~RegionFlag.MEM
            if size != self._config_size():
                raise ArgumentError(f"region CFG: size {size}, this kind of device has {self._config_size()}")
        if areas and file is None:
            raise ArgumentError(f"region {region.name}: areas to map, and no file")
        check_areas(region, size, areas)
        if file is None and self._regions.get(region, (0, False))[1]:
            raise StateError(f"region {region.name} was mappable, and the library cannot take that back")
        if self._is_realized and region not in self._regions:
            raise StateError(f"region {region.name}: the device is realized already")
        if file is not None:
            check_file(region, file, offset, max((start + length for start, length in areas), default=size))
        if file is not None and not areas:
            check_areas(region, size, [(0, size)])
        descriptor = -1 if file is None else _copied(file)
        vectors = (IoVec * len(areas))(*(IoVec(start, length) for start, length in areas)) if areas else None
        earlier = self._kept.get((region, "access"))  # C holds it until the call is over, and if that fails
        call = self._keep((region, "access"), raw.REGION_ACCESS, self._access(region))
        try:
            self._do("vfu_setup_region", region, size, call, flags, vectors, len(areas), descriptor, offset)
        except VfuError:
            self._kept[region, "access"] = earlier
            if descriptor >= 0:
                os.close(descriptor)
            raise
        self._regions[region] = size, file is not None
        if descriptor >= 0:
            self._keep_descriptor(region, descriptor)

    def ioeventfd(
        self,
        region: Region,
        file: int,
        offset: int,
        size: int,
        *,
        flags: int = 0,
        datamatch: int = 0,
        shadow: tuple[int, int] | None = None,
    ) -> None:
        """Let a client of ``DEVICE_GET_REGION_IO_FDS`` signal eventfd ``file`` instead of writing.

        It is kept as a copy. ``size`` is 1, 2, 4 or 8 bytes, or 0 for any. ``shadow`` is a descriptor of memory and an
        offset in it (:attr:`Generation.CURRENT` only).
        """
        self._outside()
        known, _ = self._regions.get(Region(region), (0, False))
        if size not in _IOEVENTFD_SIZES or offset < 0 or offset + size > known:
            raise ArgumentError(
                f"ioeventfd {offset:#x}+{size} is not within region {Region(region).name} of {known:#x}"
            )
        check_unsigned("flags", flags, 32)
        check_unsigned("datamatch", datamatch, 64)
        if shadow is not None and self.library.generation is Generation.OF_2022:
            raise ArgumentError("ioeventfd: this library has no shadow memory")
        event = self._keep_copy(file)
        more: tuple[int, ...] = ()
        if self.library.generation is Generation.CURRENT:
            more = (-1, 0) if shadow is None else (self._keep_copy(shadow[0]), shadow[1])
        self._do("vfu_create_ioeventfd", region, event, offset, size, flags, datamatch, *more)

    def capability(self, data: bytes, *, position: int = 0, flags: CapabilityFlag = _NO_FLAGS) -> int:
        """Add a capability, whole with its header; ``position`` 0 lets the library choose. Gives its position."""
        self._before_realize()
        self._config_size()
        assert self._pci_type is not None  # else there is no such size
        check_capability(data, position, flags, self._pci_type)
        return self._do("vfu_pci_add_capability", position, flags, ctypes.create_string_buffer(data, len(data)))

    def find_capability(self, number: int, *, extended: bool = False, after: int = 0) -> int | None:
        """Position of a capability, or of the next one after the one at ``after``; None if there is none."""
        self._config_size()
        check_unsigned("position", after, 12)
        context = self._open()
        return self.library.vfu_pci_find_next_capability(context, extended, after, number) or None

    def interrupts(self, irq: Irq, count: int) -> None:
        """Have ``count`` vectors of a kind. ERR and REQ have one each from the beginning."""
        irq = Irq(irq)
        check_vectors(irq, count)
        self._before_realize()
        self._do("vfu_setup_device_nr_irqs", irq, count)
        self._vectors[irq] = count
        if _overrides(self, "interrupts_masked"):

            def masked(_: int, start: int, count: int, mask: bool) -> None:
                self._run("interrupts_masked", lambda: self.interrupts_masked(irq, start, count, mask), None)

            self._do("vfu_setup_irq_state_callback", irq, self._keep((irq, "masked"), raw.IRQ_STATE, masked))

    def dma(self, max_ranges: int = 65_535) -> None:
        """Take registrations of guest memory, at most ``max_ranges``; the library of 2022 takes 16 at most anyway."""
        self._before_realize()
        if self._has_dma:
            raise StateError("DMA is set up already")
        check_unsigned("ranges", max_ranges, 31)
        register = self._keep("register", raw.DMA_REGISTER, self._registered)
        unregister = self._keep("unregister", raw.DMA_UNREGISTER, self._unregistered)
        more = (max_ranges,) if self.library.generation is Generation.CURRENT else ()
        self._do("vfu_setup_device_dma", *more, register, unregister)
        self._has_dma = True

    def migration(self, room: int = 1 << 20) -> None:
        """Have :meth:`migration_state`, :meth:`save` and :meth:`load` called.

        The library of 2022 does it through a region of its own, with ``room`` bytes for data at a time.
        """
        self._before_realize()
        self._config_size()
        made = migration_callbacks(self.library.generation, self, self._callbacks, room)
        self._kept["migration"] = made
        if self.library.generation is Generation.CURRENT:
            self._do("vfu_setup_device_migration_callbacks", ctypes.byref(made))
            return
        registers = self.library.vfu_get_migr_register_area_size()
        self.region(Region.MIGR, registers + room, flags=RegionFlag.RW)
        self._do("vfu_setup_device_migration_callbacks", ctypes.byref(made), registers)

    def realize(self) -> None:
        """End of setting up. Raises :class:`StateError` a second time."""
        self._outside()
        self._before_realize()
        self._config_size()
        self._do("vfu_realize_ctx")
        self._is_realized = True

    # Serving

    @property
    def poll_fd(self) -> int:
        """What to wait for until it is readable. Ask again after every call: it changes."""
        return self._do("vfu_get_poll_fd")

    def attach(self) -> bool:
        """Take a client, if there is one; False if there is none. Raises :class:`VfuError` if it did not get on."""
        self._outside()
        if not self._is_realized or self.is_attached:
            raise StateError("the device is attached already" if self.is_attached else "the device is not realized")
        try:
            self._do("vfu_attach_ctx")
        except VfuError as error:
            if error.errno == errno.EAGAIN:
                return False
            raise
        self.is_attached = True
        self._is_lost = False
        self._keep_to_this_process()
        return True

    def run(self) -> int:
        """Carry out a request, if there is one; the number carried out.

        Raises :class:`DisconnectedError` when the client has gone, and :class:`VfuError` with EBUSY while the device
        quiesces: do not wait for :attr:`poll_fd` then, which stays readable.
        """
        self._outside()
        if not self.is_attached:
            raise StateError("no client is attached")
        try:
            done = self._do("vfu_run_ctx")
        except VfuError as error:
            if error.errno != errno.ENOTCONN:
                raise
            self._is_lost = True
            done = 0
        finally:
            self._is_quiesced = False
        if self._is_lost:
            self.is_attached = False
            self._keep_to_this_process()
            raise DisconnectedError(errno.ENOTCONN, "vfu_run_ctx")
        return done

    def serve(self, stop: int | None = None) -> None:
        """Serve clients one after the other, until descriptor ``stop`` is readable. For devices that are not blocking.

        A client that the library refuses is logged, and the next one is taken 0.1 s later: one that cannot be accepted
        stays in the queue. Raises :class:`StateError` for a device that quiesces later: that needs a loop of its own.
        """
        is_resting = False
        while True:
            waiting = select.poll()
            if not is_resting:
                waiting.register(self.poll_fd, select.POLLIN)
            if stop is not None:
                waiting.register(stop, select.POLLIN)
            if any(descriptor == stop for descriptor, _ in waiting.poll(_REST_MS if is_resting else None)):
                return
            is_resting = False
            try:
                if self.is_attached:
                    self.run()
                else:
                    self.attach()
            except DisconnectedError:
                self.log.debug("the client has gone")
            except VfuError as error:
                if error.errno == errno.EBUSY and self._is_quiescing:
                    raise StateError("the device quiesces later, and serve() has nothing to wait for") from error
                self.log.warning("%s: %s", "a request failed" if self.is_attached else "a client is refused", error)
                is_resting = not self.is_attached

    def quiesced(self, error: int = 0) -> None:
        """What :meth:`quiesce` has put off is done; with an errno, the request that waits for it is dropped."""
        self._outside()
        if not self._is_quiescing:
            raise StateError("the device was not asked to quiesce")
        self._is_quiescing = False
        try:
            self._do("vfu_device_quiesced", error)
        finally:
            self._is_quiesced = False

    def trigger(self, vector: int) -> None:
        """Signal a vector. Raises :class:`VfuError` with ENOENT if the client has not asked for it.

        The library logs that as an error each time: such lines are dropped.
        """
        if not self._is_realized:
            raise StateError("the device is not realized")
        most = max(self._vectors.values())
        if not 0 <= vector < most:
            raise ArgumentError(f"vector {vector}, the device has {most}")
        self._is_triggering = True
        try:
            self._do("vfu_irq_trigger", vector)
        finally:
            self._is_triggering = False

    def read_config(self, offset: int, count: int) -> bytes:
        """Bytes of the configuration space that the library keeps."""
        return ctypes.string_at(self._config(offset, count), count)

    def write_config(self, offset: int, data: bytes) -> None:
        """Change the configuration space that the library keeps, as the device's own hardware would."""
        ctypes.memmove(self._config(offset, len(data)), data, len(data))

    # Guest memory

    @contextlib.contextmanager
    def view(self, address: int, size: int, *, writable: bool = False) -> Iterator[memoryview]:
        """The guest memory itself, without a copy, while the ``with`` lasts and the client leaves it.

        It must be mapped, and within one range. Marks it dirty at the end. Raises :class:`VfuError`: ENOENT without
        such a range, EACCES, EFAULT for one that is not mapped.
        """
        sgl = self._sgl(address, size, writable)
        vector = IoVec()
        self._do("vfu_sgl_get", sgl, ctypes.byref(vector), 1, 0)
        held = View(address, vector.iov_base or 0, size, writable)
        self._views.add(held)
        try:
            yield held.memory
        finally:
            if held in self._views:  # else the client has taken the range away
                context = self._open()
                self.library.vfu_sgl_put(context, sgl, ctypes.byref(vector), 1)
                self._end_view(held)

    def read_memory(self, address: int, size: int) -> bytes:
        """Copy ``size`` bytes of guest memory, by messages where it is not mapped.

        Raises :class:`VfuError`, and :class:`ArgumentError` for what is no memory, as nothing at all.
        """
        parts = []
        for start, length, is_mapped in self._pieces(address, size):
            if is_mapped:
                with self.view(start, length) as memory:
                    parts.append(bytes(memory))
            else:
                buffer = ctypes.create_string_buffer(length)
                self._transfer("vfu_sgl_read", start, length, buffer, writable=False)
                parts.append(buffer.raw)
        return b"".join(parts)

    def write_memory(self, address: int, data: bytes) -> None:
        """Copy ``data`` to guest memory, by messages where it is not mapped. Raises as :meth:`read_memory` does.

        Ranges before the one that refuses have been written.
        """
        done = 0
        for start, length, is_mapped in self._pieces(address, len(data)):
            piece = data[done : done + length]
            if is_mapped:
                with self.view(start, length, writable=True) as memory:
                    memory[:] = piece
            else:
                self._transfer(
                    "vfu_sgl_write", start, length, ctypes.create_string_buffer(piece, length), writable=True
                )
            done += length

    # The end

    def close(self) -> None:
        """Give everything back. The client is cut off; the last callbacks are called. May be called again."""
        if self._context is None:
            return
        self._outside()
        for held in tuple(self._views):
            self._end_view(held)
        context, self._context = self._context, None
        try:
            with self._callbacks.finish():
                self.library.vfu_destroy_ctx(context)
        finally:
            for descriptor in self._descriptors.values():
                os.close(descriptor)
            self._descriptors.clear()
            self._kept.clear()
            self._unlink()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # Calls of C

    def _open(self) -> int:
        if self._context is None:
            raise StateError("the device is closed")
        return self._context

    def _do(self, name: str, *arguments: Any) -> int:
        context = self._open()
        with self._callbacks.finish():
            ctypes.set_errno(0)
            result: int = getattr(self.library, name)(context, *arguments)
            number = ctypes.get_errno()
        if result < 0:
            shown = ", ".join(str(int(word)) for word in arguments if isinstance(word, int))
            raise VfuError(number or errno.EIO, f"{self.log.extra['device']}: {name}({shown})")  # type: ignore[index]
        return result

    def _before_realize(self) -> None:
        self._open()
        if self._is_realized:
            raise StateError("the device is realized already")

    def _outside(self) -> None:
        if (name := self._callbacks.innermost) is not None:
            raise StateError(f"not from a callback ({name}): the library is in the middle of a request")

    def _config_size(self) -> int:
        if self._pci_type is None:
            raise StateError("there is no configuration space: call pci() first")
        return CONFIG_SIZES[self._pci_type]

    def _config(self, offset: int, count: int) -> int:
        if offset < 0 or count < 0 or offset + count > self._config_size():
            raise ArgumentError(f"{offset:#x}+{count} is not within {self._config_size()} bytes of configuration space")
        return (self.library.vfu_pci_get_config_space(self._open()) or 0) + offset

    # Calls by C

    def _run(self, name: str, call: Callable[[], Any], failed: Any) -> Any:
        return self._callbacks.run(name, call, failed)

    def _keep(self, key: object, kind: Any, function: Callable[..., Any]) -> Any:
        made = kind(function)
        self._kept[key] = made
        return made

    def _set_callbacks(self, log_level: int) -> None:
        def log(_: int, level: int, text: bytes) -> None:
            if self._is_triggering:
                return
            level = min(max(level, 0), 7)
            self.log.log(_LEVELS[level], "%s", (text or b"").decode(errors="replace").rstrip())

        def done(kind: Reset) -> int:
            self.reset(kind)
            return 0

        def reset(_: int, kind: int) -> int:
            if kind == Reset.LOST_CONN:
                self._is_lost, self._is_quiescing = True, False
            return int(self._run("reset", lambda: done(Reset(kind)), -1))

        def asked() -> bool:
            is_done = self.quiesce()
            if not isinstance(is_done, bool):
                raise TypeError(f"quiesce() gave {is_done!r}, not True or False")
            return is_done

        def quiesce(_: int) -> int:
            is_done = self._run("quiesce", asked, None)
            if is_done is None:
                return -1
            self._is_quiesced, self._is_quiescing = is_done, not is_done
            if not is_done:
                ctypes.set_errno(errno.EBUSY)
            return 0 if is_done else -1

        self._do("vfu_setup_log", self._keep("log", raw.LOG, log), log_level)
        self._do("vfu_setup_device_reset_cb", self._keep("reset", raw.RESET, reset))
        if _overrides(self, "quiesce"):
            self.library.vfu_setup_device_quiesce_cb(self._open(), self._keep("quiesce", raw.QUIESCE, quiesce))

    def _access(self, region: Region) -> Callable[..., int]:
        def read(buffer: int, count: int, offset: int) -> int:
            data = self.read(region, offset, count)
            if len(data) != count:
                raise ValueError(f"{region.name} gave {len(data)} bytes at {offset:#x}, {count} were asked for")
            ctypes.memmove(buffer, data, count)
            return count

        def write(buffer: int, count: int, offset: int) -> int:
            self.write(region, offset, ctypes.string_at(buffer, count))
            return count

        def access(_: int, buffer: int, count: int, offset: int, is_write: bool) -> int:
            call = write if is_write else read
            return int(self._run(call.__name__, lambda: call(buffer, count, offset), -1))

        return access

    def _registered(self, _: int, info: Any) -> None:
        memory = DmaRange.of(info.contents)
        self.ranges[memory.address] = memory
        self._run("dma_mapped", lambda: self.dma_mapped(memory), None)

    def _unregistered(self, _: int, info: Any) -> None:
        memory = DmaRange.of(info.contents)
        self._run("dma_unmapped", lambda: self.dma_unmapped(memory), None)
        for held in tuple(self._views):
            if memory.overlaps(held.address, held.size):
                self._end_view(held)
        self.ranges.pop(memory.address, None)

    def _end_view(self, held: View) -> None:
        self._views.discard(held)
        if not held.release():
            self.log.error("a view of %#x+%#x has ended, and something still refers to it", held.address, held.size)

    # Guest memory, one range at a time

    def _pieces(self, address: int, size: int) -> Iterator[tuple[int, int, bool]]:
        _check_memory(address, size)
        end = address + size
        while address < end:
            found = self._range(address)
            length = end - address if found is None else min(end, found.end) - address
            yield address, length, found is None or found.is_mapped  # without a range, the library says so
            address += length

    def _range(self, address: int) -> DmaRange | None:
        return next((memory for memory in self.ranges.values() if memory.overlaps(address, 1)), None)

    def _sgl(self, address: int, size: int, writable: bool) -> Any:
        if not self._has_dma:
            raise StateError("DMA is not set up")
        if self._is_quiesced and self._callbacks.innermost in ("read", "write"):
            raise StateError("the device is quiesced")
        _check_memory(address, size)
        found = self._range(address)
        if found is not None and address + size > found.end:
            raise ArgumentError(f"memory {address:#x}+{size:#x} is not within one range: that ends at {found.end:#x}")
        sgl = ctypes.create_string_buffer(self.library.dma_sg_size())
        protection = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
        self._do("vfu_addr_to_sgl", address, size, sgl, 1, protection)
        return sgl

    def _transfer(self, name: str, address: int, size: int, buffer: Any, *, writable: bool) -> None:
        if self._is_quiescing:
            raise StateError("the device is asked to quiesce: no messages now")
        is_old = self.library.generation is Generation.OF_2022
        if is_old and address not in self.ranges:
            raise VfuError(
                errno.ENOTSUP, f"{name}: this library reaches {address:#x} only at the beginning of its range"
            )
        sgl = self._sgl(address, size, writable)
        self._do(name, sgl, 1, buffer, *(() if is_old else (0,)))

    # Descriptors

    def _keep_descriptor(self, key: object, descriptor: int) -> None:
        earlier = self._descriptors.pop(key, None)
        self._descriptors[key] = descriptor
        if earlier is not None:
            os.close(earlier)

    def _keep_copy(self, descriptor: int) -> int:
        copy = _copied(descriptor)
        self._descriptors["copy", copy] = copy
        return copy

    def _keep_to_this_process(self) -> None:
        """The library's sockets would be inherited by every program that is started."""
        os.set_inheritable(self.poll_fd, False)

    def _unlink(self) -> None:
        """The library of 2022 leaves its socket, and cannot be created again there."""
        with contextlib.suppress(FileNotFoundError):
            found = os.lstat(self.path)
            if stat.S_ISSOCK(found.st_mode) and (found.st_dev, found.st_ino) == self._socket:
                os.unlink(self.path)


def _overrides(device: Device, name: str) -> bool:
    return getattr(type(device), name) is not getattr(Device, name)


def _check_memory(address: int, size: int) -> None:
    if size < 1 or address < 0 or address + size > 1 << 64:
        raise ArgumentError(f"memory {address:#x}+{size:#x} is not at least one byte below 2^64")


def _copied(descriptor: int) -> int:
    try:
        return os.dup(descriptor)
    except OSError as error:
        raise ArgumentError(f"descriptor {descriptor}: {error.strerror}") from error
