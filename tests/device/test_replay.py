"""A session that comes from its journal does what it did, without anything outside."""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import select
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pviommu.counters import Counters
from pviommu.dma.memory_file import FileArea
from pviommu.engine.core import Core
from pviommu.host.pacing import Pace
from pviommu.host.server import Server
from pviommu.inputs import InputKind, LiveInputs, Source
from pviommu.journal import DivergedError, Entry, JournalInputs, ReplayInputs, Unconnected
from pviommu.machine import Machine
from pviommu.native.core import NativeCore
from pviommu.pci.function import Environment
from pviommu.pci.shared_memory import SharedMemory
from pviommu.topology import EndpointSection, IommuSection, Topology
from pviommu.transports.listening import close_all, listen_all
from pviommu_abi.dma_test import DescriptorFlags, DescriptorStatus, DmaOp
from pviommu_abi.slots import Errno
from vfio_user import RemoteError

from ..wire.guest import RAM_SIZE, Guest
from .native.conftest import make_library

TOPOLOGY = Topology(
    IommuSection(rings=2), (EndpointSection("dma0", "dma-test", 1), EndpointSection("dma1", "dma-test", 2))
)
IOVA, GPA, BAR = 0x40000000, 0x100000, 0x8_0000_0000
DFN, GFN = IOVA >> 12, GPA >> 12
SLOW, SLOW_SIZE = 1 << 32, 1 << 20
"""Where memory is that can only be read and written by system calls."""


class Watched:
    """Inputs beside which is noted what the device sends, raises and writes."""

    def __init__(self, inputs: Any) -> None:
        self.inputs: Any = inputs
        self.outputs: list[tuple[str, Any]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inputs, name)

    def of(self, source: Source, call: Callable[..., Any]) -> Callable[..., Any]:
        passed = self.inputs.of(source, call)
        if source.kind not in (InputKind.SENT, InputKind.INTERRUPT, InputKind.WRITTEN):
            return passed  # type: ignore[no-any-return]

        def noted(*arguments: Any) -> Any:
            plain = [bytes(value) if isinstance(value, memoryview) else value for value in arguments]
            self.outputs.append((str(source), [value for value in plain if not hasattr(value, "fileno")]))
            return passed(*arguments)

        return noted


class Memories:
    """What is in memory each time that it is about to be lost."""

    def __init__(self, patch: pytest.MonkeyPatch, outputs: list[tuple[str, Any]]) -> None:
        self._outputs = outputs
        for kind, methods in ((SharedMemory, ("clear", "renew", "close")), (FileArea, ("close",))):
            for method in methods:
                patch.setattr(kind, method, self._noting(kind, getattr(kind, method)))

    def _noting(self, kind: type, method: Callable[[Any], None]) -> Callable[[Any], None]:
        def noted(memory: Any) -> None:
            self._outputs.append((f"{kind.__name__} {memory.size}", bytes(memory.view[1:])))
            method(memory)

        return noted


class Live:
    """A server in a thread of its own."""

    def __init__(self, folder: Path, core: Core | None) -> None:
        self.journal = JournalInputs(LiveInputs())
        self.inputs = Watched(self.journal)
        self.machine = Machine.build(TOPOLOGY, Environment(self.inputs, Counters()), core)  # type: ignore[arg-type]
        self.sockets = listen_all(self.machine, folder, {})
        self.numbers = {name: sock.fileno() for name, sock in self.sockets.items()}
        self.server = Server(self.machine, self.sockets, self.inputs, Pace())
        self.turns = 0
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while not self._stopping.is_set():
            self.server.turn()
            self.turns += 1

    def close(self, end_client: Callable[[], None]) -> None:
        self._stopping.set()
        end_client()  # which wakes it
        self._thread.join(10)
        assert not self._thread.is_alive()
        self.server.close()
        self.machine.close()
        close_all(self.sockets)


