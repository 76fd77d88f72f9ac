"""Snapshots of whole machines: what goes on in another one, and what is refused."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from zlib import crc32

import msgspec
import pytest

from pviommu import snapshot
from pviommu.counters import Counters
from pviommu.endpoints.template import Template
from pviommu.endpoints.xor import XorOptions
from pviommu.guest.dma_test import DescriptorRing
from pviommu.guest.local import LocalFunction
from pviommu.guest.memory import GuestRam
from pviommu.guest.ring import Ring
from pviommu.host.work import Work
from pviommu.inputs import LiveInputs, WorkOutcome
from pviommu.machine import Machine
from pviommu.pci.function import Environment
from pviommu.snapshot import BusyError, SnapshotError
from pviommu.topology import EndpointSection, IommuSection, Topology
from pviommu_abi import dma_test, xor
from pviommu_abi.dma_test import DescriptorFlags, DescriptorStatus, DmaOp
from pviommu_abi.registers import REGISTER
from pviommu_abi.slots import OpClass
from pviommu_abi.vendor import Batch, Binding, MapOp, VendorOp
from pviommu_abi.xen_2024 import PvIommuOp, ReattachDevice, Xen2024Op
from vfio_user import DmaMapping, IrqAction, IrqIndex, IrqKind, IrqRequest

RAM = 16 << 20
LARGE = 1 << 20
"""Bytes that DMA moves in several steps."""
TOPOLOGY = Topology(
    IommuSection(),
    (
        EndpointSection("dma0", "dma-test", 1),
        EndpointSection("dma1", "dma-test", 2),
        EndpointSection("stamp", "template", 3),
        EndpointSection("xor", "xor", 4),
    ),
)


class Clock(LiveInputs):
    """It ticks so that a step is over after each piece."""

    def __init__(self) -> None:
        self.time = 0

    def now_ns(self) -> int:
        self.time += 2_000_000
        return self.time


class Guest:
    """A machine and what its guest does with it."""

    def __init__(self, topology: Topology = TOPOLOGY) -> None:
        self.machine = Machine.build(topology, Environment(Clock(), Counters()))
        self.work = Work(self.machine).step
        self.ram = GuestRam(RAM)
        self.iommu = LocalFunction(self.machine.iommu, REGISTER)
        self.engines = {
            name: DescriptorRing(LocalFunction(endpoint, dma_test.REGISTER))  # type: ignore[arg-type]
            for name, endpoint in self.machine.endpoints.items()
            if name.startswith("dma")
        }

    def plug(self, size: int = RAM) -> Guest:
        for function in self.machine.functions():
            function.dma_map(DmaMapping(0, size, 0, True, True, os.dup(self.ram.fd)))
        return self

    def start(self) -> Guest:
        """Endpoints may do DMA; the default context leads to guest memory."""
        self.plug()
        for endpoint in self.machine.endpoints.values():
            endpoint.region_write(7, 4, b"\x06\x00")
        for engine in self.engines.values():
            engine.turn_on()
        return self

    def write(self, name: str, offset: int, value: int, size: int = 4) -> None:
        self.machine.endpoints[name].region_write(0, offset, value.to_bytes(size, "little"))

    def read(self, name: str, offset: int) -> int:
        return int.from_bytes(self.machine.endpoints[name].region_read(0, offset, 4), "little")

    def finish(self) -> None:
        while self.work():
            pass

    def eventfd(self, name: str, vector: int = 0) -> int:
        fd = os.eventfd(0, os.EFD_NONBLOCK)
        self.machine.endpoints[name].set_irqs(
            IrqRequest(IrqIndex.MSIX, vector, 1, IrqAction.TRIGGER, IrqKind.EVENTFD, (os.dup(fd),))
        )
        return fd

    def close(self) -> None:
        self.machine.close()
        self.ram.close()


@pytest.fixture
def make() -> Iterator[Callable[..., Guest]]:
    made: list[Guest] = []

    def build(topology: Topology = TOPOLOGY) -> Guest:
        made.append(Guest(topology))
        return made[-1]

    yield build
    for guest in made:
        guest.close()


@pytest.fixture
def guest(make: Callable[..., Guest]) -> Guest:
    return make().start()


def successor(guest: Guest, other: Guest) -> Guest:
    """``other`` goes on with a copy of the memory."""
    file = snapshot.take(guest.machine)
    other.plug()
    other.ram.bytes[:] = guest.ram.bytes[:]
    snapshot.restore(other.machine, file)
    assert snapshot.take(other.machine) == file
    return other


# -- what goes on -----------------------------------------------------------------------------------------------------


def test_queued_requests_of_every_endpoint_go_on_in_another_machine(guest: Guest, make: Callable[..., Guest]) -> None:
    guest.ram.bytes[0x20000:0x20004] = b"data"
    for number in range(3):
        guest.engines["dma0"].put(DmaOp.COPY, 4, 0x20000, 0x30000 + number * 16)
    guest.engines["dma0"].start()
    for address in (0x40000, RAM, 0x40010):
        guest.write("stamp", 0, address)
    guest.ram.bytes[0x28000:0x28004] = b"data"
    for name, value in (("ADDRESS", 0x28000), ("LENGTH", 4), ("START", 1)):
        register = xor.REGISTER[name]
        guest.write("xor", register.offset, value, register.size)
    guest.write("xor", xor.REGISTER["LENGTH"].offset, 2)

    other = successor(guest, make())
    ends = []
    for each in (guest, other):
        each.finish()
        ends.append((snapshot.take(each.machine), bytes(each.ram.bytes)))

    assert other.ram.bytes[0x30020:0x30024] == b"data"
    assert (other.read("stamp", 4), other.read("stamp", 8)) == (2, 1)
    assert other.ram.bytes[0x28000:0x28004] == bytes(byte ^ 0x5A for byte in b"data")
    assert ends[0][1] == ends[1][1]
    assert _without_times(ends[0][0]) == _without_times(ends[1][0])


def _without_times(file: bytes) -> Any:
    """A snapshot without the shared memory of the PV-IOMMU, which says when a fault was."""
    state = msgspec.json.decode(file.split(b"\n", 1)[1])
    del state["iommu"]["function"]["shared"]
    return state


def test_a_request_in_progress_is_ended_and_what_is_queued_behind_it_is_not(
    guest: Guest, make: Callable[..., Guest]
) -> None:
    engine = guest.engines["dma0"]
    guest.ram.bytes[LARGE : 2 * LARGE] = b"\x11" * LARGE
    places = [engine.put(DmaOp.COPY, LARGE, LARGE, 4 * LARGE), engine.put(DmaOp.COPY, LARGE, LARGE, 6 * LARGE)]
    engine.start()
    guest.work()
    assert guest.machine.endpoints["dma0"].goes_on()

    other = successor(guest, make())

    view = other.machine.endpoints["dma0"].shared.view  # type: ignore[attr-defined]
    status = [view[place + dma_test.Descriptor.offset_of("status")] for place in places]
    assert status == [DescriptorStatus.DONE, DescriptorStatus.PENDING]
    assert other.ram.bytes[4 * LARGE : 5 * LARGE] == b"\x11" * LARGE
    assert other.ram.bytes[6 * LARGE : 7 * LARGE] == bytes(LARGE)
    other.finish()
    assert other.ram.bytes[6 * LARGE : 7 * LARGE] == b"\x11" * LARGE


@pytest.mark.parametrize("how", ["disabled", "taken back"])
def test_a_request_that_the_guest_has_stopped_in_its_middle_is_no_obstacle(
    guest: Guest, make: Callable[..., Guest], how: str
) -> None:
    """A descriptor is ended even if the engine is disabled. One that is taken back begins anew if it comes again."""
    engine = guest.engines["dma0"]
    guest.ram.bytes[LARGE : 2 * LARGE] = b"\x11" * LARGE
    place = engine.put(DmaOp.COPY, LARGE, LARGE, 4 * LARGE)
    engine.start()
    guest.work()
    register = dma_test.REGISTER["CONTROL" if how == "disabled" else "PRODUCER"]
    guest.write("dma0", register.offset, 0)
    assert guest.machine.endpoints["dma0"].goes_on()

    other = successor(guest, make())

    view = other.machine.endpoints["dma0"].shared.view  # type: ignore[attr-defined]
    status = place + dma_test.Descriptor.offset_of("status")
    assert view[status] == (DescriptorStatus.DONE if how == "disabled" else DescriptorStatus.PENDING)
    other.write("dma0", register.offset, 1)
    other.finish()
    assert view[status] == DescriptorStatus.DONE
    assert other.read("dma0", dma_test.REGISTER["CONSUMER"].offset) == 1
    assert other.ram.bytes[4 * LARGE : 5 * LARGE] == b"\x11" * LARGE


def test_registers_that_dma_has_written_to_are_told_before_it_is_saved(
    guest: Guest, make: Callable[..., Guest]
) -> None:
    """Peer-to-peer: a copy into the register that queues a stamp."""
    guest.machine.endpoints["stamp"].region_write(7, 0x10, (0xE0000000).to_bytes(4, "little"))
    guest.ram.bytes[0x20000:0x20004] = (0x50000).to_bytes(4, "little")
    guest.engines["dma0"].put(DmaOp.COPY, 4, 0x20000, 0xE0000000)
    guest.engines["dma0"].start()
    guest.machine.endpoints["dma0"].step()
    assert guest.machine.windows.is_waiting

    other = successor(guest, make())
    other.finish()

    assert other.ram.bytes[0x50000:0x50004] == b"\1\0\0\0"
    assert list(other.machine.iommu.engine.mmio) == [(0xE0000, 0xE0000)]


def test_a_failed_endpoint_is_still_failed_until_its_reset(guest: Guest, make: Callable[..., Guest]) -> None:
    guest.machine.endpoints["stamp"].attempts.make("this test", lambda: 1 // 0)
    assert guest.read("stamp", 4) == 0xFFFFFFFF

    other = successor(guest, make())

    assert other.read("stamp", 4) == 0xFFFFFFFF
    other.machine.endpoints["stamp"].reset()
    assert other.read("stamp", 4) == 0


def test_a_machine_that_was_used_before_goes_on_from_the_snapshot_alone(guest: Guest) -> None:
    file = snapshot.take(guest.machine)
    engine = guest.engines["dma0"]
    engine.put(DmaOp.COPY, LARGE, LARGE, 4 * LARGE)
    engine.start()
    guest.write("stamp", 0, 0x40000)
    guest.work()

    snapshot.restore(guest.machine, file)

    assert snapshot.take(guest.machine) == file
    guest.finish()
    assert snapshot.take(guest.machine) == file


def test_an_interrupt_that_comes_before_its_eventfd_is_not_lost(guest: Guest, make: Callable[..., Guest]) -> None:
    fds = [guest.eventfd("dma0"), guest.eventfd("dma1")]
    for engine in guest.engines.values():
        engine.put(DmaOp.FILL, 4, 0, 0x30000, 1, DescriptorFlags.INTERRUPT)
        engine.start()
    other = successor(guest, make())
    other.finish()
    third = successor(other, make())

    fds += [third.eventfd("dma0"), third.eventfd("dma1", 0)]

    assert [os.eventfd_read(fd) for fd in fds[2:]] == [1, 1]
    assert third.machine.counters.interrupts == 2
    for fd in fds:
        os.close(fd)


SCRIPT = """
import sys
from pathlib import Path
sys.path[:0] = {path!r}
from tests.device.test_snapshot import Guest, snapshot
folder = Path(sys.argv[1])
guest = Guest().plug()
guest.ram.bytes[:] = (folder / "ram").read_bytes()
snapshot.restore(guest.machine, (folder / "snapshot").read_bytes())
guest.machine.inputs.time = int((folder / "time").read_text())
guest.finish()
(folder / "snapshot").write_bytes(snapshot.take(guest.machine))
(folder / "ram").write_bytes(guest.ram.bytes[:])
"""


def long_batch(guest: Guest) -> Ring:
    """Begin to map 100 pages by an array in guest memory."""
    guest.iommu.write("PROFILE", 1)
    ring = Ring(guest.iommu)
    ring.turn_on()
    ring.put(OpClass.XEN_2024, 0, 0, PvIommuOp(Xen2024Op.ALLOC_CONTEXT, 0, 0).pack())
    guest.work()
    array = b"".join(MapOp(page, page + 7, 3, 1).pack() for page in range(100))
    guest.ram.bytes[0x8000 : 0x8000 + len(array)] = array
    ring.put(OpClass.VENDOR, VendorOp.BATCH, 0, Batch(0x8000, 100, 0, 1).pack())
    guest.work()
    assert guest.machine.iommu.rings[0].operation
    return ring


def test_a_fresh_process_comes_to_the_same_end(guest: Guest, tmp_path: Path) -> None:
    long_batch(guest)
    guest.write("stamp", 0, RAM)
    (tmp_path / "snapshot").write_bytes(snapshot.take(guest.machine))
    (tmp_path / "ram").write_bytes(guest.ram.bytes[:])
    (tmp_path / "time").write_text(str(guest.machine.inputs.time))  # type: ignore[attr-defined]

    path = [str(Path(__file__).parents[2]), *sys.path]
    subprocess.run([sys.executable, "-c", SCRIPT.format(path=path), tmp_path], check=True, timeout=60)
    guest.finish()

    assert (tmp_path / "snapshot").read_bytes() == snapshot.take(guest.machine)
    assert (tmp_path / "ram").read_bytes() == guest.ram.bytes[:]
    assert guest.machine.counters.pages_mapped == 100
    assert guest.machine.counters.faults == 1


# -- what is refused --------------------------------------------------------------------------------------------------


def refused(guest: Guest, file: bytes, text: str) -> None:
    """Nothing has changed then."""
    before = msgspec.json.encode(guest.machine.save())
    with pytest.raises(SnapshotError, match=text):
        snapshot.restore(guest.machine, file)
    assert msgspec.json.encode(guest.machine.save()) == before


@pytest.mark.parametrize(
    ("topology", "text"),
    [
        (
            Topology(IommuSection(contexts=7), TOPOLOGY.endpoint),
            "iommu.settings.max_contexts was 255 there, and is 7 her",
        ),
        (Topology(IommuSection(), TOPOLOGY.endpoint[:3]), r"endpoints.xor was \{.*\} there, and is None here"),
        (
            Topology(
                IommuSection(), (*TOPOLOGY.endpoint[:3], EndpointSection("xor", "xor", 4, options=XorOptions(key=1)))
            ),
            "endpoints.xor.options.key was 90 there, and is 1 here",
        ),
        (
            Topology(IommuSection(), (*TOPOLOGY.endpoint[:3], EndpointSection("xor", "template", 4))),
            "endpoints.xor.kind was 'Xor' there, and is 'Template' here",
        ),
    ],
    ids=["limit", "endpoint", "option", "kind"],
)
def test_a_snapshot_of_another_machine_is_refused_with_the_difference(
    guest: Guest, make: Callable[..., Guest], topology: Topology, text: str
) -> None:
    refused(
        make(topology).start(), snapshot.take(guest.machine), f"cannot be restored here: .* another machine: {text}"
    )


def test_a_snapshot_is_refused_where_guest_memory_is_missing(guest: Guest, make: Callable[..., Guest]) -> None:
    file = snapshot.take(guest.machine)

    refused(make(), file, "iommu: guest memory of 0x1000000 bytes at 0x0, .* is expected, and there is nothing")
    refused(make().plug(RAM // 2), file, "iommu: guest memory of .* is expected, and there is 0x800000 bytes at 0x0")
    assert successor(guest, make())


FILES: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "empty": (lambda _: b"", "not a snapshot of pviommu"),
    "foreign": (lambda _: b"\x7fELF" + bytes(9000), "not a snapshot of pviommu"),
    "json": (lambda _: b'{"format": "something"}\n{}', "not a snapshot of pviommu"),
    "cut in the head": (lambda file: file[:20], "not a snapshot of pviommu"),
    "cut": (lambda file: file[:-1], r"a snapshot of \d+ bytes, of which there are \d+"),
    "longer": (lambda file: file + b"\n", r"a snapshot of \d+ bytes, of which there are \d+"),
    "damaged": (lambda file: file[:-9] + b"0" + file[-8:], "damaged: its checksum is another"),
    "later": (
        lambda file: file.replace(b'"version":1', b'"version":2', 1),
        "of format version 2, and this is pviommu of version 1",
    ),
    "other ABI": (lambda file: file.replace(b'"abi":1', b'"abi":9', 1), "of ABI version 9, and this is pviommu of"),
}


@pytest.mark.parametrize(("change", "text"), FILES.values(), ids=FILES)
def test_a_file_that_is_not_right_is_one_error(guest: Guest, change: Callable[[bytes], bytes], text: str) -> None:
    refused(guest, change(snapshot.take(guest.machine)), text)


def rewritten(file: bytes, change: Callable[[Any], None]) -> bytes:
    """A file whose body is another, with a head that fits."""
    head, _, body = file.partition(b"\n")
    document = msgspec.json.decode(body)
    change(document)
    body = msgspec.json.encode(document)
    return msgspec.json.encode(msgspec.json.decode(head) | {"bytes": len(body), "crc32": crc32(body)}) + b"\n" + body


def test_a_body_of_other_types_is_refused(guest: Guest) -> None:
    file = rewritten(snapshot.take(guest.machine), lambda state: state["iommu"].pop("rings"))

    refused(guest, file, "written by something else: .*`rings`")


BAD_STATES: dict[str, tuple[Callable[[Any], None], str]] = {
    "configuration space": (
        lambda state: state["endpoints"]["xor"]["function"].update(config="AAAA"),
        "configuration space has 0x00 at 0x0, and here it is 0x34",
    ),
    "registers": (
        lambda state: state["endpoints"]["xor"]["function"]["registers"]["0"].pop("KEY"),
        "register KEY: it is not on both sides",
    ),
    "register": (
        lambda state: state["endpoints"]["stamp"]["function"]["registers"]["0"].update(STAMPS=[1 << 32]),
        r"register STAMPS cannot hold \(4294967296,\)",
    ),
    "BARs": (lambda state: state["endpoints"]["dma0"]["function"]["shared"].pop("2"), r"BARs \[0\], and here \[0, 2\]"),
    "shared memory": (
        lambda state: state["iommu"]["function"]["shared"]["2"].append([0x100000, "AAAA"]),
        "3 bytes at 0x100000, and it has 0x100000",
    ),
    "vector": (
        lambda state: state["iommu"]["function"]["vectors"].append([2, 99, False]),
        "vector 99 of index 2: it has",
    ),
    "own state": (lambda state: state["endpoints"]["stamp"]["own"].update(queue="x"), "its state: Expected `array`"),
    "rings": (lambda state: state["iommu"]["rings"].pop(), "3 rings, and there are 4"),
    "set-ups": (lambda state: state["iommu"]["setups"].pop(), "set-ups of 3 rings, and there are 4"),
    "streams": (
        lambda state: state["iommu"]["engine"]["attachments"]["streams"].pop(),
        r"endpoints \[1, 2, 3, 4\]: the state has",
    ),
    "counters": (lambda state: state["counters"].pop("faults"), "counter faults: it is not on both sides"),
}


@pytest.mark.parametrize(("change", "text"), BAD_STATES.values(), ids=BAD_STATES)
def test_after_a_state_that_cannot_be_the_machine_is_as_at_power_on(
    guest: Guest, make: Callable[..., Guest], change: Callable[[Any], None], text: str
) -> None:
    guest.write("stamp", 0, 0x1000)
    file = rewritten(snapshot.take(guest.machine), change)
    other = make().start()

    with pytest.raises(SnapshotError, match=text):
        snapshot.restore(other.machine, file)

    for name in ("stamp", "dma0"):
        assert other.machine.endpoints[name].region_read(7, 4, 2) == b"\0\0"
    assert other.read("stamp", 4) == 0
    assert not other.work()
    assert not other.machine.iommu.is_polled


# -- what is not over yet ---------------------------------------------------------------------------------------------


def test_a_register_that_is_written_in_steps_is_waited_for(guest: Guest) -> None:
    long_batch(guest)
    file = snapshot.take(guest.machine)
    steps = guest.machine.iommu.region_write(0, REGISTER["RESET"].offset, b"\1\0\0\0")
    assert steps is not None
    next(steps)

    for attempt in (lambda: snapshot.take(guest.machine), lambda: snapshot.restore(guest.machine, file)):
        with pytest.raises(BusyError, match="iommu: a write to its registers is not done yet"):
            attempt()
    for _ in steps:
        pass

    assert snapshot.take(guest.machine)


class Slow(Template):
    """Asks another thread."""

    def write_stamp_at(self, _: int, value: int) -> None:
        self.submit(lambda: value, lambda outcome: self.state.queue.append(outcome.result()))


class Host:
    """Hands nothing to a thread until it is told to."""

    def __init__(self) -> None:
        self.left: list[tuple[Any, int, Callable[[], Any], Callable[[Any], None]]] = []

    def submit(self, owner: Any, work: Callable[[], Any], callback: Callable[[Any], None]) -> None:
        self.left.append((owner, owner.generation, work, callback))

    def go_on(self) -> None:
        while self.left:
            owner, generation, work, callback = self.left.pop()
            if owner.generation == generation:
                callback(WorkOutcome(1, work()))


def test_work_in_a_thread_is_waited_for_unless_there_was_a_reset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pviommu.machine.endpoint_class", lambda _: Slow)
    guest = Guest(Topology(IommuSection(), (EndpointSection("slow", "template", 1),))).start()
    host = guest.machine.endpoints["slow"].host = Host()  # type: ignore[assignment]

    guest.write("slow", 0, 0x1000)
    with pytest.raises(BusyError, match="slow: work in a thread is not done yet"):
        snapshot.take(guest.machine)
    host.go_on()
    assert b'"own":{"queue":[4096]}' in snapshot.take(guest.machine)

    guest.write("slow", 0, 0x1000)
    guest.machine.endpoints["slow"].reset()
    assert b'"own":{"queue":[]}' in snapshot.take(guest.machine)
    guest.close()


class Impatient(Template):
    """Says that it is in progress as long as anything is queued."""

    @property
    def is_in_progress(self) -> bool:
        return bool(self.state.queue)


def test_a_request_that_waits_for_the_rings_is_brought_to_an_end_with_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pviommu.machine.endpoint_class", lambda _: Impatient)
    guest = Guest(Topology(IommuSection(default_policy="blocked"), (EndpointSection("stamp", "template", 1),))).start()
    ring = long_batch(guest)
    binding = Binding(0, 0, 8, 1).pack().ljust(48, b"\0")
    ring.put(OpClass.VENDOR, VendorOp.BIND, 0, binding)
    ring.put(OpClass.XEN_2024, 0, 0, ReattachDevice(Xen2024Op.REATTACH_DEVICE, 1, 0, 0, 0, 8).pack())
    guest.write("stamp", 0, 99 << 12)

    snapshot.take(guest.machine)

    assert guest.ram.bytes[(99 + 7) << 12 : ((99 + 7) << 12) + 4] == b"\1\0\0\0"
    guest.close()


def test_dma_that_never_ends_is_given_up(guest: Guest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(guest.machine.endpoints["dma0"]), "is_in_progress", True)

    with pytest.raises(BusyError, match="dma0 does not come to an end"):
        snapshot.take(guest.machine)
