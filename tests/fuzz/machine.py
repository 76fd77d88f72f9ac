"""A small machine without sockets for the targets, and what must hold of it whatever it was fed."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import select
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path

from pviommu.counters import Counters
from pviommu.dma.usage import PROBED_SIZE
from pviommu.engine import Access, Engine
from pviommu.inputs import LiveInputs
from pviommu.machine import Machine
from pviommu.native.build import build as build_library
from pviommu.native.core import NativeCore, native_core
from pviommu.pci.config_space import Identity
from pviommu.pci.function import Environment, PciFunction
from pviommu.topology import EndpointSection, IommuSection, ReservedSection, Topology
from vfio_user import (
    Command,
    DmaMapping,
    Frame,
    FrameReader,
    Header,
    HeaderFlags,
    Outgoing,
    Session,
    SessionLimits,
    State,
)
from vfio_user.messages import MessageType
from vfio_user.negotiation import offer

__all__ = [
    "RAM_SIZE",
    "STREAM",
    "VERSION",
    "Bounded",
    "Descriptors",
    "Talk",
    "bare_function",
    "build",
    "check_engine",
    "native",
    "nothing_raised",
    "open_descriptors",
    "sealed_memory",
    "small_machine",
    "take",
]

RAM_SIZE = PROBED_SIZE
MAX_TIME_READS = 1 << 20
STREAM = 1
READ_WRITE = Access.READ | Access.WRITE
VERSION = offer(SessionLimits(), 0)
MAX_OUTGOING = 2 * SessionLimits().max_frame + SessionLimits().max_frame
"""Two full transfers may wait when one more request is worked on."""

_Run = tuple[int, int, int, Access]
"""First dfn, pages, first gfn, access."""


class Bounded(LiveInputs):
    """The real inputs with a clock that counts its readings: a loop without end reads it without end."""

    def __init__(self) -> None:
        self._time = 0

    def now_ns(self) -> int:
        self._time += 1
        assert self._time < MAX_TIME_READS, "the machine does not come to an end"
        return self._time * 1000

    def wait(self, poller: select.epoll, timeout_ms: float) -> Sequence[tuple[int, int]]:
        raise AssertionError("a target has no loop that waits")


class Meddled(Bounded):
    """Inputs of a device whose guest writes while it is looked at: ``meddle`` runs after each copy."""

    def __init__(self) -> None:
        super().__init__()
        self.meddle: Callable[[], None] | None = None

    def copy(self, view: memoryview) -> bytes:
        data = bytes(view)
        if self.meddle is not None:
            self.meddle()
        return data


class _Swallowed(logging.Handler):
    """Keeps exceptions that were logged and answered: a client must not be able to cause one."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.first: logging.LogRecord | None = None

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info and self.first is None:
            self.first = record


@contextlib.contextmanager
def nothing_raised() -> Iterator[None]:
    """Within this no handler may raise, not even where the exception is caught and answered with EIO."""
    handler, root = _Swallowed(), logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    root.addHandler(handler)
    try:
        yield
    finally:
        root.removeHandler(handler)
        root.setLevel(level)
    if handler.first is not None and handler.first.exc_info:
        raise AssertionError(f"raised inside: {handler.first.getMessage()}") from handler.first.exc_info[1]


def open_descriptors() -> int:
    """Descriptors that this process has open, and will have open: those on their way to be closed do not count."""
    for thread in threading.enumerate():
        if thread.name == "closer":
            thread.join(10)
    return len(os.listdir("/proc/self/fd"))


class Descriptors:
    """Descriptors that a client may send, of every sort. :meth:`send` gives one away."""

    def __init__(self, *fds: int) -> None:
        """Takes ownership of ``fds``, the first sorts."""
        self.sorts = (*fds, os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC), os.open(os.devnull, os.O_RDWR))

    def send(self, sort: int) -> int:
        return os.dup(self.sorts[sort % len(self.sorts)])

    def close(self) -> None:
        for fd in self.sorts:
            os.close(fd)


def sealed_memory(size: int = RAM_SIZE) -> int:
    """A file of guest memory as QEMU makes it, its first and last byte not zero: a guest uses it."""
    fd = os.memfd_create("ram", os.MFD_ALLOW_SEALING | os.MFD_CLOEXEC)
    os.truncate(fd, size)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
    os.pwrite(fd, b"\1", 0)
    os.pwrite(fd, b"\1", size - 1)
    return fd


def build(topology: Topology, inputs: LiveInputs | None = None, core: NativeCore | None = None) -> Machine:
    """What ``topology`` names, on a clock of its own. ``core``: Python's if none is given."""
    return Machine.build(topology, Environment(inputs or Bounded(), Counters()), core)


def native() -> NativeCore:
    """A native core, which is built unless it is there."""
    return native_core(_library())


@cache
def _library() -> Path:
    return build_library()


def bare_function() -> PciFunction:
    """A function with a configuration space and nothing else."""
    function = PciFunction("bare", Identity(1, 1, 0), Environment(Bounded(), Counters()))
    function.power_on()
    return function