def play(guest: Guest, slow: int) -> None:
    """What a guest does: rings, events, DMA of all sorts, interrupts, memory that comes and goes, resets."""
    iommu, dma0, dma1 = guest.iommu, guest.engines["dma0"], guest.engines["dma1"]
    iommu.vectors, dma0.vectors = iommu.client.enable_msix(2), dma0.client.enable_msix(1)
    ctx = guest.attach("dma0")
    assert iommu.map(ctx, DFN, GFN, 64) == (0, 64)
    assert iommu.unmap(ctx, DFN + 60, 8) == (-Errno.ENOENT, 4)
    done = dma0.run(DmaOp.FILL, 100_000, dst=IOVA + 5, pattern=0x1122334455667788, flags=DescriptorFlags.INTERRUPT)
    assert done.status == DescriptorStatus.DONE
    assert dma0.interrupted(0)
    assert guest.ram.bytes[GPA + 5 : GPA + 13] == bytes.fromhex("8877665544332211")
    guest.ram.bytes[GPA + 0x20000 : GPA + 0x20006] = b"source"
    assert dma0.run(DmaOp.COPY, 6, src=IOVA + 0x20000, dst=IOVA + 0x30000).status == DescriptorStatus.DONE
    assert guest.ram.bytes[GPA + 0x30000 : GPA + 0x30006] == b"source"
    for number in range(8):
        iommu.wait(iommu.submit(iommu.map_payload(ctx, DFN + 0x100 + number, GFN + number, 1), posted=True))

    assert dma0.run(DmaOp.CHECKSUM, 16, src=IOVA + (62 << 12)).status == DescriptorStatus.FAULT
    iommu.wait(iommu.submit(iommu.map_payload(99, DFN, GFN, 1), posted=True))
    assert len(iommu.events()) == 2
    assert dma0.run(DmaOp.CHECKSUM, 16, src=IOVA + (63 << 12)).status == DescriptorStatus.FAULT  # and it is armed

    for function in (iommu, dma0):
        function.plug(SLOW, SLOW_SIZE, slow)
    with pytest.raises(RemoteError):
        iommu.client.dma_map(SLOW + SLOW_SIZE, SLOW_SIZE, slow, SLOW_SIZE)
    assert iommu.map(ctx, 0x5000, SLOW >> 12, 2) == (0, 2)
    assert dma0.run(DmaOp.FILL, 64, dst=0x5000 << 12, pattern=7).status == DescriptorStatus.DONE
    assert dma0.run(DmaOp.COPY, 6, src=(0x5000 << 12) + 4096, dst=IOVA + 0x31000).status == DescriptorStatus.DONE
    assert guest.ram.bytes[GPA + 0x31000 : GPA + 0x31006] == b"beside"

    dma1.client.config_write(0x18, 4, BAR & 0xFFFFFFFF)
    dma1.client.config_write(0x1C, 4, BAR >> 32)
    dma1.view[0x8000:0x8003] = b"bar"
    assert iommu.map(ctx, 0x6000, (BAR >> 12) + 8, 1) == (0, 1)
    assert dma0.run(DmaOp.COPY, 3, src=0x6000 << 12, dst=IOVA + 0x32000).status == DescriptorStatus.DONE
    assert guest.ram.bytes[GPA + 0x32000 : GPA + 0x32003] == b"bar"
    assert dma1.client.region_read(2, 0x8000, 3) == b"bar"

    iommu.unplug(SLOW, SLOW_SIZE)
    dma0.client.reset()
    iommu.client.reset()
    iommu.start()
    dma0.descriptors.producer = 0
    dma0.start()
    assert dma0.run(DmaOp.FILL, 8, dst=GPA + 0x40000, pattern=9).status in tuple(DescriptorStatus)


class Touched(BaseException):
    """A replay is to touch nothing."""


@contextlib.contextmanager
def nothing_outside() -> Iterator[None]:
    """Within this nothing can be opened, read, written, waited for, sent or closed, and no thread begun."""

    def fails(*arguments: Any, **_: Any) -> Any:
        raise Touched(f"with {arguments}")

    real_mmap = mmap.mmap
    calls = {
        os: "close open dup read write pread pwrite fstat fstatvfs readlink kill memfd_create truncate pidfd_open "
        "eventfd eventfd_read eventfd_write",
        fcntl: "fcntl ioctl",
        select: "epoll poll select",
    }
    with pytest.MonkeyPatch.context() as patch:
        for module, names in calls.items():
            for name in names.split():
                patch.setattr(module, name, fails)
        patch.setattr(socket, "socket", fails)
        patch.setattr(threading.Thread, "start", fails)
        patch.setattr("builtins.open", fails)
        patch.setattr(mmap, "mmap", lambda fd, *size: real_mmap(fd, *size) if fd == -1 else fails(fd))
        yield