@contextlib.contextmanager
def small_machine(
    iommu: IommuSection | None = None,
    inputs: LiveInputs | None = None,
    ram: int | None = None,
    direct: tuple[ReservedSection, ...] = (),
) -> Iterator[Machine]:
    """A PV-IOMMU and a DMA test engine, ``dma0``, which has ``direct`` regions, with the memory of ``ram`` at 0.

    In the end the engine's books must be right, and all descriptors closed.
    """
    before = open_descriptors()
    with nothing_raised():
        machine = build(
            Topology(iommu or IommuSection(rings=2), (EndpointSection("dma0", "dma-test", STREAM, reserved=direct),)),
            inputs,
        )
        try:
            if ram is not None:
                for function in machine.functions():
                    function.dma_map(DmaMapping(0, RAM_SIZE, 0, True, True, os.dup(ram)))
            yield machine
            check_engine(machine.iommu.engine)
        finally:
            machine.close()
    after = open_descriptors()
    assert after == before, f"{after - before} descriptors leaked"


class Talk:
    """A client's side of a session of ``function``, which has been negotiated. Every reply is checked."""

    def __init__(self, function: PciFunction) -> None:
        self.session = Session(function)
        self._number = 0
        self._reader = FrameReader(SessionLimits().max_frame)
        assert self.request(Command.VERSION, VERSION) is not None

    def request(self, command: int, payload: bytes, fds: Sequence[int] = ()) -> bytes | None:
        """The payload of the reply, or ``None`` for an error."""
        self._number = self._number + 1 & 0xFFFF
        header = Header(self._number, command, Header.SIZE + len(payload), MessageType.COMMAND, 0)
        self.session.receive(header.pack() + payload, list(fds))
        [reply] = self.replies()
        assert (reply.header.id, reply.header.command) == (self._number, command)
        return None if reply.header.flags & HeaderFlags.ERROR else reply.payload

    def replies(self) -> list[Frame]:
        """Take everything that waits to be sent."""
        return take(self.session.outgoing, self._reader)

    def close(self) -> None:
        self.session.eof()
        assert self.session.state is State.CLOSED


def take(outgoing: deque[Outgoing], reader: FrameReader) -> list[Frame]:
    """The replies in ``outgoing``, each of which must be a whole and well-formed one."""
    assert sum(len(item.data) for item in outgoing) <= MAX_OUTGOING
    found = []
    while outgoing:
        [frame] = reader.feed(outgoing.popleft().data)
        assert isinstance(frame, Frame)
        error = frame.header.flags & HeaderFlags.ERROR
        assert frame.header.flags & ~HeaderFlags.ERROR == MessageType.REPLY
        assert bool(error) == bool(frame.header.error)
        assert not (error and frame.payload)
        found.append(frame)
    return found


def check_engine(engine: Engine) -> None:
    """Accounting of pages and tables, isolation from reserved regions, and that the IOTLB tells no lies."""
    cached: dict[int, list[_Run]] = {}
    for (context, _), block in engine._iotlb._blocks.items():
        told = [(dfn, nr, gfn, Access(access)) for dfn, (gfn, nr, access) in block.items()]
        cached.setdefault(context, []).extend(told)
    assert sum(map(len, cached.values())) == len(engine._iotlb) <= engine.config.iotlb_entries
    charged = pages = 0
    for context in (0, *engine.domains()):
        mapped = [(run.dfn, run.nr, run.gfn, run.access) for run in engine.areas(context)]
        direct = [(first, last - first + 1, first, READ_WRITE) for first, last in engine.direct(context)]
        if context and not engine.has_guest_tables(context):
            table = engine._domains.paging[context].table
            charged += max(table.reserved, 1 + _tables(engine, mapped)) + _tables(engine, direct)
            pages += sum(nr for _, nr, _, _ in mapped)
        for run in cached.pop(context, []):
            _check_cached(f"IOTLB: context {context} dfn {run[0]:#x}", mapped + direct, run)
    assert not cached, f"IOTLB: contexts {list(cached)} do not exist"
    usage = engine.usage()
    assert (usage.domains, usage.mapped_pages) == (len(engine.domains()), pages)
    assert usage.pool_pages_used == charged <= usage.pool_pages_total, f"{usage} but {charged} pages are in use"
    assert all(engine.has_domain(context) for context in engine.endpoints().values())


def _tables(engine: Engine, runs: list[_Run]) -> int:
    """Tables below the root that ``runs`` need in pages of 4 KiB; each run must lie where a guest may map."""
    tables = set()
    for dfn, nr, _, _ in runs:
        last = dfn + nr - 1
        assert 0 <= dfn <= last < engine.config.aperture_frames
        assert not any(dfn <= region.last and region.first <= last for region in engine.config.reserved)
        for shift in (9, 18, 27) if engine.config.aperture_bits > 39 else (9, 18):
            tables |= {(shift, table) for table in range(dfn >> shift, (last >> shift) + 1)}
    return len(tables)


def _check_cached(what: str, runs: list[_Run], told: _Run) -> None:
    """Each page of what the IOTLB tells is so in the tables."""
    dfn, nr, gfn, access = told
    at = dfn
    while at < dfn + nr:
        found = next((run for run in runs if run[0] <= at < run[0] + run[1]), None)
        assert found is not None, f"{what}: dfn {at:#x} is not mapped"
        assert (at - found[0] + found[2], found[3]) == (at - dfn + gfn, access), f"{what}: the tables have {found}"
        at = found[0] + found[1]