def replay(entries: list[Entry], live: Live, core: Core | None) -> list[tuple[str, Any]]:
    """The outputs of the session that ``entries`` are the journal of."""
    inputs = ReplayInputs(entries)
    watched = Watched(inputs)
    with pytest.MonkeyPatch.context() as patch, nothing_outside():
        Memories(patch, watched.outputs)
        machine = Machine.build(TOPOLOGY, Environment(watched, Counters()), core)  # type: ignore[arg-type]
        sockets: Any = {name: Unconnected(number) for name, number in live.numbers.items()}
        server = Server(machine, sockets, watched, Pace())
        for _ in range(live.turns):
            server.turn()
        server.close()
        machine.close()
    assert inputs.position == len(entries)
    return watched.outputs


@pytest.fixture(scope="module", params=["python", "native tables"])
def make_core(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Core | None]:
    if request.param == "python":
        return lambda: None
    library = make_library(tmp_path_factory.mktemp("cache"))
    return lambda: NativeCore(library)


@pytest.fixture(scope="module")
def live(make_core: Callable[[], Core | None]) -> Live:
    """A session that is over, with its outputs."""
    slow = os.memfd_create("slow", os.MFD_CLOEXEC)
    os.truncate(slow, SLOW_SIZE)
    os.pwrite(slow, b"beside", 4096)
    with tempfile.TemporaryDirectory(prefix="pviommu-") as name, pytest.MonkeyPatch.context() as patch:
        live = Live(Path(name), make_core())
        Memories(patch, live.inputs.outputs)
        with Guest(Path(name), "dma0", "dma1") as guest:
            play(guest.start(), slow)
        with contextlib.ExitStack() as last:
            again = last.enter_context(Guest(Path(name)))
            assert again.iommu.start().alloc() == 1
            live.close(last.close)
    os.close(slow)
    return live


def test_a_session_replayed_from_its_journal_gives_the_same_outputs(
    live: Live, make_core: Callable[[], Core | None]
) -> None:
    outputs = replay(live.journal.entries, live, make_core())

    assert len(outputs) == len(live.inputs.outputs)
    for number, (again, first) in enumerate(zip(outputs, live.inputs.outputs, strict=True)):
        assert again[0] == first[0], number
        assert again[1] == first[1], (number, again[0])


def test_what_reads_past_the_inputs_is_left_out_and_tables_stay_native(
    live: Live, make_core: Callable[[], Core | None]
) -> None:
    assert not live.machine.iommu.has_core
    assert live.machine.endpoints["dma0"].memory.copier is None
    assert live.machine.iommu.engine.core_name == ("native" if make_core() else "python")


def test_what_is_compared_has_all_sorts_of_outputs(live: Live) -> None:
    kinds = {what for what, _ in live.inputs.outputs}

    assert {"bytes to the client of iommu", "bytes to the client of dma0", "interrupts of dma0"} <= kinds
    assert "writes to guest memory of dma0" in kinds
    assert f"FileArea {RAM_SIZE}" in kinds
    assert any(what.startswith("SharedMemory") and any(data) for what, data in live.inputs.outputs)
    ram = next(data for what, data in live.inputs.outputs if what == f"FileArea {RAM_SIZE}")
    assert bytes.fromhex("8877665544332211") in ram


def test_every_kind_of_input_of_the_session_has_its_name(live: Live) -> None:
    sources = {entry.source for entry in live.journal.entries}

    for source in (
        Source(InputKind.CLOCK),
        Source(InputKind.PROCESSOR_TIME),
        Source(InputKind.READY),
        Source(InputKind.RING_INDEX, 0),
        Source(InputKind.RING_SLOTS, 0),
        Source(InputKind.EVENT_INDEX),
        Source(InputKind.SHARED_MEMORY, "dma0"),
        Source(InputKind.GUEST_MEMORY, "dma0"),
        Source(InputKind.WRITTEN, "dma0"),
        Source(InputKind.RECEIVED, "iommu"),
        Source(InputKind.SENT, "iommu"),
        Source(InputKind.CLIENT, "dma1"),
        Source(InputKind.PEER, "dma0"),
        Source(InputKind.DESCRIPTOR, "dma0"),
        Source(InputKind.INTERRUPT, "dma0"),
    ):
        assert source in sources, source


def test_a_journal_that_lacks_an_entry_is_told_from_the_session(
    live: Live, make_core: Callable[[], Core | None]
) -> None:
    entries = live.journal.entries
    place = next(number for number, entry in enumerate(entries) if entry.source.kind is InputKind.RING_SLOTS)
    missing = [*entries[:place], *entries[place + 1 :]]

    with pytest.raises(DivergedError, match=f"entry {place} is of .*, and the device asks for slots of ring 0"):
        replay(missing, live, make_core())
